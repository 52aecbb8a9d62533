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
    """In its first line, with who enters it."""
    silent = []
    for folder in ("gpuconv", "kernels", "bench"):
        for path in (REPO / folder).rglob("__init__.py"):
            first = path.read_text(encoding="utf-8").partition("\n")[0]
            if not first.startswith('"""') or "entered by" not in first:
                silent.append(path)
    assert silent == []


BEHIND_DOORS = {
    # imports torch, which nobody waits for who has no tensors
    ("gpuconv.backends.triton.common", "gpuconv.launcher.record"),
    ("gpuconv.backends.triton.launch", "gpuconv.launcher.record"),
    ("gpuconv.export.table", "gpuconv.ops.conv"),
    ("gpuconv.nn", "gpuconv.ops.conv"),
    ("gpuconv.ops.tiers", "gpuconv.launcher.native"),
    ("gpuconv.summary.steps", "gpuconv.ops.conv"),
    ("gpuconv.summary.steps", "gpuconv.ops.conv_library"),
    ("gpuconv.summary.steps", "gpuconv.ops.pool_fake"),
    ("gpuconv.summary.steps", "gpuconv.ops.pool_library"),
    # a module by its name, whose functions are many, or which a test stands in for
    ("gpuconv.backends.triton.tuned", "gpuconv.costs.constants"),
    ("gpuconv.backends.triton.tuned", "gpuconv.costs.measured"),
    ("gpuconv.backends.triton.tuned", "gpuconv.costs.model"),
    ("gpuconv.backends.triton.tuned", "gpuconv.costs.work"),
    ("gpuconv.cli.tune", "gpuconv.costs.measured"),
    ("gpuconv.dispatch.deform", "gpuconv.normalize.deform"),
    ("gpuconv.dispatch.plan_cache", "gpuconv.normalize.conv"),
    ("gpuconv.dispatch.scaled", "gpuconv.normalize.scaled"),
    ("gpuconv.dispatch.separable", "gpuconv.normalize.conv"),
    ("gpuconv.ops.tiers", "gpuconv.dispatch.plan_cache"),
    ("gpuconv.tuning.search", "gpuconv.costs.measured"),
    # the command line, imported when somebody calls it; the package's own names
    ("gpuconv", "gpuconv.summary.summarize"),
    ("gpuconv.__main__", "gpuconv.cli.demo"),
    ("gpuconv.__main__", "gpuconv.cli.info"),
    ("gpuconv.__main__", "gpuconv.cli.main"),
    ("gpuconv.cli.summarize", "gpuconv.summary.summarize"),
    # what is compiled for packs is asked of the backend that would launch it, and of tuning, whose door is for users
    ("gpuconv.cli.demo_referee", "gpuconv.backends.numpy.teaching"),
    ("gpuconv.packing.build", "gpuconv.backends.cupy.backend"),
    ("gpuconv.packing.build", "gpuconv.backends.cupy.common"),
    ("gpuconv.packing.compile", "gpuconv.backends.triton.gluon"),
    ("gpuconv.packing.nvrtc", "gpuconv.backends.cupy.common"),
    ("gpuconv.packing.plans", "gpuconv.backends.triton.backend"),
    ("gpuconv.packing.plans", "gpuconv.backends.triton.dry"),
    ("gpuconv.packing.plans", "gpuconv.tuning.search"),
    ("gpuconv.tuning.search", "gpuconv.backends.triton.tuned"),
}
"""Who enters a room of another floor by another way than its ``__init__``, and why."""


def test_rooms_are_entered_by_the_door():
    """What a room hands on stands in its ``__init__``; who takes it from a file behind that is known by name."""
    found = set()
    for name, targets in imports(REPO, ("gpuconv",)).items():
        for target in targets:
            door = ".".join(target.split(".")[:2])
            if target != door and name.split(".")[:2] != door.split("."):
                found.add((name, target))
    assert found == BEHIND_DOORS


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
