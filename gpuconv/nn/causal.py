"""The causal convolution of state-space models as a module.

Importing this module imports torch.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.fx

from ..errors import invalid
from ..functional import causal_conv1d, causal_conv1d_update
from ..normalize import CAUSAL_ACTIVATIONS, integer
from .common import check_extras

__all__ = ["CausalConv1d"]

Tensor = Any

for _name in ("causal_conv1d", "causal_conv1d_update"):
    torch.fx.wrap(_name)


class CausalConv1d(torch.nn.Module):
    """A filter per channel that sees no later element, computed by :func:`gpuconv.causal_conv1d`.

    Parameters, their initialisation and the ``state_dict`` are those of ``torch.nn.Conv1d(channels, channels,
    kernel_size, groups=channels)``, which stands in published models padded by ``kernel_size - 1`` and cut. For
    decoding, the state is an argument: the module keeps none.

    Parameters
    ----------
    channels
        Channels of input and output.
    kernel_size
        Taps of each filter.
    bias
        Whether a bias is added.
    device, dtype
        Of the parameters.
    activation, precision, backend
        As in :func:`gpuconv.causal_conv1d`.

    Attributes
    ----------
    weight
        ``(channels, 1, kernel_size)``.
    bias
        ``(channels,)`` or None.

    Examples
    --------
    >>> import torch, gpuconv.nn
    >>> layer = gpuconv.nn.CausalConv1d(8, 4, activation="silu")
    >>> layer
    CausalConv1d(8, kernel_size=4, activation='silu')
    >>> x = torch.randn(2, 8, 10)
    >>> y, state = layer(x[..., :9], return_state=True)
    >>> newest = layer.step(x[..., 9], state)  # the state holds what the next step needs
    >>> torch.testing.assert_close(newest, layer(x)[..., 9])
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        activation: str | None = None,
        precision: str | None = None,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        op = type(self).__name__
        for argument, value in (("channels", channels), ("kernel_size", kernel_size)):
            if integer(op, argument, value) < 1:
                raise invalid(op, argument, value, "positive", ValueError)
        check_extras(op, {"activation": activation, "precision": precision, "backend": backend}, CAUSAL_ACTIVATIONS)
        self.channels, self.kernel_size = channels, kernel_size
        self.activation, self.precision, self.backend = activation, precision, backend
        self.weight = torch.nn.Parameter(torch.empty(channels, 1, kernel_size, device=device, dtype=dtype))
        if bias:
            self.bias = torch.nn.Parameter(torch.empty(channels, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the parameters as ``torch.nn.Conv1d`` does: uniform, up to ``kernel_size ** -0.5``."""
        torch.nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.kernel_size)
            torch.nn.init.uniform_(self.bias, -bound, bound)

    def new_state(self, batch_size: int, state_len: int | None = None, *, dtype: Any = None) -> Tensor:
        """Return the state before any element: zeros ``(batch_size, channels, state_len)``.

        Parameters
        ----------
        batch_size
            Sequences, or entries that ``conv_state_indices`` choose from.
        state_len
            Elements that it holds, by default the ``kernel_size - 1`` that a step needs.
        dtype
            Of the elements, by default that of the weight. It must be that of the input.
        """
        length = self.kernel_size - 1 if state_len is None else state_len
        return torch.zeros(
            batch_size, self.channels, length, device=self.weight.device, dtype=dtype or self.weight.dtype
        )

    def forward(
        self,
        x: Tensor,
        initial_state: Tensor | None = None,
        *,
        return_state: bool = False,
        seq_idx: Tensor | None = None,
    ) -> Any:
        """Return the convolution of ``(batch, channels, seqlen)``. Arguments: see :func:`gpuconv.causal_conv1d`."""
        return causal_conv1d(
            x, self.weight, self.bias, activation=self.activation, initial_state=initial_state,
            return_state=return_state, seq_idx=seq_idx, precision=self.precision, backend=self.backend,
        )  # fmt: skip

    def step(
        self,
        x: Tensor,
        state: Tensor,
        *,
        cache_seqlens: Tensor | None = None,
        conv_state_indices: Tensor | None = None,
    ) -> Tensor:
        """Go on by ``(batch, channels)`` or ``(batch, channels, seqlen)`` and update `state`, in place.

        Arguments: see :func:`gpuconv.causal_conv1d_update`.
        """
        return causal_conv1d_update(
            x, state, self.weight, self.bias, activation=self.activation, cache_seqlens=cache_seqlens,
            conv_state_indices=conv_state_indices, precision=self.precision, backend=self.backend,
        )  # fmt: skip

    def extra_repr(self) -> str:
        """Return the sizes, and what was given of the other arguments."""
        rows = [f"{self.channels}, kernel_size={self.kernel_size}"]
        if self.bias is None:
            rows.append("bias=False")
        given = {name: getattr(self, name) for name in ("activation", "precision", "backend")}
        return ", ".join([*rows, *(f"{name}={value!r}" for name, value in given.items() if value is not None)])
