"""The Triton backend: kernels on CUDA tensors, or interpreted; entered by dispatch, and by tuning for its configs."""

from .backend import BACKEND

__all__ = ["BACKEND"]
