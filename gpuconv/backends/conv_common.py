"""What the convolution solvers of every GPU backend derive from a problem alike."""

from __future__ import annotations

from ..arrays import CHANNELS_LAST, channels_last_strides, contiguous_strides
from ..problem import ConvProblem
from ..shapes import ceil_div

__all__ = ["format_strides", "images_of"]


def format_strides(problem: ConvProblem) -> dict[str, tuple[int, ...]]:
    """Return the strides, in elements, that arrays in the memory formats of the problem have when they are dense.

    Keys are ``x``, ``w``, ``y`` and, where the problem has one, ``residual``.
    """
    arrays = {
        "x": (problem.x_shape, problem.x_format),
        "w": (problem.w_shape, problem.w_format),
        "y": (problem.y_shape, problem.y_format),
    }
    if problem.residual:
        arrays["residual"] = (problem.result_shape, problem.result_format)
    return {
        name: channels_last_strides(shape) if layout == CHANNELS_LAST else contiguous_strides(shape)
        for name, (shape, layout) in arrays.items()
    }


def images_of(problem: ConvProblem) -> tuple[int, ...]:
    """Return how many padded coordinates may show one input position, along each axis."""

    def along(size: int, lo: int, hi: int) -> int:
        if problem.padding_mode == "reflect":
            return 3 if lo or hi else 1
        if problem.padding_mode == "replicate":
            return 1 + lo + hi
        if problem.padding_mode == "circular":
            return 1 + ceil_div(lo, size) + ceil_div(hi, size)
        return 1

    return tuple(along(*axis) for axis in zip(problem.input_size, problem.pad_lo, problem.pad_hi, strict=True))
