"""From a call that ran once to one that costs an output, a look-up and a launch; entered by packs and backends.

The first call of a kind goes through Triton's own ``kernel[grid]``. What it launches is recorded
(:mod:`gpuconv.launcher.record`): the compiled kernels, their grids and packed scalars, and where each pointer came
from. Later calls allocate what that one allocated and send the same launches with new pointers and the current stream:
through a small C extension (:mod:`gpuconv.launcher.native`), or where that cannot be built through the launchers that
Triton compiled. ``GPUCONV_LAUNCHER`` chooses, see :mod:`gpuconv.config`.
"""

from .layout import PORTABLE_CLUSTER, Layout, Parameter, pack
from .maps import MapError, MapType, TensorMap, copies_as_told, encode, is_map, parse_map_type

__all__ = [
    "PORTABLE_CLUSTER",
    "Layout",
    "MapError",
    "MapType",
    "Parameter",
    "TensorMap",
    "copies_as_told",
    "encode",
    "is_map",
    "pack",
    "parse_map_type",
]
