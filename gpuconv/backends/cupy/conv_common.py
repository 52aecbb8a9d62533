"""What the convolution solvers of the CuPy backend share: the struct of a problem, and which kernel variant with which
tile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...problem import ConvProblem, Problem, itemsize
from ...shapes import ceil_div, effective_kernel
from ..axes import three
from ..conv_common import format_strides
from .common import CupySolver, Results, Strides, capability

__all__ = [
    "C_TYPES",
    "PARAMS",
    "TILES",
    "CupyConv",
    "Variant",
    "conv_params",
    "format_strides",
    "padded_flops",
    "rank_of",
    "tile_for",
    "variants",
    "wide_index",
]

C_TYPES = {"float16": "f16", "bfloat16": "bf16", "float32": "float", "float64": "double"}
"""The kernels' names of element types."""

_PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
_ACTIVATIONS = (None, "relu", "relu6", "hardswish", "silu", "gelu", "gelu_tanh", "sigmoid", "tanh")
"""In the order of the numbers that ``conv.cuh`` gives them."""

_VECTORS = ("bias", "scale", "shift")
"""What holds one number per channel of the result, in the order of their strides in the struct."""

_FIVE = ("x_stride", "w_stride", "y_stride", "residual_stride")
_THREE = ("size", "out", "kernel", "stride", "dilation", "pad_lo", "pad_hi", "step", "inverse", "images",
          "vector_stride")  # fmt: skip
_LONGS = ("n", "c", "k", "per_split")
_INTS = ("groups", "tiles_m", "tiles_n", "splits", "taps_inside", "padding_mode", "activation", "stepwise")

PARAMS = np.dtype(
    [(name, np.int64, (5,)) for name in _FIVE]
    + [(name, np.int64, (3,)) for name in _THREE]
    + [(name, np.int64) for name in _LONGS]
    + [(name, np.int32) for name in _INTS],
    align=True,
)
"""The struct ``ConvParams`` of ``kernels/cu/conv.cuh``."""

TILES = {"large": (128, 128), "medium": (64, 64), "small": (32, 32)}
"""Rows and columns of a block's tile by name."""

_PLAIN = {"large": "Plain<128, 128, 8, 8>", "medium": "Plain<64, 64, 4, 4>", "small": "Plain<32, 32, 4, 4>"}
_TENSOR = {"large": "Tensor<128, 128, 64, 32>", "medium": "Tensor<64, 64, 32, 32>", "small": "Tensor<32, 32, 16, 32>"}
_THREADS = {"large": 256, "medium": 256, "small": 64}
_TENSOR_THREADS = {"large": 256, "medium": 128, "small": 64}

_FULL = 132
"""Multiprocessors of an H100 or H200: a tile is made smaller where it would leave some of them without a block."""

_ROWS_MARGIN = 1024
"""More than numbers of rows, or of the reduction, exceed their end in a kernel."""


def _five(strides: Sequence[int]) -> tuple[int, ...]:
    return (*strides[:2], *three(strides[2:], 0))


def conv_params(problem: ConvProblem, strides: Strides, dtype: np.dtype = PARAMS) -> np.ndarray:
    """Return the struct of a problem as an array of no axes; what one pass alone needs is left 0."""
    params = np.zeros((), dtype)
    for name in _FIVE:
        steps = strides.get(name.removesuffix("_stride"))
        params[name] = 0 if steps is None else _five(steps)
    params["vector_stride"] = [strides.get(name, (0,))[0] for name in _VECTORS]
    params["size"] = three(problem.input_size, 1)
    params["out"] = three(problem.output_size, 1)
    params["kernel"] = three(problem.kernel, 1)
    params["stride"] = three(problem.stride, 1)
    params["dilation"] = three(problem.dilation, 1)
    params["pad_lo"] = three(problem.pad_lo, 0)
    params["pad_hi"] = three(problem.pad_hi, 0)
    params["n"] = problem.n
    params["c"] = problem.c // problem.groups
    params["k"] = problem.k // problem.groups
    params["groups"] = problem.groups
    params["padding_mode"] = _PADDING_MODES.index(problem.padding_mode)
    params["activation"] = _ACTIVATIONS.index(problem.activation)
    params["stepwise"] = problem.rounding == "torch"
    return params


def wide_index(problem: ConvProblem, strides: Strides, *counts: int) -> bool:
    """Tell whether an offset, a coordinate or one of `counts` may not fit in the kernels' 32-bit arithmetic.

    Offsets are formed as sums, so what counts is how far coordinates reach into the padding, on either side.
    """
    axes = zip(
        problem.input_size, problem.output_size, problem.kernel, problem.stride, problem.dilation, problem.pad_lo,
        problem.pad_hi, strict=True,
    )  # fmt: skip
    extents = [
        size + out * stride + effective_kernel(kernel, dilation) + lo + hi
        for size, out, kernel, stride, dilation, lo, hi in axes
    ]
    sides = {
        "x": (problem.n, problem.c, *extents),
        "w": problem.w_shape,
        "y": (problem.n, problem.k, *extents),
        "residual": problem.result_shape,
        **dict.fromkeys(_VECTORS, (max(problem.c, problem.k),)),
    }
    reaches = [
        sum(size * abs(stride) for size, stride in zip(sides[name], strides[name], strict=True))
        for name in sides
        if name in strides
    ]
    most = max(*reaches, *(count + _ROWS_MARGIN for count in counts), max(problem.stride) ** 2)
    return most >= 2**31 or max(extents) >= 2**29  # the kernels mark what is outside by 2**30


@dataclass(frozen=True, slots=True)
class Variant:
    """One instantiation of a tiled kernel: the arguments of its template."""

    dtype: str
    dims: int
    layout: str  # CONTIGUOUS, CHANNELS_LAST or VECTOR
    padded: bool  # padding other than zeros
    wide: bool
    tensor: bool
    tile: str

    def name(self, kernel: str) -> str:
        """Return the C++ name of `kernel` in this variant."""
        padded, wide = str(self.padded).lower(), str(self.wide).lower()
        shape = (_TENSOR if self.tensor else _PLAIN)[self.tile]
        return f"{kernel}<{C_TYPES[self.dtype]}, {self.dims}, {self.layout}, {padded}, {wide}, {shape}>"

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return (_TENSOR_THREADS if self.tensor else _THREADS)[self.tile]

    def tiles(self, rows: int, columns: int) -> tuple[int, int]:
        """Return how many tiles `rows` and `columns` take, one at least."""
        side_m, side_n = TILES[self.tile]
        return max(ceil_div(rows, side_m), 1), max(ceil_div(columns, side_n), 1)


def _variant(dtype: str, ndim: int, layout: str, padded: bool, wide: bool, tensor: bool, tile: str) -> Variant:
    """Return the instantiation that serves what is asked: there is not one of everything.

    Any variant takes any strides; its layout says which are fast. Kernels for zero padding of 1-D and 2-D problems save
    the third axis where tiles are large enough to matter.
    """
    double, vector = dtype == "float64", layout == "VECTOR"
    if wide:
        return Variant(dtype, 3, "CONTIGUOUS", True, True, tensor, "medium")
    if padded:
        both = dtype == "float32" or tensor
        layout = "CONTIGUOUS" if not both or layout == "CONTIGUOUS" else "CHANNELS_LAST"
        return Variant(dtype, 3, layout, True, False, tensor, "medium")
    if tile == "large" and (double or (not vector if tensor else (itemsize(dtype) == 2 or ndim == 3))):
        tile = "medium"
    flat = ndim < 3 and tile != "small" and (vector if tensor else dtype == "float32")
    return Variant(dtype, 2 if flat else 3, layout, False, False, tensor, tile)


def _for_result(variant: Variant, result: str) -> Variant:
    """Return the variant that the pass with this result has: the data gradient has no 64-bit one on tensor cores.

    Its places in 64 bits, images of padding and fragments together take more registers than there are.
    """
    return replace(variant, tensor=False) if result == "x" and variant.wide else variant


def variants(result: str) -> list[Variant]:
    """Return every variant that the tiled kernel of a pass, named by its result, is instantiated for."""
    found: dict[Variant, None] = {}
    for dtype in C_TYPES:
        for tensor in (False, True) if itemsize(dtype) == 2 else (False,):
            for layout in ("CONTIGUOUS", "CHANNELS_LAST", *(("VECTOR",) if tensor else ())):
                for ndim in (2, 3):
                    for padded, wide in ((False, False), (True, False), (False, True)):
                        for tile in TILES:
                            variant = _variant(dtype, ndim, layout, padded, wide, tensor, tile)
                            found[_for_result(variant, result)] = None
    return list(found)


def _has_tensor_cores(problem: ConvProblem) -> bool:
    """Tell whether the device multiplies 16-bit matrices in the way that the kernels know (sm_75, bfloat16 sm_80)."""
    oldest = {"float16": 75, "bfloat16": 80}.get(problem.dtype)
    return oldest is not None and capability(problem.device) >= oldest


def _in_vectors(shape: Sequence[int], strides: Sequence[int], per_group: int, lanes: int) -> bool:
    """Tell whether channels of each group lie in runs of whole vectors; the start of the array is seen at run time."""
    outer, inner, *spatial = strides
    sizes = (shape[0], *shape[2:])
    steps = [step for size, step in zip(sizes, (outer, *spatial), strict=True) if size > 1]
    return per_group % lanes == 0 and inner == 1 and all(step % lanes == 0 for step in steps)


def _layout(problem: ConvProblem, strides: Strides, tensor: bool) -> str:
    """Return the kernels' name of how the arrays that a pass reads lie."""
    read = [name for name in ("x", "w", "y") if name != problem.result]
    shapes = {"x": problem.x_shape, "w": problem.w_shape, "y": problem.y_shape}
    per_group = {"x": problem.c, "w": problem.c, "y": problem.k}
    lanes = 16 // itemsize(problem.dtype)
    if tensor and all(
        _in_vectors(shapes[name], strides[name], per_group[name] // problem.groups, lanes) for name in read
    ):
        return "VECTOR"
    gathered = "y" if problem.result == "x" else "x"
    return "CHANNELS_LAST" if strides[gathered][1] == 1 and shapes[gathered][1] > 1 else "CONTIGUOUS"


def tile_for(problem: ConvProblem, rows: int, columns: int, copies: int) -> str:
    """Return the largest tile that leaves no multiprocessor idle and is not mostly empty.

    `copies` is how often the tiles of `rows` x `columns` are needed (groups, phases).
    """
    for name in ("large", "medium"):
        m, n = TILES[name]
        tiles = ceil_div(rows, m) * ceil_div(columns, n) * copies
        if tiles >= _FULL and rows * 2 > m and columns * 2 > n:
            return name
    return "small"


def choose_variant(problem: ConvProblem, strides: Strides, config: Mapping[str, Any], wide: bool) -> Variant:
    """Return the variant that runs a problem on arrays of these strides with the tile of `config`."""
    tensor = bool(config["tensor cores"])
    padded = problem.padding_mode != "zeros"
    wide = wide or bool(config.get("INDEX64"))
    layout = _layout(problem, strides, tensor)
    variant = _variant(problem.dtype, problem.ndim, layout, padded, wide, tensor, config["tile"])
    return _for_result(variant, problem.result)


def padded_flops(problem: ConvProblem) -> float:
    """Return the operations of the tiled kernels, whose smallest tile has 32 columns."""
    columns = problem.c if problem.result == "x" else problem.k
    per_group = max(columns // problem.groups, 1)
    return problem.flops * (ceil_div(per_group, 32) * 32 / per_group)


def rank_of(problem: ConvProblem, flops: float, per_us: float) -> float:
    """Return a rough estimate from operations and 1.5 TB/s: a guess until a GPU run fits a cost model."""
    return 6 + max(flops / per_us, problem.min_bytes / 1.5e6)


class CupyConv(CupySolver):
    """A convolution solver of the CuPy backend."""

    kinds: tuple[str, ...]
    kernel: str

    def serves(self, problem: Problem) -> bool:
        return isinstance(problem, ConvProblem) and problem.kind in self.kinds

    def why_not(self, problem: Problem) -> str | None:
        if not isinstance(problem, ConvProblem):
            return "solves convolutions, not poolings"
        if problem.kind not in self.kinds:
            return f"solves {' and '.join(self.kinds)}, not {problem.kind}"
        if problem.dtype not in C_TYPES:
            return f"computes {', '.join(C_TYPES)}, not {problem.dtype}"
        return self.refuse(problem)

    def refuse(self, problem: ConvProblem) -> str | None:
        """Return why the solver does not take a problem of its kind and dtype."""
        return None

    def results(self, problem: ConvProblem) -> Results:
        return {problem.result: (problem.result_shape, problem.dtype, problem.result_format)}


class TiledConv(CupyConv):
    """What the implicit GEMMs share."""

    def rank(self, problem: Problem) -> float:
        assert isinstance(problem, ConvProblem)
        return rank_of(problem, padded_flops(problem), 30e6 if itemsize(problem.dtype) == 2 else 15e6)

    def sizes(self, problem: ConvProblem) -> tuple[int, int, int]:
        """Return rows and columns of the GEMM, and how many such GEMMs there are."""
        raise NotImplementedError

    def configuration(self, problem: ConvProblem) -> dict[str, Any]:
        config: dict[str, Any] = {"tensor cores": _has_tensor_cores(problem)}
        config["tile"] = tile_for(problem, *self.sizes(problem))
        variant = choose_variant(problem, format_strides(problem), config, problem.index64)
        return config | {"tile": variant.tile, "kernel": variant.name(self.kernel)}
