"""Device functions that the adaptive, fractional and unpooling kernels share: places in a tile, windows, divisions."""

import triton
import triton.language as tl

from ..common import four_axes


@triton.jit
def tile_of(pid, tiles_l, BLOCK_M: tl.constexpr, BLOCK_L: tl.constexpr, INDEX64: tl.constexpr):
    """Return the rows [BLOCK_M, 1] and lanes [1, BLOCK_L] of a program; neighbours share their rows."""
    tile_m = pid // tiles_l
    tile_l = pid % tiles_l
    if INDEX64:
        tile_m = tile_m.to(tl.int64)
        tile_l = tile_l.to(tl.int64)
    row = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    lane = tile_l * BLOCK_L + tl.arange(0, BLOCK_L)
    return row[:, None], lane[None, :]


@triton.jit
def place(row, lane, n, c, z, y, x, CHANNELS_INNERMOST: tl.constexpr):
    """Return the coordinates n c z y x of a tile of a tensor of these sizes, and which of its places are inside.

    With CHANNELS_INNERMOST lanes are C and rows run over N Z Y X, as channels-last tensors lie; without, lanes are X
    and rows run over N C Z Y, as contiguous tensors lie. Coordinates are [BLOCK_M, 1] or [1, BLOCK_L].
    """
    if CHANNELS_INNERMOST:
        i_n, i_z, i_y, i_x = four_axes(row, z, y, x)
        i_c = lane
        inside = (i_n < n) & (lane < c)
    else:
        i_n, i_c, i_z, i_y = four_axes(row, c, z, y)
        i_x = lane
        inside = (i_n < n) & (lane < x)
    return i_n, i_c, i_z, i_y, i_x, inside


@triton.jit
def window_start(i, size, windows):
    """Return the first position of window `i` of `windows` over `size` positions: floor(i size / windows).

    Positions and windows change places in ``window_start(position, windows, size)``, the first window that contains a
    position: window ``i`` ends after ``ceil((i + 1) size / windows)``, which is beyond ``position`` from
    ``i = floor(position windows / size)`` on.
    """
    return i * size // windows


@triton.jit
def window_end(i, size, windows):
    """Return the end of window `i`, exclusive: ceil((i + 1) size / windows); swapped as `window_start`."""
    return ((i + 1) * size + windows - 1) // windows


@triton.jit
def divide(total, count):
    """Return total / count, rounded to nearest (plain division of float32 is approximate on the GPU)."""
    if total.dtype == tl.float64:
        return total / count.to(tl.float64)
    else:
        return tl.div_rn(total, count.to(tl.float32))


@triton.jit
def take_larger(value, at, best, best_at):
    """Return the larger of two values and where it is, as torch's max pools choose in the order of a window.

    The first of equal values stays, NaN beats numbers, and the last NaN stays.
    """
    better = (value > best) | (value != value)
    return tl.where(better, value, best), tl.where(better, at, best_at)


@triton.jit
def larger(value, best):
    """Return the larger of two values; NaN wins."""
    return tl.maximum(value, best, propagate_nan=tl.PropagateNan.ALL)
