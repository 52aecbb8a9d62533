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
    """A bar of tqdm's where it is installed and a terminal is attached, else a line every few seconds."""

    def __init__(self, label: str, total: int, deadline: float | None = None, every: float = 5.0) -> None:
        self.label, self.total, self.deadline, self.every = label, total, deadline, every
        self.count, self.started, self.printed = 0, time.monotonic(), 0.0
        self._bar: Any = None
        if sys.stderr.isatty():
            try:
                from tqdm import tqdm
            except ModuleNotFoundError:
                return
            self._bar = tqdm(total=total, desc=label, leave=False)

    def left(self) -> float:
        """Return the seconds that remain at the pace so far, or of the budget, whichever is less."""
        elapsed = time.monotonic() - self.started
        pace = elapsed / max(self.count, 1) * (self.total - self.count)
        return pace if self.deadline is None else max(0.0, min(pace, self.deadline - time.monotonic()))

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
            print(f"{self.label} {self.count}/{self.total}, {_clock(self.left())} left: {text}", flush=True)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
