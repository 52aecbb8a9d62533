"""Weight gradient with few channels on one side: products of runs of neighbouring elements, splits in order.

A lane of a tile is a few neighbouring columns of the result. The elements of a row of the source that windows of these
columns cover are a run [BM, (c, e)], which is read as it lies; [BM, (column, k)] are the elements of the result. Of the
two one is loaded once per row, and multiplied by what each filter row makes it meet of the other. What these products
have beside the diagonals that are weights, of which each column has its own, a second pass drops when it adds.
"""

import triton
import triton.language as tl

from .rows import any_not_finite


@triton.jit
def _run_tile(
    runs, reads, z, i, t, r, whole, d, h, pad_h, stride_d, stride_h,
    STRIDE_H: tl.constexpr, DILATION_D: tl.constexpr, UNIT: tl.constexpr, SLICES: tl.constexpr,
):  # fmt: skip
    """Load the runs that filter row (t, r) meets in row `i` of lanes; return them and which elements there are."""
    row = i * STRIDE_H - pad_h + r
    inside = reads & (row >= 0) & (row < h) & whole
    if SLICES:
        slice_ = z + t * DILATION_D
        inside = inside & (slice_ >= 0) & (slice_ < d)
    at = row * stride_h + t * (DILATION_D * stride_d)
    return tl.load(runs + at * UNIT, mask=inside, other=0.0), inside


@triton.jit
def _result_tile(
    results, keeps, u, i, t, r, whole, o, p, off_h, stride_o, stride_p,
    DILATION_D: tl.constexpr, UNIT: tl.constexpr, SLICES: tl.constexpr,
):  # fmt: skip
    """Load the elements of the result that filter row (t, r) leads to from row `i`; return them and which there are."""
    row = i - off_h - r
    inside = keeps & (row >= 0) & (row < p) & whole
    if SLICES:
        slice_ = u - t * DILATION_D
        inside = inside & (slice_ >= 0) & (slice_ < o)
    at = row * stride_p - t * (DILATION_D * stride_o)
    return tl.load(results + at * UNIT, mask=inside, other=0.0), inside


@triton.jit
def _walk(
    sums, source_ptr, result_ptr, tile_k, block, begin, end, n, depth, groups, steps, tiles, k, d, h, row_size, o, p, q,
    pad_d, pad_h, off_d, off_h, source_stride_n, source_stride_c, source_stride_d, source_stride_h, source_stride_w,
    result_stride_n, result_stride_k, result_stride_o, result_stride_p, result_stride_q,
    C: tl.constexpr, T: tl.constexpr, R: tl.constexpr, S: tl.constexpr, STRIDE_D: tl.constexpr, STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr, DILATION_D: tl.constexpr, PAD_W: tl.constexpr, OFF_W: tl.constexpr, SWAPPED: tl.constexpr,
    FIXED_RUNS: tl.constexpr, PLANES: tl.constexpr, DENSE: tl.constexpr, LEAD: tl.constexpr, RUN: tl.constexpr,
    CHANNELS: tl.constexpr, VEC: tl.constexpr, UNIT: tl.constexpr, LAST: tl.constexpr, RESULT_DENSE: tl.constexpr,
    RESULT_UNIT: tl.constexpr, COLS: tl.constexpr, KB: tl.constexpr, LINES: tl.constexpr, PER: tl.constexpr,
    BLOCKS: tl.constexpr, HELD: tl.constexpr, PRECISION: tl.constexpr, ACC_DTYPE: tl.constexpr,
    INDEX64: tl.constexpr, BM: tl.constexpr, M: tl.constexpr, FIRST: tl.constexpr, COUNT: tl.constexpr,
    EXACT: tl.constexpr,
):  # fmt: skip
    """Add the items begin .. end - 1 to the sums of COUNT tiles of filter rows, in order.

    EXACT: lane by lane, products with elements of y alone that there are.
    """
    DEPTH: tl.constexpr = CHANNELS * RUN
    FIXED: tl.constexpr = DEPTH if FIXED_RUNS else M
    MOVING: tl.constexpr = (M if FIXED_RUNS else DEPTH) * LINES
    ELEMENTS: tl.constexpr = 1 if PLANES else C
    USED: tl.constexpr = ((COLS - 1) * STRIDE_W + S) * ELEMENTS
    REACHED: tl.constexpr = (LEAD + USED + VEC - 1) // VEC * VEC if DENSE else LEAD + USED
    SLICES: tl.constexpr = T > 1
    fixed = tl.arange(0, FIXED)
    moving = tl.arange(0, MOVING)[None, :]
    if INDEX64:
        fixed = fixed.to(tl.int64)
        moving = moving.to(tl.int64)
    if EXACT:
        fixed = fixed[:, None]
    else:
        fixed = fixed[None, :]
    later = moving // (MOVING // LINES) if LINES > 1 else 0
    # Each of these is one remainder of a range: of remainders of remainders the compiler forgets what is side by side.
    reduced = fixed if FIXED_RUNS else moving  # (line, c, e)
    laned = moving if FIXED_RUNS else fixed  # (line, column, k), or (line, k, column)
    e = reduced % RUN
    c = reduced // RUN % CHANNELS
    lane = laned % M
    if M % KB == 0:
        column = laned // KB % (M // KB) if LAST else laned % COLS
        channel = laned % KB if LAST else laned // COLS % (M // COLS)
    else:
        column = lane // KB if LAST else laned % COLS
        channel = lane % KB if LAST else laned // COLS % (M // COLS)
    for item in range(begin, end):
        tile = item % tiles
        first = item // tiles * steps
        if INDEX64:
            tile = tile.to(tl.int64)
            first = first.to(tl.int64)
        for part in range(0, BM if EXACT else 1):
            if EXACT:
                position = tile * BM + part
            else:
                position = tile * BM + tl.arange(0, BM)[:, None]  # [BM, 1]
            group = position % groups
            image = position // groups
            slice_ = image % depth
            image = image // depth
            live = image < n
            z = slice_ * STRIDE_D - pad_d
            u = slice_ - off_d

            at = group * (COLS * STRIDE_W * ELEMENTS) + (e - (PAD_W * ELEMENTS + LEAD))
            reads = live & (at >= 0) & (at < row_size * UNIT)
            if REACHED < RUN:
                reads = reads & (e < REACHED)
            if PLANES and C < CHANNELS:
                reads = reads & (c < C)
            if not DENSE:
                reads = reads & (e >= LEAD)
            if FIXED_RUNS or not SLICES:
                reads = reads & (z >= 0) & (z < d)
            runs = source_ptr + (image * source_stride_n + z * source_stride_d) * UNIT
            if PLANES:
                runs += c * (source_stride_c * UNIT)
                if DENSE:
                    runs += at
                else:
                    runs += at * source_stride_w
            else:
                if DENSE:
                    runs += at
                else:
                    place = group * (COLS * STRIDE_W) + ((e - LEAD) // C - PAD_W)
                    runs += place * source_stride_w + (e - LEAD) % C * source_stride_c

            results = result_ptr + (image * result_stride_n + u * result_stride_o) * RESULT_UNIT
            if RESULT_DENSE:
                at = group * (COLS * KB) + (lane - OFF_W * KB)
                keeps = live & (at < q * RESULT_UNIT)
                if OFF_W > 0:
                    keeps = keeps & (at >= 0)
                results += at
            else:
                at = group * COLS + (column - OFF_W)
                of_k = tile_k * KB + channel
                keeps = live & (at < q * (1 if LAST else RESULT_UNIT)) & (of_k < k * (RESULT_UNIT if LAST else 1))
                if OFF_W > 0:
                    keeps = keeps & (at >= 0)
                results += at * result_stride_q * (RESULT_UNIT if LAST else 1)
                results += of_k * result_stride_k * (1 if LAST else RESULT_UNIT)
            if COLS * KB < M:
                keeps = keeps & (lane < COLS * KB)
            if not (FIXED_RUNS and SLICES):
                keeps = keeps & (u >= 0) & (u < o)

            for i in range(first, first + steps):
                if FIXED_RUNS:
                    kept, of_kept = _run_tile(
                        runs, reads, z, i, 0, 0, True, d, h, pad_h, source_stride_d, source_stride_h,
                        STRIDE_H, DILATION_D, UNIT, False,
                    )  # fmt: skip
                else:
                    kept, of_kept = _result_tile(
                        results, keeps, u, i, 0, 0, True, o, p, off_h, result_stride_o, result_stride_p,
                        DILATION_D, RESULT_UNIT, False,
                    )  # fmt: skip
                if HELD and not EXACT:  # in registers: not every product is to read it from shared memory
                    kept = tl.where(live, kept, 0.0)
                met = ()
                of_met = ()
                for j in tl.static_range(COUNT):
                    line = (block * PER + FIRST + j) * LINES + later
                    whole = True if BLOCKS * PER * LINES == T * R else line < T * R
                    t = line // R if SLICES else 0
                    r = line % R if SLICES else line
                    if FIXED_RUNS:
                        other, of_other = _result_tile(
                            results, keeps, u, i, t, r, whole, o, p, off_h, result_stride_o, result_stride_p,
                            DILATION_D, RESULT_UNIT, SLICES,
                        )  # fmt: skip
                    else:
                        other, of_other = _run_tile(
                            runs, reads, z, i, t, r, whole, d, h, pad_h, source_stride_d, source_stride_h,
                            STRIDE_H, DILATION_D, UNIT, SLICES,
                        )  # fmt: skip
                    met = met + (other,)
                    of_met = of_met + (of_other,)
                added = ()
                for j in tl.static_range(COUNT):
                    if EXACT:
                        products = kept.to(ACC_DTYPE) * met[j].to(ACC_DTYPE)
                        pairs = of_met[j] if FIXED_RUNS != SWAPPED else of_kept  # where y has an element
                        added = added + (sums[j] + tl.where(pairs, products, 0.0),)
                    else:
                        total = tl.dot(tl.trans(kept), met[j], sums[j], input_precision=PRECISION, out_dtype=ACC_DTYPE)
                        added = added + (total,)
                sums = added
    return sums


def _repr(specialization):
    """Name the compiled kernel after what it is specialised for, so that a profiler shows it."""
    c = specialization.constants
    taps, tile = f"{c['T']}x{c['R']}x{c['S']}", f"{c['BM']}x{c['M']}x{c['PER']}"
    return f"_conv_runs_wgrad_kernel_c{c['C']}_{taps}_{tile}_i{64 if c['INDEX64'] else 32}"


@triton.jit(repr=_repr)
def _conv_runs_wgrad_kernel(
    source_ptr,
    result_ptr,
    partial_ptr,
    n,
    depth,
    groups,
    steps,
    tiles,
    items,
    items_per_split,
    tiles_k,
    k,
    d,
    h,
    row_size,
    o,
    p,
    q,
    pad_d,
    pad_h,
    off_d,
    off_h,
    source_stride_n,
    source_stride_c,
    source_stride_d,
    source_stride_h,
    source_stride_w,
    result_stride_n,
    result_stride_k,
    result_stride_o,
    result_stride_p,
    result_stride_q,
    C: tl.constexpr,
    T: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    STRIDE_D: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    DILATION_D: tl.constexpr,
    PAD_W: tl.constexpr,
    OFF_W: tl.constexpr,
    SWAPPED: tl.constexpr,
    FIXED_RUNS: tl.constexpr,
    PLANES: tl.constexpr,
    DENSE: tl.constexpr,
    LEAD: tl.constexpr,
    RUN: tl.constexpr,
    CHANNELS: tl.constexpr,
    VEC: tl.constexpr,
    UNIT: tl.constexpr,
    LAST: tl.constexpr,
    RESULT_DENSE: tl.constexpr,
    RESULT_UNIT: tl.constexpr,
    COLS: tl.constexpr,
    KB: tl.constexpr,
    LINES: tl.constexpr,
    PER: tl.constexpr,
    BLOCKS: tl.constexpr,
    HELD: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC_DTYPE: tl.constexpr,
    INDEX64: tl.constexpr,
    BM: tl.constexpr,
    M: tl.constexpr,
):
    """Compute a split of the sums of source[n, c, i STRIDE + tap DILATION - pad] result[n, k, i - off].

    GEMM view: (k, column) times (line, c, e), reduction over BM lanes of each row; a line is a filter row (t, r), a
    lane COLS columns of the result, of which there are `groups` in a row. With FIXED_RUNS, for strides of 1 along D and
    H, lanes are positions of the source, of result[n, k, i - off - tap DILATION], and it is (c, e) times (line, k,
    column).
    Source and result are x and y; SWAPPED, y and x, for taps that are turned round.
    Tensors: source [N, C, D, H, W] and result [N, K, O, P, Q] of one floating type, by strides in elements; partial
    [splits, tiles_k, BLOCKS, PER, fixed, moving] contiguous, of ACC_DTYPE, in which products are summed; M >= COLS KB.
    Units: strides of the source, but not along W (and without PLANES not along C), and `row_size`, the elements of a
    row of runs, are given divided by UNIT; strides of the result along N, O, P, with LAST that along Q and `k`,
    otherwise that along K and `q`, divided by RESULT_UNIT. RESULT_DENSE: (column, k) lie side by side; `q` counts
    elements then. DENSE: so do elements of a run. HELD: registers hold the side
    that is loaded once.
    An item is `steps` rows of BM lanes, which are all positions (n, depth, group) side by side; a split is a run of
    items. Grid: (splits * tiles_k * BLOCKS,), blocks of PER * LINES lines innermost.
    """
    DEPTH: tl.constexpr = CHANNELS * RUN
    FIXED: tl.constexpr = DEPTH if FIXED_RUNS else M
    MOVING: tl.constexpr = (M if FIXED_RUNS else DEPTH) * LINES
    block = tl.program_id(0) % BLOCKS
    tile_k = tl.program_id(0) // BLOCKS % tiles_k
    begin = tl.program_id(0) // (BLOCKS * tiles_k) * items_per_split
    end = tl.minimum(begin + items_per_split, items)
    if INDEX64:
        block = block.to(tl.int64)
        tile_k = tile_k.to(tl.int64)
    sums = ()
    for _ in tl.static_range(PER):
        sums = sums + (tl.zeros([FIXED, MOVING], ACC_DTYPE),)
    sums = _walk(
        sums, source_ptr, result_ptr, tile_k, block, begin, end, n, depth, groups, steps, tiles, k, d, h, row_size,
        o, p, q, pad_d, pad_h, off_d, off_h,
        source_stride_n, source_stride_c, source_stride_d, source_stride_h, source_stride_w,
        result_stride_n, result_stride_k, result_stride_o, result_stride_p, result_stride_q,
        C, T, R, S, STRIDE_D, STRIDE_H, STRIDE_W, DILATION_D, PAD_W, OFF_W, SWAPPED, FIXED_RUNS, PLANES, DENSE, LEAD,
        RUN, CHANNELS, VEC, UNIT, LAST, RESULT_DENSE, RESULT_UNIT, COLS, KB, LINES, PER, BLOCKS, HELD, PRECISION,
        ACC_DTYPE, INDEX64, BM, M, 0, PER, False,
    )  # fmt: skip
    at = tl.arange(0, FIXED)[:, None] * MOVING + tl.arange(0, MOVING)[None, :]
    partial = partial_ptr + tl.program_id(0).to(tl.int64) * (PER * FIXED * MOVING) + at
    spoiled = ()
    for j in tl.static_range(PER):  # all that is finite goes first, so that no register holds it any longer
        infinite = any_not_finite(sums[j] * 0.0)
        tl.store(partial + j * (FIXED * MOVING), sums[j], mask=infinite == 0)
        spoiled = spoiled + (infinite,)
    for j in tl.static_range(PER):
        if spoiled[j]:
            exact = _walk(
                (tl.zeros([FIXED, MOVING], ACC_DTYPE),), source_ptr, result_ptr, tile_k, block, begin, end, n, depth,
                groups, steps, tiles, k, d, h, row_size, o, p, q, pad_d, pad_h, off_d, off_h,
                source_stride_n, source_stride_c, source_stride_d, source_stride_h, source_stride_w,
                result_stride_n, result_stride_k, result_stride_o, result_stride_p, result_stride_q,
                C, T, R, S, STRIDE_D, STRIDE_H, STRIDE_W, DILATION_D, PAD_W, OFF_W, SWAPPED, FIXED_RUNS, PLANES, DENSE,
                LEAD, RUN, CHANNELS, VEC, UNIT, LAST, RESULT_DENSE, RESULT_UNIT, COLS, KB, LINES, PER, BLOCKS,
                HELD, PRECISION, ACC_DTYPE, INDEX64, BM, M, j, 1, True,
            )  # fmt: skip
            tl.store(partial + j * (FIXED * MOVING), exact[0])


def _fold_repr(specialization):
    """Name the compiled kernel after what it is specialised for, so that a profiler shows it."""
    c = specialization.constants
    taps = f"{c['T']}x{c['R']}x{c['S']}"
    return f"_conv_runs_fold_kernel_c{c['C']}_{taps}_{c['BLOCK_S']}x{c['BLOCK']}_i{64 if c['INDEX64'] else 32}"


@triton.jit(repr=_fold_repr)
def _conv_runs_fold_kernel(
    partial_ptr,
    w_ptr,
    splits,
    elements,
    weights,
    w_stride_result,
    w_stride_source,
    w_stride_t,
    w_stride_r,
    w_stride_s,
    C: tl.constexpr,
    T: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    STRIDE_W: tl.constexpr,
    SWAPPED: tl.constexpr,
    FIXED_RUNS: tl.constexpr,
    PLANES: tl.constexpr,
    LEAD: tl.constexpr,
    RUN: tl.constexpr,
    CHANNELS: tl.constexpr,
    LAST: tl.constexpr,
    COLS: tl.constexpr,
    KB: tl.constexpr,
    LINES: tl.constexpr,
    PER: tl.constexpr,
    BLOCKS: tl.constexpr,
    M: tl.constexpr,
    INDEX64: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add the splits and columns of each weight, BLOCK_S at a time, in an order that depends on their number alone.

    Tensors: partial as `_conv_runs_wgrad_kernel` leaves it, `elements` a split; w by strides in elements along the
    channels of the result, of the source, and the taps, rounded once; `weights` in all.
    Grid: (cdiv(weights, BLOCK),).
    """
    DEPTH: tl.constexpr = CHANNELS * RUN
    ELEMENTS: tl.constexpr = 1 if PLANES else C
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[None, :]  # [1, BLOCK]
    term = tl.arange(0, BLOCK_S)[:, None]  # [BLOCK_S, 1]
    if INDEX64:
        i = i.to(tl.int64)
        term = term.to(tl.int64)
    c = i % C
    s = i // C % S
    line = i // (C * S) % (T * R)
    k = i // (C * S * T * R)
    tile = (k // KB * BLOCKS + line // (PER * LINES)) * PER + line // LINES % PER
    reduced = LEAD + s * ELEMENTS + (c * RUN if PLANES else c)
    lane = k % KB if LAST else k % KB * COLS
    COLUMN: tl.constexpr = KB if LAST else 1  # from one column of the result to the next
    if FIXED_RUNS:
        at = (tile * DEPTH + reduced) * (LINES * M) + line % LINES * M + lane
        NEXT: tl.constexpr = STRIDE_W * ELEMENTS * LINES * M + COLUMN
    else:
        at = (tile * M + lane) * (LINES * DEPTH) + line % LINES * DEPTH + reduced
        NEXT: tl.constexpr = COLUMN * LINES * DEPTH + STRIDE_W * ELEMENTS
    sums = tl.zeros([BLOCK_S, BLOCK], partial_ptr.dtype.element_ty)
    for first in range(0, splits * COLS, BLOCK_S):
        number = first + term
        inside = (number < splits * COLS) & (i < weights)
        sums += tl.load(partial_ptr + (number // COLS * elements + number % COLS * NEXT + at), mask=inside, other=0.0)
    t = line // R
    r = line % R
    if SWAPPED:
        t = T - 1 - t
        r = R - 1 - r
        s = S - 1 - s
    to = k * w_stride_result + c * w_stride_source + t * w_stride_t + r * w_stride_r + s * w_stride_s
    total = tl.sum(sums, 0)[None, :]
    tl.store(w_ptr + to, total.to(w_ptr.dtype.element_ty), mask=i < weights)
