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
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from disassembly import DISASSEMBLED, by_kernel, sass_of
from loops import accesses, counts, hot_loop, loading_loop, operations

from gpuconv.backends.cupy.common import OPTIONS
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
class Code:
    """What the machine code of a kernel looks like: instructions without NOP, those of its hot loop, and accesses.

    The hot loop of a convolution is the one that multiplies most per instruction and stores no results, of a pool the
    one that loads most bytes of global memory per instruction. `counts` are of instructions by name, `accesses` of
    loads from and stores to global memory by width in bits.
    """

    instructions: int
    hot_loop: int
    counts: dict[str, int]
    accesses: dict[str, int]


@dataclass(frozen=True)
class Report:
    """What one kernel costs: registers per thread, bytes of local memory per thread, and of shared memory per block.

    `stack` is local memory of any kind (arrays that are indexed at run time), `spills` what ptxas moved there for want
    of registers, stores and loads together. `warps` is the largest block that the launch bounds allow (None: there are
    none), and `code` None where it was not read.
    """

    registers: int
    stack: int
    spills: int
    shared: int
    warps: int | None = None
    code: Code | None = None

    def row(self) -> dict[str, Any]:
        """Return the report as plain data, in which what is None is left out."""
        plain = {name: value for name, value in asdict(self).items() if value is not None}
        return plain | plain.pop("code", {})


_PROPERTIES = re.compile(
    r"Compiling entry function '(?P<name>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?:[^\n]*?(?P<shared>\d+) bytes smem)?",
    re.DOTALL,
)

_BOUNDS = re.compile(r"\.entry\s+(?P<name>\w+)\([^)]*\)\s*\.maxntid\s+(?P<threads>\d+)")


class CompileError(Exception):
    """NVRTC refused a source; the message is its log."""


@dataclass(frozen=True)
class Compiled:
    """What NVRTC made of a source: the log of ptxas, PTX, a binary, and the name in them of each kernel."""

    log: str
    ptx: str
    cubin: bytes
    names: dict[str, str]


def compile_source(source: str, kernels: Sequence[str], arch: int, text: str | None = None) -> Compiled:
    """Compile `kernels` of a source for ``sm_<arch>`` as CuPy would; `text` replaces the text of the source.

    Each release compiles in a process of its own: both crashed now and then where other compilers were loaded, the
    other release, Triton's or that of a CUDA build of torch.
    """
    code = cu.source(source) if text is None else text
    return _apart(ARCHITECTURES[arch]).submit(_compile, source, code, list(kernels), arch).result()


@lru_cache(maxsize=4)
def _apart(release: Any) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))


def _compile(source: str, code: str, kernels: Sequence[str], arch: int) -> Compiled:
    nvrtc, program = _load(ARCHITECTURES[arch]), ctypes.c_void_p()
    created = nvrtc.nvrtcCreateProgram(ctypes.byref(program), code.encode(), f"{source}.cu".encode(), 0, None, None)
    assert created == 0
    try:
        for kernel in kernels:
            assert nvrtc.nvrtcAddNameExpression(program, kernel.encode()) == 0, kernel
        options = [option.encode() for option in (*OPTIONS, *ADDED, f"-arch=sm_{arch}", "--ptxas-options=-v")]
        status = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
        log = _bytes(nvrtc, "ProgramLog", program).decode().rstrip("\0")
        if status != 0:
            raise CompileError(f"{source} for sm_{arch}:\n{log[:6000]}")
        names, lowered = {}, ctypes.c_char_p()
        for kernel in kernels:
            assert nvrtc.nvrtcGetLoweredName(program, kernel.encode(), ctypes.byref(lowered)) == 0, kernel
            assert lowered.value is not None
            names[kernel] = lowered.value.decode()
        ptx = _bytes(nvrtc, "PTX", program).decode().rstrip("\0")
        return Compiled(log, ptx, _bytes(nvrtc, "CUBIN", program), names)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _bytes(nvrtc: ctypes.CDLL, what: str, program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    assert getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size)) == 0
    buffer = ctypes.create_string_buffer(size.value)
    assert getattr(nvrtc, f"nvrtcGet{what}")(program, buffer) == 0
    return buffer.raw


def reports_of(compiled: Compiled) -> dict[str, Report]:
    """Return what ptxas and the launch bounds say of each kernel, without a look at its machine code."""
    found = {match["name"]: match for match in _PROPERTIES.finditer(compiled.log)}
    bounds = {match["name"]: int(match["threads"]) for match in _BOUNDS.finditer(compiled.ptx)}
    reports = {}
    for kernel, name in compiled.names.items():
        match = found[name]
        spills = int(match["stores"]) + int(match["loads"])
        warps = bounds[name] // 32 if name in bounds else None
        registers, stack, shared = int(match["registers"]), int(match["stack"]), int(match["shared"] or 0)
        reports[kernel] = Report(registers, stack, spills, shared, warps)
    return reports


def compile_kernels(source: str, kernels: Sequence[str], arch: int) -> dict[str, Report]:
    """Compile `kernels` of a source for ``sm_<arch>`` as CuPy would, and report on each."""
    compiled = compile_source(source, kernels, arch)
    reports = reports_of(compiled)
    if arch not in DISASSEMBLED:
        return reports
    sass = by_kernel(sass_of(compiled.cubin))
    return {
        kernel: replace(report, code=code_of(source, sass[compiled.names[kernel]]))
        for kernel, report in reports.items()
    }


def code_of(source: str, sass: str) -> Code:
    """Read the machine code of a kernel of a source."""
    executed = operations(sass)
    loop = loading_loop(sass)[0] if source.startswith("pool") else hot_loop(sass, stores=False)
    return Code(len(executed) - executed.count("NOP"), loop, counts(sass), accesses(sass))


def timed(source: str, kernels: Sequence[str], arch: int) -> tuple[dict[str, Report], float]:
    """Return :func:`compile_kernels` and the seconds that it took."""
    start = time.perf_counter()
    return compile_kernels(source, kernels, arch), time.perf_counter() - start
