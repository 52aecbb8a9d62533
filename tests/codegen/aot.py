"""Compile a kernel ahead of time, without a GPU, and read what the compiler made of it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import triton
import triton.language as tl
from disassembly import dump, sass_of
from loops import counts, hot_loop, operations, round_trips
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from gpuconv.backends.triton.common import format_strides, launch_options
from gpuconv.backends.triton.conv_fprop import fprop_arguments, fprop_pack_arguments, fprop_sum_arguments
from gpuconv.backends.triton.conv_grad import dgrad_arguments, wgrad_arguments, wgrad_sum_arguments
from gpuconv.packing.compile import MOST_TENSOR_MEMORY
from gpuconv.problem import ConvProblem

POINTERS = {"float16": "*fp16", "bfloat16": "*bf16", "float32": "*fp32", "float64": "*fp64"}


@dataclass(frozen=True)
class Report:
    """What one compiled kernel costs. `stack` counts bytes per thread in local memory: spills and local arrays."""

    registers: int
    stack: int
    shared: int
    instructions: int
    counts: dict[str, int]
    wide_async: int

    def row(self) -> dict[str, Any]:
        """Return the report as plain data."""
        return asdict(self)


def specialise(kernel: Any, arguments: Mapping[str, Any], aligned: bool = True) -> ASTSource:
    """Describe a launch to the compiler as the JIT would: ones become constants, multiples of 16 are marked.

    Parameters
    ----------
    kernel
        The ``@triton.jit`` function.
    arguments
        Every argument by name; a pointer is given as its type, for example ``"*fp16"``, or None.
    aligned
        Whether pointers are aligned to 16 bytes.
    """
    signature, constants, attributes = {}, {}, {}
    parameters = {parameter.name: parameter for parameter in kernel.params}
    for place, name in enumerate(kernel.arg_names):
        value = arguments[name]
        if parameters[name].is_constexpr or value is None or (type(value) is int and value == 1):
            signature[name] = "constexpr"
            constants[name] = value
        elif isinstance(value, str):
            signature[name] = value
            if aligned:
                attributes[(place,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0:
                attributes[(place,)] = [["tt.divisibility", 16]]
    return ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)


def signature_of(source: ASTSource, config: Mapping[str, int]) -> str:
    """Return a hash of everything of a launch that the compiler sees beside the kernel's source."""
    constants = sorted((str(place), str(value)) for place, value in source.constants.items())
    seen = (source.fn.__name__, list(source.signature.items()), constants, sorted(source.attrs), config["num_warps"])
    options = (config["num_stages"], *([config["maxnreg"]] if "maxnreg" in config else []))
    return hashlib.sha256(repr((seen, *options)).encode()).hexdigest()[:12]


def compile_source(source: ASTSource, capability: int, config: Mapping[str, int], launched: bool = True) -> Any:
    """Compile for one compute capability, such as 90; what is `launched` there must have enough tensor memory.

    Triton asks for that at a launch alone, and what the assembler makes of more is an empty kernel.
    """
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch_options(config))
    assert not launched or excess_of_tensor_memory(compiled) == 0, (source.name, dict(config))
    return compiled


def excess_of_tensor_memory(compiled: Any) -> int:
    """Return the columns of tensor memory that a kernel needs beyond those of a multiprocessor of sm_100."""
    return max((getattr(compiled.metadata, "tmem_size", None) or 0) - MOST_TENSOR_MEMORY, 0)


def compile_for(source: ASTSource, capability: int, config: Mapping[str, int]) -> dict[str, Any]:
    """Compile for one compute capability and return the report and what the hot loop looks like."""
    compiled = compile_source(source, capability, config)
    sass = sass_of(compiled.asm["cubin"])
    loop = {"hot_loop": hot_loop(sass), "round_trips": round_trips(compiled.asm["ttgir"])}
    return report(compiled, sass).row() | loop


def report(compiled: Any, sass: str) -> Report:
    """Read registers, stack and instructions from the binary of a kernel and its disassembly."""
    usage = dump(compiled.asm["cubin"], "--dump-resource-usage")
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found is not None, usage
    executed = operations(sass)
    return Report(
        registers=int(found[1]),
        stack=int(found[2]),
        shared=compiled.metadata.shared,
        instructions=len(executed),
        counts=counts(sass),
        wide_async=sum(1 for operation in executed if operation.startswith("LDGSTS") and ".128" in operation),
    )


def launch_arguments(problem: ConvProblem, config: Mapping[str, int]) -> dict[str, Any]:
    """Return every argument of the general kernel of the pass of `problem`, pointers as types."""
    pointer, strides = POINTERS[problem.dtype], format_strides(problem)
    pointers: dict[str, str | None] = {f"{name}_ptr": pointer for name in "xwy"}
    if problem.kind == "wgrad":
        arguments = wgrad_arguments(problem, strides, config)
        pointers["w_ptr"] = pointer if config["splits"] == 1 else partial_pointer(problem)
        pointers["bias_ptr"] = pointers["w_ptr"] if problem.bias else None
    else:
        describe = fprop_arguments if problem.kind == "fprop" else dgrad_arguments
        arguments = describe(problem, strides, config)
        pointers |= epilogue_pointers(problem)
        if config.get("splits", 1) > 1:
            pointers |= dict.fromkeys(epilogue_pointers(problem)) | {"y_ptr": partial_pointer(problem)}
    return pointers | arguments | {"ACC_DTYPE": tl.float64 if problem.dtype == "float64" else tl.float32}


def epilogue_pointers(problem: ConvProblem) -> dict[str, str | None]:
    """Return the types of the pointers of the epilogue, None where the problem has no such tensor."""
    given = {"bias": problem.bias, "scale": problem.scale, "shift": problem.shift, "residual": problem.residual}
    return {f"{name}_ptr": POINTERS[problem.dtype] if there else None for name, there in given.items()}


def fprop_pass_arguments(name: str, problem: ConvProblem, config: Mapping[str, int]) -> dict[str, Any]:
    """Return every argument of the pass "fprop_pack" or "fprop_sum", pointers as types."""
    pointer, strides = POINTERS[problem.dtype], format_strides(problem)
    if name == "fprop_pack":
        return {"w_ptr": pointer, "packed_ptr": pointer} | fprop_pack_arguments(problem, strides, config)
    pointers = {"partial_ptr": partial_pointer(problem), "y_ptr": pointer} | epilogue_pointers(problem)
    return pointers | fprop_sum_arguments(problem, strides, config)


def sum_arguments(problem: ConvProblem, config: Mapping[str, int]) -> dict[str, Any]:
    """Return every argument of the kernel that adds the splits of a weight gradient, pointers as types."""
    pointers = {"partial_ptr": partial_pointer(problem), "w_ptr": POINTERS[problem.dtype]}
    pointers["bias_ptr"] = pointers["w_ptr"] if problem.bias else None
    return pointers | wgrad_sum_arguments(problem, format_strides(problem), config)


def partial_pointer(problem: ConvProblem) -> str:
    """Return the type of a pointer to partial sums."""
    return POINTERS["float64" if problem.dtype == "float64" else "float32"]
