"""Device functions that the Triton kernels share."""

import triton
import triton.language as tl


@triton.jit
def grouped_tile(pid, tiles_m, tiles_n, GROUP_M: tl.constexpr):
    """Return the (m, n) tile of a program, walking GROUP_M rows of tiles before the next column.

    Neighbouring programs then share rows of A and columns of B in the L2 cache.
    """
    per_group = GROUP_M * tiles_n
    group = pid // per_group
    rows = tl.minimum(tiles_m - group * GROUP_M, GROUP_M)
    within = pid % per_group
    return group * GROUP_M + within % rows, within // rows


@triton.jit
def four_axes(row, z, y, x):
    """Take rows apart: return (n, i_z, i_y, i_x) with row = ((n z + i_z) y + i_y) x + i_x."""
    i_x = row % x
    lines = row // x
    i_y = lines % y
    planes = lines // y
    i_z = planes % z
    return planes // z, i_z, i_y, i_x


@triton.jit
def tile_pointers(ptr, row, column):
    """Return a pointer to each element of a tile whose rows and columns lie at these offsets, or None without `ptr`."""
    tile = ptr
    if ptr is not None:
        tile = ptr + (row[:, None] + column[None, :])
    return tile


@triton.jit
def source_index(i, size, PADDING_MODE: tl.constexpr):
    """Return the input position that padded coordinate `i` shows; "zeros" leaves it as it is, to be masked.

    "reflect" mirrors once at each edge (pads are smaller than the input), "replicate" clamps, "circular" wraps any
    number of times.
    """
    if PADDING_MODE == "reflect":
        i = tl.where(i < 0, -i, i)
        i = tl.where(i >= size, 2 * (size - 1) - i, i)
    elif PADDING_MODE == "replicate":
        i = tl.minimum(tl.maximum(i, 0), size - 1)
    elif PADDING_MODE == "circular":
        i = i % size
        i = tl.where(i < 0, i + size, i)  # the remainder takes the sign of the dividend
    return i


@triton.jit
def tanh(x):
    """Return tanh(x) from exp(-2|x|), which never overflows."""
    e = tl.exp(-2 * tl.abs(x))
    magnitude = (1 - e) / (1 + e)
    return tl.where(x < 0, -magnitude, magnitude)


@triton.jit
def sigmoid(x):
    """Return 1 / (1 + exp(-x)) without overflow on either side."""
    e = tl.exp(-tl.abs(x))
    return tl.where(x < 0, e, 1.0) / (1 + e)


@triton.constexpr_function
def step_type(ACTIVATION):
    """Return the type that each step of an epilogue rounds to, which may stand in front of an activation; or None."""
    return {"float16": tl.float16, "bfloat16": tl.bfloat16}.get((ACTIVATION or "").partition(" ")[0])


@triton.constexpr_function
def activation_name(ACTIVATION):
    """Return the activation alone, or None."""
    return ACTIVATION if step_type(ACTIVATION) is None else ACTIVATION.partition(" ")[2] or None


@triton.jit
def stored(x, ACTIVATION: tl.constexpr):
    """Return what a store between two steps of an epilogue leaves of `x`: `x` itself, unless ACTIVATION has a type."""
    TYPE: tl.constexpr = step_type(ACTIVATION)
    if TYPE is not None:
        x = x.to(TYPE).to(x.dtype)
    return x


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """Apply an activation by name (formulas of torch.nn.functional); None leaves `x` as it is. NaN propagates.

    A type in front of the name ("bfloat16 relu") is for :func:`stored`.
    """
    NAME: tl.constexpr = activation_name(ACTIVATION)
    if NAME == "relu":
        x = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif NAME == "relu6":
        x = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
        x = tl.minimum(x, 6.0, propagate_nan=tl.PropagateNan.ALL)
    elif NAME == "hardswish":
        gate = tl.maximum(x + 3.0, 0.0, propagate_nan=tl.PropagateNan.ALL)
        x = x * tl.minimum(gate, 6.0, propagate_nan=tl.PropagateNan.ALL) / 6.0
    elif NAME == "silu":
        x = x * sigmoid(x)
    elif NAME == "gelu":
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif NAME == "gelu_tanh":
        x = 0.5 * x * (1.0 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))
    elif NAME == "sigmoid":
        x = sigmoid(x)
    elif NAME == "tanh":
        x = tanh(x)
    return x


@triton.jit
def epilogue(
    accumulator,
    bias_ptr,
    scale_ptr,
    shift_ptr,
    bias_stride,
    scale_stride,
    shift_stride,
    residual_tile,
    channel,
    column_inside,
    written,
    ACTIVATION: tl.constexpr,
):
    """Return activation((accumulator + bias) * scale + shift + residual) in the type of the accumulator.

    With a type in ACTIVATION every step is rounded to it, the accumulator first. Columns of the accumulator are
    channels, which bias, scale and shift have one number for, each by a stride in elements; `residual_tile` holds a
    pointer per element. Each of them may be None.
    """
    dtype = accumulator.dtype
    accumulator = stored(accumulator, ACTIVATION)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + channel * bias_stride, mask=column_inside, other=0.0).to(dtype)
        accumulator = stored(accumulator + bias[None, :], ACTIVATION)
    if scale_ptr is not None:
        scale = tl.load(scale_ptr + channel * scale_stride, mask=column_inside, other=0.0).to(dtype)
        accumulator = stored(accumulator * scale[None, :], ACTIVATION)
    if shift_ptr is not None:
        shift = tl.load(shift_ptr + channel * shift_stride, mask=column_inside, other=0.0).to(dtype)
        accumulator = stored(accumulator + shift[None, :], ACTIVATION)
    if residual_tile is not None:
        residual = tl.load(residual_tile, mask=written, other=0.0)
        accumulator = stored(accumulator + residual.to(dtype), ACTIVATION)
    return activate(accumulator, ACTIVATION)


@triton.jit
def floor_mod(i, size):
    """Return `i` modulo `size` in [0, size), for negative `i` as well."""
    remainder = i % size
    return tl.where(remainder < 0, remainder + size, remainder)
