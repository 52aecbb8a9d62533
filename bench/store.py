"""Results on disk: one JSON line per measurement, complete or absent, whenever the program dies."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["LIMIT_BYTES", "ResultsFullError", "Store", "write_atomically"]

LIMIT_BYTES = 15 << 20
"""Largest file of results: what comes back from a rented machine may be limited to 16 MiB a file."""


class ResultsFullError(RuntimeError):
    """The file of results has reached its limit."""


class Store:
    """Records in ``results.jsonl``, by (stage, key). A pair is recorded once; a half-written last line is cut off.

    Several processes may append; which of them records a pair is for them to agree on.

    Parameters
    ----------
    folder
        Where the file lies; made if missing.
    fingerprint
        Identity of hardware and software. Records of another one stay in the file, but do not count as done.
    """

    def __init__(self, folder: Path, fingerprint: str, limit: int = LIMIT_BYTES) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "results.jsonl"
        self.fingerprint = fingerprint
        self.limit = limit
        self.records = list(self._load())
        self._done = {(r["stage"], r["key"]) for r in self.current()}
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

    def current(self) -> list[dict[str, Any]]:
        """Return the records of this hardware and software."""
        return [record for record in self.records if record["run"] == self.fingerprint]

    def done(self, stage: str, key: str) -> bool:
        """Tell whether (stage, key) is recorded."""
        return (stage, key) in self._done

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
        self._done.add((stage, key))
        return record

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by `text`: readers see the old content or the new."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)
