"""Kernels that arrive compiled, what a launch is known by, and how they are loaded; entered by backends and packing.

A pack is a folder of cubins with one index. Backends ask here before they ask Triton; what is found is launched through
the CUDA driver, without Triton, without a compiler, and without a write to disk.
"""

from .driver import DriverError, PackedCuda, PackedKernel, check_parameters, load
from .identity import ALIGNMENT, CONSTANT, KernelReference, TypeName, cuda_key_of, key_of, sources_hash
from .index import CudaEntry, Entry, Index, PackError, arch_number, claim, read_cubin, read_index, write_pack
from .origins import NotPackedError, note, refuse_to_compile
from .search import Found, any_packs, look_up, look_up_cuda, packs

__all__ = [
    "ALIGNMENT",
    "CONSTANT",
    "CudaEntry",
    "DriverError",
    "Entry",
    "Found",
    "Index",
    "KernelReference",
    "NotPackedError",
    "PackError",
    "PackedCuda",
    "PackedKernel",
    "TypeName",
    "any_packs",
    "arch_number",
    "check_parameters",
    "claim",
    "cuda_key_of",
    "key_of",
    "load",
    "look_up",
    "look_up_cuda",
    "note",
    "packs",
    "read_cubin",
    "read_index",
    "refuse_to_compile",
    "sources_hash",
    "write_pack",
]
