"""Where a deformable convolution samples its input: the corners of a position and their weights, for its kernels.

A sample lies anywhere between the elements of x. It is interpolated between two neighbours along each axis that has
offsets, the last NDIM of D, H, W: between 2**NDIM corners. Bit 0 of a corner is for W, bit 1 for H, bit 2 for D; a set
bit means the higher neighbour. Corners outside of x count as zeros, and so do samples not strictly between -1 and the
size along each axis.
"""

import triton
import triton.language as tl


@triton.jit
def _axis(position, size):
    """Return of an axis: lower neighbour, fraction, whether each neighbour is inside, whether there is a sample.

    At -1 itself the higher neighbour is inside although there is no sample: the gradient of a position has it. A NaN is
    outside.
    """
    near = (position >= -1) & (position < size)
    there = tl.where(near, position, 0.0)
    low = tl.floor(there)
    fraction = there - low
    low = low.to(tl.int32)
    return low, fraction, near & (low >= 0), near & (low < size - 1), near & (position > -1)


@triton.jit
def _no_axis(row):
    """Return what :func:`_axis` would of an axis of one element, where the position is 0."""
    low = (row * 0).to(tl.int32)
    there = low == 0
    return low, low.to(tl.float32), there, there, there


@triton.jit
def sample_axes(
    offset, inside, offset_stride_c, base_d, base_h, base_w, d, h, w, NDIM: tl.constexpr, POSITION: tl.constexpr
):
    """Return the axes D, H, W of samples, each as :func:`_axis` has it, and 1 for each sample, NaN where it is broken.

    `offset` points to the offset along the first of the NDIM axes; the bases are positions without offsets, in elements
    of x. A sample is broken where its position is NaN along an axis.
    """
    at_w = base_w.to(POSITION) + tl.load(offset + (NDIM - 1) * offset_stride_c, mask=inside, other=0.0).to(POSITION)
    axis_w = _axis(at_w, w)
    broken = at_w != at_w
    axis_h = _no_axis(base_w)
    axis_d = _no_axis(base_w)
    if NDIM > 1:
        at_h = base_h.to(POSITION) + tl.load(offset + (NDIM - 2) * offset_stride_c, mask=inside, other=0.0).to(POSITION)
        axis_h = _axis(at_h, h)
        broken = broken | (at_h != at_h)
    if NDIM > 2:
        at_d = base_d.to(POSITION) + tl.load(offset, mask=inside, other=0.0).to(POSITION)
        axis_d = _axis(at_d, d)
        broken = broken | (at_d != at_d)
    return axis_d, axis_h, axis_w, tl.where(broken, float("nan"), 1.0).to(POSITION)


@triton.jit
def corner_offset(axes, x_stride_d, x_stride_h, x_stride_w, CORNER: tl.constexpr, INDEX64: tl.constexpr):
    """Return where in an image of x a corner lies, in elements; anything where it is outside."""
    at_d = axes[0][0] + (CORNER >> 2)
    at_h = axes[1][0] + (CORNER >> 1) % 2
    at_w = axes[2][0] + CORNER % 2
    if INDEX64:
        at_d = at_d.to(tl.int64)
        at_h = at_h.to(tl.int64)
        at_w = at_w.to(tl.int64)
    return at_d * x_stride_d + at_h * x_stride_h + at_w * x_stride_w


@triton.jit
def corner_inside(axes, CORNER: tl.constexpr):
    """Tell which samples have this corner in x."""
    return axes[0][2 + (CORNER >> 2)] & axes[1][2 + (CORNER >> 1) % 2] & axes[2][2 + CORNER % 2]


@triton.jit
def sampled(axes):
    """Tell which samples there are: the others are 0 whatever x holds."""
    return axes[0][4] & axes[1][4] & axes[2][4]


@triton.jit
def _share(axis, HIGH: tl.constexpr, SLOPE: tl.constexpr):
    """Return the weight of a neighbour along one axis, or how fast that grows with the position."""
    if SLOPE:
        return axis[1] * 0 + (2 * HIGH - 1)
    elif HIGH:
        return axis[1]
    else:
        return 1 - axis[1]


@triton.jit
def corner_weight(axes, CORNER: tl.constexpr, NDIM: tl.constexpr, ALONG: tl.constexpr):
    """Return the weight of a corner, or its derivative by the position ALONG an axis, 0 the first of NDIM; -1: none."""
    weight = _share(axes[2], CORNER % 2, ALONG == NDIM - 1)
    if NDIM > 1:
        weight *= _share(axes[1], (CORNER >> 1) % 2, ALONG == NDIM - 2)
    if NDIM > 2:
        weight *= _share(axes[0], CORNER >> 2, ALONG == 0)
    return weight
