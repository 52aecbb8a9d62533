"""Passes in front of and behind kernels that want channels innermost: matrices turned round, and sums of columns."""

import triton
import triton.language as tl


def _turn_repr(specialization):
    """Name the compiled kernel after what it is specialised for, so that a profiler shows it."""
    c = specialization.constants
    return f"_conv_turn_kernel_{c['BLOCK_R']}x{c['BLOCK_C']}_i{64 if c['INDEX64'] else 32}"


@triton.jit(repr=_turn_repr)
def _conv_turn_kernel(
    source_ptr,
    result_ptr,
    rows,
    columns,
    source_first,
    result_first,
    source_stride_b,
    source_stride_r,
    source_stride_c,
    result_stride_b,
    result_stride_r,
    result_stride_c,
    INDEX64: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Copy source [B, rows, columns] to result, both by strides in elements of those axes, from an element on.

    Meant for a source whose columns, and a result whose rows, lie side by side: either side is read and written in
    runs, and the tile is turned in shared memory. A stride may be negative.
    Grid: (B cdiv(rows, BLOCK_R) cdiv(columns, BLOCK_C),).
    """
    pid = tl.program_id(0)
    tiles_r = tl.cdiv(rows, BLOCK_R)
    tiles_c = tl.cdiv(columns, BLOCK_C)
    b = pid // (tiles_r * tiles_c)
    r = pid // tiles_c % tiles_r * BLOCK_R + tl.arange(0, BLOCK_R)  # [BLOCK_R]
    c = pid % tiles_c * BLOCK_C + tl.arange(0, BLOCK_C)  # [BLOCK_C]
    in_rows = r < rows
    in_columns = c < columns
    if INDEX64:
        b = b.to(tl.int64)
        r = r.to(tl.int64)
        c = c.to(tl.int64)
    source = source_ptr + (source_first + b * source_stride_b)
    offsets = (r * source_stride_r)[:, None] + (c * source_stride_c)[None, :]
    values = tl.load(source + offsets, mask=in_rows[:, None] & in_columns[None, :], other=0.0)  # [BLOCK_R, BLOCK_C]
    result = result_ptr + (result_first + b * result_stride_b)
    offsets = (c * result_stride_c)[:, None] + (r * result_stride_r)[None, :]
    tl.store(result + offsets, tl.trans(values), mask=in_columns[:, None] & in_rows[None, :])


def _columns_repr(specialization):
    """Name the compiled kernel after what it is specialised for, so that a profiler shows it."""
    c = specialization.constants
    return f"_conv_column_sums_kernel_{c['BLOCK_R']}x{c['BLOCK_C']}_i{64 if c['INDEX64'] else 32}"


@triton.jit(repr=_columns_repr)
def _conv_column_sums_kernel(
    matrix_ptr,
    partial_ptr,
    rows,
    columns,
    rows_per_split,
    elements,
    first,
    INDEX64: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Write partial sums of each column, in float32: partial[split, first + column] of [splits, elements].

    Tensors: matrix [rows, columns] contiguous; a split adds rows_per_split rows, in an order that depends on their
    number alone.
    Grid: (cdiv(columns, BLOCK_C), splits).
    """
    split = tl.program_id(1)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)  # [BLOCK_C]
    r = tl.arange(0, BLOCK_R)  # [BLOCK_R]
    begin = split * rows_per_split
    in_columns = c < columns
    if INDEX64:
        split = split.to(tl.int64)
        c = c.to(tl.int64)
        r = r.to(tl.int64)
        begin = split * rows_per_split
    end = min(begin + rows_per_split, rows)
    sums = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for row in range(begin, end, BLOCK_R):
        inside = (row + r < end)[:, None] & in_columns[None, :]
        sums += tl.load(matrix_ptr + ((row + r) * columns)[:, None] + c[None, :], mask=inside, other=0.0).to(tl.float32)
    tl.store(partial_ptr + (split * elements + first + c), tl.sum(sums, 0), mask=in_columns)
