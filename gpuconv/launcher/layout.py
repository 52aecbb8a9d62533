"""What a compiled kernel takes: its parameters in order, and the bytes of its scalars.

A parameter is an argument that Triton did not make a constant (constexprs, None and integers equal to 1 are constants);
that of a tensor map is followed by its sizes and strides. Behind those come two pointers to scratch memory, which are
null for the kernels here. Each release of Triton packs them in a launcher of its own; that this one agrees is checked
against the entry point that the compiler wrote.
"""

from __future__ import annotations

import ctypes
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .maps import TensorMap, copies_as_told, is_map, parse_map_type

__all__ = ["PORTABLE_CLUSTER", "Layout", "Parameter", "layout_of", "pack"]

_INTEGERS = {
    "i1": 1, "u1": 1, "i8": 1, "u8": 1, "i16": 2, "u16": 2, "i32": 4, "u32": 4, "i64": 8, "u64": 8,
}  # fmt: skip
_FLOATS = {"fp16": 2, "bf16": 2, "fp32": 4, "f32": 4, "fp64": 8}
_SCRATCH = 2

_LARGE_SHARED = 228 * 1024
"""Bytes of shared memory above which Triton sets an attribute of the launch."""


PORTABLE_CLUSTER = 8
"""Blocks of a cluster that every GPU with clusters takes (CUDA C++ Programming Guide, 5.2.1)."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of an entry point: its argument, its type, and whether it must be a multiple of 16 bytes."""

    name: str
    type: str
    aligned: bool

    @property
    def is_pointer(self) -> bool:
        """Whether it is a pointer."""
        return self.type.startswith("*")

    @property
    def is_map(self) -> bool:
        """Whether it is a tensor map."""
        return is_map(self.type)

    @property
    def has_address(self) -> bool:
        """Whether a call brings its address."""
        return self.is_pointer or self.is_map

    @property
    def sizes(self) -> list[int]:
        """Bytes of each parameter of the entry point that it is."""
        if self.is_map:
            return parse_map_type(self.type).sizes
        return [8 if self.is_pointer else _INTEGERS.get(self.type) or _FLOATS[self.type]]


@dataclass(frozen=True, slots=True)
class Layout:
    """The parameters of a compiled kernel, or the reason why its launches cannot be repeated.

    `plain` says that nothing but grid, block, cluster and shared memory describes a launch: no other attributes.
    """

    parameters: tuple[Parameter, ...]
    plain: bool
    refusal: str | None = None


def pack(type: str, value: Any) -> bytes:
    """Return the bytes of a scalar, as a kernel reads them.

    Raises
    ------
    OverflowError
        If `value` is not a number of that type.
    """
    if type in _INTEGERS:
        return int(value).to_bytes(_INTEGERS[type], "little", signed=type[0] == "i" and type != "i1")
    if type == "fp16":
        return struct.pack("<e", value)
    if type == "fp64":
        return struct.pack("<d", value)
    single = bytes(ctypes.c_float(value))
    return single[2:] if type == "bf16" else single


def _entry_sizes(ptx: str, name: str) -> list[int]:
    """Return the bytes of each parameter of an entry point, as the compiler declared them."""
    found = re.search(rf"\.entry\s+{re.escape(name)}\s*\((.*?)\)", ptx, re.DOTALL)
    if found is None:
        return []
    bits = re.findall(r"\.param\s+(?:\.align\s+\d+\s+)?\.[a-z]+(\d+)\b[^,\[]*(?:\[(\d+)\])?", found[1])
    return [int(width) // 8 * int(count or 1) for width, count in bits]


def _refused(reason: str) -> Layout:
    return Layout((), False, reason)


def layout_of(compiled: Any, arguments: Mapping[str, Any]) -> Layout:
    """Return the layout of a ``CompiledKernel``; None is what Triton returns where a hook kept it from launching.

    What came from a pack has its layout with it. `arguments` are those of a launch: of a tensor map they have the type.
    """
    if compiled is None:
        return _refused("it was not launched")
    known = getattr(compiled, "layout", None)
    if isinstance(known, Layout):
        return known
    source, metadata = compiled.src, compiled.metadata
    if getattr(metadata, "global_scratch_size", 0) or getattr(metadata, "profile_scratch_size", 0):
        return _refused("it needs scratch memory")
    if getattr(compiled.run, "gsan_enabled", False):
        return _refused("it is instrumented")
    aligned = {path for path, found in source.attrs.items() if ["tt.divisibility", 16] in found}
    parameters, maps = [], []
    for place, (name, type) in enumerate(source.signature.items()):
        if type == "constexpr":
            continue
        given = arguments.get(name)
        if isinstance(given, TensorMap):
            parameters.append(Parameter(name, str(given.type), True))
            maps.append(given.type)
            continue
        if not isinstance(type, str) or not (type[0] == "*" or type in _INTEGERS or type in _FLOATS):
            return _refused(f"argument {name} is of type {type}")
        parameters.append(Parameter(name, type, type[0] == "*" and (place,) in aligned))
    if not copies_as_told(metadata, maps):
        return _refused("its tensor maps are made otherwise")
    expected = [size for parameter in parameters for size in parameter.sizes] + [8] * _SCRATCH
    plain = (
        _entry_sizes(compiled.asm.get("ptx", ""), metadata.name) == expected
        and getattr(metadata, "num_ctas", 1) <= PORTABLE_CLUSTER
        and not getattr(metadata, "launch_pdl", False)
        and not getattr(metadata, "launch_cooperative_grid", False)
        and metadata.shared <= _LARGE_SHARED
        and metadata.target.backend == "cuda"
    )
    return Layout(tuple(parameters), plain)
