"""``torch.export`` of blocks made of gpuconv: one node per convolution, reloaded in a fresh process."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from models import BLOCKS, build

import gpuconv.nn

REPO = Path(__file__).resolve().parents[2]
DIM = torch.export.Dim.DYNAMIC


def exported(name: str, strict: bool, dynamic: bool, **context: Any) -> tuple[torch.nn.Module, Any]:
    model = build(name, gpuconv.nn).eval()
    x = torch.randn(2, 4, 10, 12)
    shapes = ({0: DIM, 2: DIM, 3: DIM},) if dynamic else None
    return model, torch.export.export(model, (x,), strict=strict, dynamic_shapes=shapes)


def convolutions(program: Any) -> list[str]:
    return [str(node.target) for node in program.graph.nodes if "gpuconv" in str(node.target)]


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
@pytest.mark.parametrize("name", BLOCKS)
def test_export(name: str, strict: bool, dynamic: bool) -> None:
    """Equal results and gradients, also of sizes that the trace has not seen."""
    model, program = exported(name, strict, dynamic)
    kinds = [target.split(".")[1] for target in convolutions(program)]
    assert kinds == {"resnet": ["fprop"] * 3, "unet": ["fprop", "dgrad", "fprop"]}[name]
    module = program.module()
    for shape in ((2, 4, 10, 12), (3, 4, 15, 8), (1, 4, 9, 31))[: 1 + 2 * dynamic]:
        x, again = torch.randn(shape).requires_grad_(), None
        again = x.detach().clone().requires_grad_()
        ours, theirs = module(x), model(again)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
        ours.square().sum().backward()
        theirs.square().sum().backward()
        torch.testing.assert_close(x.grad, again.grad, rtol=0, atol=0)


def test_epilogue_is_one_node_under_no_grad_and_differentiable_later() -> None:
    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor, w: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
            return gpuconv.conv2d(x, w, scale=scale, activation="silu")

    args = (torch.randn(1, 4, 5, 5), torch.randn(6, 4, 3, 3), torch.randn(6))
    with torch.no_grad():
        program = torch.export.export(Model(), args)
    assert len([node for node in program.graph.nodes if node.op == "call_function"]) == 1
    leaves = [t.requires_grad_() for t in args]
    ours = torch.autograd.grad(program.module()(*leaves).sum(), leaves)
    for one, other in zip(ours, torch.autograd.grad(Model()(*leaves).sum(), leaves)):
        torch.testing.assert_close(one, other)


def test_jit_trace_is_refused() -> None:
    """It would record the result of a call as a constant, without a word."""
    with pytest.raises(NotImplementedError, match="cannot record gpuconv"):
        torch.jit.trace(build("resnet", gpuconv.nn).eval(), (torch.randn(1, 4, 8, 8),))


@pytest.mark.parametrize("name", BLOCKS)
def test_reloaded_in_a_fresh_process(name: str, tmp_path: Path) -> None:
    """The process needs ``import gpuconv.ops.conv``, for the operators, and nothing of the model."""
    model, program = exported(name, False, True)
    x = torch.randn(3, 4, 14, 11)
    torch.export.save(program, tmp_path / "program.pt2")
    torch.save({"x": x, "y": model(x).detach()}, tmp_path / "values.pt")
    code = f"""
import torch
import gpuconv.ops.conv
values = torch.load({str(tmp_path / "values.pt")!r})
module = torch.export.load({str(tmp_path / "program.pt2")!r}).module()
y = module(values["x"].requires_grad_())
torch.testing.assert_close(y, values["y"], rtol=0, atol=0)
y.sum().backward()
print(values["x"].grad.isfinite().all().item())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "True"), done.stderr
