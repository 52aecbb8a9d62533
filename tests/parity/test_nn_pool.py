"""The pooling modules of ``gpuconv.nn`` against those of ``torch.nn``."""

import copy
import pickle
from typing import Any

import pytest
import torch

import gpuconv.nn
from gpuconv.testing import forbid_aten

CASES: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
for _n in (1, 2, 3):
    CASES += [
        (f"MaxPool{_n}d", (3,), {"stride": 2, "padding": 1, "dilation": 2, "ceil_mode": True}),
        (f"MaxPool{_n}d", (2,), {"return_indices": True}),
        (f"AvgPool{_n}d", (3, 2), {"padding": 1, "ceil_mode": True, "count_include_pad": False}),
        (f"LPPool{_n}d", (2, 3), {"stride": 2, "ceil_mode": True}),
        (f"LPPool{_n}d", (float("inf"), 2), {}),
        (f"AdaptiveAvgPool{_n}d", (3,), {}),
        (f"AdaptiveMaxPool{_n}d", (2, True), {}),
    ]
    if _n > 1:
        CASES += [
            (f"AvgPool{_n}d", (2,), {"divisor_override": 3}),
            (f"AdaptiveAvgPool{_n}d", ((None, *(2,) * (_n - 1)),), {}),
            (f"FractionalMaxPool{_n}d", (2,), {"output_size": 3, "return_indices": True}),
            (f"FractionalMaxPool{_n}d", (2,), {"output_ratio": 0.5}),
        ]
CASES += [
    ("Unfold", ((2, 3),), {"dilation": 2, "padding": 1, "stride": (1, 2)}),
    ("Fold", ((5, 6), 2), {}),
    ("Fold", (6, (3, 2)), {"padding": 1, "stride": 2}),
]
KINDS = {"MaxPool": 3, "AvgPool": 3, "LPPool": 3, "AdaptiveAvgPool": 3, "AdaptiveMaxPool": 3, "FractionalMaxPool": 2,
         "MaxUnpool": 3}  # fmt: skip


def as_list(result: Any) -> list[torch.Tensor]:
    return list(result) if isinstance(result, tuple) else [result]


def input_shape(name: str, args: tuple[Any, ...]) -> tuple[int, ...]:
    """Return the shape of an input without its batch axis."""
    if name == "Fold":  # the columns of five by six, and of three by four windows
        return (12, 20) if args[1] == 2 else (12, 12)
    return (4, *(8, 7, 9)[: 2 if name == "Unfold" else int(name[-2])])


@pytest.mark.parametrize(("name", "args", "kwargs"), CASES, ids=str)
def test_modules(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Same repr and state, same results and gradients, batched and unbatched; copies and pickles as well."""
    ours, theirs = getattr(gpuconv.nn, name)(*args, **kwargs), getattr(torch.nn, name)(*args, **kwargs)
    assert isinstance(ours, getattr(torch.nn, name)) and repr(ours) == repr(theirs)
    assert not ours.state_dict() and not theirs.state_dict()
    ours.load_state_dict(theirs.state_dict())
    for batch in ((2,), ()):
        x = torch.randn(*batch, *input_shape(name, args), requires_grad=True)
        for module in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
            torch.manual_seed(0)
            with forbid_aten():
                mine = as_list(module(x))
            torch.manual_seed(0)
            expected = as_list(theirs(x))
            for one, other in zip(mine, expected, strict=True):
                torch.testing.assert_close(one, other)
        slopes = [torch.autograd.grad(found[0].square().sum(), x)[0] for found in (mine, expected)]
        torch.testing.assert_close(*slopes)


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_unpool(ndim: int) -> None:
    ours, theirs = (getattr(m, f"MaxUnpool{ndim}d")(3, stride=2, padding=1) for m in (gpuconv.nn, torch.nn))
    assert repr(ours) == repr(theirs)
    pool = getattr(gpuconv.nn, f"MaxPool{ndim}d")(3, stride=2, padding=1, return_indices=True)
    x = torch.randn(2, 3, *(8,) * ndim)
    y, indices = pool(x)
    for size in ([8] * ndim, list(x.shape), tuple(x.shape[2:])):
        torch.testing.assert_close(ours(y, indices, size), theirs(y, indices, list(size)))
    y, indices = getattr(gpuconv, f"max_pool{ndim}d")(x[..., :7, :7, :7] if ndim == 3 else x[..., :7], 3, 2, 1,
                                                      return_indices=True)  # fmt: skip
    if ndim != 2:
        torch.testing.assert_close(ours(y, indices), theirs(y, indices))


def test_every_module_is_there() -> None:
    names = {f"{kind}{n}d" for kind, count in KINDS.items() for n in range(4 - count, 4)}
    assert names <= set(gpuconv.nn.__all__)
    assert all(hasattr(torch.nn, name) for name in names)


def test_paddings_beyond_torch() -> None:
    x = torch.randn(2, 3, 9, 8)
    assert gpuconv.nn.MaxPool2d(3, stride=2, padding="same_upper")(x).shape == (2, 3, 5, 4)
    y = gpuconv.nn.AvgPool2d(3, stride=1, padding=((0, 1), (1, 1)))(x)
    torch.testing.assert_close(y, gpuconv.avg_pool2d(x, 3, 1, ((0, 1), (1, 1))))
