"""Every size formula of the library, one axis at a time; entered by everyone.

Reference, Triton, CuPy, fake kernels and modules all compute their sizes here and nowhere else.

Functions of one axis compute, in both directions: output size from input size (``conv_output_size``,
``conv_transpose_output_size``, ``pool_output_size``), input sizes from an output size (``conv_input_sizes``,
``conv_transpose_input_size``, ``pool_input_sizes``), paddings by name (``pad_same``, ``pad_divide``, ...) and for a
wanted size (``conv_padding_totals``, ``conv_transpose_output_padding``, ...), windows and receptive fields. The
questions (``ask_output``, ``ask_input``, ``ask_padding``, ``ask_output_padding``) answer with the formula that was
used, its numbers and its source, and say what would do where nothing does; ``gpuconv shape`` asks them from the shell.

Conventions
-----------
- One call describes one axis; `map_axes` applies a function to all axes of a problem.
- ``pad_lo`` and ``pad_hi`` are the padding before the first and after the last element. A symmetric padding ``p``
  is ``pad_lo = pad_hi = p``. Negative padding (cropping) follows the same formulas.
- In the docstrings ``n`` is the input size, ``o`` the output size, ``k`` the kernel, ``s`` the stride, ``d`` the
  dilation and ``t = d * (k - 1)`` the distance between the first and the last tap.
- Nothing is validated or clamped: a formula may return a size <= 0, which callers report as the user error it is.
  Functions that search for a parameter raise ``ValueError`` when no value exists.
- Formulas use only ``+ - * //`` and, where a decision cannot be avoided, a comparison (``min`` and ``max`` are
  one), so they also work on ``torch.SymInt``; ``//`` rounds towards minus infinity. `conv_input_sizes`,
  `pool_input_sizes`, `conv_padding_totals`, `adaptive_windows`, `fractional_pool_starts` and the questions are for
  plain ints only.

References
----------
- V. Dumoulin and F. Visin, "A guide to convolution arithmetic for deep learning", 2016, arXiv:1603.07285; cited as
  "Dumoulin & Visin" with the number of the relationship.
- A. Araujo, W. Norris and J. Sim, "Computing Receptive Fields of Convolutional Neural Networks", Distill, 2019.
- B. Graham, "Fractional Max-Pooling", 2014, arXiv:1412.6071.
"""

from .axes import Size, ceil_div, map_axes
from .conv import (
    conv_input_sizes,
    conv_output_size,
    conv_transpose_output_padding,
    conv_transpose_output_size,
    effective_kernel,
    phase_size,
    phase_taps,
    tap_step,
)
from .inverse import (
    conv_padding_totals,
    conv_transpose_input_size,
    conv_transpose_padding_total,
    pool_input_sizes,
    split_padding,
)
from .padding import (
    multiply_output_padding,
    pad_causal,
    pad_divide,
    pad_full,
    pad_half,
    pad_same,
    pad_same_lower,
    pad_same_upper,
    pad_valid,
)
from .pool import (
    adaptive_longest,
    adaptive_window,
    adaptive_windows,
    columns_shape,
    fractional_pool_starts,
    pool_output_size,
    pool_reads,
    pool_window,
)
from .questions import ask_input, ask_output, ask_output_padding
from .receptive import Layer, ReceptiveField, receptive_field
from .wanted import PADDINGS, ask_padding
from .window import Answer, Window

__all__ = [
    "PADDINGS",
    "Answer",
    "Layer",
    "ReceptiveField",
    "Size",
    "Window",
    "adaptive_longest",
    "adaptive_window",
    "adaptive_windows",
    "ask_input",
    "ask_output",
    "ask_output_padding",
    "ask_padding",
    "ceil_div",
    "columns_shape",
    "conv_input_sizes",
    "conv_output_size",
    "conv_padding_totals",
    "conv_transpose_input_size",
    "conv_transpose_output_padding",
    "conv_transpose_output_size",
    "conv_transpose_padding_total",
    "effective_kernel",
    "fractional_pool_starts",
    "map_axes",
    "multiply_output_padding",
    "pad_causal",
    "pad_divide",
    "pad_full",
    "pad_half",
    "pad_same",
    "pad_same_lower",
    "pad_same_upper",
    "pad_valid",
    "phase_size",
    "phase_taps",
    "pool_input_sizes",
    "pool_output_size",
    "pool_reads",
    "pool_window",
    "receptive_field",
    "split_padding",
    "tap_step",
]
