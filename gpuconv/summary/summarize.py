"""``gpuconv.summarize``: a model layer by layer, without its weights and without a GPU."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from ..costs import constants_of, device_of_name
from .report import Summary

__all__ = ["summarize"]


def _dtype_of(model: Any, wanted: Any, torch: Any) -> Any:
    """Return the type of floating tensors: what is wanted, or that of the model's first floating parameter."""
    if wanted is None:
        floats = (each.dtype for each in model.parameters() if each.is_floating_point())
        return next(floats, torch.float32)
    found = getattr(torch, wanted, None) if isinstance(wanted, str) else wanted
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise TypeError(f"summarize: dtype must be a floating type such as 'float16', but got {wanted!r}")
    return found


def summarize(model: Any, input: Any, gpu: str | None = None, *, dtype: Any = None) -> Summary:
    """Describe a torch model layer by layer: sizes, parameters, FLOPs, bytes, receptive fields, solvers and times.

    A copy of the model runs once on meta tensors, which have shapes and no memory, in evaluation mode. The model itself
    does not run, is neither moved nor changed, and no random number is drawn. Hooks that are on it run on the copy.

    Parameters
    ----------
    model
        A ``torch.nn.Module``, of any modules, the library's own (:mod:`gpuconv.nn`) included.
    input
        The size of its input, ``(1, 3, 224, 224)``; or a tensor, of which shape, type and strides count; or a list of
        these, or a mapping by the names of arguments, where numbers, strings and None are passed on.
    gpu
        Name of a GPU that need not be here, as in :func:`gpuconv.explain`: each convolution and pool then has the
        solver of this library that would run there, forward, its estimated time and the share of the roofline.
    dtype
        Type of all floating tensors, ``torch.bfloat16`` or ``"bfloat16"``; None: that of the model's parameters.

    Returns
    -------
    Summary
        ``print`` shows it as a table, :meth:`~gpuconv.summary.Summary.to_json` is plain data, and
        :meth:`~gpuconv.summary.Summary.plot_receptive_field` plots what layers see. Modules with parameters of their
        own and layers of ``torch.nn`` are rows, in the order of their calls; containers are not. What a module
        computes besides its children has a row of its own where it has FLOPs or pools.

    Raises
    ------
    ModuleNotFoundError
        If torch is not installed.
    TypeError
        If `model` is no module or cannot be copied, or `input` or `dtype` is something else.
    ValueError
        If `gpu` is not known, or a parameter has no shape yet.

    Notes
    -----
    FLOPs are those of ``torch.utils.flop_counter``: 2 for each multiplication and addition of convolutions, matrix
    products and attention, taps in the padding included; nothing else counts. Bytes are the inputs, parameters, buffers
    and results of a layer, each once.

    The receptive field is followed through the graph, operator by operator (:mod:`gpuconv.summary.fields`): the union
    of what the operands see at a sum or concatenation, ``whole`` behind global pools, attention and norms whose
    statistics run over positions, ``unknown`` behind operators that are not known. As in
    :func:`gpuconv.shapes.receptive_field` padding counts as pixels, so that it may be larger than the input. In its
    last stage ResNet-50 sees 427 pixels where the strides are in the 3x3 convolutions (torchvision's, "v1.5", and
    ``transformers`` by default), and 483 where they are in the 1x1 before them (He et al. 2016;
    ``downsample_in_bottleneck``).

    Examples
    --------
    >>> import torch, gpuconv
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, stride=2, padding=1), torch.nn.ReLU())
    >>> summary = gpuconv.summarize(model, (1, 3, 32, 32))
    >>> [(row.kind, row.output, row.flops, row.receptive_field) for row in summary.layers]
    [('Conv2d', (1, 8, 16, 16), 110592, (3, 3)), ('ReLU', (1, 8, 16, 16), 0, (3, 3))]
    >>> summary.totals["parameters"]
    224
    """
    if find_spec("torch") is None:
        raise ModuleNotFoundError("summarize needs torch: pip install torch")
    torch = import_module("torch")
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"summarize: model must be a torch.nn.Module, but got {type(model).__name__}")
    device = None if gpu is None else device_of_name(gpu)
    found = _dtype_of(model, dtype, torch)
    tracing = import_module(".trace", __package__)
    copied = tracing.meta_copy(model, None if dtype is None else found)
    args, kwargs = tracing.meta_inputs(input, found)
    tensors = list(tracing.tensors_in([args, kwargs]))
    rows = tracing.trace(copied, args, kwargs, device)
    return Summary(
        type(model).__name__, tuple(tuple(tensor.shape) for tensor in tensors), str(found).removeprefix("torch."),
        None if device is None else constants_of(device).gpu, rows,
        sum(parameter.numel() for parameter in copied.parameters()), tracing.spatial_input(copied, tensors),
    )  # fmt: skip
