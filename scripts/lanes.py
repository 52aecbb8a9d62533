"""Run the test lanes, two at a time, and print a table of what ran.

Each of two lanes has half of the processors: imports and collections of tests, which every worker makes for itself, and
what a lane does in one process then leave nothing idle. What a lane prints is shown when it has ended. A lane alone, or
of those that want the machine for themselves, has all of it.

Standard library only, so that any Python 3.11 can start it; each lane uses the environment that the Makefile made
for it. A lane that ran no test reads "not run", with the reason, and never "passed".
"""

import argparse
import contextvars
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

REPO = Path(__file__).resolve().parents[1]
BUILD = REPO / "build" / "lanes"
VENV = REPO / ".venv"
VENV36 = REPO / ".venv-triton36"
VENV_IMAGE = REPO / ".venv-gpu-image"
VENV_NUMPY = REPO / ".venv-numpy"

PASSED, FAILED, NOT_RUN = "passed", "FAILED", "not run"
NO_TESTS_COLLECTED = 5  # pytest's exit status

# As many pytest workers as processors share the machine: one thread each.
TEST_ENV = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
# gpuconv is not installed beside triton 3.6: those lanes, and the subprocesses of their tests, use the bare checkout.
CHECKOUT_ENV = {"PYTHONPATH": str(REPO)}
NO_GPU = "not gpu and not multi_gpu"
# What NVRTC makes of the CUDA sources does not depend on Triton: once is enough.
NO_NVRTC = ("--ignore=tests/codegen/test_nvrtc.py",)
# Packs are made by one Triton and launched without it: the gate makes them with the latest alone.
NO_PACKS = () if os.environ.get("GPUCONV_TEST_FULL") == "1" else ("--ignore-glob=tests/launch/test_packs*.py",)
MOST_FILES = 7  # of a report: a rented machine may bring 8 back
WITHOUT_TORCH = (
    "tests/unit/test_numpy_alone.py",
    "tests/unit/test_config.py",
    "tests/unit/test_numerics.py",
    "tests/unit/test_numpy_padding.py",
    "tests/unit/test_teaching.py",
)


@dataclass(frozen=True, slots=True)
class Result:
    lane: str
    outcome: str
    note: str = ""
    seconds: float = 0.0


OUTPUT: contextvars.ContextVar[TextIO | None] = contextvars.ContextVar("output", default=None)
"""Where what a lane says goes: a file of its own while another one runs, or None, which is to our own output."""

WORKERS: contextvars.ContextVar[int] = contextvars.ContextVar("workers", default=os.cpu_count() or 1)
"""Processes that a lane may keep busy."""


def say(*words: str) -> None:
    print(*words, file=OUTPUT.get(), flush=True)


def run(command: list[str], env: dict[str, str] | None = None, cwd: Path = REPO) -> int:
    """Echo the command, run it without input, return its exit status."""
    shown = [f"{key}={value}" for key, value in (env or {}).items() if key == "TRITON_INTERPRET"]
    say("$", " ".join([*shown, *command]).replace(f"{REPO}/", ""))
    environment = {**os.environ, **(env or {})}
    output = OUTPUT.get()
    errors = None if output is None else subprocess.STDOUT
    return subprocess.run(
        command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=errors
    ).returncode


def pytest_lane(
    lane: str,
    folders: list[str],
    venv: Path = VENV,
    workers: int | None = None,
    marks: str = NO_GPU,
    env: dict[str, str] | None = None,
    options: tuple[str, ...] = (),
    share: str = "worksteal",
) -> Result:
    """Run the tests under `folders` that match `marks`; the outcome comes from pytest's exit status and its report.

    `workers` are those of the lane, if None.
    """
    workers = WORKERS.get() if workers is None else workers
    present = [folder for folder in folders if (REPO / folder).exists()]
    if not present:
        say("not run (no tests)")
        return Result(lane, NOT_RUN, "no tests")
    report = BUILD / f"{lane}.xml"
    report.unlink(missing_ok=True)
    command = [str(venv / "bin" / "python"), "-m", "pytest", f"--junitxml={report}", "-m", marks, *options]
    command += ["-n", str(workers), "--dist", share] if workers > 1 else []
    status = run([*command, *present], env={**TEST_ENV, **(env or {})})
    if status == NO_TESTS_COLLECTED:
        say("not run (no tests)")
        return Result(lane, NOT_RUN, "no tests")
    if not report.is_file():
        return Result(lane, FAILED, f"exit status {status}, no report")
    total, failed, skipped = read_report(report)
    if status != 0 or failed:
        return Result(lane, FAILED, f"exit status {status}, {failed} of {total} tests failed")
    if total == skipped:
        return Result(lane, NOT_RUN, f"all {total} tests skipped")
    return Result(lane, PASSED, f"{total - skipped} tests" + (f", {skipped} skipped" if skipped else ""))


def read_report(report: Path) -> tuple[int, int, int]:
    """Return the numbers of tests, of failures and errors, and of skips in a JUnit file."""
    suites = list(ET.parse(report).getroot().iter("testsuite"))

    def count(key: str) -> int:
        return sum(int(suite.get(key, "0")) for suite in suites)

    return count("tests"), count("failures") + count("errors"), count("skipped")


def stage(staged: Path) -> Path:
    """Copy the package to a folder, with kernels/tl and kernels/cu where a wheel puts them, and return the folder.

    The import linter reads files by package path and cannot follow the mapping in pyproject.toml.
    """
    shutil.rmtree(staged, ignore_errors=True)
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPO / "gpuconv", staged / "gpuconv", ignore=ignore)
    for name in ("tl", "cu"):
        shutil.copytree(REPO / "kernels" / name, staged / "gpuconv" / "kernels" / name, ignore=ignore)
    return staged


def lint_lane(lane: str) -> Result:
    """Run every check, the later ones also after an earlier one failed."""
    tools = VENV / "bin"
    staged = stage(REPO / "build" / "staged")
    statuses = {
        "ruff check": run([str(tools / "ruff"), "check", "."]),
        "ruff format": run([str(tools / "ruff"), "format", "--check", "."]),
        "lint-imports": run(
            [str(tools / "lint-imports"), "--config", str(REPO / "pyproject.toml"), "--no-cache"],
            cwd=staged,
        ),
        "mypy": run([str(tools / "mypy"), "-p", "gpuconv"]),
    }
    failed = [tool for tool, status in statuses.items() if status != 0]
    return Result(lane, FAILED if failed else PASSED, ", ".join(failed))


def docs_lane(lane: str) -> Result:
    """Build the pages, which runs their blocks, with warnings as errors; then compare them with the sources."""
    out = REPO / "build" / "docs"
    shutil.rmtree(out, ignore_errors=True)
    command = [str(VENV / "bin" / "sphinx-build"), "-q", "-W", "--keep-going", "-E", "-b", "html", "docs", str(out)]
    status = run(command, env=TEST_ENV)
    blocks = json.loads((out / "blocks.json").read_text())["blocks"] if (out / "blocks.json").is_file() else []
    not_run = sum("not_run" in block for block in blocks)
    tests = pytest_lane(lane, ["tests/docs"], env={"GPUCONV_DOCS": str(out)})
    note = f"{len(blocks) - not_run} blocks ran, {not_run} not run; {tests.note}"
    if status != 0 or not blocks:
        return Result(lane, FAILED, f"sphinx-build: exit status {status}; {note}")
    return replace(tests, note=note)


def gpu_lane(lane: str) -> Result:
    """Run the tests marked gpu where torch sees a CUDA device."""
    probe = "import sys, torch; sys.exit(0 if torch.cuda.is_available() else 3)"
    status = subprocess.run([str(VENV / "bin" / "python"), "-c", probe], cwd=REPO, stdin=subprocess.DEVNULL).returncode
    if status == 3:
        say("gpu lane: not run (no CUDA device)")
        return Result(lane, NOT_RUN, "no CUDA device")
    if status != 0:
        return Result(lane, FAILED, f"the probe for a CUDA device exited with {status}")
    # Most of a test is the compiler's work, which the processors share.
    workers = max(1, min(14, (os.cpu_count() or 1) - 2))
    return pytest_lane(lane, ["tests"], workers=workers, marks="gpu")


def absent(venv: Path) -> str | None:
    """Return why an environment that need not be had everywhere is not there, as `stacks.py` left word."""
    if (venv / ".stamp").is_file():
        return None
    why = venv / ".why-not"
    return why.read_text().strip() if why.is_file() else f"no {venv.name}: make test LANES=... sets it up"


def gpu_image_lane(lane: str) -> Result:
    """Run what needs no GPU in the stack of a machine with one, and the report from end to end."""
    why = absent(VENV_IMAGE)
    if why is not None:
        say(f"not run ({why})")
        return Result(lane, NOT_RUN, why)
    marks = f"{NO_GPU} and not interpret"
    # tests/gpu has nothing to run here, but must be collected without what such a machine lacks. The stub driver of
    # tests/launch stays out of the way of others.
    parts = [
        pytest_lane(lane, folders, VENV_IMAGE, marks=marks, env=CHECKOUT_ENV)
        for folders in (["tests/unit", "tests/gpu"], ["tests/launch"])
    ]
    notes = "; ".join(part.note for part in parts)
    out = BUILD / "gpu-image-report"
    shutil.rmtree(out, ignore_errors=True)
    command = [str(VENV_IMAGE / "bin" / "python"), str(REPO / "bench" / "gpu_report.py"), "--dry-run"]
    status = run([*command, "--budget", "500", "--out", str(out)], env={**TEST_ENV, **CHECKOUT_ENV})
    files = len(list(out.iterdir())) if out.is_dir() else 0
    if status != 0 or not 0 < files <= MOST_FILES:
        return Result(lane, FAILED, f"{notes}; dry run of the report: exit status {status}, {files} files")
    outcome = PASSED if all(part.outcome == PASSED for part in parts) else FAILED
    return Result(lane, outcome, f"{notes}; dry run of the report: {files} files")


def numpy_alone_lane(lane: str) -> Result:
    why = absent(VENV_NUMPY)
    if why is not None:
        say(f"not run ({why})")
        return Result(lane, NOT_RUN, why)
    return pytest_lane(lane, list(WITHOUT_TORCH), VENV_NUMPY, workers=1, env=CHECKOUT_ENV)


def launches_of(lane: str) -> Path:
    """Return the folder for what an interpret lane launched."""
    return BUILD / f"{lane}-launches"


def interpret_lane(lane: str, venv: Path, env: dict[str, str]) -> Result:
    shutil.rmtree(launches_of(lane), ignore_errors=True)
    launches_of(lane).mkdir(parents=True)
    env = {"TRITON_INTERPRET": "1", "GPUCONV_LAUNCHES": str(launches_of(lane)), **env}
    return pytest_lane(lane, ["tests/interpret"], venv, marks="interpret", env=env)


def frontend_lane(lane: str, interpreted: str, venv: Path, env: dict[str, str]) -> Result:
    """Build what the lane `interpreted` launched; where it ran and no launch was written down, that is a failure."""
    folder = launches_of(interpreted)
    if not folder.is_dir():
        say(f"not run (no launches of the {interpreted} lane)")
        return Result(lane, NOT_RUN, f"no launches of the {interpreted} lane")
    if not any(path.read_text().count("\n") > 1 for path in folder.glob("*.jsonl")):  # the first line is a heading
        return Result(lane, FAILED, f"the {interpreted} lane wrote down no launch")
    result = pytest_lane(lane, ["tests/frontend"], venv, env={"GPUCONV_LAUNCHES": str(folder), **env})
    if result.outcome == NOT_RUN:
        return replace(result, note=f"the {interpreted} lane ran other kernels than these")
    return replace(result, note=result.note.replace("tests", "specialisations"))


LANES: dict[str, tuple[str, Callable[[str], Result]]] = {
    "lint": ("ruff, import contracts, mypy", lint_lane),
    "docs": ("pages built, their blocks and the examples run", docs_lane),
    "unit": (
        "unit, parity and compile tests on CPU",
        lambda lane: pytest_lane(
            lane, ["tests/unit", "tests/parity", "tests/compile"], marks=f"{NO_GPU} and not interpret"
        ),
    ),
    "models": (
        "networks of others before and after gpuconv.replace_modules",
        lambda lane: pytest_lane(lane, ["tests/models"]),
    ),
    "distributed": (
        "DDP, FSDP2 and DTensor over gloo, two to four processes",
        lambda lane: pytest_lane(lane, ["tests/distributed"], workers=1),
    ),
    "packaging": (
        "wheel, editable install and bare checkout",
        lambda lane: pytest_lane(lane, ["tests/packaging"], share="loadfile"),  # wheels are built by one file alone
    ),
    "interpret": (
        "Triton kernels interpreted on CPU, latest triton",
        lambda lane: interpret_lane(lane, VENV, {}),
    ),
    "interpret-triton36": (
        "Triton kernels interpreted on CPU, triton 3.6",
        lambda lane: interpret_lane(lane, VENV36, CHECKOUT_ENV),
    ),
    "frontend": (
        "what the interpret lane launched, by the compiler's front end, latest triton",
        lambda lane: frontend_lane(lane, "interpret", VENV, {}),
    ),
    "frontend-triton36": (
        "what the interpret-triton36 lane launched, by the compiler's front end, triton 3.6",
        lambda lane: frontend_lane(lane, "interpret-triton36", VENV36, CHECKOUT_ENV),
    ),
    "cuda-on-cpu": (
        "CUDA sources compiled by g++ and run on CPU",
        lambda lane: pytest_lane(lane, ["tests/cuda_on_cpu"], marks="cuda_on_cpu", env={"GPUCONV_CUDA_ON_CPU": "1"}),
    ),
    "executor": (
        "Hopper kernels run and searched over a model of the hardware",
        lambda lane: pytest_lane(lane, ["tests/executor"]),
    ),
    "codegen": (
        "kernels compiled ahead of time, and launched against a stub of the driver, latest triton, and by NVRTC",
        lambda lane: pytest_lane(lane, ["tests/codegen", "tests/launch"]),
    ),
    "codegen-triton36": (
        "kernels compiled ahead of time, and launched against a stub of the driver, triton 3.6",
        lambda lane: pytest_lane(
            lane, ["tests/codegen", "tests/launch"], VENV36, env=CHECKOUT_ENV, options=(*NO_NVRTC, *NO_PACKS)
        ),
    ),
    "stack-gpu-image": ("the stack of a GPU machine: unit, launch, and a dry run of the report", gpu_image_lane),
    "numpy-alone": ("the newest Python with NumPy and nothing else", numpy_alone_lane),
    "gpu": ("tests that need a CUDA device", gpu_lane),
}


ALONE = {"gpu"}
"""Lanes beside which no other one runs."""

AFTER = {"frontend": "interpret", "frontend-triton36": "interpret-triton36"}
"""Lanes that read what another one has left, which runs before them where both are chosen."""


def run_lane(lane: str, workers: int, log: Path | None = None) -> Result:
    """Run a lane with so many workers; what it says goes to a file, if there is one, and is shown at the end."""
    title, function = LANES[lane]
    heading = f"\n{lane}: {title}"
    WORKERS.set(workers)
    start = time.monotonic()
    if log is None:
        print(heading, flush=True)
        result = function(lane)
    else:
        with log.open("w") as output:
            OUTPUT.set(output)
            try:
                result = function(lane)
            finally:
                output.flush()
                with SHOWING:
                    print(heading, log.read_text(errors="replace"), sep="\n", end="", flush=True)
    return replace(result, seconds=time.monotonic() - start)


SHOWING = threading.Lock()


def run_lanes(chosen: Sequence[str], processors: int) -> list[Result]:
    """Run lanes two at a time, those in front first; return their results in the order of `chosen`."""
    results: dict[str, Result] = {}
    waiting = [lane for lane in chosen if lane not in ALONE]
    together = 2 if len(waiting) > 1 and processors > 1 else 1
    if together > 1:
        with ThreadPoolExecutor(together) as pool:
            running: dict[Future[Result], str] = {}
            while waiting or running:
                busy = {*running.values(), *waiting}
                ready = [lane for lane in waiting if AFTER.get(lane) not in busy]
                while ready and len(running) < together:
                    lane = ready.pop(0)
                    waiting.remove(lane)
                    print(f"{lane}: started", flush=True)
                    running[pool.submit(run_lane, lane, processors // together, BUILD / f"{lane}.log")] = lane
                for done in wait(running, return_when=FIRST_COMPLETED).done:
                    results[running.pop(done)] = done.result()
    left = [lane for lane in chosen if lane not in results]
    while left:
        lane = next(lane for lane in left if AFTER.get(lane) not in left)
        left.remove(lane)
        results[lane] = run_lane(lane, processors)
    return [results[lane] for lane in chosen]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("lanes", nargs="*", metavar="LANE", help=f"default: all of {', '.join(LANES)}")
    chosen = parser.parse_args().lanes or list(LANES)
    unknown = [lane for lane in chosen if lane not in LANES]
    if unknown:
        parser.error(f"LANE is {unknown[0]!r}; it must be one of {', '.join(LANES)}")
    BUILD.mkdir(parents=True, exist_ok=True)

    results = run_lanes(chosen, os.cpu_count() or 1)
    width = max(len(result.lane) for result in results)
    print(f"\n{'lane':<{width}}  {'result':<8}  {'seconds':>7}")
    for result in results:
        print(f"{result.lane:<{width}}  {result.outcome:<8}  {result.seconds:7.1f}  {result.note}".rstrip())
    return 1 if any(result.outcome == FAILED for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
