"""What the convolution solvers of the Triton backend share: arguments by name, tiles, and the launch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import wraps
from math import prod
from typing import Any

import numpy as np

from ...arrays import CONTIGUOUS, TORCH, ArrayKind, is_cupy, with_memory
from ...config import launcher
from ...costs import Work, conv_work, gpu_of
from ...packs import TypeName
from ...problem import Call, ConvProblem, Problem, itemsize
from ..axes import five, reach, three
from ..base import Plan
from ..conv_common import format_strides
from .tuned import Tunable

__all__ = [
    "VECTORS",
    "Memo",
    "Strides",
    "TritonConv",
    "accumulator_type",
    "as_tensor",
    "bound_registers",
    "choose_tile",
    "conv_arguments",
    "format_strides",
    "index64",
    "launch_options",
    "power_of_two",
    "recorded_at_first",
    "remembered",
    "stream_of",
    "strides_of",
]

_DTYPES = ("float16", "bfloat16", "float32", "float64")

VECTORS = ("bias", "scale", "shift")
"""Arguments of the epilogue that hold one number per channel."""

Memo = dict[str, Any] | None
"""What a solver remembers between calls that differ in nothing but the values of their arrays."""

Strides = Mapping[str, Sequence[int]]
"""Strides in elements of each tensor of a call, by its letter."""


def power_of_two(value: int) -> int:
    """Return the smallest power of two that is not below `value`."""
    return 1 << max(value - 1, 0).bit_length()


def _roomy(problem: ConvProblem) -> bool:
    """Tell whether a thread has registers for the addresses of a large tile, element by element.

    That is on tensor cores, with offsets of 32 bits or one tap, one or two spatial axes, at most a bias and relu to
    follow, and for gradients with channels in multiples of 16.
    """
    tensor = itemsize(problem.dtype) == 2 or (problem.dtype == "float32" and problem.precision == "tf32")
    light = problem.activation in (None, "relu", "relu6") and not problem.residual and problem.rounding == "fused"
    near = prod(problem.kernel) == 1 or not problem.index64
    whole = problem.kind == "fprop" or problem.k // problem.groups % 16 == 0
    return tensor and light and problem.kind != "wgrad" and problem.ndim < 3 and near and whole


def _sixteen_warps(problem: ConvProblem) -> bool:
    """Tell whether sixteen warps hold a tile of 128 x 128 without spilling: of gradients in tf32, on Hopper."""
    gpu = gpu_of(problem.device)
    hopper = gpu is not None and gpu.capability[0] == 9
    return hopper and problem.kind != "fprop" and problem.dtype == "float32"


def choose_tile(problem: ConvProblem, sizes: tuple[int, int, int], vector: bool) -> dict[str, int]:
    """Return the tile of a GEMM of `sizes` (rows, columns, reduction), at least 16 a side as ``tl.dot`` needs.

    128 x 128 x 64 with 3 stages keeps 16-bit problems at two blocks per SM on Hopper. Wider types take smaller tiles,
    and so do operands that cannot be read, or results that cannot be written, 16 bytes at a time (not `vector`), and
    64-bit offsets: addresses take many registers. Eight warps share what would spill from four; float32 on the plain
    cores keeps four, where each thread then reuses what it loads more often. Where nothing else asks for registers
    (see :func:`_roomy`) a tile for the tensor cores is twice as large all the same.
    """
    if not vector and _roomy(problem):
        point = prod(problem.kernel) == 1 and sizes[2] % 16 == 0
        columns = 128 if point or _sixteen_warps(problem) else 64
        m, n, k = (min(most, max(16, power_of_two(size))) for most, size in zip((128, columns, 32), sizes, strict=True))
        warps = 4 if m * n < 64 * 32 else 16 if m * n == 128 * 128 and _sixteen_warps(problem) else 8
        return {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "GROUP_M": 8, "num_warps": warps, "num_stages": 3}
    vector = vector and not problem.index64
    wide = {"float64": (32, 32, 16), "float32": (64, 64, 32)}.get(problem.dtype, (128, 128, 64))
    narrow = {"float64": (32, 32, 16), "float32": (64, 32, 32)}.get(problem.dtype, (64, 64, 32))
    m, n, k = (
        min(most, max(16, power_of_two(size))) for most, size in zip(wide if vector else narrow, sizes, strict=True)
    )
    epilogue = problem.residual or problem.activation is not None
    crowded = not vector or epilogue or problem.precision == "tf32x3" or itemsize(problem.dtype) == 2
    warps = 8 if crowded and m * n >= 64 * 64 else 4
    return {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "GROUP_M": 8, "num_warps": warps, "num_stages": 3}


_SPILLING = {
    "fprop": {(32, 128, 64, 8), (128, 64, 32, 8), (128, 64, 16, 8), (128, 128, 32, 8), (128, 128, 16, 8)},
    "dgrad": {(128, 64, 64, 8), (128, 64, 32, 8), (128, 64, 16, 8), (128, 32, 32, 8), (128, 16, 32, 4)},
    "wgrad": {(32, 32, 64, 4), (128, 64, 64, 4), (64, 64, 16, 4), (64, 32, 64, 8), (64, 64, 32, 8)},
}
"""Tiles (rows, columns, depth, warps) by pass of which ptxas spills a few registers to fit one more block."""


def bound_registers(kernel: str, tile: dict[str, int]) -> dict[str, int]:
    """Return `tile` with a bound on registers, the highest there is, where ptxas spills without one.

    Left to itself ptxas aims at more blocks per multiprocessor at the price of local memory; given a bound it aims at
    that alone.
    """
    key = (tile["BLOCK_M"], tile["BLOCK_N"], tile["BLOCK_K"], tile["num_warps"])
    if key not in _SPILLING[kernel]:
        return tile
    return tile | {"maxnreg": 255}


_FUSED = {"enable_fp_fusion": True}
"""A product and a sum may be one instruction, rounded once. Said at every launch: Triton 3.10 will not by itself."""


def launch_options(config: Mapping[str, int]) -> dict[str, int]:
    """Return what of `config` is for the compiler, with what is the same for every kernel."""
    return {
        name: config[name] for name in ("num_warps", "num_stages", "maxnreg", "num_ctas") if name in config
    } | _FUSED


def index64(problem: ConvProblem, strides: Strides, rows: int) -> bool:
    """Tell whether an offset, or a number below `rows`, may not fit in a signed 32-bit integer."""
    result = problem.result_shape
    shapes = {"x": problem.x_shape, "w": problem.w_shape, "y": problem.y_shape, "residual": result}
    shapes |= dict.fromkeys(VECTORS, (_channels(problem),))
    return max(rows, *(reach(shapes[name], steps) for name, steps in strides.items())) >= 2**31


def conv_arguments(problem: ConvProblem, strides: Strides) -> dict[str, Any]:
    """Return the arguments that describe the convolution itself, which the kernels of every pass take by these names.

    Parameters
    ----------
    problem
        The problem; 1-D and 2-D get leading axes of size 1.
    strides
        Strides in elements of ``x``, ``w``, ``y`` and, where the problem has one, ``residual``. Vectors of the epilogue
        that have none here are contiguous.
    """
    arguments: dict[str, Any] = {
        "n": problem.n,
        "groups": problem.groups,
        "c_per_group": problem.c // problem.groups,
        "k_per_group": problem.k // problem.groups,
        "PRECISION": problem.precision,
    }
    arguments |= zip("dhw", three(problem.input_size, 1), strict=True)
    arguments |= zip("opq", three(problem.output_size, 1), strict=True)
    arguments |= zip("TRS", three(problem.kernel, 1), strict=True)
    arguments |= zip(("STRIDE_D", "STRIDE_H", "STRIDE_W"), three(problem.stride, 1), strict=True)
    arguments |= zip(("DILATION_D", "DILATION_H", "DILATION_W"), three(problem.dilation, 1), strict=True)
    arguments |= zip(("pad_d", "pad_h", "pad_w"), three(problem.pad_lo, 0), strict=True)
    axes = {"x": "ncdhw", "w": "kctrs", "y": "nkopq"}
    for name, letters in axes.items():
        arguments |= zip((f"{name}_stride_{axis}" for axis in letters), five(strides[name]), strict=True)
    if problem.kind != "wgrad":
        of_residual = five(strides["residual"]) if problem.residual else (0,) * 5
        arguments |= zip((f"residual_stride_{axis}" for axis in axes[problem.result]), of_residual, strict=True)
        arguments |= {f"{name}_stride": _vector_stride(problem, strides.get(name)) for name in VECTORS}
        arguments["ACTIVATION"] = problem.finish
    return arguments


def _channels(problem: ConvProblem) -> int:
    """Return how many channels the epilogue, or the gradient of a bias, has numbers for."""
    return problem.k if problem.kind in ("fprop", "wgrad") else problem.c


def _vector_stride(problem: ConvProblem, strides: Sequence[int] | None) -> int:
    """Return the stride of a vector of the epilogue; 1, a constant of the compiler, where it is never used."""
    return 1 if strides is None or _channels(problem) == 1 else strides[0]


def _device_guard(problem: Problem) -> AbstractContextManager[object]:
    if not problem.device.startswith("cuda"):
        return nullcontext()
    guard: AbstractContextManager[object] = sys.modules["torch"].cuda.device(problem.device)
    return guard


def as_tensor(torch: Any, array: Any) -> Any:
    """Show an array as a torch tensor that shares its memory."""
    if array is None:
        return None
    if isinstance(array, torch.Tensor):
        return array.resolve_neg() if not array._is_zerotensor() else with_memory(array)
    if not is_cupy(array):
        return torch.from_numpy(_as_torch_takes(array))
    if min(array.strides, default=0) < 0:  # which torch does not have
        array = array.copy()
    if array.dtype.name == "bfloat16":  # DLPack of CuPy does not know it
        return torch.from_dlpack(array.view("int16")).view(torch.bfloat16)
    return torch.from_dlpack(array)


def _as_torch_takes(array: np.ndarray) -> np.ndarray:
    """Return a host array of the interpreter, or a copy where torch cannot show its memory, or warns before it does."""
    flags, itemsize = array.flags, array.itemsize
    plain = flags.writeable and flags.aligned and array.dtype.isnative
    if plain and all(step >= 0 and step % itemsize == 0 for step in array.strides):
        return array
    return np.array(array, array.dtype.newbyteorder("="), order="C")


def _laid_out_anew(arrays: Mapping[str, Any], tensors: Mapping[str, Any]) -> bool:
    """Tell whether a host array was copied to other strides, which what was remembered of its own does not fit."""
    for name, array in arrays.items():
        if isinstance(array, np.ndarray):
            strides = tuple(step * array.itemsize for step in tensors[name].stride())
            if strides != array.strides:
                return True
    return False


def stream_of(kind: ArrayKind, problem: Problem) -> AbstractContextManager[object]:
    """Return a context in which torch and Triton work on the current stream of the arrays' library.

    torch's own is what they use anyway; for CuPy's arrays it is CuPy's current stream of their device.
    """
    if kind.name != "cupy":
        return nullcontext()
    import torch

    cupy = sys.modules["cupy"]
    with cupy.cuda.Device(torch.device(problem.device).index):
        pointer = cupy.cuda.get_current_stream().ptr
    scope: AbstractContextManager[object] = torch.cuda.stream(torch.cuda.ExternalStream(pointer, problem.device))
    return scope


def recorded_at_first(run: Callable[[Any, Plan, Call], Any]) -> Callable[[Any, Plan, Call], Any]:
    """Wrap the `run` of a solver: what the first call of a kind on a GPU launches is kept, for the next to repeat.

    Everything that `run` does to tensors must follow from what the plan cache knows: it is not asked again.
    """

    @wraps(run)
    def run_or_record(self: Any, plan: Plan, call: Call) -> Any:
        prepared, problem = call.prepared, plan.problem
        if prepared is None or prepared.replay is not None or not problem.device.startswith("cuda"):
            return run(self, plan, call)
        if call.kind is not TORCH:  # a replay allocates torch's tensors, on torch's stream
            prepared.replay = False
            return run(self, plan, call)
        if launcher() == "triton":
            prepared.replay = False
            return run(self, plan, call)
        from ...launcher.record import record  # imports torch

        def run_on(arrays: Mapping[str, Any]) -> Any:
            return run(self, plan, replace(call, arrays=arrays))

        index = int(problem.device.partition(":")[2] or 0)
        result, replay = record(run_on, call.arrays, index, lambda: _device_guard(problem))
        prepared.replay = replay or False
        return result

    return run_or_record


class TritonConv(Tunable):
    """A convolution solver that launches Triton kernels on torch tensors."""

    kinds: tuple[str, ...]

    def serves(self, problem: Problem) -> bool:
        return isinstance(problem, ConvProblem) and problem.kind in self.kinds

    def why_not(self, problem: Problem) -> str | None:
        if not isinstance(problem, ConvProblem):
            return "solves convolutions, not poolings"
        if problem.kind not in self.kinds:
            return f"solves {' and '.join(self.kinds)}, not {problem.kind}"
        if problem.dtype not in _DTYPES:
            return f"computes {', '.join(_DTYPES)}, not {problem.dtype}"
        return None

    def work(self, problem: Problem, configs: Sequence[Mapping[str, Any]]) -> Work:
        assert isinstance(problem, ConvProblem)
        return conv_work(problem, configs)

    @recorded_at_first
    def run(self, plan: Plan, call: Call) -> Any:
        with stream_of(call.kind, plan.problem):
            return self._run(plan, call)

    def _run(self, plan: Plan, call: Call) -> Any:
        import torch

        problem = plan.problem
        assert isinstance(problem, ConvProblem)
        result = call.kind.empty(problem.result_shape, problem.dtype, problem.device, problem.result_format)
        of_bias = None
        if problem.kind == "wgrad" and problem.bias:
            of_bias = call.kind.empty((problem.k,), problem.dtype, problem.device, CONTIGUOUS)
        if 0 in problem.result_shape:
            return result if of_bias is None else (result, of_bias)
        tensors = {name: as_tensor(torch, array) for name, array in call.arrays.items()}
        tensors[problem.result] = as_tensor(torch, result)
        if of_bias is not None:
            tensors["bias"] = as_tensor(torch, of_bias)
        for name, (dtype, elements) in self.parts(plan).items():
            device = tensors[problem.result].device
            tensors[name] = torch.empty(elements, dtype=getattr(torch, dtype), device=device)
        memo = call.prepared.memo if call.prepared and not _laid_out_anew(call.arrays, tensors) else None
        self.launch(problem, tensors, plan.config, memo)
        return result if of_bias is None else (result, of_bias)

    def parts(self, plan: Plan) -> dict[str, tuple[str, int]]:
        """Return the dtype and the number of elements of each tensor that the workspace consists of, by name."""
        if not plan.workspace:
            return {}
        sums = "float64" if plan.problem.dtype == "float64" else "float32"
        return {"workspace": (sums, plan.workspace // itemsize(sums))}

    def launch(
        self, problem: ConvProblem, tensors: Mapping[str, Any], config: Mapping[str, int], memo: Memo = None
    ) -> None:
        """Launch on torch tensors by name: ``x w y``, what the epilogue has (or None), and the parts if planned.

        `memo` belongs to calls of these strides: what a launch derives from them is kept there.
        """
        raise NotImplementedError


def remembered(memo: Memo, name: str, derive: Callable[..., dict[str, Any]], *args: Any) -> dict[str, Any]:
    """Return ``derive(*args)``, or what it returned when `memo` was first asked for `name`."""
    if memo is None:
        return derive(*args)
    if name not in memo:
        memo[name] = derive(*args)
    found: dict[str, Any] = memo[name]
    return found


def accumulator_type(problem: ConvProblem) -> TypeName:
    """Return the type in which products of the problem are summed, by Triton's name."""
    return TypeName("float64" if problem.dtype == "float64" else "float32")


def strides_of(tensors: Mapping[str, Any]) -> Strides:
    """Return the strides of the tensors that are there and that strides describe."""
    names = ("x", "w", "y", *VECTORS, "residual")
    return {name: tensors[name].stride() for name in names if tensors.get(name) is not None}
