"""The solver of ``docs/write-a-solver.md``: extracted from the page, registered from outside, forced and compared."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import gpuconv
from gpuconv.solvers import unregister_solver

pytestmark = pytest.mark.interpret

PAGE = Path(__file__).resolve().parents[2] / "docs" / "write-a-solver.md"
ID = "triton.conv.fprop.pointwise"
FILES = ("pointwise.py", "pointwise_solver.py", "register.py", "check.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Iterator[Path]:
    """Write the page's blocks to files, which can be imported meanwhile."""
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) == len(FILES)
    found: Path = tmp_path_factory.mktemp("guide")
    for name, text in zip(FILES, blocks, strict=True):
        (found / name).write_text(text, encoding="utf-8")
    sys.path.insert(0, str(found))
    yield found
    sys.path.remove(str(found))
    for name in FILES:
        sys.modules.pop(name.removesuffix(".py"), None)


@pytest.fixture
def registered(folder: Path) -> Iterator[Any]:
    solver = importlib.import_module("pointwise_solver").PointwiseFprop()
    yield gpuconv.register_solver(solver)
    unregister_solver(ID)


def test_the_page_runs_as_it_stands(folder):
    scope: dict[str, Any] = {}
    try:
        for name in ("register.py", "check.py"):
            exec(compile((folder / name).read_text(encoding="utf-8"), name, "exec"), scope)
        x = scope["x"]
        assert x.shape == (2, 70, 9, 11)
    finally:
        unregister_solver(ID)
    with pytest.raises(gpuconv.NoSolverError):
        gpuconv.conv2d(scope["x"], scope["w"], backend=ID)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
def test_every_layout_and_type(registered, dtype, layout):
    torch.manual_seed(0)
    x = torch.randint(-3, 4, (2, 40, 7, 20)).to(dtype)
    w, bias = torch.randint(-3, 4, (70, 40, 1, 1)).to(dtype), torch.randint(-3, 4, (140,)).to(dtype)[::2]
    if layout == "channels_last":
        x = x.to(memory_format=torch.channels_last)
    elif layout == "sliced":
        x = x[..., 1::2]
    wanted = gpuconv.conv2d(x, w, bias, backend="numpy")
    with gpuconv.dispatch.record_plans() as plans:
        for _ in range(3):
            found = gpuconv.conv2d(x, w, bias, backend=ID)
            assert torch.equal(found, wanted)
            assert found.stride() == wanted.stride()
    assert {plan.solver for plan in plans} == {registered}


def test_explain_lists_it_and_its_reasons(registered):
    x, w = torch.zeros(1, 16, 5, 5), torch.zeros(8, 16, 1, 1)
    found = gpuconv.explain(gpuconv.conv2d, x, w, backend="triton")
    assert found.solver == ID
    assert f"{ID}" in str(found)
    refused = {
        candidate.solver.id: candidate.reason
        for candidate in gpuconv.explain(gpuconv.conv2d, x, torch.zeros(8, 16, 3, 3), backend="triton").candidates
    }
    assert refused[ID] == "needs a 1x1 kernel of two axes, the problem has (3, 3)"
    with pytest.raises(gpuconv.NoSolverError, match="stride 1, no padding and one group"):
        gpuconv.conv2d(x, w, stride=2, backend=ID)


def test_what_cannot_be_registered(registered):
    with pytest.raises(ValueError, match=f"there is a solver '{re.escape(ID)}' already"):
        gpuconv.register_solver(registered)
    with pytest.raises(TypeError, match=r"must be a gpuconv\.solvers\.Solver"):
        gpuconv.register_solver(type(registered))
    for id in ("mps.conv.fprop", "triton", "triton."):
        other = type("Other", (type(registered),), {"id": id})()
        with pytest.raises(ValueError, match=r"id must be one of triton\."):
            gpuconv.register_solver(other)
    for id in (None, 3):
        other = type("Other", (type(registered),), {"id": id})()
        with pytest.raises(TypeError, match=f"id of the solver must be a string, but got {id}"):
            gpuconv.register_solver(other)
        with pytest.raises(TypeError, match=f"id must be a string, but got {id}"):
            unregister_solver(id)
    with pytest.raises(ValueError, match=r"no solver 'triton\.conv\.none' was registered"):
        unregister_solver("triton.conv.none")


def test_kept_plans_are_forgotten(folder):
    """A call that ran before goes to a solver that is registered later, and back when it is taken out."""
    x, w = torch.zeros(1, 16, 5, 5), torch.zeros(8, 16, 1, 1)

    def solver() -> str:
        with gpuconv.dispatch.record_plans() as plans:
            gpuconv.conv2d(x, w, backend="triton")
        return plans[0].solver.id

    before = solver()
    gpuconv.register_solver(importlib.import_module("pointwise_solver").PointwiseFprop())
    assert solver() == ID
    unregister_solver(ID)
    assert solver() == before != ID
