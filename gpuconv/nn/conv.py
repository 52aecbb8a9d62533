"""Convolution and pooling modules: PyTorch's own, computed by gpuconv.

Each class is a subclass of the module of the same name in ``torch.nn``: constructor, parameters, initialisation,
``state_dict`` and ``repr`` are inherited, so a model changes over by changing an import, and checkpoints load either
way. Other padding modes than zeros run inside the kernel, without a padded copy of the input. The pools are in
:mod:`gpuconv.nn.pool`. ``torch.fx.symbolic_trace`` records these modules as calls of gpuconv's functions.

After PyTorch's arguments come keyword-only ones, shown by ``repr`` where they are given: `activation`, `precision`,
`rounding` and `backend`, as in the functions. `padding` may also be ``(lo, hi)`` pairs, and of a convolution
``"same_upper"``, ``"same_lower"`` or ``"causal"``. A call takes a `residual`, which is added before the activation.
What would be parameters, `scale` and `shift`, is left to the functions: the ``state_dict`` stays PyTorch's.

Importing this module imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.fx

from ..functional import conv1d, conv2d, conv3d, conv_transpose1d, conv_transpose2d, conv_transpose3d
from .common import CONV_PADDINGS, Extended, constructor

__all__ = ["Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"]

Tensor = Any

for _name in ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"):
    torch.fx.wrap(_name)


EXTRAS: dict[str, Any] = {"activation": None, "precision": None, "rounding": "fused", "backend": None}


def _extras(module: Any, residual: Tensor | None) -> dict[str, Any]:
    chosen = {name: getattr(module, name) for name in EXTRAS}
    return chosen if residual is None else {**chosen, "residual": residual}


def _convolve(
    module: Any, fn: Callable[..., Tensor], input: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None
) -> Tensor:
    geometry = (module.stride, module.padding, module.dilation, module.groups)
    return fn(input, weight, bias, *geometry, padding_mode=module.padding_mode, **_extras(module, residual))


def _convolve_transposed(
    module: Any,
    fn: Callable[..., Tensor],
    input: Tensor,
    output_size: Sequence[int] | None,
    residual: Tensor | None,
) -> Tensor:
    geometry = (module.stride, module.padding, module.output_padding, module.groups, module.dilation)
    if output_size is not None:  # replaces the module's output padding, as in torch
        geometry = (module.stride, module.padding, 0, module.groups, module.dilation)
        output_size = output_size if isinstance(output_size, torch.fx.Proxy) else tuple(output_size)
    extras = _extras(module, residual)
    return fn(input, module.weight, module.bias, *geometry, output_size=output_size, **extras)


class _Convolution(Extended):
    """What the convolutions share."""

    def forward(self, input: Tensor, *, residual: Tensor | None = None) -> Tensor:
        """Return the convolution of `input`, with `residual` added before the activation."""
        if residual is None:
            return self._conv_forward(input, self.weight, self.bias)
        return self._conv_forward(input, self.weight, self.bias, residual)


class Conv1d(_Convolution, torch.nn.Conv1d):
    """``torch.nn.Conv1d``, computed by :func:`gpuconv.conv1d`.

    Examples
    --------
    >>> import torch, gpuconv.nn
    >>> layer = gpuconv.nn.Conv1d(4, 8, 3, padding=2, padding_mode="circular")
    >>> layer(torch.randn(2, 4, 10)).shape
    torch.Size([2, 8, 12])
    """

    __init__ = constructor(torch.nn.Conv1d, CONV_PADDINGS, **EXTRAS)

    def _conv_forward(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None = None
    ) -> Tensor:
        return _convolve(self, conv1d, input, weight, bias, residual)


class Conv2d(_Convolution, torch.nn.Conv2d):
    """``torch.nn.Conv2d``, computed by :func:`gpuconv.conv2d`.

    Examples
    --------
    >>> import torch, gpuconv.nn
    >>> layer = gpuconv.nn.Conv2d(3, 8, 3, padding="same", padding_mode="reflect")
    >>> layer(torch.randn(2, 3, 10, 12)).shape
    torch.Size([2, 8, 10, 12])
    >>> _ = layer.load_state_dict(torch.nn.Conv2d(3, 8, 3).state_dict())
    >>> block = gpuconv.nn.Conv2d(8, 8, 3, padding="same_upper", activation="relu")
    >>> block
    Conv2d(8, 8, kernel_size=(3, 3), stride=(1, 1), padding=same_upper, activation='relu')
    >>> x = torch.randn(1, 8, 5, 5)
    >>> torch.equal(block(x, residual=x), (gpuconv.conv2d(x, block.weight, block.bias, padding=1) + x).relu())
    True
    """

    __init__ = constructor(torch.nn.Conv2d, CONV_PADDINGS, **EXTRAS)

    def _conv_forward(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None = None
    ) -> Tensor:
        return _convolve(self, conv2d, input, weight, bias, residual)


class Conv3d(_Convolution, torch.nn.Conv3d):
    """``torch.nn.Conv3d``, computed by :func:`gpuconv.conv3d`.

    Examples
    --------
    >>> import torch, gpuconv.nn
    >>> gpuconv.nn.Conv3d(2, 4, 3, stride=2)(torch.randn(1, 2, 7, 7, 7)).shape
    torch.Size([1, 4, 3, 3, 3])
    """

    __init__ = constructor(torch.nn.Conv3d, CONV_PADDINGS, **EXTRAS)

    def _conv_forward(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None = None
    ) -> Tensor:
        return _convolve(self, conv3d, input, weight, bias, residual)


class ConvTranspose1d(Extended, torch.nn.ConvTranspose1d):
    """``torch.nn.ConvTranspose1d``, computed by :func:`gpuconv.conv_transpose1d`.

    Examples
    --------
    >>> import torch, gpuconv.nn
    >>> gpuconv.nn.ConvTranspose1d(4, 2, 4, stride=2, padding=1)(torch.randn(1, 4, 5)).shape
    torch.Size([1, 2, 10])
    """

    __init__ = constructor(torch.nn.ConvTranspose1d, **EXTRAS)

    def forward(
        self, input: Tensor, output_size: Sequence[int] | None = None, *, residual: Tensor | None = None
    ) -> Tensor:
        """Return the transposed convolution of `input`, of size `output_size` if that is given."""
        return _convolve_transposed(self, conv_transpose1d, input, output_size, residual)


class ConvTranspose2d(Extended, torch.nn.ConvTranspose2d):
    """``torch.nn.ConvTranspose2d``, computed by :func:`gpuconv.conv_transpose2d`.

    Examples
    --------
    >>> import torch, gpuconv.nn
    >>> layer = gpuconv.nn.ConvTranspose2d(4, 2, 3, stride=2, padding=1)
    >>> layer(torch.randn(1, 4, 5, 5), output_size=(10, 9)).shape
    torch.Size([1, 2, 10, 9])
    """

    __init__ = constructor(torch.nn.ConvTranspose2d, **EXTRAS)

    def forward(
        self, input: Tensor, output_size: Sequence[int] | None = None, *, residual: Tensor | None = None
    ) -> Tensor:
        """Return the transposed convolution of `input`, of size `output_size` if that is given."""
        return _convolve_transposed(self, conv_transpose2d, input, output_size, residual)


class ConvTranspose3d(Extended, torch.nn.ConvTranspose3d):
    """``torch.nn.ConvTranspose3d``, computed by :func:`gpuconv.conv_transpose3d`.

    Examples
    --------
    >>> import torch, gpuconv.nn
    >>> gpuconv.nn.ConvTranspose3d(4, 2, 2, stride=2)(torch.randn(1, 4, 3, 3, 3)).shape
    torch.Size([1, 2, 6, 6, 6])
    """

    __init__ = constructor(torch.nn.ConvTranspose3d, **EXTRAS)

    def forward(
        self, input: Tensor, output_size: Sequence[int] | None = None, *, residual: Tensor | None = None
    ) -> Tensor:
        """Return the transposed convolution of `input`, of size `output_size` if that is given."""
        return _convolve_transposed(self, conv_transpose3d, input, output_size, residual)
