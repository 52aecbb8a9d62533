"""The weights of convolutions over runs, spread to the order in which runs are read, and phases; see ``runs.py``."""

import triton
import triton.language as tl


def _spread_repr(specialization):
    """Name the compiled kernel after what it is specialised for, so that a profiler shows it."""
    c = specialization.constants
    return f"_conv_runs_spread_kernel_c{c['C']}_{c['T']}x{c['R']}x{c['S']}_i{64 if c['INDEX64'] else 32}"


@triton.jit
def has_tap(tap, TAPS: tl.constexpr):
    """Tell which taps a window of TAPS has."""
    return (tap >= 0) & (tap < TAPS)


@triton.jit
def phases_of(channel, FILTERS: tl.constexpr, STEP_P: tl.constexpr, STEP_Q: tl.constexpr):
    """Return the phases along D, H and W of columns of a product, which stand (phase, channel of the result)."""
    phase = channel // FILTERS
    return phase // (STEP_P * STEP_Q), phase // STEP_Q % STEP_P, phase % STEP_Q


@triton.jit
def in_result(at, size, STEP: tl.constexpr, OFFSET: tl.constexpr, REST: tl.constexpr):
    """Tell which positions `at` are there, where `size` steps hold all but OFFSET before the first, REST at the end."""
    return (at >= 0) & (at < size * STEP - (OFFSET + REST))


@triton.jit(repr=_spread_repr)
def _conv_runs_spread_kernel(
    w_ptr,
    spread_ptr,
    k,
    w_offset,
    w_stride_k,
    w_stride_c,
    w_stride_t,
    w_stride_r,
    w_stride_s,
    C: tl.constexpr,
    T: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    PLANES: tl.constexpr,
    LEAD: tl.constexpr,
    RUN: tl.constexpr,
    CHANNELS: tl.constexpr,
    SLICES: tl.constexpr,
    STRIDE_W: tl.constexpr,
    COLS: tl.constexpr,
    ROWS: tl.constexpr,
    FILTERS: tl.constexpr,
    STEP_O: tl.constexpr,
    STEP_P: tl.constexpr,
    STEP_Q: tl.constexpr,
    TOP_D: tl.constexpr,
    TOP_H: tl.constexpr,
    TOP_W: tl.constexpr,
    TAPS_D: tl.constexpr,
    TAPS_H: tl.constexpr,
    TAPS_W: tl.constexpr,
    INDEX64: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """Spread w to the order of `_conv_runs_kernel`, zero where a run has elements beside the window.

    Tensors: w [K, C, T, R, S] by strides in elements, which may be negative, from `w_offset`; spread [tiles of K,
    blocks of slices, ROWS, (t, c, e), BLOCK_N], contiguous, of the same type. With phases the filters are (phases,
    FILTERS), and zeros stand for taps that a phase does not have; strides along T, R, S go from tap TOP down.
    Grid: (tiles of K * blocks * ROWS * DEPTH / BLOCK_E,). A program writes BLOCK_E rows of COLS times the same filters.
    """
    DEPTH: tl.constexpr = SLICES * CHANNELS * RUN
    BLOCKS: tl.constexpr = (T + SLICES - 1) // SLICES
    pid = tl.program_id(0)
    part = pid % (DEPTH // BLOCK_E)
    line = pid // (DEPTH // BLOCK_E)
    r = line % ROWS
    b = line // ROWS % BLOCKS
    reduced = part * BLOCK_E + tl.arange(0, BLOCK_E)[:, None]  # [BLOCK_E, 1]
    sub = tl.arange(0, BLOCK_N)[None, :] // (BLOCK_N // COLS)  # [1, BLOCK_N], which of the COLS columns
    filter_ = line // (ROWS * BLOCKS) * (BLOCK_N // COLS) + tl.arange(0, BLOCK_N)[None, :] % (BLOCK_N // COLS)
    to = spread_ptr + (line * DEPTH + reduced) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    if INDEX64:
        r = r.to(tl.int64)
        b = b.to(tl.int64)
        reduced = reduced.to(tl.int64)
        filter_ = filter_.to(tl.int64)
    e = reduced % RUN - LEAD
    if COLS > 1:
        e = e - sub * (STRIDE_W if PLANES else STRIDE_W * C)
    t = b * SLICES + reduced // (RUN * CHANNELS)
    if PLANES:
        c = reduced // RUN % CHANNELS
        s = e
    else:
        c = e % C
        s = e // C
    taken = (e >= 0) & (s < S) & (c < C) & (t < T) & (r < R) & (filter_ < k)
    if STEP_O * STEP_P * STEP_Q > 1:
        phase = filter_ // FILTERS
        filter_ = filter_ % FILTERS
        t = t * STEP_O - phase // (STEP_P * STEP_Q)
        r = r * STEP_P - phase // STEP_Q % STEP_P
        s = s * STEP_Q - phase % STEP_Q
        taken = taken & has_tap(TOP_D - t, TAPS_D) & has_tap(TOP_H - r, TAPS_H) & has_tap(TOP_W - s, TAPS_W)
    w = w_ptr + w_offset + filter_ * w_stride_k + (c * w_stride_c + t * w_stride_t + r * w_stride_r + s * w_stride_s)
    tl.store(to, tl.load(w, mask=taken, other=0.0))
