"""`import gpuconv` loads no framework and does not initialise CUDA. Each test looks from a new process."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.packaging

REPO = Path(__file__).resolve().parents[2]

needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")


def python(code: str) -> str:
    """Run code against the checkout, with the frameworks of this environment within reach."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("GPUCONV_")}
    env |= {"PYTHONPATH": str(REPO)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=REPO, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_loads_no_framework():
    found = python(
        "import sys, gpuconv; print(sorted({'torch', 'triton', 'cupy', 'typer', 'rich'} & set(sys.modules)))"
    )
    assert found == "[]"


def test_numpy_call_loads_no_framework():
    code = """
import sys
import numpy as np
import gpuconv
gpuconv.conv1d(np.ones((1, 1, 4), np.float32), np.ones((1, 1, 2), np.float32))
print(sorted({"torch", "triton", "cupy"} & set(sys.modules)))
"""
    assert python(code) == "[]"


@needs_torch
@pytest.mark.parametrize("order", ["import torch, gpuconv", "import gpuconv, torch"])
def test_import_does_not_initialise_cuda(order):
    assert python(f"{order}; print(torch.cuda.is_initialized())") == "False"


def test_every_module_of_the_base_install_imports_without_a_framework():
    # Modules that are about an optional package may import it; these may not.
    names = ["shapes", "normalize", "problem", "dispatch", "config", "errors", "numerics", "functional", "tuning"]
    code = f"""
import importlib, sys
for name in {names}:
    importlib.import_module("gpuconv." + name)
print(sorted({{"torch", "triton", "cupy"}} & set(sys.modules)))
"""
    assert python(code) == "[]"


def test_rooms_are_there_after_the_import_and_imported_when_asked_for():
    code = """
import sys
import gpuconv
rooms = {"nn", "shapes", "solvers", "tuning"}
print(rooms <= set(dir(gpuconv)), "gpuconv.nn" in sys.modules, "gpuconv.tuning" in sys.modules)
print(gpuconv.tuning.tune.__name__, gpuconv.shapes.conv_output_size(100, 5, 2, 6, 6, 7), gpuconv.solvers.Plan.__name__)
print(sorted({"torch", "triton", "cupy"} & set(sys.modules)), hasattr(gpuconv, "attic"))
"""
    assert python(code) == "True False False\ntune 42 Plan\n[] False"


@needs_torch
def test_modules_are_reachable_without_an_import_of_their_own():
    code = "import gpuconv; print(gpuconv.nn.Conv2d(1, 1, 1).__class__.__module__, gpuconv.nn.MaxPool2d(2))"
    assert python(code).startswith("gpuconv.nn")


@needs_torch
def test_what_needs_torch_is_lent_by_its_room():
    code = """
import sys
import gpuconv
print("replace_modules" in dir(gpuconv), "torch" in sys.modules)
print(gpuconv.replace_modules is gpuconv.nn.replace_modules, "triton" in sys.modules)
"""
    assert python(code) == "True False\nTrue False"
