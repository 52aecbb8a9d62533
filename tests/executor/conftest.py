"""The executor lane: the Hopper kernels' own sources over a model of the hardware. Needs Gluon as of Triton 3.8.

The plain kernels that stand in front of and behind them in a plan are interpreted, which is settled when they are
imported.
"""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")

try:
    from triton.experimental.gluon.language.nvidia.hopper import cluster, tma

    HAS_GLUON = cluster is not None and hasattr(tma, "async_load")
except ImportError:
    HAS_GLUON = False
if not HAS_GLUON:
    collect_ignore_glob = ["test_*.py"]
