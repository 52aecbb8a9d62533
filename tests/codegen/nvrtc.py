"""Compile the CUDA sources with NVRTC, without a GPU, and read what ptxas reports of each kernel.

NVRTC is a library of its own wheel. CUDA 13 compiles for sm_75 and newer; older GPUs need that of CUDA 12.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from multiprocessing import get_context
from typing import Any

from disassembly import DISASSEMBLED, by_kernel, sass_of
from loops import accesses, counts, hot_loop, loading_loop, operations

from gpuconv.packing import nvrtc
from gpuconv.packing.nvrtc import Compiled, library

ARCHITECTURES = {60: 12, 70: 12, 80: 13, 90: 13, 100: 13}
"""Compute capabilities, and the CUDA release whose NVRTC compiles for each."""


def version(release: int) -> str | None:
    """Return the version of NVRTC of a CUDA release, such as "13.5", or None where it is not installed."""
    return None if library(release) is None else nvrtc.version(release)


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


def compile_source(source: str, kernels: Sequence[str], arch: int, text: str | None = None) -> Compiled:
    """Compile `kernels` of a source for ``sm_<arch>`` as CuPy would; `text` replaces the text of the source.

    Each release compiles in a process of its own: both crashed now and then where other compilers were loaded, the
    other release, Triton's or that of a CUDA build of torch.
    """
    release = ARCHITECTURES[arch]
    more = ("--ptxas-options=-v",)
    return _apart(release).submit(nvrtc.compile_source, source, list(kernels), arch, release, text, more).result()


@lru_cache(maxsize=4)
def _apart(release: Any) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))


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
