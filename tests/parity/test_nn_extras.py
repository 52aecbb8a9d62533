"""What the modules of ``gpuconv.nn`` take beyond PyTorch's: arguments, and a residual at the call."""

import copy
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import gpuconv.nn
from gpuconv.normalize.conv import ACTIVATIONS
from gpuconv.testing import forbid_aten

SIZES = (7, 6, 5)

ACTIVATED: dict[str, Callable[..., torch.Tensor]] = {
    **{name: getattr(F, name) for name in ("relu", "relu6", "hardswish", "silu", "gelu")},
    **{name: getattr(torch, name) for name in ("sigmoid", "tanh")},
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}

POOLS: dict[str, tuple[Any, ...]] = {
    **{f"MaxPool{n}d": (2,) for n in (1, 2, 3)},
    **{f"AvgPool{n}d": (2,) for n in (1, 2, 3)},
    **{f"LPPool{n}d": (2, 2) for n in (1, 2, 3)},
    **{f"Adaptive{kind}Pool{n}d": (3,) for n in (1, 2, 3) for kind in ("Avg", "Max")},
    **{f"FractionalMaxPool{n}d": (2, 3) for n in (2, 3)},
    "Unfold": (3,),
    "Fold": ((4, 5), 2),
    **{f"MaxUnpool{n}d": (2,) for n in (1, 2, 3)},
}


def both(name: str, *args: Any, ours: dict[str, Any], **kwargs: Any) -> tuple[Any, Any]:
    """Return a module of ours and one of torch's with the same parameters."""
    torch.manual_seed(0)
    mine = getattr(gpuconv.nn, name)(*args, **kwargs, **ours)
    torch.manual_seed(0)
    return mine, getattr(torch.nn, name)(*args, **kwargs)


def image(ndim: int, channels: int = 4) -> torch.Tensor:
    return torch.randn(2, channels, *SIZES[:ndim])


def arguments(name: str) -> list[torch.Tensor]:
    """Return what a pool is called with."""
    if name == "Fold":
        return [torch.randn(2, 8, 12)]
    if name.startswith("MaxUnpool"):
        ndim = int(name[-2])
        pool = getattr(F, f"max_pool{ndim}d")
        return list(pool(torch.randn(2, 3, *(6,) * ndim), 2, return_indices=True))
    return [image(2 if name == "Unfold" else int(name[-2]))]


# convolutions


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation(kind: str, ndim: int, activation: str) -> None:
    ours, theirs = both(f"{kind}{ndim}d", 4, 6, 3, ours={"activation": activation}, stride=2)
    x, expected = image(ndim), ACTIVATED[activation]
    for given in (x, x[0]):
        with forbid_aten():
            y = ours(given)
        torch.testing.assert_close(y, expected(theirs(given)))
    mine = torch.autograd.grad(ours(x).square().sum(), list(ours.parameters()))
    other = torch.autograd.grad(expected(theirs(x)).square().sum(), list(theirs.parameters()))
    torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", ["zeros", "replicate"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", ["same_upper", "same_lower", "causal", "pairs"])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_padding(ndim: int, padding: str, stride: int, mode: str) -> None:
    """Against torch's module on what ``F.pad`` made of the input."""
    kernel, dilation = 4 if padding.startswith("same") else 3, 1
    pairs = []
    for size in SIZES[:ndim]:
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        lo = {"same_upper": total // 2, "same_lower": total - total // 2, "causal": kernel - 1, "pairs": 0}[padding]
        pairs.append((lo, {"causal": 0, "pairs": 2}.get(padding, total - lo)))
    given = tuple(pairs) if padding == "pairs" else padding
    ours = getattr(gpuconv.nn, f"Conv{ndim}d")(
        4, 6, kernel, stride, dilation=dilation, padding=given, padding_mode=mode
    )
    theirs = getattr(torch.nn, f"Conv{ndim}d")(4, 6, kernel, stride)
    theirs.load_state_dict(ours.state_dict())
    x = image(ndim)
    pads = [pad for pair in reversed(pairs) for pad in pair]
    expected = theirs(F.pad(x, pads, mode={"zeros": "constant"}.get(mode, mode)))
    with forbid_aten():
        torch.testing.assert_close(ours(x), expected)
    assert ours.padding == given and f"padding={given}" in repr(ours)


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_pairs_of_a_transposed_convolution(ndim: int) -> None:
    pairs = ((1, 0), (0, 2), (1, 1))[:ndim]
    ours = getattr(gpuconv.nn, f"ConvTranspose{ndim}d")(4, 6, 3, stride=2, padding=pairs)
    x = image(ndim)
    whole = getattr(F, f"conv_transpose{ndim}d")(x, ours.weight, ours.bias, stride=2)
    cut = tuple(slice(lo, size - hi) for (lo, hi), size in zip(pairs, whole.shape[2:], strict=True))
    torch.testing.assert_close(ours(x), whole[(..., *cut)])


@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_residual(kind: str, ndim: int) -> None:
    ours, theirs = both(f"{kind}{ndim}d", 4, 4, 3, ours={"activation": "relu"}, padding=1)
    x = image(ndim)
    y = ours(x, residual=x)
    torch.testing.assert_close(y, (theirs(x) + x).relu())
    if kind == "ConvTranspose":
        torch.testing.assert_close(ours(x, list(x.shape[2:]), residual=x), y)
    with pytest.raises(RuntimeError, match="residual must be"):
        ours(x, residual=x[..., :-1])


def test_precision_and_backend_reach_the_call() -> None:
    for name, channels in (("Conv1d", 4), ("Conv2d", 4), ("ConvTranspose3d", 4)):
        ours, theirs = both(name, channels, 6, 3, ours={"precision": "tf32x3", "backend": "numpy"})
        x = image(int(name[-2]))
        explained = gpuconv.explain(ours, x)
        assert explained.solver is not None and explained.solver.startswith("numpy.")
        torch.testing.assert_close(ours(x), theirs(x))
        forced = getattr(gpuconv.nn, name)(channels, 6, 3, backend="cupy")
        with pytest.raises(gpuconv.NoSolverError, match="backend='cupy' cannot run this call"):
            forced(x)


def test_repr_names_what_was_given() -> None:
    extras = {"activation": "relu", "precision": "tf32", "backend": "numpy"}
    ours, theirs = both("Conv2d", 4, 6, 3, ours=extras, padding="same", bias=False)
    beyond = ", activation='relu', precision='tf32', backend='numpy')"
    assert repr(ours) == repr(theirs).removesuffix(")") + beyond
    ours, theirs = both("Conv2d", 4, 6, 3, ours=dict.fromkeys(extras))
    assert repr(ours) == repr(theirs) and vars(ours).keys() == vars(theirs).keys()
    network = torch.nn.Sequential(gpuconv.nn.ConvTranspose1d(1, 1, 2, activation="gelu"))
    assert "(0): ConvTranspose1d(1, 1, kernel_size=(2,), stride=(1,), activation='gelu')" in repr(network)


@pytest.mark.parametrize(
    ("name", "arguments", "error", "text"),
    [
        ("Conv2d", {"activation": "rulu"}, ValueError, "Conv2d: activation must be one of 'relu', .* got 'rulu'"),
        ("Conv2d", {"precision": "fp8"}, ValueError, "Conv2d: precision must be one of 'ieee', 'tf32', 'tf32x3'"),
        ("Conv1d", {"backend": "tritn"}, ValueError, r"Conv1d: backend must be one of .*did you mean 'triton'\?"),
        ("Conv1d", {"backend": 1}, TypeError, "Conv1d: backend must be a string"),
        ("Conv2d", {"padding": "sam"}, ValueError, "Conv2d: padding must be a size or one of 'valid', 'same', "),
        ("Conv2d", {"padding": "same", "stride": 2}, ValueError, "padding='same' is not supported for strided"),
        ("Conv2d", {"padding": ((1, 1),)}, RuntimeError, r"Conv2d: padding must be .* 2 pairs"),
        ("Conv3d", {"padding": ((1, 1, 1),) * 3}, RuntimeError, r"Conv3d: padding must be .* 3 pairs"),
        ("Conv2d", {"padding": (("1", 1),) * 2}, TypeError, "Conv2d: padding must be an integer"),
        ("Conv2d", {"padding_mode": "mirror"}, ValueError, "padding_mode must be one of"),
        ("Conv2d", {"residual": None}, TypeError, r"Conv2d.__init__\(\): .*'residual'"),
        ("ConvTranspose2d", {"padding": "same"}, ValueError, "ConvTranspose2d: padding must be a size, but got 'same'"),
        ("ConvTranspose2d", {"activation": 3}, ValueError, "ConvTranspose2d: activation must be one of"),
    ],
)
def test_the_constructor_refuses(name: str, arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        getattr(gpuconv.nn, name)(4, 6, 3, **arguments)


def test_wrong_arguments_have_torchs_class() -> None:
    for module in (gpuconv.nn, torch.nn):
        for args, kwargs in (((), {}), ((4, 6), {}), ((4, 6, 3), {"strid": 1}), ((4,) * 12, {})):
            with pytest.raises(TypeError, match=r"Conv2d.__init__\(\)"):
                module.Conv2d(*args, **kwargs)


# every module


@pytest.mark.parametrize("name", [name for name in gpuconv.nn.__all__ if hasattr(torch.nn, name)])
def test_signature_is_torchs_and_then_keywords(name: str) -> None:
    ours = list(inspect.signature(getattr(gpuconv.nn, name)).parameters.values())
    theirs = list(inspect.signature(getattr(torch.nn, name)).parameters.values())
    assert ours[: len(theirs)] == theirs
    beyond = {parameter.name: parameter.kind for parameter in ours[len(theirs) :]}
    assert "backend" in beyond and set(beyond.values()) == {inspect.Parameter.KEYWORD_ONLY}
    assert ("activation" in beyond) == ("precision" in beyond) == ("Conv" in name)


def test_skip_init_sees_the_signature() -> None:
    layer = torch.nn.utils.skip_init(gpuconv.nn.Conv2d, 4, 6, 3, activation="relu")
    assert layer.weight.shape == (6, 4, 3, 3) and layer.activation == "relu"


@pytest.mark.parametrize("name", POOLS)
def test_pools_force_a_backend(name: str) -> None:
    given = arguments(name)
    ours, theirs = both(name, *POOLS[name], ours={"backend": "numpy"})
    with gpuconv.use_backend("cupy"):  # the module's own wins
        torch.manual_seed(0)
        y = ours(*given)
    torch.manual_seed(0)
    torch.testing.assert_close(y, theirs(*given))
    own = theirs.extra_repr()
    assert ours.extra_repr() == (f"{own}, backend='numpy'" if own else "backend='numpy'")
    with pytest.raises(gpuconv.NoSolverError, match="backend='cupy' cannot run this call"):
        getattr(gpuconv.nn, name)(*POOLS[name], backend="cupy")(*given)
    with pytest.raises(ValueError, match=f"{name}: backend must be one of"):
        getattr(gpuconv.nn, name)(*POOLS[name], backend="cuda")


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("padding", ["valid", "same_upper", "same_lower", "pairs"])
def test_padding_of_pools(ndim: int, padding: str) -> None:
    x = image(ndim).abs()
    given: Any = ((0, 1),) * ndim if padding == "pairs" else padding
    for kind, lead, function in (("Max", (), "max"), ("Avg", (), "avg"), ("LP", (2.0,), "lp")):
        extras = {"padding": given} if kind == "LP" else {}
        args = (*lead, 3, 2) if kind == "LP" else (3, 2, given)
        ours = getattr(gpuconv.nn, f"{kind}Pool{ndim}d")(*args, **extras)
        expected = getattr(gpuconv, f"{function}_pool{ndim}d")(x, *lead, 3, 2, padding=given)
        torch.testing.assert_close(ours(x), expected)
        assert f"padding={given!r}" in repr(ours) or f"padding={given}" in repr(ours)
    same = getattr(gpuconv.nn, f"MaxPool{ndim}d")(3, 2, "same_upper")(x)
    assert same.shape[2:] == tuple(-(-size // 2) for size in SIZES[:ndim])
    for kind, lead in (("Max", ()), ("Avg", ()), ("LP", (2,))):
        with pytest.raises(ValueError, match=f"{kind}Pool{ndim}d: padding must be a size or one of 'valid', 'same'"):
            getattr(gpuconv.nn, f"{kind}Pool{ndim}d")(*lead, 3, padding="causal")


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_dilation_of_average_pools(ndim: int) -> None:
    x, ours = image(ndim), getattr(gpuconv.nn, f"AvgPool{ndim}d")(2, 1, dilation=3)
    weight = torch.full((4, 1, *(2,) * ndim), 2.0**-ndim)
    expected = getattr(F, f"conv{ndim}d")(x, weight, dilation=3, groups=4)
    torch.testing.assert_close(ours(x), expected)
    assert repr(ours).endswith(", dilation=3)")


EXTENDED = [
    ("Conv2d", (4, 4, 3), {"padding": "causal", "activation": "silu", "backend": "numpy", "precision": "ieee"}),
    ("ConvTranspose2d", (4, 4, 3), {"padding": ((1, 0), (0, 1)), "activation": "relu"}),
    ("MaxPool2d", (3, 2, "same_lower"), {"backend": "numpy"}),
    ("AvgPool2d", (2,), {"dilation": 2}),
    ("LPPool2d", (2, 2), {"padding": ((0, 1), (1, 0))}),
    ("Unfold", (2,), {"backend": "numpy"}),
]


@pytest.mark.parametrize(("name", "args", "kwargs"), EXTENDED, ids=lambda value: str(value)[:20])
def test_copies_and_pickles(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    ours, x = getattr(gpuconv.nn, name)(*args, **kwargs), image(2)
    for module in (copy.deepcopy(ours), copy.copy(ours), pickle.loads(pickle.dumps(ours))):
        assert repr(module) == repr(ours) and vars(module).keys() == vars(ours).keys()
        torch.testing.assert_close(module(x), ours(x))
    assert list(ours.state_dict()) == (["weight", "bias"] if "Conv" in name else [])
    state = {key: value.clone() for key, value in ours.state_dict().items()}
    torch.testing.assert_close(torch.func.functional_call(ours, state, (x,)), ours(x))


@pytest.mark.parametrize("name", ["Conv2d", "ConvTranspose2d", *POOLS])
def test_modules_of_an_older_version(name: str) -> None:
    """Their state is what torch's module holds: no attribute beyond it is needed."""
    args = POOLS.get(name, (4, 6, 3))
    _, theirs = both(name, *args, ours={})
    older = getattr(gpuconv.nn, name).__new__(getattr(gpuconv.nn, name))
    older.__setstate__(theirs.__dict__)
    given = arguments(name) if name in POOLS else [image(2)]
    torch.manual_seed(0)
    y = older(*given)
    torch.manual_seed(0)
    torch.testing.assert_close(y, theirs(*given))
    assert repr(older) == repr(theirs)


def test_subclasses_have_constructors_of_their_own() -> None:
    class Block(gpuconv.nn.Conv2d):
        def __init__(self, channels: int) -> None:
            super().__init__(channels, channels, 3, padding="same_upper", activation="relu")

    block, x = Block(4), image(2)
    assert repr(block).endswith("padding=same_upper, activation='relu')")
    assert list(inspect.signature(Block).parameters) == ["channels"]
    torch.testing.assert_close(block(x), F.conv2d(x, block.weight, block.bias, padding=1).relu())
    torch.nn.utils.parametrizations.weight_norm(block)
    assert block(x).shape == x.shape and block.activation == "relu"
