"""Compile the CUDA sources with NVRTC, without a GPU, and read what ptxas reports of each kernel.

NVRTC is a library of its own wheel. CUDA 13 compiles for sm_75 and newer; older GPUs need that of CUDA 12.
"""

from __future__ import annotations

import ctypes
import os
import re
import site
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from gpuconv.backends.cupy_common import OPTIONS
from gpuconv.kernels import cu

ARCHITECTURES = {60: 12, 70: 12, 80: 13, 90: 13, 100: 13}
"""Compute capabilities, and the CUDA release whose NVRTC compiles for each."""

ADDED = ("-ftz=true", "--device-as-default-execution-space")
"""What CuPy 14 puts behind the options of every module."""

_LIBRARIES = {12: "nvidia/cuda_nvrtc/lib/libnvrtc.so.12", 13: "nvidia/cu13/lib/libnvrtc.so.13"}


def _folders() -> list[Path]:
    """Return where to look for wheels: a folder that the Makefile fills, then the environment itself."""
    named = os.environ.get("GPUCONV_NVRTC")
    return [Path(folder) for folder in (named, Path(sys.prefix) / "nvrtc", *site.getsitepackages()) if folder]


@lru_cache(maxsize=2)
def library(release: int) -> Path | None:
    """Return the path of NVRTC of a CUDA release, or None."""
    return next((path for folder in _folders() if (path := folder / _LIBRARIES[release]).exists()), None)


@lru_cache(maxsize=2)
def version(release: int) -> str | None:
    """Return the version of NVRTC of a CUDA release, such as "13.5", or None where it is not installed."""
    if library(release) is None:
        return None
    major, minor = ctypes.c_int(), ctypes.c_int()
    assert _load(release).nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)) == 0
    return f"{major.value}.{minor.value}"


@lru_cache(maxsize=2)
def _load(release: int) -> ctypes.CDLL:
    return ctypes.CDLL(str(library(release)))


@dataclass(frozen=True)
class Report:
    """What one kernel costs: registers per thread, bytes of local memory per thread, and of shared memory per block.

    `stack` is local memory of any kind (arrays that are indexed at run time), `spills` what ptxas moved there for want
    of registers, stores and loads together.
    """

    registers: int
    stack: int
    spills: int
    shared: int

    def row(self) -> dict[str, Any]:
        """Return the report as plain data."""
        return asdict(self)


_PROPERTIES = re.compile(
    r"Compiling entry function '(?P<name>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?:[^\n]*?(?P<shared>\d+) bytes smem)?",
    re.DOTALL,
)


class CompileError(Exception):
    """NVRTC refused a source; the message is its log."""


def compile_kernels(
    source: str, kernels: Sequence[str], arch: int, text: str | None = None, ptx: list[str] | None = None
) -> dict[str, Report]:
    """Compile `kernels` of a source for ``sm_<arch>`` as CuPy would, and report on each.

    `text` replaces the text of the source, and `ptx` gets the intermediate code, for tests.
    """
    code = cu.source(source) if text is None else text
    nvrtc, program = _load(ARCHITECTURES[arch]), ctypes.c_void_p()
    created = nvrtc.nvrtcCreateProgram(ctypes.byref(program), code.encode(), f"{source}.cu".encode(), 0, None, None)
    assert created == 0
    try:
        for kernel in kernels:
            assert nvrtc.nvrtcAddNameExpression(program, kernel.encode()) == 0, kernel
        options = [option.encode() for option in (*OPTIONS, *ADDED, f"-arch=sm_{arch}", "--ptxas-options=-v")]
        status = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
        log = _text(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program)
        if status != 0:
            raise CompileError(f"{source} for sm_{arch}:\n{log[:6000]}")
        if ptx is not None:
            ptx.append(_text(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX, program))
        found = {match["name"]: match for match in _PROPERTIES.finditer(log)}
        lowered = ctypes.c_char_p()
        reports = {}
        for kernel in kernels:
            assert nvrtc.nvrtcGetLoweredName(program, kernel.encode(), ctypes.byref(lowered)) == 0, kernel
            assert lowered.value is not None
            match = found[lowered.value.decode()]
            spills = int(match["stores"]) + int(match["loads"])
            reports[kernel] = Report(int(match["registers"]), int(match["stack"]), spills, int(match["shared"] or 0))
        return reports
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _text(size_of: Any, get: Any, program: ctypes.c_void_p) -> str:
    size = ctypes.c_size_t()
    assert size_of(program, ctypes.byref(size)) == 0
    buffer = ctypes.create_string_buffer(size.value)
    assert get(program, buffer) == 0
    return buffer.value.decode()


def timed(source: str, kernels: Sequence[str], arch: int) -> tuple[dict[str, Report], float]:
    """Return :func:`compile_kernels` and the seconds that it took."""
    start = time.perf_counter()
    return compile_kernels(source, kernels, arch), time.perf_counter() - start
