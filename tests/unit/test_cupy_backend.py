"""The CuPy backend without CuPy: what it says is missing, that it imports nothing early, and how it shares memory."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import gpuconv
from gpuconv import arrays
from gpuconv.backends.cupy import backend as cupy_backend
from gpuconv.backends.cupy import common as cupy_common
from gpuconv.backends.triton.common import as_tensor
from gpuconv.dispatch import candidates, explain
from gpuconv.kernels import cu

REPO = Path(__file__).resolve().parents[2]

BACKEND = cupy_backend.BACKEND


def problem(array="torch", device="cuda:0"):
    """Return the problem of a convolution of arrays that a host without a GPU cannot have."""
    x, w = np.ones((2, 8, 9, 9), np.float32), np.ones((8, 8, 3, 3), np.float32)
    return replace(explain(gpuconv.conv2d, x, w).problem, array=array, device=device)


@pytest.fixture
def host(monkeypatch):
    """Return a function that makes this host look like another: its CuPy, driver and device files."""
    monkeypatch.delitem(sys.modules, "cupy", raising=False)

    def pretend(installed=("cupy-cuda13x", "14.1.0"), driver=13000, devices=True, found=True):
        monkeypatch.setattr(cupy_backend, "find_spec", lambda name: object() if found else None)
        monkeypatch.setattr(cupy_backend, "_installed", lambda: installed)
        monkeypatch.setattr(cupy_backend, "_driver_release", lambda: driver)
        monkeypatch.setattr(cupy_backend, "_device_files", lambda: devices)
        cupy_backend._missing_package.cache_clear()

    yield pretend
    monkeypatch.undo()
    cupy_backend._missing_package.cache_clear()


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"found": False, "installed": None}, r"CuPy is not installed \(pip install 'cupy-cuda13x\[ctk\]'"),
        ({"installed": ("cupy-cuda12x", "13.6.0")}, r"cupy-cuda12x 13.6.0 is installed, 14 or newer is needed"),
        ({"driver": None}, r"no NVIDIA driver: libcuda.so.1 is not there \(install the driver"),
        ({"driver": 0}, r"no NVIDIA driver is loaded"),
        ({"driver": 12040}, r"too old for cupy-cuda13x: it runs CUDA 12.4, CUDA 13.0 .*'cupy-cuda12x\[ctk\]'\)"),
        ({"driver": 11080, "installed": ("cupy-cuda12x", "14.0.0")}, r"CUDA 12.0 is needed \(update the driver\)"),
        ({"devices": False}, r"no NVIDIA GPU \(in a container"),
    ],
)
def test_says_what_is_missing_and_what_to_do(host, facts, words):
    host(**facts)
    missing = BACKEND.missing()
    assert missing is not None
    with pytest.raises(ValueError, match=words):
        raise ValueError(missing)
    assert BACKEND.why_not(problem(), False) == missing


def test_nothing_is_missing_where_everything_is_there(host):
    host()
    assert BACKEND.missing() is None and BACKEND.why_not(problem(), False) is None
    assert BACKEND.why_not(problem("numpy", "cpu"), True) == "arrays are on cpu, kernels run on cuda"


def test_triton_goes_first_and_cupy_second_for_both_kinds_of_array(host, monkeypatch):
    host()
    from gpuconv.backends.triton import backend as triton_backend

    monkeypatch.setattr(triton_backend, "_missing_package", lambda: None)
    monkeypatch.setattr(triton_backend, "interpreting", lambda: False)
    monkeypatch.setattr(triton_backend, "_torch_without_cuda", lambda: None)
    for array in ("torch", "cupy"):
        order = [candidate.backend for candidate in candidates(problem(array)) if candidate.reason is None]
        assert order[0] == "triton" and "cupy" in order and "numpy" not in order
    monkeypatch.setattr(triton_backend, "_missing_package", lambda: "triton is not installed")
    assert candidates(problem("torch"))[0].backend == "cupy"
    forced = candidates(problem("torch"), "cupy")
    assert {c.backend for c in forced if c.reason is None} == {"cupy"}


def test_triton_refuses_arrays_of_cupy_where_torch_has_no_cuda(monkeypatch):
    from gpuconv.backends.triton import backend as triton_backend

    monkeypatch.setattr(triton_backend, "interpreting", lambda: False)
    monkeypatch.setattr(triton_backend, "_missing_package", lambda: None)
    monkeypatch.setattr(torch.version, "cuda", None)
    triton_backend._torch_without_cuda.cache_clear()
    reason = triton_backend.BACKEND.why_not(problem("cupy"), False)
    triton_backend._torch_without_cuda.cache_clear()
    assert "is a build without CUDA" in reason


NOT_IMPORTED = """
import sys
from dataclasses import replace
import numpy as np
import gpuconv
from gpuconv.dispatch import candidates, explain

x, w = np.ones((2, 8, 9, 9), np.float32), np.ones((8, 8, 3, 3), np.float32)
on_cuda = replace(explain(gpuconv.conv2d, x, w).problem, array="torch", device="cuda:0")
found = candidates(on_cuda)
assert any(c.backend == "cupy" for c in found)
assert gpuconv.explain(gpuconv.conv2d, x, w).solver.startswith("numpy.")
gpuconv.conv2d(x, w)
print("cupy" in sys.modules)
"""


def test_neither_explaining_nor_listing_candidates_imports_cupy(tmp_path):
    package = tmp_path / "cupy"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('CuPy was imported')\n")
    env = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{REPO}"}
    done = subprocess.run([sys.executable, "-c", NOT_IMPORTED], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr


def test_a_half_imported_cupy_owns_nothing(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace())
    assert arrays.kind_of(3.0) is None
    assert not arrays.is_cupy(np.zeros(1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.int64])
def test_torch_tensors_are_shared_not_copied(monkeypatch, dtype):
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(from_dlpack=np.from_dlpack))
    tensor = torch.ones((2, 3, 4), dtype=dtype).transpose(0, 2)
    if dtype.is_floating_point:
        tensor.requires_grad_(True)
    shown = cupy_common._shared(arrays.TORCH, tensor)
    assert shown.__array_interface__["data"][0] == tensor.data_ptr()
    assert tuple(step // shown.itemsize for step in shown.strides) == tensor.stride()
    assert shown.dtype == (np.int16 if dtype is torch.bfloat16 else np.dtype(str(dtype).removeprefix("torch.")))
    assert cupy_common._shared(arrays.TORCH, None) is None


class _CupyArray:
    """A CuPy array as torch sees one: DLPack, a dtype and views."""

    def __init__(self, host, dtype=None):
        self.host, self.dtype, self.strides = host, dtype or host.dtype, host.strides

    def view(self, dtype):
        return _CupyArray(self.host.view(dtype))

    def __dlpack__(self, **_):
        return self.host.__dlpack__()

    def __dlpack_device__(self):
        return self.host.__dlpack_device__()


@pytest.mark.parametrize("bits", [False, True])
def test_triton_is_shown_the_memory_of_cupy(monkeypatch, bits):
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(ndarray=_CupyArray))
    host = np.arange(6, dtype=np.uint16).reshape(2, 3) if bits else np.arange(6.0).reshape(2, 3)
    array = _CupyArray(host, SimpleNamespace(name="bfloat16") if bits else None)
    tensor = as_tensor(torch, array)
    assert tensor.data_ptr() == host.__array_interface__["data"][0]
    assert tensor.dtype is (torch.bfloat16 if bits else torch.float64) and tuple(tensor.shape) == (2, 3)


def test_a_source_is_one_text_with_each_header_once():
    for name in cu.names():
        text = cu.source(name)
        assert "#include" not in text
        assert text.count('#line 1 "common.cuh"') == text.count('#line 1 "ptx.cuh"') == 1
        assert text.startswith(f'#line 1 "{name}.cu"\n')


def test_replaced_headers_take_the_place_of_files():
    text = cu.expand("common.cuh", {"ptx.cuh": "int stands_in;"})
    assert "int stands_in;" in text and "asm" not in text


def test_every_solver_names_what_it_can_launch():
    ids = [solver.id for solver in BACKEND.solvers()]
    assert len(set(ids)) == len(ids) and all(name.startswith("cupy.") for name in ids)
    for solver in BACKEND.solvers():
        pairs = solver.instantiations()
        assert pairs and len(set(pairs)) == len(pairs), solver.id
        assert {source for source, _ in pairs} <= set(cu.names()), solver.id
