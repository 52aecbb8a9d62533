"""What the cost model knows of a GPU: rates and times, each with where the number comes from.

``gpus/<name>.json`` are shipped: data-sheet numbers, and assumed ones that nobody has measured for this library yet.
``gpuconv tune --fit`` writes fitted ones to ``constants/<name>.json`` in the user's cache directory, and those win.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ..config import cache_directory, interpreting, logger
from .files import file_name, read_json, warn_once

__all__ = [
    "ELSEWHERE",
    "INTERPRETER",
    "PATHS",
    "PIPES",
    "SCHEMA",
    "Constants",
    "Gpu",
    "assuming",
    "constants_of",
    "constants_of_gpu",
    "device_elsewhere",
    "device_of_name",
    "fallback",
    "gpu_names",
    "gpu_of",
    "named_gpu",
    "on_gpu",
    "parse_constants",
    "shipped",
    "user_constants_path",
]

SCHEMA = 1

PIPES = ("tensor16", "tf32", "fma32", "fma64", "tensor8")
"""What multiplies: tensor cores on 16-bit numbers or tf32, the plain cores, and tensor cores on int8 or float8."""

PATHS = ("pointer", "tma", "im2col", "halo", "register", "gemm", "fma", "direct")
"""How operands reach what multiplies them.

By pointers and asynchronous copies to shared memory; by tiled TMA; by its im2col mode; by TMA with rows that several
taps share; by TMA and through registers; by TMA as a plain GEMM; to the plain cores; and without shared memory.
"""

_NAMES = (
    "sms", "clock_ghz", "shared_kib", "l2_mib", *(f"{pipe}_tflops" for pipe in PIPES), "l2_tb_s", "dram_tb_s",
    "issue_per_clock", "latency_us", "fixed_us", "launch_us", "loss", *(f"efficiency_{path}" for path in PATHS),
)  # fmt: skip

_SOURCES = ("datasheet", "assumed", "fitted")


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU by name and compute capability, for example ``Gpu("NVIDIA H200", (9, 0))``."""

    name: str
    capability: tuple[int, int]


INTERPRETER = Gpu("Triton interpreter", (9, 0))
"""What stands for a GPU where kernels are interpreted on the CPU."""


@dataclass(frozen=True)
class Constants:
    """The numbers of one GPU by name, where each comes from (``datasheet``, ``assumed`` or ``fitted``), and notes.

    ===================== =========================================================================================
    name                  meaning
    ===================== =========================================================================================
    sms, clock_ghz        multiprocessors, and their clock in GHz
    shared_kib, l2_mib    shared memory of a multiprocessor in KiB, L2 cache in MiB
    ``<pipe>_tflops``     dense rate in TFLOP/s
    l2_tb_s, dram_tb_s    bandwidths that kernels reach, in TB/s
    issue_per_clock       instructions of warps that a multiprocessor issues per clock
    latency_us            a round trip to memory under load, in microseconds
    fixed_us, launch_us   start and end of a launch, and of each further one
    loss                  fraction of the terms that do not hide behind the longest
    ``efficiency_<path>`` fraction of the rate of a pipe that a main loop reaches
    ===================== =========================================================================================
    """

    gpu: str
    values: Mapping[str, float]
    sources: Mapping[str, str]
    notes: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def pipe_rates(self) -> np.ndarray:
        """Rates of :data:`PIPES` in TFLOP/s, which are 1e6 FLOP per microsecond."""
        return np.array([self.values[f"{pipe}_tflops"] for pipe in PIPES])

    @cached_property
    def efficiencies(self) -> np.ndarray:
        """Efficiencies of :data:`PATHS`."""
        return np.array([self.values[f"efficiency_{path}"] for path in PATHS])

    def replaced(self, values: Mapping[str, float], source: str) -> Constants:
        """Return these constants with `values` in place of some, which come from `source`."""
        return Constants(
            self.gpu, {**self.values, **values}, {**self.sources, **dict.fromkeys(values, source)}, self.notes
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain data that :func:`parse_constants` reads."""
        entries = {}
        for name in _NAMES:
            entries[name] = {"value": self.values[name], "source": self.sources[name]}
            if name in self.notes:
                entries[name]["note"] = self.notes[name]
        return {"schema": SCHEMA, "gpu": self.gpu, "constants": entries}


def parse_constants(data: Any, origin: str) -> Constants:
    """Read what :meth:`Constants.to_json` returns.

    Raises
    ------
    ValueError
        If something is missing or is not a positive number with a known source; the message names `origin`.
    """
    if not isinstance(data, dict) or data.get("schema") != SCHEMA or not isinstance(data.get("constants"), dict):
        raise ValueError(f"{origin}: must be an object with schema {SCHEMA} and constants")
    values, sources, notes = {}, {}, {}
    for name in _NAMES:
        entry = data["constants"].get(name)
        value: Any = entry.get("value") if isinstance(entry, dict) else None
        if type(value) not in (int, float) or not 0 < value < float("inf"):
            raise ValueError(f"{origin}: {name} must be a positive number, but got {value!r}")
        if entry.get("source") not in _SOURCES:
            raise ValueError(f"{origin}: source of {name} must be one of {', '.join(_SOURCES)}")
        values[name], sources[name] = float(value), entry["source"]
        if "note" in entry:
            notes[name] = str(entry["note"])
    return Constants(str(data.get("gpu")), values, sources, notes)


_FOLDER = Path(__file__).parent / "gpus"


@lru_cache(maxsize=1)
def shipped() -> dict[str, tuple[Mapping[str, Any], Constants]]:
    """Return the constants that the library ships, by file name, with the whole content of the file."""
    found = {}
    for path in sorted(_FOLDER.glob("*.json")):
        data = json.loads(path.read_text(encoding="utf-8"))
        found[path.stem] = (data, parse_constants(data, path.name))
    return found


@lru_cache(maxsize=8)
def _of_name(name: str, capability: tuple[int, int]) -> Constants:
    return _user_constants(name) or _shipped_for(name, capability)


def _shipped_for(name: str, capability: tuple[int, int]) -> Constants:
    for data, constants in shipped().values():
        if any(word in name for word in data.get("names", ())):
            return constants
    return fallback(capability)


def fallback(capability: tuple[int, int]) -> Constants:
    """Return the shipped constants of the nearest compute capability that is not newer, or of the oldest."""
    known = sorted((tuple(data["capability"]), name) for name, (data, _) in shipped().items() if data.get("default"))
    older = [name for found, name in known if found <= tuple(capability)]
    return shipped()[older[-1] if older else known[0][1]][1]


def user_constants_path(gpu: str) -> Path:
    """Return the file of the constants that were fitted on this machine for a GPU of that name."""
    return cache_directory() / "constants" / f"{file_name(gpu)}.json"


def _user_constants(gpu: str) -> Constants | None:
    path = user_constants_path(gpu)
    data = read_json(path)
    if data is None:
        return None
    try:
        found = parse_constants(data, str(path))
        if found.gpu != gpu:
            raise ValueError(f"{path}: is of {found.gpu}, not of {gpu}")
    except ValueError as error:
        warn_once(str(path), "ignored constants: %s", error)
        return None
    logger.debug("constants of %s come from %s", gpu, path)
    return found


@lru_cache(maxsize=1)
def _by_name() -> dict[str, tuple[tuple[int, int], Constants]]:
    """Return capability and constants of each GPU that is shipped, by the name that a device has after ``cuda:``."""
    return {
        (data.get("names") or [stem])[0].lower(): (tuple(data["capability"]), constants)
        for stem, (data, constants) in shipped().items()
    }


def gpu_names() -> tuple[str, ...]:
    """Return the names of the GPUs whose constants are shipped, as :func:`device_of_name` takes them."""
    return tuple(sorted(_by_name()))


def device_of_name(name: str) -> str:
    """Return the device that stands for a GPU by name, for example ``"cuda:h200"``, whether there is one or not.

    It is a device as any other to what describes, costs and plans calls, so that nothing that is remembered of a
    problem there is taken for another GPU. Nothing runs on it.

    Parameters
    ----------
    name
        One of :func:`gpu_names`, in capitals or not; a file name of ``costs/gpus``; or the full name of such a GPU,
        as ``"NVIDIA H200"``.

    Raises
    ------
    TypeError
        If `name` is not a string.
    ValueError
        If no constants are shipped for it; the message lists the names.
    """
    if not isinstance(name, str):
        raise TypeError(f"gpu must be a name such as 'h200', but got {name!r}")
    word = name.strip().lower()
    for stem, (data, constants) in shipped().items():
        short = (data.get("names") or [stem])[0].lower()
        if word in (stem, short, constants.gpu.lower()) or f" {short}" in f" {word}":
            return f"cuda:{short}"
    raise ValueError(f"gpu must be one of {', '.join(gpu_names())}, but got {name!r}")


def named_gpu(device: str) -> Constants | None:
    """Return the shipped constants of a device of :func:`device_of_name`; None of any other."""
    kind, _, name = device.partition(":")
    if kind != "cuda" or not name or name.isdecimal():
        return None
    found = _by_name().get(name)
    return found[1] if found else None


ELSEWHERE: list[object] = []
"""One object for every ``with`` block of :func:`on_gpu`, in any thread: no call is taken for one before it then."""

_elsewhere: ContextVar[str | None] = ContextVar("gpuconv_elsewhere", default=None)


@contextmanager
def on_gpu(device: str) -> Iterator[None]:
    """Take the arrays of every call inside the ``with`` block (in this thread) for arrays on a device.

    For describing calls of a GPU by name (:func:`device_of_name`); calls must not run.
    """
    token = _elsewhere.set(device)
    ELSEWHERE.append(token)
    try:
        yield
    finally:
        ELSEWHERE.remove(token)
        _elsewhere.reset(token)


def device_elsewhere() -> str | None:
    """Return the device on which arrays are taken to be (:func:`on_gpu`), or None: where they are."""
    return _elsewhere.get() if ELSEWHERE else None


_assumed: ContextVar[Gpu | None] = ContextVar("gpuconv_assumed_gpu", default=None)


@contextmanager
def assuming(gpu: Gpu) -> Iterator[None]:
    """Take every device for a GPU of that name and capability inside the ``with`` block, by its shipped constants.

    For planning what runs elsewhere. Solvers remember what they found for a problem, so one process should plan for
    GPUs of one capability.
    """
    token = _assumed.set(gpu)
    try:
        yield
    finally:
        _assumed.reset(token)


def gpu_of(device: str) -> Gpu | None:
    """Return the GPU of a device such as ``"cuda:0"``, or None: not CUDA, or torch has not initialised it.

    A device may also be a GPU by name (:func:`device_of_name`).

    Where Triton's interpreter stands in for a GPU, that is the one of the CPU.
    """
    assumed = _assumed.get()
    if assumed is not None:
        return assumed
    if not device.startswith("cuda"):
        return INTERPRETER if device == "cpu" and interpreting() else None
    if named_gpu(device) is not None:
        name = device.partition(":")[2]
        return Gpu(name.upper(), _by_name()[name][0])
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    return _torch_gpu(device)


@lru_cache(maxsize=32)
def _torch_gpu(device: str) -> Gpu:
    torch = sys.modules["torch"]
    return Gpu(torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device))


def constants_of(device: str) -> Constants:
    """Return the constants of a device; of no GPU, or one unseen by torch, those of compute capability 9.0.

    They are read when a GPU is first asked for, and then stay what they are in this process. Of a GPU by name
    (:func:`device_of_name`) they are those shipped.
    """
    if _assumed.get() is None:
        named = named_gpu(device)
        if named is not None:
            return named
    gpu = gpu_of(device)
    return fallback((9, 0)) if gpu is None else constants_of_gpu(gpu)


def constants_of_gpu(gpu: Gpu) -> Constants:
    """Return the constants of a GPU: the user's, those shipped for its name, or those of its compute capability.

    Of one that is assumed (:func:`assuming`) the user's do not count.
    """
    return _of_name(gpu.name, gpu.capability) if _assumed.get() is None else _shipped_for(gpu.name, gpu.capability)
