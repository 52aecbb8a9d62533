"""The lazy modules of ``gpuconv.nn`` against those of ``torch.nn``."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch

import gpuconv
import gpuconv.nn
from gpuconv.testing import forbid_aten

pytestmark = pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")

NAMES = [f"Lazy{kind}{ndim}d" for kind in ("Conv", "ConvTranspose") for ndim in (1, 2, 3)]
OPTIONS: list[dict[str, Any]] = [{}, {"bias": False, "groups": 2, "stride": 2, "padding": 1, "dtype": torch.float64}]


def pair(name: str, **options: Any) -> tuple[Any, Any]:
    return getattr(gpuconv.nn, name)(6, 3, **options), getattr(torch.nn, name)(6, 3, **options)


def data(name: str, module: Any, batch: tuple[int, ...] = (2,)) -> torch.Tensor:
    return torch.randn(*batch, 4, *(7, 6, 5)[: int(name[-2])], dtype=module.weight.dtype)


def called(module: Any, x: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(0)
    return module(x)


@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "options"])
@pytest.mark.parametrize("name", NAMES)
def test_first_call(name: str, options: dict[str, Any]) -> None:
    """Same repr, parameters from the same seed, results; then a module of ours like any other."""
    ours, theirs = pair(name, **options)
    assert isinstance(ours, getattr(torch.nn, name)) and repr(ours) == repr(theirs)
    assert ours.has_uninitialized_params() and list(ours.state_dict()) == list(theirs.state_dict())
    assert [type(p) for p in ours.parameters()] == [type(p) for p in theirs.parameters()]
    for batch in ((2,), ()):
        ours, theirs = pair(name, **options)
        x = data(name, theirs, batch)
        with forbid_aten():
            y = called(ours, x)
        torch.testing.assert_close(y, called(theirs, x))
        assert type(ours) is getattr(gpuconv.nn, name.removeprefix("Lazy")) and repr(ours) == repr(theirs)
        assert vars(ours).keys() == vars(theirs).keys() and not ours._forward_pre_hooks
        for one, other in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
            assert torch.equal(one, other)
        torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("name", NAMES)
def test_state_dicts_load_before_and_after(name: str) -> None:
    trained = getattr(torch.nn, name.removeprefix("Lazy"))(4, 6, 3)
    x = data(name, trained)
    fresh, called_before = (pair(name)[0] for _ in range(2))
    called(called_before, x)
    for ours in (fresh, called_before):
        ours.load_state_dict(trained.state_dict())
        assert torch.equal(ours.weight, trained.weight)
        torch.testing.assert_close(ours(x), trained(x))
        assert type(ours) is getattr(gpuconv.nn, name.removeprefix("Lazy"))
    unknown, theirs = pair(name)
    assert list(unknown.state_dict()) == list(theirs.state_dict())
    again = pair(name)[0]
    again.load_state_dict(unknown.state_dict())  # not initialised, of what is not initialised
    assert again.has_uninitialized_params()
    eager = getattr(gpuconv.nn, name.removeprefix("Lazy"))(4, 6, 3)
    with pytest.raises(RuntimeError, match="uninitialized"):
        eager.load_state_dict(unknown.state_dict())


@pytest.mark.parametrize("name", ["LazyConv2d", "LazyConvTranspose1d"])
def test_copies_pickles_and_moves(name: str) -> None:
    ours, theirs = pair(name)
    x = data(name, theirs)
    expected = called(theirs, x)
    for made in (copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))):
        again = made(ours)
        assert type(again) is type(ours) and again.has_uninitialized_params()
        torch.testing.assert_close(called(again, x), expected)
        assert ours.has_uninitialized_params()
    ours, theirs = (module.to(torch.float64) for module in pair(name))
    assert ours.weight.dtype is theirs.weight.dtype is torch.float64
    torch.testing.assert_close(called(ours, x.double()), called(theirs, x.double()))
    ours, theirs = pair(name, device="meta")
    assert ours(x.to("meta")).shape == theirs(x.to("meta")).shape and ours.weight.is_meta


@pytest.mark.parametrize("name", NAMES)
def test_errors_are_those_of_torch(name: str) -> None:
    size = (2,) * (int(name[-2]) + 3)
    for module in pair(name):
        with pytest.raises(RuntimeError, match=rf"Expected {int(name[-2]) + 1}D \(unbatched\) or .* to {name}, but"):
            module(torch.zeros(size))
    for module in pair(name, groups=3):
        with pytest.raises(ValueError, match="in_channels must be divisible by groups"):
            module(data(name, module))
    for lib in (gpuconv.nn, torch.nn):
        with pytest.raises((ValueError, TypeError)):
            getattr(lib, name)(6, 3, padding_mode="mirror")
        with pytest.raises(TypeError):
            getattr(lib, name)(6)


def test_initialize_parameters_by_hand() -> None:
    ours, theirs = pair("LazyConv2d")
    x = data("LazyConv2d", theirs)
    for module in (ours, theirs):
        torch.manual_seed(0)
        module.initialize_parameters(x)
        assert module.in_channels == 4 and not module.has_uninitialized_params()
    assert torch.equal(ours.weight, theirs.weight)
    assert type(ours) is gpuconv.nn.LazyConv2d and type(theirs) is torch.nn.LazyConv2d
    torch.testing.assert_close(ours(x), theirs(x))
    assert type(ours) is gpuconv.nn.Conv2d


def test_arguments_beyond_torchs_are_kept() -> None:
    layer = gpuconv.nn.LazyConv2d(4, 3, padding="same_upper", activation="relu", precision="ieee", backend="numpy")
    assert repr(layer) == (
        "LazyConv2d(0, 4, kernel_size=(3, 3), stride=(1, 1), padding=same_upper, "
        "activation='relu', precision='ieee', backend='numpy')"
    )
    x, told = torch.randn(1, 4, 5, 5), repr(layer)
    y = layer(x, residual=x)  # also at the first call
    assert repr(layer) == told.replace("LazyConv2d(0", "Conv2d(4") and type(layer) is gpuconv.nn.Conv2d
    assert (layer.activation, layer.precision, layer.backend) == ("relu", "ieee", "numpy")
    torch.testing.assert_close(y, (gpuconv.conv2d(x, layer.weight, layer.bias, padding=1) + x).relu())
    layer = gpuconv.nn.LazyConvTranspose2d(4, 3, stride=2, activation="relu")
    assert layer(x, output_size=(12, 12)).shape == (1, 4, 12, 12) and layer.activation == "relu"
    for wrong in ({"activation": "softplus"}, {"precision": "int4"}, {"backend": "cudnn"}, {"padding": "same_lowest"}):
        with pytest.raises(ValueError, match="LazyConv2d: "):
            gpuconv.nn.LazyConv2d(4, 3, **wrong)


def test_replaced_before_the_first_call() -> None:
    """Torch's lazy modules become ours, and go the way back whether or not they were called in between."""
    model = torch.nn.Sequential(torch.nn.LazyConv2d(4, 3), torch.nn.ReLU(), torch.nn.LazyConvTranspose2d(2, 3))
    theirs, x = copy.deepcopy(model), torch.randn(1, 3, 7, 7)
    report = gpuconv.replace_modules(model)
    assert [type(module) for module in model] == [
        gpuconv.nn.LazyConv2d, torch.nn.ReLU, gpuconv.nn.LazyConvTranspose2d,
    ]  # fmt: skip
    untouched = copy.deepcopy(model)
    assert gpuconv.replace_modules(untouched).undo() == 0
    torch.testing.assert_close(called(model, x), called(theirs, x))
    assert [type(module) for module in model] == [gpuconv.nn.Conv2d, torch.nn.ReLU, gpuconv.nn.ConvTranspose2d]
    assert report.undo() == 2
    assert [type(module) for module in model] == [torch.nn.Conv2d, torch.nn.ReLU, torch.nn.ConvTranspose2d]
    assert torch.equal(model(x), theirs(x))
    model = torch.nn.Sequential(torch.nn.LazyConv2d(4, 3))
    assert gpuconv.replace_modules(model).undo() == 1 and type(model[0]) is torch.nn.LazyConv2d
    model(x)
    assert type(model[0]) is torch.nn.Conv2d
