"""Signals in segments, and rows that are apart: what strips do beyond a plane's neighbouring rows."""

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
from test_plans import HOPPER, _arrays, _found, _problem_of, _reference, _solver

from gpuconv.backends.triton import conv_hopper
from gpuconv.backends.triton.hopper_forms import FORMS, boxes_of
from gpuconv.backends.triton.hopper_view import phases_of
from gpuconv.costs.constants import assuming
from gpuconv.problem import ConvProblem

STRIPS = [name for name, form in FORMS.items() if form.kernel == "strips"]


def _signal(kind: str, n: int, length: int, taps: int, dilation: int, low: int, **options: Any) -> ConvProblem:
    """Return a problem whose signal is as long before as after."""
    span = (taps - 1) * dilation
    c, k = options.pop("channels", (24, 40))
    problem = _problem_of(kind, (n, c, length), (k, c, taps), (1,), (low,), (span - low,), **options)
    return replace(problem, dilation=(dilation,), output_size=(length,))


def _configs(problem: ConvProblem, form: str, segments: int | None = None) -> list[dict[str, Any]]:
    """Return the configs of a form in segments: of as many as the product takes, or of so many."""
    with assuming(HOPPER):
        configs = [config for config in _solver(problem).variants(problem) if config["form"] == form]
    configs = [config for config in configs if "segments" in config]
    if segments is None:
        return configs
    box = boxes_of(FORMS[form], phases_of(problem)[0].folded(segments))
    return [config | box | {"segments": segments} for config in configs]


def _drawn(form: str, number: int) -> tuple[ConvProblem, dict[str, Any]]:
    rng = random.Random(f"signal {form} {number}")
    while True:
        taps, dilation = rng.choice((2, 3, 3, 5, 7, 11)), rng.choice((1, 1, 2, 3, 5))
        options: dict[str, Any] = {"dtype": rng.choice(("bfloat16", "float16", "float32"))}
        options |= {
            f"{letter}_format": rng.choice(("channels_last", "channels_last", "contiguous")) for letter in "xwy"
        }
        kind = rng.choice(("fprop", "dgrad", "transposed"))
        low = rng.choice((0, (taps - 1) * dilation // 2, rng.randint(0, (taps - 1) * dilation)))
        if "2 x" in form or "x128" in form:
            options["channels"] = (8 * rng.randint(9, 12), 8 * rng.randint(9, 12))
        problem = _signal(kind, rng.randint(1, 3), rng.choice((24, 48, 60, 64, 97)), taps, dilation, low, **options)
        if kind != "dgrad" and FORMS[form].epilogues != "none":
            problem = replace(problem, bias=rng.random() < 0.5, residual=rng.random() < 0.4)
        with assuming(HOPPER):
            refused = _solver(problem).why_not(problem)
        counts = phases_of(problem)[0].foldable
        configs = _configs(problem, form, rng.choice(counts)) if counts and refused is None else []
        if configs:
            return problem, rng.choice(configs)


@pytest.mark.parametrize("number", range(12))
@pytest.mark.parametrize("form", STRIPS)
def test_signals_in_segments(form: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal on integers, in any number of segments; few programs, so that each has several tiles."""
    problem, config = _drawn(form, number)
    monkeypatch.setattr(conv_hopper, "multiprocessors_of", lambda device: 2 * (1 + number % 3))
    torch.testing.assert_close(*_found(problem, config, number), rtol=0, atol=0)


def test_drawn_signals_cover_what_matters() -> None:
    drawn = [_drawn(form, number) for form in STRIPS for number in range(12)]
    segments = {config["segments"] for _, config in drawn}
    assert {1, 2} <= segments and len(segments) >= 8, segments
    assert {problem.kind for problem, _ in drawn} == {"fprop", "dgrad", "transposed"}
    assert {problem.dilation[0] for problem, _ in drawn} >= {1, 2, 3} and {p.dtype for p, _ in drawn} >= {"float32"}
    assert sum(problem.pad_lo != problem.pad_hi for problem, _ in drawn) >= 8
    assert sum(problem.kernel[0] > 5 for problem, _ in drawn) >= 10


@pytest.mark.parametrize("dilation", (2, 3, 5))
@pytest.mark.parametrize("kind", ("fprop", "dgrad"))
def test_rows_apart(kind: str, dilation: int) -> None:
    """Rows of a tile are as far apart as taps: fewer than taps reach, as many, and more."""
    for number, height in enumerate((dilation + 1, 4 * dilation, 13)):
        problem = _problem_of(kind, (2, 40, height, 9), (40, 40, 3, 2), (1, 1), (dilation, 1))
        problem = replace(problem, dilation=(dilation, 1), output_size=(height, 10))
        with assuming(HOPPER):
            configs = [config for config in _solver(problem).variants(problem) if config["form"] == "strips 4x64x64"]
        assert configs
        torch.testing.assert_close(*_found(problem, configs[0], number), rtol=0, atol=0)


def test_what_is_no_signal_in_segments() -> None:
    """Fewer results than positions, a stride, a plane, one tap, segments shorter than taps reach."""
    signal = _signal("fprop", 2, 60, 7, 3, 9)
    assert phases_of(signal)[0].foldable == [1, 2, 3, 4, 5, 6]  # 10 positions at least; taps reach 9 of them
    assert phases_of(replace(signal, pad_lo=(8,), output_size=(59,)))[0].foldable == []
    assert phases_of(replace(signal, kernel=(1,), pad_lo=(0,), pad_hi=(0,)))[0].foldable == []
    plane = _problem_of("fprop", (1, 16, 6, 6), (16, 16, 3, 3), (1, 1), (1, 1))
    assert phases_of(plane)[0].foldable == []
    row = _problem_of("fprop", (1, 16, 1, 64), (16, 16, 1, 3), (1, 1), (0, 1))
    assert phases_of(row)[0].foldable == [1, 2, 4, 8, 16, 32, 64]


@pytest.mark.parametrize("seed", range(3))
def test_signals_that_lie_oddly(seed: int) -> None:
    """Every second position, channels among others, a row of a plane: described by the map, not copied."""
    problem = _signal("fprop", 2, 48, 3, 2, 2)
    (config, *_) = _configs(problem, "strips 4x64x64", 4)
    arrays = _arrays(problem, seed)
    larger = torch.zeros(2, 2 * 48, 24 + 8, dtype=torch.bfloat16)
    larger[:, ::2, 8:] = arrays["x"].permute(0, 2, 1)
    arrays["x"] = larger[:, ::2, 8:].permute(0, 2, 1)
    with assuming(HOPPER):
        found = run(_solver(problem).bind(problem, config), arrays, seed)
    torch.testing.assert_close(found, _reference(problem, arrays)[0].to(found.dtype), rtol=0, atol=0)


def test_bytes_are_those_of_the_description() -> None:
    """One tile of 4 rows and 64 columns: 4 + 6 strips and 7 taps of 64 channels, 64 of 2 bytes each."""
    problem = _signal("fprop", 1, 256, 7, 1, 3, channels=(64, 64))
    (config,) = _configs(problem, "strips 4x64x64", 64)
    machines: list[Any] = []
    with assuming(HOPPER):
        solver = _solver(problem)
        run(solver.bind(problem, config), _arrays(problem, 0), machines=machines)
        work = solver.work(problem, [config])
    (machine,) = machines
    assert machine.loaded_bytes == (10 + 7) * 64 * 64 * 2
    assert work.programs == 1 and work.l2_bytes == (10 + 7 + 4) * 64 * 64 * 2


LONG = _signal("fprop", 2, 60, 5, 2, 4)
WIDE = replace(
    _problem_of("fprop", (1, 24, 16, 9), (40, 24, 3, 1), (1, 1), (2, 0)), dilation=(2, 1), output_size=(16, 9)
)
PRODUCE, CONSUME = "_strips_produce", "_strips_consume"

FAULTS: dict[str, tuple[ConvProblem, Edit]] = {
    "behind a segment is nothing": (LONG, ("_folded", "row - rows", "row")),
    "behind a segment is itself": (LONG, ("_folded", "column + 1", "column")),
    "before a segment is nothing": (LONG, ("_folded", "row + rows", "row")),
    "before a segment is itself": (LONG, ("_folded", "column - 1", "column")),
    "the last row is the next one's": (LONG, ("_folded", "row >= rows", "row >= rows - 1")),
    "rows between left out": (WIDE, ("_first_row", " + at_p % DILATION", "")),
    "rows that overlap": (WIDE, ("_first_row", "(TILE_P * DILATION)", "TILE_P")),
    "neighbouring rows loaded": (WIDE, (PRODUCE, "top + i * DILATION", "top + i")),
    "neighbouring rows stored": (WIDE, (CONSUME, "CONSUMER * LINES + line) * DILATION", "CONSUMER * LINES + line)")),
    "too few tiles of rows": (WIDE, (CONSUME, "gl.cdiv(sizes[2], TILE_P * DILATION) * DILATION", "DILATION")),
}


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem, edit = FAULTS[name]
    monkeypatch.setattr(conv_hopper, "multiprocessors_of", lambda device: 3)
    if problem is LONG:
        config = _configs(problem, "strips 4x64x64", 3)[0]
    else:
        with assuming(HOPPER):
            config = next(one for one in _solver(problem).variants(problem) if one["form"] == "strips 4x64x64")
    try:
        got, right = _found(problem, config, 0, [edit])
    except KernelError:
        return
    assert not torch.equal(got, right)


@pytest.mark.parametrize("stages", (2, 3))
def test_no_fault_is_reachable(stages: int) -> None:
    """The pipeline of a signal is that of a plane, with other boxes."""
    problem = _signal("fprop", 1, 16, 2, 1, 1)
    with assuming(HOPPER):
        plan = _solver(problem).bind(problem, _configs(problem, "strips 4x64x64", 2)[0])
        proof = prove(record(plan, _arrays(problem, 0), STAGES=stages))
    assert proof.together and proof.states > 50
