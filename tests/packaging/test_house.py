"""The house: every room a folder, one way down, no circle; and each wall is noticed when something breaks it."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from house import circles, imports, rooms

from scripts.lanes import stage

pytestmark = pytest.mark.packaging

REPO = Path(__file__).resolve().parents[2]
FILES = {"__init__", "__main__", "arrays", "config", "errors", "numerics", "testing", "py"}


def test_nothing_imports_in_a_circle():
    graph = imports(REPO)
    assert len(graph) > 100
    assert circles(graph) == []
    assert circles(rooms(graph)) == []
    assert "bench.layers" in graph["gpuconv.cli.bench"]  # by a name that is put together


PLANTED = {
    "at the top": ("gpuconv/problem/conv.py", "from ..normalize import conv\n"),
    "inside a function": ("gpuconv/dispatch/selection.py", "def planted():\n    from ..tuning import search\n"),
    "by import_module": ("gpuconv/costs/model.py", 'import_module("..dispatch", __package__)\n'),
    "across rooms": ("gpuconv/launcher/layout.py", "from ..backends.triton import common\n"),
    "in the benchmark": ("bench/timing.py", "from . import run\n"),
    "into the benchmark and back": ("bench/layers.py", "from gpuconv.cli import bench\n"),
}


@pytest.mark.parametrize("case", PLANTED)
def test_a_planted_circle_is_found(case, tmp_path):
    file, text = PLANTED[case]
    for folder in ("gpuconv", "kernels", "bench"):
        shutil.copytree(REPO / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "results"))
    path = tmp_path / file
    path.write_text(path.read_text() + text)
    graph = imports(tmp_path)
    name = file.removesuffix(".py").replace("/", ".")
    assert any(name in circle for circle in circles(graph))


def test_every_file_is_in_a_room():
    files = {path.stem for path in (REPO / "gpuconv").iterdir() if path.is_file()}
    assert files <= FILES


def test_no_name_repeats_that_of_its_room():
    paths = [
        path
        for folder in ("gpuconv", "kernels")
        for path in (REPO / folder).rglob("*")
        if "__pycache__" not in path.parts
    ]
    repeated = [path for path in paths if path.stem.startswith((f"{path.parent.name}_", f"_{path.parent.name}"))]
    assert repeated == []


def test_every_room_says_what_it_is_for():
    silent = []
    for path in (REPO / "gpuconv").rglob("__init__.py"):
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        if not first.startswith('"""') or len(first) < 20:
            silent.append(path)
    assert silent == []


needs_linter = pytest.mark.skipif(importlib.util.find_spec("importlinter") is None, reason="import-linter is missing")

BREACHES = {
    "way-down": ("gpuconv/normalize/common.py", "from ..dispatch import run\n"),
    "way-down, in a function": ("gpuconv/costs/files.py", "def planted():\n    from ..backends import base\n"),
    "way-down, a room without a floor": ("gpuconv/attic/__init__.py", '"""A room that nobody placed."""\n'),
    "kernels": ("gpuconv/kernels/tl/common.py", "from ...config import logger\n"),
    "shapes": ("gpuconv/shapes/conv.py", "from ..errors import NoSolverError\n"),
    "backends": ("gpuconv/backends/numpy/common.py", "from ..triton import units\n"),
}


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    tool = Path(sys.executable).with_name("lint-imports")
    command = [str(tool), "--config", str(REPO / "pyproject.toml"), "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@needs_linter
def test_the_walls_stand(tmp_path):
    done = lint(stage(tmp_path))
    assert done.returncode == 0, done.stdout


@needs_linter
@pytest.mark.parametrize("case", BREACHES)
def test_a_breach_is_noticed(case, tmp_path):
    file, text = BREACHES[case]
    path = stage(tmp_path) / file
    path.parent.mkdir(exist_ok=True)
    path.write_text((path.read_text() if path.exists() else "") + text)
    done = lint(tmp_path)
    assert done.returncode == 1, done.stdout
    assert " BROKEN" in done.stdout
