"""The CuPy backend: CUDA C++ kernels on CuPy's arrays and torch's tensors; entered by dispatch."""

from .backend import BACKEND

__all__ = ["BACKEND"]
