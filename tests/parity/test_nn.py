"""The modules of ``gpuconv.nn`` against those of ``torch.nn``."""

import copy
import pickle
from typing import Any

import pytest
import torch

import gpuconv.nn
from gpuconv.testing import forbid_aten

CASES: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    *((f"Conv{n}d", (4, 6, 3), {}) for n in (1, 2, 3)),
    *((f"ConvTranspose{n}d", (4, 6, 3), {"stride": 2, "output_padding": 1}) for n in (1, 2, 3)),
    *((f"Conv{n}d", (4, 6, 3), {"padding": 2, "padding_mode": m})
      for n in (1, 2, 3) for m in ("reflect", "replicate", "circular") if n < 3 or m == "circular"),
    ("Conv2d", (4, 6, (3, 2)), {"padding": "same", "padding_mode": "reflect", "dilation": (2, 1)}),
    ("Conv2d", (4, 6, 3), {"padding": "valid", "groups": 2, "stride": (2, 1), "bias": False}),
    ("Conv2d", (4, 6, 3), {"padding": "same", "dtype": torch.float64}),
    ("ConvTranspose2d", (4, 6, (3, 2)), {"groups": 2, "dilation": (2, 1), "padding": (1, 0), "bias": False}),
]  # fmt: skip


def pair(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    torch.manual_seed(0)
    ours = getattr(gpuconv.nn, name)(*args, **kwargs)
    torch.manual_seed(0)
    return ours, getattr(torch.nn, name)(*args, **kwargs)


@pytest.mark.parametrize(("name", "args", "kwargs"), CASES, ids=lambda value: str(value).replace("torch.", ""))
def test_modules(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Same parameters from the same seed, same repr, same results and gradients, batched and unbatched."""
    ours, theirs = pair(name, args, kwargs)
    assert isinstance(ours, getattr(torch.nn, name)) and repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for one, other in zip(ours.state_dict().values(), theirs.state_dict().values()):
        assert torch.equal(one, other)
    ndim = int(name[-2])
    for batch in ((2,), ()):
        x = torch.randn(*batch, 4, *(7, 6, 5)[:ndim], dtype=ours.weight.dtype)
        with forbid_aten():
            y = ours(x)
        torch.testing.assert_close(y, theirs(x))
        with forbid_aten():
            mine = torch.autograd.grad(ours(x).square().sum(), list(ours.parameters()))
        for one, other in zip(mine, torch.autograd.grad(theirs(x).square().sum(), list(theirs.parameters()))):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "args", "kwargs"), CASES[:6], ids=lambda value: str(value))
def test_state_dict_copy_and_pickle(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    ours, theirs = pair(name, args, kwargs)
    torch.nn.init.ones_(theirs.weight)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 4, *(5,) * int(name[-2]))
    for module in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(module) is type(ours)
        torch.testing.assert_close(module(x), theirs(x))


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_output_size(ndim: int) -> None:
    ours, theirs = pair(f"ConvTranspose{ndim}d", (4, 6, 3), {"stride": 2, "padding": 1, "output_padding": 1})
    x = torch.randn(2, 4, *(4,) * ndim)
    for size in ((7,) * ndim, (8,) * ndim, (2, 6, *(7,) * ndim), torch.Size((8,) * ndim), [7] * ndim):
        y = ours(x, output_size=size)
        assert y.shape == theirs(x, output_size=list(size)).shape
        torch.testing.assert_close(y, theirs(x, output_size=list(size)))
    for module in (ours, theirs):
        with pytest.raises(ValueError, match="valid sizes range from"):
            module(x, output_size=(9,) * ndim)
        with pytest.raises(ValueError):
            module(x, output_size=(9,) * (ndim + 3))


class Everything(torch.nn.Module):
    """A network with modules of every kind, of `torch.nn` or of ours."""

    def __init__(self, nn: Any) -> None:
        super().__init__()
        self.conv, self.up = nn.Conv2d(2, 6, 3, padding=1, padding_mode="reflect"), nn.ConvTranspose2d(6, 2, 2, 2)
        self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)
        self.averages = torch.nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.LPPool2d(2, 2))
        self.samples = nn.FractionalMaxPool2d(2, output_size=(4, 4), _random_samples=torch.full((2, 2, 2), 0.4))
        self.adaptive = torch.nn.Sequential(nn.AdaptiveAvgPool2d((3, None)), nn.AdaptiveMaxPool2d(2))
        self.line = nn.Conv1d(2, 3, 2)

    def forward(self, x: torch.Tensor) -> Any:
        pooled, indices = self.pool(self.conv(x))
        y = self.averages(self.unpool(pooled, indices, output_size=x.size()))
        y = self.adaptive(self.samples(self.up(y, output_size=x.size()[2:])))
        return self.line(y.flatten(2))


def test_symbolic_trace() -> None:
    """``torch.fx`` records calls of our functions, as it records torch's modules."""
    ours, theirs = Everything(gpuconv.nn), Everything(torch.nn)
    ours.load_state_dict(theirs.state_dict())
    traced, x = torch.fx.symbolic_trace(ours), torch.randn(2, 2, 16, 16)
    targets = {node.target for node in traced.graph.nodes if node.op == "call_function"}
    assert {gpuconv.conv2d, gpuconv.conv_transpose2d, gpuconv.max_pool2d, gpuconv.max_unpool2d} <= targets
    torch.testing.assert_close(traced(x), theirs(x))
    torch.testing.assert_close(pickle.loads(pickle.dumps(traced))(x), theirs(x))


def test_constructors_refuse_what_torchs_do() -> None:
    for module in (gpuconv.nn, torch.nn):
        with pytest.raises(ValueError):
            module.Conv2d(4, 6, 3, padding_mode="mirror")
        with pytest.raises(ValueError):
            module.Conv2d(4, 6, 3, groups=3)
        with pytest.raises(ValueError):
            module.Conv2d(4, 6, 3, padding="same", stride=2)
        with pytest.raises(ValueError):
            module.ConvTranspose2d(4, 6, 3, padding_mode="circular")


def test_circular_padding_may_wrap_several_times() -> None:
    layer = gpuconv.nn.Conv1d(1, 1, 3, padding=5, padding_mode="circular", bias=False)
    x = torch.randn(1, 1, 2)
    wrapped = torch.cat([x] * 7, -1)[..., 1:13]  # elements -5 to 6
    expected = torch.nn.functional.conv1d(wrapped, layer.weight)
    torch.testing.assert_close(layer(x), expected)
