"""Dense convolution out of boxes that TMA copies, in plain Triton: an implicit GEMM with its operands swapped.

A tap is a shift of a box of positions of x: what the box reads beside the tensor comes as zeros, which is the padding,
and so do channels behind the last. The product is ``w x^T``, with filters as rows: a box of five axes becomes a matrix
without a trip through registers where it is the second operand, and there alone. Weights are such a matrix already, or
for data gradients its transpose, which tensor cores read out of shared memory as well.
"""

import triton
import triton.language as tl

from ..common import activate, stored

_NUMBERS = (
    "n", "c", "k", "groups", "o", "p", "q", "t", "r", "s", "first_d", "first_h", "first_w",
    "step_d", "step_h", "step_w", "tap_first", "tap_step_d", "tap_step_h", "tap_step_w",
    "bias_stride", "scale_stride", "shift_stride",
)  # fmt: skip
"""Arguments of which the compiler knows the type alone: a binary serves all sizes."""


def _repr(specialization):
    """Name the compiled kernel after what it is specialised for, so that a profiler shows it."""
    c = specialization.constants
    box = f"{c['TILE_N']}x{c['TILE_O']}x{c['TILE_P']}x{c['TILE_Q']}"
    return f"_conv_tma_kernel_{box}_{c['BLOCK_K']}x{c['BLOCK_C']}{'_transposed' if c['TRANSPOSED'] else ''}"


def _launch_metadata(grid, kernel, args):
    """Report FLOPs to a profiler (Triton's proton)."""
    positions = args["n"] * args["o"] * args["p"] * args["q"]
    reduction = args["c"] * args["t"] * args["r"] * args["s"]
    return {"name": kernel.name, "flops": 2 * positions * args["k"] * args["groups"] * reduction}


@triton.jit
def _tile_axes(tile, tiles_n, tiles_o, tiles_p, tiles_q, tiles_k, GROUP: tl.constexpr):
    """Take a tile's number apart: image, depth, row, column and filters, in tiles.

    GROUP tiles of positions are walked for each tile of filters before the next ones: neighbouring programs then share
    weights in the L2 cache, and the positions of a group stay there for all filters.
    """
    per_group = GROUP * tiles_k
    group = tile // per_group
    size = tl.minimum(tiles_n * tiles_o * tiles_p * tiles_q - group * GROUP, GROUP)
    within = tile % per_group
    position = group * GROUP + within % size
    lines = position // tiles_q
    planes = lines // tiles_p
    return planes // tiles_o, planes % tiles_o, lines % tiles_p, position % tiles_q, within // size


@triton.jit
def _next_tap(t, r, s, first, taps_t, taps_r, taps_s, BLOCK_C: tl.constexpr):
    """Return the next tap, and where its channels begin: all taps of a block of channels come before the next block.

    Divisions, which would take a step's number apart, are twice as many instructions.
    """
    s += 1
    row_ends = s == taps_s
    s = tl.where(row_ends, 0, s)
    r += row_ends.to(tl.int32)
    plane_ends = r == taps_r
    r = tl.where(plane_ends, 0, r)
    t += plane_ends.to(tl.int32)
    block_ends = t == taps_t
    return tl.where(block_ends, 0, t), r, s, first + tl.where(block_ends, BLOCK_C, 0)


@triton.jit
def _per_filter(ptr, first, begin, k, stride, BLOCK_K: tl.constexpr):
    """Return one number for each row of a tile, [BLOCK_K, 1] in float32; zeros behind the last filter of the group."""
    row = begin + tl.arange(0, BLOCK_K)
    return tl.load(ptr + (first + row).to(tl.int64) * stride, mask=row < k, other=0.0).to(tl.float32)[:, None]


@triton.jit(
    repr=_repr, launch_metadata=_launch_metadata, do_not_specialize=_NUMBERS,
    do_not_specialize_on_alignment=("bias_ptr", "scale_ptr", "shift_ptr"),
)  # fmt: skip
def _conv_tma_kernel(
    x_map,
    w_map,
    y_map,
    residual_map,
    bias_ptr,
    scale_ptr,
    shift_ptr,
    n,
    c,
    k,
    groups,
    o,
    p,
    q,
    t,
    r,
    s,
    first_d,
    first_h,
    first_w,
    step_d,
    step_h,
    step_w,
    tap_first,
    tap_step_d,
    tap_step_h,
    tap_step_w,
    bias_stride,
    scale_stride,
    shift_stride,
    TRANSPOSED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    TILE_N: tl.constexpr,
    TILE_O: tl.constexpr,
    TILE_P: tl.constexpr,
    TILE_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Compute y = activation((sums + bias) * scale + shift + residual), sums over taps and channels of x times w.

    y[n, o, p, q, k] sums x[n, o + first_d + t' step_d, p + first_h + r' step_h, q + first_w + s' step_w, c'] times
    w[tap_first + t' tap_step_d + r' tap_step_h + s' tap_step_w, k, c'] over t' r' s' c'. Forward: first = -padding,
    step = dilation. Data gradient: x is the gradient of y, first = padding, step = -dilation, and `c` and `k`, the
    channels of one group, trade places: TRANSPOSED reads w by [tap, c', k].
    GEMM view, for each group: rows M = filters, columns N = positions of y, reduction taps x channels.

    Tensor maps, channels last: x_map over [N, D, H, W, groups C] in boxes [TILE_N, TILE_O, TILE_P, TILE_Q, BLOCK_C];
    w_map over [taps, groups K, C] in boxes [1, BLOCK_K, BLOCK_C], TRANSPOSED over [taps, groups C, K] in
    [1, BLOCK_C, BLOCK_K]; y_map, and residual_map if there is one, over [N, O, P, Q, groups K] in boxes
    [TILE_N, TILE_O, TILE_P, TILE_Q, BLOCK_K]. What a box would write beside its tensor is dropped. Of several groups
    each has whole blocks of channels and of filters.
    bias, scale, shift: one number for each filter, by one stride each, or None. Dtypes: all of one type, 16-bit floats
    or float32; products are summed in float32 and rounded once, at the store.
    Grid: (tiles of positions x groups x cdiv(K, BLOCK_K),).
    """
    BLOCK_N: tl.constexpr = TILE_N * TILE_O * TILE_P * TILE_Q
    tiles_k = tl.cdiv(k, BLOCK_K)
    at_n, at_o, at_p, at_q, at_k = _tile_axes(
        tl.program_id(0), tl.cdiv(n, TILE_N), tl.cdiv(o, TILE_O), tl.cdiv(p, TILE_P), tl.cdiv(q, TILE_Q),
        groups * tiles_k, GROUP,
    )  # fmt: skip
    at_n *= TILE_N
    at_o *= TILE_O
    at_p *= TILE_P
    at_q *= TILE_Q
    group = at_k // tiles_k
    begin = (at_k - group * tiles_k) * BLOCK_K
    d0 = at_o + first_d
    h0 = at_p + first_h
    w0 = at_q + first_w

    sums = tl.zeros([BLOCK_K, BLOCK_N], tl.float32)
    tap_t = 0
    tap_r = 0
    tap_s = 0
    first = 0
    for _ in range(0, t * r * s * tl.cdiv(c, BLOCK_C)):
        tap = tap_first + tap_t * tap_step_d + tap_r * tap_step_h + tap_s * tap_step_w
        if TRANSPOSED:
            weights = w_map.load([tap, group * c + first, begin]).reshape(BLOCK_C, BLOCK_K).T
        else:
            weights = w_map.load([tap, group * k + begin, first]).reshape(BLOCK_K, BLOCK_C)
        at = [at_n, d0 + tap_t * step_d, h0 + tap_r * step_h, w0 + tap_s * step_w, group * c + first]
        box = x_map.load(at).reshape(BLOCK_N, BLOCK_C)
        sums = tl.dot(weights, box.T, sums, input_precision=PRECISION)  # [BLOCK_K, BLOCK_N]
        tap_t, tap_r, tap_s, first = _next_tap(tap_t, tap_r, tap_s, first, t, r, s, BLOCK_C)

    sums = stored(sums, ACTIVATION)
    if bias_ptr is not None:
        sums = stored(sums + _per_filter(bias_ptr, group * k, begin, k, bias_stride, BLOCK_K), ACTIVATION)
    if scale_ptr is not None:
        sums = stored(sums * _per_filter(scale_ptr, group * k, begin, k, scale_stride, BLOCK_K), ACTIVATION)
    if shift_ptr is not None:
        sums = stored(sums + _per_filter(shift_ptr, group * k, begin, k, shift_stride, BLOCK_K), ACTIVATION)
    here = [at_n, at_o, at_p, at_q, group * k + begin]
    if residual_map is not None:
        residual = residual_map.load(here).reshape(BLOCK_N, BLOCK_K).T.to(tl.float32)
        sums = stored(sums + residual, ACTIVATION)
    result = activate(sums, ACTIVATION).to(y_map.dtype)
    y_map.store(here, result.T.reshape(TILE_N, TILE_O, TILE_P, TILE_Q, BLOCK_K))
