"""Models in ONNX: what the operators of this library are there; entered by callers, after their model is made."""

from .table import onnx_translations

__all__ = ["onnx_translations"]
