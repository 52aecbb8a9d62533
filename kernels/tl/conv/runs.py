"""Convolution with few input channels: rows of tensor-core products over runs of neighbouring elements.

Of one input row a column of the result needs a run: the S C elements of a window's row where channels are innermost, S
elements of each channel's plane otherwise. Runs are read as they lie, nothing is copied or padded: an input row becomes
a tile [BLOCK_M, (t, c, e)], loaded once, multiplied by the weights of every filter row that meets it, and added to
the rows of the result that are still open. The weights are spread to the order of the runs by a pass of their own.

Neighbouring columns of the result need almost the same run: COLS of them share one, and their weights stand side by
side, each where its window begins, with zeros beside it. An infinity times such a zero is NaN, so sums that are not
finite are computed again, each from its own window.

The data gradient of stride 1 is such a convolution, of y with a window that is turned round. One that moves on by
more is one as well: neighbouring results, one of each phase of the stride, come from the same elements of y, each with
taps of its own, and stand side by side as filters do. A tap that a phase does not have is a zero, as beside a window.
"""

import triton
import triton.language as tl

from ..common import activate, stored
from .lanes import widened, within
from .rows import any_not_finite
from .runs_spread import has_tap, in_result, phases_of


def _repr(specialization):
    """Name the compiled kernel after what it is specialised for, so that a profiler shows it."""
    c = specialization.constants
    taps = f"{c['T']}x{c['R']}x{c['S']}"
    tile = f"{c['BLOCK_M']}x{c['COLS']}x{c['BLOCK_N'] // c['COLS']}"
    kind = "_dgrad" if c["GRAD"] else ""
    return f"_conv_runs_kernel{kind}_c{c['C']}_{taps}_{tile}_i{64 if c['INDEX64'] else 32}"


@triton.jit
def _run_tile(
    runs, reads, window, z, t, row, h, d, x_stride_d, x_stride_h, b: tl.constexpr,
    T: tl.constexpr, TIN: tl.constexpr, DILATION_D: tl.constexpr, UNIT: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Load the runs [BLOCK_M, (t, c, e)] of input row `row` and of the TIN slices of depth of block `b`."""
    inside = reads & (row >= 0) & (row < h)
    if T > 1:
        slice_ = z + (t + b * TIN) * DILATION_D
        inside = inside & (slice_ >= 0) & (slice_ < d) & (t + b * TIN < T)
    tile = tl.load(runs + (row * x_stride_h + b * TIN * DILATION_D * x_stride_d) * UNIT, mask=inside, other=0.0)
    if WHOLE:  # the mask of a vector is of one value, and has the window already
        return tile
    else:  # a weight of zero would not stop an infinity beside the window
        return tl.where(window, tile, 0.0)


@triton.jit
def _row_tiles(
    runs, reads, window, z, t, row, h, d, x_stride_d, x_stride_h,
    T: tl.constexpr, TIN: tl.constexpr, STRIDE_H: tl.constexpr, DILATION_D: tl.constexpr, UNIT: tl.constexpr,
    WHOLE: tl.constexpr,
):  # fmt: skip
    """Load what a step reads: STRIDE_H rows from `row` on, for every block of slices of depth."""
    tiles = ()
    for b in tl.static_range((T + TIN - 1) // TIN):
        for j in tl.static_range(STRIDE_H):
            tile = _run_tile(
                runs, reads, window, z, t, row + j, h, d, x_stride_d, x_stride_h, b, T, TIN, DILATION_D, UNIT, WHOLE
            )
            tiles = tiles + (tile,)
    return tiles


@triton.jit
def _pieces(products, BLOCK_M: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr):
    """Take products [BLOCK_M, (r, k)] apart into one tile per r, a power of two of them: registers get other names."""
    if ROWS == 1:
        return (products,)
    else:
        halves = products.reshape(BLOCK_M, 2, ROWS // 2 * BLOCK_N).permute(0, 2, 1)
        low, high = tl.split(halves)
        return _pieces(low, BLOCK_M, ROWS // 2, BLOCK_N) + _pieces(high, BLOCK_M, ROWS // 2, BLOCK_N)


@triton.jit
def _plus(total, pieces, r: tl.constexpr, R: tl.constexpr):
    """Add the products of filter row r to a row of the result, if there is such a filter row."""
    if r < R:
        return total + pieces[r]
    else:
        return total


@triton.jit
def _product(
    total, tile, weights, r: tl.constexpr, first: tl.constexpr, R: tl.constexpr,
    PRECISION: tl.constexpr, ACC_DTYPE: tl.constexpr,
):  # fmt: skip
    """Add the product of a tile and filter row r, if there is one, to a row of the result."""
    if r < R:
        return tl.dot(tile, weights[first + r], total, input_precision=PRECISION, out_dtype=ACC_DTYPE)
    else:
        return total


@triton.jit
def _add_rows(
    sums, tiles, weights, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCKS: tl.constexpr, ROWS: tl.constexpr,
    R: tl.constexpr, STRIDE_H: tl.constexpr, MERGED: tl.constexpr, PRECISION: tl.constexpr, ACC_DTYPE: tl.constexpr,
):  # fmt: skip
    """Add the rows of one step to the open rows of the result, of which the first is closed by it."""
    OPEN: tl.constexpr = (R + STRIDE_H - 1) // STRIDE_H
    for j in tl.static_range(STRIDE_H if MERGED else 0):
        products = tl.zeros([BLOCK_M, ROWS * BLOCK_N], ACC_DTYPE)
        for b in tl.static_range(BLOCKS):
            products = tl.dot(
                tiles[b * STRIDE_H + j], weights[b], products, input_precision=PRECISION, out_dtype=ACC_DTYPE
            )
        pieces = _pieces(products, BLOCK_M, ROWS, BLOCK_N)
        added = ()
        for m in tl.static_range(OPEN):
            added = added + (_plus(sums[m], pieces, STRIDE_H * (OPEN - 1 - m) + j, R),)
        sums = added
    for b in tl.static_range(0 if MERGED else BLOCKS):
        for j in tl.static_range(STRIDE_H):
            added = ()
            for m in tl.static_range(OPEN):
                total = _product(
                    sums[m], tiles[b * STRIDE_H + j], weights, STRIDE_H * (OPEN - 1 - m) + j, b * R, R,
                    PRECISION, ACC_DTYPE,
                )  # fmt: skip
                added = added + (total,)
            sums = added
    return sums


@triton.jit
def _row_written(
    keeps, at_p, phase_p, first, steps, p, STEP_P: tl.constexpr, OFFSET_P: tl.constexpr, REST_P: tl.constexpr
):
    """Tell which results of the rows that step `at_p` of a program closes are written."""
    written = keeps & (at_p >= first) & (at_p < first + steps) & (at_p < p)
    if OFFSET_P + REST_P > 0:
        written = written & in_result(at_p * STEP_P + phase_p - OFFSET_P, p, STEP_P, OFFSET_P, REST_P)
    return written


@triton.jit
def _finish(total, bias, scale, shift, residual, offset, written, ACTIVATION: tl.constexpr):
    """Return activation((total + bias) * scale + shift + residual); each may be None.

    `residual` holds pointers, which `offset` moves.
    """
    total = stored(total, ACTIVATION)
    if bias is not None:
        total = stored(total + bias, ACTIVATION)
    if scale is not None:
        total = stored(total * scale, ACTIVATION)
    if shift is not None:
        total = stored(total + shift, ACTIVATION)
    if residual is not None:
        added = tl.load(residual + offset, mask=written, other=0.0).to(total.dtype)
        total = stored(total + added, ACTIVATION)
    return activate(total, ACTIVATION)


@triton.jit
def _of_channels(ptr, channel, stride, k, ACC_DTYPE: tl.constexpr):
    """Load one number per channel, or None without a pointer."""
    values = ptr
    if ptr is not None:
        values = tl.load(ptr + channel * stride, mask=channel < k, other=0.0).to(ACC_DTYPE)
    return values


@triton.jit
def _rows_directly(
    images, weights, column, z, result, residual, bias, scale, shift, keeps, phase_o, phase_p, phase_q, first, steps,
    d, h, width, p, x_stride_c, x_stride_d, x_stride_h, x_stride_w, y_stride_p, residual_stride_p, pad_h,
    C: tl.constexpr, T: tl.constexpr, R: tl.constexpr, S: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    DILATION_D: tl.constexpr, PAD_W: tl.constexpr, PLANES: tl.constexpr, RUN: tl.constexpr, CHANNELS: tl.constexpr,
    SLICES: tl.constexpr, ROWS: tl.constexpr, GRAD: tl.constexpr, STEP_O: tl.constexpr, STEP_P: tl.constexpr,
    STEP_Q: tl.constexpr, OFFSET_P: tl.constexpr, REST_P: tl.constexpr, TOP_D: tl.constexpr, TOP_H: tl.constexpr,
    TOP_W: tl.constexpr, TAPS_D: tl.constexpr, TAPS_H: tl.constexpr, TAPS_W: tl.constexpr, ACTIVATION: tl.constexpr,
    ACC_DTYPE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Compute the rows of a program element by element, each from the elements of its own window alone.

    `images` [BLOCK_M, 1] and `weights` [1, BLOCK_N] hold pointers, to images and to where a column's window begins in
    the spread weights; `column` and the result are [BLOCK_M, BLOCK_N].
    What lies outside of x is a zero that the forward pass multiplies, and nothing to a gradient, as a tap is that a
    phase does not have.
    """
    DEPTH: tl.constexpr = SLICES * CHANNELS * RUN
    none = first >> 30 >> 1  # which the compiler does not know: it would unroll loops over taps
    for at_p in range(first, first + steps):
        written = _row_written(keeps, at_p, phase_p, first, steps, p, STEP_P, OFFSET_P, REST_P)  # [BLOCK_M, BLOCK_N]
        total = tl.zeros([BLOCK_M, BLOCK_N], ACC_DTYPE)
        for tap in range(none, T * R * S):
            t = tap // (R * S)
            r = tap // S % R
            s = tap % S
            at_d = z + t * DILATION_D  # [BLOCK_M, 1]
            at_h = at_p * STRIDE_H - pad_h + r
            at_w = column * STRIDE_W - PAD_W + s  # [BLOCK_M, BLOCK_N]
            reads = written & within(at_d, d) & within(at_h, h) & within(at_w, width)
            if STEP_O * STEP_P * STEP_Q > 1:
                reads = reads & has_tap(TOP_D - STEP_O * t + phase_o, TAPS_D)
                reads = reads & has_tap(TOP_H - STEP_P * r + phase_p, TAPS_H)
                reads = reads & has_tap(TOP_W - STEP_Q * s + phase_q, TAPS_W)
            here = images + at_d * x_stride_d + at_h * x_stride_h + at_w * x_stride_w
            filters = weights + (t // SLICES * ROWS + r) * (DEPTH * BLOCK_N) + t % SLICES * (CHANNELS * RUN * BLOCK_N)
            for c in range(none, C):
                value = tl.load(here + c * x_stride_c, mask=reads, other=0.0)
                from_run = c * RUN + s if PLANES else s * C + c
                weight = tl.load(
                    filters + from_run * BLOCK_N + tl.zeros([BLOCK_M, 1], tl.int32), mask=reads if GRAD else written,
                    other=0.0,
                )  # fmt: skip
                total += value.to(ACC_DTYPE) * weight.to(ACC_DTYPE)
        value = _finish(total, bias, scale, shift, residual, at_p * residual_stride_p, written, ACTIVATION)
        tl.store(result + at_p * y_stride_p, value.to(result.dtype.element_ty), mask=written)


@triton.jit
def _across(at_q, group, channel, lane, stride_q, stride_k, BLOCK_N: tl.constexpr, SIDE: tl.constexpr):
    """Return offsets [BLOCK_M, BLOCK_N] into a row of the result; with SIDE the lanes of a group are one run."""
    if SIDE:
        return group * BLOCK_N + lane
    else:
        return at_q * stride_q + channel * stride_k


@triton.jit(repr=_repr)
def _conv_runs_kernel(
    x_ptr,
    spread_ptr,
    y_ptr,
    bias_ptr,
    scale_ptr,
    shift_ptr,
    residual_ptr,
    n,
    k,
    d,
    h,
    row_size,
    o,
    p,
    q,
    tiles_m,
    tiles_n,
    steps,
    x_stride_n,
    x_stride_c,
    x_stride_d,
    x_stride_h,
    x_stride_w,
    y_stride_n,
    y_stride_k,
    y_stride_o,
    y_stride_p,
    y_stride_q,
    residual_stride_n,
    residual_stride_k,
    residual_stride_o,
    residual_stride_p,
    residual_stride_q,
    bias_stride,
    scale_stride,
    shift_stride,
    pad_d,
    pad_h,
    C: tl.constexpr,
    T: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    STRIDE_D: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    DILATION_D: tl.constexpr,
    PAD_W: tl.constexpr,
    PLANES: tl.constexpr,
    DENSE: tl.constexpr,
    LEAD: tl.constexpr,
    RUN: tl.constexpr,
    CHANNELS: tl.constexpr,
    SLICES: tl.constexpr,
    VEC: tl.constexpr,
    UNIT: tl.constexpr,
    LAST_OUT: tl.constexpr,
    RESULT_UNIT: tl.constexpr,
    COLS: tl.constexpr,
    EVEN_Q: tl.constexpr,
    SIDE: tl.constexpr,
    RESIDUAL_SIDE: tl.constexpr,
    GRAD: tl.constexpr,
    FILTERS: tl.constexpr,
    STEP_O: tl.constexpr,
    STEP_P: tl.constexpr,
    STEP_Q: tl.constexpr,
    OFFSET_O: tl.constexpr,
    OFFSET_P: tl.constexpr,
    OFFSET_Q: tl.constexpr,
    REST_O: tl.constexpr,
    REST_P: tl.constexpr,
    REST_Q: tl.constexpr,
    TOP_D: tl.constexpr,
    TOP_H: tl.constexpr,
    TOP_W: tl.constexpr,
    TAPS_D: tl.constexpr,
    TAPS_H: tl.constexpr,
    TAPS_W: tl.constexpr,
    MERGED: tl.constexpr,
    ROWS: tl.constexpr,
    UNROLL: tl.constexpr,
    AHEAD: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC_DTYPE: tl.constexpr,
    INDEX64: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Compute y = activation((conv(x, w) + bias) * scale + shift + residual) of one group, with few input channels.

    GEMM view: rows M = N O cdiv(Q, COLS), each COLS positions of a row of the result, columns N = COLS K (BLOCK_N of
    BLOCK_N / COLS filters, the position first), reduction (t, c, e) of one input row: SLICES slices of depth at a time;
    with PLANES, CHANNELS >= C planes; RUN >= LEAD + W elements (LEAD + W C without PLANES) of the W = (COLS - 1)
    STRIDE_W + S input columns that COLS windows have, of which those before the windows make loads begin at multiples
    of VEC. All three are powers of two.
    A program goes down `steps` rows of the result. Of each input row it adds the products with filter row r to the open
    row that this meets: OPEN = ceil(R / STRIDE_H) rows, in registers; MERGED: one product with all filter rows.
    Tensors: x [N, C, D, H, W], y and residual [N, K, O, P, Q] by strides in elements; spread [tiles of K, blocks of
    slices, ROWS, (t, c, e), BLOCK_N], the weights, see `_conv_runs_spread_kernel`; bias, scale, shift [K] or None.
    DENSE: elements of a run lie side by side; otherwise they are read by their strides.
    Units: strides of x, but not those along W (and without PLANES not those along C), and `row_size`, the elements of
    a row of runs, are given divided by UNIT; strides of y and residual along N, O, P, with LAST_OUT that along Q and
    `k`, otherwise that along K and `q`, divided by RESULT_UNIT. EVEN_Q: COLS divides Q. SIDE, RESIDUAL_SIDE: the COLS
    positions of all K = BLOCK_N / COLS channels lie side by side. GRAD: the pass is a data gradient (``x`` is its
    y), in which nothing is multiplied outside of x.
    Phases: of a gradient that moves on by STEP_O, STEP_P, STEP_Q the filters are (phases, FILTERS channels), one of
    each of the STEP results of an axis, and O, P, Q count steps. Result ``STEP q + phase - OFFSET`` of an axis has tap
    ``TOP - STEP s + phase`` of TAPS where the forward pass has tap s; OFFSET results before the first step's and REST
    after the last's are not there. Strides of y and residual are those of results.
    Grid: (tiles_n * tiles_m * chunks,), with chunks of `steps` rows of the result.
    """
    BLOCKS: tl.constexpr = (T + SLICES - 1) // SLICES
    DEPTH: tl.constexpr = SLICES * CHANNELS * RUN
    OPEN: tl.constexpr = (R + STRIDE_H - 1) // STRIDE_H
    BLOCK_K: tl.constexpr = BLOCK_N // COLS
    USED: tl.constexpr = (COLS - 1) * STRIDE_W + S if PLANES else ((COLS - 1) * STRIDE_W + S) * C
    WHOLE: tl.constexpr = (LEAD % VEC == 0) and (USED % VEC == 0) and DENSE
    UNIT_Q: tl.constexpr = 1 if LAST_OUT else RESULT_UNIT
    UNIT_K: tl.constexpr = RESULT_UNIT if LAST_OUT else 1
    EXACT: tl.constexpr = COLS > 1 or GRAD
    PHASES: tl.constexpr = STEP_O * STEP_P * STEP_Q
    row_size = row_size * UNIT
    x_stride_d = widened(x_stride_d, INDEX64)
    q = q * UNIT_Q
    k = k * UNIT_K
    pid = tl.program_id(0)
    tile_n = pid % tiles_n
    pid = pid // tiles_n
    tile_m = pid % tiles_m
    first = pid // tiles_m * steps
    position = tl.arange(0, BLOCK_M)[:, None]  # [BLOCK_M, 1]
    reduced = tl.arange(0, DEPTH)[None, :]  # [1, DEPTH]
    lane = tl.arange(0, BLOCK_N)[None, :]  # [1, BLOCK_N]
    channel = tile_n * BLOCK_K + lane % BLOCK_K
    if INDEX64:
        tile_m = tile_m.to(tl.int64)
        first = first.to(tl.int64)
        reduced = reduced.to(tl.int64)
        channel = channel.to(tl.int64)
    position = tile_m * BLOCK_M + position
    groups = tl.cdiv(q, COLS)
    group = position % groups
    image = position // groups
    column = group  # [BLOCK_M, 1]
    if COLS > 1:
        column = group * COLS + lane // BLOCK_K  # [BLOCK_M, BLOCK_N]
    o_ = image % o
    image = image // o
    live = image < n  # [BLOCK_M, 1]

    e = reduced % RUN
    c = reduced // RUN % CHANNELS
    t = reduced // (RUN * CHANNELS)
    window = (e >= LEAD) & (e < LEAD + USED)
    if PLANES:
        at = group * (COLS * STRIDE_W) + (e - (PAD_W + LEAD))  # [BLOCK_M, DEPTH], the place in a row
    else:
        at = group * (COLS * STRIDE_W * C) + (e - (PAD_W * C + LEAD))
    reads = live & (at >= 0) & (at < row_size)
    if PLANES:
        reads = reads & (c < C)
    if WHOLE or not DENSE:
        reads = reads & window
    z = o_ * STRIDE_D - pad_d  # [BLOCK_M, 1]
    if T == 1:
        reads = reads & (z >= 0) & (z < d)
    runs = x_ptr + (image * x_stride_n + z * x_stride_d) * UNIT + t * (DILATION_D * x_stride_d * UNIT)
    if PLANES:
        runs += c * (x_stride_c * UNIT)
        if DENSE:
            runs += at
        else:
            runs += at * x_stride_w
    else:
        if DENSE:
            runs += at
        else:
            runs += (group * (COLS * STRIDE_W) + ((e - LEAD) // C - PAD_W)) * x_stride_w + (e - LEAD) % C * x_stride_c

    spread = spread_ptr + tile_n * (BLOCKS * ROWS * DEPTH * BLOCK_N)
    weights = ()
    for b in tl.static_range(BLOCKS if MERGED else 0):  # [DEPTH, (r, k)]
        side = tl.arange(0, ROWS * BLOCK_N)[None, :]
        at_weight = (b * ROWS + side // BLOCK_N) * (DEPTH * BLOCK_N) + side % BLOCK_N
        weights = weights + (tl.load(spread + (at_weight + tl.arange(0, DEPTH)[:, None] * BLOCK_N)),)
    for b in tl.static_range(0 if MERGED else BLOCKS):
        for r in tl.static_range(R):  # [DEPTH, BLOCK_N]
            at_weight = tl.arange(0, DEPTH)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
            weights = weights + (tl.load(spread + ((b * ROWS + r) * (DEPTH * BLOCK_N) + at_weight)),)

    keeps = live & (channel < k)
    if SIDE:  # every filter is in the tile
        keeps = live & tl.full([1, BLOCK_N], True, tl.int1)
    if not EVEN_Q:
        keeps = keeps & (column < q)
    at_o = o_
    at_q = column
    phase_o = lane * 0  # [1, BLOCK_N]
    phase_p = phase_o
    phase_q = phase_o
    if PHASES > 1:
        phase_o, phase_p, phase_q = phases_of(channel, FILTERS, STEP_P, STEP_Q)
        channel = channel % FILTERS
        at_o = o_ * STEP_O + phase_o - OFFSET_O  # [BLOCK_M, BLOCK_N]
        at_q = column * STEP_Q + phase_q - OFFSET_Q
        if OFFSET_O + REST_O > 0:
            keeps = keeps & in_result(at_o, o, STEP_O, OFFSET_O, REST_O)
        if OFFSET_Q + REST_Q > 0:
            keeps = keeps & in_result(at_q, q, STEP_Q, OFFSET_Q, REST_Q)
    bias = _of_channels(bias_ptr, channel, bias_stride, k, ACC_DTYPE)
    scale = _of_channels(scale_ptr, channel, scale_stride, k, ACC_DTYPE)
    shift = _of_channels(shift_ptr, channel, shift_stride, k, ACC_DTYPE)
    result = y_ptr + (image * y_stride_n + at_o * y_stride_o) * RESULT_UNIT
    result = result + _across(at_q, group, channel, lane, y_stride_q * UNIT_K, y_stride_k * UNIT_Q, BLOCK_N, SIDE)
    residual = residual_ptr
    if residual_ptr is not None:
        residual = residual_ptr + (image * residual_stride_n + at_o * residual_stride_o) * RESULT_UNIT
        residual = residual + _across(
            at_q, group, channel, lane, residual_stride_q * UNIT_K, residual_stride_k * UNIT_Q, BLOCK_N, RESIDUAL_SIDE
        )
    step_y = widened(y_stride_p, INDEX64) * (RESULT_UNIT * STEP_P)
    step_residual = widened(residual_stride_p, INDEX64) * (RESULT_UNIT * STEP_P)
    if PHASES > 1:
        result = result + (phase_p - OFFSET_P) * (y_stride_p * RESULT_UNIT)
        if residual_ptr is not None:
            residual = residual + (phase_p - OFFSET_P) * (residual_stride_p * RESULT_UNIT)

    still_open = ()
    for _ in tl.static_range(OPEN - 1):
        still_open = still_open + (tl.zeros([BLOCK_M, BLOCK_N], ACC_DTYPE),)
    zeros = tl.zeros([BLOCK_M, BLOCK_N], ACC_DTYPE)
    ahead = ()
    if AHEAD:
        ahead = _row_tiles(
            runs, reads, window, z, t, first * STRIDE_H - pad_h, h, d, x_stride_d, x_stride_h,
            T, SLICES, STRIDE_H, DILATION_D, UNIT, WHOLE,
        )  # fmt: skip
    for i in range(0, steps + OPEN - 1, UNROLL):  # with UNROLL = OPEN open rows get other names instead of moving
        for u in tl.static_range(UNROLL):
            step = first + i + u  # the step that closes row `at_p`
            loaded = _row_tiles(
                runs, reads, window, z, t, (step + AHEAD) * STRIDE_H - pad_h, h, d, x_stride_d, x_stride_h,
                T, SLICES, STRIDE_H, DILATION_D, UNIT, WHOLE,
            )  # fmt: skip
            tiles = ahead if AHEAD else loaded
            ahead = loaded if AHEAD else ()
            sums = still_open + (tl.zeros([BLOCK_M, BLOCK_N], ACC_DTYPE),)
            sums = _add_rows(
                sums, tiles, weights, BLOCK_M, BLOCK_N, BLOCKS, ROWS, R, STRIDE_H, MERGED, PRECISION, ACC_DTYPE
            )
            if EXACT:
                zeros += sums[0] * 0.0  # NaN from now on where a sum is not finite
            at_p = step - (OPEN - 1)
            written = _row_written(keeps, at_p, phase_p, first, steps, p, STEP_P, OFFSET_P, REST_P)
            value = _finish(sums[0], bias, scale, shift, residual, at_p * step_residual, written, ACTIVATION)
            tl.store(result + at_p * step_y, value.to(y_ptr.dtype.element_ty), mask=written)
            still_open = sums[1:]
    if EXACT:
        if any_not_finite(zeros):
            begins = LEAD + lane // BLOCK_K * (STRIDE_W if PLANES else STRIDE_W * C)
            _rows_directly(
                x_ptr + image * x_stride_n * UNIT, spread + begins * BLOCK_N + lane, column + lane * 0, z, result,
                residual, bias, scale, shift, keeps, phase_o, phase_p, phase_q, first, steps,
                d, h, row_size if PLANES else row_size // C, p, x_stride_c * (UNIT if PLANES else 1),
                x_stride_d * UNIT, x_stride_h * UNIT, x_stride_w, step_y, step_residual, pad_h,
                C, T, R, S, STRIDE_H, STRIDE_W, DILATION_D, PAD_W, PLANES, RUN, CHANNELS, SLICES, ROWS, GRAD,
                STEP_O, STEP_P, STEP_Q, OFFSET_P, REST_P, TOP_D, TOP_H, TOP_W, TAPS_D, TAPS_H, TAPS_W,
                ACTIVATION, ACC_DTYPE, BLOCK_M, BLOCK_N,
            )  # fmt: skip
