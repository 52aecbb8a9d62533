"""Models whose modules ``gpuconv.replace_modules`` replaced: compiled, exported, traced, and compiled before."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import gpuconv
import gpuconv.nn
from gpuconv.testing import forbid_aten


class Named(nn.Conv2d):
    """A subclass with no methods of its own but the constructor, and with a hook."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1, groups=channels)
        self.register_forward_pre_hook(lambda module, args: (args[0] * 2,))


def network() -> nn.Module:
    torch.manual_seed(0)
    parametrized = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1))
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), Named(4), nn.ReLU(), nn.MaxPool2d(2), parametrized,
        nn.ConvTranspose2d(4, 2, 2, 2), nn.AdaptiveAvgPool2d(3),
    )  # fmt: skip


x = torch.linspace(-1, 1, 2 * 3 * 8 * 6).reshape(2, 3, 8, 6)


def results(model: Any, calls: Any = None) -> list[torch.Tensor]:
    given = x.clone().requires_grad_()
    model.zero_grad()
    y = (calls or model)(given)
    y.square().sum().backward()
    return [y.detach(), given.grad, *(p.grad.clone() for p in model.parameters())]


def assert_close(one: list[torch.Tensor], other: list[torch.Tensor]) -> None:
    for first, second in zip(one, other, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)


class Recorded:
    """A backend of ``torch.compile`` that runs graphs as they are, and knows which functions they call."""

    def __init__(self) -> None:
        self.called: list[str] = []

    def __call__(self, graph: torch.fx.GraphModule, inputs: Any) -> Any:
        functions = [node for node in graph.graph.nodes if node.op in ("call_function", "call_module")]
        self.called += [str(node.target) for node in functions]
        return graph.forward

    def ours(self) -> bool:
        """Tell whether convolutions and pools of the graphs since the last question are all ours."""
        windows = [name for name in self.called if "conv" in name or "pool" in name]
        named = [name for name in self.called if "gpuconv" in name]
        self.called.clear()
        return bool(named) and all("gpuconv" in name for name in windows)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_after_replacement(backend: str) -> None:
    torch._dynamo.reset()
    model = network()
    expected = results(model)
    report = gpuconv.replace_modules(model)
    assert all(entry.replaced for entry in report) and len(report) == 6
    assert_close(results(model, torch.compile(model, backend=backend, fullgraph=True)), expected)


def test_compiled_before_replacement() -> None:
    """What was compiled notices the other class, and the way back."""
    torch._dynamo.reset()
    model, backend = network(), Recorded()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    expected = results(model, compiled)
    assert not backend.ours()
    report = gpuconv.replace_modules(compiled)  # the wrapper has the model inside
    assert {entry.name.partition(".")[0] for entry in report} == {"_orig_mod"}
    assert_close(results(model, compiled), expected)
    assert backend.ours()
    report.undo()
    for one, other in zip(results(model, compiled), expected):
        assert torch.equal(one, other)


def test_compiled_in_place() -> None:
    torch._dynamo.reset()
    model, backend = network(), Recorded()
    expected = results(model)
    model.compile(backend=backend, fullgraph=True)
    results(model)
    assert not backend.ours()
    report = gpuconv.replace_modules(model)
    assert all(entry.replaced for entry in report)
    assert_close(results(model), expected)
    assert backend.ours()


def test_exported() -> None:
    model = network()
    expected = model(x)
    gpuconv.replace_modules(model)
    program = torch.export.export(copy.deepcopy(model), (x,))
    operators = {str(node.target) for node in program.graph.nodes if "gpuconv" in str(node.target)}
    assert {"gpuconv.fprop.default", "gpuconv.dgrad.default"} <= operators
    torch.testing.assert_close(program.module()(x), expected, rtol=1e-4, atol=1e-4)


def test_traced_by_fx() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.ConvTranspose2d(4, 2, 2))
    expected = model(x)
    traced = torch.fx.symbolic_trace(model)
    gpuconv.replace_modules(traced)  # modules of a graph, which calls them by name
    assert type(traced.get_submodule("0")) is gpuconv.nn.Conv2d
    with forbid_aten(), torch.no_grad():
        y = traced(x)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    gpuconv.replace_modules(model)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), expected, rtol=1e-4, atol=1e-4)


def test_functional_calls() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.ConvTranspose2d(4, 2, 2))
    expected = model(x)
    gpuconv.replace_modules(model)
    state = {name: tensor * 1 for name, tensor in model.state_dict().items()}
    torch.testing.assert_close(torch.func.functional_call(model, state, (x,)), expected, rtol=1e-4, atol=1e-4)
    gradients = torch.func.grad(lambda state: torch.func.functional_call(model, state, (x,)).square().sum())(state)
    expected.square().sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-4)
    ensemble = torch.func.stack_module_state([copy.deepcopy(model) for _ in range(2)])
    run = torch.func.vmap(lambda *states: torch.func.functional_call(model, states, (x,)))
    torch.testing.assert_close(run(*ensemble)[1], expected, rtol=1e-4, atol=1e-4)
    checkpointed = torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False)
    torch.testing.assert_close(checkpointed, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_torchscript_wants_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    report = gpuconv.replace_modules(model)
    with pytest.raises(Exception, match=r"jit\.trace cannot record gpuconv"):
        torch.jit.trace(model, x)
    with pytest.raises(Exception):  # noqa: B017 - torch has several
        torch.jit.script(model)
    report.undo()
    torch.testing.assert_close(torch.jit.script(model)(x), model(x))
