"""Programs with equal shares of all steps: torch's results for any number of them, and planted faults are found."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from gluon_model import Edit
from planned import record, run
from prover import prove
from tensors import KernelError
from test_plans import HOPPER, _arrays, _found, _problem, _problem_of, _solver

from gpuconv.backends.triton import conv_hopper
from gpuconv.backends.triton.hopper_forms import FORMS, laid, programs_of, tiles_of, units_of
from gpuconv.backends.triton.hopper_view import phases_of
from gpuconv.costs.constants import assuming
from gpuconv.problem import ConvProblem

SHARING = [name for name, form in FORMS.items() if form.sharing]


def _config(problem: ConvProblem, form: str) -> dict[str, Any] | None:
    with assuming(HOPPER):
        if 0 in problem.y_shape or _solver(problem).why_not(problem) is not None:
            return None
        return next(
            (one for one in _solver(problem).variants(problem) if one.get("stream") and one["form"] == form), None
        )


def _multiprocessors(form: str, number: int) -> int:
    return (2, 3, 5, 7)[number % 4] * FORMS[form].ctas


def _drawn(form: str, number: int) -> tuple[ConvProblem, dict[str, Any]]:
    """Return a problem whose tiles are no whole number of rounds, and a config."""
    rng = random.Random(f"shares {form} {number}")
    while True:
        kind = rng.choice(("fprop", "dgrad", "transposed"))
        strides = (1, 2) if "pixels" in form and kind == "fprop" else (1,)
        problem = _problem(rng, kind, rng.choice((1, 2, 2, 3)), strides)
        if "256" in form.split("x")[-1] or "x128" in form:
            channels = 8 * (rng.randint(17, 20) if "256" in form.split("x")[-1] else rng.randint(9, 12))
            problem = replace(problem, k=channels, c=channels)
        problem = replace(problem, n=rng.randint(1, 4), scale=False, shift=False, residual=False)
        config = _config(problem, form)
        if config is not None:
            return problem, config


@pytest.mark.parametrize("number", range(8))
@pytest.mark.parametrize("form", SHARING)
def test_equal_shares(form: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal on integers: programs that have several tiles, one, or a part of one."""
    multiprocessors = _multiprocessors(form, number)
    monkeypatch.setattr(conv_hopper, "multiprocessors_of", lambda device: multiprocessors)
    problem, config = _drawn(form, number)
    torch.testing.assert_close(*_found(problem, config, number), rtol=0, atol=0)


def test_drawn_problems_cover_what_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = []
    for form in SHARING:
        for number in range(8):
            multiprocessors = _multiprocessors(form, number)
            monkeypatch.setattr(conv_hopper, "multiprocessors_of", lambda device, most=multiprocessors: most)
            problem, config = _drawn(form, number)
            views = laid(phases_of(problem), config)
            programs = programs_of(FORMS[form], views, config, multiprocessors)
            shares.append(tiles_of(FORMS[form], views[0], config) / programs)
    assert sum(share < 0.5 for share in shares) >= 5 and sum(share > 1 for share in shares) >= 5, sorted(shares)


ONE = _problem_of("fprop", (1, 40, 18, 16), (40, 40, 3, 3), (1, 1), (1, 1))
"""Two tiles of pixels for four programs, and five of strips."""
MORE = replace(_problem_of("fprop", (3, 40, 20, 20), (40, 40, 3, 3), (1, 1), (1, 1)), bias=True)


@pytest.mark.parametrize("seed", range(4, 12))
@pytest.mark.parametrize("problem", (ONE, MORE))
@pytest.mark.parametrize("form", ("strips 4x64x64", "pixels 256x64"))
def test_every_seed(form: str, problem: ConvProblem, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conv_hopper, "multiprocessors_of", lambda device: 4)
    config = _config(problem, form)
    assert config is not None
    torch.testing.assert_close(*_found(problem, config, seed), rtol=0, atol=0)


def test_sums_do_not_depend_on_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bits whichever program is first: parts are added in the order of programs."""
    monkeypatch.setattr(conv_hopper, "multiprocessors_of", lambda device: 4)
    config = _config(ONE, "pixels 256x64")
    assert config is not None
    arrays = {name: None if array is None else torch.randn_like(array) for name, array in _arrays(ONE, 0).items()}
    with assuming(HOPPER):
        results = [run(_solver(ONE).bind(ONE, config), arrays, seed) for seed in range(6)]
    assert all(torch.equal(result, results[0]) for result in results)


def test_units_are_those_of_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = phases_of(ONE)[0]
    assert units_of(FORMS["pixels 256x64"], dense, 64) == 9 and units_of(FORMS["strips 4x64x64"], dense, 64) == 3


def test_what_is_not_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole rounds, many rounds, and what was not compiled behind the sums."""
    forms = ("strips 4x64x64", "pixels 256x64")
    for multiprocessors, shared in ((4, True), (1, False)):  # one program has every tile
        monkeypatch.setattr(conv_hopper, "multiprocessors_of", lambda device, most=multiprocessors: most)
        assert all((_config(ONE, form) is not None) == shared for form in forms)
    monkeypatch.setattr(conv_hopper, "multiprocessors_of", lambda device: 4)
    for other in (replace(ONE, scale=True), replace(ONE, activation="gelu"), replace(ONE, rounding="torch")):
        assert all(_config(other, form) is None for form in forms)


STRIPS, PIXELS = "strips 4x64x64", "pixels 256x64"
FAULTS: dict[str, tuple[str, Edit]] = {
    "no wait": (PIXELS, ("await_parts", "range(first, gl.program_id(0))", "range(0)")),
    "one program is not waited for": (PIXELS, ("await_parts", "range(first, ", "range(first + 1, ")),
    "no barrier before the signal": (PIXELS, ("hand_over", "    gl.barrier()\n", "    pass\n")),
    "the signal before the sums": (
        PIXELS,
        ("hand_over", "    for line in", "    signal(shared[1], place)\n    for line in"),
    ),
    "a signal of every warp": (STRIPS, ("signal", "of_one_thread(_GIVE, gl.num_warps())", "_GIVE")),
    "wiped by every warp": (PIXELS, ("wipe", "of_one_thread(_WIPE, gl.num_warps())", "_WIPE")),
    "a signal of two threads": (PIXELS, ("signal", "gl.num_warps()", "gl.num_warps() // 2")),
    "no signal": (STRIPS, ("hand_over", "    signal(shared[1],", "    (shared[1],")),
    "signals stay": (STRIPS, ("wipe_signals", "range(first, gl.program_id(0))", "range(0)")),
    "wiped while others wait": (STRIPS, ("wipe_signals", "    gl.barrier()\n", "    pass\n")),
    "a part added twice": (PIXELS, ("store_tile", "range(others[1], gl.program_id(0))", "(others[1], others[1])")),
    "a part left out": (
        PIXELS,
        ("store_tile", "range(others[1], gl.program_id(0))", "range(others[1] + 1, gl.program_id(0))"),
    ),
    "parts of the other consumer": (STRIPS, ("hand_over", "* CONSUMERS + CONSUMER\n", "* CONSUMERS + 1 - CONSUMER\n")),
    "lines of a part exchanged": (STRIPS, ("hand_over", "LINES + line)", "LINES + LINES - 1 - line)")),
    "shares overlap": (PIXELS, ("first_unit", "+ min(program, units % programs)", "")),
    "the owner of a unit is another": (PIXELS, ("program_of", "units % programs + max(", "max(")),
    "steps begin anew": (STRIPS, ("_strips_produce", "s = begin % taps[1]", "s = 0")),
    "channels begin anew": (PIXELS, ("_pixels_produce", "r = begin // taps[2] % taps[1]", "r = 0")),
    "an unfinished tile is stored": (PIXELS, ("consume_tiles", "PHASES > 1 or end == steps[0]", "True")),
}


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a wrong result, a deadlock or a broken rule, with one of eight schedules."""
    form, edit = FAULTS[name]
    monkeypatch.setattr(conv_hopper, "multiprocessors_of", lambda device: 4)
    for seed in range(8):
        config = _config(MORE, form)
        assert config is not None
        try:
            got, right = _found(MORE, config, seed, [edit])
        except KernelError:
            return
        if not torch.equal(got, right):
            return
    pytest.fail("not noticed")


@pytest.mark.parametrize("stages", (2, 3))
@pytest.mark.parametrize("form", (STRIPS, PIXELS))
def test_no_fault_is_reachable(form: str, stages: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a program: parts of tiles are shorter runs of the same pipeline."""
    problem = _problem_of("fprop", (1, 40, 12, 4), (40, 40, 2, 2), (1, 1), (1, 1), (0, 0))
    monkeypatch.setattr(conv_hopper, "multiprocessors_of", lambda device: 2)
    monkeypatch.setattr("gpuconv.backends.triton.hopper_forms._MOST_ROUNDS", 100)
    config = _config(replace(problem, n=3), form)
    assert config is not None
    with assuming(HOPPER):
        plan = _solver(problem).bind(replace(problem, n=3), config)
        proof = prove(record(plan, _arrays(replace(problem, n=3), 0), STAGES=stages, programs=2))
    assert proof.together and proof.states > 30
