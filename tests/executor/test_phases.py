"""Phases of a data gradient in one launch: torch's results, longest first, and what is planted is found."""

from __future__ import annotations

import random
from dataclasses import replace
from math import prod
from typing import Any

import pytest
import torch
from gluon_model import Edit
from planned import record, run
from prover import prove
from tensors import KernelError
from test_plans import HOPPER, _arrays, _found, _problem_of

from gpuconv.backends.triton import conv_hopper
from gpuconv.backends.triton.conv_hopper import SOLVERS
from gpuconv.backends.triton.dry import launches_of_plan
from gpuconv.backends.triton.hopper_forms import FORMS
from gpuconv.backends.triton.hopper_view import phases_of
from gpuconv.costs.constants import assuming
from gpuconv.problem import ConvProblem

SOLVER = SOLVERS[1]
TOGETHER = tuple(name for name, form in FORMS.items() if form.phases > 1 and form.kernel == "tiles")
CHANNELS = {"32": (1, 5), "64": (5, 8), "128": (9, 12), "256": (17, 20)}
"""Eighths of channels of the result that forms of so many channels are for."""


def _drawn(form: str, number: int) -> tuple[ConvProblem, dict[str, Any]]:
    """Return a gradient of 2 to 8 phases, with ragged sizes and windows smaller than strides, and a config."""
    rng = random.Random(f"phases {form} {number}")
    while True:
        ndim = rng.choice((1, 2, 2, 3))
        kernel = tuple(rng.choice((1, 2, 3, 4, 5)) for _ in range(ndim))
        stride = tuple(rng.choice((1, 2, 2, 3, 4)) for _ in range(ndim))
        low = tuple(rng.randint(0, tap - 1) for tap in kernel)
        size = tuple(
            max(rng.randint(1, {1: 40, 2: 13, 3: 6}[ndim]), tap - 2 * pad) for tap, pad in zip(kernel, low, strict=True)
        )
        dtype = rng.choice(("bfloat16", "float16", "float32")) if "2 x" not in form else "bfloat16"
        if not FORMS[form].turned:
            dtype = "float32"
        kind = rng.choice(("dgrad", "transposed"))
        c = 8 * rng.randint(*CHANNELS[form.rpartition("x")[2]])
        problem = _problem_of(
            kind, (rng.randint(1, 3), c, *size), (8 * rng.randint(1, 9), c, *kernel), stride, low, dtype=dtype
        )
        extras = kind == "transposed" and FORMS[form].epilogues != "none"
        if extras:
            names = ("bias", "scale", "shift", "residual")
            problem = replace(
                problem, **{name: rng.random() < 0.4 for name in names}, activation=rng.choice((None, "relu"))
            )
        with assuming(HOPPER):
            if min(problem.output_size) < 1 or SOLVER.why_not(problem) is not None:
                continue
            configs = [config for config in SOLVER.variants(problem) if config["form"] == form]
        if configs and 2 <= len(phases_of(problem)) <= FORMS[form].phases:
            return problem, rng.choice(configs)


def _kernels(problem: ConvProblem, config: dict[str, Any]) -> list[Any]:
    with assuming(HOPPER):
        told = launches_of_plan(SOLVER.bind(problem, config))
    return [launch for launch in told if launch.kernel.module.startswith("hopper.")]


@pytest.mark.parametrize("number", range(8))
@pytest.mark.parametrize("form", TOGETHER)
def test_phases_of_one_launch(form: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal on integers; few programs, so that each has tiles of several phases."""
    problem, config = _drawn(form, number)
    monkeypatch.setattr(conv_hopper, "multiprocessors_of", lambda device: 2 * (1 + number % 3))
    (launch,) = _kernels(problem, config)
    assert launch.kernel.name == "_conv_phases_kernel"
    arguments = launch.arguments
    assert arguments["PHASES"] == len(phases_of(problem))
    torch.testing.assert_close(*_found(problem, config, number), rtol=0, atol=0)


def test_drawn_problems_cover_what_matters() -> None:
    drawn = [_drawn(form, number)[0] for form in TOGETHER for number in range(8)]
    counts = {len(phases_of(problem)) for problem in drawn}
    assert {2, 4, 8} <= counts and len(counts) >= 4, counts
    assert sum(any(phase.empty for phase in phases_of(problem)) for problem in drawn) >= 10
    assert sum(len({phase.output for phase in phases_of(problem)}) > 1 for problem in drawn) >= 20
    assert {problem.ndim for problem in drawn} == {1, 2, 3} and {problem.dtype for problem in drawn} >= {"float32"}
    assert sum(problem.residual for problem in drawn) >= 5 and sum(problem.bias for problem in drawn) >= 5


SMALL = _problem_of("dgrad", (2, 40, 9, 12), (24, 40, 3, 3), (2, 2), (1, 1))
ADDED = replace(_problem_of("transposed", (2, 40, 9, 12), (24, 40, 3, 3), (2, 2), (1, 1)), residual=True, bias=True)
VOLUME = _problem_of("dgrad", (1, 32, 5, 5, 6), (16, 32, 3, 3, 3), (2, 2, 2), (1, 1, 1))


def _config(problem: ConvProblem, form: str) -> dict[str, Any]:
    with assuming(HOPPER):
        return next(config for config in SOLVER.variants(problem) if config["form"] == form)


@pytest.mark.parametrize("seed", range(4, 12))
@pytest.mark.parametrize("problem", (SMALL, ADDED, VOLUME))
def test_every_seed(problem: ConvProblem, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conv_hopper, "multiprocessors_of", lambda device: 3)
    torch.testing.assert_close(
        *_found(problem, _config(problem, "256x32" if problem is VOLUME else "256x64"), seed), rtol=0, atol=0
    )


def test_longest_phases_come_first() -> None:
    (launch,) = _kernels(VOLUME, _config(VOLUME, "256x32"))
    taps = [prod(launch.arguments[f"{axis}{phase}"] for axis in "trs") for phase in range(8)]
    assert taps == [8, 4, 4, 4, 2, 2, 2, 1]


def test_phases_that_no_launch_has_are_launched_one_by_one() -> None:
    problem = _problem_of("dgrad", (1, 40, 7, 9), (24, 40, 4, 4), (3, 4), (1, 0))
    config = _config(problem, "256x64")
    launches = _kernels(problem, config)
    assert [launch.kernel.name for launch in launches] == ["_conv_tiles_kernel"] * 12
    torch.testing.assert_close(*_found(problem, config, 0), rtol=0, atol=0)
    with assuming(HOPPER):
        assert "12 phases in launches of their own, as one of this form has at most 8" in str(
            SOLVER.others(SOLVER.bind(problem, config))
        )
        assert "4 phases in one launch" in str(SOLVER.others(SOLVER.bind(SMALL, _config(SMALL, "256x64"))))


def test_bytes_are_those_of_the_description() -> None:
    """Four phases of one tile each: nine taps of 256 positions and 64 channels, 64 of 2 bytes each."""
    problem = _problem_of("dgrad", (1, 64, 32, 32), (64, 64, 3, 3), (2, 2), (1, 1), (0, 0))
    config = _config(problem, "256x64")
    machines: list[Any] = []
    with assuming(HOPPER):
        run(SOLVER.bind(problem, config), _arrays(problem, 0), machines=machines)
        work = SOLVER.work(problem, [config])
    (machine,) = machines
    stored = 256 * 64 * 2
    assert machine.loaded_bytes == 9 * (256 + 64) * 64 * 2
    assert (work.programs, work.launches) == (4, 1)
    assert work.l2_bytes == 4 * (256 + 64) * 64 * 2 + stored  # of the busiest program, which has the longest phase


CONSUME, PRODUCE = "consume_tiles", "_tiles_produce"

FAULTS: dict[str, tuple[ConvProblem, Edit]] = {
    "consumer takes tiles for those of the first phase": (SMALL, (CONSUME, "of = tile // tiles", "of = 0")),
    "producer takes tiles for those of the first phase": (SMALL, (PRODUCE, "of = tile // tiles", "of = 0")),
    "tiles of later phases counted on": (SMALL, (CONSUME, "within = tile % tiles", "within = tile")),
    "one phase left out": (SMALL, (CONSUME, "PHASES * tiles, steps", "(PHASES - 1) * tiles, steps")),
    "all phases written as the first": (SMALL, ("store_box_of_phase", "if phase == i:", "if i == 0:")),
    "residual of the first phase": (ADDED, ("load_box_of_phase", "if phase == i:", "if i == 0:")),
    "weights of the first phase": (SMALL, (PRODUCE, "tap0 = of_phase(order[0], of, PHASES)", "tap0 = order[0][0]")),
    "planes of the first phase": (VOLUME, (PRODUCE, "of_phase(first[0], of, PHASES)", "first[0][0]")),
    "rows of the first phase": (SMALL, (PRODUCE, "of_phase(first[1], of, PHASES)", "first[1][0]")),
    "columns of the first phase": (SMALL, (PRODUCE, "of_phase(first[2], of, PHASES)", "first[2][0]")),
    "taps of the first phase": (SMALL, (PRODUCE, "range(0, of_phase(taps[1], of, PHASES))", "range(0, taps[1][0])")),
    "last of the phases for all": (SMALL, ("of_phase", "phase == i", "i > 0")),
}


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem, edit = FAULTS[name]
    monkeypatch.setattr(conv_hopper, "multiprocessors_of", lambda device: 3)
    try:
        got, right = _found(problem, _config(problem, "256x64" if problem is not VOLUME else "256x32"), 0, [edit])
    except KernelError:
        return
    assert not torch.equal(got, right)


LINE = _problem_of("dgrad", (1, 32, 12), (16, 32, 7), (2,), (3,))
HOLLOW = _problem_of("dgrad", (1, 32, 12), (16, 32, 2), (3,), (0,), (1,))
"""Phases of four taps and three; of one tap, one and none."""


@pytest.mark.parametrize("stages", (2, 3, 4))
@pytest.mark.parametrize("problem", (LINE, HOLLOW, replace(LINE, kind="transposed", residual=True)))
def test_no_fault_is_reachable(problem: ConvProblem, stages: int) -> None:
    with assuming(HOPPER):
        plan = SOLVER.bind(problem, _config(problem, "256x32"))
        proof = prove(record(plan, _arrays(problem, 0), STAGES=stages))
    assert proof.together and proof.states > 50


@pytest.mark.parametrize(
    "name", ("taps of the first phase", "consumer takes tiles for those of the first phase", "one phase left out")
)
def test_fault_is_found_by_the_search(name: str) -> None:
    """Where what is produced is not what is consumed."""
    function, old, new = FAULTS[name][1]
    old, new = old.replace("taps[1]", "taps[2]"), new.replace("taps[1]", "taps[2]")
    with assuming(HOPPER), pytest.raises(KernelError):
        plan = SOLVER.bind(LINE, _config(LINE, "256x32"))
        prove(record(plan, _arrays(LINE, 0), [(function, old, new)], STAGES=2))
