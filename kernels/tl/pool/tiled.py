"""Pooling over small windows: each program computes a tile of outputs from registers, so that windows share loads."""

import triton
import triton.language as tl

from .common import inside_plane, positions, taps_before, window_count
from .keys import is_lowest, keys_of, place_of, value_of
from .names import tiled_metadata, tiled_name


def _repr(specialization):
    """Name the compiled kernel after what it is specialised for, so that a profiler shows it."""
    c = specialization.constants
    return tiled_name(f"_pool_{c['OP']}_fprop_tiled_kernel", c)


@triton.jit
def unzipped(tile, BLOCK: tl.constexpr, COUNT: tl.constexpr):
    """Return the COUNT columns of a tile [BLOCK, COUNT] as a tuple of [BLOCK]; COUNT is a power of two up to 16."""
    tiles = (tile,)
    for level in tl.static_range(0, 4):
        if COUNT >> level > 1:
            even = ()
            odd = ()
            for k in tl.static_range(0, 1 << level):
                first, second = tl.split(tl.reshape(tiles[k], [BLOCK, COUNT >> (level + 1), 2]))
                even = even + (first,)
                odd = odd + (second,)
            tiles = even + odd
    columns = ()
    for k in tl.static_range(0, COUNT):
        columns = columns + (tl.reshape(tiles[k], [BLOCK]),)
    return columns


@triton.jit
def zipped(columns, BLOCK: tl.constexpr, COUNT: tl.constexpr):
    """Return a tile [BLOCK, COUNT] of the first COUNT columns of a tuple; COUNT is a power of two up to 16."""
    tiles = columns
    for level in tl.static_range(0, 4):
        if COUNT >> level > 1:
            halves = ()
            for k in tl.static_range(0, COUNT >> (level + 1)):
                joined = tl.join(tiles[k], tiles[k + (COUNT >> (level + 1))])
                halves = halves + (tl.reshape(joined, [BLOCK, 2 << level]),)
            tiles = halves
    return tl.reshape(tiles[0], [BLOCK, COUNT])


@triton.jit
def items(c, size_o, size_p, size_q, INDEX64: tl.constexpr, BLOCK: tl.constexpr):
    """Return batch, channel and three positions of the items of a program, each [BLOCK], the last axis fastest."""
    program = tl.program_id(0)
    if INDEX64:
        program = program.to(tl.int64)
    item = program * BLOCK + tl.arange(0, BLOCK)
    i_q = item % size_q
    item = item // size_q
    i_p = item % size_p
    item = item // size_p
    i_o = item % size_o
    item = item // size_o
    return item // c, item % c, i_o, i_p, i_q


@triton.jit
def columns_apart(
    row, row_inside, start_w, w, x_stride_w, OTHER: tl.constexpr, COMPUTE: tl.constexpr, COUNT: tl.constexpr
):
    """Load COUNT columns from `start_w` on, one by one, OTHER where they are outside the input."""
    columns = ()
    for j in tl.static_range(0, COUNT):
        i_w = start_w + j
        reads = row_inside & (i_w >= 0) & (i_w < w)
        columns = columns + (tl.load(row + i_w * x_stride_w, mask=reads, other=OTHER).to(COMPUTE),)
    return columns


@triton.jit
def columns_in_runs(
    row,
    row_inside,
    base_w,
    w,
    x_stride_w,
    PAD: tl.constexpr,
    OTHER: tl.constexpr,
    COMPUTE: tl.constexpr,
    COUNT: tl.constexpr,
    RUNS: tl.constexpr,
    LENGTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Load COUNT columns from ``base_w - PAD`` on: RUNS vectors of LENGTH from `base_w` on, others one by one."""
    inner = ()
    for k in tl.static_range(0, RUNS):
        i_w = base_w[:, None] + (k * LENGTH + tl.arange(0, LENGTH))[None, :]
        reads = row_inside[:, None] & (i_w < w)
        tile = tl.load(row[:, None] + i_w * x_stride_w, mask=reads, other=OTHER).to(COMPUTE)
        inner = inner + unzipped(tile, BLOCK, LENGTH)
    columns = ()
    for j in tl.static_range(0, COUNT):
        if j >= PAD and j - PAD < RUNS * LENGTH:
            columns = columns + (inner[j - PAD],)
        else:
            i_w = base_w + (j - PAD)
            reads = row_inside & (i_w >= 0) & (i_w < w)
            columns = columns + (tl.load(row + i_w * x_stride_w, mask=reads, other=OTHER).to(COMPUTE),)
    return columns


@triton.jit
def squares(columns, COUNT: tl.constexpr):
    """Return the squares of COUNT columns."""
    raised = ()
    for j in tl.static_range(0, COUNT):
        raised = raised + (columns[j] * columns[j],)
    return raised


@triton.jit
def combine(value, number, other, other_number, OP: tl.constexpr):
    """Return a sum, a maximum, or a maximum and its number: the first of equal ones, or the last NaN."""
    if OP == "sum":
        value = value + other
    elif OP == "indexed":
        better = (other > value) | (other != other)
        value = tl.where(better, other, value)
        number = tl.where(better, other_number, number)
    elif value.dtype.is_floating():
        value = tl.maximum(value, other, propagate_nan=tl.PropagateNan.ALL)
    else:
        value = tl.maximum(value, other)
    return value, number


@triton.jit
def row_windows(
    columns,
    first_number,
    step_s,
    OP: tl.constexpr,
    NUMBER: tl.constexpr,
    S: tl.constexpr,
    TILE_Q: tl.constexpr,
    STRIDE_W: tl.constexpr,
    DILATION_W: tl.constexpr,
):
    """Combine the taps of one row of each of TILE_Q windows; return values and numbers, which begin with the first."""
    values = ()
    numbers = ()
    for k in tl.static_range(0, TILE_Q):
        value = columns[k * STRIDE_W]
        number = tl.zeros(value.shape, NUMBER) + first_number
        for s in tl.static_range(1, S):
            other = columns[k * STRIDE_W + s * DILATION_W]
            value, number = combine(value, number, other, first_number + s * step_s, OP)
        values = values + (value,)
        numbers = numbers + (number,)
    return values, numbers


@triton.jit
def average(total, divisor, DIVISOR: tl.constexpr, NARROW: tl.constexpr):
    """Return ``total / DIVISOR``, or ``total / divisor`` where DIVISOR is 0.

    NARROW results, of 16 bits, are products with the reciprocal: float32 has bits enough to round them right.
    """
    if DIVISOR != 0 and (NARROW or DIVISOR & (DIVISOR - 1) == 0):
        return total * (1.0 / DIVISOR)
    elif DIVISOR != 0 and total.dtype == tl.float32:
        return tl.div_rn(total, tl.full(total.shape, DIVISOR, tl.float32))
    elif DIVISOR != 0:
        return total / tl.full(total.shape, DIVISOR, total.dtype)
    elif NARROW:
        return total * (1.0 / divisor.to(tl.float32))
    elif total.dtype == tl.float32:
        return tl.div_rn(total, divisor.to(tl.float32) + tl.zeros(total.shape, tl.float32))
    else:
        return total / divisor.to(total.dtype)


@triton.jit
def finished(
    total,
    divisor,
    NORM: tl.constexpr,
    TAPS: tl.constexpr,
    DIVISOR: tl.constexpr,
    NARROW: tl.constexpr,
):
    """Return the average of a window, or with NORM (1 or 2) the root of the average times the TAPS."""
    if NORM == 0:
        return average(total, divisor, DIVISOR, NARROW)
    scaled = total
    if DIVISOR != TAPS:
        scaled = average(total, divisor, DIVISOR, False) * TAPS
    scaled = scaled + 0.0  # -0 becomes 0
    if NORM == 1:
        return scaled
    elif scaled.dtype == tl.float32:
        return tl.sqrt_rn(scaled)
    else:
        return tl.sqrt(scaled)


@triton.jit(repr=_repr, launch_metadata=tiled_metadata)
def _pool_fprop_tiled_kernel(
    x_ptr,
    y_ptr,
    indices_ptr,
    n,
    lanes,
    lanes_out,
    c,
    d,
    h,
    w,
    o,
    p,
    q,
    x_stride_n,
    x_stride_c,
    x_stride_d,
    x_stride_h,
    x_stride_w,
    y_stride_n,
    y_stride_c,
    y_stride_o,
    y_stride_p,
    y_stride_q,
    pad_high_d,
    pad_high_h,
    pad_high_w,
    T: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    STRIDE_D: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    DILATION_D: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    PAD_D: tl.constexpr,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
    OP: tl.constexpr,
    NORM: tl.constexpr,
    DIVISOR: tl.constexpr,
    INCLUDE_PAD: tl.constexpr,
    POSITIONS: tl.constexpr,
    OTHER: tl.constexpr,
    COMPUTE: tl.constexpr,
    NARROW: tl.constexpr,
    UNIT: tl.constexpr,
    INDEX64: tl.constexpr,
    CHANNELS_INNERMOST: tl.constexpr,
    TILE_P: tl.constexpr,
    TILE_Q: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """Compute the maximum (OP "max"), with its number ("indexed", "keys"), or the average or root ("sum") of windows.

    Tensors: x [N, C, D, H, W], y and indices [N, C, O, P, Q] by strides: those of the innermost axis (C with
    CHANNELS_INNERMOST, else W and Q) in elements, others in runs of UNIT elements, and so are `lanes` and `lanes_out`,
    the sizes of the innermost axis in x and in y, so that the compiler sees what is aligned. indices may be None.
    With numbers, TILE_P is 1 unless DILATION_H is.
    Dtypes: any; values are combined in COMPUTE, OTHER outside of x. NARROW says that y has 16 bits. Numbers are taps
    or, with POSITIONS, positions in the plane of x. Keys (pool_keys.py) find taps of 16-bit x, with COMPUTE float32;
    places in them count rows and columns of the tile like those of a window, and must stay below 64. NORM is 0 for
    averages, else the exponent 1 or 2 of the powers.
    Grid: a program computes, of each of its [BLOCK_M, BLOCK_L] items, TILE_P x TILE_Q outputs, row after row of x. With
    CHANNELS_INNERMOST an item is a channel, and grid and items are those of `positions`; else BLOCK_L is 1, an item's
    outputs along Q are stored as one vector, and the grid is (cdiv(items, BLOCK_M),).
    """
    tiles_p = tl.cdiv(p, TILE_P)
    tiles_q = tl.cdiv(q, TILE_Q)
    NUMBER: tl.constexpr = tl.int64 if INDEX64 else tl.int32
    ROWS: tl.constexpr = (TILE_P - 1) * STRIDE_H + (R - 1) * DILATION_H + 1
    COLUMNS: tl.constexpr = (TILE_Q - 1) * STRIDE_W + (S - 1) * DILATION_W + 1
    OUTPUTS: tl.constexpr = TILE_P * TILE_Q
    NUMBERED: tl.constexpr = OP == "indexed" or OP == "keys"
    tl.static_assert(TILE_P == 1 or DILATION_H == 1 or not NUMBERED)
    SHAPE: tl.constexpr = [BLOCK_M, BLOCK_L] if CHANNELS_INNERMOST else [BLOCK_M]
    if CHANNELS_INNERMOST:
        i_n, i_c, i_o, tile_p, tile_q, inside = positions(
            n, lanes * UNIT, o, tiles_p, tiles_q, INDEX64, True, BLOCK_M, BLOCK_L
        )
        x_first = x_ptr + (i_n * (x_stride_n * UNIT) + i_c * x_stride_c)
        y_first = i_n * (y_stride_n * UNIT) + i_c * y_stride_c + i_o * (y_stride_o * UNIT)
        step_w = x_stride_w * UNIT
        step_q = y_stride_q * UNIT
    else:
        i_n, i_c, i_o, tile_p, tile_q = items(c, o, tiles_p, tiles_q, INDEX64, BLOCK_M)
        inside = i_n < n
        w = lanes * UNIT
        q = lanes_out * UNIT
        x_first = x_ptr + (i_n * (x_stride_n * UNIT) + i_c * (x_stride_c * UNIT))
        y_first = i_n * (y_stride_n * UNIT) + i_c * (y_stride_c * UNIT) + i_o * (y_stride_o * UNIT)
        step_w = x_stride_w
        step_q = y_stride_q
    start_d = i_o * STRIDE_D - PAD_D
    start_h = tile_p * (TILE_P * STRIDE_H) - PAD_H
    start_w = tile_q * (TILE_Q * STRIDE_W) - PAD_W

    # What a tap adds to the number of its window, by axis.
    step_t = R * S
    step_r = S
    step_s = 1
    if POSITIONS:
        step_t = tl.cast(h, NUMBER) * w * DILATION_D
        step_r = tl.cast(w, NUMBER) * DILATION_H
        step_s = DILATION_W

    values = ()
    numbers = ()
    for j in tl.static_range(0, OUTPUTS):
        if OP == "keys":
            values = values + (tl.full(SHAPE, -0x80000000, tl.int32),)
        else:
            values = values + (tl.full(SHAPE, OTHER, COMPUTE),)
        number = tl.zeros(SHAPE, NUMBER) + j // TILE_Q * STRIDE_H * step_r
        if NUMBERED:
            # A window whose elements are all the smallest has the number of its first element inside the input, which
            # is its first tap unless it is near the first of the tile: only those may begin before the input.
            if PAD_D > 0:
                number += taps_before(start_d, DILATION_D) * step_t
            if j // TILE_Q * STRIDE_H < PAD_H:
                number += taps_before(start_h + j // TILE_Q * STRIDE_H, DILATION_H) * step_r
            if j % TILE_Q * STRIDE_W < PAD_W:
                number += taps_before(start_w + j % TILE_Q * STRIDE_W, DILATION_W) * step_s
        numbers = numbers + (number,)

    first_numbers = numbers
    for t in tl.static_range(0, T):
        i_d = start_d + t * DILATION_D
        inside_d = inside & (i_d >= 0) & (i_d < d)
        for i in tl.static_range(0, ROWS):
            i_h = start_h + i
            row = x_first + (i_d * (x_stride_d * UNIT) + i_h * (x_stride_h * UNIT))
            row_inside = inside_d & (i_h >= 0) & (i_h < h)
            if CHANNELS_INNERMOST:
                columns = columns_apart(row, row_inside, start_w, w, step_w, OTHER, COMPUTE, COLUMNS)
            else:
                columns = columns_in_runs(
                    row, row_inside, start_w + PAD_W, w, step_w, PAD_W, OTHER, COMPUTE, COLUMNS, STRIDE_W, TILE_Q,
                    BLOCK_M,
                )  # fmt: skip
            if NORM == 2:
                columns = squares(columns, COLUMNS)
            if OP == "keys":
                columns = keys_of(columns, t * (R * S) + i // DILATION_H * S, COLUMNS, DILATION_W)
            # Numbers count rows from the first of the tile: windows that share a row share its numbers.
            row_number = t * step_t + i // DILATION_H * step_r
            of_row, number_in_row = row_windows(
                columns, row_number, step_s, OP, NUMBER, S, TILE_Q, STRIDE_W, DILATION_W
            )
            new_values = ()
            new_numbers = ()
            for j in tl.static_range(0, OUTPUTS):
                value = values[j]
                number = numbers[j]
                distance = i - j // TILE_Q * STRIDE_H
                if t == 0 and distance == 0 and OP != "sum":
                    value, number = of_row[j % TILE_Q], number_in_row[j % TILE_Q]
                elif distance >= 0 and distance <= (R - 1) * DILATION_H and distance % DILATION_H == 0:
                    value, number = combine(value, number, of_row[j % TILE_Q], number_in_row[j % TILE_Q], OP)
                new_values = new_values + (value,)
                new_numbers = new_numbers + (number,)
            values = new_values
            numbers = new_numbers

    for k in tl.static_range(0, TILE_P):
        i_p = tile_p * TILE_P + k
        results = ()
        of_results = ()
        for m in tl.static_range(0, TILE_Q):
            i_q = tile_q * TILE_Q + m
            value = values[k * TILE_Q + m]
            number = numbers[k * TILE_Q + m]
            if OP == "sum":
                divisor = 0
                if DIVISOR == 0:
                    divisor = window_count(i_q, w, PAD_W, pad_high_w, S, STRIDE_W, DILATION_W, INCLUDE_PAD)
                    divisor *= window_count(i_p, h, PAD_H, pad_high_h, R, STRIDE_H, DILATION_H, INCLUDE_PAD)
                    divisor *= window_count(i_o, d, PAD_D, pad_high_d, T, STRIDE_D, DILATION_D, INCLUDE_PAD)
                value = finished(value, divisor, NORM, T * R * S, DIVISOR, NARROW)
            if OP == "keys":
                number = place_of(value) - m * STRIDE_W // DILATION_W
            if NUMBERED and (PAD_D > 0 or k * STRIDE_H < PAD_H or m * STRIDE_W < PAD_W):
                lowest = is_lowest(value) if OP == "keys" else value == OTHER
                number = tl.where(lowest, first_numbers[k * TILE_Q + m], number)
            if POSITIONS and NUMBERED:
                number += (start_d * tl.cast(h, NUMBER) + start_h) * tl.cast(w, NUMBER) + (start_w + m * STRIDE_W)
                number = inside_plane(number, d, h, w, DILATION_D, DILATION_H, DILATION_W)
            elif NUMBERED:
                number -= k * STRIDE_H * step_r
            if OP == "keys":
                value = value_of(value)
            value = value.to(y_ptr.dtype.element_ty)
            if NUMBERED:
                number = number.to(indices_ptr.dtype.element_ty)
            results = results + (value,)
            of_results = of_results + (number,)
            if CHANNELS_INNERMOST:
                offset = y_first + (i_p * (y_stride_p * UNIT) + i_q * step_q)
                written = inside & (i_p < p) & (i_q < q)
                tl.store(y_ptr + offset, value, mask=written)
                if NUMBERED:
                    tl.store(indices_ptr + offset, number, mask=written)
        if not CHANNELS_INNERMOST:
            i_q = (tile_q * TILE_Q)[:, None] + tl.arange(0, TILE_Q)[None, :]
            offset = (y_first + i_p * (y_stride_p * UNIT))[:, None] + i_q * step_q
            written = (inside & (i_p < p))[:, None] & (i_q < q)
            tl.store(y_ptr + offset, zipped(results, BLOCK_M, TILE_Q), mask=written)
            if NUMBERED:
                tl.store(indices_ptr + offset, zipped(of_results, BLOCK_M, TILE_Q), mask=written)
