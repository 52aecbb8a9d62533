"""The blocks of ``docs/tutorial/cupy.md``, as they stand there, with the host in CuPy's part."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import fake_cupy

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tutorial" / "cupy.md"


def test_the_page_runs_as_it_stands(monkeypatch):
    module: Any = sys.modules["cupy"]
    monkeypatch.setattr(module, "asarray", lambda array: fake_cupy.guarded(array, array.dtype.name), raising=False)
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    scope: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), scope)
    assert isinstance(scope["y"], fake_cupy.ndarray)
    assert scope["dx"].shape == (2, 8, 9, 9)
    assert scope["dw"].shape == (8, 8, 3, 3)
