"""Launches as the compiler sees them: written down where the interpreter runs them, and built where it does not.

The interpreter computes with NumPy and checks no types: a variable may change its shape from one turn of a loop to the
next. The compiler's front end refuses that, and whatever else it does depends on what a launch is specialised for: the
types of its arguments, and the values of those that are constants of the compiled kernel. Alignment and divisibility
mark arguments and change no type, and the options of a launch are for later stages: both are left out.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import triton.language as tl
from triton._C.libtriton import ir, native_specialize_impl
from triton.backends.compiler import BaseBackend, GPUTarget
from triton.compiler import ASTSource
from triton.compiler.compiler import make_backend

from gpuconv.backends.triton.common import launch_options

__all__ = [
    "FOLDER", "OURS", "build", "collected", "describe", "recorded", "refusal", "source_of", "sources", "write_launches",
]  # fmt: skip

FOLDER = "GPUCONV_LAUNCHES"
"""The environment variable that names the folder of launches: interpreting processes write a file each."""

OURS = ("gpuconv.", "bench.")
"""Packages whose kernels are written down; deliberate mistakes of tests are in others."""

KERNELS = Path(__file__).resolve().parents[1] / "kernels" / "tl"
TARGET = GPUTarget("cuda", 90, 32)


def sources() -> str:
    """Return a hash of the sources of all kernels: what was launched of others says nothing about these."""
    return sha256(b"".join(path.read_bytes() for path in sorted(KERNELS.rglob("*.py")))).hexdigest()[:16]


@cache
def _parameters(function: Callable[..., Any]) -> tuple[tuple[str, bool, Any], ...]:
    """Return name, whether it is a constant of every compiled kernel, and default of each parameter of a kernel."""
    found = inspect.signature(function).parameters.values()
    return tuple((p.name, "constexpr" in str(p.annotation), p.default) for p in found)


def _as_json(value: Any) -> Any:
    """Return a constant as JSON holds it: a type of Triton by its name."""
    value = value.value if isinstance(value, tl.constexpr) else value
    if isinstance(value, tl.dtype):
        return {"dtype": value.name}
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"a constant of a kernel is {value!r}, a {type(value).__name__}")


def describe(kernel: Any, arguments: Mapping[str, Any]) -> str:
    """Return a launch as JSON: ``{"kernel": "module:name", "arguments": {name: type or [constant]}}``."""
    described: dict[str, Any] = {}
    for name, is_constant, default in _parameters(kernel.fn):
        value = arguments.get(name, default)
        if is_constant:
            described[name] = [_as_json(value)]
            continue
        type_name, known = native_specialize_impl(BaseBackend, value, False, True, False)  # what the JIT itself asks
        described[name] = [known] if type_name == "constexpr" else type_name
    return json.dumps({"kernel": f"{kernel.fn.__module__}:{kernel.__name__}", "arguments": described})


def write_launches(kind: type, folder: Path) -> None:
    """Write every distinct launch of our kernels, functions of `kind`, from now on into a file of this process."""
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / f"{os.getpid()}.jsonl").open("a", buffering=1)
    file.write(f"{json.dumps({'sources': sources()})}\n")
    run, seen = kind.run, set()

    def run_and_write(self: Any, *args: Any, grid: Any, warmup: bool, **named: Any) -> Any:
        if self.fn.__module__.startswith(OURS):
            launch = describe(self, dict(zip(self.arg_names, args)) | named)
            if launch not in seen:
                seen.add(launch)
                file.write(f"{launch}\n")
        return run(self, *args, grid=grid, warmup=warmup, **named)

    kind.run = run_and_write


def collected(folder: Path) -> tuple[list[str], set[str]]:
    """Return the distinct launches that processes wrote into `folder`, sorted, and the sources that they were of."""
    lines = {line for path in folder.glob("*.jsonl") for line in path.read_text().splitlines()}
    heads = {line for line in lines if line.startswith('{"sources"')}
    return sorted(lines - heads), {json.loads(head)["sources"] for head in heads}


@contextmanager
def recorded(kind: type) -> Iterator[list[str]]:
    """Gather launches of functions of `kind` inside the ``with`` block, in order, instead of running them."""
    launches: list[str] = []

    def note(self: Any, *args: Any, grid: Any, warmup: bool, **named: Any) -> None:
        launches.append(describe(self, dict(zip(self.arg_names, args)) | named))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "run", note)
        yield launches


def source_of(launch: str) -> ASTSource:
    """Return what the compiler gets to see of a launch."""
    fields = json.loads(launch)
    module, _, name = fields["kernel"].partition(":")
    arguments = fields["arguments"]
    signature = {name: "constexpr" if isinstance(value, list) else value for name, value in arguments.items()}
    constants = {name: _from_json(*value) for name, value in arguments.items() if isinstance(value, list)}
    return ASTSource(fn=getattr(importlib.import_module(module), name), signature=signature, constexprs=constants)


def _from_json(value: Any) -> Any:
    return tl.dtype(value["dtype"]) if isinstance(value, dict) else value


@cache
def _front_end() -> tuple[Any, Any, Any]:
    backend = make_backend(TARGET)
    options = backend.parse_options(launch_options({}))
    return backend, options, backend.get_codegen_implementation(options)


def build(source: ASTSource) -> Any:
    """Return the module that the front end makes of a launch, or raise what it has against it."""
    backend, options, functions = _front_end()
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    return source.make_ir(TARGET, options, functions, backend.get_module_map(), context)


def refusal(launch: str) -> str | None:
    """Return what the front end has against a launch, or None."""
    try:
        build(source_of(launch))
    except Exception as error:  # of many classes: the compiler's own, MLIR's, and Python's from our code
        return f"{launch}\n{error}"
    return None
