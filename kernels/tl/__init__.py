"""Triton kernels; entered by the Triton backend.

Importing this package imports no framework; each module imports triton itself.
"""
