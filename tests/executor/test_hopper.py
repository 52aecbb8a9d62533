"""The Hopper kernels give torch's results whatever happens early or late."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from drawn_cases import CASES, FORWARD, TRANSPOSED, WGRAD
from hopper_cases import Case, Operands, execute
from tensors import rounded

SEEDS = range(4)
ACTIVATIONS = {
    None: lambda x: x,
    "relu": torch.relu,
    "relu6": torch.nn.functional.relu6,
    "hardswish": torch.nn.functional.hardswish,
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}


def name_of(case: Case) -> str:
    return f"{case.kernel}-{case.shared or 'alone'}-{'x'.join(map(str, case.taps))}"


def drawn(case: Case, seed: int, integers: bool) -> Operands:
    rng = np.random.default_rng(seed)
    operands = Operands.zeros(case)

    def fill(array, low=-2, high=3):
        values = rng.integers(low, high, array.shape) if integers else rng.normal(size=array.shape)
        array[...] = rounded(values.astype(np.float32), case.dtype)

    for array in (operands.x, operands.w, *operands.vectors.values()):
        fill(array)
    if operands.residual is not None:
        fill(operands.residual)
    operands.y[...] = np.nan
    if case.kernel == "wgrad":
        fill(operands.y)
        shape = (case.filters, math.prod(case.taps), case.channels)
        operands.w = np.full((case.splits, *shape), np.nan, np.float32)
    return operands


def channels_first(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).double().permute(0, 4, 1, 2, 3)


def convolution(case: Case, operands: Operands) -> torch.Tensor:
    """Return the sums, [N, O, P, Q, K] in float64."""
    weights = torch.from_numpy(operands.w).double().reshape(*case.taps, *operands.w.shape[1:]).permute(3, 4, 0, 1, 2)
    known = {"stride": case.stride, "padding": case.padding, "dilation": case.dilation}
    function = torch.nn.functional.conv_transpose3d if case.transposed else torch.nn.functional.conv3d
    return function(channels_first(operands.x), weights, **known).permute(0, 2, 3, 4, 1)


def expected(case: Case, operands: Operands) -> tuple[np.ndarray, np.ndarray]:
    """Return the result, and the sums of magnitudes that its rounding errors are measured against."""

    def step(value: torch.Tensor) -> torch.Tensor:
        return value.to(getattr(torch, case.dtype)).double() if case.round_each else value

    sums = step(convolution(case, operands))
    size = np.abs(sums.numpy()) + 1
    vectors = {name: torch.from_numpy(vector).double() for name, vector in operands.vectors.items()}
    if "bias" in vectors:
        sums = step(sums + vectors["bias"])
    if "scale" in vectors:
        sums = step(sums * vectors["scale"])
        size = size * (np.abs(operands.vectors["scale"]) + 1)
    if "shift" in vectors:
        sums = step(sums + vectors["shift"])
    if operands.residual is not None:
        sums = step(sums + torch.from_numpy(operands.residual).double())
    result = ACTIVATIONS[case.activation](sums)
    return result.numpy(), np.maximum(size, np.abs(result.numpy()))


def check(case: Case, seed: int, integers: bool) -> None:
    operands = drawn(case, seed, integers)
    execute(case, seed, operands)
    right, size = expected(case, operands)
    assert not np.isnan(operands.y).any()
    if integers and case.activation in (None, "relu", "relu6"):
        np.testing.assert_array_equal(operands.y, rounded(right.astype(np.float32), case.dtype))
    else:
        allowed = (2**-7 if case.dtype == "bfloat16" else 2**-10) * (2 if case.round_each else 1)
        np.testing.assert_array_less(np.abs(operands.y - right), allowed * size + 1e-6)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("case", [*FORWARD, *TRANSPOSED], ids=name_of)
def test_equal_on_integers(case, seed):
    check(case, seed, integers=True)


@pytest.mark.parametrize("case", [*FORWARD, *TRANSPOSED], ids=name_of)
def test_close_on_reals(case):
    check(case, 1, integers=False)


def weight_gradient(case: Case, operands: Operands) -> np.ndarray:
    """Return dw [K, taps, C] in float64."""
    shape = (case.filters, case.channels, *case.taps)
    known = {"stride": case.stride, "padding": case.padding, "dilation": case.dilation}
    dw = torch.nn.grad.conv3d_weight(channels_first(operands.x), shape, channels_first(operands.y), **known)
    return dw.permute(0, 2, 3, 4, 1).reshape(case.filters, math.prod(case.taps), case.channels).numpy()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("case", WGRAD, ids=name_of)
def test_wgrad_on_integers(case, seed):
    operands = drawn(case, seed, integers=True)
    execute(case, seed, operands)
    np.testing.assert_array_equal(operands.w.sum(0), weight_gradient(case, operands))


@pytest.mark.parametrize("seed", range(4, 12))
@pytest.mark.parametrize(
    "case",
    [
        Case("tiles", stages=2),
        Case("tiles", stages=2, shared="weights", tile=(1, 4, 8)),
        Case("strips", stages=3, tile=(1, 4, 8), vectors=("bias",), residual=True),
        Case("pixels", stages=2, stride=(1, 2, 2), tile=(1, 1, 32)),
    ],
    ids=name_of,
)
def test_every_seed(case, seed):
    check(case, seed, integers=True)


def test_there_are_enough_distinct_cases():
    assert len(set(FORWARD)) >= 60 and len(set(TRANSPOSED)) >= 60 and len(set(WGRAD)) >= 60
    for kernel in ("tiles", "strips", "pixels"):
        of_kernel = [case for case in CASES if case.kernel == kernel]
        shared = {"", "weights"} if kernel == "strips" else {"", "weights", "pixels"}
        assert {case.shared for case in of_kernel} == shared
        assert {case.stages for case in of_kernel} == {2, 3, 4, 5, 6}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_activations_of_what_is_not_finite(activation, value):
    """One such value in x reaches what torch says, and nothing else."""
    case = Case("tiles", channels=8, filters=8, activation=activation, dtype="float32")
    operands = drawn(case, 0, integers=True)
    operands.x[0, 0, 4, 5, 3] = value
    execute(case, 0, operands)
    right = expected(case, operands)[0]
    np.testing.assert_allclose(operands.y, right, rtol=1e-5, atol=1e-5)


def test_tanh_is_accurate_near_zero():
    """Relative to its result: near 0 a difference of exponentials has no digit left."""
    magnitudes = np.logspace(-8, 1, 64).astype(np.float32)
    case = Case(
        "tiles", n=1, channels=8, filters=8, size=(1, 2, 64), taps=(1, 1, 1), padding=(0, 0, 0), tile=(1, 1, 16)
    )
    case = replace(case, activation="tanh", dtype="float32", block_c=8)
    operands = Operands.zeros(case)
    operands.x[0, 0, 0, :, 0], operands.x[0, 0, 1, :, 0] = magnitudes, -magnitudes
    operands.w[0, :, 0] = 1
    execute(case, 0, operands)
    right = np.tanh(operands.x[..., :1].astype(np.float64))
    np.testing.assert_allclose(operands.y, np.broadcast_to(right, operands.y.shape), rtol=1e-6)


def test_what_is_not_finite_stays_in_weight_gradients_of_whole_tiles():
    case = Case("wgrad", n=2, channels=16, filters=16, size=(1, 8, 10), padding=(0, 0, 0), tile=(1, 2, 8), splits=2)
    operands = drawn(case, 0, integers=True)
    operands.x[0, 0, 7, 9, 3], operands.x[1, 0, 0, 0, 5] = np.inf, np.nan
    operands.y[1, 0, 3, 4, 2] = -np.inf
    execute(case, 0, operands)
    np.testing.assert_array_equal(operands.w.sum(0), weight_gradient(case, operands))


def test_rounding_as_torch_does_is_torchs():
    """A convolution of 16 bits with a bias, as torch computes them on a GPU: two roundings."""
    case = Case("tiles", vectors=("bias",), round_each=True)
    operands = drawn(case, 3, integers=False)
    execute(case, 0, operands)
    once = convolution(case, operands).float().to(torch.bfloat16)
    twice = once + torch.from_numpy(operands.vectors["bias"]).to(torch.bfloat16)
    different = (torch.from_numpy(operands.y) != twice.float()).float().mean()
    assert different < 0.01  # where the order of a sum decides a tie
