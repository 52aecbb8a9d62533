"""Convolutions that learn at their first call how many channels come in: PyTorch's lazy modules, computed by gpuconv.

Each is a subclass of the module of the same name in ``torch.nn``: constructor, ``state_dict``, loading before and after
the first call and errors are inherited. At the first call it becomes the module of :mod:`gpuconv.nn` that it is named
after, with all arguments that it was given, those beyond PyTorch's included.

Importing this module imports torch.
"""

from __future__ import annotations

import torch

from .common import CONV_PADDINGS, constructor
from .conv import EXTRAS, Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d

__all__ = [
    "LazyConv1d",
    "LazyConv2d",
    "LazyConv3d",
    "LazyConvTranspose1d",
    "LazyConvTranspose2d",
    "LazyConvTranspose3d",
]


class LazyConv1d(Conv1d, torch.nn.LazyConv1d):
    """``torch.nn.LazyConv1d``, which becomes :class:`gpuconv.nn.Conv1d`.

    Examples
    --------
    >>> import torch, gpuconv.nn
    >>> layer = gpuconv.nn.LazyConv1d(8, 3, padding="causal")
    >>> _ = layer(torch.randn(2, 4, 10))
    >>> layer
    Conv1d(4, 8, kernel_size=(3,), stride=(1,), padding=causal)
    """

    cls_to_become = Conv1d
    __init__ = constructor(torch.nn.LazyConv1d, CONV_PADDINGS, **EXTRAS)


class LazyConv2d(Conv2d, torch.nn.LazyConv2d):
    """``torch.nn.LazyConv2d``, which becomes :class:`gpuconv.nn.Conv2d`.

    Examples
    --------
    >>> import torch, gpuconv.nn
    >>> layer = gpuconv.nn.LazyConv2d(8, 3, padding="same_upper", activation="relu")
    >>> _ = layer(torch.randn(2, 4, 10, 12))
    >>> layer
    Conv2d(4, 8, kernel_size=(3, 3), stride=(1, 1), padding=same_upper, activation='relu')
    """

    cls_to_become = Conv2d
    __init__ = constructor(torch.nn.LazyConv2d, CONV_PADDINGS, **EXTRAS)


class LazyConv3d(Conv3d, torch.nn.LazyConv3d):
    """``torch.nn.LazyConv3d``, which becomes :class:`gpuconv.nn.Conv3d`.

    Examples
    --------
    >>> import torch, gpuconv.nn
    >>> layer = gpuconv.nn.LazyConv3d(8, 3, groups=2)
    >>> _ = layer(torch.randn(2, 4, 5, 6, 7))
    >>> layer
    Conv3d(4, 8, kernel_size=(3, 3, 3), stride=(1, 1, 1), groups=2)
    """

    cls_to_become = Conv3d
    __init__ = constructor(torch.nn.LazyConv3d, CONV_PADDINGS, **EXTRAS)


class LazyConvTranspose1d(ConvTranspose1d, torch.nn.LazyConvTranspose1d):
    """``torch.nn.LazyConvTranspose1d``, which becomes :class:`gpuconv.nn.ConvTranspose1d`.

    Examples
    --------
    >>> import torch, gpuconv.nn
    >>> layer = gpuconv.nn.LazyConvTranspose1d(8, 2, stride=2)
    >>> _ = layer(torch.randn(2, 4, 10))
    >>> layer
    ConvTranspose1d(4, 8, kernel_size=(2,), stride=(2,))
    """

    cls_to_become = ConvTranspose1d
    __init__ = constructor(torch.nn.LazyConvTranspose1d, **EXTRAS)


class LazyConvTranspose2d(ConvTranspose2d, torch.nn.LazyConvTranspose2d):
    """``torch.nn.LazyConvTranspose2d``, which becomes :class:`gpuconv.nn.ConvTranspose2d`.

    Examples
    --------
    >>> import torch, gpuconv.nn
    >>> layer = gpuconv.nn.LazyConvTranspose2d(8, 2, stride=2, activation="relu")
    >>> _ = layer(torch.randn(2, 4, 10, 12))
    >>> layer
    ConvTranspose2d(4, 8, kernel_size=(2, 2), stride=(2, 2), activation='relu')
    """

    cls_to_become = ConvTranspose2d
    __init__ = constructor(torch.nn.LazyConvTranspose2d, **EXTRAS)


class LazyConvTranspose3d(ConvTranspose3d, torch.nn.LazyConvTranspose3d):
    """``torch.nn.LazyConvTranspose3d``, which becomes :class:`gpuconv.nn.ConvTranspose3d`.

    Examples
    --------
    >>> import torch, gpuconv.nn
    >>> layer = gpuconv.nn.LazyConvTranspose3d(8, 2, stride=2, bias=False)
    >>> _ = layer(torch.randn(2, 4, 5, 6, 7))
    >>> layer
    ConvTranspose3d(4, 8, kernel_size=(2, 2, 2), stride=(2, 2, 2), bias=False)
    """

    cls_to_become = ConvTranspose3d
    __init__ = constructor(torch.nn.LazyConvTranspose3d, **EXTRAS)
