"""The CuPy backend: CUDA C++ kernels compiled at run time, for CuPy's arrays and for torch tensors on CUDA."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from ...costs import named_gpu
from ...problem import Problem
from ..base import Backend, Solver
from . import conv, conv_deform, pool

__all__ = ["BACKEND"]

_OLDEST = 14

_BUILDS = {"cupy-cuda13x": 13, "cupy-cuda12x": 12}
"""Distributions of CuPy, and the CUDA release for which each is built."""

_CUDA_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"

_INSTALL = "pip install 'cupy-cuda13x[ctk]', or 'cupy-cuda12x[ctk]' where the driver is older than 580"


def _installed() -> tuple[str, str] | None:
    """Return name and version of the distribution that provides CuPy, or None."""
    for name in (*_BUILDS, "cupy"):
        try:
            return name, version(name)
        except PackageNotFoundError:
            continue
    return None


@lru_cache(maxsize=1)
def _driver_release() -> int | None:
    """Return the newest CUDA release that the driver runs, as 13000 for 13.0, or None without a driver.

    Asks the driver alone: this creates no context, and needs neither CuPy nor torch.
    """
    try:
        driver = ctypes.CDLL(_CUDA_DRIVER)
    except OSError:
        return None
    release = ctypes.c_int(0)
    return release.value if driver.cuDriverGetVersion(ctypes.byref(release)) == 0 else None


@lru_cache(maxsize=1)
def _missing_package() -> str | None:
    if "cupy" in sys.modules:
        return None
    if find_spec("cupy") is None:
        return f"CuPy is not installed ({_INSTALL})"
    installed = _installed()
    if installed is None:
        return None
    name, release = installed
    if int(release.partition(".")[0]) < _OLDEST:
        return f"{name} {release} is installed, {_OLDEST} or newer is needed ({_INSTALL})"
    return None


def _missing_gpu() -> str | None:
    """Return why CuPy would find no GPU to run on, or None; without importing it."""
    if "cupy" in sys.modules:
        runtime = sys.modules["cupy"].cuda.runtime
        release = runtime.driverGetVersion()
    else:
        found = _driver_release()
        if found is None:
            return f"no NVIDIA driver: {_CUDA_DRIVER} is not there (install the driver for this GPU)"
        release = found
    if release == 0:
        return "no NVIDIA driver is loaded (install the driver for this GPU)"
    name = (_installed() or ("", ""))[0]
    built = _BUILDS.get(name)
    if built is not None and release < 1000 * built:
        words = f"the driver is too old for {name}: it runs CUDA {release // 1000}.{release % 1000 // 10}"
        other = " or pip install 'cupy-cuda12x[ctk]'" if built == 13 and release >= 12000 else ""
        return f"{words}, CUDA {built}.0 is needed (update the driver{other})"
    if os.name == "posix" and "cupy" not in sys.modules and not _device_files():
        return "the driver is there, but no NVIDIA GPU (in a container: is it started with its GPUs?)"
    return None


def _device_files() -> bool:
    # /dev/dxg is the GPU of the Windows subsystem for Linux.
    return any(os.path.exists(path) for path in ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/dev/nvgpu"))


class CupyBackend(Backend):
    """Takes CuPy's arrays, and torch tensors on CUDA where Triton cannot run."""

    name = "cupy"

    def missing(self) -> str | None:
        return _missing_package() or _missing_gpu()

    def why_not(self, problem: Problem, forced: bool) -> str | None:
        if not problem.device.startswith("cuda"):
            return f"arrays are on {problem.device}, kernels run on cuda"
        if named_gpu(problem.device) is not None:
            return "needs a GPU that is here: it has no model of times"
        missing = _missing_package()
        if missing:
            return missing
        return None if problem.array == "cupy" else _missing_gpu()

    def solvers(self) -> Sequence[Solver]:
        return (*conv.SOLVERS, *conv_deform.SOLVERS, *pool.SOLVERS)


BACKEND = CupyBackend()
