"""Helpers for tests of gpuconv and of code that uses it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["forbid_aten"]

_PREFIXES = (
    "adaptive_", "addmm", "addbmm", "addmv", "avg_pool", "baddbmm", "bmm", "col2im", "conv", "cudnn_conv", "einsum",
    "fractional_max", "im2col", "linear", "lp_pool", "matmul", "max_pool", "max_unpool", "miopen_conv", "mkldnn_conv",
    "mkldnn_linear", "mkldnn_max_pool", "quantized_max_pool", "slow_conv", "tensordot", "thnn_conv", "unfold",
)  # fmt: skip
_NAMES = ("chain_matmul", "dot", "fold", "inner", "mm", "mv", "vdot")


def _forbidden(name: str) -> bool:
    bare = name.lstrip("_")
    return bare in _NAMES or bare.startswith(_PREFIXES)


@contextmanager
def forbid_aten() -> Iterator[None]:
    """Raise if PyTorch runs a convolution, pooling, unfold or matrix product of its own inside the ``with`` block.

    Tests of gpuconv's functions run inside it, so that none of them passes by calling what it is compared with. It
    catches operators where they are dispatched, and functions where they are called (``torch.max_pool1d`` dispatches
    nothing). gpuconv's own operators pass, whatever their names.

    Raises
    ------
    AssertionError
        Where such an operator or function is called; the message names it.

    Examples
    --------
    >>> import torch
    >>> from gpuconv.testing import forbid_aten
    >>> with forbid_aten():
    ...     torch.ones(2, 2) @ torch.ones(2, 2)
    Traceback (most recent call last):
    ...
    AssertionError: matmul ran inside forbid_aten()
    """
    from torch.overrides import TorchFunctionMode
    from torch.utils._python_dispatch import TorchDispatchMode

    def check(func: Any, name: str) -> None:
        if getattr(func, "namespace", None) != "gpuconv" and _forbidden(name):
            raise AssertionError(f"{name} ran inside forbid_aten()")

    class Operators(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            check(func, func.name().partition("::")[2].partition(".")[0])
            return func(*args, **(kwargs or {}))

    class Functions(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            check(func, getattr(func, "__name__", ""))
            return func(*args, **(kwargs or {}))

    with Operators(), Functions():
        yield
