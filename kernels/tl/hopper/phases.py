"""The phases of a data gradient of stride 2 or more in one launch: tiles of all of them, those of most taps first.

Results that are equal modulo the stride meet the same taps, so each phase is a convolution of stride 1 of its own, with
a tensor map of its own for what it writes. Launched one after the other, a phase of fewer tiles than multiprocessors
leaves the rest of them idle, as often as there are phases; here tiles of all phases are numbered together.
"""

from triton.experimental.gluon import language as gl

from .common import one_binary
from .tiles import multiply_tiles


@one_binary
def _conv_phases_kernel(
    x_map,
    w_map,
    y_map,
    y1_map,
    y2_map,
    y3_map,
    y4_map,
    y5_map,
    y6_map,
    y7_map,
    residual_map,
    residual1_map,
    residual2_map,
    residual3_map,
    residual4_map,
    residual5_map,
    residual6_map,
    residual7_map,
    bias_ptr,
    scale_ptr,
    shift_ptr,
    n,
    c,
    k,
    o,
    p,
    q,
    step_d,
    step_h,
    step_w,
    tap_step_d,
    tap_step_h,
    tap_step_w,
    programs,
    t0, r0, s0, first_d0, first_h0, first_w0, tap_first0,
    t1, r1, s1, first_d1, first_h1, first_w1, tap_first1,
    t2, r2, s2, first_d2, first_h2, first_w2, tap_first2,
    t3, r3, s3, first_d3, first_h3, first_w3, tap_first3,
    t4, r4, s4, first_d4, first_h4, first_w4, tap_first4,
    t5, r5, s5, first_d5, first_h5, first_w5, tap_first5,
    t6, r6, s6, first_d6, first_h6, first_w6, tap_first6,
    t7, r7, s7, first_d7, first_h7, first_w7, tap_first7,
    TILE_N: gl.constexpr,
    TILE_P: gl.constexpr,
    TILE_Q: gl.constexpr,
    ROWS: gl.constexpr,
    COLUMNS: gl.constexpr,
    BLOCK_K: gl.constexpr,
    BLOCK_C: gl.constexpr,
    GROUP: gl.constexpr,
    STAGES: gl.constexpr,
    CHUNKS: gl.constexpr,
    TRANSPOSED: gl.constexpr,
    ACTIVATION: gl.constexpr,
    ROUND_EACH: gl.constexpr,
    INSTRUCTION_N: gl.constexpr,
    INSTRUCTION_K: gl.constexpr,
    WARPS: gl.constexpr,
    CONSUMER_REGISTERS: gl.constexpr,
    PRODUCER_REGISTERS: gl.constexpr,
    SHARED: gl.constexpr,
    PHASES: gl.constexpr,
):  # fmt: skip
    """Compute what `_conv_tiles_kernel` does for each of PHASES phases: results that are equal modulo the stride.

    Phase i has t_i x r_i x s_i taps, the first of them tap_first_i at first_i, and maps y_i and residual_i of its part
    of the result; those that go beyond PHASES are None and 0. Steps from tap to tap, x and w are the same for all. `o`,
    `p` and `q` are the largest sizes of a phase: of the others, tiles that are beyond are computed and dropped.
    A phase that no tap meets has one tap that is no number of the weights: tap_first_i < 0, and one step of zeros.

    Tiles of phase 0 come first: pass that with most taps as 0, so that the last tiles are short ones. Boxes, epilogue,
    consumers and clusters as in `_conv_tiles_kernel`.

    Grid: (programs,), the number of multiprocessors or half of it with a cluster.
    """
    multiply_tiles(
        x_map,
        w_map,
        (y_map, y1_map, y2_map, y3_map, y4_map, y5_map, y6_map, y7_map),
        (
            residual_map,
            residual1_map,
            residual2_map,
            residual3_map,
            residual4_map,
            residual5_map,
            residual6_map,
            residual7_map,
        ),
        (bias_ptr, scale_ptr, shift_ptr),
        (n, o, p, q, k),
        (
            (t0, t1, t2, t3, t4, t5, t6, t7),
            (r0, r1, r2, r3, r4, r5, r6, r7),
            (s0, s1, s2, s3, s4, s5, s6, s7),
        ),
        (
            (first_d0, first_d1, first_d2, first_d3, first_d4, first_d5, first_d6, first_d7),
            (first_h0, first_h1, first_h2, first_h3, first_h4, first_h5, first_h6, first_h7),
            (first_w0, first_w1, first_w2, first_w3, first_w4, first_w5, first_w6, first_w7),
        ),
        (step_d, step_h, step_w),
        (
            (tap_first0, tap_first1, tap_first2, tap_first3, tap_first4, tap_first5, tap_first6, tap_first7),
            tap_step_d,
            tap_step_h,
            tap_step_w,
        ),
        c,
        programs,
        TILE_N,
        TILE_P,
        TILE_Q,
        ROWS,
        COLUMNS,
        BLOCK_K,
        BLOCK_C,
        GROUP,
        STAGES,
        CHUNKS,
        TRANSPOSED,
        ACTIVATION,
        ROUND_EACH,
        INSTRUCTION_N,
        INSTRUCTION_K,
        WARPS,
        CONSUMER_REGISTERS,
        PRODUCER_REGISTERS,
        SHARED,
        PHASES,
    )
