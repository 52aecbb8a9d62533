"""A depthwise and a pointwise convolution as one problem: of a kernel that computes both, or of two, one by one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..arrays import ArrayKind
from ..backends import Estimate, Plan, Solver
from ..config import forced_backend
from ..errors import NoSolverError
from ..normalize import Extras
from ..normalize import conv as normalize_conv
from ..problem import Call, ConvProblem, Prepared, Problem, SeparableProblem
from .execution import explaining, run
from .plan_cache import CACHE, prepared
from .selection import COMPOSED, backends, planned, solvers_of

__all__ = ["separable_call", "separable_problem"]

_BACKEND = "triton"
"""Whose kernels compute both; elsewhere the two calls are two problems."""


class TwoSteps(Solver):
    """Both convolutions one after the other, each as the dispatcher plans it by itself for this backend."""

    id = f"{_BACKEND}.conv.separable.steps"

    def serves(self, problem: Problem) -> bool:
        return isinstance(problem, SeparableProblem)

    def why_not(self, problem: Problem) -> str | None:
        if not isinstance(problem, SeparableProblem):
            return "solves depthwise and pointwise convolutions, which is another operation"
        try:
            self._plans(problem)
        except NoSolverError as error:
            return str(error).partition("\n")[0]
        return None

    def _plans(self, problem: Problem) -> list[Plan]:
        assert isinstance(problem, SeparableProblem)
        return [planned(step, _BACKEND) for step in problem.steps]

    def rank(self, problem: Problem) -> float:
        return self.estimated(problem).microseconds

    def estimated(self, problem: Problem) -> Estimate:
        found = [plan.solver.estimated(plan.problem) for plan in self._plans(problem)]
        sources = [each.source for each in found]
        source = next(name for name in ("guess", "model", "table", "tuned") if name in sources)
        return Estimate(sum(each.microseconds for each in found), source)

    def plan(self, problem: Problem) -> Plan:
        first, second = self._plans(problem)
        named = {"depthwise": first.solver.id, "pointwise": second.solver.id}
        return Plan(self, problem, max(first.workspace, second.workspace), named)

    def run(self, plan: Plan, call: Call) -> Any:
        problem, arrays, kind = plan.problem, call.arrays, call.kind
        assert isinstance(problem, SeparableProblem)
        of_first = {"x": arrays["x"], "w": arrays["w"], "bias": arrays["bias"], **_NOTHING}
        between = run(prepared(Call(problem.depthwise, of_first, kind, backend=_BACKEND)))
        of_second = {"x": between, "w": arrays["pointwise"], "bias": arrays["pointwise_bias"], **_NOTHING}
        of_second["residual"] = arrays["residual"]
        return run(prepared(Call(problem.pointwise, of_second, kind, backend=_BACKEND)))


_NOTHING = {"residual": None, "scale": None, "shift": None}

COMPOSED[_BACKEND] = [TwoSteps()]


def _pointwise(
    op: str, kind: ArrayKind, first: ConvProblem, arrays: Mapping[str, Any], activation: str | None, unbatched: bool
) -> ConvProblem | None:
    """Return the problem of the second step; None where its arrays do not fit, which two calls say better."""
    weight = arrays["pointwise"]
    between = kind.empty(first.y_shape, first.dtype, "meta", first.y_format)
    between = kind.drop_batch(between) if unbatched else between  # whose format shows less then
    x_format, w_format, y_format = normalize_conv.formats_of(kind, between, unbatched, weight)
    k, sizes = kind.shape(weight)[0], first.output_size
    given = [array for array in arrays.values() if array is not None]
    if len({kind.dtype(array) for array in given}) > 1 or len({kind.device(array) for array in given}) > 1:
        return None
    residual = arrays["residual"]
    if residual is not None and kind.shape(residual) != (first.n, k, *sizes):
        return None
    return replace(
        first, op=f"{op} (pointwise)", c=first.k, k=k, groups=1, input_size=sizes, kernel=(1, 1), output_size=sizes,
        stride=(1, 1), pad_lo=(0, 0), pad_hi=(0, 0), dilation=(1, 1), padding_mode="zeros", x_format=x_format,
        w_format=w_format, y_format=y_format, bias=arrays["pointwise_bias"] is not None, activation=activation,
        residual=residual is not None,
    )  # fmt: skip


def _fused(problem: SeparableProblem, backend: str | None) -> bool:
    """Tell whether a kernel computes both: where none does, the call is two problems, as everywhere else."""
    if backend is not None and backend.partition(".")[0] != _BACKEND:
        return False
    solvers, found = [solver for solver in solvers_of(_BACKEND) if solver.serves(problem)], backends()[_BACKEND]
    ids = {solver.id for solver in (*solvers, *COMPOSED[_BACKEND])}
    if backend is not None and "." in backend and backend not in ids:
        return False
    if found.why_not(problem, backend is not None) is not None:
        return False
    return any(solver.why_not(problem) is None and found.lacks(solver, problem) is None for solver in solvers)


def separable_call(
    op: str, kind: ArrayKind, arrays: Mapping[str, Any], geometry: tuple[Any, ...], between: str | None, extras: Extras,
    key: Any = None,
) -> Call | None:  # fmt: skip
    """Describe a depthwise and a pointwise convolution as one problem, or return None: then they are two.

    Parameters
    ----------
    op
        The operation.
    kind
        Of its arrays.
    arrays
        By the names of :class:`.problem.SeparableProblem`, or None; their shapes are checked.
    geometry
        Stride, padding and dilation of the first.
    between
        Activation of the first.
    extras
        Those of the second; padding mode, precision and backend are of both.
    key
        What :func:`.plan_cache.conv_key` says of the call, or None.
    """
    entry = CACHE.find(key) if key is not None else None
    if entry is None:
        backend = forced_backend(extras.backend)
        problem, unbatched = separable_problem(op, kind, arrays, geometry, between, extras)
        fused = problem if problem is not None and _fused(problem, backend) else None
        entry = Prepared(fused, kind, unbatched, backend or "auto")  # type: ignore[arg-type]
        if key is not None and not explaining():
            entry = CACHE.keep(key, entry)
    if entry.problem is None:
        return None
    given = dict(arrays)
    if entry.unbatched:
        given |= {name: kind.add_batch(given[name]) for name in ("x", "residual") if given[name] is not None}
    return Call(entry.problem, given, kind, entry.unbatched, entry.backend, prepared=entry if key is not None else None)


def separable_problem(
    op: str, kind: ArrayKind, arrays: Mapping[str, Any], geometry: tuple[Any, ...], between: str | None, extras: Extras
) -> tuple[SeparableProblem | None, bool]:
    """Return the problem of both steps, None where they do not fit together, and whether the arrays have no batch.

    Arguments are those of :func:`separable_call`.
    """
    stride, padding, dilation = geometry
    named = f"{op} (depthwise)"
    first = normalize_conv.conv_call(
        named, 2, arrays["x"], arrays["w"], arrays["bias"], stride, padding, dilation, kind.shape(arrays["x"])[-3],
        Extras(extras.padding_mode, between, precision=extras.precision, backend=extras.backend),
    )  # fmt: skip
    assert isinstance(first.problem, ConvProblem)
    given = dict(arrays)
    if first.unbatched and given["residual"] is not None:
        given["residual"] = kind.add_batch(given["residual"])
    second = _pointwise(op, kind, first.problem, given, extras.activation, first.unbatched)
    problem = None if second is None else SeparableProblem(op, first.problem, second)
    return problem, first.unbatched
