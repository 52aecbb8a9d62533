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


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """Apply an activation by name (formulas of torch.nn.functional); None leaves `x` as it is. NaN propagates."""
    if ACTIVATION == "relu":
        x = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACTIVATION == "relu6":
        x = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
        x = tl.minimum(x, 6.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACTIVATION == "hardswish":
        gate = tl.maximum(x + 3.0, 0.0, propagate_nan=tl.PropagateNan.ALL)
        x = x * tl.minimum(gate, 6.0, propagate_nan=tl.PropagateNan.ALL) / 6.0
    elif ACTIVATION == "silu":
        x = x * sigmoid(x)
    elif ACTIVATION == "gelu":
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        x = 0.5 * x * (1.0 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))
    elif ACTIVATION == "sigmoid":
        x = sigmoid(x)
    elif ACTIVATION == "tanh":
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

    Columns of the accumulator are channels, which bias, scale and shift have one number for, each by a stride in
    elements; `residual_tile` holds a pointer per element. Each of them may be None.
    """
    dtype = accumulator.dtype
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + channel * bias_stride, mask=column_inside, other=0.0).to(dtype)
        accumulator = accumulator + bias[None, :]
    if scale_ptr is not None:
        scale = tl.load(scale_ptr + channel * scale_stride, mask=column_inside, other=0.0).to(dtype)
        accumulator = accumulator * scale[None, :]
    if shift_ptr is not None:
        shift = tl.load(shift_ptr + channel * shift_stride, mask=column_inside, other=0.0).to(dtype)
        accumulator = accumulator + shift[None, :]
    if residual_tile is not None:
        residual = tl.load(residual_tile, mask=written, other=0.0)
        accumulator = accumulator + residual.to(dtype)
    return activate(accumulator, ACTIVATION)


@triton.jit
def floor_mod(i, size):
    """Return `i` modulo `size` in [0, size), for negative `i` as well."""
    remainder = i % size
    return tl.where(remainder < 0, remainder + size, remainder)
