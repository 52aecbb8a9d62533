"""Triton kernels of convolution; entered by the Triton backend."""
