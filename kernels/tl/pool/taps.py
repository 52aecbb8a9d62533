"""From positions in a plane to taps of windows, which is what passes over one axis after another tell apart."""

import triton
import triton.language as tl

from .common import positions, tap_of
from .names import taps_metadata, taps_name


def _repr(specialization):
    """Name the compiled kernel after what it is specialised for, so that a profiler shows it."""
    return taps_name("_pool_max_taps_kernel", specialization.constants)


@triton.jit(repr=_repr, launch_metadata=taps_metadata)
def _pool_max_taps_kernel(
    indices_ptr,
    taps_ptr,
    conflict_ptr,
    n,
    c,
    d,
    h,
    w,
    o,
    p,
    q,
    indices_stride_n,
    indices_stride_c,
    indices_stride_o,
    indices_stride_p,
    indices_stride_q,
    y_stride_n,
    y_stride_c,
    y_stride_o,
    y_stride_p,
    y_stride_q,
    pad_d,
    pad_h,
    pad_w,
    T: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    STRIDE_D: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    DILATION_D: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    INDEX64: tl.constexpr,
    CHANNELS_INNERMOST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """Compute the tap ``(t R + r) S + s`` that reads the position ``(d H + h) W + w`` which a window has in `indices`.

    It is -1 where no tap of the window does: such a window gives its gradient to no element.
    Tensors: indices [N, C, O, P, Q] and taps of the same shape (strides `y_stride_*`), by strides in elements; the
    first program stores 0 in `conflict`, one int32, for the launches that come after.
    Dtypes: int64 to any signed integer type that holds every tap.
    Grid: (cdiv(rows, BLOCK_M) * cdiv(lanes, BLOCK_L),), see `positions`. INDEX64 computes offsets in 64 bits.
    """
    i_n, i_c, i_o, i_p, i_q, inside = positions(n, c, o, p, q, INDEX64, CHANNELS_INNERMOST, BLOCK_M, BLOCK_L)
    offset = i_n * indices_stride_n + i_c * indices_stride_c
    offset += i_o * indices_stride_o + i_p * indices_stride_p + i_q * indices_stride_q
    position = tl.load(indices_ptr + offset, mask=inside, other=-1)  # [BLOCK_M, BLOCK_L]
    # Any number may come in: those that no plane has must not be cut off to one that it has.
    exists = (position >= 0) & (position < tl.cast(d, tl.int64) * h * w)
    position = tl.where(exists, position, 0).to(tl.int64 if INDEX64 else tl.int32)
    line = position // w
    t, reads_t = tap_of(line // h, i_o, pad_d, T, STRIDE_D, DILATION_D)
    r, reads_r = tap_of(line % h, i_p, pad_h, R, STRIDE_H, DILATION_H)
    s, reads_s = tap_of(position % w, i_q, pad_w, S, STRIDE_W, DILATION_W)
    tap = tl.where(exists & reads_t & reads_r & reads_s, (t * R + r) * S + s, -1)
    offset = i_n * y_stride_n + i_c * y_stride_c + (i_o * y_stride_o + i_p * y_stride_p + i_q * y_stride_q)
    tl.store(taps_ptr + offset, tap.to(taps_ptr.dtype.element_ty), mask=inside)
    if tl.program_id(0) == 0:
        tl.store(conflict_ptr, 0)
