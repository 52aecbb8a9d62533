"""Every script of ``examples/`` runs, and checks itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((REPO / "examples").glob("*.py"))
QUICK = {"compare": ["--quick"], "deformable": ["--steps", "60"]}


def test_every_script_is_listed():
    text = (REPO / "examples" / "README.md").read_text(encoding="utf-8")
    assert len(SCRIPTS) >= 6
    assert [path.name for path in SCRIPTS if f"[{path.name}]({path.name})" not in text] == []


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_script(path, tmp_path):
    env = {**os.environ, "PYTHONPATH": str(REPO)}
    command = [sys.executable, str(path), *QUICK.get(path.stem, [])]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip()


def test_the_pipeline_writes_its_picture(tmp_path):
    command = [sys.executable, str(REPO / "examples" / "image_pipeline.py"), "--output", str(tmp_path / "strip.ppm")]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": str(REPO)}, check=True, capture_output=True, timeout=300)
    assert (tmp_path / "strip.ppm").read_bytes().startswith(b"P6 800 120 255\n")
