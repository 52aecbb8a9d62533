"""From a call that ran once to one that costs an output, a look-up and a launch.

The first call of a kind goes through Triton's own ``kernel[grid]``. What it launches is recorded
(:mod:`gpuconv.launcher.record`): the compiled kernels, their grids and packed scalars, and where each pointer came
from. Later calls allocate what that one allocated and send the same launches with new pointers and the current stream:
through a small C extension (:mod:`gpuconv.launcher.native`), or where that cannot be built through the launchers that
Triton compiled. ``GPUCONV_LAUNCHER`` chooses, see :mod:`gpuconv.config`.
"""
