"""Run gpuconv's functions on the host's CuPy so that mistakes of kernels show, and compare with the NumPy reference.

Every run goes through blocks and threads forward, reversed and shuffled, and must give the same bits; results start
full of NaN, everything lies between guard bands, and inputs must be unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import fake_cupy
import numpy as np
from fake_cupy import asnumpy, guarded

from gpuconv.backends.base import Plan
from gpuconv.backends.cupy.common import KERNELS, CupySolver
from gpuconv.dispatch import record_plans
from gpuconv.dispatch.plan_cache import CACHE
from gpuconv.numerics import assert_close

FORWARD, REVERSED, SHUFFLED = range(3)

ORDERS = ((FORWARD, FORWARD), (REVERSED, FORWARD), (SHUFFLED, REVERSED), (FORWARD, SHUFFLED))
"""Order of blocks and order of the threads of a block, of each run."""


@dataclass
class Ran:
    """What a call did: its results on the host (bfloat16 as float32), its plan, and each launch."""

    results: tuple[np.ndarray, ...]
    plan: Plan
    launches: list[tuple[str, int, int]]

    @property
    def result(self) -> np.ndarray:
        assert len(self.results) == 1
        return self.results[0]

    @property
    def kernels(self) -> set[str]:
        return {kernel for kernel, _, _ in self.launches}


def on_device(values: np.ndarray | None, dtype: str) -> Any:
    """Return `values` (float64, any strides) as an array of the host's CuPy in `dtype`, among NaN; None stays."""
    return None if values is None else guarded(values, dtype)


def as_held(values: np.ndarray, dtype: str) -> np.ndarray:
    """Return `values` rounded to `dtype`, as float64 with the same strides: what the reference computes on."""
    held = asnumpy(guarded(values, dtype))
    result = np.empty_like(values, dtype=np.float64)  # keeps the order of axes
    result[...] = held
    return result


def run_once(function: Callable[..., Any], *args: Any, solver: str | None = None, **kwargs: Any) -> Ran:
    """Call `function` once on arrays of the host's CuPy; check that `solver` ran, and the memory around everything."""
    fake_cupy.MACHINE.record = []
    with record_plans() as plans:
        found = function(*args, **kwargs, backend=solver or "cupy")
    assert len(plans) == 1
    assert solver is None or plans[0].solver.id == solver, f"{plans[0].solver.id} ran, not {solver}"
    for number, memory in enumerate(fake_cupy.ALLOCATED):
        memory.check(f"array {number}")
    results = found if isinstance(found, tuple) else (found,)
    return Ran(tuple(asnumpy(array) for array in results), plans[0], list(fake_cupy.MACHINE.record))


def run(
    function: Callable[..., Any],
    *args: Any,
    solver: str | None = None,
    orders: Sequence[tuple[int, int]] = ORDERS,
    **kwargs: Any,
) -> Ran:
    """Call `function` in each of `orders` and assert that all of them give the same bits. Arguments: `run_once`."""
    first: Ran | None = None
    kept = len(fake_cupy.ALLOCATED)  # inputs; results of each run are checked and forgotten
    for order in orders:
        fake_cupy.MACHINE.orders = order
        ran = run_once(function, *args, solver=solver, **kwargs)
        del fake_cupy.ALLOCATED[kept:]
        if first is None:
            first = ran
            continue
        for number, (one, other) in enumerate(zip(first.results, ran.results, strict=True)):
            same = one.tobytes() == other.tobytes() if one.size else one.shape == other.shape
            assert same, f"result {number} depends on the order of blocks and threads {order}"
    assert first is not None
    fake_cupy.MACHINE.orders = (FORWARD, FORWARD)
    return first


def reference(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return what `function` gives on the NumPy backend in float64."""
    return function(*args, **kwargs, backend="numpy")


def magnitudes(*arrays: np.ndarray | None) -> tuple[np.ndarray | None, ...]:
    """Return the absolute values of `arrays`: the same call on them gives the magnitude of the tolerance rule."""
    return tuple(None if array is None else np.abs(array) for array in arrays)


def close(ran: np.ndarray, exact: np.ndarray, magnitude: np.ndarray, plan: Plan) -> None:
    """Assert that a result is within the one tolerance rule of the exact one."""
    problem = plan.problem
    assert_close(ran, exact, magnitude, problem.dtype, problem.reduction_length, getattr(problem, "precision", "ieee"))


# ------------------------------------------------------------------------------------------------------- building


def announce(source: str, kernels: Sequence[str], chunk: int = 8) -> None:
    """Have `kernels` of a source compiled together, `chunk` in one translation unit, when one of them is first used.

    A compiler spends about a second on reading and writing, whatever the number of kernels.
    """
    from gpuconv.kernels import cu

    code = cu.source(source)
    known = [kernel for unit in fake_cupy.MACHINE.units.get(code, []) for kernel in unit]
    new = [kernel for kernel in dict.fromkeys(kernels) if kernel not in known]
    units = [tuple(new[start : start + chunk]) for start in range(0, len(new), chunk)]
    fake_cupy.MACHINE.units.setdefault(code, []).extend(units)


@contextmanager
def capability(number: int) -> Iterator[None]:
    """Let the device say that it has this compute capability (70 has no tensor cores for these kernels)."""
    before = fake_cupy.MACHINE.capability
    fake_cupy.MACHINE.capability = str(number)
    CACHE.clear()
    _forget_plans()
    try:
        yield
    finally:
        fake_cupy.MACHINE.capability = before
        CACHE.clear()
        _forget_plans()


def _forget_plans() -> None:
    from gpuconv import dispatch

    dispatch.selection._plan.cache_clear()


@contextmanager
def sanitizer(mode: str) -> Iterator[None]:
    """Run launches as programs of their own: ``"address"`` on fibers, ``"thread"`` with real threads."""
    from host_compiler import MODES

    assert mode in MODES
    fake_cupy.MACHINE.mode = mode
    try:
        yield
    finally:
        fake_cupy.MACHINE.mode = "library"


@contextmanager
def mutant(pattern: str, replacement: str, count: int = 1) -> Iterator[None]:
    """Change the text of the sources that are compiled inside: one place that matches `pattern`, or `count` places."""
    seen = [0]

    def mutate(code: str) -> str:
        changed, found = re.subn(pattern, replacement, code, count=0, flags=re.MULTILINE)
        seen[0] += found
        if found not in (0, count):
            raise AssertionError(f"{pattern!r} is in {found} places, not {count}")
        return changed

    KERNELS.clear()
    fake_cupy.MACHINE.mutate = mutate
    try:
        yield
    finally:
        fake_cupy.MACHINE.mutate = None
        KERNELS.clear()
    assert seen[0] >= count, f"{pattern!r} is nowhere in the sources that were compiled"


def is_noticed(check: Callable[[], object]) -> bool:
    """Tell whether `check` fails: what a mutant must bring about."""
    try:
        check()
    except (AssertionError, RuntimeError):
        return True
    return False


# -------------------------------------------------------------------------------------------- structs, distinct cases


def struct_layout(source: str, struct: str, dtype: np.dtype) -> None:
    """Assert that the C++ struct of a source lies in memory as its NumPy mirror: its size, and where each field is."""
    from host_compiler import compiled, unit_text

    from gpuconv.kernels import cu

    assert dtype.names is not None and dtype.fields is not None
    checks = [f"static_assert(sizeof({struct}) == {dtype.itemsize});"]
    for name in dtype.names:
        kind, place = dtype.fields[name][:2]
        checks.append(f"static_assert(__builtin_offsetof({struct}, {name}) == {place});")
        checks.append(f"static_assert(sizeof({struct}::{name}) == {kind.itemsize});")
    compiled(unit_text(cu.source(source), (), "\n".join(checks)), "library")


def instantiations_of(solvers: Sequence[CupySolver]) -> set[tuple[str, str]]:
    """Return every (source, kernel) that `solvers` say they can ask for."""
    return {pair for solver in solvers for pair in solver.instantiations()}


class Distinct:
    """Counts cases that differ in dims, layout, dtype or the branch that they take; a case twice is an error."""

    def __init__(self) -> None:
        self.seen: dict[tuple[Any, ...], str] = {}

    def add(self, name: str, dims: int, layout: str, dtype: str, branch: str) -> None:
        key = (dims, layout, dtype, branch)
        assert key not in self.seen, f"{name} is the same case as {self.seen[key]}: {key}"
        self.seen[key] = name

    def __len__(self) -> int:
        return len(self.seen)
