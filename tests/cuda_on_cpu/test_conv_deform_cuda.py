"""Deformable convolution in CUDA C++: the referee's values, orders, guard bands, pieces, mutants and a sanitizer."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conv_cases import configured
from deform_cases import CASES, Arrays, Case, draw, laid_out, length, plain_case, referee
from harness import (
    ORDERS,
    Ran,
    announce,
    as_held,
    instantiations_of,
    mutant,
    on_device,
    run,
    sanitizer,
    struct_layout,
)

import gpuconv
from gpuconv import dispatch, numerics
from gpuconv.backends.cupy.conv_deform import DEFORM_PARAMS, SOLVERS
from gpuconv.kernels import cu
from gpuconv.normalize.deform import deform_call
from gpuconv.problem import Call, DeformProblem

NAMES = {"x": "input", "offset": "offset", "mask": "mask", "w": "weight", "bias": "bias"}

KINDS = tuple(solver.kind for solver in SOLVERS)

SMALL = {"tile": "small"}

FORCED: tuple[dict[str, Any], ...] = (
    SMALL,
    {},  # as it is planned
    {"tile": "medium"},
    {"INDEX64": True},
    SMALL | {"splits": 3, "images": 1, "channels": 1},
    SMALL | {"splits": 2, "images": 1},
)
"""Of a configuration what a case forces, by turns."""


def _turn(case: Case) -> int:
    return zlib.crc32(case.name.encode())


@pytest.fixture(scope="module", autouse=True)
def _compile_together() -> None:
    """Have kernels compiled a few at a time, those of one type and tile."""
    for tile in ("false, Plain<32", "false, Plain<64", "true", ""):
        for source, kernel in sorted(instantiations_of(SOLVERS)):
            if tile in kernel:
                chosen = [
                    name for where, name in sorted(instantiations_of(SOLVERS)) if where == source and tile in name
                ]
                announce(source, chosen, chunk=4)


def drawn(case: Case) -> Arrays:
    """Return the arrays of a case, the same each time."""
    return draw(case, np.random.default_rng(_turn(case)))


def on_gpu(case: Case, arrays: Arrays) -> Arrays:
    """Return the arrays on the host's GPU, in the case's type and layout."""
    return {name: None if a is None else on_device(laid_out(case, name, a), case.dtype) for name, a in arrays.items()}


def forward_call(case: Case, given: Arrays) -> Call:
    """Return the call of the forward pass."""
    geometry = case.options.values()
    arrays = (given["x"], given["offset"], given["w"], given["bias"])
    return deform_call("deform", case.ndim, *arrays, *geometry, given["mask"], None)


def gradients(case: Case, given: Arrays, kind: str, wanted: tuple[str, ...], backend: str) -> Any:
    """Run a backward pass by one problem, as the backward pass of torch does."""
    call = forward_call(case, given)
    problem = call.problem
    assert isinstance(problem, DeformProblem)
    conv = replace(problem.conv, kind=kind, bias=problem.conv.bias and kind == "wgrad")
    arrays = {name: given[name] for name in ("x", "offset", "mask")} | {"y": given["dy"]}
    if kind == "dgrad":
        arrays["w"] = given["w"]
    problem = replace(problem, conv=conv, grads=wanted if kind == "dgrad" else ())
    return dispatch.run(Call(problem, arrays, call.kind, backend=backend))


def passes(
    case: Case, given: Arrays, config: Mapping[str, Any], orders: Any, kinds: Sequence[str] = KINDS
) -> tuple[dict[str, Any], list[Ran]]:
    """Run passes, all unless told otherwise; return the results by name, and the runs."""
    function = getattr(gpuconv, f"deform_conv{case.ndim}d")
    arguments = {NAMES[name]: given[name] for name in NAMES}
    wanted = ("x", "offset", *(("mask",) if case.mask else ()))

    def gradient(kind: str, backend: str) -> Any:
        return gradients(case, given, kind, wanted, backend)

    found: dict[str, Any] = {}
    ran = []
    for solver in SOLVERS:
        if solver.kind not in kinds:
            continue
        names = ("tile", "splits", "images", "channels", "INDEX64")
        of_this = solver.plan(_problem(case, given, solver.kind, wanted)).config
        some = {name: config[name] for name in names if name in config and (name in of_this or name == "INDEX64")}
        with configured(some):
            if solver.kind == "fprop":
                ran.append(run(function, **arguments, **case.options, solver=solver.id, orders=orders))
            else:
                ran.append(run(gradient, solver.kind, solver=solver.id, orders=orders))
        results = {"fprop": ("y",), "dgrad": wanted, "wgrad": ("w", "bias")[: 1 + case.bias]}
        found |= zip(results[solver.kind], ran[-1].results, strict=True)
    return found, ran


def _problem(case: Case, given: Arrays, kind: str, wanted: tuple[str, ...]) -> DeformProblem:
    problem = forward_call(case, given).problem
    assert isinstance(problem, DeformProblem)
    return replace(problem, conv=replace(problem.conv, kind=kind), grads=wanted if kind == "dgrad" else ())


def check_case(
    case: Case, config: Mapping[str, Any], orders: Any = ORDERS[:2], kinds: Sequence[str] = KINDS
) -> list[Ran]:
    """Run passes, all unless told otherwise, and compare with the referee."""
    arrays = drawn(case)
    found, ran = passes(case, on_gpu(case, arrays), config, orders, kinds)
    expected, magnitude = referee(case, arrays), None if case.exact else referee(case, arrays, absolute=True)
    for name, actual in found.items():
        if magnitude is None:
            np.testing.assert_array_equal(actual, as_held(expected[name], case.dtype), name)
        else:
            numerics.assert_close(actual, expected[name], magnitude[name], case.dtype, length(case, name))
    return ran


@pytest.mark.parametrize("name", CASES)
def test_matches_reference(name: str) -> None:
    turn = _turn(CASES[name])
    check_case(CASES[name], FORCED[turn % len(FORCED)], (ORDERS[0], ORDERS[1 + turn // 7 % 3]))


def test_every_config_has_cases() -> None:
    turns = {_turn(case) % len(FORCED) for case in CASES.values()}
    assert len(CASES) >= 100 and len(turns) == len(FORCED)


def test_struct_is_that_of_the_kernels() -> None:
    struct_layout("conv_deform_fprop", "DeformParams", DEFORM_PARAMS)


WIDE_TILES = replace(
    plain_case(2), size=(6, 11), c=72, k=70, n=1, dtype="float32", mask=True, offset_groups=2, kernel=(1, 2)
)
"""More than one tile of rows and columns, and of steps in a segment, whatever the tile."""


@pytest.mark.parametrize("config", FORCED, ids=str)
def test_several_tiles(config: Mapping[str, Any]) -> None:
    ran = check_case(WIDE_TILES, config, ORDERS)
    assert ran[0].launches[0][1] >= 4


@pytest.mark.parametrize("wanted", [("x",), ("offset",), ("mask",), ("x", "mask"), ("offset", "mask")], ids=str)
def test_only_what_is_wanted_is_computed(wanted: tuple[str, ...]) -> None:
    case = replace(plain_case(2), offset_groups=2, dtype="float32")
    given = on_gpu(case, drawn(case))
    everything = passes(case, given, {}, ORDERS[:1])[0]
    solver = "cupy.conv.deform.dgrad"
    ran = run(lambda backend: gradients(case, given, "dgrad", wanted, backend), solver=solver, orders=ORDERS[:1])
    for name, result in zip(wanted, ran.results, strict=True):
        np.testing.assert_array_equal(result, everything[name])
    assert any("offsets" in kernel for kernel in ran.kernels) == (wanted != ("x",))
    assert any("gather" in kernel for kernel in ran.kernels) == ("x" in wanted)
    assert (ran.plan.workspace > 0) == ("x" in wanted)


def test_pieces_keep_to_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images and channels go one after the other where the workspace is small, with the same result."""
    case = replace(plain_case(2), n=4, c=8, groups=4, offset_groups=2)
    given = on_gpu(case, drawn(case))
    found = []
    for limit in (1 << 30, 32 << 10, 0):
        monkeypatch.setenv("GPUCONV_WORKSPACE", str(limit))
        dispatch.selection._plan.cache_clear()
        with pytest.warns(match="workspace") if limit == 0 else nullcontext():
            found.append(passes(case, given, {}, ORDERS[:1]))
    whole, pieces, least = (ran[1].plan for _, ran in found)
    assert (whole.config["images"], whole.config["channels"]) == (4, 8)
    assert pieces.config["images"] * pieces.config["channels"] < 32 and pieces.workspace <= 32 << 10 < whole.workspace
    assert (least.config["images"], least.config["channels"]) == (1, 1)
    for results, _ in found[1:]:
        np.testing.assert_array_equal(results["x"], found[0][0]["x"])


PROBES = [
    CASES["2d-c=6-k=9-groups=3-offset_groups=2"],
    CASES["2d-groups=2-offset_groups=2-layout=strided"],
    CASES["3d-offsets=edges"],
    CASES["2d-offset_groups=2-offsets=edges-values=special"],
    replace(WIDE_TILES, size=(4, 9), c=36, k=34, offset_groups=2, groups=2),
]

MUTANTS = {
    "below -1": ("dgrad", r"position >= -1 && position <", "position >= -9 && position <"),
    "-1 is inside": ("fprop", r"near && position > -1\}", "near}"),
    "the last one is outside": ("fprop", r"at < size - 1\}", "at < size - 2}"),
    "rounded to zero": ("fprop", r"\{ return floor\(value\)", "{ return trunc(value)"),
    "slope turned round": ("dgrad", r"\? Sum\(1\) : Sum\(-1\)\)", "? Sum(-1) : Sum(1))"),
    "offset of another axis": ("fprop", r"moved\[of_offset \* step\]", "moved[0]"),
    "mask of another sample": ("fprop", r"sample \* static_cast<I>\(params\.mask_stride\[1\]\)", "0"),
    "offsets of another group": (
        "fprop", r"first_channel / static_cast<I>\(params\.per_offset\) \* taps \+ tap", "tap",
    ),
    "channels beyond the segment": ("fprop", r"row < rows && chunk \+ k < segment", "row < rows && chunk + k < p.c"),
    "no barrier after samples": ("fprop", r"(tap, sample\);\s*\}\s*)__syncthreads\(\);", r"\1"),
    "no barrier after a step": ("fprop", r"__syncthreads\(\);(\s*number \^= 1;\s*begun)", r"\1"),
    "filters of another group": ("fprop", r"I filter = first_filter \+ column", "I filter = first_column + column"),
    "mask's gradient counts -1": ("dgrad", r"if \(found\.there\(\)\) of_mask", "of_mask"),
    "no mask for offsets": ("dgrad", r"found\.whole\(\) \* mask_at\(mask, params, at, sample\);\n#", "1;\n#"),
    "a part of the channels left out": ("dgrad", r"int other = 1; other < PARTS", "int other = 2; other < PARTS"),
    "lists of another image": ("dgrad", r"image \* params\.cells \+ cell", "cell"),
    "a list too long": ("dgrad", r"i < last; i\+\+", "i <= last && i < params.samples; i++"),
    "another corner's cell": ("dgrad", r"coordinates\[axis\] \+ 1 - high", "coordinates[axis] + high"),
    "mask left out": ("dgrad", r"weight \*= mask_at.*;", ""),
    "filters beyond the group": ("dgrad", r"first \+ k < filters;\n(\s*buffer\.b)", r"first + k < C::K;\n\1"),
    "columns of another tap": ("dgrad", r"\* taps \+ tap\) \* channels \+ stored;", "* taps) * channels + stored;"),
    "a split skipped": ("wgrad", r"I first = split \* static_cast<I>\(p\.per_split\)", "I first = split * 64"),
    "pixels beyond the split": (
        "wgrad", r"last = smaller<I>\(first \+ static_cast<I>\(p\.per_split\), pixels\)", "last = pixels",
    ),
    "weights of another segment": ("wgrad", r"tile_n / per_segment \* segment \+ first_of", "first_of"),
    "sums of another filter": ("wgrad", r"\* c \+ first_filter \+ row\] = of_bias", "* c + row] = of_bias"),
}  # fmt: skip


def test_probes_pass_on_the_real_kernels() -> None:
    for probe in PROBES:
        check_case(probe, FORCED[4], ORDERS)


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_noticed(name: str) -> None:
    kind, pattern, replacement = MUTANTS[name]
    assert len(re.findall(pattern, cu.source(f"conv_deform_{kind}"), re.MULTILINE)) == 1, "a mutation changes one place"
    far = sanitizer("address") if "beyond" in name or "too long" in name else nullcontext()
    with mutant(pattern, replacement), far:
        for probe in PROBES:
            try:
                check_case(probe, FORCED[4], ORDERS, (kind,))
            except AssertionError:
                return
            except RuntimeError as error:
                assert "g++ failed" not in str(error), "a mutant must compile"
                return
    pytest.fail(f"{name}: no probe noticed anything")


@pytest.mark.parametrize("probe", PROBES, ids=lambda case: case.name)
def test_address_sanitizer(probe: Case) -> None:
    with sanitizer("address"):
        check_case(probe, FORCED[4], ORDERS[2:3])


def test_thread_sanitizer() -> None:
    case = replace(plain_case(1), c=20, k=5, n=1, dtype="float32")  # two steps of a segment
    with sanitizer("thread"):
        check_case(case, SMALL, ORDERS[:1])
