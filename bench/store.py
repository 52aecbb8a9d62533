"""Results on disk: one JSON line per measurement, complete or absent, whenever the program dies."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .sources import depends_on

__all__ = ["FAILED", "LIMIT_BYTES", "ResultsFullError", "Store", "write_atomically"]

FAILED = ("wrong", "error", "crashed")
"""Statuses of records that somebody has to look at."""

LIMIT_BYTES = 15 << 20
"""Largest file of results: what comes back from a rented machine may be limited to 16 MiB a file."""


class ResultsFullError(RuntimeError):
    """The file of results has reached its limit."""


class Store:
    """Records in ``results.jsonl``, by (stage, key); a half-written last line is cut off.

    A pair is recorded once, and again where its sources have changed since or it is asked for again. Several processes
    may append; which of them records a pair is for them to agree on.

    Parameters
    ----------
    folder
        Where the file lies; made if missing.
    fingerprint
        Identity of hardware and libraries. Records of another one stay in the file, but do not count as done.
    known
        Hashes of the sources, see :mod:`bench.sources`. Records of other ones do not count either.
    session
        Name of the command that records: what another one left as failed may be asked for again.
    """

    def __init__(
        self,
        folder: Path,
        fingerprint: str,
        known: Mapping[str, str] | None = None,
        session: str = "",
        limit: int = LIMIT_BYTES,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "results.jsonl"
        self.fingerprint, self.known, self.session = fingerprint, known or {}, session
        self.limit = limit
        self.records = list(self._load())
        self._latest: dict[tuple[str, str], dict[str, Any]] = {}
        self._stale: dict[tuple[str, str], dict[str, Any]] = {}
        for record in self.records:
            if record["run"] == fingerprint:
                self._file_in(record)
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def _load(self) -> Iterator[dict[str, Any]]:
        if not self.path.exists():
            return
        with self.path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # no other process is in the middle of a line
            content = file.read()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                file.truncate(whole)
        for line in content[:whole].splitlines():
            yield json.loads(line)

    def _file_in(self, record: dict[str, Any]) -> None:
        pair = record["stage"], record["key"]
        if record.get("sources", "") == depends_on(record, self.known):
            self._latest[pair] = record
            self._stale.pop(pair, None)
        elif pair not in self._latest:
            self._stale[pair] = record

    def current(self) -> list[dict[str, Any]]:
        """Return the latest record of each pair, on this hardware and software."""
        return list(self._latest.values())

    def stale(self) -> list[dict[str, Any]]:
        """Return the latest record of each pair that has none of today's sources."""
        return list(self._stale.values())

    def find(self, stage: str, key: str) -> dict[str, Any] | None:
        """Return the record of (stage, key) that counts, if there is one."""
        return self._latest.get((stage, key))

    def done(self, stage: str, key: str) -> bool:
        """Tell whether (stage, key) is recorded."""
        return (stage, key) in self._latest

    def failed_before(self, stage: str, key: str) -> bool:
        """Tell whether an earlier session recorded (stage, key) last, as wrong or failed, of whatever sources."""
        record = self._latest.get((stage, key)) or self._stale.get((stage, key))
        return record is not None and record.get("status") in FAILED and record.get("session") != self.session

    def forget(self, stage: str, key: str) -> None:
        """Let (stage, key) be recorded again: what is there does not count any more."""
        found = self._latest.pop((stage, key), None)
        if found is not None:
            self._stale[stage, key] = found

    def add(self, stage: str, key: str, **fields: Any) -> dict[str, Any]:
        """Append one record; it is on disk when this returns.

        Raises
        ------
        ResultsFullError
            If the file would pass its limit.
        ValueError
            If (stage, key) is recorded already.
        """
        if self.done(stage, key):
            raise ValueError(f"{stage}: {key!r} is recorded already")
        record = {"stage": stage, "key": key, "run": self.fingerprint, **fields}
        record |= {"sources": depends_on(record, self.known), "session": self.session}
        line = (json.dumps(record, allow_nan=False, separators=(",", ":")) + "\n").encode()
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            if os.fstat(self._file).st_size + len(line) > self.limit:
                raise ResultsFullError(f"{self.path} has reached {self.limit >> 20} MiB")
            written = os.write(self._file, line)
            assert written == len(line), "a short write: the disk is full"
            os.fsync(self._file)
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)
        self.records.append(record)
        self._file_in(record)
        return record

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by `text`: readers see the old content or the new."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)
