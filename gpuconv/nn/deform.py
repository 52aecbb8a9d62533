"""Deformable convolution as modules, with the constructor, parameters and forward of torchvision's ``DeformConv2d``.

Importing this module imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.fx

from ..errors import invalid
from ..functional import deform_conv1d, deform_conv2d, deform_conv3d
from ..normalize import int_tuple, pad_pairs
from .common import CONV_PADDINGS, check_extras

__all__ = ["DeformConv1d", "DeformConv2d", "DeformConv3d"]

Tensor = Any
Ints = int | Sequence[int]
Padding = str | int | Sequence[int] | Sequence[Sequence[int]]

for _name in ("deform_conv1d", "deform_conv2d", "deform_conv3d"):
    torch.fx.wrap(_name)


class _DeformConvolution(torch.nn.Module):
    """What the modules share."""

    _ndim: int
    bias: Any
    backend: str | None = None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Ints,
        stride: Ints = 1,
        padding: Padding = 0,
        dilation: Ints = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        device: Any = None,
        dtype: Any = None,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        op, ndim = type(self).__name__, self._ndim
        check_extras(op, {"backend": backend})
        if groups < 1:
            raise invalid(op, "groups", groups, "a positive integer", ValueError)
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if channels < 0:
                raise invalid(op, name, channels, "an integer of at least 0", ValueError)
            if channels % groups:
                raise invalid(op, name, channels, f"a multiple of groups={groups}", ValueError)
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size = int_tuple(op, "kernel_size", kernel_size, ndim)
        self.stride = int_tuple(op, "stride", stride, ndim)
        self.dilation = int_tuple(op, "dilation", dilation, ndim)
        self.padding: Any = padding
        if isinstance(padding, str):
            if padding not in CONV_PADDINGS:
                required = f"a size or one of {', '.join(map(repr, CONV_PADDINGS))}"
                raise invalid(op, "padding", padding, required, ValueError)
        elif pad_pairs(op, "padding", padding, ndim) is None:
            self.padding = int_tuple(op, "padding", padding, ndim)
        if backend is not None:
            self.backend = backend
        place = {"device": device, "dtype": dtype}
        shape = (out_channels, in_channels // groups, *self.kernel_size)
        self.weight = torch.nn.Parameter(torch.empty(shape, **place))
        self.register_parameter("bias", torch.nn.Parameter(torch.empty(out_channels, **place)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the parameters again, as torchvision does."""
        torch.nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            fan_in, _ = torch.nn.init._calculate_fan_in_and_fan_out(self.weight)
            if fan_in:  # else there are no channels
                bound = 1 / math.sqrt(fan_in)
                torch.nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, input: Tensor, offset: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the convolution of `input` at the positions that `offset` moves, times `mask`."""
        geometry = (self.stride, self.padding, self.dilation)
        return self._convolve(input, offset, self.weight, self.bias, *geometry, mask=mask, backend=self.backend)

    def _convolve(self, *arguments: Any, **options: Any) -> Tensor:
        """Call the function by its name in this module: there ``torch.fx`` finds it while it traces."""
        raise NotImplementedError

    def __repr__(self) -> str:
        parts = [
            str(self.in_channels), str(self.out_channels), f"kernel_size={self.kernel_size}", f"stride={self.stride}",
        ]  # fmt: skip
        ones, zeros = (1,) * self._ndim, (0,) * self._ndim
        parts += [f"padding={self.padding}"] if self.padding != zeros else []
        parts += [f"dilation={self.dilation}"] if self.dilation != ones else []
        parts += [f"groups={self.groups}"] if self.groups != 1 else []
        parts += ["bias=False"] if self.bias is None else []
        parts += [f"backend={self.backend!r}"] if self.backend is not None else []
        return f"{type(self).__name__}({', '.join(parts)})"


# ``torch.fx`` imports what annotations are, to pickle what it records: not strings.
_DeformConvolution.forward.__annotations__ = {
    "input": torch.Tensor, "offset": torch.Tensor, "mask": torch.Tensor | None, "return": torch.Tensor
}  # fmt: skip


class DeformConv1d(_DeformConvolution):
    """Deformable convolution of sequences, computed by :func:`gpuconv.deform_conv1d`; see :class:`DeformConv2d`.

    Examples
    --------
    >>> import torch, gpuconv.nn
    >>> layer = gpuconv.nn.DeformConv1d(4, 8, 3, padding=1)
    >>> layer(torch.randn(2, 4, 10), offset=torch.zeros(2, 3, 10)).shape
    torch.Size([2, 8, 10])
    """

    _ndim = 1

    def _convolve(self, *arguments: Any, **options: Any) -> Tensor:
        return deform_conv1d(*arguments, **options)


class DeformConv2d(_DeformConvolution):
    """``torchvision.ops.DeformConv2d``, computed by :func:`gpuconv.deform_conv2d`.

    Offsets and mask are arguments of the call; a layer before this one computes them. Parameters, their first values,
    and the ``state_dict`` are torchvision's. Deformable convolution is that of Dai et al. 2017 (arXiv:1703.06211),
    with a mask that of Zhu et al. 2018 (arXiv:1811.11168).

    Parameters
    ----------
    in_channels, out_channels
        Channels of input and output.
    kernel_size, stride, dilation
        An integer, or one for each axis.
    padding
        As in :func:`gpuconv.conv2d`: integers, ``(lo, hi)`` pairs, or a name such as ``"same"``.
    groups
        Groups of channels.
    bias
        Whether a bias is added.
    device, dtype
        Of the parameters.
    backend
        As in :func:`gpuconv.conv2d`.

    Examples
    --------
    >>> import torch, gpuconv.nn
    >>> layer = gpuconv.nn.DeformConv2d(4, 8, 3, padding=1)
    >>> x = torch.randn(2, 4, 10, 12)
    >>> find = gpuconv.nn.Conv2d(4, 3 * 3 * 3, 3, padding=1)  # two offsets and a mask for each tap
    >>> offset, mask = find(x).split((18, 9), 1)
    >>> layer(x, offset, mask.sigmoid()).shape
    torch.Size([2, 8, 10, 12])
    >>> layer
    DeformConv2d(4, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    """

    _ndim = 2

    def _convolve(self, *arguments: Any, **options: Any) -> Tensor:
        return deform_conv2d(*arguments, **options)


class DeformConv3d(_DeformConvolution):
    """Deformable convolution of volumes, computed by :func:`gpuconv.deform_conv3d`; see :class:`DeformConv2d`.

    Examples
    --------
    >>> import torch, gpuconv.nn
    >>> layer = gpuconv.nn.DeformConv3d(2, 4, 2)
    >>> layer(torch.randn(1, 2, 4, 4, 4), offset=torch.zeros(1, 24, 3, 3, 3)).shape
    torch.Size([1, 4, 3, 3, 3])
    """

    _ndim = 3

    def _convolve(self, *arguments: Any, **options: Any) -> Tensor:
        return deform_conv3d(*arguments, **options)
