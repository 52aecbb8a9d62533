"""Forward convolution with few input channels: rows of tensor-core products over runs of neighbouring elements.

Of one input row a column of the result needs a run: the S C elements of a window's row where channels are innermost, S
elements of each channel's plane otherwise. Runs are read as they lie, nothing is copied or padded: an input row becomes
a tile [BLOCK_M, (t, c, e)], loaded once, multiplied by the weights of every filter row that meets it, and added to
the rows of the result that are still open. The weights are spread to the order of the runs by a pass of their own.
"""

import triton
import triton.language as tl

from ..common import activate


def _repr(specialization):
    """Name the compiled kernel after what it is specialised for, so that a profiler shows it."""
    c = specialization.constants
    taps = f"{c['T']}x{c['R']}x{c['S']}"
    return f"_conv_runs_kernel_c{c['C']}_{taps}_{c['BLOCK_M']}x{c['BLOCK_N']}_i{64 if c['INDEX64'] else 32}"


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
def _finish(total, bias, scale, shift, residual, offset, written, ACTIVATION: tl.constexpr):
    """Return activation((total + bias) * scale + shift + residual); each may be None.

    `residual` holds pointers, which `offset` moves.
    """
    if bias is not None:
        total = total + bias
    if scale is not None:
        total = total * scale
    if shift is not None:
        total = total + shift
    if residual is not None:
        total = total + tl.load(residual + offset, mask=written, other=0.0).to(total.dtype)
    return activate(total, ACTIVATION)


@triton.jit
def _of_channels(ptr, channel, stride, k, ACC_DTYPE: tl.constexpr):
    """Load one number per channel, or None without a pointer."""
    values = ptr
    if ptr is not None:
        values = tl.load(ptr + channel * stride, mask=channel < k, other=0.0).to(ACC_DTYPE)
    return values


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

    GEMM view: rows M = N O Q positions of a row of the result, columns N = K, reduction (t, c, e) of one input row:
    SLICES slices of depth at a time; with PLANES, CHANNELS >= C planes; RUN >= LEAD + S (S C without PLANES) elements,
    of which those before the window make loads begin at multiples of VEC. All three are powers of two.
    A program goes down `steps` rows of the result. Of each input row it adds the products with filter row r to the open
    row that this meets: OPEN = ceil(R / STRIDE_H) rows, in registers; MERGED: one product with all filter rows.
    Tensors: x [N, C, D, H, W], y and residual [N, K, O, P, Q] by strides in elements; spread [tiles of K, blocks of
    slices, ROWS, (t, c, e), BLOCK_N], the weights, see `_conv_runs_spread_kernel`; bias, scale, shift [K] or None.
    DENSE: elements of a run lie side by side; otherwise they are read by their strides.
    Units: strides of x, but not those along W (and without PLANES not those along C), and `row_size`, the elements of
    a row of runs, are given divided by UNIT; strides of y and residual along N, O, P, with LAST_OUT that along Q and
    `k`, otherwise that along K and `q`, divided by RESULT_UNIT.
    Grid: (tiles_n * tiles_m * chunks,), with chunks of `steps` rows of the result.
    """
    BLOCKS: tl.constexpr = (T + SLICES - 1) // SLICES
    DEPTH: tl.constexpr = SLICES * CHANNELS * RUN
    OPEN: tl.constexpr = (R + STRIDE_H - 1) // STRIDE_H
    USED: tl.constexpr = S if PLANES else S * C
    WHOLE: tl.constexpr = (LEAD % VEC == 0) and (USED % VEC == 0) and DENSE
    UNIT_Q: tl.constexpr = 1 if LAST_OUT else RESULT_UNIT
    UNIT_K: tl.constexpr = RESULT_UNIT if LAST_OUT else 1
    row_size = row_size * UNIT
    q = q * UNIT_Q
    k = k * UNIT_K
    pid = tl.program_id(0)
    tile_n = pid % tiles_n
    pid = pid // tiles_n
    tile_m = pid % tiles_m
    first = pid // tiles_m * steps
    position = tl.arange(0, BLOCK_M)[:, None]  # [BLOCK_M, 1]
    reduced = tl.arange(0, DEPTH)[None, :]  # [1, DEPTH]
    channel = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]  # [1, BLOCK_N]
    if INDEX64:
        tile_m = tile_m.to(tl.int64)
        first = first.to(tl.int64)
        reduced = reduced.to(tl.int64)
        channel = channel.to(tl.int64)
    position = tile_m * BLOCK_M + position
    column = position % q
    image = position // q
    o_ = image % o
    image = image // o
    live = image < n  # [BLOCK_M, 1]

    e = reduced % RUN
    c = reduced // RUN % CHANNELS
    t = reduced // (RUN * CHANNELS)
    window = (e >= LEAD) & (e < LEAD + USED)
    if PLANES:
        at = column * STRIDE_W + (e - (PAD_W + LEAD))  # [BLOCK_M, DEPTH], the place in a row
    else:
        at = column * (STRIDE_W * C) + (e - (PAD_W * C + LEAD))
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
            runs += (column * STRIDE_W + ((e - LEAD) // C - PAD_W)) * x_stride_w + (e - LEAD) % C * x_stride_c

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

    bias = _of_channels(bias_ptr, channel, bias_stride, k, ACC_DTYPE)
    scale = _of_channels(scale_ptr, channel, scale_stride, k, ACC_DTYPE)
    shift = _of_channels(shift_ptr, channel, shift_stride, k, ACC_DTYPE)
    keeps = live & (channel < k)
    result = y_ptr + (image * y_stride_n + o_ * y_stride_o) * RESULT_UNIT
    result = result + column * y_stride_q * UNIT_K + channel * y_stride_k * UNIT_Q
    residual = residual_ptr
    if residual_ptr is not None:
        residual = residual_ptr + (image * residual_stride_n + o_ * residual_stride_o) * RESULT_UNIT
        residual = residual + column * residual_stride_q * UNIT_K + channel * residual_stride_k * UNIT_Q

    still_open = ()
    for _ in tl.static_range(OPEN - 1):
        still_open = still_open + (tl.zeros([BLOCK_M, BLOCK_N], ACC_DTYPE),)
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
            at_p = step - (OPEN - 1)
            written = keeps & (at_p >= first) & (at_p < first + steps) & (at_p < p)
            of_residual = at_p * residual_stride_p * RESULT_UNIT
            value = _finish(sums[0], bias, scale, shift, residual, of_residual, written, ACTIVATION)
            tl.store(result + at_p * y_stride_p * RESULT_UNIT, value.to(y_ptr.dtype.element_ty), mask=written)
            still_open = sums[1:]


def _spread_repr(specialization):
    """Name the compiled kernel after what it is specialised for, so that a profiler shows it."""
    c = specialization.constants
    return f"_conv_runs_spread_kernel_c{c['C']}_{c['T']}x{c['R']}x{c['S']}_i{64 if c['INDEX64'] else 32}"


@triton.jit(repr=_spread_repr)
def _conv_runs_spread_kernel(
    w_ptr,
    spread_ptr,
    k,
    w_stride_k,
    w_stride_c,
    w_stride_t,
    w_stride_r,
    w_stride_s,
    C: tl.constexpr,
    T: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    PLANES: tl.constexpr,
    LEAD: tl.constexpr,
    RUN: tl.constexpr,
    CHANNELS: tl.constexpr,
    SLICES: tl.constexpr,
    ROWS: tl.constexpr,
    INDEX64: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """Spread w to the order of `_conv_runs_kernel`, zero where a run has elements beside the window.

    Tensors: w [K, C, T, R, S] by strides in elements; spread [tiles of K, blocks of slices, ROWS, (t, c, e), BLOCK_N],
    contiguous, of the same type.
    Grid: (tiles of K * blocks * ROWS * DEPTH / BLOCK_E,). A program writes BLOCK_E rows of BLOCK_N filters.
    """
    DEPTH: tl.constexpr = SLICES * CHANNELS * RUN
    BLOCKS: tl.constexpr = (T + SLICES - 1) // SLICES
    pid = tl.program_id(0)
    part = pid % (DEPTH // BLOCK_E)
    line = pid // (DEPTH // BLOCK_E)
    r = line % ROWS
    b = line // ROWS % BLOCKS
    reduced = part * BLOCK_E + tl.arange(0, BLOCK_E)[:, None]  # [BLOCK_E, 1]
    filter_ = line // (ROWS * BLOCKS) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]  # [1, BLOCK_N]
    to = spread_ptr + (line * DEPTH + reduced) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    if INDEX64:
        r = r.to(tl.int64)
        b = b.to(tl.int64)
        reduced = reduced.to(tl.int64)
        filter_ = filter_.to(tl.int64)
    e = reduced % RUN - LEAD
    t = b * SLICES + reduced // (RUN * CHANNELS)
    if PLANES:
        c = reduced // RUN % CHANNELS
        s = e
    else:
        c = e % C
        s = e // C
    taken = (e >= 0) & (s < S) & (c < C) & (t < T) & (r < R) & (filter_ < k)
    w = w_ptr + filter_ * w_stride_k + (c * w_stride_c + t * w_stride_t + r * w_stride_r + s * w_stride_s)
    tl.store(to, tl.load(w, mask=taken, other=0.0))
