"""The kernels of deformable convolution, in the interpreter: the referee's values, guard bands, orders, mutants."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from deform_cases import CASES, Arrays, Case, draw, laid_out, length, plain_case, referee
from harness import ORDERS, Guarded, guard_input, guard_output, poison, program_order
from mutants import mutant_module

import gpuconv
from gpuconv import numerics
from gpuconv.arrays import TORCH
from gpuconv.backends.triton.conv_deform import SOLVERS
from gpuconv.dispatch import record_plans, selection
from gpuconv.dispatch.plan_cache import CACHE
from gpuconv.kernels.tl.conv import deform, deform_grad, deform_wgrad
from gpuconv.packs.identity import KernelReference

NAMES = {"x": "input", "offset": "offset", "mask": "mask", "w": "weight", "bias": "bias"}

TILE = {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 16, "num_warps": 1, "num_stages": 1}
"""The smallest tile, so that small problems have several tiles on each axis."""

FORCED: tuple[dict[str, Any], ...] = (
    TILE,
    {},  # as it is planned
    TILE | {"INDEX64": True},
    TILE | {"splits": 3, "images": 1, "segments": 1},
    {"splits": 2, "images": 1, "channels": 1, "INDEX64": True},
)
"""Of a config what a case forces, by turns."""


def _turn(case: Case) -> int:
    return zlib.crc32(case.name.encode())


@contextmanager
def forcing(config: Mapping[str, Any]) -> Iterator[None]:
    """Plan deformable convolutions with these entries of their configs, where they have them or any may have them."""
    with pytest.MonkeyPatch.context() as patch:
        for solver in SOLVERS:
            planned = solver.default

            def default(problem: Any, planned: Any = planned) -> dict[str, Any]:
                found = planned(problem)
                if found.get("splits") is not None and problem.conv.n == 0:
                    return dict(found)
                return found | {name: value for name, value in config.items() if name in found or name == "INDEX64"}

            patch.setattr(solver, "default", default)
        selection._plan.cache_clear()
        CACHE.clear()
        yield


@contextmanager
def guarded_results() -> Iterator[list[Guarded]]:
    """Allocate every result of a solver between guard bands, full of NaN; workspaces are full of NaN too."""
    allocated: list[Guarded] = []
    empty, workspace = type(TORCH).empty, torch.empty

    def guarded(self: Any, shape: Any, dtype: str, device: str, layout: str) -> Any:
        like = empty(self, shape, dtype, device, layout)
        allocated.append(guard_output(like.shape, like.stride(), like.dtype))
        return allocated[-1].tensor

    def poisoned(*sizes: Any, **options: Any) -> Any:
        tensor = workspace(*sizes, **options)
        return tensor.fill_(poison(tensor.dtype))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(TORCH), "empty", guarded)
        patch.setattr(torch, "empty", poisoned)
        yield allocated


def drawn(case: Case) -> Arrays:
    """Return the arrays of a case, the same each time."""
    return draw(case, np.random.default_rng(_turn(case)))


def guarded_inputs(case: Case, arrays: Arrays) -> dict[str, Guarded | None]:
    """Return the arrays as tensors of the case's type and layout, everything around their elements NaN."""
    found: dict[str, Guarded | None] = {}
    for name, array in arrays.items():
        if array is None:
            found[name] = None
            continue
        tensor = torch.from_numpy(np.ascontiguousarray(array)).to(getattr(torch, case.dtype))
        if case.layout in ("channels_last", "strided"):
            held = tensor.view(torch.uint16) if case.dtype == "bfloat16" else tensor
            tensor = torch.from_numpy(laid_out(case, name, held.numpy())).view(tensor.dtype)
        found[name] = guard_input(tensor)
        if case.layout == "expanded" and name in ("x", "offset", "mask") and case.n:
            found[name] = guard_input(tensor[:1])
            found[name].tensor = found[name].tensor.expand(tensor.shape)
    return found


def check_case(case: Case, order: str, config: Mapping[str, Any]) -> None:
    """Run forward and every gradient, and compare with the referee."""
    arrays = drawn(case)
    inputs = guarded_inputs(case, arrays)
    tensors = {name: None if each is None else each.tensor.detach() for name, each in inputs.items()}
    given = {NAMES[name]: tensors[name].requires_grad_() if tensors[name] is not None else None for name in NAMES}
    function = getattr(gpuconv, f"deform_conv{case.ndim}d")
    with forcing(config), program_order(order), guarded_results() as results, record_plans() as plans:
        y = function(**given, **case.options, backend="triton")
        y.backward(tensors["dy"])
    assert {plan.solver.id for plan in plans} == {solver.id for solver in SOLVERS}
    for each in results:
        each.check("result", True)
    for name, each in inputs.items():
        if each is not None:
            each.check(name, False)
    found = {name: tensors[name].grad for name in NAMES if tensors[name] is not None} | {"y": y.detach()}
    expected, magnitude = referee(case, arrays), None if case.exact else referee(case, arrays, absolute=True)
    for name, tensor in found.items():
        if magnitude is None:
            assert torch.equal(tensor, torch.from_numpy(expected[name]).to(tensor.dtype)), name
            continue
        actual = tensor.to(torch.float32 if case.dtype == "bfloat16" else tensor.dtype).numpy()
        rounded = name in ("y", "w") and tensor.element_size() == 2  # samples, of which tensor cores get 16 bits
        terms = length(case, name)
        numerics.assert_close(actual, expected[name], magnitude[name], case.dtype, terms, rounded=rounded)


@pytest.mark.parametrize("name", CASES)
def test_matches_reference(name):
    turn = _turn(CASES[name])
    check_case(CASES[name], ORDERS[turn % 3], FORCED[turn // 3 % len(FORCED)])


def test_every_config_and_order_has_cases():
    turns = {(_turn(case) % 3, _turn(case) // 3 % len(FORCED)) for case in CASES.values()}
    assert len(CASES) >= 100 and len(turns) == 3 * len(FORCED)


def test_sums_do_not_depend_on_the_order_of_programs():
    """Bit for bit: the samples that meet in an element of the input are added in their own order."""
    case = replace(plain_case(2), n=2, size=(3, 4), offset_groups=2, dtype="float32", offsets="near")
    found = []
    for order in ORDERS:
        arrays = drawn(case)
        given = {NAMES[name]: torch.from_numpy(arrays[name]).float().requires_grad_() for name in NAMES}
        with program_order(order), forcing(TILE | {"splits": 3}):
            y = gpuconv.deform_conv2d(**given, **case.options, backend="triton")
            y.backward(torch.from_numpy(arrays["dy"]).float())
        found.append([y.detach(), *(tensor.grad for tensor in given.values())])
    for others in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0], others, strict=True))


def test_an_infinite_gradient_stays_with_the_corners_that_have_weight():
    x, w = torch.zeros(1, 1, 3, 3, requires_grad=True), torch.ones(1, 1, 1, 1)
    y = gpuconv.deform_conv2d(x, torch.zeros(1, 2, 3, 3), w, backend="triton")
    dy = torch.zeros(1, 1, 3, 3)
    dy[0, 0, 1, 1] = float("inf")
    y.backward(dy)
    assert torch.equal(x.grad, dy)


def test_pieces_keep_to_the_limit():
    """Images and segments go one after the other where the workspace is small, with the same result."""
    case = replace(plain_case(2), n=2, size=(3, 4), groups=2, offset_groups=2)
    arrays = drawn(case)
    given = {NAMES[name]: torch.from_numpy(arrays[name]) for name in NAMES}
    options = {**case.options, "backend": "triton"}
    found = []
    for limit in (1 << 30, 11 << 10):
        with limited(limit):
            leaves = {name: tensor.clone().requires_grad_() for name, tensor in given.items()}
            with record_plans() as plans:
                gpuconv.deform_conv2d(**leaves, **options).backward(torch.from_numpy(arrays["dy"]))
            (plan,) = (plan for plan in plans if plan.solver.id == "triton.conv.deform.dgrad")
            found.append((plan, leaves["input"].grad))
    (whole, expected), (pieces, actual) = found
    assert (whole.config["images"], whole.config["segments"]) == (2, 2)
    assert pieces.config["images"] * pieces.config["segments"] < 4 and pieces.workspace <= 11 << 10 < whole.workspace
    assert torch.equal(actual, expected)


@contextmanager
def limited(limit: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPUCONV_WORKSPACE", str(limit))
        yield


PROBES = (
    "2d-c=6-k=9-groups=3-offset_groups=2",
    "2d-groups=2-offset_groups=2-layout=strided",
    "3d-offsets=edges",
    "2d-offset_groups=2-offsets=edges-values=special",
)

MUTANTS = {
    "below -1": ("sampling", "near = (position >= -1)", "near = (position >= -9)"),
    "-1 is inside": ("sampling", "near & (position > -1)", "near"),
    "the last one is outside": ("sampling", "near & (low < size - 1)", "near & (low < size - 2)"),
    "beyond the last one": ("sampling", "near & (low < size - 1)", "near"),
    "before the first one": ("sampling", "near & (low >= 0)", "near"),
    "rounded to zero": ("sampling", "low = tl.floor(there)", "low = there.to(tl.int32).to(there.dtype)"),
    "weights turned round": (
        "sampling",
        "    elif HIGH:\n        return axis[1]",
        "    elif not HIGH:\n        return axis[1]",
    ),
    "slope turned round": ("sampling", "(2 * HIGH - 1)", "(1 - 2 * HIGH)"),
    "offset of another axis": ("sampling", "(NDIM - 1) * offset_stride_c", "0 * offset_stride_c"),
    "channels of another group": ("deform", "x_image, axes, group * c_per_group + channels", "x_image, axes, channels"),
    "offsets of another group": ("deform", "// c_per_offset_group * (T * R * S) + tap", "* 0 + tap"),
    "no mask": ("deform", "a * factor[:, None], 0.0)", "a, 0.0)"),
    "channels beyond the segment": (
        "deform",
        "channel_inside = chunk + depth < c_per_segment",
        "channel_inside = chunk + depth < c_per_group",
    ),
    "filters of another group": ("deform", "(group * k_per_group + columns) * w_stride_k", "columns * w_stride_k"),
    "mask's gradient counts -1": (
        "deform_grad",
        "tl.where(there, corner_weight",
        "tl.where(there | True, corner_weight",
    ),
    "no mask for offsets": ("deform_grad", "(of_last * factor)", "(of_last * whole)"),
    "filters beyond the group": ("deform_grad", "there = filters < k_per_group", "there = filters < k_per_group + 1"),
    "weights of another tap": ("deform_grad", "w_ptr + (tap // (R * S) * w_stride_t + ", "w_ptr + ("),
    "lists of another image": ("deform_grad", "image * cells + _cell", "image % offset_groups * cells + _cell"),
    "cells of another line": (
        "deform_grad",
        "cell += (axes[1][0].to(tl.int64) + 1) * (w + 1)",
        "cell += (axes[1][0].to(tl.int64) + 1) * w",
    ),
    "a list too long": ("deform_grad", "live = here < last", "live = here <= last"),
    "the last of a list left out": ("deform_grad", "tl.max(last - first, 0)", "tl.max(last - first - 1, 0)"),
    "another corner's cell": ("deform_grad", "(row_w + (1 - corner % 2))", "(row_w + corner % 2)"),
    "mask left out": ("deform_grad", "weight *= tl.load(mask_ptr + of_mask", "tl.load(mask_ptr + of_mask"),
    "positions beyond the last": ("deform_wgrad", "row_inside = rows < pixels", "row_inside = rows < pixels + 1"),
    "no mask in the weights": ("deform_wgrad", "b * factor[:, None], 0.0)", "b, 0.0)"),
    "a step left out": ("deform_wgrad", "first = split * steps_per_split", "first = split * steps_per_split + 1"),
    "weights of another segment": (
        "deform_wgrad",
        "columns += tile_n // per_segment * c_per_segment",
        "columns += 0 * c_per_segment",
    ),
    "sums of another filter": (
        "deform_wgrad",
        "bias = bias_ptr + split * w_stride_split + filters",
        "bias = bias_ptr + split * w_stride_split + lines",
    ),
}


def _check_probe(name: str) -> None:
    for config in FORCED[3:1:-1]:
        check_case(CASES[name], "forward", config)


def _noticed() -> bool:
    for name in PROBES:
        try:
            _check_probe(name)
        except Exception:  # any failure counts: wrong values, a broken guard band, an access outside of memory
            return True
    return False


@pytest.mark.parametrize("name", PROBES)
def test_probes_pass_on_the_real_kernels(name):
    _check_probe(name)


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_noticed(name, tmp_path, monkeypatch):
    file, old, new = MUTANTS[name]
    modules = {}
    for original in (deform, deform_grad, deform_wgrad):
        short = original.__name__.rpartition(".")[2]
        if file not in ("sampling", short) and not (file == "deform" and short == "deform_wgrad"):
            continue
        folder = tmp_path / short
        folder.mkdir()
        modules[f"conv.{short}"] = mutant_module(
            folder, f"{name} {short}", f"conv.{short}", f"conv/{file}.py", old, new
        )
    load = KernelReference.load

    def mutated(self: KernelReference) -> Any:
        module = modules.get(self.module)
        return load(self) if module is None else getattr(module, self.name)

    monkeypatch.setattr(KernelReference, "load", mutated)
    assert _noticed()
