"""Which source files a record depends on, so that after a fix only what it concerns is measured again.

A record of a solver depends on the module of the solver, on every module of gpuconv that this one imports, directly or
not, and on the kernels: Triton's by what these modules refer to, CUDA sources by what the solver instantiates and their
includes. To Triton's solvers belong the launcher and the files of constants and tuned configs as well. What stands in
front of a solver (public functions, normalisation, dispatch, the plan cache) is not in it: it decides which problem,
solver and config a call runs, and a record of the benchmark holds only while that choice is the same. A record of
anything else of gpuconv's (tuning, the sanitizer, host times, an error without a solver) depends on all of gpuconv; one
of torch on nothing here.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["closure", "depends_on", "files_of", "snapshot", "tree"]

REPO = Path(__file__).resolve().parents[1]

_OURS = ("tune", "sanitizer", "compile")
"""Stages whose records depend on all of gpuconv, like those of the benchmark and of host times that name no solver."""


def _digest(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(str(path.relative_to(REPO)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


@cache
def tree() -> str:
    """Return a hash of everything that gpuconv consists of."""
    wanted = (".py", ".cu", ".cuh", ".c", ".json")
    files = (path for folder in ("gpuconv", "kernels") for path in (REPO / folder).rglob("*") if path.suffix in wanted)
    return _digest(path for path in files if "__pycache__" not in path.parts)


def _file(module: str) -> Path | None:
    """Return the file of a module of gpuconv; kernels lie in a folder of their own."""
    parts = module.split(".")
    folder = REPO.joinpath(*parts)
    if parts[1:2] == ["kernels"] and len(parts) > 2:
        folder = REPO.joinpath(*parts[1:])
    for path in (folder.with_suffix(".py"), folder / "__init__.py"):
        if path.is_file():
            return path
    return None


@cache
def _imports(module: str) -> frozenset[str]:
    """Return the modules of gpuconv that `module` imports anywhere in its text, or whose kernels it refers to."""
    path = _file(module)
    assert path is not None, module
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "KernelReference":
            found.add(f"gpuconv.kernels.tl.{ast.literal_eval(node.args[0])}")
        if not isinstance(node, ast.ImportFrom):
            continue
        base = package[: len(package) - node.level + 1] if node.level else []
        source = ".".join([*base, *([node.module] if node.module else [])])
        if source.partition(".")[0] != "gpuconv":
            continue
        names = [f"{source}.{alias.name}" for alias in node.names]
        modules = [name for name in names if _file(name) is not None]
        found |= set(modules)
        # A package hands on names of its modules; which, only running it would tell.
        if len(modules) < len(names) and _file(source) is not None:
            found.add(source)
    return frozenset(found)


def closure(module: str) -> set[str]:
    """Return the modules of gpuconv that a module of it consists of: itself, what it imports, and what these do."""
    found, left = set(), [module]
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left += _imports(name)
    return found


def _cuda_files(names: Iterable[str]) -> set[Path]:
    """Return CUDA sources by name, and what they include."""
    folder = REPO / "kernels" / "cu"
    found, left = set(), [folder / f"{name.removesuffix('.cu')}.cu" for name in names]
    while left:
        path = left.pop()
        if path not in found:
            found.add(path)
            left += [folder / name for name in re.findall(r'^#include "(.+)"', path.read_text(), re.MULTILINE)]
    return found


@cache
def files_of(solver: str) -> frozenset[Path]:
    """Return the files that results of a solver depend on; raise ValueError where there is no such solver."""
    from gpuconv.dispatch import solver_of

    found = solver_of(solver)
    modules = set().union(*(closure(kind.__module__) for kind in type(found).__mro__ if _ours(kind.__module__)))
    if solver.startswith("triton."):
        modules |= closure("gpuconv.launcher.record")
    files = {path for path in map(_file, modules) if path is not None}
    if solver.startswith("triton."):
        files |= {REPO / "gpuconv" / "launcher" / "_launch.c", *(REPO / "gpuconv" / "costs").rglob("*.json")}
    if solver.startswith("cupy."):
        files |= _cuda_files({source for source, _ in found.instantiations()})  # type: ignore[attr-defined]
    return frozenset(files)


def _ours(module: str) -> bool:
    return module.partition(".")[0] == "gpuconv"


def _ours(module: str) -> bool:
    return module.partition(".")[0] == "gpuconv"


def snapshot() -> dict[str, str]:
    """Return the hash of what each solver depends on today, by its id, and under ``"gpuconv"`` that of everything."""
    from gpuconv.dispatch import backends

    solvers = [solver.id for backend in backends().values() for solver in backend.solvers()]
    return {"gpuconv": tree(), **{solver: _digest(files_of(solver)) for solver in solvers}}


def depends_on(record: Mapping[str, Any], known: Mapping[str, str]) -> str:
    """Return the hash in a :func:`snapshot` of what a record, by its fields, depends on; of torch's results none."""
    stage, name = record["stage"], record["key"].partition(" | ")[0]
    solver = record.get("solver") or (name if stage == "parity" else "")
    if solver.partition(".")[0] in ("triton", "cupy", "numpy") and "." in solver:
        return known.get(solver, "gone")
    whole = stage in _OURS or name.startswith("gpuconv") or (stage in ("parity", "micro") and "problem" in record)
    return known.get("gpuconv", "") if whole else ""
