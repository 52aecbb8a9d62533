"""A row of the summary: a problem with the records of everyone who solved it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .cases import Case

__all__ = ["OTHERS", "TORCH", "Row"]

TORCH = ("torch_channels_last", "torch_contiguous")
OTHERS = ("gpuconv_cupy", "inductor", "flag_gems", "tileops")


@dataclass(frozen=True, slots=True)
class Row:
    """One problem: our record, the better of torch's two, the others', and what follows from them."""

    case: Case
    ours: Mapping[str, Any]
    torch: Mapping[str, Any] | None
    others: Mapping[str, Mapping[str, Any]]
    figures: Mapping[str, float | None]

    @property
    def us(self) -> float | None:
        """Our kernel time, the median in microseconds, if the gate passed."""
        return self.ours["kernel"]["p50"] if "kernel" in self.ours else None

    @property
    def torch_us(self) -> float | None:
        """The better of torch's."""
        return None if self.torch is None else self.torch["kernel"]["p50"]

    @property
    def speedup(self) -> float | None:
        """Torch's time over ours: above 1 we are faster."""
        return None if self.us is None or self.torch_us is None else self.torch_us / self.us
