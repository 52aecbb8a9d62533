"""Weight gradient of convolutions of few channels per group: products of whole rows of x and y, splits in order.

A lane owns V neighbouring columns of y and the XW columns of x that its taps along W lead to. For a row of y,
B [BM, (v, k)], and each row of x that a row r of taps leads to, A [(u, c), BM], the product A B belongs to r; it holds
the sums of every column of x with every column of y, of which the taps along W are some. All taps of a block of whole
groups are such sums; what a product has beside them is dropped.
In 3-D the planes of y are images side by side, and a program has one tap along depth.
"""

import triton
import triton.language as tl

from .lanes import within
from .rows_exact import any_not_finite, plane_of_source


@triton.jit
def _add_product(
    total, a, rows_of_y, e: tl.constexpr, r: tl.constexpr, U: tl.constexpr, STRIDE_H: tl.constexpr,
    DILATION_H: tl.constexpr, PRECISION: tl.constexpr, ACC_DTYPE: tl.constexpr,
):  # fmt: skip
    """Add the product of row e of x, from the first that the U rows of y meet, with the row of y from which r leads."""
    if e >= r * DILATION_H and (e - r * DILATION_H) % STRIDE_H == 0 and (e - r * DILATION_H) // STRIDE_H < U:
        total = tl.dot(
            a, rows_of_y[(e - r * DILATION_H) // STRIDE_H], total, input_precision=PRECISION, out_dtype=ACC_DTYPE
        )
    return total


@triton.jit
def _add_bias(sums, row_of_y, BIAS: tl.constexpr, ACC_DTYPE: tl.constexpr):
    if BIAS:
        sums += row_of_y.to(ACC_DTYPE)
    return sums


@triton.jit
def _x_places(
    lane, uc, images, x_w, lanes_w, pad_w, x_stride_n, x_stride_c, x_stride_w, of_x, first_channel,
    t, x_d, y_d, pad_d, x_stride_d, DEEP: tl.constexpr, STRIDE_D: tl.constexpr, DILATION_D: tl.constexpr,
    V: tl.constexpr, PITCH: tl.constexpr, STRIDE_W: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Return the offsets of elements (u, c) of lanes in row 0 of x, and where x has them: broadcast of both shapes.

    With DEEP, t is the tap along depth.
    """
    n = (lane // lanes_w).to(tl.int64)
    column = lane % lanes_w * (V * STRIDE_W) - pad_w + uc // BC * PITCH
    here = of_x & within(column, x_w)
    of_plane = n * x_stride_n
    if DEEP:
        n = (lane // lanes_w // y_d).to(tl.int64)
        z, there = plane_of_source(lane // lanes_w % y_d, t, x_d, pad_d, STRIDE_D, DILATION_D, False)
        here = here & there
        of_plane = n * x_stride_n + z.to(tl.int64) * x_stride_d
    return of_plane + (column * x_stride_w + (first_channel + uc % BC) * x_stride_c), here & (n < images)


@triton.jit
def _y_places(
    lane, vk, images, y_w, lanes_w, y_stride_n, y_stride_k, y_stride_w, of_y, first_channel, y_d, y_stride_d,
    DEEP: tl.constexpr, V: tl.constexpr, BO: tl.constexpr,
):  # fmt: skip
    """Return the offsets of elements (v, k) of lanes in row 0 of y, and where y has them."""
    n = (lane // lanes_w).to(tl.int64)
    q = lane % lanes_w * V + vk // BO
    of_plane = n * y_stride_n
    if DEEP:
        n = (lane // lanes_w // y_d).to(tl.int64)
        of_plane = n * y_stride_n + (lane // lanes_w % y_d).to(tl.int64) * y_stride_d
    there = (n < images) & of_y & (q < y_w)
    return of_plane + (q * y_stride_w + (first_channel + vk % BO) * y_stride_k), there


@triton.jit
def _walk(
    x_ptr, y_ptr, block, begin, end, images, of_x, of_y, x_h, x_w, y_h, y_w, lanes_w, pad_h, pad_w,
    x_stride_n, x_stride_c, x_stride_h, x_stride_w, y_stride_n, y_stride_k, y_stride_h, y_stride_w,
    t, x_d, y_d, pad_d, x_stride_d, y_stride_d, DEEP: tl.constexpr, STRIDE_D: tl.constexpr, DILATION_D: tl.constexpr,
    R: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, DILATION_H: tl.constexpr, PITCH: tl.constexpr,
    CG: tl.constexpr, KG: tl.constexpr, PER: tl.constexpr, BIAS: tl.constexpr, PRECISION: tl.constexpr,
    ACC_DTYPE: tl.constexpr, INDEX64: tl.constexpr, CACHE: tl.constexpr, U: tl.constexpr, V: tl.constexpr,
    XW: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr, BO: tl.constexpr,
):  # fmt: skip
    """Return the sums of steps begin .. end - 1 in their order: of each r, and last those of a bias [BM, (v, k)]."""
    uc = tl.arange(0, XW * BC)[:, None]  # [(u, c), 1]
    vk = tl.arange(0, V * BO)[None, :]  # [1, (v, k)]
    if INDEX64:
        uc = uc.to(tl.int64)
        vk = vk.to(tl.int64)
    sums = ()
    for _ in tl.static_range(R):
        sums = sums + (tl.zeros([XW * BC, V * BO], ACC_DTYPE),)
    of_bias = tl.zeros([BM, V * BO], ACC_DTYPE)
    of_tile = tl.cdiv(y_h, U)
    for step in range(begin, end):  # of one tile after the other, so that loads ahead never end
        tile = step // of_tile
        at_x, here = _x_places(
            tile * BM + tl.arange(0, BM)[None, :], uc, images, x_w, lanes_w, pad_w, x_stride_n, x_stride_c,
            x_stride_w, of_x, block * (PER * CG), t, x_d, y_d, pad_d, x_stride_d, DEEP, STRIDE_D, DILATION_D,
            V, PITCH, STRIDE_W, BC,
        )  # fmt: skip
        at_y, there = _y_places(
            tile * BM + tl.arange(0, BM)[:, None], vk, images, y_w, lanes_w, y_stride_n, y_stride_k, y_stride_w,
            of_y, block * (PER * KG), y_d, y_stride_d, DEEP, V, BO,
        )  # fmt: skip
        first = (step - tile * of_tile) * U
        rows_of_y = ()
        for u in tl.static_range(U):
            p = first + u
            b = tl.load(y_ptr + (at_y + p * y_stride_h), mask=there & (p < y_h), other=0.0, cache_modifier=CACHE)
            of_bias = _add_bias(of_bias, b, BIAS, ACC_DTYPE)
            rows_of_y = rows_of_y + (b,)
        for e in tl.static_range((U - 1) * STRIDE_H + (R - 1) * DILATION_H + 1):
            h = first * STRIDE_H - pad_h + e
            a = tl.load(x_ptr + (at_x + h * x_stride_h), mask=here & within(h, x_h), other=0.0, cache_modifier=CACHE)
            added = ()
            for r in tl.static_range(R):
                total = _add_product(sums[r], a, rows_of_y, e, r, U, STRIDE_H, DILATION_H, PRECISION, ACC_DTYPE)
                added = added + (total,)
            sums = added
    return sums + (of_bias,)


@triton.jit
def _walk_exactly(
    x_ptr, y_ptr, r, block, begin, end, images, of_x, of_y, x_h, x_w, y_h, y_w, lanes_w, pad_h, pad_w,
    x_stride_n, x_stride_c, x_stride_h, x_stride_w, y_stride_n, y_stride_k, y_stride_h, y_stride_w,
    t, x_d, y_d, pad_d, x_stride_d, y_stride_d, DEEP: tl.constexpr, STRIDE_D: tl.constexpr, DILATION_D: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, DILATION_H: tl.constexpr, PITCH: tl.constexpr,
    CG: tl.constexpr, KG: tl.constexpr, PER: tl.constexpr, ACC_DTYPE: tl.constexpr, INDEX64: tl.constexpr,
    U: tl.constexpr, V: tl.constexpr, XW: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr, BO: tl.constexpr,
):  # fmt: skip
    """Return the sums of r position by position: x is multiplied where y has something, by nothing else."""
    uc = tl.arange(0, XW * BC)[:, None]
    vk = tl.arange(0, V * BO)[None, :]
    if INDEX64:
        uc = uc.to(tl.int64)
        vk = vk.to(tl.int64)
    total = tl.zeros([XW * BC, V * BO], ACC_DTYPE)
    of_tile = tl.cdiv(y_h, U)
    for lane in range(begin // of_tile * BM, tl.cdiv(end, of_tile) * BM):
        at_x, here = _x_places(
            lane, uc, images, x_w, lanes_w, pad_w, x_stride_n, x_stride_c, x_stride_w, of_x, block * (PER * CG),
            t, x_d, y_d, pad_d, x_stride_d, DEEP, STRIDE_D, DILATION_D, V, PITCH, STRIDE_W, BC,
        )  # fmt: skip
        at_y, there = _y_places(
            lane, vk, images, y_w, lanes_w, y_stride_n, y_stride_k, y_stride_w, of_y, block * (PER * KG),
            y_d, y_stride_d, DEEP, V, BO,
        )  # fmt: skip
        first = tl.maximum(begin - lane // BM * of_tile, 0) * U
        if INDEX64:
            first = first.to(tl.int64)
        for p in range(first, tl.minimum((end - lane // BM * of_tile) * U, y_h)):
            h = p * STRIDE_H + r * DILATION_H - pad_h
            a = tl.load(x_ptr + (at_x + h * x_stride_h), mask=here & within(h, x_h), other=0.0)
            b = tl.load(y_ptr + (at_y + p * y_stride_h), mask=there, other=0.0)
            total += tl.where(there, a.to(ACC_DTYPE) * b.to(ACC_DTYPE), 0.0)
    return total


@triton.jit
def _store(
    partial, total, r, split, block, groups, elements, S: tl.constexpr, STRIDE_W: tl.constexpr,
    DILATION_W: tl.constexpr, PITCH: tl.constexpr, CG: tl.constexpr, KG: tl.constexpr, PER: tl.constexpr,
    INDEX64: tl.constexpr, V: tl.constexpr, XW: tl.constexpr, BC: tl.constexpr, BO: tl.constexpr,
):  # fmt: skip
    """Store the taps of r that sums hold: each is the sum over the columns v of its column of x beside v."""
    c = tl.arange(0, BC)[:, None]
    k = tl.arange(0, BO)[None, :]
    if INDEX64:
        k = k.to(tl.int64)
    inside = (c // CG == k // KG) & (k < PER * KG) & (k < (groups - block * PER) * KG)  # [BC, BO]
    to = partial + (split.to(tl.int64) * elements + (block * (PER * KG) + k)) + c % CG * (groups * KG)
    by_columns = total.reshape(XW, BC, V, BO)
    beside = tl.arange(0, XW)[:, None] * PITCH - tl.arange(0, V)[None, :] * STRIDE_W  # [XW, V]
    beside = beside.reshape(XW, 1, V, 1)
    for s in tl.static_range(S):
        tap = tl.sum(tl.sum(tl.where(beside == s * DILATION_W, by_columns, 0.0), 2), 0)
        tl.store(to + (r * S + s) * (CG * groups * KG), tap, mask=inside)


def _repr(specialization):
    """Name the compiled kernel after what it is specialised for, so that a profiler shows it."""
    c = specialization.constants
    tile = f"{c['BM']}x{c['XW']}x{c['BC']}to{c['V']}x{c['BO']}"
    taps = f"{c['T']}x{c['R']}x{c['S']}" if c["DEEP"] else f"{c['R']}x{c['S']}"
    return f"_conv_rows_wgrad_kernel_{taps}_{tile}_i{64 if c['INDEX64'] else 32}"


@triton.jit(repr=_repr)
def _conv_rows_wgrad_kernel(
    x_ptr,
    y_ptr,
    partial_ptr,
    images,
    groups,
    x_d,
    x_h,
    x_w,
    y_d,
    y_h,
    y_w,
    lanes_w,
    blocks,
    steps,
    steps_per_split,
    elements,
    pad_d,
    pad_h,
    pad_w,
    x_stride_n,
    x_stride_c,
    x_stride_d,
    x_stride_h,
    x_stride_w,
    y_stride_n,
    y_stride_k,
    y_stride_d,
    y_stride_h,
    y_stride_w,
    DEEP: tl.constexpr,
    T: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    STRIDE_D: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    DILATION_D: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    PITCH: tl.constexpr,
    CG: tl.constexpr,
    KG: tl.constexpr,
    PER: tl.constexpr,
    EVEN: tl.constexpr,
    BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC_DTYPE: tl.constexpr,
    INDEX64: tl.constexpr,
    UNIT: tl.constexpr,
    RESULT_UNIT: tl.constexpr,
    CACHE: tl.constexpr,
    U: tl.constexpr,
    V: tl.constexpr,
    XW: tl.constexpr,
    BM: tl.constexpr,
    BC: tl.constexpr,
    BO: tl.constexpr,
):
    """Compute a split of the sums of x[n, c, i STRIDE + tap DILATION - pad] y[n, k, i], all taps of a block of groups.

    GEMM view, of a row of taps: M = (u, c), N = (v, k), reduction over BM lanes of each row; a lane has V columns of y
    and XW of x, which lie PITCH apart. Tensors: x [N, G CG, D, H, W] and y [N, G KG, O, P, Q] of one floating type by
    strides in elements (those of x, but not along channels, given divided by UNIT, those of y by RESULT_UNIT); partial
    [splits, elements] contiguous, of ACC_DTYPE, in which products are summed: weights [T, R, S, CG, G KG] and,
    with BIAS, sums of y [G KG]. A block is PER whole groups. Without DEEP there is one plane, and T is 1.
    A step is U rows of y of one tile of BM lanes, `lanes_w` to a row, of all images, and their planes, side by side; a
    split is a run of steps, down the rows of one tile after the other. Grid: (splits * T * blocks,), blocks innermost.
    """
    block = tl.program_id(0) % blocks
    split = tl.program_id(0) // blocks
    t = 0
    if DEEP:
        t = split % T
        split = split // T
        if INDEX64:
            t = t.to(tl.int64)
    begin = split * steps_per_split
    end = tl.maximum(tl.minimum(begin + steps_per_split, steps), begin)
    if INDEX64:
        block = block.to(tl.int64)
        begin = begin.to(tl.int64)
        end = end.to(tl.int64)
    c = tl.arange(0, XW * BC)[:, None]
    of_x = c // BC * PITCH <= (V - 1) * STRIDE_W + (S - 1) * DILATION_W
    of_block = tl.arange(0, V * BO)[None, :] % BO
    of_y = of_block < PER * KG
    if PER * CG < BC:
        of_x = of_x & (c % BC < PER * CG)
    if not EVEN:
        of_x = of_x & (c % BC < (groups - block * PER) * CG)
        of_y = of_y & (of_block < (groups - block * PER) * KG)
    sums = _walk(
        x_ptr, y_ptr, block, begin, end, images, of_x, of_y, x_h, x_w, y_h, y_w, lanes_w, pad_h, pad_w,
        x_stride_n * UNIT, x_stride_c, x_stride_h * UNIT, x_stride_w * UNIT,
        y_stride_n * RESULT_UNIT, y_stride_k, y_stride_h * RESULT_UNIT, y_stride_w * RESULT_UNIT,
        t, x_d, y_d, pad_d, x_stride_d * UNIT, y_stride_d * RESULT_UNIT, DEEP, STRIDE_D, DILATION_D,
        R, STRIDE_H, STRIDE_W, DILATION_H, PITCH, CG, KG, PER, BIAS, PRECISION, ACC_DTYPE, INDEX64, CACHE,
        U, V, XW, BM, BC, BO,
    )  # fmt: skip
    zeros = tl.zeros([XW * BC, V * BO], ACC_DTYPE)
    for z in tl.static_range(R):
        zeros += sums[z] * 0.0
    if any_not_finite(zeros):
        for r in range(0, R * tl.minimum(images, 1)):  # of which the compiler does not know how many they are
            total = _walk_exactly(
                x_ptr, y_ptr, r, block, begin, end, images, of_x, of_y, x_h, x_w, y_h, y_w, lanes_w, pad_h, pad_w,
                x_stride_n * UNIT, x_stride_c, x_stride_h * UNIT, x_stride_w * UNIT,
                y_stride_n * RESULT_UNIT, y_stride_k, y_stride_h * RESULT_UNIT, y_stride_w * RESULT_UNIT,
                t, x_d, y_d, pad_d, x_stride_d * UNIT, y_stride_d * RESULT_UNIT, DEEP, STRIDE_D, DILATION_D,
                STRIDE_H, STRIDE_W, DILATION_H, PITCH, CG, KG, PER, ACC_DTYPE, INDEX64, U, V, XW, BM, BC, BO,
            )  # fmt: skip
            _store(
                partial_ptr, total, t * R + r, split, block, groups, elements, S, STRIDE_W, DILATION_W, PITCH, CG,
                KG, PER, INDEX64, V, XW, BC, BO,
            )  # fmt: skip
    else:
        for tap in tl.static_range(R):
            _store(
                partial_ptr, sums[tap], t * R + tap, split, block, groups, elements, S, STRIDE_W, DILATION_W, PITCH,
                CG, KG, PER, INDEX64, V, XW, BC, BO,
            )  # fmt: skip
    if BIAS:
        k = tl.arange(0, BO)
        filters = block * (PER * KG) + k
        to = split.to(tl.int64) * elements + (T * R * S * CG * groups * KG + filters)
        of_bias = tl.sum(tl.sum(sums[R], 0).reshape(V, BO), 0)
        tl.store(partial_ptr + to, of_bias, mask=(k < PER * KG) & (filters < groups * KG) & (t == 0))


def _fold_repr(specialization):
    """Name the compiled kernel after what it is specialised for, so that a profiler shows it."""
    c = specialization.constants
    taps = f"{c['T']}x{c['R']}x{c['S']}" if c["T"] > 1 else f"{c['R']}x{c['S']}"
    return f"_conv_rows_fold_kernel_{taps}_{c['BLOCK_S']}x{c['BLOCK']}_i{64 if c['INDEX64'] else 32}"


@triton.jit(repr=_fold_repr)
def _conv_rows_fold_kernel(
    partial_ptr,
    w_ptr,
    bias_ptr,
    splits,
    filters,
    elements,
    weights,
    w_stride_k,
    w_stride_c,
    w_stride_t,
    w_stride_r,
    w_stride_s,
    T: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    CG: tl.constexpr,
    INDEX64: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add the splits, BLOCK_S at a time, in an order that depends on their number alone.

    Tensors: partial [splits, elements] contiguous, each `weights` weights [T, R, S, CG, K] and, if `bias` is not None,
    sums of the bias [K], with `filters` = K; w [K, CG, T, R, S] by strides in elements and bias [K] contiguous, rounded
    once. Grid: (cdiv(elements, BLOCK),).
    """
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    split = tl.arange(0, BLOCK_S)  # [BLOCK_S]
    if INDEX64:
        i = i.to(tl.int64)
        split = split.to(tl.int64)
    sums = tl.zeros([BLOCK_S, BLOCK], partial_ptr.dtype.element_ty)
    for first in range(0, splits, BLOCK_S):
        inside = (first + split < splits)[:, None] & (i < elements)[None, :]
        sums += tl.load(partial_ptr + ((first + split)[:, None] * elements + i[None, :]), mask=inside, other=0.0)
    total = tl.sum(sums, 0)
    tap = i // filters // CG
    to = i % filters * w_stride_k + i // filters % CG * w_stride_c + tap % S * w_stride_s
    if T > 1:
        to += tap // (R * S) * w_stride_t + tap // S % R * w_stride_r
    else:
        to += tap // S * w_stride_r
    tl.store(w_ptr + to, total.to(w_ptr.dtype.element_ty), mask=i < weights)
    if bias_ptr is not None:
        tl.store(bias_ptr + (i - weights), total.to(bias_ptr.dtype.element_ty), mask=(i >= weights) & (i < elements))
