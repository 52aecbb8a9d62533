"""The README: its blocks run, its links lead somewhere, and its first screen says what a newcomer asks."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

REPO = Path(__file__).resolve().parents[2]
TEXT = (REPO / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def scope() -> dict[str, Any]:
    """Return what blocks may use without saying so: a model, images, and the names of the first block."""
    import numpy as np
    import torch

    import gpuconv

    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, 2, 1), torch.nn.ReLU(), torch.nn.MaxPool2d(2))
    images = torch.randn(1, 3, 32, 32)
    return {"np": np, "torch": torch, "gpuconv": gpuconv, "model": model, "images": images, "x": images}


def python_blocks() -> list[str]:
    return [text for kind, text in BLOCKS if kind == "python" and ">>>" not in text]


@pytest.mark.parametrize("number", range(len(python_blocks())))
def test_block(number, tmp_path, monkeypatch):
    block = python_blocks()[number]
    if "import cupy" in block:
        pytest.skip("not run: needs CuPy; docs/tutorial/cupy.md has a page that runs behind a shim")
    if "distribute_tensor" in block:
        pytest.skip("not run: needs a mesh of several processes, which tests/distributed starts")
    if "onnx_translations" in block:
        pytest.importorskip("onnxscript", reason="not run: torch.onnx.export needs onnxscript")
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), scope())


def test_links():
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", TEXT):
        path, _, place = link.partition("#")
        if "://" in link:
            continue
        if path and not (REPO / path).exists():
            broken.append(link)
        headings = [re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower()).replace(" ", "-") for line in TEXT.splitlines()]
        if not path and place not in headings:
            broken.append(link)
    assert broken == []


def test_the_first_screen():
    """Forty lines: what it is, when to leave torch and when not, three commands, a picture, where the pages are."""
    screen = "\n".join(TEXT.splitlines()[:40])
    for wanted in (
        "PyTorch, CuPy and NumPy",
        "Leave `F.conv2d`",
        "**Stay**",
        "replace_modules",
        "make docs",
        "![",
        "tutorial",
    ):
        assert wanted in screen
    commands = re.findall(r"^```sh\n(.*?)^```$", screen, re.MULTILINE | re.DOTALL)[0].strip().splitlines()
    assert len(commands) == 3
    assert os.path.isfile(REPO / re.findall(r"!\[[^\]]*\]\(([^)]*)\)", screen)[0])
