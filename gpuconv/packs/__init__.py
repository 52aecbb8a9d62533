"""Kernels that arrive compiled: what a launch is known by, packs of cubins, where they lie, and how they are loaded.

A pack is a folder of cubins with one index. Backends ask here before they ask Triton; what is found is launched through
the CUDA driver, without Triton, without a compiler, and without a write to disk.
"""
