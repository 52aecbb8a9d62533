"""The sanitizer's stage: a small odd problem for every solver, an end for all processes, the first error kept."""

from __future__ import annotations

import sys
import time
from math import prod
from pathlib import Path

import pytest

from bench import sanitizer
from gpuconv.dispatch import backends
from gpuconv.problem import ConvProblem


@pytest.mark.parametrize("name", ("triton", "cupy"))
def test_every_solver_has_a_problem_in_both_layouts_where_it_takes_both(monkeypatch, name):
    backend = backends()[name]
    monkeypatch.setattr(type(backend), "why_not", lambda self, problem, forced: None)
    for module in ("common", "conv_common"):
        monkeypatch.setattr(f"gpuconv.backends.cupy.{module}.capability", lambda device: 90)
    found = [(solver, key) for solver, key, _ in sanitizer.small_launches((name,))]
    wanted = {solver.id for solver in backend.solvers()}
    assert {solver for solver, _ in found} == wanted
    first = [solver for solver, _ in found][: len(wanted)]
    assert len(set(first)) >= len(wanted) - 1  # every solver comes once before any comes again
    assert len({solver for solver, key in found if key.endswith("contiguous")}) > len(wanted) / 2


def test_problems_are_small_and_odd():
    for problem in sanitizer.odd_problems("contiguous"):
        assert prod(problem.x_shape) < 40_000 and problem.c % 16
        assert isinstance(problem, ConvProblem) or problem.c in (3, 19)


def run(script: str, limit: float) -> dict:
    return sanitizer.sanitize("memcheck", [sys.executable, "-c", script], limit)


def test_what_came_out_is_judged():
    said = "print('triton.a | x: launched')\n"
    assert run(said, 20)["status"] == "ok" and run(said, 20)["launched"] == 1
    assert run("pass", 20)["status"] == "wrong"  # nothing was launched
    assert run(f"{said}raise SystemExit(9)", 20)["why"] == "exit status 9, 1 launches"
    error = "print('========= Invalid __global__ read of size 2 bytes')\n"
    found = run(f"{said}{error}print('x' * 20000)\nprint('========= ERROR SUMMARY: 1 error')\nraise SystemExit(9)", 20)
    assert found["status"] == "wrong" and found["why"] == "Invalid __global__ read of size 2 bytes"
    assert "Invalid __global__" in found["output"] and "ERROR SUMMARY" in found["output"]
    assert len(found["output"]) < 4000


def test_a_late_tool_ends_with_its_child_and_says_how_far_it_came(tmp_path):
    """Else python would go on using the GPU under the stages that follow."""
    alive = tmp_path / "alive"
    child = f"import time\nwhile True:\n    open({str(alive)!r}, 'w').close(); time.sleep(0.02)"
    script = (
        "import subprocess, sys, time\n"
        "print('triton.a | x: launched', flush=True)\n"
        f"subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        "time.sleep(60)\n"
    )
    found = run(script, 3.0)
    assert found["status"] == "not run" and found["why"] == "not finished after 3 s, 1 launches without error"
    alive.unlink(missing_ok=True)
    time.sleep(0.2)
    assert not Path(alive).exists()


def test_an_error_before_the_end_of_time_counts():
    script = "import time\nprint('========= Race reported between Write access', flush=True)\ntime.sleep(60)"
    found = run(script, 2.0)
    assert found["status"] == "wrong" and "Race reported" in found["why"]


def test_each_tool_gets_its_part_of_the_time(monkeypatch):
    limits = []
    monkeypatch.setattr(sanitizer.shutil, "which", lambda name, path=None: "/opt/compute-sanitizer")
    monkeypatch.setattr(sanitizer, "_options", lambda path: [])
    monkeypatch.setattr(sanitizer, "sanitize", lambda tool, command, limit: limits.append((tool, limit)) or {})
    left = [90.0, 60.0]
    for _, work in sanitizer.sanitizer_items(False, lambda: left.pop(0)):
        work()
    assert limits == [("memcheck", 45.0), ("racecheck", 60.0)]
