"""Compile kernels with g++ behind the shim, many in one translation unit, and keep the results on disk.

A *unit* is a list of kernels of one source text. It becomes a shared library that the tests load, or a program for the
sanitizers, which run outside of Python: one launch from a file.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path

HERE = Path(__file__).resolve().parent
SHIM = HERE / "shim"
CACHE = HERE.parents[1] / "build" / "cuda_on_cpu"

COMPILER = shutil.which("g++")

COMMON = (
    "-std=c++17", "-g1", "-ffp-contract=off", "-fno-strict-aliasing", "-Wall", "-Wextra", "-Werror", "-Wno-unused",
    "-Wno-unknown-pragmas", "-Wno-psabi", "-Wno-array-bounds", "-Wno-maybe-uninitialized",
)  # fmt: skip
"""-Wno-array-bounds and -Wno-maybe-uninitialized: both guess, and AddressSanitizer knows."""

MODES: dict[str, tuple[str, ...]] = {
    "library": ("-O1", "-march=native", "-shared", "-fPIC"),
    "address": ("-O1", "-march=native", "-DGPU_PROGRAM", "-fsanitize=address,undefined",
                "-fno-sanitize-recover=undefined", "-fno-sanitize=vptr"),
    "thread": ("-O1", "-march=native", "-DGPU_PROGRAM", "-DGPU_REAL_THREADS", "-fsanitize=thread", "-pthread"),
}  # fmt: skip

_PTX = re.compile(r'#line 1 "ptx\.cuh"\n.*?(?=#line \d+ ")', re.DOTALL)


@lru_cache(maxsize=1)
def _machine() -> str:
    """Return what a build depends on beside its text: the compiler and the processor."""
    version = subprocess.run([COMPILER, "--version"], capture_output=True, text=True, check=True).stdout
    try:
        flags = re.search(r"^flags.*$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        return version + (flags[0] if flags else "")
    except OSError:
        return version


@lru_cache(maxsize=1)
def _shim() -> dict[str, str]:
    return {path.name: path.read_text() for path in SHIM.iterdir()}


def host_text(code: str) -> str:
    """Put the host's version of ptx.cuh in the place of the device's in the text of a source."""
    replaced, count = _PTX.subn(lambda _: '#line 1 "host ptx.cuh"\n' + _shim()["ptx.cuh"], code)
    assert count == 1, "a source includes ptx.cuh (common.cuh does) exactly once"
    return replaced


def unit_text(code: str, kernels: Sequence[str], extra: str = "") -> str:
    """Return the translation unit that holds `kernels` of the expanded source `code`."""
    lines = [f'#include "{SHIM}/runtime.h"', "namespace gpu_source { namespace {", host_text(code), extra, "} }"]
    for number, kernel in enumerate(kernels):
        lines.append(f"static void entry_{number}(void** a) {{ using namespace gpu_source; gpu::call(&{kernel}, a); }}")
    entries = ", ".join(f"&entry_{number}" for number in range(len(kernels)))
    lines.append(f"static const gpu::Entry gpu_entries[] = {{{entries or 'nullptr'}}};")
    lines.append(f'#include "{SHIM}/driver.h"')
    return "\n".join(lines) + "\n"


def compiled(text: str, mode: str) -> Path:
    """Return the library or program that `text` compiles to; from the disk where it was compiled before."""
    assert COMPILER is not None, "g++ is not installed"
    seen = repr((text, sorted(_shim().items()), COMMON, MODES[mode], _machine()))
    name = hashlib.sha256(seen.encode()).hexdigest()[:24]
    folder = Path(os.environ.get("GPUCONV_TEST_CACHE", CACHE)) / name[:2]
    target = folder / f"{name}.{mode}"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            source, partial = folder / f"{name}.cpp", folder / f"{name}.partial"
            source.write_text(text)
            command = [COMPILER, *COMMON, *MODES[mode], str(source), "-o", str(partial)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise RuntimeError(f"g++ failed: {' '.join(command)}\n{done.stderr[:6000]}")
            os.replace(partial, target)
    return target


@cache
def launcher(mode: str) -> tuple[str, ...] | None:
    """Return what goes in front of a program with this sanitizer: nothing, or ``setarch``; None where it cannot run.

    ThreadSanitizer of g++ 12 to 14 gives up where the kernel spreads addresses over more bits than it expects.
    """
    try:
        program = compiled("int main() { return 0; }\n", mode)
    except RuntimeError:
        return None
    for prefix in ((), ("setarch", "-R")):
        try:
            done = subprocess.run([*prefix, str(program)], capture_output=True, timeout=60, check=False)
        except OSError:
            continue
        if done.returncode == 0:
            return prefix
    return None


class Library:
    """The kernels of a unit, loaded into this process."""

    def __init__(self, code: str, kernels: Sequence[str]) -> None:
        self.places = {kernel: number for number, kernel in enumerate(kernels)}
        path = compiled(unit_text(code, kernels), "library")
        self._library = ctypes.CDLL(str(path))
        self._library.gpu_launch.restype = ctypes.c_char_p
        self._announce_shared_memory(path)

    def _announce_shared_memory(self, path: Path) -> None:
        """Tell the library where the static arrays of its kernels lie: what a kernel calls shared memory."""
        listed = subprocess.run(["nm", "-S", "--defined-only", str(path)], capture_output=True, text=True, check=True)
        rows = [line.split() for line in listed.stdout.splitlines()]
        symbols = {row[3]: (int(row[0], 16), int(row[1], 16), row[2]) for row in rows if len(row) == 4}
        here = ctypes.cast(self._library.gpu_launch, ctypes.c_void_p).value
        assert here is not None
        base = here - symbols["gpu_launch"][0]
        for name, (address, size, kind) in symbols.items():
            if name.startswith("_ZZN10gpu_source") and kind in "bBdD":
                self._library.gpu_shared_memory(ctypes.c_void_p(base + address), ctypes.c_size_t(size))

    def launch(
        self, kernel: str, grid: int, block: int, addresses: Sequence[int], orders: tuple[int, int], seed: int
    ) -> str | None:
        """Run a kernel whose arguments lie at `addresses`; return what went wrong, or None."""
        arguments = (ctypes.c_void_p * len(addresses))(*addresses)
        found = self._library.gpu_launch(
            self.places[kernel], ctypes.c_longlong(grid), block, arguments, *orders, ctypes.c_uint(seed)
        )
        return None if found is None else found.decode()
