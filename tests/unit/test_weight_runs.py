"""Which weight gradients of networks the solver over runs gets, by its estimates with the constants of an H200."""

from __future__ import annotations

from functools import cache

import pytest

from bench.cases import layer_problems as passes_of
from bench.cases import networks, problem_key
from bench.model_gap import BATCH, choose
from gpuconv.costs.constants import shipped
from gpuconv.problem import ConvProblem

LAYERS = (
    "conv3d wgrad 32x2x96x96x96 * 2x2x3x3x3 s1 p1 d1 g1",
    "conv3d wgrad 32x16x48x48x48 * 16x16x3x3x3 s1 p1 d1 g1",
    "conv3d wgrad 32x32x24x24x24 * 32x32x3x3x3 s1 p1 d1 g1",
    "conv3d wgrad 32x16x48x48x48 * 32x16x3x3x3 s2 p1 d1 g1",
    "conv3d wgrad 32x1x96x96x96 * 16x1x3x3x3 s2 p1 d1 g1",
    "conv2d wgrad 32x3x224x224 * 64x3x7x7 s2 p3 d1 g1",
    "conv2d wgrad 32x3x224x224 * 32x3x3x3 s2 p1 d1 g1",
    "conv1d wgrad 32x32x51200 * 1x32x7 s1 p3 d1 g1",
    "conv2d wgrad 32x128x512x512 * 3x128x3x3 s1 p1 d1 g1",
)
"""Layers of few channels in volumes and images, and of few filters."""

LONGEST = 5.0
"""How many times the roofline's time the modelled one is at most."""


@cache
def weight_gradients() -> dict[str, ConvProblem]:
    """Return the weight gradients of the layers of the workloads in bfloat16, channels-last, by their keys."""
    found = {}
    for workload in networks().values():
        for layer in workload["layers"]:
            *_, last = passes_of(layer, BATCH, "training", "bfloat16")
            if isinstance(last, ConvProblem) and last.kind == "wgrad":
                found[problem_key(last).removesuffix(" bfloat16 channels_last")] = last
    return found


@pytest.mark.parametrize("name", LAYERS)
def test_dispatcher_takes_it_by_itself(name):
    choice = choose(weight_gradients()[name], shipped()["h200"][1])
    assert choice.solver == "triton.conv.wgrad.runs"
    assert choice.ratio <= LONGEST, (choice.us, choice.least_us)
