"""Causal convolutions of sequences, one filter per channel, with a state for decoding: what state-space models run.

The semantics are those of the compiled extension ``causal-conv1d`` (github.com/Dao-AILab/causal-conv1d), at any width.
Both functions are composed of one depthwise convolution, which the dispatcher runs, and of copies of its input.
"""

from __future__ import annotations

from ..arrays import TORCH, ArrayKind
from ..normalize import Extras, Sequences, activation_of, sequence_arguments, update_arguments
from ..ops import operators
from .compose import as_image, cast, explaining, joined, library, lines_last, masked, placeholder, zero, zeros
from .conv import Array, _convolve

__all__ = ["causal_conv1d", "causal_conv1d_update"]


def _as_filters(kind: ArrayKind, weight: Array) -> Array:
    """Show a ``(dim, width)`` weight as a depthwise convolution's ``(dim, 1, width)``."""
    return weight if len(kind.shape(weight)) == 3 else weight[:, None]


def _in_one_dtype(sizes: Sequences, x: Array, weight: Array, bias: Array | None) -> tuple[Array, Array, Array | None]:
    """Cast operands of several types to the type that holds them all; autocast casts what it finds by itself."""
    ops = operators(x)
    if not sizes.mixed or (ops is not None and ops.autocasts(x)):
        return x, weight, bias
    kind, promote, dtype = sizes.kind, library(sizes.kind).promote_types, x.dtype
    for array in (weight, bias):
        dtype = dtype if array is None else promote(dtype, array.dtype)
    return cast(kind, x, dtype), cast(kind, weight, dtype), cast(kind, bias, dtype)


def _depthwise(
    op: str, kind: ArrayKind, x: Array, weight: Array, bias: Array | None, lead: int, stride: int, extras: Extras
) -> Array:
    """Convolve each channel of ``(N, C, W)`` after `lead` zeros; the result keeps the format of `x`.

    Torch's 1-D convolutions return contiguous tensors. An image of one line keeps its format.
    """
    dim = kind.shape(x)[1]
    if not lines_last(kind, x):
        return _convolve(op, 1, x, weight, bias, stride, ((lead, 0),), 1, dim, extras)
    pads = ((0, 0), (lead, 0))
    image, filters = as_image(kind, x), weight[:, :, None]
    y = _convolve(op, 2, image, filters, bias, (1, stride), pads, 1, dim, extras)
    return y if explaining() else y.squeeze(2)


def _outputs(
    op: str, sizes: Sequences, source: Array, weight: Array, bias: Array | None, lead: int, extras: Extras
) -> Array:
    """Convolve a `source` that has what stands before the sequence, but for `lead` zeros; of no positions as well."""
    kind = sizes.kind
    if sizes.seqlen:
        return _depthwise(op, kind, source, weight, bias, lead, 1, extras)
    # One output that nobody sees: a convolution of nothing is none, and gradients want a way back.
    last = lines_last(kind, source)
    missing = sizes.width - kind.shape(source)[2]
    source = joined(kind, [zeros(kind, source, (sizes.batch, sizes.dim, missing)), source], last)
    y = _depthwise(op, kind, source, weight, bias, 0, 1, extras)
    return y if explaining() else y[..., :0]


def _columns(sizes: Sequences, x: Array, seq_idx: Array, last: bool) -> Array:
    """Return for each position the `width` elements that its output reads, one behind the other: ``(N, C, W width)``.

    What belongs to another sequence, or stands before the first element, is zero whatever it holds; so is everything
    that a padding position would read.
    """
    batch, dim, seqlen, width = sizes[1:5]
    xp, kind, axis = library(sizes.kind), sizes.kind, 1 if last else 2
    # The numbers in front may equal any: they belong to zeros.
    known = xp.concatenate([zeros(kind, seq_idx, (batch, width - 1)), seq_idx], axis=1)
    before = zeros(kind, x, (batch, width - 1, dim) if last else (batch, dim, width - 1))
    lines = xp.concatenate([before, x.swapaxes(1, 2) if last else x], axis=axis)
    taps, nothing = [], zero(kind, x)
    for tap in range(width):
        places = slice(tap, tap + seqlen)
        own = (known[:, places] == seq_idx) & (seq_idx >= 0)
        mask, part = (own[:, :, None], lines[:, places]) if last else (own[:, None], lines[:, :, places])
        taps.append(xp.where(mask, part, nothing))
    columns = xp.stack(taps, axis=axis + 1)
    if last:
        return columns.reshape(batch, seqlen * width, dim).swapaxes(1, 2)
    return columns.reshape(batch, dim, seqlen * width)


def _packed(
    op: str, sizes: Sequences, x: Array, weight: Array, bias: Array | None, seq_idx: Array, extras: Extras
) -> Array:
    """Convolve sequences that stand one behind the other, each by itself."""
    kind, last = sizes.kind, lines_last(sizes.kind, x)
    if explaining():
        columns = placeholder(kind, x, (sizes.batch, sizes.dim, sizes.seqlen * sizes.width), last)
        return _depthwise(op, kind, columns, weight, bias, 0, sizes.width, extras)
    columns = _columns(sizes, x, seq_idx, last)
    y = _depthwise(op, kind, columns, weight, bias, 0, sizes.width, extras)
    return masked(kind, seq_idx >= 0, y, last)


def _last_inputs(sizes: Sequences, x: Array, initial_state: Array | None) -> Array:
    """Return the last ``width - 1`` inputs, those before the sequence included where it is shorter, as a copy."""
    kind, before, last = sizes.kind, sizes.width - 1, lines_last(sizes.kind, x)
    if sizes.seqlen >= before:
        return joined(kind, [x[:, :, sizes.seqlen - before :]], last)
    if initial_state is None:
        initial_state = zeros(kind, x, (sizes.batch, sizes.dim, before))
    return joined(kind, [initial_state[:, :, sizes.seqlen :], x], last)


def causal_conv1d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    activation: str | None = None,
    initial_state: Array | None = None,
    return_state: bool = False,
    seq_idx: Array | None = None,
    precision: str | None = None,
    backend: str | None = None,
) -> Array:
    """Convolve each channel of sequences with a filter of its own that sees no later element.

    Computes ``out[b, d, l] = activation(bias[d] + sum_j weight[d, j] * x[b, d, l - width + 1 + j])``, where elements
    before the sequence are those of `initial_state`, or zeros. This is ``causal_conv1d_fn`` of the extension
    ``causal-conv1d``, for every width, every layout, and arrays of NumPy and CuPy too. On torch tensors it is
    differentiable to every order by `x`, `weight`, `bias` and `initial_state`, and follows autocast.

    Parameters
    ----------
    x
        ``(batch, dim, seqlen)``; contiguous, channels-last (a transposed ``(batch, seqlen, dim)``) or any strides.
        float16, bfloat16, float32 or float64. A sequence may be empty.
    weight
        ``(dim, width)``, or ``(dim, 1, width)`` as a depthwise convolution has it; the last tap meets the newest
        element. Where `weight` or `bias` are of another of these types than `x`, products are formed in the type that
        holds all, for which `x` is copied, and the result is rounded to that of `x`.
    bias
        ``(dim,)`` or None.
    activation
        ``"silu"``, also as ``"swish"``, or any other of :func:`conv2d`.
    initial_state
        ``(batch, dim, width - 1)``, of the dtype of `x`: what stands before each sequence.
    return_state
        Whether to return the state after the sequence as well.
    seq_idx
        ``(batch, seqlen)``, int32 or int64: the sequence that each element belongs to, where several are packed into a
        row. An output reads elements of its own sequence alone: what others hold, infinities and NaN included, does not
        reach it or its gradients. Negative is padding: the output there is 0. The row is copied `width` times.
    precision, backend
        As in :func:`conv2d`.

    Returns
    -------
    array
        ``(batch, dim, seqlen)``, of the dtype of `x`; channels-last if `x` is. With `return_state` a tuple of it and
        ``(batch, dim, width - 1)``, the last elements of `initial_state` (or zeros) and `x` together: a copy, which
        continues the sequence as `initial_state` of another call, or in :func:`causal_conv1d_update`.

    Raises
    ------
    RuntimeError
        For shapes, integer types and devices that do not fit together.
    TypeError
        For a mix of array kinds.
    ValueError
        For an unknown activation, precision or backend, and `seq_idx` with `initial_state` or `return_state`.
    NotImplementedError
        For other element types.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> x, w = np.arange(1.0, 6.0).reshape(1, 1, 5), np.ones((1, 3))
    >>> gpuconv.causal_conv1d(x, w)
    array([[[ 1.,  3.,  6.,  9., 12.]]])
    >>> first, state = gpuconv.causal_conv1d(x[..., :2], w, return_state=True)
    >>> gpuconv.causal_conv1d(x[..., 2:], w, initial_state=state)
    array([[[ 6.,  9., 12.]]])
    >>> gpuconv.causal_conv1d(x, w, seq_idx=np.array([[0, 0, 1, 1, -1]]))
    array([[[1., 3., 3., 7., 0.]]])
    """
    op = "causal_conv1d"
    sizes = sequence_arguments(op, x, weight, bias, initial_state, return_state, seq_idx)
    kind = sizes.kind
    extras = Extras(activation=activation_of(op, activation), precision=precision, backend=backend)
    wide, weight, bias = _in_one_dtype(sizes, x, _as_filters(kind, weight), bias)
    if seq_idx is not None and sizes.seqlen:
        out = _packed(op, sizes, wide, weight, bias, seq_idx, extras)
    elif initial_state is None:
        out = _outputs(op, sizes, wide, weight, bias, sizes.width - 1, extras)
    else:
        last, length = lines_last(kind, x), sizes.width - 1 + sizes.seqlen
        if explaining():
            source = placeholder(kind, wide, (sizes.batch, sizes.dim, length), last)
        else:
            source = joined(kind, [cast(kind, initial_state, wide.dtype), wide], last)
        out = _outputs(op, sizes, source, weight, bias, 0, extras)
    if explaining():
        return out
    out = out if wide is x else cast(kind, out, x.dtype)
    return (out, _last_inputs(sizes, x, initial_state)) if return_state else out


def _range(kind: ArrayKind, like: Array, count: int) -> Array:
    xp = library(kind)
    return xp.arange(count, device=like.device) if kind is TORCH else xp.arange(count)


def _along(kind: ArrayKind, array: Array, places: Array) -> Array:
    """Take elements of the last axis of ``(N, C, W)``, in all channels those at the places ``(N, count)``."""
    if kind is TORCH:
        return library(kind).take_along_dim(array, places[:, None], dim=2)
    return library(kind).take_along_axis(array, places[:, None], axis=2)


def _straight(sizes: Sequences, rows: Array, x: Array, last: bool) -> tuple[Array, Array]:
    """Return what the outputs of `x` read, and what `rows` of the state hold after it: two parts of both, joined."""
    length = sizes.kind.shape(rows)[2]
    whole = joined(sizes.kind, [rows, x], last)
    return whole[:, :, length - (sizes.width - 1) :], whole[:, :, sizes.seqlen :]


def _around(sizes: Sequences, rows: Array, x: Array, last: bool, cache_seqlens: Array) -> tuple[Array, Array]:
    """Return what :func:`_straight` does where `rows` are circular buffers."""
    kind, before, seqlen, length = sizes.kind, sizes.width - 1, sizes.seqlen, sizes.kind.shape(rows)[2]
    if length == 0:
        return x, rows
    places = cache_seqlens[:, None] + (_range(kind, rows, before) - before)[None]
    source = joined(kind, [_along(kind, rows, places % length), x], last)
    count = min(seqlen, length)
    if count == 0:
        return source, rows
    # Each place of a buffer says which of the new elements it gets: nothing is scattered, and no two meet.
    ages = (_range(kind, rows, length)[None] - cache_seqlens[:, None] - (seqlen - count)) % length
    written = ages < count
    found = _along(kind, x[:, :, seqlen - count :], ages * written)
    return source, library(kind).where(written[:, None], found, rows)


class _Entries:
    """Which rows of a larger state a batch has: those at `places`, but where `valid` is false, which is padding.

    Padding writes what another element of the batch writes to the same row, or where there is none what is there.
    """

    def __init__(self, kind: ArrayKind, indices: Array) -> None:
        xp = library(kind)
        self.where = xp.where
        self.valid = indices >= 0
        self.other = xp.argmax(indices, 0).reshape(1)  # of all indices the largest: padding only if all are
        places = self.where(self.valid, indices, indices[self.other])
        self.places = cast(kind, places * (places >= 0), xp.int64)

    def write(self, state: Array, rows: Array, new: Array) -> None:
        """Write `new` in place of what `state` had in its `rows`."""
        same = self.where(self.valid.any(), new[self.other], rows[self.other])
        state[self.places] = self.where(self.valid[:, None, None], new, same)


def causal_conv1d_update(
    x: Array,
    state: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    activation: str | None = None,
    cache_seqlens: Array | None = None,
    conv_state_indices: Array | None = None,
    precision: str | None = None,
    backend: str | None = None,
) -> Array:
    """Go on with sequences by one element or a few, as decoding does, and keep in `state` what the next step needs.

    Returns what :func:`causal_conv1d` returns for these elements of the whole sequence. This is
    ``causal_conv1d_update`` of the extension ``causal-conv1d``, for every width.

    Parameters
    ----------
    x
        ``(batch, dim)``, one element of each sequence, or ``(batch, dim, seqlen)``.
    state
        ``(batch, dim, state_len)`` with ``state_len >= width - 1``, of the dtype of `x`: the last elements before `x`,
        the newest last. Updated in place, to the last `state_len` elements after `x`; on an error it stays as it is.
        Gradients go through it as through any tensor that is written to.
    weight, bias, activation, precision, backend
        As in :func:`causal_conv1d`.
    cache_seqlens
        ``(batch,)``, int32 or int64. Where it is given, `state` is a circular buffer: `x` is written from place
        ``cache_seqlens % state_len`` on, and what was written before that stands before it.
    conv_state_indices
        ``(batch,)``, int32 or int64. Where it is given, `state` is ``(entries, dim, state_len)``, and each sequence of
        the batch has the entry of that number. No two may have the same. Negative is padding: the result there is 0,
        and no entry changes.

    Returns
    -------
    array
        Of the shape and dtype of `x`.

    Raises
    ------
    RuntimeError, TypeError, NotImplementedError
        As :func:`causal_conv1d`.
    ValueError
        As :func:`causal_conv1d`, and for a `state` that cannot be written to.
    IndexError
        For `conv_state_indices` beyond the entries, where arrays are on the CPU; a GPU does not look.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> w, state = np.ones((1, 3)), np.zeros((1, 1, 2))
    >>> [gpuconv.causal_conv1d_update(np.full((1, 1), step), state, w).item() for step in (1.0, 2.0, 3.0, 4.0)]
    [1.0, 3.0, 6.0, 9.0]
    >>> state
    array([[[3., 4.]]])
    """
    op = "causal_conv1d_update"
    sizes = update_arguments(op, x, state, weight, bias, cache_seqlens, conv_state_indices)
    kind, one = sizes.kind, len(sizes.kind.shape(x)) == 2
    extras = Extras(activation=activation_of(op, activation), precision=precision, backend=backend)
    lines = x[:, :, None] if one else x
    wide, weight, bias = _in_one_dtype(sizes, lines, _as_filters(kind, weight), bias)
    last = lines_last(kind, lines)
    if explaining():
        source = placeholder(kind, wide, (sizes.batch, sizes.dim, sizes.width - 1 + sizes.seqlen), last)
        return _outputs(op, sizes, source, weight, bias, 0, extras)
    entries = None if conv_state_indices is None or not sizes.batch else _Entries(kind, conv_state_indices)
    rows = state if entries is None else state[entries.places]
    if cache_seqlens is None:
        source, new = _straight(sizes, rows, lines, last)
    else:
        source, new = _around(sizes, rows, lines, last, cache_seqlens)
    out = _outputs(op, sizes, cast(kind, source, wide.dtype), weight, bias, 0, extras)
    out = out if wide is lines else cast(kind, out, x.dtype)
    if sizes.batch and sizes.seqlen:
        if entries is None:
            state[...] = new
        else:
            entries.write(state, rows, new)
    if entries is not None:
        out = masked(kind, entries.valid[:, None], out, last)
    return out.squeeze(2) if one else out
