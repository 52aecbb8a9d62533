"""The table that ``torch.onnx.export`` takes: an operator of this library, and what makes ONNX nodes of it."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

__all__ = ["onnx_translations"]

Translator = Callable[..., Any]

_GRADIENT = "it computes a gradient, and ONNX has no operator for that; export the forward pass"

_REASONS = {
    "wgrad": _GRADIENT,
    "avg_pool_backward": _GRADIENT,
    "lp_pool_backward": _GRADIENT,
    "max_pool_backward": _GRADIENT,
    "max_pool_gather": _GRADIENT,
    "max_unpool_backward": _GRADIENT,
    "scaled_fprop": "ONNX has no convolution of 8-bit operands with scales and a bias; export the float model",
}
"""Why operators are no ONNX, by name; those that are in neither table say that there is no translation."""


def onnx_translations() -> dict[Any, Translator]:
    """Return what ``torch.onnx.export`` needs to know of the operators of gpuconv.

    ``torch.onnx.export(model, args, dynamo=True, custom_translation_table=gpuconv.onnx_translations())`` writes a model
    of ``gpuconv.nn``, of gpuconv's functions or after :func:`gpuconv.replace_modules` in standard ONNX operators of
    opset 18 or newer: any runtime loads it, and needs nothing of this library.

    ============================ ====================================================================================
    here                         in ONNX
    ============================ ====================================================================================
    convolution                  Conv with its bias and (asymmetric) pads, behind a Pad for ``padding_mode``
    transposed convolution       ConvTranspose with its output padding
    scale, shift, residual       Mul, Add, Add
    activation                   Relu, Clip, HardSwish, Sigmoid and Mul, Erf or Tanh and products (gelu), Sigmoid, Tanh
    max pool                     MaxPool; indices are positions in a plane, as in torch
    average pool                 AveragePool; with a dilation, a divisor or cut-off windows Conv with ones, and Div
    power pool                   Pow, Conv with ones, Pow
    adaptive pool                GlobalAveragePool, GlobalMaxPool, or a pool; of unequal windows Slice and Reduce
    unfold, fold, max unpooling  Gather; Col2Im; ScatterElements
    ============================ ====================================================================================

    Returns
    -------
    dict
        Functions by operator (``torch.ops.gpuconv.fprop.default``, ...), also for what cannot be exported: those raise,
        and say which operator it is and why.

    Raises
    ------
    ImportError
        If onnxscript is not installed, which ``torch.onnx.export`` needs.
    NotImplementedError
        While exporting, as the cause of torch's error: of gradients, fractional pools, 8-bit convolutions with scales,
        numbers that ONNX's operators do not take, and adaptive pools of sizes that are not known.

    Notes
    -----
    The batch may be dynamic, and so may spatial sizes, of which neither a named padding nor adaptive windows other than
    a single one may then depend. ONNX has no `rounding` and no `precision`: a runtime rounds the result of every node,
    and multiplies as it is set to. A maximum of NaN is what the runtime makes of it. Deformable convolutions need opset
    19 or newer, which torch's exporter writes by default (2.13: opset 20).

    Examples
    --------
    >>> import gpuconv
    >>> sorted(str(operator) for operator in gpuconv.onnx_translations())[:2]
    ['gpuconv.avg_pool.default', 'gpuconv.avg_pool_backward.default']
    """
    if find_spec("onnxscript") is None:
        raise ImportError("onnx_translations: torch.onnx.export needs onnxscript: pip install onnx onnxscript")
    import torch

    from ..ops import conv as _registers  # noqa: F401
    from . import conv, pool

    translators: dict[str, Translator] = {**conv.TRANSLATORS, **pool.TRANSLATORS}
    operators = sorted(
        name.removeprefix("gpuconv::")
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("gpuconv::") and "." not in name
    )
    table = {}
    for name in operators:
        operator = getattr(torch.ops.gpuconv, name).default
        table[operator] = _named(name, operator, translators.get(name) or _refusing(name))
    return table


def _named(name: str, operator: Any, translator: Translator) -> Translator:
    """Return what passes a translator the arguments of an operator by the names that its schema has."""
    names = [argument.name for argument in operator._schema.arguments]

    def translate(*args, **kwargs):  # type: ignore[no-untyped-def]  # torch reads annotations as a signature of ONNX
        return translator(**dict(zip(names, args)), **kwargs)

    translate.__name__ = translate.__qualname__ = f"gpuconv_{name}"
    return translate


def _refusing(name: str) -> Translator:
    reason = _REASONS.get(name, "there is no translation of it")

    def refuse(**_: Any) -> Any:
        raise NotImplementedError(f"gpuconv::{name} cannot be exported to ONNX: {reason}")

    return refuse
