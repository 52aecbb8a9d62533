"""Triton kernels of pooling, unfold and fold; entered by the Triton backend."""
