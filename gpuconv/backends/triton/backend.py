"""The Triton backend: kernels compiled for the GPU, or interpreted on CPU tensors under ``TRITON_INTERPRET=1``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from ...config import interpreting, packs_only
from ...costs import named_gpu
from ...packs import KernelReference, any_packs, look_up
from ...problem import Problem, SeparableProblem
from ..base import Backend, Plan, Solver
from . import (
    columns,
    conv_banded,
    conv_collect,
    conv_deform,
    conv_fprop,
    conv_grad,
    conv_hopper,
    conv_hopper_wgrad,
    conv_march,
    conv_rolling,
    conv_rows,
    conv_rows_wgrad,
    conv_runs,
    conv_runs_wgrad,
    conv_scaled,
    conv_separable,
    conv_tma,
    pool,
    pool_adaptive,
    pool_fractional,
    pool_global,
    pool_tiled,
    pool_unpool,
)
from .dry import launches_of_plan
from .gluon import installed_triton
from .interpreter import repair_interpreter
from .launch import capability_of

__all__ = ["BACKEND", "missing_compiler_of"]

_OLDEST = (3, 6)

_COMPILED = ": Triton compiles them at the first call"

_MODULES = (
    columns,
    conv_collect,
    conv_deform,
    conv_fprop,
    conv_grad,
    conv_hopper,
    conv_hopper_wgrad,
    conv_march,
    conv_banded,
    conv_rolling,
    conv_rows,
    conv_rows_wgrad,
    conv_runs,
    conv_runs_wgrad,
    conv_scaled,
    conv_separable,
    conv_tma,
    pool,
    pool_adaptive,
    pool_fractional,
    pool_global,
    pool_tiled,
    pool_unpool,
)


@lru_cache(maxsize=1)
def _missing_package() -> str | None:
    return "torch is not installed (pip install torch triton)" if find_spec("torch") is None else _missing_compiler()


@lru_cache(maxsize=1)
def _missing_compiler() -> str | None:
    """Return what is wrong with Triton; where packs have a launch, it is not needed."""
    if find_spec("triton") is None:
        return "triton is not installed (pip install triton)"
    try:
        installed = version("triton")
    except PackageNotFoundError:
        return None
    if tuple(int(part) for part in installed.split(".")[:2]) < _OLDEST:
        return f"triton {installed} is installed, 3.6 or newer is needed"
    return None


def missing_compiler_of(solver: Solver) -> str | None:
    """Return what is wrong with Triton for the kernels of a solver; where packs have a launch, it is not needed."""
    missing = _missing_compiler()
    oldest = getattr(solver, "oldest_triton", _OLDEST)
    installed = installed_triton()
    if missing is not None or installed is None or installed >= oldest:
        return missing
    needed, found = (".".join(map(str, release)) for release in (oldest, installed))
    return f"triton {found} is installed, {needed} or newer compiles its kernels"


@lru_cache(maxsize=1)
def _torch_without_cuda() -> str | None:
    """Return why torch cannot show CuPy's arrays to Triton. Imports torch, which a CuPy user may not have done."""
    import torch

    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA, and Triton gets CuPy's arrays through torch"
    return None if torch.cuda.is_available() else "torch finds no CUDA device"


class TritonBackend(Backend):
    """Takes torch tensors on CUDA; in the interpreter, and asked for by name, host arrays as well."""

    name = "triton"

    def missing(self) -> str | None:
        missing = _missing_package()
        if interpreting() or (missing and (missing != _missing_compiler() or not any_packs())):
            return missing
        torch = sys.modules.get("torch")
        if torch is None:
            return None if os.path.exists("/dev/nvidiactl") else "no NVIDIA device, and TRITON_INTERPRET is not set"
        return None if torch.cuda.is_available() else "no CUDA device, and TRITON_INTERPRET is not set"

    def why_not(self, problem: Problem, forced: bool) -> str | None:
        on_gpu = problem.device.startswith("cuda")
        if not on_gpu and problem.device != "cpu":
            return f"arrays are on {problem.device}, kernels run on cuda"
        if not on_gpu and not interpreting():
            return "arrays are on cpu, kernels run on cuda (on cpu with TRITON_INTERPRET=1)"
        if named_gpu(problem.device) is not None:
            return None  # what this host has does not matter there
        missing = _missing_package()
        if missing and not (on_gpu and missing == _missing_compiler() and any_packs()):
            return missing
        if on_gpu:
            if interpreting():
                return "TRITON_INTERPRET is set: kernels run on CPU tensors only"
            return _torch_without_cuda() if problem.array == "cupy" else None
        if not forced:
            return "the interpreter runs only where it is asked for by name (backend='triton')"
        repair_interpreter()  # solvers that were registered launch kernels by themselves
        return None

    def origin(self, plan: Plan) -> str | None:
        device = plan.problem.device
        capability = capability_of(device) if device.startswith("cuda") and named_gpu(device) is None else None
        if capability is None or not any_packs():
            return None
        told = launches_of_plan(plan)
        found = [look_up(t.kernel, t.arguments, t.options, capability, aligned=True) for t in told]
        folders = sorted({str(each[0].pack.folder) for each in found if each})
        if not folders:
            forbidden = packs_only()
            return f"no pack has them{', and GPUCONV_PACKS_ONLY=1 forbids to compile them' if forbidden else _COMPILED}"
        some = "" if all(found) else f"{sum(map(bool, found))} of {len(found)} "
        return f"{some}from {', '.join(folders)}"

    def lacks(self, solver: Solver, problem: Problem) -> str | None:
        if named_gpu(problem.device) is not None:
            return None
        missing = missing_compiler_of(solver)
        if isinstance(problem, SeparableProblem) and packs_only():  # packs are of recorded problems: of both steps
            missing = missing or "GPUCONV_PACKS_ONLY=1 forbids to compile"
        if missing is None or not problem.device.startswith("cuda"):
            return None
        capability = capability_of(problem.device)
        if capability is None or not any_packs(capability):
            return f"{missing}, and no pack is for this GPU"
        for told in launches_of_plan(solver.plan(problem)):
            if _missing_compiler() is None and not getattr(told.kernel, "one_binary", False):
                continue  # Triton is too old for the solver's own kernels alone
            found = isinstance(told.kernel, KernelReference) and look_up(
                told.kernel, told.arguments, told.options, capability, aligned=True
            )
            if not found:
                kernel = getattr(told.kernel, "id", told.kernel)
                return f"{missing}, and packs lack {kernel} as it would be compiled for this problem"
        return None

    def solvers(self) -> Sequence[Solver]:
        return tuple(solver for module in _MODULES for solver in module.SOLVERS)


BACKEND = TritonBackend()
