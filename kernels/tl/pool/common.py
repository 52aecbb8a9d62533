"""Device functions that the pooling kernels share: tiles of positions, windows along an axis, and divisors.

A window kernel pools every axis at once (AXIS = 3), or one axis (AXIS = 0, 1, 2 for D, H, W) as a pass of a separable
pool. Passes go forward W, H, D, over tensors N C with the sizes D H W, then D H Q, D P Q and O P Q; backward they go
the other way.
"""

import triton
import triton.language as tl

from ..common import four_axes


@triton.jit
def positions(
    n,
    c,
    size_d,
    size_h,
    size_w,
    INDEX64: tl.constexpr,
    CHANNELS_INNERMOST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """Return batch, channel and spatial position of the elements of a program's tile, and which of them exist.

    The tile has BLOCK_M rows of BLOCK_L lanes. Lanes are channels or, without CHANNELS_INNERMOST, positions along the
    last axis; rows are the other axes, flattened. Each result is [BLOCK_M, 1], [1, BLOCK_L] or, the last, both.
    """
    tile = tl.program_id(0)
    if INDEX64:
        tile = tile.to(tl.int64)
        size_w = size_w.to(tl.int64)
    lanes = c if CHANNELS_INNERMOST else size_w
    tiles_l = tl.cdiv(lanes, BLOCK_L)
    lane = (tile % tiles_l * BLOCK_L + tl.arange(0, BLOCK_L))[None, :]
    row = (tile // tiles_l * BLOCK_M + tl.arange(0, BLOCK_M))[:, None]
    if CHANNELS_INNERMOST:
        i_n, i_d, i_h, i_w = four_axes(row, size_d, size_h, size_w)
        i_c = lane
    else:
        i_n, i_c, i_d, i_h = four_axes(row, c, size_d, size_h)
        i_w = lane
    return i_n, i_c, i_d, i_h, i_w, (lane < lanes) & (i_n < n)


@triton.jit
def window_start(i, pad, STRIDE: tl.constexpr, POOLED: tl.constexpr):
    """Return the coordinate of the first tap of window `i`, which is `i` itself along an axis that is not pooled."""
    if POOLED:
        i = i * STRIDE - pad
    return i


@triton.jit
def taps_before(start, DILATION: tl.constexpr):
    """Return how many taps of a window that begins at coordinate `start` lie before the input."""
    return (tl.maximum(-start, 0) + (DILATION - 1)) // DILATION


@triton.jit
def inside_plane(
    position,
    d,
    h,
    w,
    DILATION_D: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
):
    """Return a position that some element of the plane has: a dilated window may have taps in the padding alone."""
    if DILATION_D > 1 or DILATION_H > 1 or DILATION_W > 1:
        position = tl.minimum(position, tl.cast(d, position.dtype) * h * w - 1)
    return position


@triton.jit
def window_count(
    i,
    size,
    pad,
    pad_high,
    TAPS: tl.constexpr,
    STRIDE: tl.constexpr,
    DILATION: tl.constexpr,
    INCLUDE_PAD: tl.constexpr,
):
    """Return how many taps of window `i` count in its divisor, along one axis.

    With INCLUDE_PAD those up to the end of the padding: what ceil mode adds beyond it never counts.
    """
    start = i * STRIDE - pad
    if INCLUDE_PAD:
        end = tl.minimum(start + (TAPS - 1) * DILATION + 1, size + pad_high)
        count = (end - start + (DILATION - 1)) // DILATION
    else:
        reach = tl.maximum(size - start, 0)  # taps before the end of the input are those below reach / DILATION
        count = tl.minimum((reach + (DILATION - 1)) // DILATION, TAPS) - taps_before(start, DILATION)
        count = tl.maximum(count, 0)
    return count


@triton.jit
def tap_of(i, window, pad, TAPS: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr):
    """Return which tap of a window reads coordinate `i` along an axis, and whether one does."""
    distance = i + pad - window * STRIDE
    tap = distance // DILATION
    return tap, (distance >= 0) & (tap < TAPS) & (tap * DILATION == distance)


@triton.jit
def first_window(i, pad, TAPS: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr):
    """Return the first of the ``(TAPS - 1) * DILATION // STRIDE + 1`` windows that may read coordinate `i`."""
    return (i + pad) // STRIDE - (TAPS - 1) * DILATION // STRIDE
