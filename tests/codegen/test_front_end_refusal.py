"""A mistake of shapes that the interpreter does not see fails the gate: planted in a copy of the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import triton

pytestmark = pytest.mark.codegen

REPO = Path(__file__).parents[2]
COPIED = ("gpuconv", "kernels", "bench", "tests", "pyproject.toml")
KERNEL = "kernels/tl/pool/sum.py"
RIGHT = "_s, reads_s = tap_of(i_w, i_q, pad_w, S, STRIDE_W, DILATION_W)\n                    reads = reads & reads_s"
WRONG = RIGHT.replace("_s", "_r")  # what has a value for each row gets one for each lane, in the innermost loop
CASE = "tests/interpret/test_pool_windows.py::test_matches_reference[avg-2d-contiguous-float64-bwd general stride 6]"


def lane(copy: Path, tests: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run tests of the copy as their lane does."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "TRITON_INTERPRET"))}
    given = {
        "PYTHONPATH": str(copy),
        "GPUCONV_LAUNCHES": str(copy / "launches"),
        "GPUCONV_TEST_FULL": "1",
        "GPUCONV_TEST_BOTH": "1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tests]
    return subprocess.run(command, cwd=copy, env={**clean, **given, **env}, capture_output=True, text=True, check=False)


def test_a_planted_mistake_of_shapes_is_refused(tmp_path: Path, full: bool) -> None:
    if not full and not triton.__version__.startswith("3.6."):
        pytest.skip("the gate plants it under the oldest Triton alone")
    for name in COPIED:
        copy = shutil.copytree if (REPO / name).is_dir() else shutil.copy
        copy(REPO / name, tmp_path / name)
    text = (tmp_path / KERNEL).read_text()
    assert text.count(RIGHT) == 1
    (tmp_path / KERNEL).write_text(text.replace(RIGHT, WRONG))

    interpreted = lane(tmp_path, CASE, TRITON_INTERPRET="1")
    assert interpreted.returncode == 0 and "1 passed" in interpreted.stdout, interpreted.stdout

    compiled = lane(tmp_path, "tests/frontend")
    assert compiled.returncode == pytest.ExitCode.TESTS_FAILED, compiled.stdout
    assert "Loop-carried variable" in compiled.stdout and "_pool_sum_bwd_general_kernel" in compiled.stdout
    assert "1, 1 refused" in compiled.stdout, compiled.stdout
