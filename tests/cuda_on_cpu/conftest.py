"""The lane runs the CUDA sources on the CPU, in a process of its own in which the host plays CuPy's part."""

import os
import sys
from pathlib import Path

import pytest

if os.environ.get("GPUCONV_CUDA_ON_CPU") != "1":
    collect_ignore_glob = ["test_*.py"]
else:
    if "cupy" in sys.modules:
        raise RuntimeError("CuPy was imported before the lane's host version could take its place")
    import fake_cupy

    fake_cupy.install()


def pytest_collection_modifyitems(config, items):
    from host_compiler import COMPILER

    for item in items:
        if Path(__file__).parent not in item.path.parents:
            continue
        item.add_marker(pytest.mark.cuda_on_cpu)
        if COMPILER is None:
            item.add_marker(pytest.mark.skip(reason="not run: g++ is not installed"))


@pytest.fixture(autouse=True)
def _fresh():
    """Start each test without plans, kernels and settings of others."""
    import fake_cupy

    from gpuconv.backends.cupy.common import KERNELS
    from gpuconv.dispatch.plan_cache import CACHE

    CACHE.clear()
    KERNELS.clear()
    units = fake_cupy.MACHINE.units
    fake_cupy.MACHINE = fake_cupy.Machine(units=units)
    fake_cupy.ALLOCATED.clear()
