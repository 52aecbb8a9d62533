"""Device functions of the depthwise kernels, whose lanes own columns of one channel: loads, slices, vectors."""

import triton
import triton.language as tl


@triton.jit
def widened(stride, INDEX64: tl.constexpr):
    """Return a stride in 64 bits where offsets need them."""
    found = stride
    if INDEX64:
        found = tl.program_id(0).to(tl.int64) * 0 + stride
    return found


@triton.jit
def within(i, size):
    """Tell where 0 <= i < size: in one comparison where `i` has 32 bits, of which those below 0 are above all."""
    if i.dtype.primitive_bitwidth == 32:
        inside = i.to(tl.uint32, bitcast=True) < size
    else:
        inside = (i >= 0) & (i < size)
    return inside


@triton.jit
def split_columns(v, DTYPE: tl.constexpr, VEC: tl.constexpr, LANES: tl.constexpr):
    """Take a vector of VEC columns per lane [LANES, VEC] apart into VEC tensors [LANES]: registers are renamed."""
    if VEC == 2:
        c0, c1 = tl.split(v)
        columns = (c0.to(DTYPE), c1.to(DTYPE))
    elif VEC == 4:
        even, odd = tl.split(v.reshape(LANES, 2, 2))
        c0, c2 = tl.split(even)
        c1, c3 = tl.split(odd)
        columns = (c0.to(DTYPE), c1.to(DTYPE), c2.to(DTYPE), c3.to(DTYPE))
    else:
        even, odd = tl.split(v.reshape(LANES, 2, 2, 2))
        c04, c26 = tl.split(even)
        c15, c37 = tl.split(odd)
        c0, c4 = tl.split(c04)
        c2, c6 = tl.split(c26)
        c1, c5 = tl.split(c15)
        c3, c7 = tl.split(c37)
        columns = (
            c0.to(DTYPE), c1.to(DTYPE), c2.to(DTYPE), c3.to(DTYPE),
            c4.to(DTYPE), c5.to(DTYPE), c6.to(DTYPE), c7.to(DTYPE),
        )  # fmt: skip
    return columns


@triton.jit
def join_columns(columns, VEC: tl.constexpr, LANES: tl.constexpr):
    """Put VEC tensors [LANES] side by side: [LANES, VEC]."""
    if VEC == 2:
        v = tl.join(columns[0], columns[1])
    elif VEC == 4:
        v = tl.join(tl.join(columns[0], columns[2]), tl.join(columns[1], columns[3])).reshape(LANES, 4)
    else:
        even = tl.join(tl.join(columns[0], columns[4]), tl.join(columns[2], columns[6]))
        odd = tl.join(tl.join(columns[1], columns[5]), tl.join(columns[3], columns[7]))
        v = tl.join(even, odd).reshape(LANES, 8)
    return v


@triton.jit
def _load_row(
    ptr, inside, column, column_pitch, width, column_step, FIRST: tl.constexpr, LAST: tl.constexpr, VEC: tl.constexpr
):
    """Load the vectors FIRST .. LAST - 1 of VEC columns around a lane's column; zeros outside of the source."""
    loaded = ()
    for j in tl.static_range(FIRST, LAST):
        if VEC == 1:
            reads = inside & within(column + j * column_pitch, width)
            loaded = loaded + (tl.load(ptr + j * column_step, mask=reads, other=0.0),)
        else:
            reads = inside & within(column + j * VEC, width)  # a vector is inside as a whole
            loaded = loaded + (tl.load(ptr + j * VEC, mask=reads[:, None], other=0.0),)
    return loaded


@triton.jit
def load_rows(
    ptr, live, row, row_pitch, height, row_step, column, column_pitch, width, column_step, slices,
    A: tl.constexpr, SLICES: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr, VEC: tl.constexpr,
    DEPTH: tl.constexpr,
):  # fmt: skip
    """Load the A rows of one step from each slice, one after the other; see :func:`slices_of`."""
    loaded = ()
    for z in tl.static_range(SLICES):
        for j in tl.static_range(A):
            i = row + j * row_pitch
            inside = live & within(i, height)
            if DEPTH:
                inside = inside & slices[2 * SLICES + z]
            loaded = loaded + _load_row(
                ptr + (i * row_step + slices[z]), inside, column, column_pitch, width, column_step, FIRST, LAST, VEC
            )
    return loaded


@triton.jit
def widen(loaded, DTYPE: tl.constexpr, VEC: tl.constexpr, LANES: tl.constexpr):
    """Return loaded columns, or vectors of columns, as columns of the type in which sums are formed."""
    columns = ()
    for j in tl.static_range(len(loaded)):
        if VEC == 1:
            columns = columns + (loaded[j].to(DTYPE),)
        else:
            columns = columns + split_columns(loaded[j], DTYPE, VEC, LANES)
    return columns


@triton.jit
def slices_of(
    o, depth, source_stride_c, source_stride_d, w_stride_k, w_stride_t, pad_d,
    T: tl.constexpr, STRIDE_D: tl.constexpr, DILATION_D: tl.constexpr, STEP_D: tl.constexpr, INVERSE_D: tl.constexpr,
    MULTIPLES: tl.constexpr, SLICES: tl.constexpr, GRAD: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Return what is summed over beside rows and columns: taps along the depth and, in a gradient, a channel's filters.

    The result has three entries per slice: SLICES offsets into the source, as many into w, and as many that tell
    whether the slice lies in the source. Taps of a gradient come in steps of STEP_D from the first that meets `o`.
    """
    source = ()
    weight = ()
    inside = ()
    for z in tl.static_range(SLICES):
        multiple = z % MULTIPLES
        t = z // MULTIPLES
        if DEPTH and GRAD:
            at = o + pad_d
            t = at // (STRIDE_D // STEP_D) % STEP_D * INVERSE_D % STEP_D + t * STEP_D
            from_tap = at - t * DILATION_D
            i = from_tap // STRIDE_D
            inside = inside + ((t < T) & (from_tap >= 0) & (from_tap % STRIDE_D == 0) & (i < depth),)
            source = source + (i * source_stride_d + multiple * source_stride_c,)
            weight = weight + (t * w_stride_t + multiple * w_stride_k,)
        elif DEPTH:
            i = o * STRIDE_D - pad_d + t * DILATION_D
            inside = inside + ((i >= 0) & (i < depth),)
            source = source + (i * source_stride_d,)
            weight = weight + (t * w_stride_t,)
        else:
            inside = inside + (o >= 0,)
            source = source + (multiple * source_stride_c,)
            weight = weight + (multiple * w_stride_k,)
    return source + weight + inside


@triton.jit
def load_vector(ptr, offset, inside, DTYPE: tl.constexpr):
    """Load the numbers of the epilogue that belong to each lane's channel; None without them."""
    values = ptr
    if ptr is not None:
        values = tl.load(ptr + offset, mask=inside, other=0.0).to(DTYPE)
    return values


@triton.jit
def as_column(values, VO: tl.constexpr):
    """Return lanes' numbers [LANES] as [LANES, 1] where lanes store vectors; None without them."""
    column = values
    if values is not None and VO > 1:
        column = values[:, None]
    return column
