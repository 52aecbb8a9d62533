"""Whole models, layer by layer, without memory and without a GPU; entered by callers and the command line."""

from .report import Row, Summary
from .summarize import summarize

__all__ = ["Row", "Summary", "summarize"]
