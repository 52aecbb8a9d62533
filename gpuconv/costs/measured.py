"""Tuned configs: the tables that are shipped, and the cache of what was timed on this machine.

``<cache directory>/tuned/<gpu>.json`` has one section per fingerprint: versions of gpuconv and Triton, and a hash of
the kernels and of what plans them. A process reads the section of its own fingerprint when a problem is first planned
on a GPU, and from then on its tables stay what they are, whatever is written: tuning never changes the results of a
running process. Writers hold a lock, read, merge and replace the file, so two processes that tune at once lose nothing.

The user's cache wins over the shipped table, which wins over the cost model. What cannot be read (a broken file, a
schema of another version, entries of other versions alone) is ignored with one warning. An entry never makes a solver
run a config that it would not propose itself.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import Lock
from typing import Any

from .. import kernels
from ..config import VERSION, cache_directory, logger, tuning_mode
from ..problem import Problem
from .constants import Gpu, gpu_of
from .files import file_name, locked, read_json, warn_once, write_json

__all__ = [
    "SCHEMA",
    "Entries",
    "Entry",
    "Fingerprint",
    "batch_bucket",
    "cache_path",
    "entries_in",
    "fingerprint",
    "forget",
    "key_of",
    "lookup",
    "record",
]

SCHEMA = 1

_SECTIONS = 8
"""Fingerprints that a file keeps; the one that was written to longest ago goes."""

_NOT_IN_KEYS = ("op", "n", "device", "array", "_hash")
"""Fields that change neither which config is best nor what it computes; the batch size is in the key as its bucket."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A timed config of a solver: its microseconds at batch size `n`, and where this comes from."""

    config: Mapping[str, Any]
    microseconds: float
    n: int
    source: str = "tuned"

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {"config": dict(self.config), "microseconds": self.microseconds, "n": self.n}


Entries = dict[str, dict[str, Entry]]
"""Entries by key of the problem and id of the solver."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What entries were measured with: entries of another one are not used."""

    gpuconv: str
    triton: str | None
    source: str


def batch_bucket(n: int) -> int:
    """Return the smallest power of two that is not below `n`."""
    return 1 << max(n - 1, 0).bit_length()


def key_of(problem: Problem) -> str:
    """Return the key of a problem: every field that a config may depend on, and the bucket of the batch size.

    Whether offsets need 64 bits is part of it. Strides and alignment of arrays, which problems do not have, are not.
    """
    words = [type(problem).__name__]
    for field in fields(problem):
        if field.name not in _NOT_IN_KEYS:
            value = getattr(problem, field.name)
            shown = "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
            words.append(f"{field.name}={shown}")
    return " ".join([*words, f"n<={batch_bucket(problem.n)}", f"index64={problem.index64}"])


def _sources() -> Iterator[Path]:
    """Yield the files that decide what an entry means: the kernels, and the solvers that plan and launch them."""
    here = Path(__file__).resolve().parent
    for folder in kernels.__path__:
        yield from sorted((Path(folder) / "tl").rglob("*.py"))
    yield from sorted((here.parent / "backends" / "triton").glob("*.py"))


@lru_cache(maxsize=1)
def fingerprint() -> Fingerprint:
    """Return the fingerprint of this process."""
    hashed = hashlib.sha256()
    for path in _sources():
        hashed.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = None
    return Fingerprint(VERSION, triton, hashed.hexdigest()[:16])


def cache_path(gpu: str) -> Path:
    """Return the file of what was timed on a GPU of that name."""
    return cache_directory() / "tuned" / f"{file_name(gpu)}.json"


def _entry(data: Any, source: str) -> Entry | None:
    if not isinstance(data, dict) or not isinstance(data.get("config"), dict):
        return None
    time: Any = data.get("microseconds")
    n: Any = data.get("n")
    plain = all(isinstance(value, bool | int | float | str) for value in data["config"].values())
    if type(time) not in (int, float) or not 0 < time < float("inf") or type(n) is not int or n < 1 or not plain:
        return None
    return Entry(data["config"], float(time), n, source)


def _entries(data: Any, source: str, origin: Path) -> Entries:
    """Read the entries of a section or a table, passing over those that are not entries."""
    found: Entries = {}
    bad = 0 if isinstance(data, dict) else 1
    for key, solvers in data.items() if isinstance(data, dict) else ():
        for solver, value in solvers.items() if isinstance(solvers, dict) else (("", None),):
            entry = _entry(value, source)
            if entry is None:
                bad += 1
            else:
                found.setdefault(key, {})[solver] = entry
    if bad:
        warn_once(str(origin), "ignored %d entries of %s that are not tuned configs", bad, origin)
    return found


def _sections(data: Any, gpu: str, path: Path) -> list[dict[str, Any]] | None:
    """Return the sections of the content of a cache file; None, with a warning, of what is no such file."""
    if data is None:
        return None
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        found = data.get("schema") if isinstance(data, dict) else type(data).__name__
        warn_once(str(path), "ignored %s: its schema is %r, this version reads %d", path, found, SCHEMA)
        return None
    sections = data.get("sections")
    if data.get("gpu") != gpu or not isinstance(sections, list) or not all(isinstance(s, dict) for s in sections):
        warn_once(str(path), "ignored %s: it is not a list of sections of %s", path, gpu)
        return None
    return sections


def _is_of(section: Mapping[str, Any], mark: Fingerprint) -> bool:
    return all(section.get(field.name) == getattr(mark, field.name) for field in fields(mark))


def entries_in(path: Path, gpu: str) -> Entries:
    """Return the entries of a cache file that this process may use, with one warning where there are others alone."""
    sections = _sections(read_json(path), gpu, path)
    if not sections:
        return {}
    for section in sections:
        if _is_of(section, fingerprint()):
            return _entries(section.get("entries"), "tuned", path)
    newest = sections[-1]
    warn_once(
        str(path),
        "ignored %s: it was tuned with gpuconv %s and triton %s, or with other kernels; run gpuconv tune again",
        path, newest.get("gpuconv"), newest.get("triton"),
    )  # fmt: skip
    return {}


@lru_cache(maxsize=1)
def _tables() -> list[tuple[str, Path, dict[str, Any]]]:
    """Return the shipped tables with the names of their GPUs."""
    found = []
    for path in sorted((Path(__file__).parent / "tables").glob("*.json")):
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["schema"] == SCHEMA:
            found.append((data["gpu"], path, data["entries"]))
    return found


_lock = Lock()
_read: dict[str, Entries] = {}


def _known(gpu: str) -> Entries:
    """Return the entries for a GPU as they were when this process first asked: the same for every thread."""
    with _lock:
        if gpu not in _read:
            _read[gpu] = {} if tuning_mode() == "off" else _merged_tables(gpu)
        return _read[gpu]


def _merged_tables(gpu: str) -> Entries:
    """Return the shipped entries for a GPU with the user's over them."""
    merged: Entries = {}
    for name, path, entries in _tables():
        if name == gpu:
            merged = _entries(entries, "table", path)
    for key, solvers in entries_in(cache_path(gpu), gpu).items():
        merged[key] = merged.get(key, {}) | solvers
    logger.debug("%d tuned problems for %s", len(merged), gpu)
    return merged


def forget() -> None:
    """Forget what was read, as a new process would have it. For tests; plans that were made stay."""
    with _lock:
        _read.clear()


def lookup(problem: Problem, solver: str) -> Entry | None:
    """Return the entry of a solver for a problem on the GPU of its device, or None."""
    gpu = gpu_of(problem.device)
    if gpu is None:
        return None
    known = _known(gpu.name)
    return known.get(key_of(problem), {}).get(solver) if known else None


def _merged(sections: list[dict[str, Any]], new: Entries) -> list[dict[str, Any]]:
    """Return `sections` with `new` in that of this process, which comes last."""
    mark = fingerprint()
    others = [section for section in sections if not _is_of(section, mark)]
    mine = next((section for section in sections if _is_of(section, mark)), {})
    old = mine.get("entries")
    entries: dict[str, Any] = dict(old) if isinstance(old, dict) else {}
    for key, solvers in new.items():
        kept = entries.get(key)
        added = {solver: entry.to_json() for solver, entry in solvers.items()}
        entries[key] = (kept if isinstance(kept, dict) else {}) | added
    written = datetime.now(UTC).isoformat(timespec="seconds")
    section = {field.name: getattr(mark, field.name) for field in fields(mark)}
    return [*others[1 - _SECTIONS :], section | {"written": written, "entries": entries}]


def record(gpu: Gpu, new: Entries) -> bool:
    """Add entries to the user's cache of a GPU; return whether that was possible.

    What other processes wrote stays, of this and of other versions. A file that cannot be read is put aside as
    ``<name>.unreadable``. A folder that cannot be written leads to one warning.
    """
    path = cache_path(gpu.name)
    try:
        with locked(path):
            sections = _sections(read_json(path), gpu.name, path)
            if sections is None and path.exists():
                os.replace(path, path.with_name(path.name + ".unreadable"))
            merged = _merged(sections or [], new)
            write_json(path, {"schema": SCHEMA, "gpu": gpu.name, "sections": merged})
    except OSError as error:
        warn_once(f"write {path}", "tuned configs were not saved to %s: %s", path, error)
        return False
    return True
