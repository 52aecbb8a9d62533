"""Tensor maps as Triton and Gluon, its lower language, have them. Nothing of Triton is imported before it is needed."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ...launcher import MapType, TensorMap

__all__ = ["descriptor", "installed_triton", "layout_of_map", "plain_descriptor"]


@cache  # what it reads lies on the disk, and every plan of a convolution asks
def installed_triton() -> tuple[int, ...] | None:
    """Return major and minor release of the installed Triton; None where there is none, or none that says so."""
    try:
        return tuple(int(part) for part in version("triton").split(".")[:2])
    except (PackageNotFoundError, ValueError):
        return None


def layout_of_map(type: MapType) -> Any:
    """Return the layout of a box in shared memory."""
    from triton.experimental.gluon.language import NVMMASharedLayout

    split: list[list[int]] = []
    if type.split is not None:
        split = [[int(axis == type.split) for axis in range(len(type.box))]]
    return NVMMASharedLayout(
        swizzle_byte_width=type.swizzle, element_bitwidth=8 * type.itemsize, rank=len(type.box), cga_layout=split
    )


def _base(map: TensorMap) -> Any:
    """Return a tensor that begins where a map does."""
    tensor = map.tensor
    return tensor.as_strided((1,), (1,), tensor.storage_offset() + map.offset) if map.offset else tensor


def plain_descriptor(map: TensorMap) -> Any:
    """Return the descriptor that Triton's launcher, or its interpreter, takes for a tensor map of a ``triton.jit``."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor(_base(map), list(map.shape), list(map.strides), list(map.type.box))


def descriptor(map: TensorMap) -> Any:
    """Return the descriptor that Triton's launcher takes for a tensor map of a Gluon kernel."""
    from triton.experimental.gluon.nvidia import hopper

    known: dict[str, Any] = {"round_f32_to_tf32": map.type.dtype == "tf32"}
    if map.type.axes:
        known |= {"pixel_box_lower_corner": list(map.lower), "pixel_box_upper_corner": list(map.upper)}
        known |= {"element_strides": [1, *map.steps, 1]}
    kind = hopper.TensorDescriptorIm2Col if map.type.axes else hopper.TensorDescriptor
    sizes = (list(map.shape), list(map.strides), list(map.type.box))
    return kind(_base(map), *sizes, layout_of_map(map.type), **known)
