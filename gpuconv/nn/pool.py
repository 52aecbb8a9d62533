"""Pooling modules: PyTorch's own, computed by gpuconv; :mod:`gpuconv.nn` hands them on.

Each class is a subclass of the module of the same name in ``torch.nn``: constructor, ``state_dict`` and ``repr`` are
inherited. Where the functions allow it padding may also be ``(lo, hi)`` pairs or a name. After PyTorch's arguments
come keyword-only ones, shown by ``repr`` where they are given: `backend`, `dilation` of average pools, and `padding` of
power pools.

Importing this module imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.fx

from ..functional import (
    adaptive_avg_pool1d,
    adaptive_avg_pool2d,
    adaptive_avg_pool3d,
    adaptive_max_pool1d,
    adaptive_max_pool2d,
    adaptive_max_pool3d,
    avg_pool1d,
    avg_pool2d,
    avg_pool3d,
    fold,
    fractional_max_pool2d,
    fractional_max_pool3d,
    lp_pool1d,
    lp_pool2d,
    lp_pool3d,
    max_pool1d,
    max_pool2d,
    max_pool3d,
    max_unpool1d,
    max_unpool2d,
    max_unpool3d,
    unfold,
)
from .common import POOL_PADDINGS, Extended, constructor

__all__ = [
    "AdaptiveAvgPool1d",
    "AdaptiveAvgPool2d",
    "AdaptiveAvgPool3d",
    "AdaptiveMaxPool1d",
    "AdaptiveMaxPool2d",
    "AdaptiveMaxPool3d",
    "AvgPool1d",
    "AvgPool2d",
    "AvgPool3d",
    "Fold",
    "FractionalMaxPool2d",
    "FractionalMaxPool3d",
    "LPPool1d",
    "LPPool2d",
    "LPPool3d",
    "MaxPool1d",
    "MaxPool2d",
    "MaxPool3d",
    "MaxUnpool1d",
    "MaxUnpool2d",
    "MaxUnpool3d",
    "Unfold",
]

Tensor = Any

for _name in [name for name in globals() if "pool" in name or name in ("fold", "unfold")]:  # the functions above
    torch.fx.wrap(_name)


def _max(module: Any, fn: Callable[..., Any], input: Tensor) -> Any:
    geometry = (module.kernel_size, module.stride, module.padding, module.dilation)
    return fn(input, *geometry, module.ceil_mode, module.return_indices, backend=module.backend)


def _avg(module: Any, fn: Callable[..., Any], input: Tensor) -> Tensor:
    divisor = {"divisor_override": module.divisor_override} if hasattr(module, "divisor_override") else {}
    geometry = (module.kernel_size, module.stride, module.padding, module.ceil_mode, module.count_include_pad)
    return fn(input, *geometry, **divisor, dilation=module.dilation, backend=module.backend)


def _lp(module: Any, fn: Callable[..., Any], input: Tensor) -> Tensor:
    geometry = (float(module.norm_type), module.kernel_size, module.stride, module.ceil_mode)
    return fn(input, *geometry, padding=module.padding, backend=module.backend)


def _fractional(module: Any, fn: Callable[..., Any], input: Tensor) -> Any:
    size = (module.output_size, module.output_ratio)
    drawn = {"_random_samples": module._random_samples}
    return fn(input, module.kernel_size, *size, module.return_indices, **drawn, backend=module.backend)


class MaxPool1d(Extended, torch.nn.MaxPool1d):
    """``torch.nn.MaxPool1d``, computed by :func:`gpuconv.max_pool1d`.

    Examples
    --------
    >>> import torch, gpuconv.nn
    >>> gpuconv.nn.MaxPool1d(2)(torch.randn(2, 3, 8)).shape
    torch.Size([2, 3, 4])
    """

    __init__ = constructor(torch.nn.MaxPool1d, POOL_PADDINGS, backend=None)

    def forward(self, input: Tensor) -> Any:
        """Return the maxima, with `return_indices` also where they are."""
        return _max(self, max_pool1d, input)


class MaxPool2d(Extended, torch.nn.MaxPool2d):
    """``torch.nn.MaxPool2d``, computed by :func:`gpuconv.max_pool2d`.

    Examples
    --------
    >>> import torch, gpuconv.nn
    >>> gpuconv.nn.MaxPool2d(2)(torch.randn(2, 3, 8, 6)).shape
    torch.Size([2, 3, 4, 3])
    """

    __init__ = constructor(torch.nn.MaxPool2d, POOL_PADDINGS, backend=None)

    def forward(self, input: Tensor) -> Any:
        """Return the maxima, with `return_indices` also where they are."""
        return _max(self, max_pool2d, input)


class MaxPool3d(Extended, torch.nn.MaxPool3d):
    """``torch.nn.MaxPool3d``, computed by :func:`gpuconv.max_pool3d`.

    Examples
    --------
    >>> import torch, gpuconv.nn
    >>> gpuconv.nn.MaxPool3d(2)(torch.randn(2, 3, 8, 6, 4)).shape
    torch.Size([2, 3, 4, 3, 2])
    """

    __init__ = constructor(torch.nn.MaxPool3d, POOL_PADDINGS, backend=None)

    def forward(self, input: Tensor) -> Any:
        """Return the maxima, with `return_indices` also where they are."""
        return _max(self, max_pool3d, input)


class AvgPool1d(Extended, torch.nn.AvgPool1d):
    """``torch.nn.AvgPool1d``, computed by :func:`gpuconv.avg_pool1d`.

    Examples
    --------
    >>> import torch, gpuconv.nn
    >>> gpuconv.nn.AvgPool1d(3, stride=1, padding=1)(torch.randn(2, 3, 8)).shape
    torch.Size([2, 3, 8])
    """

    __init__ = constructor(torch.nn.AvgPool1d, POOL_PADDINGS, dilation=1, backend=None)

    def forward(self, input: Tensor) -> Tensor:
        """Return the averages."""
        return _avg(self, avg_pool1d, input)


class AvgPool2d(Extended, torch.nn.AvgPool2d):
    """``torch.nn.AvgPool2d``, computed by :func:`gpuconv.avg_pool2d`.

    Examples
    --------
    >>> import torch, gpuconv.nn
    >>> gpuconv.nn.AvgPool2d(3, stride=1, padding=1)(torch.randn(2, 3, 8, 6)).shape
    torch.Size([2, 3, 8, 6])
    """

    __init__ = constructor(torch.nn.AvgPool2d, POOL_PADDINGS, dilation=1, backend=None)

    def forward(self, input: Tensor) -> Tensor:
        """Return the averages."""
        return _avg(self, avg_pool2d, input)


class AvgPool3d(Extended, torch.nn.AvgPool3d):
    """``torch.nn.AvgPool3d``, computed by :func:`gpuconv.avg_pool3d`.

    Examples
    --------
    >>> import torch, gpuconv.nn
    >>> gpuconv.nn.AvgPool3d(3, stride=1, padding=1)(torch.randn(2, 3, 8, 6, 4)).shape
    torch.Size([2, 3, 8, 6, 4])
    """

    __init__ = constructor(torch.nn.AvgPool3d, POOL_PADDINGS, dilation=1, backend=None)

    def forward(self, input: Tensor) -> Tensor:
        """Return the averages."""
        return _avg(self, avg_pool3d, input)


class LPPool1d(Extended, torch.nn.LPPool1d):
    """``torch.nn.LPPool1d``, computed by :func:`gpuconv.lp_pool1d`.

    Examples
    --------
    >>> import torch, gpuconv.nn
    >>> gpuconv.nn.LPPool1d(2, 2)(torch.randn(2, 3, 8)).shape
    torch.Size([2, 3, 4])
    """

    __init__ = constructor(torch.nn.LPPool1d, POOL_PADDINGS, padding=0, backend=None)

    def forward(self, input: Tensor) -> Tensor:
        """Return the power averages."""
        return _lp(self, lp_pool1d, input)


class LPPool2d(Extended, torch.nn.LPPool2d):
    """``torch.nn.LPPool2d``, computed by :func:`gpuconv.lp_pool2d`.

    Examples
    --------
    >>> import torch, gpuconv.nn
    >>> gpuconv.nn.LPPool2d(2, 2)(torch.randn(2, 3, 8, 6)).shape
    torch.Size([2, 3, 4, 3])
    """

    __init__ = constructor(torch.nn.LPPool2d, POOL_PADDINGS, padding=0, backend=None)

    def forward(self, input: Tensor) -> Tensor:
        """Return the power averages."""
        return _lp(self, lp_pool2d, input)


class LPPool3d(Extended, torch.nn.LPPool3d):
    """``torch.nn.LPPool3d``, computed by :func:`gpuconv.lp_pool3d`.

    Examples
    --------
    >>> import torch, gpuconv.nn
    >>> gpuconv.nn.LPPool3d(2, 2)(torch.randn(2, 3, 8, 6, 4)).shape
    torch.Size([2, 3, 4, 3, 2])
    """

    __init__ = constructor(torch.nn.LPPool3d, POOL_PADDINGS, padding=0, backend=None)

    def forward(self, input: Tensor) -> Tensor:
        """Return the power averages."""
        return _lp(self, lp_pool3d, input)


class AdaptiveAvgPool1d(Extended, torch.nn.AdaptiveAvgPool1d):
    """``torch.nn.AdaptiveAvgPool1d``, computed by :func:`gpuconv.adaptive_avg_pool1d`.

    Examples
    --------
    >>> import torch, gpuconv.nn
    >>> gpuconv.nn.AdaptiveAvgPool1d(3)(torch.randn(2, 3, 8)).shape
    torch.Size([2, 3, 3])
    """

    __init__ = constructor(torch.nn.AdaptiveAvgPool1d, backend=None)

    def forward(self, input: Tensor) -> Tensor:
        """Return the averages."""
        return adaptive_avg_pool1d(input, self.output_size, backend=self.backend)


class AdaptiveAvgPool2d(Extended, torch.nn.AdaptiveAvgPool2d):
    """``torch.nn.AdaptiveAvgPool2d``, computed by :func:`gpuconv.adaptive_avg_pool2d`.

    Examples
    --------
    >>> import torch, gpuconv.nn
    >>> gpuconv.nn.AdaptiveAvgPool2d(3)(torch.randn(2, 3, 8, 6)).shape
    torch.Size([2, 3, 3, 3])
    """

    __init__ = constructor(torch.nn.AdaptiveAvgPool2d, backend=None)

    def forward(self, input: Tensor) -> Tensor:
        """Return the averages."""
        return adaptive_avg_pool2d(input, self.output_size, backend=self.backend)


class AdaptiveAvgPool3d(Extended, torch.nn.AdaptiveAvgPool3d):
    """``torch.nn.AdaptiveAvgPool3d``, computed by :func:`gpuconv.adaptive_avg_pool3d`.

    Examples
    --------
    >>> import torch, gpuconv.nn
    >>> gpuconv.nn.AdaptiveAvgPool3d(3)(torch.randn(2, 3, 8, 6, 4)).shape
    torch.Size([2, 3, 3, 3, 3])
    """

    __init__ = constructor(torch.nn.AdaptiveAvgPool3d, backend=None)

    def forward(self, input: Tensor) -> Tensor:
        """Return the averages."""
        return adaptive_avg_pool3d(input, self.output_size, backend=self.backend)


class AdaptiveMaxPool1d(Extended, torch.nn.AdaptiveMaxPool1d):
    """``torch.nn.AdaptiveMaxPool1d``, computed by :func:`gpuconv.adaptive_max_pool1d`.

    Examples
    --------
    >>> import torch, gpuconv.nn
    >>> gpuconv.nn.AdaptiveMaxPool1d(3)(torch.randn(2, 3, 8)).shape
    torch.Size([2, 3, 3])
    """

    __init__ = constructor(torch.nn.AdaptiveMaxPool1d, backend=None)

    def forward(self, input: Tensor) -> Any:
        """Return the maxima, with `return_indices` also where they are."""
        return adaptive_max_pool1d(input, self.output_size, self.return_indices, backend=self.backend)


class AdaptiveMaxPool2d(Extended, torch.nn.AdaptiveMaxPool2d):
    """``torch.nn.AdaptiveMaxPool2d``, computed by :func:`gpuconv.adaptive_max_pool2d`.

    Examples
    --------
    >>> import torch, gpuconv.nn
    >>> gpuconv.nn.AdaptiveMaxPool2d(3)(torch.randn(2, 3, 8, 6)).shape
    torch.Size([2, 3, 3, 3])
    """

    __init__ = constructor(torch.nn.AdaptiveMaxPool2d, backend=None)

    def forward(self, input: Tensor) -> Any:
        """Return the maxima, with `return_indices` also where they are."""
        return adaptive_max_pool2d(input, self.output_size, self.return_indices, backend=self.backend)


class AdaptiveMaxPool3d(Extended, torch.nn.AdaptiveMaxPool3d):
    """``torch.nn.AdaptiveMaxPool3d``, computed by :func:`gpuconv.adaptive_max_pool3d`.

    Examples
    --------
    >>> import torch, gpuconv.nn
    >>> gpuconv.nn.AdaptiveMaxPool3d(3)(torch.randn(2, 3, 8, 6, 4)).shape
    torch.Size([2, 3, 3, 3, 3])
    """

    __init__ = constructor(torch.nn.AdaptiveMaxPool3d, backend=None)

    def forward(self, input: Tensor) -> Any:
        """Return the maxima, with `return_indices` also where they are."""
        return adaptive_max_pool3d(input, self.output_size, self.return_indices, backend=self.backend)


class FractionalMaxPool2d(Extended, torch.nn.FractionalMaxPool2d):
    """``torch.nn.FractionalMaxPool2d``, computed by :func:`gpuconv.fractional_max_pool2d`.

    Examples
    --------
    >>> import torch, gpuconv.nn
    >>> gpuconv.nn.FractionalMaxPool2d(2, output_size=2)(torch.randn(2, 3, 8, 6)).shape
    torch.Size([2, 3, 2, 2])
    """

    __init__ = constructor(torch.nn.FractionalMaxPool2d, backend=None)

    def forward(self, input: Tensor) -> Any:
        """Return the maxima, with `return_indices` also where they are."""
        return _fractional(self, fractional_max_pool2d, input)


class FractionalMaxPool3d(Extended, torch.nn.FractionalMaxPool3d):
    """``torch.nn.FractionalMaxPool3d``, computed by :func:`gpuconv.fractional_max_pool3d`.

    Examples
    --------
    >>> import torch, gpuconv.nn
    >>> gpuconv.nn.FractionalMaxPool3d(2, output_size=2)(torch.randn(2, 3, 8, 6, 4)).shape
    torch.Size([2, 3, 2, 2, 2])
    """

    __init__ = constructor(torch.nn.FractionalMaxPool3d, backend=None)

    def forward(self, input: Tensor) -> Any:
        """Return the maxima, with `return_indices` also where they are."""
        return _fractional(self, fractional_max_pool3d, input)


class MaxUnpool1d(Extended, torch.nn.MaxUnpool1d):
    """``torch.nn.MaxUnpool1d``, computed by :func:`gpuconv.max_unpool1d`.

    Examples
    --------
    >>> import torch, gpuconv.nn
    >>> pool, unpool = gpuconv.nn.MaxPool1d(2, return_indices=True), gpuconv.nn.MaxUnpool1d(2)
    >>> unpool(*pool(torch.randn(2, 3, 8))).shape
    torch.Size([2, 3, 8])
    """

    __init__ = constructor(torch.nn.MaxUnpool1d, backend=None)

    def forward(self, input: Tensor, indices: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """Return `input` at `indices` of a plane of zeros, of size `output_size` if that is given."""
        geometry = (self.kernel_size, self.stride, self.padding)
        return max_unpool1d(input, indices, *geometry, output_size, backend=self.backend)


class MaxUnpool2d(Extended, torch.nn.MaxUnpool2d):
    """``torch.nn.MaxUnpool2d``, computed by :func:`gpuconv.max_unpool2d`.

    Examples
    --------
    >>> import torch, gpuconv.nn
    >>> pool, unpool = gpuconv.nn.MaxPool2d(2, return_indices=True), gpuconv.nn.MaxUnpool2d(2)
    >>> unpool(*pool(torch.randn(2, 3, 8, 6))).shape
    torch.Size([2, 3, 8, 6])
    """

    __init__ = constructor(torch.nn.MaxUnpool2d, backend=None)

    def forward(self, input: Tensor, indices: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """Return `input` at `indices` of a plane of zeros, of size `output_size` if that is given."""
        geometry = (self.kernel_size, self.stride, self.padding)
        return max_unpool2d(input, indices, *geometry, output_size, backend=self.backend)


class MaxUnpool3d(Extended, torch.nn.MaxUnpool3d):
    """``torch.nn.MaxUnpool3d``, computed by :func:`gpuconv.max_unpool3d`.

    Examples
    --------
    >>> import torch, gpuconv.nn
    >>> pool, unpool = gpuconv.nn.MaxPool3d(2, return_indices=True), gpuconv.nn.MaxUnpool3d(2)
    >>> unpool(*pool(torch.randn(2, 3, 8, 6, 4))).shape
    torch.Size([2, 3, 8, 6, 4])
    """

    __init__ = constructor(torch.nn.MaxUnpool3d, backend=None)

    def forward(self, input: Tensor, indices: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """Return `input` at `indices` of a plane of zeros, of size `output_size` if that is given."""
        geometry = (self.kernel_size, self.stride, self.padding)
        return max_unpool3d(input, indices, *geometry, output_size, backend=self.backend)


class Unfold(Extended, torch.nn.Unfold):
    """``torch.nn.Unfold``, computed by :func:`gpuconv.unfold`.

    Examples
    --------
    >>> import torch, gpuconv.nn
    >>> gpuconv.nn.Unfold(3, padding=1)(torch.randn(2, 3, 8, 6)).shape
    torch.Size([2, 27, 48])
    """

    __init__ = constructor(torch.nn.Unfold, backend=None)

    def forward(self, input: Tensor) -> Tensor:
        """Return the windows of `input` as columns."""
        geometry = (self.kernel_size, self.dilation, self.padding, self.stride)
        return unfold(input, *geometry, backend=self.backend)


class Fold(Extended, torch.nn.Fold):
    """``torch.nn.Fold``, computed by :func:`gpuconv.fold`.

    Examples
    --------
    >>> import torch, gpuconv.nn
    >>> gpuconv.nn.Fold((8, 6), 3, padding=1)(torch.randn(2, 27, 48)).shape
    torch.Size([2, 3, 8, 6])
    """

    __init__ = constructor(torch.nn.Fold, backend=None)

    def forward(self, input: Tensor) -> Tensor:
        """Return the image that the columns of `input` add up to."""
        geometry = (self.kernel_size, self.dilation, self.padding, self.stride)
        return fold(input, self.output_size, *geometry, backend=self.backend)
