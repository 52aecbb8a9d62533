"""Compiled kernels for gpuconv: an index and cubins, which gpuconv finds without importing this."""
