"""Deformable convolution and its gradients composed of torch's operators, which torch differentiates.

This is what records gradients of gradients, to every order and in forward mode. It gathers rows of the input, weighs
and multiplies them; the kernels that the library runs elsewhere compute the same. Rows are read by indices, whose
derivative torch adds up in a fixed order on a GPU.

Positions are computed in float32 for 16-bit types. A position that is not between -1 and the size along an axis has no
sample; at -1 itself, as in torchvision, it has a gradient all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod
from typing import Any, NamedTuple

import torch

__all__ = ["Form", "composed_dgrad", "composed_fprop", "composed_wgrad", "moved"]

Tensor = Any


class Form(NamedTuple):
    """Every argument of the operators that is no tensor and of all passes, in the order of their schemas."""

    stride: Sequence[int]
    pad_lo: Sequence[int]
    pad_hi: Sequence[int]
    dilation: Sequence[int]
    groups: int
    offset_groups: int
    precision: str | None
    backend: str | None


class _Samples(NamedTuple):
    """Positions: tensors [N, OG, taps, outputs] for each axis, and for each corner its inside and rows."""

    fractions: list[Tensor]
    there: Tensor
    whole: Tensor
    inside: dict[tuple[int, ...], Tensor]
    rows: dict[tuple[int, ...], Tensor]
    """Rows of a batch of images that lie as rows of channels: [N OG, taps outputs], 0 where it is outside."""

    def weight(self, corner: tuple[int, ...], along: int | None = None) -> Tensor:
        """Return the weight of a corner, or its derivative by the position along an axis."""
        found = self.whole
        for axis, (fraction, high) in enumerate(zip(self.fractions, corner)):
            if axis == along:
                found = found if high else -found
            else:
                found = found * (fraction if high else 1 - fraction)
        return found


def _wide(tensor: Tensor | None) -> Tensor | None:
    """Return a tensor in the type in which it is computed."""
    if tensor is None or tensor.dtype not in (torch.float16, torch.bfloat16):
        return tensor
    return tensor.float()


def _positions(form: Form, kernel: Sequence[int], output: Sequence[int], axis: int, like: Tensor) -> Tensor:
    """Return the positions along an axis without offsets, [taps, outputs]."""
    ndim, device = len(kernel), like.device
    taps = torch.arange(kernel[axis], device=device) * form.dilation[axis]
    outputs = torch.arange(output[axis], device=device) * form.stride[axis] - form.pad_lo[axis]
    ones = [1] * ndim
    along_taps, along_outputs = list(ones), list(ones)
    along_taps[axis] = along_outputs[axis] = -1
    both = taps.reshape(*along_taps, *ones) + outputs.reshape(*ones, *along_outputs)
    return both.expand(*kernel, *output).reshape(prod(kernel), prod(output)).to(like.dtype)


def _samples(offset: Tensor, size: Sequence[int], kernel: Sequence[int], form: Form) -> _Samples:
    ndim, output = len(kernel), offset.shape[2:]
    offset = offset.reshape(offset.shape[0], form.offset_groups, prod(kernel), ndim, prod(output))
    lowers, fractions = [], []
    there = near = broken = None
    for axis in range(ndim):
        position = _positions(form, kernel, output, axis, offset) + offset[:, :, :, axis]
        along = (position >= -1) & (position < size[axis])
        nan, sampled = position.isnan(), along & (position > -1)
        near = along if near is None else near & along
        there = sampled if there is None else there & sampled
        broken = nan if broken is None else broken | nan
        position = torch.where(along, position, 0.0)
        lower = position.detach().floor()
        lowers.append(lower.long())
        fractions.append(position - lower)
    whole = torch.where(broken, float("nan"), 1.0).to(offset.dtype)
    inside, rows = {}, {}
    image = torch.arange(offset.shape[0] * form.offset_groups, device=offset.device)[:, None] * prod(size)
    for corner in product((0, 1), repeat=ndim):
        row, within = torch.zeros_like(lowers[0]), near
        for lower, high, length in zip(lowers, corner, size):
            at = lower + high
            within = within & (at >= 0) & (at < length)
            row = row * length + at
        inside[corner] = within
        rows[corner] = torch.where(within, row, 0).flatten(2).flatten(0, 1) + image
    return _Samples(fractions, there, whole, inside, rows)


def _image_rows(x: Tensor, form: Form) -> Tensor:
    """Return all images as rows of the channels of a group of offsets: [N OG (D H W), C/OG]."""
    n, c = x.shape[:2]
    per_group = c // form.offset_groups
    split = x.reshape(n * form.offset_groups, per_group, prod(x.shape[2:]))
    return split.transpose(1, 2).reshape(n * form.offset_groups * prod(x.shape[2:]), per_group)


def _values(rows: Tensor, samples: _Samples, corner: tuple[int, ...]) -> Tensor:
    """Return what lies at a corner: [N, OG, taps, outputs, C/OG], 0 outside."""
    inside = samples.inside[corner]
    found = rows[samples.rows[corner].reshape(-1)].reshape(*inside.shape, rows.shape[1])
    return torch.where(inside[..., None], found, 0.0)


def _by_groups(columns: Tensor, form: Form) -> Tensor:
    """Return columns of groups of offsets as columns of groups: [N, G, C/G taps, outputs]."""
    n, offset_groups, taps, outputs, per_offset_group = columns.shape
    per_group = offset_groups * per_offset_group // form.groups
    return columns.permute(0, 1, 4, 2, 3).reshape(n, form.groups, per_group * taps, outputs)


def _by_offset_groups(columns: Tensor, taps: int, form: Form) -> Tensor:
    """Undo :func:`_by_groups`."""
    n, groups, rows, outputs = columns.shape
    split = columns.reshape(n, form.offset_groups, groups * rows // (taps * form.offset_groups), taps, outputs)
    return split.permute(0, 1, 3, 4, 2)


def _columns(x: Tensor, samples: _Samples, mask: Tensor | None, form: Form) -> Tensor:
    rows = _image_rows(x, form)
    total = sum(_values(rows, samples, corner) * samples.weight(corner)[..., None] for corner in samples.rows)
    total = torch.where(samples.there[..., None], total, _nothing(samples)[..., None])
    return total if mask is None else total * _of_samples(mask, samples)[..., None]


def _nothing(samples: _Samples) -> Tensor:
    """Return 0 for each sample, NaN where its position is."""
    return torch.where(samples.whole.isnan(), samples.whole, 0.0)


def _of_samples(mask: Tensor, samples: _Samples) -> Tensor:
    """Return the mask as samples lie: [N, OG, taps, outputs]."""
    return mask.reshape(samples.there.shape)


def _multiplied(columns: Tensor, w: Tensor, output: Sequence[int], form: Form) -> Tensor:
    """Return the outputs: N, K, O P Q."""
    weight = w.reshape(form.groups, w.shape[0] // form.groups, w.shape[1] * prod(w.shape[2:]))
    y = torch.matmul(weight, _by_groups(columns, form))
    return y.reshape(y.shape[0], w.shape[0], *output)


def composed_fprop(
    x: Tensor, offset: Tensor, mask: Tensor | None, w: Tensor, bias: Tensor | None, form: Form
) -> Tensor:
    """Return y."""
    dtype = x.dtype
    x, offset, mask, w, bias = (_wide(tensor) for tensor in (x, offset, mask, w, bias))
    samples = _samples(offset, x.shape[2:], w.shape[2:], form)
    y = _multiplied(_columns(x, samples, mask, form), w, offset.shape[2:], form)
    return (y if bias is None else y + bias.reshape(-1, *(1,) * (y.dim() - 2))).to(dtype)


def moved(x: Tensor, offset: Tensor, of_offset: Tensor, mask: Tensor | None, w: Tensor, form: Form) -> Tensor:
    """Return how y changes as `offset` changes by `of_offset`."""
    dtype = x.dtype
    x, offset, of_offset, mask, w = (_wide(tensor) for tensor in (x, offset, of_offset, mask, w))
    kernel = w.shape[2:]
    samples, rows = _samples(offset, x.shape[2:], kernel, form), _image_rows(x, form)
    sizes = (offset.shape[0], form.offset_groups, prod(kernel), len(kernel), prod(offset.shape[2:]))
    by_axis = of_offset.reshape(sizes)
    total = None
    for corner in samples.rows:
        slope = sum(samples.weight(corner, axis) * by_axis[:, :, :, axis] for axis in range(len(kernel)))
        values = _values(rows, samples, corner) * slope[..., None]
        total = values if total is None else total + values
    if mask is not None:
        total = total * _of_samples(mask, samples)[..., None]
    return _multiplied(total, w, offset.shape[2:], form).to(dtype)


def _of_input(x: Tensor, columns: Tensor, samples: _Samples, mask: Tensor | None, form: Form) -> Tensor:
    """Return the gradient by x of column gradients as samples lie."""
    zeros = torch.zeros_like(_image_rows(x, form))
    places, values = [], []
    for corner, rows in samples.rows.items():
        share = samples.weight(corner)
        weight = share if mask is None else share * _of_samples(mask, samples)
        shares = columns * weight[..., None]
        # A corner without weight gets 0, not NaN of an infinite gradient; a finite one keeps its derivatives.
        nothing = (share == 0)[..., None] & shares.isnan()
        inside = samples.inside[corner] & samples.there
        shares = torch.where(inside[..., None] & ~nothing, shares, 0.0)
        places.append(rows.reshape(-1))
        values.append(shares.reshape(-1, shares.shape[-1]))
    # On the CPU too this adds in a fixed order only under ``use_deterministic_algorithms``.
    total = zeros.index_put((torch.cat(places),), torch.cat(values), accumulate=True)
    n, groups, per_group = x.shape[0], form.offset_groups, total.shape[1]
    return total.reshape(n * groups, prod(x.shape[2:]), per_group).transpose(1, 2).reshape(x.shape)


def composed_dgrad(
    dy: Tensor, x: Tensor, offset: Tensor, mask: Tensor | None, w: Tensor, grads: Sequence[str], form: Form
) -> list[Tensor]:
    """Return the gradients of ``x``, ``offset`` and ``mask`` that are named."""
    dtype, (offset_shape, mask_shape) = x.dtype, (offset.shape, None if mask is None else mask.shape)
    dy, x, offset, mask, w = (_wide(tensor) for tensor in (dy, x, offset, mask, w))
    kernel, taps = w.shape[2:], prod(w.shape[2:])
    samples, rows = _samples(offset, x.shape[2:], kernel, form), _image_rows(x, form)
    weight = w.reshape(form.groups, w.shape[0] // form.groups, w.shape[1] * taps)
    outputs = dy.reshape(dy.shape[0], form.groups, w.shape[0] // form.groups, prod(dy.shape[2:]))
    columns = _by_offset_groups(torch.matmul(weight.transpose(1, 2), outputs), taps, form)
    found = {}
    if "x" in grads:
        found["x"] = _of_input(x, columns, samples, mask, form)
    if "offset" in grads or "mask" in grads:
        met = {}
        for corner, inside in samples.inside.items():
            # An element outside adds nothing, whatever the gradient.
            shares = torch.where(inside[..., None], _values(rows, samples, corner) * columns, 0.0)
            met[corner] = shares.sum(-1)
    if "offset" in grads:
        along = []
        for axis in range(len(kernel)):
            slope = sum(samples.weight(corner, axis) * share for corner, share in met.items())
            along.append(slope if mask is None else slope * _of_samples(mask, samples))
        found["offset"] = torch.stack(along, 3).reshape(offset_shape)
    if "mask" in grads:
        total = sum(samples.weight(corner) * share for corner, share in met.items())
        found["mask"] = torch.where(samples.there, total, _nothing(samples)).reshape(mask_shape)
    return [found[name].to(dtype) for name in grads]


def composed_wgrad(
    dy: Tensor, x: Tensor, offset: Tensor, mask: Tensor | None, kernel: Sequence[int], form: Form
) -> Tensor:
    """Return the gradient of w."""
    dtype = x.dtype
    dy, x, offset, mask = (_wide(tensor) for tensor in (dy, x, offset, mask))
    samples = _samples(offset, x.shape[2:], kernel, form)
    columns = _by_groups(_columns(x, samples, mask, form), form)
    outputs = dy.reshape(dy.shape[0], form.groups, dy.shape[1] // form.groups, prod(dy.shape[2:]))
    total = torch.matmul(outputs, columns.transpose(2, 3)).sum(0)
    return total.reshape(dy.shape[1], x.shape[1] // form.groups, *kernel).to(dtype)
