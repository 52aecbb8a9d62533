"""The plain TMA kernel's forms, compiled for each architecture that takes them, planned by the product."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import triton
from triton.backends.compiler import GPUTarget

from gpuconv.backends.triton.conv_tma import SOLVERS
from gpuconv.backends.triton.dry import launches_of_plan
from gpuconv.backends.triton.tma_costs import FORMS as OF_PRODUCT
from gpuconv.costs.constants import Gpu, assuming
from gpuconv.packing.compile import _source, compile_entries
from gpuconv.packing.plans import Launch
from gpuconv.packs.identity import key_of
from gpuconv.packs.index import Entry
from gpuconv.problem import ConvProblem

__all__ = ["CAPABILITIES", "FORMS", "Form", "compiled", "planned", "problem_of"]

CAPABILITIES = ((9, 0), (10, 0), (12, 0))

VECTORS = {"bias": True, "scale": True, "shift": True, "residual": True}
EPILOGUES = {"all": VECTORS | {"activation": "gelu"}, "relu": VECTORS | {"activation": "relu"}}
"""The most that stands behind the sums, by what a form says that it takes."""


@dataclass(frozen=True)
class Form:
    """A form of the product, the architecture, and what of a problem its code depends on."""

    name: str
    capability: tuple[int, int] = (9, 0)
    kind: str = "fprop"
    dtype: str = "bfloat16"
    channels: tuple[int, int] = (256, 256)
    size: tuple[int, ...] = (56, 56)
    kernel: tuple[int, ...] = (3, 3)
    stride: int = 1
    groups: int = 1
    block_c: int | None = None
    epilogue: dict[str, Any] = field(default_factory=dict, hash=False)


def problem_of(form: Form) -> ConvProblem:
    """Return a problem for a form."""
    ndim, (c, k) = len(form.size), form.channels
    output = tuple((size - 1) // form.stride + 1 for size in form.size)
    pads = tuple(tap // 2 for tap in form.kernel)
    order = "channels_last"
    return ConvProblem(
        f"conv{ndim}d", form.kind, 32, c, k, form.groups, form.size, form.kernel, output, (form.stride,) * ndim, pads,
        pads, (1,) * ndim, "zeros", form.dtype, "cuda:0", "torch", order, order, order, precision="tf32",
        **form.epilogue,
    )  # fmt: skip


@cache
def planned(form: Form) -> tuple[dict[str, Any], Launch]:
    """Return the config of a form, and the first launch of the kernel that the product makes for it."""
    problem = problem_of(form)
    solver = next(solver for solver in SOLVERS if form.kind in solver.kinds)
    with assuming(Gpu("a GPU", form.capability)):
        assert solver.why_not(problem) is None, solver.why_not(problem)
        configs = [config for config in solver.variants(problem) if config["form"] == form.name]
        configs = [config for config in configs if form.block_c in (None, config["BLOCK_C"])]
        plan = solver.bind(problem, configs[0])
        told = next(told for told in launches_of_plan(plan) if told.kernel.module == "conv.tma")
    key, arguments = key_of(told.kernel, told.arguments, told.options, aligned=True)
    return configs[0], Launch(key, told.kernel, solver.id, arguments, dict(told.options))


@cache
def compiled(form: Form) -> tuple[Entry, bytes, str]:
    """Compile a form: what a pack says of it, the binary, and the form in which layouts stand."""
    launch, (major, minor) = planned(form)[1], form.capability
    (entry,), cubin = compile_entries(launch, f"sm_{major}{minor}")
    target = GPUTarget("cuda", 10 * major + minor, 32)
    return entry, cubin, triton.compile(_source(launch), target=target, options=dict(launch.options)).asm["ttgir"]


def _taken(capability: tuple[int, int], dtype: str = "bfloat16", kind: str = "fprop") -> list[str]:
    """Return the forms that an architecture takes."""
    problem = problem_of(Form("", dtype=dtype, kind=kind))
    with assuming(Gpu("a GPU", capability)):
        return list(dict.fromkeys(config["form"] for config in SOLVERS[kind != "fprop"].variants(problem)))


FORMS: dict[str, Form] = {
    **{f"{n}, sm_{a}{b}": Form(n, (a, b)) for a, b in CAPABILITIES for n in _taken((a, b))},
    **{
        f"{n}, gradient, sm_{a}{b}": Form(n, (a, b), "dgrad")
        for a, b in CAPABILITIES
        for n in _taken((a, b), kind="dgrad")
    },
    **{
        f"{n}, whole epilogue, sm_{a}{b}": Form(n, (a, b), epilogue=EPILOGUES[OF_PRODUCT[n].epilogues])
        for a, b in CAPABILITIES
        for n in _taken((a, b))
        if OF_PRODUCT[n].epilogues in EPILOGUES
    },
    **{
        f"{n}, tf32, sm_{a}{b}": Form(n, (a, b), dtype="float32")
        for a, b in CAPABILITIES
        for n in _taken((a, b), "float32")
    },
    **{
        f"{n}, gradient, whole epilogue, sm_90": Form(n, kind="transposed", epilogue=EPILOGUES[OF_PRODUCT[n].epilogues])
        for n in _taken((9, 0))
    },
    "128x128, 8 warps, gradient, whole epilogue, sm_120": Form(
        "128x128, 8 warps", (12, 0), "transposed", epilogue=EPILOGUES["all"]
    ),
    "128x128, tf32 gradient": Form("128x128", kind="dgrad", dtype="float32"),
    "256x128, fp16": Form("256x128", dtype="float16"),
    "256x128 of 1x1": Form("256x128", kernel=(1, 1)),
    "256x128 of 1x1, every second": Form("256x128", kernel=(1, 1), stride=2),
    "128x128, a phase of a gradient": Form("128x128", kind="dgrad", stride=2),
    "128x256 of volumes": Form("128x256", size=(8, 28, 28), kernel=(3, 3, 3)),
    "256x128 of a line": Form("256x128", size=(4096,), kernel=(7,)),
    "128x64 of groups": Form("128x64", groups=4),
    "128x64 of 32 channels": Form("128x64", channels=(32, 64), block_c=32),
}
"""Every form that a plan may have, by architecture, and what else changes its code."""
