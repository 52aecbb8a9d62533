"""The pages as they were built: ``scripts/lanes.py docs`` says where."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def site() -> Path:
    folder = Path(os.environ.get("GPUCONV_DOCS", REPO / "build" / "docs"))
    if not (folder / "objects.inv").is_file():
        pytest.skip("the pages are not built: make docs")
    return folder
