"""Configs timed on this machine's GPU, and the cost model fitted to the times; entered by callers."""

from ..dispatch import from_json, to_json
from .fitting import Sample, fit
from .search import Record, Timing, consider, fit_to_user, samples_from_json, tune

__all__ = [
    "Record",
    "Sample",
    "Timing",
    "consider",
    "fit",
    "fit_to_user",
    "from_json",
    "samples_from_json",
    "to_json",
    "tune",
]
