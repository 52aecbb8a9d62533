"""Prepare all that a rented card needs, so that it measures and compiles nothing: `make card`.

    python bench/card.py [--arch sm_90] [--out build/card] [--jobs 2] [--cases 300] [--tuned 12] [--plan]

Writes a folder that git ignores and that may travel (64 MiB at most): ``pack``, which has what the stages parity,
benchmark, sanitizer and tune launch through Triton, and every kernel of the CuPy backend; and ``plan.txt``, the two
commands to run there, with what is estimated for each stage. ``--plan`` prints the plan, and builds nothing.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
if not __package__:  # run as a script
    sys.path.insert(0, str(REPO))
    __package__ = "bench"

from gpuconv.packing import Variants, build_pack, gpus_of  # noqa: E402
from gpuconv.problem import ConvProblem, Problem  # noqa: E402

from .cases import all_cases  # noqa: E402
from .environment import commit  # noqa: E402
from .gpu_report import arguments as report_arguments  # noqa: E402
from .parity import parity_problems  # noqa: E402
from .parity_calls import call_problems  # noqa: E402
from .plan import plan_text  # noqa: E402
from .progress import Progress  # noqa: E402
from .sanitizer import LAYOUTS, PLANES, odd_problems  # noqa: E402

LIMIT_BYTES = 60 << 20

FIRST = "--budget 520 --stage ceilings=25 parity=90 benchmark=235 sanitizer=90 tune=50 fit=10"
"""Nine minutes with the start of the machine's processes: most valuable first."""

SECOND = "--budget 160 --resume {folder} --stage parity=45 benchmark=85 fit=10"
"""Three minutes, later: what changed since, what failed, and what the first had no time for."""


def wanted(cases: int, tuned: int) -> dict[Variants, list[Problem]]:
    """Return the problems of which the stages launch plans: `cases` of the benchmark, `tuned` of which are tuned."""
    measured = [case.problem for case in all_cases()[:cases]]
    odd = [problem for layout in LAYOUTS for problem in odd_problems(layout)]
    small = call_problems(PLANES, [("float16", layout) for layout in LAYOUTS])
    return {
        "solvers": [*parity_problems("cuda:0"), *call_problems(), *odd, *small],
        "first": measured,
        "tuned": [problem for problem in measured if isinstance(problem, ConvProblem)][:tuned],
    }


def commands(out: Path) -> list[str]:
    """Return the options of the two commands, in order."""
    try:
        shown = out.resolve().relative_to(REPO)
    except ValueError:
        shown = out
    pack = f"--pack {shown / 'pack'}"
    return [f"{pack} {FIRST}", f"{pack} {SECOND.format(folder='FOLDER')}"]


def plan(out: Path) -> str:
    """Return the two commands with their stages."""
    parts = []
    for number, words in enumerate(commands(out), 1):
        stages = plan_text(report_arguments(words.split()))
        line = f"GPUCONV_COMMIT={commit() or '?'} python bench/gpu_report.py {words} --out $OUT"
        parts.append(f"command {number}\n{line}\n{stages}\n")
    note = "FOLDER is that of the first command's outputs, copied into the tree. Nothing here has run on a card yet."
    return "\n".join([*parts, note, ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="sm_90")
    parser.add_argument("--out", type=Path, default=REPO / "build" / "card")
    parser.add_argument("--jobs", type=int, default=2, help="processes that compile at the same time")
    parser.add_argument("--cases", type=int, default=300, help="cases of the benchmark, the most valuable first")
    parser.add_argument("--tuned", type=int, default=12, help="convolutions among them that can be tuned")
    parser.add_argument("--plan", action="store_true", help="print the plan, build nothing")
    options = parser.parse_args()
    for name in ("jobs", "cases", "tuned"):
        if getattr(options, name) < 1:
            parser.error(f"argument --{name}: must be 1 or more, but got {getattr(options, name)}")
    try:
        gpus_of(options.arch)
    except ValueError as error:
        parser.error(f"argument --arch: {error}")
    if options.plan:
        print(plan(options.out))
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    bar: list[Progress] = []

    def progress(done: int, total: int) -> None:
        if not bar:
            bar.append(Progress("compiled", total=total))
            bar[0].count = done - 1
        bar[0].step("launches and sources")

    problems = wanted(options.cases, options.tuned)
    built = build_pack(problems, [options.arch], options.out / "pack", options.jobs, progress, cupy=True)
    for failure in built.failures:
        print(f"error: {failure}", file=sys.stderr)
    (options.out / "plan.txt").write_text(plan(options.out))
    print((options.out / "plan.txt").read_text())
    size = sum(path.stat().st_size for path in options.out.rglob("*") if path.is_file())
    print(
        f"{options.out}: {size / 2**20:.1f} MiB of {LIMIT_BYTES >> 20}, {built.entries} launches and kernels "
        f"({built.compiled} launches and sources compiled now), {built.cubins} cubins"
    )
    return 1 if built.failures or size > LIMIT_BYTES else 0


if __name__ == "__main__":
    sys.exit(main())
