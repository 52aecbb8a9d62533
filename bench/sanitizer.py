"""compute-sanitizer around one small, odd problem per solver: sizes that fill no tile, so that a missing mask shows.

Operands are drawn on the CPU and nothing is judged, so that the only kernels under the tool are ours.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gpuconv
from gpuconv.arrays import CHANNELS_LAST, CONTIGUOUS
from gpuconv.dispatch import backends
from gpuconv.packs.origins import NOT_PACKED
from gpuconv.problem import Problem, placed

__all__ = ["LAYOUTS", "PLANES", "odd_problems", "sanitizer_items", "small_launches", "watch"]

Item = tuple[str, Callable[[], dict[str, Any]]]

TOOLS = ("memcheck", "racecheck")

_SECONDS = 130.0
_HEAD, _TAIL = 2500, 1000
"""Characters of the output that are kept: the first errors, and the summary."""

PLANES = (1, 3)
"""Batch and channels of the calls."""

LAYOUTS = (CHANNELS_LAST, CONTIGUOUS)


def odd_problems(layout: str) -> Iterator[Problem]:
    """Yield small problems whose sizes are no multiples of anything, in every family of kernels."""
    from .parity import conv_problem, pool_problem

    for kind in ("fprop", "dgrad", "wgrad", "transposed"):
        yield conv_problem((2, 19, 9, 11), (19, 1, 3, 3), kind, layout=layout, padding=1, groups=19)
        yield conv_problem((2, 35, 9, 11), (21, 35, 3, 3), kind, layout=layout, padding=1)
        yield conv_problem((2, 35, 9, 11), (15, 7, 3, 3), kind, layout=layout, padding=1, groups=5)
    for kind in ("fprop", "dgrad", "transposed"):
        c = 24 if layout == CHANNELS_LAST else 19  # which come eight at a time
        yield conv_problem((2, c, 13, 17), (c, 1, 7, 7), kind, layout=layout, padding=3, groups=c)
    if layout == CHANNELS_LAST:  # 16 channels at a time are multiplied by weights in shared memory
        yield conv_problem((2, 48, 9, 11), (21, 48, 3, 3), "fprop", layout=layout, padding=1)
        yield conv_problem((2, 21, 9, 11), (48, 21, 3, 3), "dgrad", layout=layout, padding=1)
    for kind in ("fprop", "dgrad", "wgrad"):  # TMA copies channels in eights, and leaves nothing else even
        yield conv_problem((3, 72, 13, 11), (40, 72, 3, 3), kind, layout=layout, padding=1)
    for kind in ("fprop", "wgrad"):
        yield conv_problem((2, 3, 17, 19), (13, 3, 3, 3), kind, layout=layout, padding=1)
    yield conv_problem((2, 19, 17, 19), (3, 19, 3, 3), "dgrad", layout=layout, padding=1)
    for pool in ("max", "avg", "adaptive_avg", "adaptive_max"):
        for shape, window in (((2, 19, 9, 11), 3), ((1, 3, 70, 71), 1)):
            options = {} if pool.startswith("adaptive") else {"stride": 2, "padding": window // 2}
            for kind in ("fprop", "bwd"):
                yield pool_problem(pool, shape, window, kind, layout=layout, **options)
    for pool in ("max", "avg"):
        for kind in ("fprop", "bwd"):
            yield pool_problem(pool, (1, 19, 21, 22), 13, kind, layout=layout, padding=6)


def small_launches(names: tuple[str, ...] = ("triton", "cupy")) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """Yield (solver, key, run) of one problem or call for every solver of some backends, then in the other layout."""
    from .cases import problem_key
    from .parity_calls import FAMILIES, FUSED, drawer, separable

    found = [(name, backends()[name]) for name in names]
    for layout in LAYOUTS:
        seen: set[str] = set()

        def takers(problem: Problem, seen: set[str] = seen) -> list[str]:
            takes = [
                solver.id
                for _, backend in found
                if backend.why_not(problem, True) is None
                for solver in backend.solvers()
                if solver.id not in seen and solver.why_not(problem) is None and backend.lacks(solver, problem) is None
            ]
            seen.update(takes)
            return takes

        for problem in odd_problems(layout):
            for solver in takers(problem):
                yield solver, problem_key(problem), partial(_launch, problem, solver)
        for key, build in (entry for family in FAMILIES for entry in family()):
            drawn = build(drawer("cpu", "float16", layout, PLANES))
            problem = placed(gpuconv.explain(drawn.ours, drawn.tensors, None).problem, device="cuda:0")
            for solver in takers(problem):
                yield solver, f"{key} {layout}", partial(_call, build, layout, solver)
        if "triton" in names:
            key, build = list(separable())[-1]
            yield FUSED, f"{key} {layout}", partial(_call, build, layout, FUSED)


def _launch(problem: Problem, solver: str) -> None:
    from .calls import make_tensors, our_call

    drawn = make_tensors(replace(problem, device="cpu"), "cpu")
    our_call(problem, {name: tensor.cuda() for name, tensor in drawn.items()}, solver)()


def _call(build: Callable[..., Any], layout: str, solver: str) -> None:
    from .parity_calls import drawer

    of_cpu = drawer("cpu", "float16", layout, PLANES)
    call = build(lambda *size: of_cpu(*size).cuda())
    call.ours(call.tensors, solver)


def watch() -> int:
    """Launch them all, for a tool around this process; return the number that raised."""
    import torch

    from gpuconv.packs.origins import NotPackedError, origins
    from gpuconv.tuning.trial import reason_of

    usable = tuple(name for name in ("triton", "cupy") if backends()[name].missing() is None)
    failed = 0
    with origins() as packed:
        for solver, key, run in small_launches(usable):
            try:
                run()
                torch.cuda.synchronize()
                said = "launched"
            except NotPackedError as error:
                said = f"not run: {error}"
            except Exception as error:
                failed += 1
                said = reason_of(error)
            print(f"{solver} | {key}: {said}", flush=True)
    print(f"{sum(packed)} of {len(packed)} launches from packs", flush=True)
    return failed


def _options(path: str) -> list[str]:
    """Return the options that this version of the tool has: errors that libraries handle are none of ours."""
    help = subprocess.run([path, "--help"], capture_output=True, text=True, timeout=20, check=False)
    return ["--report-api-errors", "no"] if "--report-api-errors" in help.stdout else []


def sanitize(tool: str, command: list[str], limit: float) -> dict[str, Any]:
    """Run a command that launches kernels under a tool; return the fields of a record.

    The tool's child would go on using the GPU after it: both are in a session of their own, which is killed whole.
    """
    # Without the cache of torch's allocator every tensor is an allocation of its own, whose ends the tool watches.
    env = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=env, start_new_session=True, text=True
        )
        try:
            status: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            _end(process)
        output.seek(0)
        text = output.read()
    launched = text.count(": launched\n")
    shown = text if len(text) <= _HEAD + _TAIL else f"{text[:_HEAD]}\n...\n{text[-_TAIL:]}"
    fields: dict[str, Any] = {"tool": tool, "launched": launched, "output": shown}
    packed = re.search(r"^(\d+) of (\d+) launches from packs$", text, re.MULTILINE)
    if packed is not None:
        fields["launches"] = {"from_packs": int(packed[1]), "of": int(packed[2])}
    lacking = text.count(NOT_PACKED)
    if lacking:
        fields["not_packed"] = lacking
    reported = [line for line in text.splitlines() if line.startswith("=========") and _is_error(line)]
    if status is None and not reported:
        return fields | {
            "status": "not run",
            "why": f"not finished after {limit:.0f} s, {launched} launches without error",
        }
    if status == 0 and launched:
        return fields | {"status": "ok"}
    if status == 0 and lacking and not reported:
        return fields | {"status": "not run", "why": f"{NOT_PACKED}, of all {lacking}"}
    why = reported[0].strip("= ") if reported else f"exit status {status}, {launched} launches"
    return fields | {"status": "wrong", "why": why}


def _is_error(line: str) -> bool:
    return any(word in line for word in ("Invalid", "Race reported", "Misaligned", "hazard", "out of bounds"))


def _end(process: subprocess.Popen[str]) -> None:
    """Kill the whole session of a process, whatever of it is left."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def sanitizer_items(dry: bool, seconds_left: Callable[[], float]) -> Iterator[Item]:
    """Yield a run of each tool."""
    path = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    script = Path(__file__).with_name("gpu_report.py")
    for left, tool in zip(range(len(TOOLS), 0, -1), TOOLS):
        if dry or path is None:
            why = "a dry run has no GPU" if dry else "compute-sanitizer is not installed"
            yield tool, partial(dict, status="not run", why=why)
            continue

        def run(tool: str = tool, path: str = path, left: int = left) -> dict[str, Any]:
            command = [path, "--tool", tool, "--error-exitcode", "9", *_options(path), sys.executable, str(script)]
            return sanitize(tool, [*command, "--watched"], min(_SECONDS, max(5.0, seconds_left() / left)))

        yield tool, run
