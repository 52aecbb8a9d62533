"""JSON files that several processes read and write: read without failing, replaced whole, behind a lock."""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..config import logger

__all__ = ["LockTimeoutError", "file_name", "locked", "read_json", "warn_once", "write_json"]

_warned: set[str] = set()

_POLL_S = 0.02


class LockTimeoutError(OSError):
    """Another process held a lock for too long."""


def warn_once(about: str, message: str, *arguments: object) -> None:
    """Log a warning, the first time that this process has one about `about` (a path, for example)."""
    if about not in _warned:
        _warned.add(about)
        logger.warning(message, *arguments)


def file_name(name: str) -> str:
    """Return `name`, of a GPU, in letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unnamed"


def read_json(path: Path) -> Any:
    """Return the content of a JSON file, or None where there is none or, with one warning, where it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        warn_once(str(path), "ignored %s: %s", path, error)
        return None


def write_json(path: Path, data: Any) -> None:
    """Replace `path` by `data` at once: readers see the old file or the new one.

    Raises
    ------
    OSError
        If the file cannot be written; what was there is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(data, file, indent=1, sort_keys=True)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _try_lock(handle: int) -> bool:
    """Lock the first byte of an open file for this process, and say whether that was possible at once."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        except OSError:
            return False
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def locked(path: Path, timeout_s: float = 30.0) -> Iterator[None]:
    """Hold the lock of `path`, a file ``<path>.lock`` beside it, inside the ``with`` block.

    The system frees the lock of a process that ends, however it ends; the file stays.

    Raises
    ------
    OSError
        If the folder cannot be written.
    LockTimeoutError
        If another process holds the lock for `timeout_s` seconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        end = time.monotonic() + timeout_s
        while not _try_lock(handle):
            if time.monotonic() > end:
                raise LockTimeoutError(f"{path} was locked by another process for {timeout_s:g} s")
            time.sleep(_POLL_S)
        yield
    finally:
        os.close(handle)  # closing frees the lock
