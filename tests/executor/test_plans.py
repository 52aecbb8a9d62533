"""Every form of the Hopper solvers, planned by the product, gives torch's results: tensor maps, grids and all."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from gluon_model import Edit
from planned import run

from gpuconv.backends.triton import conv_hopper
from gpuconv.backends.triton.conv_hopper import SOLVERS as DENSE
from gpuconv.backends.triton.conv_hopper_wgrad import SOLVERS as GRADIENT
from gpuconv.backends.triton.hopper_forms import FORMS
from gpuconv.backends.triton.hopper_view import columns_as_channels
from gpuconv.backends.triton.hopper_wgrad_forms import GRADIENT_FORMS
from gpuconv.costs.constants import Gpu, assuming
from gpuconv.problem import ConvProblem

HOPPER = Gpu("NVIDIA H200", (9, 0))
CONVOLUTIONS = {1: torch.nn.functional.conv1d, 2: torch.nn.functional.conv2d, 3: torch.nn.functional.conv3d}
TRANSPOSED = {
    1: torch.nn.functional.conv_transpose1d,
    2: torch.nn.functional.conv_transpose2d,
    3: torch.nn.functional.conv_transpose3d,
}
FORMATS = {1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d}
ORDERS = ("channels_last", "channels_last", "contiguous")


def _problem(rng: random.Random, kind: str, ndim: int, strides: tuple[int, ...]) -> ConvProblem:
    kernel = tuple(rng.choice((1, 2, 3, 3)) for _ in range(ndim))
    dilation = tuple(rng.choice((1, 1, 2)) if tap > 1 else 1 for tap in kernel)
    stride = tuple(rng.choice(strides) for _ in range(ndim))
    low = tuple(rng.randint(0, (tap - 1) * by) for tap, by in zip(kernel, dilation, strict=True))
    high = low if rng.random() < 0.7 else tuple(rng.randint(0, 2) for _ in range(ndim))
    sizes = {1: (9, 40), 2: (5, 14), 3: (3, 6)}[ndim]
    size = tuple(max(rng.randint(*sizes), (tap - 1) * by + 1) for tap, by in zip(kernel, dilation, strict=True))
    output = tuple(
        (length + lo + hi - by * (tap - 1) - 1) // step + 1
        for length, lo, hi, by, tap, step in zip(size, low, high, dilation, kernel, stride, strict=True)
    )
    dtype = "float32" if kind != "wgrad" and rng.random() < 0.25 else rng.choice(("bfloat16", "float16"))
    names = ("bias", "scale", "shift", "residual") if kind in ("fprop", "transposed") else ()
    extras: dict[str, Any] = {name: rng.random() < 0.35 for name in names}
    if names:
        extras["activation"] = rng.choice((None, None, "relu"))
    if kind == "wgrad":
        extras["bias"] = rng.random() < 0.5
    order = (
        [rng.choice(ORDERS) for _ in "xwy"]
        if ndim > 1
        else ["contiguous" if rng.random() < 0.5 else "channels_last"] * 3
    )
    return ConvProblem(
        f"conv{ndim}d", kind, rng.randint(1, 3), 8 * rng.randint(1, 6), 8 * rng.randint(1, 6), 1, size, kernel,
        output, stride, low, high, dilation, "zeros", dtype, "cuda:0", "torch", *order, precision="tf32", **extras,
    )  # fmt: skip


def _laid(tensor: torch.Tensor, order: str) -> torch.Tensor:
    if order == "contiguous":
        return tensor.contiguous()
    axes = (0, *range(2, tensor.dim()), 1)
    back = (0, tensor.dim() - 1, *range(1, tensor.dim() - 1))
    return tensor.permute(axes).contiguous().permute(back)


def _arrays(problem: ConvProblem, seed: int) -> dict[str, torch.Tensor | None]:
    generator = torch.Generator().manual_seed(seed)

    def integers(shape: tuple[int, ...]) -> torch.Tensor:
        most = 15 if problem.rounding == "torch" else 2  # sums that 16 bits do not hold, or do
        return torch.randint(-most, most + 1, shape, generator=generator).to(getattr(torch, problem.dtype))

    shapes = {"x": problem.x_shape, "w": problem.w_shape, "y": problem.y_shape}
    orders = {"x": problem.x_format, "w": problem.w_format, "y": problem.y_format}
    found: dict[str, torch.Tensor | None] = {
        name: _laid(integers(shape), orders[name]) for name, shape in shapes.items() if name != problem.result
    }
    if problem.kind != "wgrad":
        channels = problem.k if problem.kind == "fprop" else problem.c
        for name in ("bias", "scale", "shift"):
            found[name] = integers((channels,)) if getattr(problem, name) else None
        of_result = _laid(integers(problem.result_shape), problem.result_format)
        found["residual"] = of_result if problem.residual else None
    return found


def _reference(problem: ConvProblem, arrays: dict[str, torch.Tensor | None]) -> tuple[torch.Tensor, ...]:
    """Return torch's results in float64."""
    given = {name: None if array is None else array.double() for name, array in arrays.items()}
    ndim = problem.ndim
    pads = [side for lo, hi in zip(problem.pad_lo[::-1], problem.pad_hi[::-1], strict=True) for side in (lo, hi)]
    known = {"stride": problem.stride, "dilation": problem.dilation}

    def forward(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return CONVOLUTIONS[ndim](torch.nn.functional.pad(x, pads), w, **known)

    if problem.kind == "fprop":
        result = forward(given["x"], given["w"])
    else:
        shapes = {"x": problem.x_shape, "w": problem.w_shape}
        leaf = torch.zeros(shapes[problem.result], dtype=torch.float64, requires_grad=True)
        y = forward(*(leaf if name == problem.result else given[name] for name in "xw"))
        (result,) = torch.autograd.grad(y, leaf, given["y"])
    if problem.kind == "wgrad":
        return (result, given["y"].sum([0, *range(2, 2 + ndim)])) if problem.bias else (result,)

    def stored(values: torch.Tensor) -> torch.Tensor:
        return values.to(getattr(torch, problem.dtype)).double() if problem.rounding == "torch" else values

    result = stored(result)
    for name in ("bias", "scale", "shift"):
        if given[name] is not None:
            vector = given[name].reshape(-1, *[1] * ndim)
            result = stored(result * vector if name == "scale" else result + vector)
    if given["residual"] is not None:
        result = stored(result + given["residual"])
    return (torch.relu(result) if problem.activation else result,)


def _solver(problem: ConvProblem) -> Any:
    """Return the dense solver of a problem."""
    return next(solver for solver in DENSE if problem.kind in solver.kinds)


def _found(problem: ConvProblem, config: dict[str, Any], seed: int, edits: Sequence[Edit] = ()) -> tuple[Any, Any]:
    """Return what a plan of one result computes, with pieces of the kernels replaced, and what is right."""
    arrays = _arrays(problem, seed)
    with assuming(HOPPER):
        got = run(_solver(problem).bind(problem, config), arrays, seed, edits)
    return got, _reference(problem, arrays)[0].to(got.dtype)


def _check(problem: ConvProblem, solver: Any, config: dict[str, Any], seed: int) -> None:
    with assuming(HOPPER):
        plan = solver.bind(problem, config)
        arrays = _arrays(problem, seed)
        found = run(plan, arrays, seed)
    found = found if isinstance(found, tuple) else (found,)
    for got, right in zip(found, _reference(problem, arrays), strict=True):
        assert got.dtype == getattr(torch, problem.dtype)
        torch.testing.assert_close(got, right.to(got.dtype), rtol=0, atol=0)


def _drawn(kind: str, form: str, number: int) -> tuple[ConvProblem, Any, dict[str, Any]]:
    """Return a problem that a form takes, its solver and the config."""
    solver = next(solver for solver in (*DENSE, *GRADIENT) if kind in solver.kinds)
    rng = random.Random(f"{kind} {form} {number}")
    strides: tuple[int, ...] = (1, 2, 3) if "pixels" in form and kind == "fprop" else (1,)
    if "x" in form and "pixels" not in form and "strips" not in form and kind in ("dgrad", "transposed"):
        strides = (1, 1, 2, 3)
    strides = (1, 2) if kind == "wgrad" else strides
    while True:
        problem = _problem(rng, kind, rng.choice((1, 2, 2, 2, 3)), strides)
        if "2 x" in form or "256" in form.split("x")[-1] or kind == "wgrad":
            problem = replace(problem, k=8 * rng.randint(17, 20), c=8 * rng.randint(17, 20))
        elif "x128" in form:
            problem = replace(problem, k=8 * rng.randint(9, 12), c=8 * rng.randint(9, 12))
        with assuming(HOPPER):
            if 0 in problem.y_shape or solver.why_not(problem) is not None:
                continue
            configs = [config for config in solver.variants(problem) if config["form"] == form]
        if configs:
            return problem, solver, rng.choice(configs)


DENSE_CASES = [
    (kind, form, number) for form in FORMS for kind in ("fprop", "dgrad", "transposed") for number in range(4)
]
GRADIENT_CASES = [("wgrad", form, number) for form in GRADIENT_FORMS for number in range(8)]


@pytest.mark.parametrize(
    "case", [*DENSE_CASES, *GRADIENT_CASES], ids=lambda case: "-".join(map(str, case)).replace(" ", "_")
)
def test_planned_form(case: tuple[str, str, int]) -> None:
    """Equal on integers, which every type here holds."""
    _check(*_drawn(*case), seed=case[2])


@pytest.mark.parametrize("kind", ("fprop", "transposed"))
@pytest.mark.parametrize("form", ("128x64", "strips 4x64x128", "pixels 128x128"))
def test_steps_are_rounded_as_torchs(form: str, kind: str) -> None:
    """Every operand of the epilogue, on sums that are exact in float32 alone."""
    for number in range(20):
        problem, solver, config = _drawn(kind, form, number)
        problem = replace(problem, bias=True, scale=True, shift=True, residual=True, rounding="torch")
        if problem.dtype != "float32":
            break
    arrays = _arrays(problem, number)
    fused = _reference(replace(problem, rounding="fused"), arrays)[0].to(getattr(torch, problem.dtype))
    assert not torch.equal(fused, _reference(problem, arrays)[0].to(fused.dtype))
    _check(problem, solver, config, number)


@pytest.mark.parametrize("number", range(12))
def test_images_in_parts(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the limit on workspaces has no room for an image: some rows at a time, or some images."""
    rng = random.Random(f"parts {number}")
    kind = rng.choice(("fprop", "fprop", "dgrad", "transposed"))
    while True:
        problem = _problem(rng, kind, rng.choice((1, 2, 2, 3)), (1, 1, 2) if kind == "fprop" else (1,))
        problem = replace(
            problem, x_format="contiguous", w_format="channels_last",
            y_format=rng.choice(("contiguous", "channels_last")) if kind == "fprop" else "contiguous",
        )  # fmt: skip
        solver = next(solver for solver in DENSE if kind in solver.kinds)
        whole = 0 not in problem.y_shape and math.prod(problem.result_shape[2:]) > 20
        with assuming(HOPPER):
            if not whole or solver.why_not(problem) is not None:
                continue
            needed = solver.plan(problem).workspace
            limit = needed // rng.choice((2, 3, 5))
            monkeypatch.setattr(conv_hopper, "workspace_limit", lambda limit=limit: limit)
            if solver.why_not(problem) is None:
                configs = list(solver.variants(problem))
                break
        monkeypatch.undo()
    config = rng.choice(configs)
    with assuming(HOPPER):
        assert solver.bind(problem, config).workspace <= limit
    _check(problem, solver, config, number)


def _problem_of(
    kind: str, x: tuple[int, ...], w: tuple[int, ...], stride: tuple[int, ...], low: tuple[int, ...],
    high: tuple[int, ...] | None = None, dtype: str = "bfloat16", **options: Any,
) -> ConvProblem:  # fmt: skip
    ndim, high = len(x) - 2, high or low
    sides = zip(x[2:], w[2:], stride, low, high, strict=True)
    output = tuple((size + lo + hi - tap) // by + 1 for size, tap, by, lo, hi in sides)
    orders = {f"{letter}_format": "channels_last" for letter in "xwy"} | options
    return ConvProblem(
        op=f"conv{ndim}d", kind=kind, n=x[0], c=x[1], k=w[0], groups=1, input_size=x[2:], kernel=w[2:],
        output_size=output, stride=stride, pad_lo=low, pad_hi=high, dilation=(1,) * ndim, padding_mode="zeros",
        dtype=dtype, device="cuda:0", array="torch", precision="tf32", **orders,
    )  # fmt: skip


FOUND = {
    "depth meets padding alone": _problem_of("fprop", (1, 16, 1, 6, 6), (16, 16, 1, 3, 3), (3, 1, 1), (1, 1, 1)),
    "and its weight's gradient": _problem_of("wgrad", (1, 16, 1, 6, 6), (16, 16, 1, 3, 3), (3, 1, 1), (1, 1, 1)),
    "a phase reaches further than the largest": _problem_of("dgrad", (1, 64, 11, 4), (64, 64, 11, 1), (2, 1), (5, 0)),
    "phases without taps": _problem_of("dgrad", (2, 40, 7, 8), (24, 40, 1, 2), (3, 4), (0, 0)),
}
"""Problems that once were wrong."""


@pytest.mark.parametrize("name", FOUND)
def test_what_was_once_wrong(name: str) -> None:
    problem = FOUND[name]
    solver = next(solver for solver in (*DENSE, *GRADIENT) if problem.kind in solver.kinds)
    with assuming(HOPPER):
        assert solver.why_not(problem) is None
        configs = {config["form"]: config for config in solver.variants(problem)}
    for config in configs.values():
        _check(problem, solver, config, 0)


@pytest.mark.parametrize(
    ("problem", "divisor"),
    [
        (_problem_of("fprop", (1, 16, 9, 12), (16, 16, 9, 3), (1, 1), (0, 1), x_format="contiguous"), 2),
        (_problem_of("fprop", (1, 16, 3, 12, 9), (16, 16, 3, 3, 3), (1, 1, 1), (0, 1, 1), x_format="contiguous"), 2),
        (_problem_of("fprop", (1, 8, 30), (8, 8, 3), (1,), (0,), (140,), x_format="contiguous"), 3),
        (_problem_of("transposed", (1, 72, 1), (40, 72, 1), (1,), (2,), (3,), y_format="contiguous"), 2),
        (
            _problem_of(
                "fprop", (1, 264, 5, 1), (16, 264, 1, 2), (1, 1), (5, 4), (1, 3), "float16", x_format="contiguous",
                y_format="contiguous", residual=True,
            ),
            3,
        ),
        (_problem_of("fprop", (1, 16, 8, 8), (16, 16, 3, 3), (1, 1), (1, 1), w_format="contiguous"), 40),
        (replace(_problem_of("transposed", (2, 32, 4, 6), (40, 32, 2, 2), (2, 2), (0, 0)), bias=True, scale=True), 40),
    ],
)  # fmt: skip
def test_parts_are_right_or_refused(problem: ConvProblem, divisor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where images go by rows, each form computes them, and no plan needs more than the limit."""
    solver = next(solver for solver in DENSE if problem.kind in solver.kinds)
    with assuming(HOPPER):
        limit = max(solver.plan(problem).workspace, 4000) // divisor
        monkeypatch.setattr(conv_hopper, "workspace_limit", lambda: limit)
        if solver.why_not(problem) is not None:
            return
        configs = {config["form"]: config for config in solver.variants(problem)}
    for config in configs.values():
        assert solver.bind(problem, config).workspace <= limit
        _check(problem, solver, config, 0)


MERGED = {
    "20 by 20, one phase": _problem_of("transposed", (2, 16, 60), (24, 16, 20), (20,), (0,)),
    "2x2 by 2": _problem_of("transposed", (2, 24, 6, 8), (40, 24, 2, 2), (2, 2), (0, 0)),
    "8 by 4, padded": _problem_of("transposed", (3, 16, 48), (40, 16, 8), (4,), (4,), dtype="float16"),
    "3x6 by 1x3": _problem_of("dgrad", (1, 40, 5, 27), (24, 40, 3, 6), (1, 3), (1, 3)),
    "2x2x2 by 2": _problem_of("transposed", (1, 64, 4, 6, 4), (24, 64, 2, 2, 2), (2, 2, 2), (0, 0, 0)),
    "fewer rows than taps reach": _problem_of("dgrad", (2, 72, 3, 4), (136, 72, 1, 4), (2, 4), (0, 0)),
    "weights in rows of taps": _problem_of(
        "transposed", (2, 24, 6, 8), (40, 24, 2, 4), (2, 2), (0, 2), w_format="contiguous"
    ),
}
"""Gradients whose neighbouring columns are channels of one."""


@pytest.mark.parametrize("name", MERGED)
def test_columns_as_channels(name: str) -> None:
    problem = MERGED[name]
    assert columns_as_channels(problem) == problem.stride[-1]
    if problem.kind == "transposed":
        problem = replace(problem, bias=True, scale=True, shift=True, residual=True, activation="relu")
    with assuming(HOPPER):
        assert DENSE[1].why_not(problem) is None
        configs = {config["form"]: config for config in DENSE[1].variants(problem)}
    assert len(configs) > 1
    for number, config in enumerate(configs.values()):
        _check(problem, DENSE[1], config, number)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("problem", "merged"),
    [
        (_problem_of("transposed", (3, 16, 48), (40, 16, 8), (4,), (2,), dtype="float16"), 2),
        (_problem_of("transposed", (2, 24, 5, 24), (40, 24, 3, 16), (2, 8), (1, 4)), 4),
        (_problem_of("dgrad", (2, 24, 36), (40, 24, 6), (6,), (3,)), 3),
    ],
)
def test_some_columns_as_channels(problem: ConvProblem, merged: int, seed: int) -> None:
    """As many as divide stride, window, pad and size: the rest of the stride is phases, in one launch."""
    assert columns_as_channels(problem) == merged
    if problem.kind == "transposed":
        problem = replace(problem, bias=True, scale=True, shift=True, residual=True, activation="relu")
    with assuming(HOPPER):
        configs = {config["form"]: config for config in DENSE[1].variants(problem)}
    for number, config in enumerate(configs.values()):
        _check(problem, DENSE[1], config, 2 * number + seed)


@pytest.mark.parametrize(
    "other",
    [
        _problem_of("transposed", (2, 24, 6, 9), (40, 24, 2, 2), (2, 2), (0, 0), (0, 1)),
        _problem_of("transposed", (2, 24, 6, 8), (40, 24, 2, 2), (2, 2), (0, 1), (0, 1)),
        _problem_of("transposed", (2, 24, 6, 8), (40, 24, 2, 3), (2, 2), (0, 0), (0, 1)),
        _problem_of("transposed", (2, 24, 6, 8), (40, 24, 2, 2), (2, 2), (0, 0), x_format="contiguous"),
        _problem_of("transposed", (2, 24, 6, 8), (40, 24, 2, 2), (2, 2), (0, 0), dtype="float32"),
    ],
)
def test_columns_that_are_no_channels(other: ConvProblem) -> None:
    """An odd size, pad or window, channels apart, and tf32."""
    assert columns_as_channels(other) == 1
    with assuming(HOPPER):
        config = next(iter(DENSE[1].variants(other)))
    _check(other, DENSE[1], config, 1)


def test_weights_that_are_not_finite_stay_out_of_phases_without_taps() -> None:
    """As torch has it: positions of x that no tap meets are zero, whatever the weights are."""
    problem = _problem_of("dgrad", (1, 8, 7, 7), (8, 8, 1, 1), (3, 3), (0, 0))
    w = _laid(torch.ones(8, 8, 1, 1, dtype=torch.bfloat16), "channels_last")
    w[0, 0] = float("inf")
    y = _laid(torch.ones(1, 8, 3, 3, dtype=torch.bfloat16), "channels_last")
    arrays = {"w": w, "y": y, "bias": None, "scale": None, "shift": None, "residual": None}
    with assuming(HOPPER):
        solver = DENSE[1]
        found = run(solver.plan(problem), arrays)
    torch.testing.assert_close(found, _reference(problem, arrays)[0].to(found.dtype), rtol=0, atol=0)


def test_a_window_of_too_many_taps_is_refused() -> None:
    problem = _problem_of("wgrad", (1, 8, 8, 8), (8, 8, 256, 256), (1, 1), (127, 127), (128, 128))
    with assuming(HOPPER):
        solver = GRADIENT[0]
        forms = {config["form"] for config in solver.variants(problem)}
    assert forms and all(GRADIENT_FORMS[form].taps > 1 for form in forms)


def _oddly(rng: random.Random, tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor of the same values that lies oddly in memory: apart, cropped, unaligned, expanded."""
    kind = rng.choice(("channels", "every second", "rows", "cropped", "unaligned", "strides of 1", "expanded"))
    if kind == "channels":
        larger = torch.zeros(tensor.shape[0], tensor.shape[1] + 16, *tensor.shape[2:], dtype=tensor.dtype)
        first = rng.choice((1, 8))
        view = _laid(larger, "channels_last")[:, first : first + tensor.shape[1]]
    elif kind == "every second":
        larger = torch.zeros(tensor.shape[0], 2 * tensor.shape[1], *tensor.shape[2:], dtype=tensor.dtype)
        view = _laid(larger, rng.choice(ORDERS))[:, ::2]
    elif kind == "rows":
        larger = torch.zeros(*tensor.shape[:2], 2 * tensor.shape[2], *tensor.shape[3:], dtype=tensor.dtype)
        view = _laid(larger, rng.choice(ORDERS))[:, :, 1::2]
    elif kind == "cropped":
        larger = torch.zeros(*tensor.shape[:-1], tensor.shape[-1] + 3, dtype=tensor.dtype)
        view = _laid(larger, rng.choice(ORDERS))[..., 1 : 1 + tensor.shape[-1]]
    elif kind == "unaligned":
        dense = _laid(tensor, rng.choice(ORDERS))
        view = torch.zeros(dense.numel() + 1, dtype=tensor.dtype).as_strided(dense.shape, dense.stride(), 1)
    elif kind == "strides of 1":
        dense = _laid(tensor, rng.choice(ORDERS))
        steps = [rng.choice((1, 7, 0)) if size == 1 else step for size, step in zip(dense.shape, dense.stride())]
        return dense.as_strided(dense.shape, steps)
    else:
        axis = rng.randrange(tensor.dim())
        return tensor.narrow(axis, 0, 1).expand(tensor.shape)
    return view.copy_(tensor)


@pytest.mark.parametrize("number", range(60))
def test_operands_that_lie_oddly(number: int) -> None:
    """Wherever operands lie, the values count: the map describes them, or they are copied first."""
    rng = random.Random(f"oddly {number}")
    kind = rng.choice(("fprop", "fprop", "dgrad", "transposed", "wgrad"))
    solver = next(solver for solver in (*DENSE, *GRADIENT) if kind in solver.kinds)
    while True:
        problem = _problem(rng, kind, rng.choice((1, 2, 2, 3)), (1, 1, 2, 3))
        with assuming(HOPPER):
            if 0 not in problem.y_shape and solver.why_not(problem) is None:
                configs = list(solver.variants(problem))
                break
    arrays = _arrays(problem, number)
    for name, array in arrays.items():
        if array is not None and array.dim() > 1 and rng.random() < 0.7:
            arrays[name] = _oddly(rng, array)
        elif array is not None and array.dim() == 1 and rng.random() < 0.5:
            arrays[name] = torch.repeat_interleave(array, 2)[::2]
    with assuming(HOPPER):
        found = run(solver.bind(problem, rng.choice(configs)), arrays, number)
    found = found if isinstance(found, tuple) else (found,)
    for got, right in zip(found, _reference(problem, arrays), strict=True):
        torch.testing.assert_close(got, right.to(got.dtype), rtol=0, atol=0)
