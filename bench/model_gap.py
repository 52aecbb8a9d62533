"""How far the cost model sees kernels from the roofline, by family of layers; no GPU is asked (``make model-gap``).

    python bench/model_gap.py [--check]     # docs/model-gap.md: H200, bfloat16, channels-last; --check: is it stale?
    python bench/model_gap.py [--gpu h100] [--dtype float16] [--contiguous] [--rows 40] [--out FILE]    # another page

Every layer of `bench/workloads/*.json` at batch 32 becomes its forward pass, input gradient (but of images) and weight
gradient. Each is planned as the dispatcher would plan it for the Triton backend on that GPU: the solver with the lowest
estimate among those that do not refuse, in its default config, with the constants that are shipped for the GPU. The
problems of KernelBench stand beside the times that its authors publish. Families of layers: see `families.py`.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import exp, log
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
if not __package__:  # run as a script
    sys.path.insert(0, str(REPO))
    __package__ = "bench"

from gpuconv.arrays import CHANNELS_LAST, CONTIGUOUS  # noqa: E402
from gpuconv.backends.triton.tuned import Tunable  # noqa: E402
from gpuconv.config import workspace_limit  # noqa: E402
from gpuconv.costs.constants import Constants, Gpu, assuming, shipped  # noqa: E402
from gpuconv.costs.model import estimate, overheads, terms  # noqa: E402
from gpuconv.costs.work import roofline  # noqa: E402
from gpuconv.dispatch import backends  # noqa: E402
from gpuconv.problem import Problem  # noqa: E402

from . import kernelbench  # noqa: E402
from .cases import DTYPES, kernelbench_problems, layer_problems, networks, problem_key  # noqa: E402
from .families import FAMILIES, family_of_layer  # noqa: E402

PAGE = REPO / "docs" / "model-gap.md"
BATCH = 32
LEAST_US = 5.0
"""Layers whose roofline is no longer are left out of means: what a launch costs at all is most of their time."""

PASSES = ("forward", "input gradient", "weight gradient")


@dataclass(frozen=True, slots=True)
class Choice:
    """What the dispatcher would run, as the model sees it: microseconds, the roofline's, and what each is bound by."""

    solver: str
    us: float
    term: str
    least_us: float
    bound: str

    @property
    def ratio(self) -> float:
        """How many times the roofline's time the modelled one is."""
        return self.us / self.least_us


@dataclass(frozen=True, slots=True)
class Row:
    """A pass of a layer: its family, the networks that have it, and what would run."""

    problem: Problem
    family: str
    role: str
    networks: tuple[str, ...]
    choice: Choice


def _gpu_with(constants: Constants) -> Gpu:
    """Return the GPU whose shipped constants these are."""
    for stem, (data, found) in shipped().items():
        if found is constants:
            return Gpu((data.get("names") or [stem])[0], tuple(data["capability"]))
    raise ValueError(f"no GPU is shipped with the constants of {constants.gpu}")


def choose(problem: Problem, constants: Constants) -> Choice:
    """Return what the dispatcher would run for a torch tensor on a GPU of these constants, untuned.

    Raises
    ------
    ValueError
        If no solver of the Triton backend runs the problem within the limit on workspaces.
    """
    found: list[tuple[float, str, Any]] = []
    with assuming(_gpu_with(constants)):
        for solver in backends()["triton"].solvers():
            if not isinstance(solver, Tunable):
                raise TypeError(f"{solver.id} does not describe its work, so it has no estimate for a GPU by its name")
            if solver.why_not(problem) is None:
                config = solver.default(problem)
                if solver.bind(problem, config).workspace <= workspace_limit():
                    work = solver.work(problem, [config])
                    found.append((float(estimate(work, constants)[0]), solver.id, work))
    if not found:
        raise ValueError(f"no Triton solver runs {problem_key(problem)}")
    us, id, work = min(found, key=lambda entry: entry[0])
    parts = {**terms(work, constants), **overheads(work, constants)}
    term = max(parts, key=lambda name: float(parts[name].flat[0]))
    least_us, bound, _ = roofline(problem, constants)
    return Choice(id, us, term, least_us, bound)


def _role(problem: Problem, first: bool) -> str:
    """Return which pass of its layer a problem is; `first` is the forward one."""
    if first:
        return PASSES[0]
    return PASSES[2] if problem.kind == "wgrad" else PASSES[1]


def rows_of(constants: Constants, number: str, layout: str, only: str | None = None) -> list[Row]:
    """Return every distinct pass of the layers of the workloads, or of one family of them, in the networks' order."""
    found: dict[tuple[Problem, str, str], list[str]] = {}
    for network, workload in networks().items():
        for layer in workload["layers"]:
            passes = list(layer_problems(layer, BATCH, "training", number, layout))
            if only is not None and family_of_layer(passes[0]) != only:
                continue
            for place, problem in enumerate(passes):
                key = (problem, family_of_layer(passes[0]), _role(problem, place == 0))
                names = found.setdefault(key, [])
                if network not in names:
                    names.append(network)
    return [
        Row(problem, family, role, tuple(names), choose(problem, constants))
        for (problem, family, role), names in found.items()
    ]


def geometric_mean(values: Iterable[float]) -> float:
    """Return the geometric mean of positive numbers, of which there is at least one."""
    logs = [log(value) for value in values]
    return exp(sum(logs) / len(logs))


def _table(heads: Sequence[str], lines: Iterable[Sequence[str]], numbers: range) -> Iterator[str]:
    """Yield a table in Markdown; the columns in `numbers` are aligned to the right."""
    yield "| " + " | ".join(heads) + " |"
    yield "|" + "|".join("---:" if place in numbers else "---" for place in range(len(heads))) + "|"
    for cells in lines:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _solver(id: str) -> str:
    return id.removeprefix("triton.")


def _families(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the table of families: the layers that count, how far they are from the roofline, and who solves them."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.family, row.role].append(row)
    lines = []
    for family in FAMILIES:
        for role in PASSES:
            group = groups.get((family, role), [])
            counted = [row.choice for row in group if row.choice.least_us > LEAST_US]
            if not group:
                continue
            taken = Counter(_solver(choice.solver) for choice in counted)
            ratios = [choice.ratio for choice in counted]
            figures = [f"{geometric_mean(ratios):.2f}", f"{max(ratios):.2f}"] if ratios else ["-", "-"]
            solvers = ", ".join(f"{name} ({count})" for name, count in sorted(taken.items())) or "-"
            lines.append([family, role, str(len(counted)), str(len(group) - len(counted)), *figures, solvers])
    heads = ["family", "pass", "layers", "left out", "geometric mean", "worst", "solvers (layers)"]
    yield from _table(heads, lines, range(2, 6))


def _worst(rows: Sequence[Row], most: int) -> Iterator[str]:
    """Yield the table of the passes that are furthest from their roofline."""
    counted = [row for row in rows if row.choice.least_us > LEAST_US]
    counted.sort(key=lambda row: (-round(row.choice.ratio, 6), problem_key(row.problem)))
    lines = []
    for row in counted[:most]:
        choice = row.choice
        lines.append([
            f"`{problem_key(row.problem)}` of {', '.join(row.networks)}", f"{row.family}, {row.role}",
            f"`{_solver(choice.solver)}`", choice.term, choice.bound, f"{choice.ratio:.2f}", f"{choice.us:,.1f}",
            f"{choice.least_us:,.1f}",
        ])  # fmt: skip
    yield f"The {len(lines)} worst of {len(counted)}:"
    yield ""
    heads = ["problem", "family, pass", "solver", "longest", "roofline's bound", "ratio", "modelled us", "roofline us"]
    yield from _table(heads, lines, range(5, 8))


def _published(constants: Constants) -> Iterator[str]:
    """Yield the table of KernelBench, what is furthest behind the published times first."""
    found = []
    for one in kernelbench.published():
        problems = kernelbench_problems(one)
        choices = [choose(problem, constants) for problem in problems]
        us, least = (sum(getattr(choice, name) for choice in choices) for name in ("us", "least_us"))
        families = " + ".join(family_of_layer(problem) for problem in problems)
        solvers = " + ".join(_solver(choice.solver) for choice in choices)
        found.append((one.eager_ms * 1e3 / us, one, families, us, least, solvers))
    found.sort(key=lambda entry: (round(entry[0], 6), entry[1].number))
    ratios = [entry[0] for entry in found]
    behind, mean = sum(ratio < 1 for ratio in ratios), f"{geometric_mean(ratios):.2f}"
    yield f"Modelled slower than the published eager time: {behind} of {len(found)}; geometric mean of published over"
    yield f"modelled time: {mean}."
    yield ""
    lines = [
        [f"{one.number} `{one.name.strip('_')}`", families, f"{one.eager_ms:.2f}", f"{one.inductor_ms:.2f}",
         f"{us / 1e3:.3f}", f"{least / 1e3:.3f}", f"{us / least:.2f}", f"{ratio:.2f}", f"`{solvers}`"]
        for ratio, one, families, us, least, solvers in found
    ]  # fmt: skip
    heads = ["problem", "family", "published eager ms", "published Inductor ms", "modelled ms", "roofline ms"]
    heads += ["modelled / roofline", "published eager / modelled", "solver"]
    yield from _table(heads, lines, range(2, 8))


def _constants(constants: Constants) -> Iterator[str]:
    lines = [
        [name, f"{value:g}", constants.sources[name], constants.notes.get(name, "")]
        for name, value in constants.values.items()
    ]
    yield from _table(["constant", "value", "source", "note"], lines, range(1, 2))


_TOP = """
# Modelled time over roofline

**Every figure here is modelled: no GPU was used and nothing was measured.** The exceptions are two columns of the last
table but one, which others have published. A ratio says what the cost model ([gpuconv/costs](../gpuconv/costs)) sees
between a kernel as it describes itself and the limit of the hardware; what it does not see, it does not show.

`make model-gap` writes this page, `python bench/model_gap.py --check` tells whether it is stale, and options of that
print it for other GPUs, number formats and memory formats. It changes when a solver, its description, a constant or a
workload does.

## Families: {where}

Passes of the layers of [bench/workloads](../bench/workloads), each distinct one once: forward, input gradient (none
where the input has 1 or 3 channels, as sound, volumes and images have) and weight gradient. Each has the solver that
the dispatcher would take among those of the Triton backend, untuned. The roofline is the least bytes over the bandwidth
of memory, or the FLOPs over the rate of what multiplies, whichever takes longer. Left out are passes whose roofline is
{least} us or less, {left_out} of {passes}. What the families are: [bench/families.py](../bench/families.py).
"""

_WORST = """
## Worst passes

`longest` is the longest term of the estimate: pipe, l2, l1, dram, issue, wait, or launches and passes before or after
([gpuconv/costs/model.py](../gpuconv/costs/model.py)).
"""

_KERNELBENCH = """
## KernelBench level 1: {gpu}, float32, contiguous

{about}

Modelled with the constants of the {gpu}, as the published times are of one; convolutions multiply in tf32. Published
times are of whole calls from Python. `python bench/run.py --network kernelbench` measures the same problems on a GPU.
"""

_CONSTANTS = """
## Constants of the {gpu}

From [gpuconv/costs/gpus/{file}.json](../gpuconv/costs/gpus/{file}.json): of the data sheet, or assumed, and measured by
nobody for this library. Beside them the model assumes for every GPU what a multiprocessor moves in a clock: 64 bytes
from L2, 128 through L1 and shared memory.
"""


def page(gpu: str, number: str, layout: str, rows: int) -> str:
    """Return the page for a GPU by its file name, a number format of `DTYPES` and a memory format."""
    constants, theirs = shipped()[gpu][1], shipped()[kernelbench.GPU][1]
    found = rows_of(constants, number, layout)
    facts = {
        "where": f"{constants.gpu}, {number}, {layout.replace('_', '-')}, batch {BATCH}",
        "least": f"{LEAST_US:g}",
        "left_out": sum(row.choice.least_us <= LEAST_US for row in found),
        "passes": len(found),
    }
    parts = [
        (_TOP.format(**facts), _families(found)),
        (_WORST, _worst(found, rows)),
        (_KERNELBENCH.format(gpu=theirs.gpu, about=kernelbench.about()), _published(theirs)),
        (_CONSTANTS.format(gpu=constants.gpu, file=gpu), _constants(constants)),
    ]
    return "\n".join("\n".join((text.strip(), "", *lines, "")) for text, lines in parts)


def main(words: Sequence[str] | None = None) -> int:
    """Do what the command line says; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", choices=sorted(shipped()), default="h200")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bfloat16")
    parser.add_argument("--contiguous", action="store_true", help="tensors are contiguous, not channels-last")
    parser.add_argument("--rows", type=int, default=40, help="of the worst passes (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="default: the committed page, or, with options above, the screen")
    parser.add_argument(
        "--check", action="store_true", help="exit 1 if the committed page is not what would be written"
    )
    options = parser.parse_args(words)
    named = (options.gpu, options.dtype, options.contiguous, options.rows)
    usual = named == tuple(parser.get_default(name) for name in ("gpu", "dtype", "contiguous", "rows"))
    if options.check and (options.out or not usual):
        parser.error("--check is of the committed page, which no option changes")
    layout = CONTIGUOUS if options.contiguous else CHANNELS_LAST
    text = page(options.gpu, options.dtype, layout, options.rows)
    path = options.out or (PAGE if usual else None)
    if path is None:
        print(text, end="")
        return 0
    if options.check:
        fresh = path.exists() and path.read_text() == text
        print(f"{path.name} is what the model says" if fresh else f"{path.name} is stale: make model-gap")
        return int(not fresh)
    path.write_text(text)
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
