"""What operators cost: FLOPs by torch's rules, and the problem that a convolution or pool is to this library.

Importing this module imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.flop_counter import flop_registry

from .. import functional
from ..backends import Plan
from ..config import logger
from ..costs import constants_of, device_elsewhere, roofline
from ..dispatch import observed, planned
from ..errors import NoSolverError
from ..ops import conv as _operators  # noqa: F401  (registers the library's own operators)
from ..ops import conv_library, pool_library
from ..ops.pool_fake import Form
from ..problem import ConvProblem, Problem, SeparableProblem, placed

__all__ = ["Asked", "Planner", "Step", "adaptive_problem", "flops_of", "problem_of", "separable_problem", "uses"]

_CONVOLUTIONS = ("fprop", "dgrad")

Asked = tuple[Problem, str | None]
"""A problem, and the backend or solver id that is forced."""


@dataclass(frozen=True, slots=True)
class Step:
    """A convolution or pool on a GPU by name: the solver that would run, its time and the roofline's in microseconds.

    `solver` is None where none runs it.
    """

    problem: Problem
    solver: str | None
    microseconds: float | None
    least_us: float


def uses(func: Any) -> str | None:
    """Return the name of an operator of this library, or None of another."""
    namespace, _, name = func._schema.name.partition("::")
    return name if namespace == "gpuconv" else None


def flops_of(func: Any, args: Sequence[Any], kwargs: dict[str, Any], result: Any) -> int:
    """Return the FLOPs of an operator as ``torch.utils.flop_counter`` counts them: 2 for each multiplication and
    addition of convolutions, products of matrices and attention, none for the rest; taps in the padding count.
    """
    if uses(func) in _CONVOLUTIONS:
        found = problem_of(func, args)
        return found[0].flops if found is not None and isinstance(found[0], ConvProblem) else 0
    formula: Callable[..., int] | None = flop_registry.get(func._overloadpacket)
    return 0 if formula is None else int(formula(*args, **kwargs, out_val=result))


def _by_library(name: str, args: Sequence[Any]) -> Any:
    """Run one of the library's operators, which is observed."""
    if name in _CONVOLUTIONS:
        return conv_library.REAL[name](*args)
    count = pool_library.TENSORS[name].count("Tensor")
    form = Form._make(tuple(value) if isinstance(value, list) else value for value in args[count:])
    return pool_library.launch(name, args[:count], form)


def _convolution(x: Any, w: Any, bias: Any, stride: Any, padding: Any, dilation: Any, transposed: bool,
                 output_padding: Any, groups: int, *rest: Any) -> Any:  # fmt: skip
    ndim = w.dim() - 2
    if transposed:
        fn = getattr(functional, f"conv_transpose{ndim}d")
        return fn(x, w, bias, tuple(stride), tuple(padding), tuple(output_padding), groups, tuple(dilation))
    fn = getattr(functional, f"conv{ndim}d")
    return fn(x, w, bias, tuple(stride), tuple(padding), tuple(dilation), groups)


def _window(name: str) -> Callable[..., Any]:
    def pool(x: Any, kernel: Any, stride: Any = (), *rest: Any) -> Any:
        geometry = [tuple(value) if isinstance(value, list) else value for value in rest]
        return getattr(functional, name)(x, tuple(kernel), tuple(stride) or None, *geometry)

    return pool


def _adaptive(name: str) -> Callable[..., Any]:
    return lambda x, size: getattr(functional, name)(x, tuple(size))


_AS_FUNCTIONS: dict[str, Callable[..., Any]] = {"convolution": _convolution}
for _n in (2, 3):
    _AS_FUNCTIONS[f"max_pool{_n}d_with_indices"] = _window(f"max_pool{_n}d")
    _AS_FUNCTIONS[f"avg_pool{_n}d"] = _window(f"avg_pool{_n}d")
    _AS_FUNCTIONS[f"_adaptive_avg_pool{_n}d"] = _adaptive(f"adaptive_avg_pool{_n}d")
    _AS_FUNCTIONS[f"adaptive_max_pool{_n}d"] = _adaptive(f"adaptive_max_pool{_n}d")


def _described(run: Callable[[], Any]) -> Asked | None:
    """Return the problem of a call of this library, which does not run; None of arguments that it does not take."""
    try:
        with observed(lambda problem, backend: (problem, backend)):
            found = run()
    except (RuntimeError, TypeError, ValueError):
        logger.debug("a convolution or pool that gpuconv does not take", exc_info=True)
        return None
    if not isinstance(found, tuple):
        return None
    problem, backend = found
    return placed(problem, array="torch", device=device_elsewhere() or problem.device), backend


def problem_of(func: Any, args: Sequence[Any]) -> Asked | None:
    """Return the problem of an operator that is a convolution or pool, of torch or of this library, else None."""
    ours = uses(func)
    if ours is not None:
        known = ours in _CONVOLUTIONS or (ours in pool_library.TENSORS and "backward" not in ours)
        return _described(lambda: _by_library(ours, args)) if known else None
    call = _AS_FUNCTIONS.get(func._schema.name.partition("::")[2])
    if call is None:
        return None
    chosen: Callable[..., Any] = call
    return _described(lambda: chosen(*args))


def adaptive_problem(x: Any, size: int | Sequence[int] | None, ndim: int) -> Asked | None:
    """Return the problem of an adaptive average pool, which to one element torch computes as a mean."""
    return _described(lambda: getattr(functional, f"adaptive_avg_pool{ndim}d")(x, size))


def separable_problem(run: Callable[[], Any]) -> Asked | None:
    """Return the problem of a separable convolution that one kernel may compute; None where it is two calls."""
    found = _described(run)
    return found if found is not None and isinstance(found[0], SeparableProblem) else None


class Planner:
    """Plans problems for a GPU by name, equal ones once; inside :func:`.costs.constants.on_gpu` of its device."""

    def __init__(self, device: str) -> None:
        self._constants = constants_of(device)
        self._known: dict[Asked, Step] = {}

    def step(self, asked: Asked | None) -> Step | None:
        """Return what a problem would run there, or None where there is none."""
        if asked is None:
            return None
        if asked not in self._known:
            self._known[asked] = self._planned(*asked)
        return self._known[asked]

    def _planned(self, problem: Problem, backend: str | None) -> Step:
        least, _, _ = roofline(problem, self._constants)
        try:
            plan: Plan = planned(problem, backend)
        except NoSolverError:
            return Step(problem, None, None, least)
        return Step(problem, plan.solver.id, plan.solver.estimated(problem).microseconds, least)
