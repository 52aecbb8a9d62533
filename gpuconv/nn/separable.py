"""Separable convolutions as modules: each has two convolutions as children, whose parameters one call computes with.

Children are :class:`gpuconv.nn.Conv2d`, so the ``state_dict`` is that of two such layers one behind the other, and so
is the result. The call of a module does not call its children: their hooks do not run.

Importing this module imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.fx

from ..errors import invalid
from ..functional import depthwise_separable_conv2d, separable_conv2d
from ..normalize import along_axes, check_separable_epilogue, int_tuple, integer
from .common import check_extras
from .conv import Conv2d

__all__ = ["DepthwiseSeparableConv2d", "SeparableConv2d"]

Tensor = Any
Ints = int | Sequence[int]
Padding = str | int | Sequence[int] | Sequence[Sequence[int]]

for _name in ("depthwise_separable_conv2d", "separable_conv2d"):
    torch.fx.wrap(_name)


def _check_extras(op: str, between: str | None, activation: str | None, common: dict[str, Any]) -> None:
    check_separable_epilogue(op, between, activation)
    check_extras(op, common)


class DepthwiseSeparableConv2d(torch.nn.Module):
    """A filter per channel, then a mix of the channels, computed by :func:`gpuconv.depthwise_separable_conv2d`.

    Equal to ``pointwise(depthwise(input))`` of its two children.

    Parameters
    ----------
    in_channels, out_channels
        Channels of input and output.
    kernel_size, stride, padding, dilation, padding_mode
        Of the depthwise convolution, as in :class:`gpuconv.nn.Conv2d`.
    bias
        Whether each of the two adds a bias.
    device, dtype
        Of the parameters.
    depth_multiplier
        Depthwise filters of each input channel.
    between, activation
        Activations after the depthwise and after the pointwise convolution, or None.
    precision, backend
        As in :func:`gpuconv.conv2d`.

    Attributes
    ----------
    depthwise, pointwise
        The convolutions.

    Examples
    --------
    >>> import torch, gpuconv.nn
    >>> layer = gpuconv.nn.DepthwiseSeparableConv2d(8, 16, 3, stride=2, padding=1, bias=False, between="relu6")
    >>> layer(torch.randn(2, 8, 10, 12)).shape
    torch.Size([2, 16, 5, 6])
    >>> list(layer.state_dict())
    ['depthwise.weight', 'pointwise.weight']
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Ints,
        stride: Ints = 1,
        padding: Padding = 0,
        dilation: Ints = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
        *,
        depth_multiplier: int = 1,
        between: str | None = None,
        activation: str | None = None,
        precision: str | None = None,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        op, common = type(self).__name__, {"precision": precision, "backend": backend}
        _check_extras(op, between, activation, common)
        if integer(op, "depth_multiplier", depth_multiplier) < 1:
            raise invalid(op, "depth_multiplier", depth_multiplier, "positive", ValueError)
        middle, place = in_channels * depth_multiplier, {"device": device, "dtype": dtype}
        geometry = (kernel_size, stride, padding, dilation, in_channels, bias, padding_mode)
        self.depthwise = Conv2d(in_channels, middle, *geometry, **place, activation=between, **common)
        self.pointwise = Conv2d(middle, out_channels, 1, bias=bias, **place, activation=activation, **common)

    def reset_parameters(self) -> None:
        """Draw the parameters of both convolutions again, as ``torch.nn.Conv2d`` does."""
        self.depthwise.reset_parameters()
        self.pointwise.reset_parameters()

    def forward(self, input: Tensor, *, residual: Tensor | None = None) -> Tensor:
        """Return the convolution of `input`, with `residual` added before the last activation."""
        one, other = self.depthwise, self.pointwise
        return depthwise_separable_conv2d(
            input, one.weight, other.weight, one.bias, other.bias, stride=one.stride, padding=one.padding,
            dilation=one.dilation, padding_mode=one.padding_mode, between=one.activation, activation=other.activation,
            residual=residual, precision=one.precision, backend=one.backend,
        )  # fmt: skip


class SeparableConv2d(torch.nn.Module):
    """A convolution along the columns, then one along the rows, computed by :func:`gpuconv.separable_conv2d`.

    Equal to ``rows(columns(input))`` of its two children.

    Parameters
    ----------
    in_channels, out_channels
        Channels of input and output.
    kernel_size, stride, padding, dilation
        As in :class:`gpuconv.nn.Conv2d`; of each pair the first number belongs to the columns, the second to the rows.
    groups, padding_mode
        Of both, as in :class:`gpuconv.nn.Conv2d`.
    bias
        Whether each of the two adds a bias.
    device, dtype
        Of the parameters.
    mid_channels
        Channels between the two, by default `out_channels`.
    between, activation
        Activations after the columns and after the rows, or None.
    precision, backend
        As in :func:`gpuconv.conv2d`.

    Attributes
    ----------
    columns, rows
        The convolutions.

    Examples
    --------
    >>> import torch, gpuconv.nn
    >>> layer = gpuconv.nn.SeparableConv2d(4, 6, (5, 3), padding="same")
    >>> layer(torch.randn(2, 4, 10, 12)).shape
    torch.Size([2, 6, 10, 12])
    >>> [tuple(parameter.shape) for parameter in (layer.columns.weight, layer.rows.weight)]
    [(6, 4, 5, 1), (6, 6, 1, 3)]
    """

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
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
        *,
        mid_channels: int | None = None,
        between: str | None = None,
        activation: str | None = None,
        precision: str | None = None,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        op, common = type(self).__name__, {"precision": precision, "backend": backend}
        _check_extras(op, between, activation, common)
        high, wide = int_tuple(op, "kernel_size", kernel_size, 2)
        middle = out_channels if mid_channels is None else integer(op, "mid_channels", mid_channels)
        columns, rows = along_axes(op, stride, padding, dilation)
        shared = {"groups": groups, "bias": bias, "padding_mode": padding_mode, "device": device, "dtype": dtype}
        shared |= common
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.columns = Conv2d(in_channels, middle, (high, 1), **columns, **shared, activation=between)
        self.rows = Conv2d(middle, out_channels, (1, wide), **rows, **shared, activation=activation)

    def reset_parameters(self) -> None:
        """Draw the parameters of both convolutions again, as ``torch.nn.Conv2d`` does."""
        self.columns.reset_parameters()
        self.rows.reset_parameters()

    def forward(self, input: Tensor, *, residual: Tensor | None = None) -> Tensor:
        """Return the convolution of `input`, with `residual` added before the last activation."""
        one, other = self.columns, self.rows
        return separable_conv2d(
            input, one.weight, other.weight, one.bias, other.bias, stride=self.stride, padding=self.padding,
            dilation=self.dilation, groups=one.groups, padding_mode=one.padding_mode, between=one.activation,
            activation=other.activation, residual=residual, precision=one.precision, backend=one.backend,
        )  # fmt: skip
