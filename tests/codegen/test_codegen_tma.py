"""What the compiler makes of the plain TMA kernel: boxes by TMA, products out of shared memory, nothing in between."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import triton
from disassembly import sass_of
from loops import operations, round_trips, shortest_loop
from sample import FULL
from tma_forms import FORMS, compiled, planned

from gpuconv.backends.triton import tma_costs
from gpuconv.launcher.maps import is_map
from gpuconv.packs.elf import parameter_sizes
from gpuconv.problem import itemsize

pytestmark = pytest.mark.codegen

FEW = (
    "256x128, sm_90",
    "128x128, gradient, sm_90",
    "128x256, whole epilogue, sm_90",
    "256x64, tf32, sm_90",
    "256x256, sm_100",
    "128x128, gradient, sm_100",
    "128x128, whole epilogue, sm_120",
    "128x64 of groups",
)
TAKEN = tuple(FORMS) if FULL else FEW

PRODUCTS = {9: "HGMMA", 10: "UTCHMMA", 12: "HMMA"}

OLD_STACK = 8
"""Bytes of local memory that Triton 3.6's assembler takes on sm_120 in every loop that waits for a copy."""


@pytest.mark.parametrize("name", TAKEN)
def test_form(name: str) -> None:
    form = FORMS[name]
    (entry, cubin, ttgir), (config, _) = compiled(form), planned(form)
    sass, major, product = sass_of(cubin), form.capability[0], tma_costs.FORMS[form.name]
    found = operations(sass)
    names = {operation.split(".")[0] for operation in found}

    spilled = OLD_STACK if major == 12 and triton.__version__.startswith("3.6.") else 0
    assert entry.stack <= spilled and (spilled or not names & {"LDL", "STL"}), "it spills"
    assert names & {"UTMALDG"} and names & {"UTMASTG"} and not names & {"LDGSTS"}
    assert PRODUCTS[major] in names and len(names & {*PRODUCTS.values()}) == 1
    assert round_trips(ttgir) == 0, "a layout changes in the loop"
    assert major == 12 or form.epilogue or "LDSM" not in names, "an operand goes through registers"

    dense_item = itemsize(form.dtype)
    told = (product, config["num_stages"], config["BLOCK_C"], dense_item, form.capability)
    assert 0.98 * tma_costs.shared_of(*told) <= entry.shared <= tma_costs.shared_of(*told)
    registers = -(-entry.registers // 8) * 8 * 32 * entry.warps
    assert product.resident * registers <= 65536 or major == 12
    loop = shortest_loop(sass, PRODUCTS[major])
    budget = tma_costs.loop_of(product, config["BLOCK_C"], dense_item, form.capability)
    assert 0 < loop <= (2.2 if spilled else 1.15) * budget, (loop, budget)
    if major == 9 and not form.epilogue and form.kind == "fprop" and form.dtype != "float32":
        assert 0.8 * product.beside <= len(found) - loop <= 1.1 * product.beside, (len(found) - loop, product.beside)

    sizes = [size for parameter in entry.layout.parameters for size in parameter.sizes]
    assert parameter_sizes(cubin, entry.name) in (None, [*sizes, 8, 8])
    maps = [name for name, type_, _ in entry.parameters if is_map(type_)]
    assert [name for name, _ in entry.tensor_maps] == maps and len(maps) == 3 + bool(form.epilogue)


def test_every_form_of_the_product_is_here() -> None:
    assert {form.name for form in FORMS.values()} == set(tma_costs.FORMS)


def test_one_binary_serves_all_sizes() -> None:
    """What a pack knows a launch by does not change with the sizes of a problem, as long as its boxes do not."""
    form = FORMS["128x128, sm_90"]
    others = [
        replace(form, channels=(264, 520), kernel=(5, 1)),
        replace(form, channels=(512, 1024), kernel=(1, 3)),
    ]
    assert {planned(one)[1].key for one in others} == {planned(form)[1].key}


def test_a_spill_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """256x256 is for accumulators that do not lie in registers: on sm_90 it spills."""
    form = replace(FORMS["256x256, sm_100"], capability=(9, 0))
    monkeypatch.setitem(tma_costs.FORMS, "256x256", replace(tma_costs.FORMS["256x256"], blackwell=False))
    entry, cubin, _ = compiled.__wrapped__(form)
    assert entry.stack > 0 and re.search(r"\bSTL\b", sass_of(cubin))
