"""The Hopper kernels' forms, compiled as a pack has them: planned by the product, with every constant of its own.

``budget`` is the length of the loop over the steps of a consumer, in instructions, that a search on compiled code found
for the form (Triton 3.9).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

from gpuconv.backends.triton.conv_hopper import SOLVERS as DENSE
from gpuconv.backends.triton.conv_hopper_wgrad import SOLVERS as GRADIENT
from gpuconv.backends.triton.dry import launches_of_plan
from gpuconv.backends.triton.hopper_forms import FORMS as OF_PRODUCT
from gpuconv.backends.triton.hopper_wgrad_forms import GRADIENT_FORMS
from gpuconv.costs.constants import Gpu, assuming
from gpuconv.packing.compile import compile_entries
from gpuconv.packing.plans import Launch
from gpuconv.packs.identity import key_of
from gpuconv.packs.index import Entry
from gpuconv.problem import ConvProblem

__all__ = ["FORMS", "SHARED_MEMORY", "Form", "compiled", "launch_of", "problem_of"]

SHARED_MEMORY = 232_448
"""Bytes of shared memory that one block may have on sm_90."""

_HOPPER = Gpu("NVIDIA H200", (9, 0))


@dataclass(frozen=True)
class Form:
    """A form of the product, what of a problem its code depends on, and the longest loop that is allowed."""

    name: str
    budget: int
    kind: str = "fprop"
    dtype: str = "bfloat16"
    channels: tuple[int, int] = (256, 256)
    size: tuple[int, ...] = (56, 56)
    kernel: tuple[int, ...] = (3, 3)
    stride: int = 1
    block_c: int | None = None
    dilation: int = 1
    shares: bool = False
    epilogue: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def product(self) -> Any:
        return GRADIENT_FORMS[self.name] if self.kind == "wgrad" else OF_PRODUCT[self.name]

    @property
    def module(self) -> str:
        return "wgrad" if self.kind == "wgrad" else self.product.kernel


def problem_of(form: Form) -> ConvProblem:
    """Return a problem for a form."""
    ndim, (c, k) = len(form.size), form.channels
    output = tuple((size - 1) // form.stride + 1 for size in form.size)
    pads = tuple(tap // 2 * form.dilation for tap in form.kernel)
    order = "channels_last"
    return ConvProblem(
        f"conv{ndim}d", form.kind, 32, c, k, 1, form.size, form.kernel, output, (form.stride,) * ndim, pads, pads,
        (form.dilation,) * ndim, "zeros", form.dtype, "cuda:0", "torch", order, order, order, precision="tf32",
        **form.epilogue,
    )  # fmt: skip


def launch_of(form: Form) -> Launch:
    """Return the one launch of a Hopper kernel that the product makes for a form."""
    problem = problem_of(form)
    solver = next(solver for solver in (*DENSE, *GRADIENT) if form.kind in solver.kinds)
    with assuming(_HOPPER):
        assert solver.why_not(problem) is None, solver.why_not(problem)
        configs = [config for config in solver.variants(problem) if config["form"] == form.name]
        configs = [config for config in configs if form.block_c in (None, config.get("BLOCK_C"))]
        plan = solver.bind(problem, configs[0] | ({"stream": True} if form.shares else {}))
        told = next(told for told in launches_of_plan(plan) if told.kernel.module.startswith("hopper."))
    key, arguments = key_of(told.kernel, told.arguments, told.options, aligned=True)
    return Launch(key, told.kernel, solver.id, arguments, dict(told.options))


@cache
def compiled(form: Form) -> tuple[Entry, bytes]:
    """Compile a form for sm_90a: what a pack says of it, and the binary."""
    entries, cubin = compile_entries(launch_of(form), "sm_90")
    return entries[0], cubin


VECTORS = {"bias": True, "scale": True, "shift": True, "residual": True, "rounding": "torch"}
EPILOGUES = {"all": VECTORS | {"activation": "gelu"}, "relu": VECTORS | {"activation": "relu"}}
"""The most that stands behind the sums, by what a form says that it takes."""

VOLUME = {"size": (8, 28, 28), "kernel": (3, 3, 3)}


def _named(name: str) -> str:
    """Return the name of a form of the product with its kernel in front."""
    return f"tiles {name}" if OF_PRODUCT[name].kernel == "tiles" else name


FORMS: dict[str, Form] = {
    **{f"tiles {name}": Form(name, form.loop) for name, form in OF_PRODUCT.items() if form.kernel == "tiles"},
    **{f"{name}": Form(name, form.loop) for name, form in OF_PRODUCT.items() if form.kernel == "strips"},
    **{f"{name}": Form(name, form.loop, stride=2) for name, form in OF_PRODUCT.items() if form.kernel == "pixels"},
    "tiles 256x128, fp16": Form("256x128", 56, dtype="float16"),
    **{
        f"{_named(name)} as a data gradient": Form(name, form.loop, kind="dgrad")
        for name, form in OF_PRODUCT.items()
        if form.turned
    },
    **{
        f"{_named(name)} of 1x1": Form(name, form.loop, kernel=(1, 1))
        for name, form in OF_PRODUCT.items()
        if form.kernel == "tiles"
    },
    **{
        f"{_named(name)} of 1x1 as a data gradient": Form(name, form.loop, kind="dgrad", kernel=(1, 1))
        for name, form in OF_PRODUCT.items()
        if form.kernel == "tiles" and form.turned
    },
    "tiles 256x128 of a line": Form("256x128", 56, size=(4096,), kernel=(7,)),
    **{
        f"{_named(name)}, whole epilogue": Form(
            name,
            form.loop + form.moves,
            stride=2 if form.kernel == "pixels" else 1,
            epilogue=EPILOGUES[form.epilogues],
        )
        for name, form in OF_PRODUCT.items()
        if form.epilogues in EPILOGUES
    },
    "tiles 256x128 of 32 channels": Form("256x128", 45, channels=(32, 128), block_c=32),
    **{
        f"{_named(name)}, four phases": Form(name, form.loop, kind="dgrad", stride=2)
        for name, form in OF_PRODUCT.items()
        if form.kernel == "tiles" and form.turned and form.phases > 1
    },
    **{
        f"{_named(name)}, {form.phases} phases and the whole epilogue": Form(
            name,
            form.loop + form.moves,
            kind="transposed",
            stride=2,
            epilogue=EPILOGUES[form.epilogues],
            **(VOLUME if form.phases == 8 else {}),
        )
        for name, form in OF_PRODUCT.items()
        if form.kernel == "tiles" and form.turned and form.phases > 1
    },
    **{
        f"{_named(name)}, four phases in tf32": Form(name, form.loop, kind="dgrad", dtype="float32", stride=2)
        for name, form in OF_PRODUCT.items()
        if form.kernel == "tiles" and not form.shared
    },
    **{
        f"{name}, {taps} taps of a signal, {dilation} apart": Form(
            name,
            round(1.15 * form.loop * taps / 3),
            channels=(128, form.channels),
            size=(12800,),
            kernel=(taps,),
            dilation=dilation,
            epilogue={} if taps == 7 else EPILOGUES.get(form.epilogues, {}),
        )
        for name, form in OF_PRODUCT.items()
        if form.kernel == "strips"
        for taps, dilation in ((7, 5), (11, 3))
        if taps <= form.above
    },
    **{
        f"{name}, {taps} taps of a signal, 5 apart, as a data gradient": Form(
            name,
            round(1.15 * form.loop * taps / 3),
            "dgrad",
            channels=(form.channels, 128),
            size=(12800,),
            kernel=(taps,),
            dilation=5,
        )
        for name, form in OF_PRODUCT.items()
        if form.kernel == "strips"
        for taps in (7, 11)
        if taps <= form.above
    },
    **{
        f"{name}, {taps} rows of taps": Form(name, round(1.15 * form.loop * taps / 3), kernel=(taps, taps))
        for name, form in OF_PRODUCT.items()
        if form.kernel == "strips"
        for taps in (2, 5, 7, 9, 11)
        if taps <= form.above
    },
    **{
        f"{name}, equal shares{', as a data gradient' if kind == 'dgrad' else ''}, {taps} taps": Form(
            name,
            round(1.2 * form.loop * (taps if form.kernel == "strips" else 3) / 3),
            kind,
            channels=(256, form.channels) if kind == "fprop" else (form.channels, 256),
            kernel=(taps, taps),
            stride=2 if form.kernel == "pixels" and kind == "fprop" else 1,
            shares=True,
            epilogue={"bias": True, "activation": "relu"} if kind == "fprop" else {},
        )
        for name, form in OF_PRODUCT.items()
        if form.sharing
        for kind in ("fprop", "dgrad")
        if form.turned_shares or kind == "fprop"
        for taps in ((3, 7, 11) if form.kernel == "strips" else (3,))
    },
    "pixels 256x128 of volumes": Form("pixels 256x128", 56, stride=2, **VOLUME),
    **{
        f"{_named(name)}, tf32": Form(name, form.loop, dtype="float32", stride=2 if form.kernel == "pixels" else 1)
        for name, form in OF_PRODUCT.items()
        if not form.shared and form.lines < 3
    },
    **{
        f"weight gradient {name}": Form(name, form.loop, kind="wgrad", stride=2, channels=_channels)
        for name, form in GRADIENT_FORMS.items()
        for _channels in [(form.channels_c, form.channels_k)]
    },
    "weight gradient 128x256 of 1x1": Form("128x256", 47, kind="wgrad", kernel=(1, 1)),
    "weight gradient 128x128 of volumes": Form("128x128", 46, kind="wgrad", channels=(128, 128), **VOLUME),
}
"""Every form that a plan may have, and what else changes its code."""
