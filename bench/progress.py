"""How far a run is, and how long it may still take."""

from __future__ import annotations

import sys
import time
from typing import Any

__all__ = ["Progress"]


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"


class Progress:
    """A bar of tqdm's where it is installed and a terminal is attached, else a line every few seconds.

    How many items there are may not be known: they are listed as they are done.
    """

    def __init__(self, label: str, deadline: float | None = None, total: int | None = None, every: float = 5.0) -> None:
        self.label, self.total, self.deadline, self.every = label, total, deadline, every
        self.count, self.started, self.printed = 0, time.monotonic(), 0.0
        self._bar: Any = None
        if sys.stderr.isatty():
            try:
                from tqdm import tqdm
            except ModuleNotFoundError:
                return
            self._bar = tqdm(total=total, desc=label, leave=False)

    def left(self) -> float | None:
        """Return the seconds that remain at the pace so far, or of the budget, whichever is less and known."""
        known = []
        if self.total is not None:
            elapsed = time.monotonic() - self.started
            known.append(elapsed / max(self.count, 1) * (self.total - self.count))
        if self.deadline is not None:
            known.append(max(0.0, self.deadline - time.monotonic()))
        return min(known, default=None)

    def step(self, text: str) -> None:
        """Count one item."""
        self.count += 1
        if self._bar is not None:
            self._bar.set_postfix_str(text[:60])
            self._bar.update()
            return
        now = time.monotonic()
        if now - self.printed >= self.every or self.count == self.total:
            self.printed = now
            of, left = "" if self.total is None else f"/{self.total}", self.left()
            rest = "" if left is None else f", {_clock(left)} left"
            print(f"{self.label} {self.count}{of}{rest}: {text}", flush=True)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
