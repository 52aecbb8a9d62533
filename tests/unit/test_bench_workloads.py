"""The workloads are the layers of the networks whose names they have, and the cases are those layers as problems."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from math import prod

import network_layers
import pytest

from bench.calls import as_called, make_tensors, tensor_shapes
from bench.cases import PHASES, all_cases, family, in_turns, layer_problems, networks, problem_key
from gpuconv import shapes
from gpuconv.problem import ConvProblem, PoolProblem

REQUIRED = {
    "resnet50", "mobilenet_v2", "convnext_tiny", "sd_vae_decoder", "unet3d", "deeplabv3_resnet50", "hifigan", "unet2d",
}  # fmt: skip

LAYERS = [(name, layer) for name, workload in networks().items() for layer in workload["layers"]]


def test_every_network_is_there():
    assert set(networks()) >= REQUIRED


@pytest.mark.parametrize("network", network_layers.NETWORKS)
def test_convolutions_and_counts_are_those_of_the_architecture(network):
    found: Counter = Counter()
    for layer in networks()[network]["layers"]:
        if layer["op"].startswith("conv"):
            geometry = []
            for name in ("stride", "padding", "dilation"):
                (value,) = set(layer[name])  # the same along every axis
                geometry.append(value)
            key = (layer["op"], *(tuple(layer[name]) for name in ("input", "output", "weight")), *geometry)
            found[(*key, layer["groups"])] += layer["count"]
    assert found == network_layers.layers(network)


@pytest.mark.parametrize(("network", "layer"), LAYERS, ids=lambda value: value if isinstance(value, str) else "")
def test_sizes_follow_from_the_geometry(network, layer):
    x, y = layer["input"], layer["output"]
    assert layer["count"] >= 1 and x[0] >= 1
    if "pool" in layer["op"]:
        assert x[0] == y[0]
        if layer["op"].startswith("adaptive"):
            assert layer["output_size"] == y[1:]
        else:
            pads, window = layer["padding"], (layer["kernel_size"], layer["stride"])
            ceil = (layer["ceil_mode"],) * len(pads)
            sizes = shapes.map_axes(shapes.pool_output_size, x[1:], *window, pads, pads, layer["dilation"], ceil)
            assert list(sizes) == y[1:]
        return
    transposed = layer["op"].startswith("conv_transpose")
    large, small = (y, x) if transposed else (x, y)
    k, c_per_group, *taps = layer["weight"]
    assert (k, c_per_group * layer["groups"]) == (small[0], large[0])
    pads, steps = layer["padding"], layer["stride"]
    sizes = shapes.map_axes(shapes.conv_output_size, large[1:], taps, steps, pads, pads, layer["dilation"])
    assert list(sizes) == small[1:]
    assert layer["macs"] == prod(small) * c_per_group * prod(taps)


@pytest.mark.parametrize("network", networks())
def test_layers_chain(network):
    """What a layer reads is what another wrote, or several side by side, or the network's input."""
    layers = networks()[network]["layers"]
    written = {tuple(layer["output"]) for layer in layers}
    inputs = []
    for layer in layers:
        c, *size = layer["input"]
        widths = {out[0] for out in written if list(out[1:]) == size}
        sums = {a + b for a in widths for b in widths} | widths
        # Concatenations, and convolutions that run on padded or trimmed outputs (EnCodec pads outside of its layers).
        near = {out[0] for out in written if len(out) == 2 and len(size) == 1 and 0 < abs(size[0] - out[1]) <= 8}
        upsampled = {out[0] for out in written if [2 * axis for axis in out[1:]] == size}
        if c not in sums | near | upsampled and not (c == 5 * 256 and network.startswith("deeplab")):
            inputs.append(tuple(layer["input"]))
    assert len(set(inputs)) <= 1, f"{network}: nothing writes {inputs}"


def test_batches_for_inference_and_training():
    for name, workload in networks().items():
        assert set(workload["batch"]) == set(PHASES) and workload["batch"]["inference"], name
    assert sum(bool(workload["batch"]["training"]) for workload in networks().values()) >= 7


@pytest.fixture(scope="module")
def resnet():
    return all_cases(["resnet50"])


def test_cases_are_distinct_and_keep_the_counts(resnet):
    assert len({case.key for case in resnet}) == len({case.problem for case in resnet}) == len(resnet)
    for number in ("float16", "bfloat16"):
        of = [(case, use) for case in resnet for use in case.uses if case.problem.dtype == number]
        for batch in (1, 32, 128):
            forward = [u.count for case, u in of if u.batch == batch and case.problem.kind == "fprop"
                       and isinstance(case.problem, ConvProblem)]  # fmt: skip
            assert sum(forward) == 53
        kinds = Counter()
        for case, use in of:
            if use.phase == "training" and isinstance(case.problem, ConvProblem):
                kinds[case.problem.kind] += use.count
        # The image needs no gradient.
        assert kinds == {"fprop": 53, "dgrad": 52, "wgrad": 53}


def test_a_problem_that_several_networks_use_is_measured_once():
    both = all_cases(["resnet50", "deeplabv3_resnet50", "resnext50_32x4d"], ["float16"], ["inference"])
    shared = [case for case in both if len({use.network for use in case.uses}) > 1]
    assert shared and len({case.problem for case in both}) == len(both)


def test_number_formats():
    cases = all_cases(["vgg16"], ("float16", "bfloat16", "tf32", "float32"), ["inference"])
    found = {(case.problem.dtype, getattr(case.problem, "precision", None)) for case in cases}
    assert {("float16", "ieee"), ("bfloat16", "ieee"), ("float32", "tf32"), ("float32", "ieee")} <= found


def test_transposed_layers_train_by_the_other_passes():
    layer = next(layer for layer in networks()["unet2d"]["layers"] if layer["op"] == "conv_transpose2d")
    kinds = [problem.kind for problem in layer_problems(layer, 2, "training", "float16")]
    assert kinds == ["transposed", "fprop", "wgrad"]


def test_pools_train_and_the_pooling_set_is_there():
    cases = all_cases(["pooling"], ["float16"])
    pools = Counter((case.problem.pool, case.problem.kind) for case in cases)
    assert pools["max", "fprop"] == pools["max", "bwd"] >= 5
    assert all(isinstance(case.problem, PoolProblem) and case.problem.device == "cuda:0" for case in cases)


def test_an_unknown_network_is_refused():
    with pytest.raises(ValueError, match="no workload named lenet"):
        all_cases(["lenet"])


@pytest.mark.parametrize("network", ("resnet50", "unet3d", "hifigan", "unet2d", "mobilenet_v2"))
def test_problems_are_those_of_their_own_calls(network):
    """The call made from a problem describes the same problem, so nothing else can be timed under its name."""
    for case in all_cases([network], ["float16", "tf32"])[::7]:
        assert as_called(replace(case.problem, device="meta")) == case.problem, case.key
        for name, tensor in make_tensors(case.problem, "meta").items():
            if name != "indices":
                assert tuple(tensor.shape) == tensor_shapes(case.problem)[name][0]


def test_keys_tell_apart_what_differs():
    case = all_cases(["resnet50"], ["float16"], ["inference"])[0]
    changes = {"stride": (2, 2), "pad_hi": (2, 2), "dilation": (3, 3), "dtype": "bfloat16", "bias": True,
               "activation": "relu", "padding_mode": "reflect", "x_format": "contiguous", "n": 7}  # fmt: skip
    keys = {problem_key(replace(case.problem, **{name: value})) for name, value in changes.items()}
    assert len(keys | {case.key}) == len(changes) + 1


@pytest.fixture(scope="module")
def everything():
    return all_cases()


def test_every_network_is_seen_early(everything):
    """A run that ends after a fraction of its cases has measured something of every network."""
    cases = everything
    assert {use.network for case in cases[: len(cases) // 40] for use in case.uses} >= set(networks())


def test_the_first_cases_are_of_every_family(everything):
    """Ten minutes on a GPU time about a hundred cases: gradients and pools must be among them."""
    early = Counter(family(case.problem) for case in everything[:60])
    wanted = ["fprop", "dgrad", "wgrad", "transposed", "pool fprop", "pool bwd"]
    wanted += [f"{what} {kind}" for what in ("depthwise", "3-D", "1-D") for kind in ("fprop", "dgrad", "wgrad")]
    assert set(wanted) <= set(early) and min(early[name] for name in wanted) >= 2
    assert early["fprop"] == max(early.values()) < 20


def test_turns_lose_nothing_and_keep_the_order_within_a_family():
    cases = all_cases(["resnet50", "unet3d", "mobilenet_v2"])
    ordered = sorted(cases, key=lambda case: (case.order, case.key))
    assert Counter(case.key for case in in_turns(ordered)) == Counter(case.key for case in cases)
    for name in {family(case.problem) for case in cases}:
        of_family = [case.order for case in cases if family(case.problem) == name]
        assert of_family == sorted(of_family)
