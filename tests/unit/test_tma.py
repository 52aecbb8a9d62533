"""What the host computes for the plain TMA kernel."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

import pytest

from bench.parity import conv_problem
from gpuconv.arrays import CHANNELS_LAST, CONTIGUOUS
from gpuconv.backends.triton.conv_tma import SOLVERS, _capability
from gpuconv.backends.triton.dry import launches_of_plan
from gpuconv.backends.triton.hopper_view import phases_of
from gpuconv.backends.triton.tma_costs import FORMS, box_of, shared_of, tiles_of, tma_configs
from gpuconv.config import workspace_limit
from gpuconv.costs.constants import Gpu, assuming
from gpuconv.problem import ConvProblem
from gpuconv.shapes import ceil_div

FORWARD, GRADIENT = SOLVERS
H200, B200, RTX = Gpu("NVIDIA H200", (9, 0)), Gpu("NVIDIA B200", (10, 0)), Gpu("a GPU", (12, 0))


def problem_of(*size: int, c: int = 64, k: int = 64, taps: Any = 3, kind: str = "fprop", **options: Any) -> ConvProblem:
    kernel = taps if isinstance(taps, tuple) else (taps,) * len(size)
    shape = (k, c // options.get("groups", 1), *kernel)
    return conv_problem((2, c, *size), shape, kind, "bfloat16", CHANNELS_LAST, **options)


@pytest.mark.parametrize("positions", (64, 128, 256))
@pytest.mark.parametrize(
    "walked",
    [(1, 1, 1, 5000), (32, 1, 56, 56), (32, 1, 7, 7), (4, 16, 16, 16), (3, 5, 1, 9), (1, 1, 1, 1), (9, 1, 2, 1)],
)
def test_boxes_are_those_of_which_there_are_fewest(positions: int, walked: tuple[int, int, int, int]) -> None:
    box = box_of(positions, walked)
    assert prod(box) == positions and max(box) <= 256
    boxes = prod(ceil_div(size, side) for size, side in zip(walked, box, strict=True))
    sides = [1 << bit for bit in range(9)]
    for other in ((a, b, c, positions // (a * b * c)) for a in sides for b in sides for c in sides):
        if prod(other) == positions and all(side == 1 or size > 1 for side, size in zip(other[:3], walked[:3])):
            assert boxes <= prod(ceil_div(size, side) for size, side in zip(walked, other, strict=True)), other


def test_forms_fit_and_are_for_their_gpus() -> None:
    problem = problem_of(32, 32, c=256, k=256, padding=1)
    (dense,) = phases_of(problem)
    names = {}
    for gpu, room in ((H200, 227 << 10), (B200, 227 << 10), (RTX, 99 << 10)):
        configs = list(tma_configs(problem, dense, gpu.capability))
        names[gpu] = {config["form"] for config in configs}
        for config in configs:
            form = FORMS[config["form"]]
            assert shared_of(form, config["num_stages"], config["BLOCK_C"], 2, gpu.capability) <= room
            assert prod(config[f"TILE_{axis}"] for axis in "NOPQ") == form.positions
            assert config["BLOCK_K"] == form.filters and config["num_stages"] <= form.stages
            assert tiles_of(dense, 1, config) * form.positions * form.filters >= 2 * 32 * 32 * 256
    assert names[B200] == set(FORMS) and names[B200] - names[H200] == {"256x256"} and names[RTX] == names[H200]


def test_few_filters_take_no_wide_tiles() -> None:
    with assuming(H200):
        assert {config["BLOCK_K"] for config in FORWARD.variants(problem_of(32, 32, k=24, padding=1))} == {64}
        assert {config["BLOCK_C"] for config in FORWARD.variants(problem_of(32, 32, c=96, padding=1))} == {64, 32}


def test_what_an_activation_would_make_spill_takes_smaller_tiles() -> None:
    problem = replace(problem_of(32, 32, c=256, k=256, padding=1), bias=True)
    wide = {name for name, form in FORMS.items() if form.epilogues == "relu" and not form.blackwell}
    for activation, taken in ((None, wide), ("relu", wide), ("silu", set())):
        for gpu, kind in ((H200, "fprop"), (H200, "transposed"), (RTX, "fprop"), (RTX, "transposed")):
            with assuming(gpu):
                solver = FORWARD if kind == "fprop" else GRADIENT
                configs = list(solver.variants(replace(problem, kind=kind, activation=activation)))
            least = set() if gpu is RTX and kind != "fprop" else taken
            assert {config["form"] for config in configs} & wide == least and configs, (activation, gpu, kind)


@pytest.mark.parametrize("gpu", (H200, B200, RTX))
def test_taken_by_the_gpus_that_have_tma(gpu: Gpu) -> None:
    with assuming(gpu):
        problem = replace(problem_of(32, 32, padding=1), device="cuda:0")
        assert _capability(problem) == gpu.capability
        assert FORWARD.why_not(problem) is None
        assert GRADIENT.why_not(replace(problem, kind="dgrad")) is None
    with assuming(Gpu("an older GPU", (8, 0))):
        assert FORWARD.why_not(problem) == "copies by TMA, which sm_90 and newer GPUs have, not sm_80"


def test_refusals_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = problem_of(32, 32, padding=1)
    reasons = [
        (replace(usual, dtype="float64"), "multiplies float16, bfloat16, float32, not float64"),
        (replace(usual, dtype="float32", precision="ieee"), "multiplies float32 in tf32, and precision is ieee"),
        (replace(usual, y_format=CONTIGUOUS), "takes channels-last tensors, not y that is contiguous"),
        (replace(usual, padding_mode="reflect"), "pads with zeros, not reflect"),
        (problem_of(32, 32, c=60), "60 input channels are no multiple of 8"),
        (problem_of(32, 32, k=4), "4 output channels are no multiple of 8"),
        (problem_of(32, 32, stride=2), "the stride (2, 2) must divide"),
        (problem_of(32, 32, groups=2), "takes groups of whole blocks of 32 and 64 channels, not 32 and 32"),
        (replace(usual, n=2**30), "counts at most 2,147,352,576 pixels"),
        (replace(usual, n=0), "has nothing to multiply"),
        (problem_of(2, 2, taps=1, stride=5, padding=3), "has no tap that meets a position of (2, 2)"),
    ]
    with assuming(H200):
        for problem, reason in reasons:
            assert reason in str(FORWARD.why_not(problem)), problem
        assert "runs at most 16 phases" in str(GRADIENT.why_not(problem_of(32, 32, kind="dgrad", stride=5)))
        contiguous = replace(usual, w_format=CONTIGUOUS)
        assert FORWARD.why_not(contiguous) is None
        assert FORWARD.plan(contiguous).workspace == 64 * 64 * 9 * 2 <= workspace_limit()
        monkeypatch.setenv("GPUCONV_WORKSPACE", "1000")
        assert "packs 73,728 bytes of weights, and the limit is 1,000" in str(FORWARD.why_not(contiguous))


@pytest.mark.parametrize(
    ("options", "shape", "first"),
    [
        ({"taps": 1, "stride": 2}, (2, 1, 16, 16, 64), (0, 0, 0)),
        ({"taps": 1, "stride": (2, 3), "padding": (3, 2)}, (2, 1, 16, 11, 64), (0, -2, -1)),
        ({"taps": 3, "stride": 2, "dilation": 2, "padding": 1}, (2, 1, 16, 16, 64), (0, -1, -1)),
    ],
)
def test_every_stride_th_position_is_a_tensor_of_its_own(options: Any, shape: Any, first: Any) -> None:
    with assuming(H200):
        problem = replace(problem_of(32, 32, **options), device="cuda:0")
        (told,) = launches_of_plan(FORWARD.plan(problem))
    map = told.arguments["x_map"]
    assert map.shape == shape and map.strides[2] == problem.stride[0] * 32 * 64
    assert tuple(told.arguments[f"first_{axis}"] for axis in "dhw") == first
    pads = [(-pad) % stride for pad, stride in zip(problem.pad_lo, problem.stride, strict=True)]
    assert map.offset == pads[0] * 32 * 64 + pads[1] * 64
    assert told.arguments["step_h"] == problem.dilation[0] // problem.stride[0]


def test_maps_and_numbers_of_groups() -> None:
    with assuming(H200):
        problem = replace(problem_of(32, 32, c=256, k=512, groups=4, padding=1), device="cuda:0")
        (told,) = launches_of_plan(FORWARD.plan(problem))
        (back,) = launches_of_plan(GRADIENT.plan(replace(problem, kind="dgrad")))
    assert (told.arguments["c"], told.arguments["k"], told.arguments["groups"]) == (64, 128, 4)
    assert told.arguments["w_map"].shape == (9, 512, 64) and told.arguments["y_map"].shape[-1] == 512
    assert (back.arguments["c"], back.arguments["k"]) == (128, 64) and back.arguments["TRANSPOSED"]
    assert back.arguments["w_map"].shape == (9, 512, 64) and back.arguments["x_map"].shape[-1] == 512
