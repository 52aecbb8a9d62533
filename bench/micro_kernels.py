"""Small Triton kernels for the microbenchmarks: bandwidth of L2 and L1, and what a launch costs."""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["_null_kernel", "_reread_kernel", "_taps_kernel"]


@triton.jit
def _null_kernel(out_ptr):
    """Do nothing: what is left is the launch."""


@triton.jit
def _reread_kernel(x_ptr, out_ptr, blocks, MODIFIER: tl.constexpr, BLOCK: tl.constexpr):
    """Read `blocks` blocks of BLOCK elements, each program starting at another, and sum them.

    Grid: any number of programs, each reads everything. `out_ptr` gets BLOCK sums per program.
    """
    program = tl.program_id(0)
    lanes = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for step in range(blocks):
        block = (program + step) % blocks
        total += tl.load(x_ptr + block * BLOCK + lanes, cache_modifier=MODIFIER)
    tl.store(out_ptr + program * BLOCK + lanes, total)


@triton.jit
def _taps_kernel(x_ptr, out_ptr, columns, MODIFIER: tl.constexpr, TAPS: tl.constexpr, BLOCK: tl.constexpr):
    """Sum TAPS shifted rows, as a convolution along one axis reads them: each element is loaded TAPS times.

    Grid: blocks of BLOCK columns. `x_ptr` holds TAPS - 1 elements more than `columns`.
    """
    lanes = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = lanes < columns
    total = tl.zeros([BLOCK], tl.float32)
    for tap in range(TAPS):
        total += tl.load(x_ptr + lanes + tap, mask=inside, other=0.0, cache_modifier=MODIFIER)
    tl.store(out_ptr + lanes, total, mask=inside)
