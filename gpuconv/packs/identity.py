"""What a launch is known by, without Triton: its kernel, its constants, and what a compiler is told of the arguments.

The rules are those of Triton's JIT: None and integers equal to 1 are constants, of other integers the compiler knows
whether they need 64 bits and whether 16 divides them, of pointers whether 16 divides their address. By a rule of this
library the names of ``constexpr`` parameters are in capitals, and no others: so no kernel's source has to be read.
Of the numbers and pointers of kernels that take tensor maps, those of ``hopper`` and ``conv.tma``, the compiler knows
the types alone: their binaries serve all sizes for which the constants are the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from importlib.resources import files
from typing import Any

from ..launcher import TensorMap

__all__ = [
    "ALIGNMENT",
    "CONSTANT",
    "TYPES",
    "KernelReference",
    "TypeName",
    "cuda_key_of",
    "described",
    "key_of",
    "sources_hash",
]

ALIGNMENT = 16
"""What the compiler is told to divide a number or an address, or not."""

_POINTERS = {
    "bool": "*i1", "uint8": "*u8", "int8": "*i8", "float8_e4m3fn": "*fp8e4nv", "int16": "*i16", "uint16": "*u16",
    "float16": "*fp16", "bfloat16": "*bf16", "int32": "*i32", "uint32": "*u32", "float32": "*fp32", "int64": "*i64",
    "uint64": "*u64", "float64": "*fp64",
}  # fmt: skip

CONSTANT = "constexpr"

TYPES = frozenset({"i32", "i64", "u64", "fp32", *_POINTERS.values()})
"""The types of what is no constant, as :func:`described` names them."""


class TypeName(str):
    """The name of a type of Triton's that a kernel takes as a constant, such as ``"float32"``."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class KernelReference:
    """A kernel of ``gpuconv.kernels.tl``, which is imported, and Triton with it, when it is loaded."""

    module: str
    name: str

    @property
    def one_binary(self) -> bool:
        """Whether the compiler is told of numbers and pointers their types alone."""
        return self.module.startswith("hopper.") or self.module == "conv.tma"

    @property
    def id(self) -> str:
        """What a pack calls it."""
        return f"{self.module}:{self.name}"

    def load(self) -> Any:
        """Return the ``@triton.jit`` function."""
        return getattr(import_module(f"gpuconv.kernels.tl.{self.module}"), self.name)


def described(name: str, value: Any, aligned: bool | None = None, one_binary: bool = False) -> list[Any]:
    """Return what the compiler is told of an argument, as plain data.

    Parameters
    ----------
    name
        Its name.
    value
        A constant, None, a number, a tensor map, or a torch tensor that stands for its address.
    aligned
        Whether the address of a tensor is a multiple of 16; by default that is looked up.
    one_binary
        That of the kernel.

    Raises
    ------
    TypeError
        If kernels of this library take no such argument.
    """
    if name.isupper():
        return [CONSTANT, f"tl.{value}" if isinstance(value, TypeName) else value]
    if value is None:
        return [CONSTANT, None]
    if isinstance(value, TensorMap):
        return [str(value.type), False]
    if type(value) is int:
        if value == 1 and not one_binary:
            return [CONSTANT, 1]
        fits = -(2**31) <= value < 2**31
        type_ = "i32" if fits else "i64" if -(2**63) <= value < 2**63 else "u64"
        return [type_, value % ALIGNMENT == 0 and not one_binary]
    if type(value) is float:
        return ["fp32", False]
    dtype = str(getattr(value, "dtype", None)).removeprefix("torch.")
    if dtype not in _POINTERS:
        raise TypeError(f"argument {name}: kernels take tensors, integers and floats, but got {value!r}")
    if aligned is None:
        aligned = value.data_ptr() % ALIGNMENT == 0
    return [_POINTERS[dtype], aligned and not one_binary]


def key_of(
    kernel: KernelReference,
    arguments: Mapping[str, Any],
    options: Mapping[str, Any],
    aligned: bool | None = None,
) -> tuple[str, dict[str, list[Any]]]:
    """Return what a launch is known by, and what the compiler is told of each argument (:func:`described`).

    Parameters
    ----------
    kernel
        The kernel.
    arguments
        Every argument by name.
    options
        Options of the compiler, such as ``num_warps``.
    aligned
        That of :func:`described`, for all tensors.
    """
    told = {name: described(name, value, aligned, kernel.one_binary) for name, value in sorted(arguments.items())}
    text = json.dumps([kernel.id, told, sorted(options.items())], separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest(), told


def cuda_key_of(text: str, kernel: str, options: Sequence[str]) -> str:
    """Return what a kernel of CUDA C++ is known by.

    Parameters
    ----------
    text
        The whole source.
    kernel
        Its C++ name with template arguments.
    options
        Options of NVRTC, the architecture not among them.
    """
    return hashlib.sha256(json.dumps([text, kernel, list(options)]).encode()).hexdigest()


@lru_cache(maxsize=1)
def sources_hash() -> str:
    """Return a hash of the sources of every kernel: a pack made of others is of another library."""
    found = hashlib.sha256()
    for package in ("gpuconv.kernels.tl", "gpuconv.kernels.cu"):
        for name, content in sorted(_sources(files(package), "")):
            found.update(f"{name}\0{len(content)}\0".encode() + content)
    return found.hexdigest()


def _sources(folder: Any, prefix: str) -> list[tuple[str, bytes]]:
    listed: list[tuple[str, bytes]] = []
    for item in folder.iterdir():
        if item.is_dir() and item.name != "__pycache__":
            listed += _sources(item, f"{prefix}{item.name}/")
        elif item.name.endswith((".py", ".cu", ".cuh")):
            listed.append((prefix + item.name, item.read_bytes()))
    return listed
