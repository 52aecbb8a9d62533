"""Modules that ``gpuconv.replace_modules`` leaves alone, each with its reason; and odd ones that it does not."""

from __future__ import annotations

import copy
import pickle
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gpuconv
import gpuconv.nn

x = torch.linspace(-1, 1, 60).reshape(1, 2, 5, 6)


class OwnForward(nn.Conv2d):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) * 2


class OwnConvForward(nn.Conv2d):
    def _conv_forward(self, input: torch.Tensor, weight: torch.Tensor, bias: Any) -> torch.Tensor:
        return super()._conv_forward(input, weight * 2, bias)


class OwnCall(nn.MaxPool2d):
    def __call__(self, input: torch.Tensor) -> torch.Tensor:
        return nn.functional.avg_pool2d(input, self.kernel_size)


class OwnOutputPadding(nn.ConvTranspose2d):
    def _output_padding(self, *args: Any, **kwargs: Any) -> list[int]:
        return [1, 1]


class OwnLazy(nn.LazyConv2d):
    pass


class OwnBackend(nn.Conv2d):
    backend = "theirs"


def changed(make: Callable[[], nn.Module], **attributes: Any) -> nn.Module:
    module = make()
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


def layer(**options: Any) -> nn.Module:
    return nn.Conv2d(2, 2, 3, **options)


def with_forward_on_the_object() -> nn.Module:
    """As hooks of offloading libraries do."""
    module = layer()
    before = module.forward
    module.forward = types.MethodType(lambda self, input: before(input) + 1, module)  # type: ignore[method-assign]
    return module


def seamless() -> nn.Module:
    """As tools for tiling textures do."""

    def conv_forward(self: Any, input: torch.Tensor, weight: torch.Tensor, bias: Any) -> torch.Tensor:
        return nn.functional.conv2d(nn.functional.pad(input, (1, 1, 0, 0), "circular"), weight, bias)

    module = layer()
    module._conv_forward = types.MethodType(conv_forward, module)  # type: ignore[method-assign]
    return module


def two_tensors() -> nn.Module:
    from torch.testing._internal.two_tensor import TwoTensor

    module = layer()
    module.weight = nn.Parameter(TwoTensor(module.weight.detach(), module.weight.detach()))
    return module


class Functions(nn.Module):
    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv, self.ours = conv, gpuconv.nn.Conv2d(2, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = nn.functional.max_pool2d(nn.functional.conv2d(self.conv(x), torch.ones(2, 2, 1, 1)), 2)
        return torch.conv2d(y, torch.ones(2, 2, 1, 1)) + self.ours(y)


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "forward": (lambda: OwnForward(2, 2, 3), "OwnForward has a forward of its own"),
    "_conv_forward": (lambda: OwnConvForward(2, 2, 3), "OwnConvForward has a _conv_forward of its own"),
    "__call__": (lambda: OwnCall(2), "OwnCall has a __call__ of its own"),
    "_output_padding": (lambda: OwnOutputPadding(2, 2, 3, 2), "OwnOutputPadding has a _output_padding of its own"),
    "forward of the object": (with_forward_on_the_object, "its forward was changed on the object"),
    "seamless": (seamless, "its _conv_forward was changed on the object"),
    "activation": (lambda: changed(layer, activation="relu"), "it has an attribute 'activation' of its own"),
    "activation, a module": (lambda: changed(layer, activation=nn.ReLU()), "it has an attribute 'activation'"),
    "backend": (lambda: OwnBackend(2, 2, 3), "it has an attribute 'backend' of its own"),
    "padding of a pool": (lambda: changed(lambda: nn.LPPool2d(2, 2), padding=1), "it has an attribute 'padding'"),
    "padding mode": (lambda: changed(layer, padding_mode="mirror"), "padding_mode='mirror' is none of zeros, reflect"),
    "transposed padding mode": (
        lambda: changed(lambda: nn.ConvTranspose2d(2, 2, 3), padding_mode="circular"),
        "padding_mode='circular' of a transposed convolution",
    ),
    "padding set": (
        lambda: changed(lambda: layer(padding=1, padding_mode="reflect"), padding=(2, 2)),
        "padding=(2, 2) was set after it was made, which torch ignores with padding_mode='reflect'",
    ),
    "padding mode set": (lambda: changed(lambda: layer(padding="same"), padding_mode="circular"), ""),
    "qconfig": (lambda: changed(layer, qconfig=torch.ao.quantization.default_qconfig), "prepared for quantization"),
    "qat": (
        lambda: torch.ao.nn.qat.Conv2d(2, 2, 3, qconfig=torch.ao.quantization.default_qat_qconfig),
        "quantization-aware",
    ),
    "quantized": (lambda: torch.ao.nn.quantized.Conv2d(2, 2, 3), "quantized"),
    "script": (lambda: torch.jit.script(layer()), "TorchScript: it is compiled, and has no class to change"),
    "trace": (lambda: torch.jit.trace(layer(), x), "TorchScript: it is compiled, and has no class to change"),
    "lazy": (lambda: OwnLazy(2, 3), "a lazy module of another class than torch's"),
    "subclass of tensors": (two_tensors, "its weight is a TwoTensor"),
    "small floats": (
        lambda: changed(layer, weight=nn.Parameter(torch.zeros(2, 2, 3, 3).to(torch.float8_e5m2))),
        "its weight is of float8_e5m2",
    ),
    "complex, not on a CPU": (
        lambda: layer(dtype=torch.complex64, device="meta"),
        "its weight is of complex64 and on meta: gpuconv computes that on CPUs alone",
    ),
    "sparse": (
        lambda: changed(layer, bias=nn.Parameter(torch.zeros(2).to_sparse())),
        "its bias has the layout sparse_coo",
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", REFUSED)
def test_left_alone_with_a_reason(case: str) -> None:
    make, reason = REFUSED[case]
    model = nn.Sequential(make())
    kind, attributes = type(model[0]), dict(vars(model[0]))
    report = gpuconv.replace_modules(model)
    if not reason:  # what was changed makes no difference
        assert [entry.replaced for entry in report] == [True]
        return
    assert [(entry.name, entry.type, entry.replaced) for entry in report] == [("0", kind, False)]
    (entry,) = report
    assert entry.reason.startswith(reason), entry.reason
    assert type(model[0]) is kind and vars(model[0]) == attributes
    assert list(gpuconv.replace_modules(model, dry_run=True)) == [entry]


@pytest.mark.filterwarnings("ignore")
def test_scripted_models_name_their_modules() -> None:
    model = torch.jit.script(nn.Sequential(nn.Conv1d(1, 1, 1), nn.ReLU(), nn.Sequential(nn.MaxPool1d(2))))
    report = gpuconv.replace_modules(nn.Sequential(model))
    rows = [line.split()[:3] for line in str(report).splitlines()[2:]]
    assert rows == [["0.0", "Conv1d", "no"], ["0.2.0", "MaxPool1d", "no"]]


def test_graphs_have_their_modules_replaced_and_their_functions_named() -> None:
    model = torch.fx.symbolic_trace(Functions(layer()))
    expected = model(x)
    report = gpuconv.replace_modules(model)
    graph, conv = report
    assert conv.replaced and isinstance(model.conv, gpuconv.nn.Conv2d)
    assert graph.reason == "an FX graph that calls functions of torch, which are no modules: conv2d x2, max_pool2d"
    torch.testing.assert_close(model(x), expected)
    exported = torch.export.export(Functions(layer()), (x,)).module()
    (entry,) = gpuconv.replace_modules(exported)  # the parts that held parameters are no convolutions any more
    assert "conv2d x3" in entry.reason and "max_pool2d" in entry.reason and not entry.replaced


@pytest.mark.filterwarnings("ignore")
def test_fused_modules_are_replaced_before_they_are_prepared() -> None:
    model = nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2), nn.ReLU()).eval()
    expected = model(x)
    fused = torch.ao.quantization.fuse_modules(model, ["0", "1", "2"])
    assert [entry.replaced for entry in gpuconv.replace_modules(fused)] == [True]
    torch.testing.assert_close(fused(x), expected)
    gpuconv.replace_modules(model)
    both = nn.utils.fusion.fuse_conv_bn_eval(model[0], model[1])
    assert type(both) is gpuconv.nn.Conv2d
    torch.testing.assert_close(both(x).relu(), expected)


class Quiet(nn.Conv2d):
    """A subclass whose methods have nothing to do with a call."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.extra = nn.Parameter(torch.ones(1))
        self.register_buffer("mask", torch.ones(2, dtype=torch.bool))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.weight, 0.1)

    def extra_repr(self) -> str:
        return super().extra_repr() + ", quiet"

    def __getattr__(self, name: str) -> Any:
        if name == "theirs":
            return 42
        return super().__getattr__(name)


class Slotted(nn.Conv2d):
    __slots__ = ("note",)


class Meta(type):
    made: int = 0

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        cls.made += 1
        return super().__call__(*args, **kwargs)


class OfMeta(nn.Conv2d, metaclass=Meta):
    pass


class Sealed(nn.Conv2d):
    def __init_subclass__(cls, **kwargs: Any) -> None:
        raise TypeError("Sealed is final")


class Deeper(Quiet):
    def __deepcopy__(self, memo: Any) -> Any:
        made = type(self)(2, 2, 3)
        made.load_state_dict(self.state_dict())
        return made


class Mixin:
    def described(self) -> str:
        return f"{type(self).__name__} and more"


class Mixed(nn.Conv2d, Mixin):
    pass


class MixedFirst(Mixin, nn.Conv2d):
    pass


class Stubborn(nn.Conv2d):
    """A subclass that has something to say about attributes."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "__class__":
            raise AttributeError(name)
        super().__setattr__(name, value)


@pytest.mark.parametrize(
    "cls", [Quiet, Slotted, OfMeta, Deeper, Mixed, MixedFirst, Stubborn], ids=lambda cls: cls.__name__
)
def test_odd_subclasses_are_replaced(cls: Any) -> None:
    model = nn.Sequential(cls(2, 2, 3), cls(2, 2, 3, padding="same", padding_mode="circular"))
    if cls is Slotted:
        model[0].note = "kept"
    expected, told, state = model(x), repr(model), model.state_dict()
    report = gpuconv.replace_modules(model)
    assert [entry.replaced for entry in report] == [True, True]
    assert type(model[0]) is type(model[1]) is not cls and isinstance(model[0], cls)
    assert isinstance(model[0], gpuconv.nn.Conv2d) and type(model[0]).__qualname__ == cls.__qualname__
    assert repr(model) == told and list(model.state_dict()) == list(state)
    assert getattr(model[0], "note", "kept") == "kept" and getattr(model[0], "theirs", 42) == 42
    torch.testing.assert_close(model(x), expected)
    torch.testing.assert_close(copy.deepcopy(model[:1])(x), model[0](x))
    again = pickle.loads(pickle.dumps(model))
    assert type(again[0]) is type(model[0])
    torch.testing.assert_close(again(x), expected)
    report.undo()
    assert type(model[0]) is cls and torch.equal(model(x), expected)


def test_a_class_that_allows_no_subclass() -> None:
    (entry,) = gpuconv.replace_modules(Sealed(2, 2, 3))
    assert not entry.replaced and entry.reason == "Sealed cannot have a subclass: Sealed is final"


def test_of_our_own() -> None:
    model = nn.Sequential(
        gpuconv.nn.Conv2d(2, 2, 3), gpuconv.nn.DepthwiseSeparableConv2d(2, 2, 3), gpuconv.nn.CausalConv1d(2, 3)
    )
    report = gpuconv.replace_modules(model)
    assert [entry.name for entry in report] == ["0", "1.depthwise", "1.pointwise"]
    assert {entry.reason for entry in report} == {"already one of gpuconv.nn"}


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch has no distributed package")
def test_sharded_modules(tmp_path: Path) -> None:
    """What is sharded itself stays; what lies inside of something sharded is replaced, and trains."""
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/here", rank=0, world_size=1)
    try:
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        sharded = nn.Sequential(fully_shard(layer(), mesh=mesh))
        (entry,) = gpuconv.replace_modules(sharded)
        assert entry.reason == "torch.distributed made its class: replace modules before they are sharded"
        unused = fully_shard(nn.Sequential(layer()), mesh=mesh)  # shards until its first call
        (entry,) = gpuconv.replace_modules(unused)
        assert entry.reason == "its weight is a DTensor: replace modules before they are sharded"
        for wrap in (lambda model: fully_shard(model, mesh=mesh), DistributedDataParallel):
            model = wrap(nn.Sequential(layer(), nn.ReLU(), nn.MaxPool2d(2)))
            expected = model(x)
            report = gpuconv.replace_modules(model)
            assert [entry.replaced for entry in report] == [True, True], str(report)
            torch.testing.assert_close(model(x), expected)
            model(x).sum().backward()
            assert all(parameter.grad is not None for parameter in model.parameters())
    finally:
        torch.distributed.destroy_process_group()
