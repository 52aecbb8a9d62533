"""The NumPy backend: the reference, and what runs where there is no GPU; entered by dispatch."""

from .backend import BACKEND

__all__ = ["BACKEND"]
