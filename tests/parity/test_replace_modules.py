"""``gpuconv.replace_modules`` on models of torch's modules: what stays, what changes, and the way back."""

from __future__ import annotations

import copy
import io
import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import gpuconv
import gpuconv.nn
from gpuconv.nn.families import FAMILIES
from gpuconv.testing import forbid_aten


class Everything(nn.Module):
    """A network with modules of many kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.up = nn.Conv2d(2, 6, 3, padding=1, padding_mode="reflect"), nn.ConvTranspose2d(6, 2, 2, 2)
        self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True, ceil_mode=True), nn.MaxUnpool2d(2)
        self.averages = nn.Sequential(
            nn.AvgPool2d(3, 1, 1, count_include_pad=False), nn.BatchNorm2d(6), nn.LPPool2d(2, 2)
        )
        self.samples = nn.FractionalMaxPool2d(2, output_size=(4, 4), _random_samples=torch.full((2, 2, 2), 0.4))
        self.adaptive = nn.Sequential(nn.AdaptiveAvgPool2d((3, None)), nn.AdaptiveMaxPool2d(2))
        self.columns, self.image, self.line = nn.Unfold(2), nn.Fold((2, 2), 2), nn.Conv1d(2, 3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled, indices = self.pool(self.conv(x))
        y = self.averages(self.unpool(pooled, indices, output_size=x.size()))
        y = self.adaptive(self.samples(self.up(y, output_size=x.size()[2:])))
        return self.line(self.image(self.columns(y)).flatten(2))


def everything() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return Everything(), torch.randn(2, 2, 16, 16)


def results(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Return the output, and the gradients of the input and of every parameter."""
    x = x.clone().requires_grad_()
    y = model(x)
    y.square().sum().backward()
    found = [y.detach(), x.grad, *(p.grad for p in model.parameters())]
    model.zero_grad()
    return found


def classes(model: nn.Module) -> list[type]:
    return [type(module) for module in model.modules()]


def test_every_family_is_replaced() -> None:
    """Of torch's modules with a name of ours, all; and each of ours that torch has is one."""
    ours = {name for name in gpuconv.nn.__all__ if hasattr(nn, name)}
    assert {cls.__name__ for cls in FAMILIES} == ours
    windows = re.compile(r"Conv|[Pp]ool|^Fold$|^Unfold$")
    assert {name for name in vars(nn) if windows.search(name) and isinstance(getattr(nn, name), type)} == ours


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "last"])
def test_results_and_state_are_the_same(training: bool, memory_format: torch.memory_format) -> None:
    model, x = everything()
    model, x = model.train(training).to(memory_format=memory_format), x.to(memory_format=memory_format)
    before, kinds, state = results(copy.deepcopy(model), x), classes(model), model.state_dict()
    held, told = dict(model.named_parameters()), repr(model)
    report = gpuconv.replace_modules(model)
    assert len(report) == 12 and all(entry.replaced for entry in report) and not report.dry_run
    assert all(model.get_submodule(entry.name).__class__ is FAMILIES[entry.type] for entry in report)
    assert repr(model) == told and all(module.training is training for module in model.modules())
    now = model.state_dict()
    assert list(now) == list(state) and now._metadata == state._metadata
    assert all(held[name] is parameter for name, parameter in model.named_parameters())
    with forbid_aten():
        after = results(copy.deepcopy(model), x)
    for one, other in zip(after, before):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert report.undo() == 12 and classes(model) == kinds
    for one, other in zip(results(model, x), before):
        assert torch.equal(one, other)
    assert report.undo() == 0


def test_dry_run_reports_the_same_and_changes_nothing() -> None:
    model, _ = everything()
    kinds, dictionaries = classes(model), [dict(vars(module)) for module in model.modules()]
    dry = gpuconv.replace_modules(model, dry_run=True)
    assert classes(model) == kinds and [vars(module) for module in model.modules()] == dictionaries
    assert dry.undo() == 0 and dry.dry_run
    done = gpuconv.replace_modules(model)
    assert list(dry) == list(done)
    assert str(dry).splitlines()[1:] == str(done).splitlines()[1:]
    assert str(dry).startswith("would replace 12 of 12 modules") and str(done).startswith("replaced 12 of 12 modules")
    again = gpuconv.replace_modules(model)
    assert [(entry.replaced, entry.reason) for entry in again] == [(False, "already one of gpuconv.nn")] * 12
    assert again.undo() == 0 and isinstance(model.conv, gpuconv.nn.Conv2d)


def test_training_steps_survive_replacement_and_undo() -> None:
    (model, x), (theirs, _) = everything(), everything()
    optimizer, reference = (torch.optim.Adam(m.parameters(), lr=0.01) for m in (model, theirs))
    report = None
    for step in range(6):
        if step == 2:
            report = gpuconv.replace_modules(model)
        if step == 4:
            assert report is not None and report.undo() == 12
        for network, optimiser in ((model, optimizer), (theirs, reference)):
            optimiser.zero_grad()
            network(x).square().sum().backward()
            optimiser.step()
    for (name, one), other in zip(model.state_dict().items(), theirs.state_dict().values()):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4, msg=name)


def test_the_model_itself() -> None:
    layer, x = nn.Conv2d(2, 3, 3), torch.randn(1, 2, 5, 5)
    expected = layer(x)
    report = gpuconv.replace_modules(layer)
    assert type(layer) is gpuconv.nn.Conv2d and [entry.name for entry in report] == [""]
    assert "(the model)  Conv2d  yes" in str(report)
    torch.testing.assert_close(layer(x), expected)
    layer.activation = "relu"  # what is beyond torch can be had from now on
    torch.testing.assert_close(layer(x), expected.relu())
    assert str(gpuconv.replace_modules(nn.ReLU())) == "replaced 0 of 0 modules"


PAIRS = ["adaptive.0", "adaptive.1", "averages.0", "averages.2"]
WHERE: dict[str, tuple[Any, list[str]]] = {
    "predicate": (lambda name, module: name.startswith("a") and module.training, PAIRS),
    "name": (["conv"], ["conv"]),
    "one name": ("averages", ["averages.0", "averages.2"]),
    "class": (nn.Conv1d, ["line"]),
    "base class": ([nn.modules.conv._ConvNd, "pool"], ["conv", "line", "pool", "up"]),
    "all": ([""], [*PAIRS, "columns", "conv", "image", "line", "pool", "samples", "unpool", "up"]),
    "nothing": ([], []),
}


@pytest.mark.parametrize("case", WHERE)
def test_where(case: str) -> None:
    where, expected = WHERE[case]
    model, _ = everything()
    report = gpuconv.replace_modules(model, where=where)
    assert sorted(entry.name for entry in report if entry.replaced) == expected
    assert {entry.reason for entry in report if not entry.replaced} <= {"not chosen by where"}


def test_arguments_are_checked() -> None:
    model, _ = everything()
    for wrong in ([3], 3, [nn.Conv2d(1, 1, 1)]):
        with pytest.raises(TypeError, match="replace_modules: where must be a function, or names and classes"):
            gpuconv.replace_modules(model, where=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"where must be a name in model\.named_modules\(\), but got 'convv'"):
        gpuconv.replace_modules(model, where=["convv"])
    for wrong in (lambda x: x, {"a": nn.Conv2d(1, 1, 1)}, nn.Conv2d):
        with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module"):
            gpuconv.replace_modules(wrong)
    exported = torch.export.export(nn.Sequential(nn.Conv1d(1, 1, 1)), (torch.ones(1, 1, 3),))
    with pytest.raises(TypeError, match="but got 'ExportedProgram'"):
        gpuconv.replace_modules(exported)

    def fails(name: str, module: nn.Module) -> bool:
        if name == "up":
            raise KeyError(name)
        return True

    kinds = classes(model)
    with pytest.raises(KeyError):
        gpuconv.replace_modules(model, where=fails)
    assert classes(model) == kinds  # all or nothing


def test_shared_modules_stay_one() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = self.second = nn.Conv1d(2, 2, 3, padding=1)
            self.held, self.block = [self.first], nn.Sequential(self.first, nn.ReLU())
            self.tied = nn.Conv1d(2, 2, 3, padding=1)
            self.tied.weight = self.first.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.tied(self.block(self.held[0](self.second(self.first(x)))))

    model, x = Twice(), torch.randn(1, 2, 6)
    before = results(model, x)
    report = gpuconv.replace_modules(model, where=["second"])
    assert [(e.name, e.also, e.replaced) for e in report] == [
        ("first", ("second", "block.0"), True),
        ("tied", (), False),
    ]
    assert report.undo() == 1
    for name in ("first", "second", "block.0"):  # any of its names will do
        report = gpuconv.replace_modules(model, where=lambda known, module, name=name: known == name, dry_run=True)
        assert [entry.replaced for entry in report] == [True, False]
    gpuconv.replace_modules(model)
    assert model.first is model.second is model.held[0] is model.block[0] and type(model.first) is gpuconv.nn.Conv1d
    assert model.tied.weight is model.first.weight and len(list(model.parameters())) == 3
    for one, other in zip(results(model, x), before):
        torch.testing.assert_close(one, other)


def test_a_module_inside_itself_ends() -> None:
    model = nn.Sequential(nn.Conv1d(1, 1, 1))
    model[0].add_module("parent", model)
    assert [entry.name for entry in gpuconv.replace_modules(model)] == ["0"]


def test_hooks_stay_and_see_the_same_module() -> None:
    layer, seen = nn.Conv2d(2, 3, 3), []
    layer.register_forward_pre_hook(lambda m, args: seen.append(("before", m)))
    layer.register_forward_hook(lambda m, args, y: y * 2)
    layer.register_full_backward_hook(lambda m, dx, dy: seen.append(("backward", m)))
    layer.register_state_dict_post_hook(lambda m, state, prefix, local: seen.append(("state", m)))
    layer.register_load_state_dict_post_hook(lambda m, keys: seen.append(("loaded", m)))
    x = torch.randn(1, 2, 5, 5, requires_grad=True)
    expected = layer(x)
    seen.clear()
    gpuconv.replace_modules(layer)
    torch.testing.assert_close(layer(x), expected)
    layer(x).sum().backward()
    layer.load_state_dict(layer.state_dict())
    assert [what for what, _ in seen] == ["before", "before", "backward", "state", "loaded"]
    assert all(module is layer for _, module in seen)


NORMS: dict[str, Callable[[nn.Module], Any]] = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "old weight_norm": nn.utils.weight_norm,
    "old spectral_norm": nn.utils.spectral_norm,
    "pruned": lambda layer: prune.random_unstructured(layer, "weight", 0.5),
}


class Named(nn.Conv1d):
    """A subclass with no methods of its own but the constructor."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1)
        self.note = "kept"


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
@pytest.mark.parametrize("make", [lambda: nn.Conv1d(4, 4, 3, padding=1), lambda: Named(4)], ids=["exact", "subclass"])
@pytest.mark.parametrize("norm", NORMS)
def test_parametrized_and_normed_modules(norm: str, make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    layer = make().double()
    plain = type(layer)
    NORMS[norm](layer)
    layer.eval()
    x, kind, state = torch.randn(2, 4, 7, dtype=torch.float64), type(layer), layer.state_dict()
    before = results(layer, x)
    copies = parametrize.is_parametrized(layer)  # torch cannot copy the others once they were called
    copied = copy.deepcopy(layer) if copies else None
    report = gpuconv.replace_modules(layer)
    assert [entry.replaced for entry in report] == [True]
    assert isinstance(layer, gpuconv.nn.Conv1d) and isinstance(layer, plain)
    assert copied is None or (type(copied) is kind and not isinstance(copied, gpuconv.nn.Conv1d))
    assert layer.state_dict().keys() == state.keys() and layer.state_dict()._metadata == state._metadata
    for model in (layer, copy.deepcopy(layer) if copies else layer):
        for one, other in zip(results(model, x), before):
            torch.testing.assert_close(one, other)
    assert report.undo() == 1
    assert type(layer).__name__ == kind.__name__ and not isinstance(layer, gpuconv.nn.Conv1d)
    for one, other in zip(results(layer, x), before):
        assert torch.equal(one, other)


@pytest.mark.parametrize("make", [lambda: nn.Conv1d(4, 4, 3), lambda: Named(4)], ids=["exact", "subclass"])
def test_parametrizations_come_and_go(make: Callable[[], nn.Module]) -> None:
    layer = make()
    plain = type(layer)
    parametrizations.weight_norm(layer)
    report = gpuconv.replace_modules(layer)
    parametrize.register_parametrization(layer, "bias", nn.Tanh())
    parametrize.remove_parametrizations(layer, "weight")
    assert parametrize.is_parametrized(layer, "bias") and isinstance(layer, gpuconv.nn.Conv1d)
    x = torch.randn(1, 4, 6)
    expected = nn.functional.conv1d(x, layer.weight, layer.bias, padding=layer.padding)
    torch.testing.assert_close(layer(x), expected)
    copied = copy.deepcopy(layer)
    assert report.undo() == 1 and not isinstance(layer, gpuconv.nn.Conv1d)
    torch.testing.assert_close(layer(x), expected)
    parametrize.remove_parametrizations(layer, "bias")
    assert type(layer) is plain
    parametrize.remove_parametrizations(copied, "bias")
    assert isinstance(copied, gpuconv.nn.Conv1d) and isinstance(copied, plain)
    torch.testing.assert_close(copied(x), expected)


def test_parametrized_after_replacement() -> None:
    layer = nn.Conv1d(4, 4, 3)
    report = gpuconv.replace_modules(layer)
    parametrizations.weight_norm(layer)
    assert report.undo() == 1 and parametrize.type_before_parametrizations(layer) is nn.Conv1d
    parametrize.remove_parametrizations(layer, "weight")
    assert type(layer) is nn.Conv1d


def saved(model: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


def pickled(model: nn.Module, protocol: int | None = None) -> Any:
    return pickle.loads(pickle.dumps(model, protocol))


def test_copies_and_pickles() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv1d(4, 4, 3), Named(4), nn.MaxPool1d(2)), torch.randn(1, 4, 9)
    before = model(x)
    report = gpuconv.replace_modules(model)
    for made in (copy.deepcopy, copy.copy, pickled, lambda model: pickled(model, 0), saved):
        again = made(model)
        assert [type(module) for module in again] == [type(module) for module in model]
        assert again[1].note == "kept"
        torch.testing.assert_close(again(x), before)
    copied = copy.deepcopy(model)
    report.undo()
    assert type(model[1]) is Named and type(copied[0]) is gpuconv.nn.Conv1d  # a copy is no part of the report
    torch.testing.assert_close(copied(x), before)


def test_meta_models_are_replaced_before_they_have_values() -> None:
    with torch.device("meta"):
        model = Everything()
        report = gpuconv.replace_modules(model)
        assert sum(entry.replaced for entry in report) == 12
        model.samples._random_samples = None
        assert model(torch.empty(2, 2, 16, 16)).shape == (2, 3, 3)
    reference, x = everything()
    model = model.to_empty(device="cpu")
    model.samples._random_samples = torch.empty(2, 2, 2)
    model.load_state_dict(reference.state_dict())
    torch.testing.assert_close(model(x), reference(x), rtol=1e-4, atol=1e-4)
    with torch.device("meta"):  # arguments say where a result is
        torch.testing.assert_close(model(x), reference(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "context", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)]
)
def test_contexts(context: Callable[[], Any]) -> None:
    model, x = everything()
    with context():
        before = model.up(model.averages[0](model.conv(x)))
        gpuconv.replace_modules(model)
        after = model.up(model.averages[0](model.conv(x)))
    assert after.dtype == before.dtype and after.requires_grad == before.requires_grad
    torch.testing.assert_close(after, before, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.complex64], ids=str)
def test_other_types(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Conv1d(2, 4, 3, dtype=dtype), nn.ConvTranspose1d(4, 2, 3, dtype=dtype))
    x = torch.randn(1, 2, 7, dtype=dtype)
    expected = model(x)
    assert all(entry.replaced for entry in gpuconv.replace_modules(model))
    # What lies between the layers is rounded to `dtype` too: sums that cancel keep the error of their terms.
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(model(x), expected, rtol=4 * eps, atol=4 * eps * float(expected.detach().abs().max()))


def test_averages_of_models() -> None:
    """What copies a model while it trains copies our modules."""
    model, x = everything()
    gpuconv.replace_modules(model)
    average = torch.optim.swa_utils.AveragedModel(model)
    average.update_parameters(model)
    assert type(average.module.conv) is gpuconv.nn.Conv2d
    torch.testing.assert_close(average(x), model(x))
