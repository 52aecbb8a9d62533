"""Device functions of the marching kernels: what a lane does, and a gradient tap by tap."""

import triton
import triton.language as tl

from ..common import activate, stored
from .lanes import join_columns, load_rows, widen, within


@triton.jit
def _feed(
    total, columns, taps, c: tl.constexpr, r: tl.constexpr, z: tl.constexpr,
    R: tl.constexpr, S: tl.constexpr, AW: tl.constexpr, UW: tl.constexpr, LEAD: tl.constexpr, SHIFT: tl.constexpr,
    GRAD: tl.constexpr,
):  # fmt: skip
    """Add row r of the window to column c of a row of the result; `columns` begin at SHIFT.

    In a gradient of stride UW, source column i adds to columns UW i + s - LEAD: LEAD is the padding modulo UW.
    """
    if r >= 0 and r < R:
        for s in tl.static_range(S):
            if UW > 1:
                if (c + LEAD - s) % UW == 0:
                    total += columns[(c + LEAD - s) // UW - SHIFT] * taps[(z * R + r) * S + s]
            elif GRAD:
                total += columns[c + S - 1 - s - SHIFT] * taps[(z * R + r) * S + s]
            else:
                total += columns[AW * c + s - SHIFT] * taps[(z * R + r) * S + s]
    return total


@triton.jit
def _finish(total, bias, scale, shift, residual, written, ACTIVATION: tl.constexpr):
    """Return activation((total + bias) * scale + shift + residual); `residual` holds pointers. Each may be None."""
    total = stored(total, ACTIVATION)
    if bias is not None:
        total = stored(total + bias, ACTIVATION)
    if scale is not None:
        total = stored(total * scale, ACTIVATION)
    if shift is not None:
        total = stored(total + shift, ACTIVATION)
    if residual is not None:
        total = stored(total + tl.load(residual, mask=written, other=0.0).to(total.dtype), ACTIVATION)
    return activate(total, ACTIVATION)


@triton.jit
def moved(ptr, offset):
    """Return pointers moved by an offset, or None without them."""
    to = ptr
    if ptr is not None:
        to = ptr + offset
    return to


@triton.jit
def march(
    source, w, result, residual, bias, scale, shift, live, column, result_column, first, steps, slices,
    height, width, result_height, result_width, source_row, source_row_pitch, source_column_pitch, result_row,
    result_row_pitch, result_column_pitch, source_stride_h, source_stride_w, result_stride_h, result_stride_w,
    residual_stride_h, residual_stride_w, w_stride_r, w_stride_s,
    R: tl.constexpr, S: tl.constexpr, A: tl.constexpr, U: tl.constexpr, AW: tl.constexpr, UW: tl.constexpr,
    LEAD: tl.constexpr, TQ: tl.constexpr, SLICES: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr,
    SHIFT: tl.constexpr,
    GRAD: tl.constexpr, DEPTH: tl.constexpr, AHEAD: tl.constexpr, ACTIVATION: tl.constexpr, ACC_DTYPE: tl.constexpr,
    VEC: tl.constexpr, VO: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """March `steps` steps from `first`; pointers are the lanes' own, at row 0.

    An open row e of the result (0: closed by this step) takes row A (M - 1 - e) + j of the window from source row j of
    the step, a gradient row e.
    """
    M: tl.constexpr = (R + A - 1) // A  # rows of the result that a step of the forward pass adds to
    E: tl.constexpr = M if M > U else U
    WARM: tl.constexpr = (E + U - 1) // U - 1  # steps before `first` that add to its rows
    ROW: tl.constexpr = LAST - FIRST
    taps = ()
    for z in tl.static_range(SLICES):
        there = live
        if GRAD and DEPTH:  # else its taps may lie behind those of w
            there = live & slices[2 * SLICES + z]
        for r in tl.static_range(R):
            for s in tl.static_range(S):
                tap = w + (slices[SLICES + z] + r * w_stride_r + s * w_stride_s)
                taps = taps + (tl.load(tap, mask=there, other=0.0).to(ACC_DTYPE),)
    still_open = ()
    for _ in tl.static_range((E - U) * TQ):
        still_open = still_open + (tl.zeros(live.shape, ACC_DTYPE),)
    if AHEAD:
        next_rows = load_rows(
            source, live, source_row + A * (first - WARM) * source_row_pitch, source_row_pitch, height,
            source_stride_h, column, source_column_pitch, width, source_column_pitch * source_stride_w, slices,
            A, SLICES, FIRST, LAST, VEC, DEPTH,
        )  # fmt: skip
    for i in range(0, steps + WARM):
        step = first + (i - WARM)
        loaded = load_rows(
            source, live, source_row + A * (step + AHEAD) * source_row_pitch, source_row_pitch, height,
            source_stride_h, column, source_column_pitch, width, source_column_pitch * source_stride_w, slices,
            A, SLICES, FIRST, LAST, VEC, DEPTH,
        )  # fmt: skip
        rows = next_rows if AHEAD else loaded
        if AHEAD:
            next_rows = loaded
        sums = still_open
        for _ in tl.static_range(U * TQ):
            sums = sums + (tl.zeros(live.shape, ACC_DTYPE),)
        for z in tl.static_range(SLICES):
            for j in tl.static_range(A):
                columns = widen(rows[(z * A + j) * ROW : (z * A + j + 1) * ROW], ACC_DTYPE, VEC, LANES)
                added = ()
                for e in tl.static_range(E):
                    for c in tl.static_range(TQ):
                        total = _feed(
                            sums[e * TQ + c], columns, taps, c, e if GRAD else A * (M - 1 - e) + j, z,
                            R, S, AW, UW, LEAD, SHIFT, GRAD,
                        )  # fmt: skip
                        added = added + (total,)
                sums = added
        for u in tl.static_range(U):
            at = result_row + (U * step + u) * result_row_pitch
            closed = live & (step >= first) & within(at, result_height)
            for g in tl.static_range(TQ // VO):
                beside = g * VO * result_column_pitch
                written = closed & within(result_column + beside, result_width)
                of_residual = moved(residual, at * residual_stride_h + beside * residual_stride_w)
                if VO == 1:
                    value = sums[u * TQ + g]
                else:
                    value = join_columns(sums[u * TQ + g * VO : u * TQ + (g + 1) * VO], VO, LANES)
                    written = written[:, None]
                value = _finish(value, bias, scale, shift, of_residual, written, ACTIVATION)
                to = result + (at * result_stride_h + beside * result_stride_w)
                tl.store(to, value.to(result.dtype.element_ty), mask=written)
        still_open = sums[U * TQ :]


@triton.jit
def not_finite(
    w, live, slices, w_stride_r, w_stride_s, R: tl.constexpr, S: tl.constexpr, SLICES: tl.constexpr, DEPTH: tl.constexpr
):
    """Return how many lanes of a program have a weight that is no finite number."""
    zeros = tl.zeros(live.shape, tl.float32)
    for z in tl.static_range(SLICES):
        there = live
        if DEPTH:
            there = live & slices[2 * SLICES + z]
        for r in tl.static_range(R):
            for s in tl.static_range(S):
                tap = tl.load(w + (slices[SLICES + z] + r * w_stride_r + s * w_stride_s), mask=there, other=0.0)
                zeros += (tap * 0.0).to(tl.float32)  # NaN where the tap is not finite
    return tl.sum(tl.reshape((zeros != zeros).to(tl.int32), [zeros.numel]))


@triton.jit
def gradient_directly(
    source, w, result, residual, bias, scale, shift, live, lanes, result_column, first, steps, slices,
    height, width, result_height, result_width, result_row, result_row_pitch, result_column_pitch, pad_h, pad_w,
    source_stride_h, source_stride_w, result_stride_h, result_stride_w, residual_stride_h, residual_stride_w,
    w_stride_r, w_stride_s,
    R: tl.constexpr, S: tl.constexpr, U: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr, TQ: tl.constexpr, SLICES: tl.constexpr, DEPTH: tl.constexpr,
    ACTIVATION: tl.constexpr, ACC_DTYPE: tl.constexpr,
):  # fmt: skip
    """Do what :func:`march` does for a gradient, tap by tap: what is not in the source is multiplied by nothing.

    For the weights of `lanes` lanes that are not finite, whose product with a zero is NaN. Pointers are those of the
    lanes' planes.
    """
    none = lanes >> 20  # which the compiler does not know: it would unroll loops over taps
    for step in range(first, first + steps):
        for place in range(0, U * TQ + none):
            at = result_row + (U * step + place // TQ) * result_row_pitch
            q = result_column + place % TQ * result_column_pitch
            written = live & within(at, result_height) & within(q, result_width)
            total = tl.zeros(live.shape, ACC_DTYPE)
            for z in tl.static_range(SLICES):
                for tap in range(0, R * S + none):
                    r = tap // S
                    s = tap % S
                    from_h = at + pad_h - r * DILATION_H
                    from_w = q + pad_w - s * DILATION_W
                    h = from_h // STRIDE_H
                    i = from_w // STRIDE_W
                    reads = written & (from_h % STRIDE_H == 0) & (from_w % STRIDE_W == 0)
                    reads = reads & (from_h >= 0) & (h < height) & (from_w >= 0) & (i < width)
                    if DEPTH:
                        reads = reads & slices[2 * SLICES + z]
                    value = tl.load(
                        source + (slices[z] + h * source_stride_h + i * source_stride_w), mask=reads, other=0.0
                    ).to(ACC_DTYPE)
                    weight = tl.load(
                        w + (slices[SLICES + z] + r * w_stride_r + s * w_stride_s), mask=reads, other=0.0
                    ).to(ACC_DTYPE)
                    total += value * weight  # both 0 outside
            of_residual = moved(residual, at * residual_stride_h + q * residual_stride_w)
            total = _finish(total, bias, scale, shift, of_residual, written, ACTIVATION)
            to = result + (at * result_stride_h + q * result_stride_w)
            tl.store(to, total.to(result.dtype.element_ty), mask=written)
