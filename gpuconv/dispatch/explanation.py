"""What the user is told of a choice: the explanation of a call, and the error where nothing can run it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..backends import Plan, Solver
from ..config import BACKENDS, forced_by, workspace_limit
from ..costs import constants_of, gpu_of, named_gpu, roofline
from ..errors import NoSolverError
from ..problem import Problem
from .problems import problem_to_json

__all__ = ["Candidate", "Explanation", "no_solver"]

_UNITS = {"memory": "TB/s", "arithmetic": "TFLOP/s"}
_VERBS = ("computes", "holds", "needs", "reads", "solves")
"""First words of reasons that are to follow the name of a solver."""

_MOST_REFUSALS = 8
"""Lines of refusals in an error, which fits 12 then, and in an explanation at most."""

_MOST_LINES = 30
"""Lines of an explanation, if solvers that can run leave room for it."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A solver in the race for a problem: either its estimate in microseconds or the reason why it cannot run.

    `source` says where the estimate comes from, see :class:`.backends.base.Estimate`.
    """

    solver: Solver
    backend: str
    reason: str | None
    estimate: float | None
    source: str | None = None


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a call would run, and why.

    ``str()`` and :meth:`render` say it in words, :meth:`to_json` as plain data; the fields carry the same facts.
    `refusal` is the sentence of the error that the call would raise, `origin` says which packs have its kernels. A call
    that runs several problems is explained by the first, and by `then`, what runs after it.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> found = gpuconv.explain(gpuconv.conv1d, np.ones((1, 2, 4)), np.ones((3, 2, 3)))
    >>> found.solver, found.plan.problem.result_shape
    ('numpy.conv.fprop.im2col', (1, 3, 2))
    >>> next(each.reason for each in found.candidates if each.solver.id == "numpy.conv.fprop.taps")
    'needs 1 input channel per group, the problem has 2'
    """

    problem: Problem
    candidates: tuple[Candidate, ...]
    plan: Plan | None
    refusal: str | None = None
    then: tuple[Explanation, ...] = ()
    origin: str | None = None

    @property
    def solver(self) -> str | None:
        """Id of the solver that would run, or ``None``."""
        return self.plan.solver.id if self.plan else None

    @property
    def steps(self) -> tuple[Explanation, ...]:
        """What the call runs, one problem each, in order; most calls run one."""
        return (replace(self, then=()), *self.then) if self.then else (self,)

    def followed_by(self, other: Explanation) -> Explanation:
        """Return the explanation of a call that goes on with `other`."""
        return replace(self, then=(*self.then, *other.steps))

    def concerns(self, candidate: Candidate) -> bool:
        """Tell whether a solver is for this operation and this pass at all."""
        return candidate.solver.serves(self.problem)

    def facts(self) -> list[tuple[str, str]]:
        """Return rows (name, text): what would run first and last, the problem and its costs between."""
        problem = self.problem
        runs = self.solver or "nothing"
        if self.refusal:
            runs += f": {self.refusal.removeprefix(f'{problem.op}: ')}"
        rows = [("runs on", runs), *problem.describe()]
        named = named_gpu(problem.device)
        if named is not None:
            where = f"{problem.array} on {problem.device}: {named.gpu} by name, modelled and not measured"
            rows = [(name, where if name == "array" else text) for name, text in rows]
        rows.append(("FLOPs", f"{problem.flops:,}"))
        intensity = problem.flops / max(problem.min_bytes, 1)
        rows.append(("bytes at least", f"{problem.min_bytes:,} ({intensity:.2f} FLOP per byte)"))
        bound = _roofline(problem)
        rows.append(("roofline", bound if isinstance(bound, str) else bound.text()))
        if self.plan is not None:
            workspace = self.plan.workspace
            limit = f"of workspace, the limit is {workspace_limit():,}"
            rows.append(("workspace", f"at most {workspace:,} bytes {limit}" if workspace else "none"))
            if self.plan.config:
                config = ", ".join(f"{name} {_plain(value)}" for name, value in self.plan.config.items())
                rows.append(("config", config))
            others = self.plan.solver.others(self.plan)
            if others:
                rows.append(("other forms", others))
            if self.origin:
                rows.append(("kernels", self.origin))
            chosen = [c for c in self.candidates if c.solver.id == self.solver and c.estimate is not None]
            runs += "".join(f", {_estimate(c, bound)}" for c in chosen)
        rows.append(("runs on", runs if self.plan else "nothing, the call would raise NoSolverError"))
        return rows

    def render(self, everything: bool = False, width: int | None = None) -> str:
        """Say it in words.

        Parameters
        ----------
        everything
            Whether solvers of other operations and passes are listed too.
        width
            Where lines are wrapped; None leaves them whole.
        """
        steps = self.steps
        if len(steps) > 1:
            texts = [step.render(everything, width) for step in steps]
            return "\n\n".join(f"step {place} of {len(steps)}\n{text}" for place, text in enumerate(texts, 1))
        rows, bound = self.facts(), _roofline(self.problem)
        indent = max(len(name) for name, _ in rows) + 2
        lines = [_wrapped(name.ljust(indent) + text, indent, width) for name, text in rows]
        shown = [c for c in self.candidates if everything or self.concerns(c)]
        able = [c for c in shown if c.reason is None]
        ids = max((len(c.solver.id) for c in able), default=0)
        listed = ["solvers, best first:" if able else "solvers, best first: none"]
        for place, candidate in enumerate(able, 1):
            text = f"  {place}. {candidate.solver.id.ljust(ids)}  {_estimate(candidate, bound)}"
            listed.append(_wrapped(text, 5, width))
        if len(shown) > len(able):
            listed.append("not here:")
            room = min(max(_MOST_LINES - len(rows) - len(listed), 1), _MOST_REFUSALS)
            refusals = _refusals((c for c in shown if c.reason), None if everything else room)
            listed += [_wrapped(f"  {text}", 6, width) for text in refusals]
        after = len(rows) - 1 - sum(name in ("workspace", "config", "other forms", "kernels") for name, _ in rows)
        return "\n".join([*lines[:after], *listed, *lines[after:]])

    def __str__(self) -> str:
        return self.render()

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain data that ``json.dump`` writes.

        Times are in microseconds, `share` is that of the roofline's rate; `problem` is what
        :func:`gpuconv.record_problems` records. Where a call runs several problems, ``"then"`` lists the others.

        Examples
        --------
        >>> import numpy as np, gpuconv
        >>> found = gpuconv.explain(gpuconv.max_pool1d, np.ones((1, 1, 4), np.float32), 2).to_json()
        >>> found["runs_on"], found["bytes_at_least"]
        ('numpy.pool.max.fprop', 24)
        """
        problem, bound = self.problem, _roofline(self.problem)
        solvers = [
            {
                "id": c.solver.id,
                "backend": c.backend,
                "of_this_operation": self.concerns(c),
                "reason": c.reason,
                "microseconds": c.estimate,
                "source": c.source,
                "share": None if c.estimate is None else _share(c, bound),
            }
            for c in self.candidates
        ]
        found: dict[str, Any] = {"runs_on": self.solver, "refusal": self.refusal, "problem": problem_to_json(problem)}
        found |= {"flops": problem.flops, "bytes_at_least": problem.min_bytes}
        found["roofline"] = None if isinstance(bound, str) else bound.to_json()
        found["workspace"] = self.plan.workspace if self.plan else None
        found["config"] = {name: _plain(value) for name, value in self.plan.config.items()} if self.plan else None
        found["solvers"] = solvers
        named = named_gpu(problem.device)
        if named is not None:
            found["gpu"] = named.gpu
        if self.origin:
            found["kernels"] = self.origin
        if self.then:
            found["then"] = [step.to_json() for step in self.then]
        return found


@dataclass(frozen=True, slots=True)
class _Roofline:
    """The least time of a problem on its GPU, what bounds it, and where that comes from."""

    microseconds: float
    bound: str
    rate: float
    source: str

    def text(self) -> str:
        rate = f"{self.rate:g} {_UNITS[self.bound]}, {self.source}"
        return f"{_time(self.microseconds)}, bound by {self.bound} ({rate})"

    def to_json(self) -> dict[str, Any]:
        rate = {"rate": self.rate, "unit": _UNITS[self.bound], "source": self.source}
        return {"microseconds": self.microseconds, "bound": self.bound, **rate}


def _roofline(problem: Problem) -> _Roofline | str:
    """Return the roofline, or why there is none."""
    if not problem.device.startswith("cuda"):
        return "not computed: the arrays are not on a GPU"
    if gpu_of(problem.device) is None:
        return "not computed: the GPU is not known before torch has initialised it"
    constants = constants_of(problem.device)
    time, bound, rate = roofline(problem, constants)
    return _Roofline(time, bound, constants.values[rate], constants.sources[rate])


def _share(candidate: Candidate, bound: _Roofline | str) -> float | None:
    if isinstance(bound, str) or not candidate.estimate:
        return None
    return bound.microseconds / candidate.estimate


def _time(microseconds: float) -> str:
    """Return a time in the unit that a reader takes in at once."""
    for unit, factor in (("s", 1e6), ("ms", 1e3)):
        if microseconds >= factor:
            return f"{microseconds / factor:,.2f} {unit}"
    return f"{microseconds:,.1f} us"


def _estimate(candidate: Candidate, bound: _Roofline | str) -> str:
    share = _share(candidate, bound)
    of_roofline = "" if share is None else f", {share:.0%} of the roofline"
    return f"estimate {_time(candidate.estimate or 0.0)} ({candidate.source}){of_roofline}"


def _plain(value: Any) -> Any:
    """Return a value of a config as JSON has it: numbers and texts as they are, the rest as a text."""
    if hasattr(value, "item"):  # one of NumPy's numbers
        value = value.item()
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _wrapped(line: str, indent: int, width: int | None) -> str:
    if width is None or len(line) <= width:
        return line
    found = textwrap.wrap(
        line, max(width, indent + 20), subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False,
        drop_whitespace=True, replace_whitespace=False,
    )  # fmt: skip
    return "\n".join(found)


def _refusals(refused: Iterable[Candidate], most: int | None) -> list[str]:
    """Return lines "solvers: reason", solvers with one reason together, `most` lines at most."""
    groups: dict[str, list[str]] = {}
    for candidate in refused:
        groups.setdefault(str(candidate.reason), []).append(candidate.solver.id)
    lines = [f"{', '.join(ids)}: {reason}" for reason, ids in groups.items()]
    if most is not None and len(lines) > most:
        left = sum(len(ids) for ids in list(groups.values())[most - 1 :])
        lines[most - 1 :] = [f"and {left} more solvers, each for a reason of its own"]
    return lines


def no_solver(
    problem: Problem, backend: str | None, found: Sequence[Candidate], free: Sequence[Candidate]
) -> NoSolverError:
    """Build the error of a call that nothing can run: why and what to do, then the solvers of the operation.

    Parameters
    ----------
    problem
        What the call asked for.
    backend
        The backend or solver id that was forced, or None.
    found
        The race with that, where everything refused.
    free
        The race without it.
    """
    served = [c for c in found if c.solver.serves(problem)]
    sentence = _forced(problem, backend, found, free) if backend else _unforced(problem, served)
    lines = [f"{problem.op}: {sentence}"]
    if served:
        lines.append(f"solvers of {_operation(problem)}, {problem.dtype}, of {_arrays(problem)}:")
        lines += [f"  {text}" for text in _refusals(served, _MOST_REFUSALS)]
    lines.append("gpuconv.explain says more, without running the call")
    return NoSolverError("\n".join(lines))


def _operation(problem: Problem) -> str:
    return dict(problem.describe())["operation"]


def _arrays(problem: Problem) -> str:
    return {"torch": "torch tensors", "cupy": "CuPy arrays", "numpy": "NumPy arrays"}[problem.array] + (
        "" if problem.array == "numpy" else f" on {problem.device}"
    )


def _forced(problem: Problem, backend: str, found: Sequence[Candidate], free: Sequence[Candidate]) -> str:
    """Say why what was forced cannot run a problem, and what would."""
    name, by = backend.partition(".")[0], forced_by(backend)
    if "." in backend:
        asked = [c for c in found if c.solver.id == backend]
    else:
        asked = [c for c in found if c.backend == name and c.solver.serves(problem)]
    if asked:
        one = "." in backend
        why = f"{by} cannot run this call: {asked[0].reason if one else _reasons(asked)}"
    elif "." not in backend:
        why = f"{by} cannot run this call: that backend has no solver of {_operation(problem)}"
    else:
        from difflib import get_close_matches  # for errors alone

        ids = [c.solver.id for c in found if c.solver.serves(problem)]
        near = get_close_matches(backend, ids, 2) or get_close_matches(backend, [c.solver.id for c in found], 2)
        return f"{by} names no solver; " + (
            f"did you mean {' or '.join(map(repr, near))}?" if near else "those of this operation are below"
        )
    able = next((c.solver.id for c in free if c.reason is None), None)
    return why + (f"; without it {able} runs" if able else _hint(problem, asked))


def _unforced(problem: Problem, served: Sequence[Candidate]) -> str:
    """Say why no backend can run a problem: those count that compute on its device."""
    where = problem.device.partition(":")[0]
    fitting = {"cuda": BACKENDS[:2], "cpu": BACKENDS[2:]}.get(where)
    if fitting is None:
        return f"no solver can run this call: arrays are on {problem.device}; move them to the CPU or a CUDA device"
    counted = [c for c in served if c.backend in fitting]
    if not counted:
        why = f"no backend has a solver of {_operation(problem)} for {_arrays(problem)}"
    else:
        why = f"no solver can run this call of {_arrays(problem)}: {_reasons(counted)}"
    return why + _hint(problem, served)


def _reasons(refused: Sequence[Candidate]) -> str:
    """Return the distinct reasons in one clause, with the name of who has them where there are several."""
    tight = [c for c in refused if _wants_workspace(c)]
    owners: dict[str, list[Candidate]] = {}
    for candidate in tight or refused:  # a limit that the user can raise says more than what else there is
        owners.setdefault(str(candidate.reason), []).append(candidate)
    if len(owners) > 3:
        return f"all {len(refused)} solvers refuse, for the reasons below"
    said = []
    for reason, those in owners.items():
        verb = reason.partition(" ")[0] in _VERBS
        whole = len(those) > 1 and len({c.backend for c in those}) == 1
        name = those[0].backend if whole else " and ".join(c.solver.id for c in those)
        said.append(f"{name} {reason}" if verb else reason)
    return ", and ".join(said)


def _wants_workspace(candidate: Candidate) -> bool:
    return "of workspace" in str(candidate.reason)


def _hint(problem: Problem, refused: Sequence[Candidate]) -> str:
    """Return what the user can do, where something is known to help."""
    if any(map(_wants_workspace, refused)):
        return "; raise it: GPUCONV_WORKSPACE, in bytes"
    on_host = [c for c in refused if c.backend == "numpy" and problem.device != "cpu"]
    able = next((c.solver.id for c in on_host if c.solver.why_not(problem) is None), None)
    return f"; on the CPU {able} runs it" if able else ""
