"""One launch, compiled for one architecture: runs in processes of their own, which import Triton."""

from __future__ import annotations

import atexit
import hashlib
import os
import re
import subprocess
from typing import Any

from ..launcher import MapType, copies_as_told, is_map, parse_map_type
from ..packs import ALIGNMENT, CONSTANT, Entry, arch_number
from .plans import Launch

__all__ = ["MOST_TENSOR_MEMORY", "compile_entries", "compiler_versions", "prepare"]

MOST_TENSOR_MEMORY = 512
"""Columns of tensor memory that a multiprocessor of sm_100 has (PTX ISA, "Tensor Memory")."""


def prepare() -> None:
    """Set up a process that compiles: without line numbers, which hold paths, so that bytes are equal everywhere."""
    os.environ["TRITON_DISABLE_LINE_INFO"] = "1"
    atexit.register(_say_nothing_more)
    os.environ.pop("TRITON_INTERPRET", None)
    import torch  # noqa: F401  whose tensors stand for arrays


def _say_nothing_more() -> None:
    """Close the error output of a process that ends: Triton 3.9's bindings list what they leaked, where Gluon ran."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _constant(value: Any) -> Any:
    import triton.language as tl

    named = isinstance(value, str) and value.startswith("tl.")
    return getattr(tl, value.removeprefix("tl.")) if named else value


def _descriptor(type: MapType, gluon: bool) -> str:
    """Return the type of a tensor map by Triton's name."""
    box, dtype = ",".join(map(str, type.box)), "fp32" if type.dtype == "tf32" else type.dtype
    if not gluon:
        return f"tensordesc<{dtype}[{box}]>"
    from ..backends.triton.gluon import layout_of_map

    mode, rank = ("tensordesc_im2col", f"input_rank={type.axes},") if type.axes else ("tensordesc", "")
    return f"{mode}<{dtype}[{box}],{rank}{layout_of_map(type)!r}>"


def _source(launch: Launch) -> Any:
    """Return what Triton compiles: the kernel, and what it is told of every argument."""
    from triton.compiler import ASTSource

    kernel = launch.kernel.load()
    gluon = getattr(kernel, "is_gluon", lambda: False)()
    signature, constants, attributes = {}, {}, {}
    for place, name in enumerate(kernel.arg_names):
        type_, known = launch.told[name]
        signature[name] = _descriptor(parse_map_type(type_), gluon) if is_map(type_) else type_
        if type_ == CONSTANT:
            constants[name] = _constant(known)
        elif known:
            attributes[(place,)] = [["tt.divisibility", ALIGNMENT]]
    kind: Any = ASTSource
    if gluon:
        from triton.experimental.gluon import GluonASTSource

        kind = GluonASTSource
    return kind(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)


def _resources(cubin: bytes) -> tuple[int, int]:
    """Return registers and bytes of stack of the function of a cubin, as ``cuobjdump`` reads them."""
    import tempfile

    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    if found is None:
        raise RuntimeError(f"cuobjdump says nothing of registers: {text[:200]}")
    return int(found[1]), int(found[2])


def compile_entries(launch: Launch, arch: str) -> tuple[list[Entry], bytes]:
    """Return the one entry of a launch in a list, and its cubin.

    Raises
    ------
    RuntimeError
        If the compiler refuses it, or the kernel needs what a pack does not describe; the message names the launch.
    """
    import triton
    from triton.backends.compiler import GPUTarget

    number = arch_number(arch)
    source = _source(launch)
    try:
        compiled = triton.compile(source, target=GPUTarget("cuda", number, 32), options=dict(launch.options))
    except Exception as error:
        raise RuntimeError(f"{launch.kernel.id} of {launch.solver} for {arch}: {error}") from error
    metadata, cubin, ptx = compiled.metadata, compiled.asm["cubin"], compiled.asm["ptx"]
    scratch = getattr(metadata, "global_scratch_size", 0) or getattr(metadata, "profile_scratch_size", 0)
    if scratch:
        raise RuntimeError(f"{launch.kernel.id} of {launch.solver} needs scratch memory, which packs do not describe")
    columns = getattr(metadata, "tmem_size", None) or 0
    if columns > MOST_TENSOR_MEMORY:  # the assembler makes an empty kernel of it, without a word
        raise RuntimeError(
            f"{launch.kernel.id} of {launch.solver} for {arch} needs {columns} columns of tensor memory, "
            f"there are {MOST_TENSOR_MEMORY}"
        )
    target = re.search(r"^\.target (sm_\w+)", ptx, re.MULTILINE)
    registers, stack = _resources(cubin)
    parameters = tuple(
        (name, told, is_map(told) or (bool(launch.told[name][1]) and told[0] == "*"))
        for name in source.signature
        if (told := launch.told[name][0]) != CONSTANT
    )
    types = [(name, parse_map_type(told)) for name, told, _ in parameters if is_map(told)]
    maps = tuple((name, type.message) for name, type in types)
    if not copies_as_told(metadata, [type for _, type in types]):
        about = getattr(metadata, "tensordesc_meta", None)
        raise RuntimeError(f"{launch.kernel.id} of {launch.solver} copies boxes of {about}, not {maps}")
    constants = {name: launch.told[name][1] for name, type_ in source.signature.items() if type_ == CONSTANT}
    cluster = (metadata.num_ctas, 1, 1)
    entry = Entry(
        key=launch.key, arch=target[1] if target else arch, kernel=launch.kernel.id, solver=launch.solver,
        name=metadata.name, constants=constants, parameters=parameters, warps=metadata.num_warps,
        shared=metadata.shared, cluster=cluster, tensor_maps=maps, registers=registers, stack=stack,
        cubin=hashlib.sha256(cubin).hexdigest(),
    )  # fmt: skip
    return [entry], cubin


def compiler_versions(arch: str) -> dict[str, str]:
    """Return the releases of Triton and of the assembler that it uses for an architecture."""
    import triton
    from triton import knobs

    number = arch_number(arch)
    name = "ptxas_blackwell" if number >= 100 and hasattr(knobs.nvidia, "ptxas_blackwell") else "ptxas"
    return {"triton": triton.__version__, f"ptxas {arch}": getattr(knobs.nvidia, name).version}
