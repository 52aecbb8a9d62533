"""CUDA C++ sources through NVRTC, as CuPy compiles them: without a GPU, and without CuPy.

NVRTC is a library of its own wheel (``nvidia-cuda-nvrtc-cu12``, ``nvidia-cuda-nvrtc``). It is looked for in the folder
that ``GPUCONV_NVRTC`` names, in ``nvrtc`` of the environment, and among its packages. CUDA 13 has dropped the GPUs
before sm_75. Both releases crashed now and then in a process where another compiler was loaded, the other release,
Triton's or that of a CUDA build of torch: compile in a process of its own.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import site
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ..backends.cupy.common import OPTIONS
from ..kernels import cu
from ..packs import CudaEntry, arch_number, cuda_key_of

__all__ = ["RELEASES", "CompileError", "Compiled", "compile_entries", "compile_source", "library", "version"]

RELEASES = (12, 13)
"""Releases of CUDA, that which the most drivers take first."""

ADDED = ("-ftz=true", "--device-as-default-execution-space")
"""What CuPy 14 puts behind the options of every module."""

_LIBRARIES = {12: "nvidia/cuda_nvrtc/lib/libnvrtc.so.12", 13: "nvidia/cu13/lib/libnvrtc.so.13"}

_USAGE = re.compile(
    r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame.*?Used (\d+) registers",
    re.DOTALL,
)


class CompileError(RuntimeError):
    """NVRTC refused a source; the message is its log."""


@dataclass(frozen=True)
class Compiled:
    """What NVRTC made of a source: the log of ptxas, PTX, a binary, and the name in them of each kernel."""

    log: str
    ptx: str
    cubin: bytes
    names: dict[str, str]


def _folders() -> list[Path]:
    named = os.environ.get("GPUCONV_NVRTC")
    return [Path(folder) for folder in (named, Path(sys.prefix) / "nvrtc", *site.getsitepackages()) if folder]


@lru_cache(maxsize=2)
def library(release: int) -> Path | None:
    """Return the path of NVRTC of a CUDA release, or None."""
    return next((path for folder in _folders() if (path := folder / _LIBRARIES[release]).exists()), None)


@lru_cache(maxsize=2)
def _load(release: int) -> ctypes.CDLL:
    path = library(release)
    if path is None:
        raise CompileError(f"NVRTC of CUDA {release} is not installed (pip install nvidia-cuda-nvrtc-cu12)")
    return ctypes.CDLL(str(path))


def version(release: int) -> str:
    """Return the version of NVRTC of a CUDA release, such as "13.5".

    Raises
    ------
    CompileError
        If it is not installed.
    """
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(_load(release).nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)), "nvrtcVersion")
    return f"{major.value}.{minor.value}"


def _check(status: int, what: str) -> None:
    if status:
        raise CompileError(f"NVRTC: {what} returned {status}")


def compile_source(
    source: str, kernels: Sequence[str], arch: int, release: int, text: str | None = None, more: Sequence[str] = ()
) -> Compiled:
    """Compile kernels of a source as CuPy would.

    Parameters
    ----------
    source
        Name of a file of :mod:`gpuconv.kernels.cu`.
    kernels
        C++ names with template arguments.
    arch
        90 for sm_90.
    release
        Of CUDA, one of `RELEASES`.
    text
        What the source says, by default what the file says.
    more
        Options behind those of CuPy.

    Raises
    ------
    CompileError
        If NVRTC refuses it, or is not installed.
    """
    code = cu.source(source) if text is None else text
    nvrtc, program = _load(release), ctypes.c_void_p()
    _check(
        nvrtc.nvrtcCreateProgram(ctypes.byref(program), code.encode(), f"{source}.cu".encode(), 0, None, None), source
    )
    try:
        for kernel in kernels:
            _check(nvrtc.nvrtcAddNameExpression(program, kernel.encode()), kernel)
        options = [option.encode() for option in (*OPTIONS, *ADDED, f"-arch=sm_{arch}", *more)]
        status = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
        log = _bytes(nvrtc, "ProgramLog", program).decode().rstrip("\0")
        if status != 0:
            raise CompileError(f"{source} for sm_{arch}:\n{log[:6000]}")
        names, lowered = {}, ctypes.c_char_p()
        for kernel in kernels:
            _check(nvrtc.nvrtcGetLoweredName(program, kernel.encode(), ctypes.byref(lowered)), kernel)
            names[kernel] = (lowered.value or b"").decode()
        ptx = _bytes(nvrtc, "PTX", program).decode().rstrip("\0")
        return Compiled(log, ptx, _bytes(nvrtc, "CUBIN", program), names)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _bytes(nvrtc: ctypes.CDLL, what: str, program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    _check(getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size)), what)
    buffer = ctypes.create_string_buffer(size.value)
    _check(getattr(nvrtc, f"nvrtcGet{what}")(program, buffer), what)
    return buffer.raw


def compile_entries(source: str, kernels: Sequence[str], arch: str, release: int) -> tuple[list[CudaEntry], bytes]:
    """Return the entries of kernels of a source, which share a cubin, and the cubin.

    Raises
    ------
    CompileError
        As :func:`compile_source`.
    """
    compiled = compile_source(source, kernels, arch_number(arch), release, more=("--ptxas-options=-v",))
    usage = {name: (int(registers), int(stack)) for name, stack, registers in _USAGE.findall(compiled.log)}
    cubin = hashlib.sha256(compiled.cubin).hexdigest()
    text = cu.source(source)
    entries = [
        CudaEntry(cuda_key_of(text, kernel, OPTIONS), arch, source, kernel, name, *usage[name], cubin)
        for kernel, name in compiled.names.items()
    ]
    return entries, compiled.cubin
