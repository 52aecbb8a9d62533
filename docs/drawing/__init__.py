"""Figures of the documentation, drawn when it is built, from the numbers that the pages compute."""

from .grids import matrix, numbers, pictures, sliding, windows
from .layers import bars, cone, lines, wiring
from .photo import photograph
from .tiles import banded, bytes_of, fields, gather, marching, phases, product, ring, runs, separable, splits

__all__ = [
    "banded",
    "bars",
    "bytes_of",
    "cone",
    "fields",
    "gather",
    "lines",
    "marching",
    "matrix",
    "numbers",
    "phases",
    "photograph",
    "pictures",
    "product",
    "ring",
    "runs",
    "separable",
    "sliding",
    "splits",
    "windows",
    "wiring",
]
