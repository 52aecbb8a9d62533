"""What the host computes for the rolling kernel."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from bench.parity import conv_problem
from gpuconv.arrays import CHANNELS_LAST, CONTIGUOUS
from gpuconv.backends.triton.common import format_strides
from gpuconv.backends.triton.conv_rolling import SOLVERS, rolling_arguments
from gpuconv.backends.triton.rolling_costs import RollingCosts, rolled, rolling_tiles
from gpuconv.costs.constants import Gpu, assuming
from gpuconv.problem import ConvProblem

HOPPER = Gpu("NVIDIA H200", (9, 0))


def problem_of(*size: int, c: int = 64, k: int = 64, taps: Any = 3, kind: str = "fprop", **options: Any) -> ConvProblem:
    kernel = taps if isinstance(taps, tuple) else (taps,) * len(size)
    return conv_problem((2, c, *size), (k, c, *kernel), kind, "bfloat16", CHANNELS_LAST, **options)


@pytest.mark.parametrize("dilation", (1, 2, 5, 30))
@pytest.mark.parametrize("steps", (1, 2, 3, 7))
def test_lines_hold_every_result_once(dilation: int, steps: int) -> None:
    """As the kernel reads them: where a line begins, and that its rows are `dilation` apart."""
    for size in (11, 12, 23):
        found = rolled(problem_of(size, 4, taps=(3, 1), padding=(dilation, 0), dilation=(dilation, 1)))
        assert (found.size, found.rows, found.dilation) == (size, 3, dilation)
        lines = np.arange(found.lines(steps))
        first = lines // dilation * (steps * dilation) + lines % dilation
        results = (first[:, None] + dilation * np.arange(steps)).ravel()
        assert sorted(results[results < size]) == list(range(size)), (size, dilation, steps)


@pytest.mark.parametrize(
    ("size", "taps", "stride", "order"),
    [
        ((9,), 3, 1, (0, 2, 1)),
        ((9, 8), 3, 1, (0, 1, 2)),
        ((9, 8), (3, 5), 1, (0, 2, 1)),
        ((9, 8), 3, (2, 1), (0, 2, 1)),
        ((9, 8, 7), 3, 1, (1, 0, 2)),
        ((9, 8, 7), (1, 3, 3), 1, (0, 1, 2)),
        ((9, 8, 7), (3, 3, 4), (1, 1, 2), (1, 0, 2)),
    ],
)
def test_it_goes_down_the_axis_of_most_taps(size: Any, taps: Any, stride: Any, order: tuple[int, ...]) -> None:
    problem = problem_of(*size, c=16, taps=taps, stride=stride, padding=1)
    found = rolled(problem)
    assert found.order == order
    axis = order[1] - (3 - len(size))
    config = {**next(rolling_tiles(problem)), "steps": 2}
    arguments = rolling_arguments(problem, format_strides(problem), config)
    assert arguments["h"] == problem.input_size[axis] and arguments["p"] == problem.output_size[axis]
    assert arguments["R"] == problem.kernel[axis] <= config["ROWS"] + config["MORE"]
    assert arguments["x_stride_h"] == format_strides(problem)["x"][2 + axis]


def test_tiles_fit_and_cover_the_filter_rows() -> None:
    for problem in (
        problem_of(64, 64),
        problem_of(20, 20, 20, c=32, k=32),
        problem_of(900, taps=7),
        problem_of(900, taps=11),
    ):
        configs = list(rolling_tiles(problem))
        costs, rows = RollingCosts(problem, configs), rolled(problem).rows
        assert configs and (costs.shared() <= 227 << 10).all() and (costs.registers() <= 255).all()
        for config in configs:
            assert rows <= config["ROWS"] + config["MORE"] < 2 * rows
            assert config["ROWS"] < rows or not config["MORE"]
            assert problem.c % config["BLOCK_K"] == 0


@pytest.mark.parametrize(("capability", "taken"), (((9, 0), True), ((8, 0), False), ((10, 0), False)))
def test_only_hopper_runs_it(capability: tuple[int, int], taken: bool) -> None:
    with assuming(Gpu("a GPU", capability)):
        for solver, kind in zip(SOLVERS, ("fprop", "dgrad"), strict=True):
            assert (solver.why_not(problem_of(64, 64, kind=kind, padding=1)) is None) == taken


def test_a_gpu_that_torch_has_not_initialised_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of CuPy's arrays: nobody has called torch when their first problem is planned."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for capability, taken in (((8, 0), False), ((9, 0), True), ((12, 0), False)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        problem = replace(problem_of(64, 64, padding=1), array="cupy", device="cuda:0")
        assert (SOLVERS[0].why_not(problem) is None) == taken, capability


def test_refusals_say_why() -> None:
    forward, gradient = SOLVERS
    with assuming(HOPPER):
        usual = problem_of(32, 32, padding=1)
        reasons = (
            (replace(usual, dtype="float32"), "multiplies 16-bit numbers, not float32"),
            (replace(usual, y_format=CONTIGUOUS), "takes channels-last tensors, not channels_last and contiguous ones"),
            (replace(usual, padding_mode="reflect"), "pads with zeros alone, not reflect"),
            (problem_of(32, 32, c=40), "multiplies 16 channels at a time, which 40 are no multiple of"),
            (problem_of(32, 32, taps=1), "goes down an axis of stride 1 with 2 to 16 taps"),
            (problem_of(32, 64, taps=17), "goes down an axis of stride 1 with 2 to 16 taps"),
            (problem_of(32, 32, 32, taps=6, c=16), "loads 27 taps of an input row at most, not 36"),
            (
                problem_of(32, 32, c=256),
                "has no tile that keeps weights of 256 channels and (3, 3) taps in shared memory",
            ),
            (
                problem_of(900, taps=16),
                "has no tile that keeps weights of 64 channels and (16,) taps in shared memory and 16 open rows",
            ),
            (replace(usual, n=0), "has nothing to compute without images"),
        )
        for problem, reason in reasons:
            assert reason in str(forward.why_not(problem)), problem
        assert "computes data gradients of stride 1" in str(
            gradient.why_not(problem_of(32, 32, kind="dgrad", stride=2))
        )
