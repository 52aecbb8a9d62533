"""A problem as a call: its tensors, the public function of gpuconv that runs it, and PyTorch's own call for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any

import torch

import gpuconv
from gpuconv.arrays import CHANNELS_LAST, CONTIGUOUS, channels_last_strides, contiguous_strides
from gpuconv.problem import ConvProblem, PoolProblem, Problem

__all__ = [
    "Tensors",
    "as_called",
    "aten_call",
    "in_format",
    "make_tensors",
    "operand_bytes",
    "our_call",
    "output_padding",
    "shape_operands",
    "tensor_shapes",
]

Tensors = Mapping[str, torch.Tensor]
Shape = tuple[int, ...]


def tensor_shapes(problem: Problem) -> dict[str, tuple[Shape, str]]:
    """Return (shape, memory format) of each array that the call reads, by its letter."""
    if isinstance(problem, PoolProblem):
        shapes = {"x": (problem.x_shape, problem.x_format)}
        if problem.kind == "bwd":
            shapes["y"] = (problem.y_shape, problem.y_format)
        return shapes
    letters = {"x": problem.x_shape, "w": problem.w_shape, "y": problem.y_shape}
    formats = {"x": problem.x_format, "w": problem.w_format, "y": problem.y_format}
    shapes = {name: (letters[name], formats[name]) for name in "xwy" if name != problem.result}
    if problem.kind != "wgrad":
        channels = problem.k if problem.kind == "fprop" else problem.c
        shapes |= {name: ((channels,), "contiguous") for name in ("bias", "scale", "shift") if getattr(problem, name)}
        if problem.residual:
            shapes["residual"] = (problem.result_shape, problem.result_format)
    return shapes


def operand_bytes(problem: Problem) -> int:
    """Return the bytes of one set of operands and its result."""
    itemsize = torch.empty(0, dtype=getattr(torch, problem.dtype)).element_size()
    return itemsize * (sum(prod(shape) for shape, _ in tensor_shapes(problem).values()) + prod(problem.result_shape))


def in_format(tensor: torch.Tensor, layout: str) -> torch.Tensor:
    """Return `tensor` with its elements in a memory format: of any number of spatial axes, unlike torch's own."""
    shape = tuple(tensor.shape)
    strides = channels_last_strides(shape) if layout == CHANNELS_LAST else contiguous_strides(shape)
    if tensor.stride() == strides:
        return tensor
    return torch.empty_strided(shape, strides, dtype=tensor.dtype, device=tensor.device).copy_(tensor)


def make_tensors(problem: Problem, device: str, seed: int = 0, integers: bool = False) -> dict[str, torch.Tensor]:
    """Draw the operands of a problem: normal numbers, or integers from -3 to 3 whose results are exact.

    The indices that the gradient of a max pool reads come from torch's forward pass on the same x.
    """
    dtype = getattr(torch, problem.dtype)
    generator = None if device == "meta" else torch.Generator(device).manual_seed(seed)
    tensors = {}
    for name, (shape, layout) in tensor_shapes(problem).items():
        strides = channels_last_strides(shape) if layout == CHANNELS_LAST else contiguous_strides(shape)
        tensor = torch.empty_strided(shape, strides, dtype=dtype, device=device)
        if generator is not None:
            tensor.random_(-3, 4, generator=generator) if integers else tensor.normal_(generator=generator)
        tensors[name] = tensor
    if isinstance(problem, PoolProblem) and problem.kind == "bwd" and "max" in problem.pool:
        if device == "meta":
            indices = torch.empty(problem.y_shape, dtype=torch.int64, device=device)
        else:
            forward = getattr(torch.nn.functional, f"{problem.pool}_pool{problem.ndim}d")
            window = (problem.output_size,) if problem.pool == "adaptive_max" else _window(problem)
            _, indices = forward(tensors["x"], *window, return_indices=True)
        tensors["indices"] = in_format(indices, problem.y_format)
    return tensors


def output_padding(problem: ConvProblem) -> Shape:
    """Return what a transposed convolution adds at the end of each axis to reach its size."""
    axes = zip(
        problem.input_size, problem.output_size, problem.stride, problem.pad_lo, problem.pad_hi, problem.dilation,
        problem.kernel,
    )  # fmt: skip
    return tuple(x - ((y - 1) * s - lo - hi + d * (r - 1) + 1) for x, y, s, lo, hi, d, r in axes)


def _window(problem: PoolProblem) -> tuple[Any, ...]:
    """Return kernel, stride, padding, dilation and ceil_mode of a max pool, as both libraries take them."""
    return problem.kernel, problem.stride, problem.pad_lo, problem.dilation, problem.ceil_mode


def _pads(problem: ConvProblem) -> Any:
    return problem.pad_lo if problem.pad_lo == problem.pad_hi else tuple(zip(problem.pad_lo, problem.pad_hi))


def _our_conv(problem: ConvProblem, tensors: Tensors) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    name, options = f"conv{problem.ndim}d", {}
    geometry = {"stride": problem.stride, "padding": _pads(problem), "dilation": problem.dilation}
    geometry |= {"groups": problem.groups}
    if problem.dtype == "float32":
        options["precision"] = problem.precision
    if problem.padding_mode != "zeros":
        options["padding_mode"] = problem.padding_mode
    if problem.kind == "dgrad":
        return f"{name}_input_grad", (problem.x_shape, tensors["w"], tensors["y"]), geometry | options
    if problem.kind == "wgrad":
        return f"{name}_weight_grad", (tensors["x"], problem.w_shape, tensors["y"]), geometry | options
    options |= {key: tensors[key] for key in ("scale", "shift", "residual") if key in tensors}
    if problem.activation:
        options["activation"] = problem.activation
    if problem.rounding != "fused":
        options["rounding"] = problem.rounding
    bias = tensors.get("bias")
    if problem.kind == "transposed":
        geometry["output_padding"] = output_padding(problem)
        return f"conv_transpose{problem.ndim}d", (tensors["y"], tensors["w"], bias), geometry | options
    return name, (tensors["x"], tensors["w"], bias), geometry | options


def _our_pool(problem: PoolProblem, tensors: Tensors) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    name, backward = f"{problem.pool}_pool{problem.ndim}d", problem.kind == "bwd"
    if problem.pool == "max" and backward:
        arguments = (tensors["y"], tensors["x"], *_window(problem), tensors["indices"])
        return f"{name}_with_indices_backward", arguments, {}
    leading = (tensors["y"], tensors["x"]) if backward else (tensors["x"],)
    name = f"{name}_backward" if backward else name
    if problem.pool == "max":
        return name, (*leading, *_window(problem)), {"return_indices": problem.return_indices}
    if problem.pool == "avg":
        arguments = (problem.kernel, problem.stride, problem.pad_lo, problem.ceil_mode, problem.count_include_pad)
        return name, (*leading, *arguments), {}
    if problem.pool in ("adaptive_avg", "adaptive_max"):
        of_maximum = (tensors["indices"],) if "indices" in tensors else ()
        return name, (*leading, *of_maximum) if backward else (*leading, problem.output_size), {}
    raise NotImplementedError(f"the benchmarks have no call for {problem.pool} pools")


def our_call(problem: Problem, tensors: Tensors, backend: str | None = None) -> Callable[[], Any]:
    """Return the call of gpuconv's public function, with a backend or solver forced or not."""
    describe = _our_conv if isinstance(problem, ConvProblem) else _our_pool
    name, arguments, options = describe(problem, tensors)  # type: ignore[arg-type]
    return partial(getattr(gpuconv, name), *arguments, **options, backend=backend)


def as_called(nominal: Problem, device: str = "cuda:0") -> Problem:
    """Return the problem that the public function makes of `nominal`, whose memory formats may be ambiguous.

    The function is explained on tensors without memory, so nothing is computed and sizes cost nothing.
    """
    call = our_call(nominal, make_tensors(nominal, "meta"))
    explanation = gpuconv.explain(call.func, *call.args, **call.keywords)  # type: ignore[attr-defined]
    return replace(explanation.problem, device=device)


def shape_operands(problem: Problem, tensors: Tensors) -> dict[str, torch.Tensor]:
    """Return, for a gradient of a convolution, the operand that it is taken of: torch reads its shape and strides."""
    if isinstance(problem, PoolProblem) or problem.kind not in ("dgrad", "wgrad"):
        return {}
    # In the format of the others: a contender may have changed them all.
    given = tensors["y"]
    layout = CHANNELS_LAST if in_format(given, CHANNELS_LAST) is given else CONTIGUOUS
    like = torch.empty(problem.result_shape, dtype=given.dtype, device=given.device)
    return {"like": in_format(like, layout)}


def _aten_conv(problem: ConvProblem, tensors: Tensors) -> Callable[[], Any]:
    if problem.pad_lo != problem.pad_hi or problem.padding_mode != "zeros":
        raise NotImplementedError("torch has no call without a padded copy")
    geometry = (problem.stride, problem.pad_lo, problem.dilation)
    if problem.kind == "fprop":
        convolve = getattr(torch.nn.functional, f"conv{problem.ndim}d")
        return partial(convolve, tensors["x"], tensors["w"], tensors.get("bias"), *geometry, problem.groups)
    if problem.kind == "transposed":
        convolve = getattr(torch.nn.functional, f"conv_transpose{problem.ndim}d")
        arguments = (tensors["y"], tensors["w"], tensors.get("bias"), problem.stride, problem.pad_lo)
        return partial(convolve, *arguments, output_padding(problem), problem.groups, problem.dilation)
    wanted = [problem.kind == "dgrad", problem.kind == "wgrad", False]
    like = tensors["like"] if "like" in tensors else shape_operands(problem, tensors)["like"]
    x, w = (like, tensors["w"]) if problem.kind == "dgrad" else (tensors["x"], like)
    zeros = [0] * problem.ndim
    backward = torch.ops.aten.convolution_backward
    arguments = (tensors["y"], x, w, None, *map(list, geometry), False, zeros, problem.groups, wanted)
    index = 0 if problem.kind == "dgrad" else 1
    return lambda: backward(*arguments)[index]


def _aten_pool(problem: PoolProblem, tensors: Tensors) -> Callable[[], Any]:
    ndim, backward, x = problem.ndim, problem.kind == "bwd", tensors["x"]
    if problem.pool == "max" and backward:
        return partial(
            getattr(torch.ops.aten, f"max_pool{ndim}d_with_indices_backward"),
            tensors["y"], x, *map(list, _window(problem)[:4]), problem.ceil_mode, tensors["indices"],
        )  # fmt: skip
    if problem.pool == "avg" and backward:
        window = [list(problem.kernel), list(problem.stride), list(problem.pad_lo)]
        function = getattr(torch.ops.aten, f"avg_pool{ndim}d_backward")
        return partial(function, tensors["y"], x, *window, problem.ceil_mode, problem.count_include_pad, None)
    if problem.pool == "adaptive_max" and backward:
        function = getattr(torch.ops.aten, f"adaptive_max_pool{ndim}d_backward")
        return partial(function, tensors["y"], x, tensors["indices"])
    if backward:
        return partial(getattr(torch.ops.aten, f"_{problem.pool}_pool{ndim}d_backward"), tensors["y"], x)
    function = getattr(torch.nn.functional, f"{problem.pool}_pool{ndim}d")
    if problem.pool == "max":
        return partial(function, x, *_window(problem), problem.return_indices)
    if problem.pool == "avg":
        window = (problem.kernel, problem.stride, problem.pad_lo)
        return partial(function, x, *window, problem.ceil_mode, problem.count_include_pad)
    return partial(function, x, problem.output_size)


def aten_call(problem: Problem, tensors: Tensors) -> Callable[[], Any]:
    """Return PyTorch's call for the same, or raise NotImplementedError where it has none that computes it in place."""
    if isinstance(problem, PoolProblem):
        return _aten_pool(problem, tensors)
    return _aten_conv(problem, tensors)
