"""``gpuconv summarize``: what it prints, as text and as JSON, what it plots, and its errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("typer", reason="the command line needs typer")
pytest.importorskip("rich", reason="the command line needs rich")

from test_summary import resnet
from typer.testing import CliRunner

from gpuconv.cli.main import app
from gpuconv.summary import summarize


class _Talks(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        print("what a model prints")
        assert x.dim() == 2, "wants a matrix"
        return x


def talks() -> torch.nn.Module:
    print("what a factory prints")
    return _Talks()


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["summarize", *arguments])


def test_command_line(tmp_path: Path) -> None:
    """As text, as JSON, built on meta or not, and with a plot."""
    done = run("torch.nn:Identity", "--input", "1,3,8,8")
    assert done.exit_code == 0 and done.stdout.startswith("Identity of 1x3x8x8, float32\n")
    target = "test_summary:resnet"
    found = json.loads(
        run(target, "--input", "1,3,64,64", "--gpu", "h200", "--dtype", "bfloat16", "--meta", "--json").stdout
    )
    assert found["gpu"] == "NVIDIA H200" and found["dtype"] == "bfloat16" and found["totals"]["parameters"] > 23e6
    done = run(target, "--input", "1x3x64x64", "--meta", "--channels-last", "--plot", str(tmp_path / "field.png"))
    assert done.exit_code == 0, done.output
    assert (tmp_path / "field.png").stat().st_size > 5000
    assert done.stdout == str(summarize(resnet(), (1, 3, 64, 64))) + "\n"


def test_what_a_model_prints_is_no_part_of_the_answer() -> None:
    done = run("test_cli_summarize:talks", "--input", "2,3", "--json")
    assert done.exit_code == 0 and json.loads(done.stdout)["totals"]["flops"] == 0
    assert "what a factory prints" in done.stderr and "what a model prints" in done.stderr
    done = run("test_cli_summarize:talks", "--input", "2,3,4")
    assert done.exit_code == 2 and done.stdout == "" and "wants a matrix" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["torch.nn", "--input", "1"], "MODEL must be package.module:function, but got 'torch.nn'"),
        (["torch.no:net", "--input", "1"], "No module named 'torch.no'"),
        (["torch.nn:Nothing", "--input", "1"], "torch.nn has no Nothing"),
        (["torch.nn:ReLU", "--input", "a"], "--input must be a shape such as 8,64,56,56, but got 'a'"),
        (["torch.nn:ReLU", "--input", "1:integer"], "behind the colon must be a type such as int64, but got 'integer'"),
        (["torch.nn:ReLU", "--input", "1", "--gpu", "rtx"], "gpu must be one of a100, b200, h100, h200"),
        (["test_summary:resnet", "--meta", "--input", "1,4,64,64"], "summarize: in embedder"),
    ],
)
def test_command_line_errors(words: list[str], message: str) -> None:
    done = run(*words)
    assert done.exit_code == 2 and done.stdout == "" and message in done.stderr and "Traceback" not in done.stderr
