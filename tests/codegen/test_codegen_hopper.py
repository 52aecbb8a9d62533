"""What the compiler makes of the Hopper kernels for sm_90a: TMA, wgmma out of shared memory, and nothing in the way."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from disassembly import sass_of
from loops import operations, shortest_loop
from sample import FULL

from gpuconv.backends.triton import hopper_forms as product
from gpuconv.launcher.maps import is_map
from gpuconv.packs.elf import parameter_sizes

hopper_forms = pytest.importorskip(
    "hopper_forms", reason="not run: Gluon as of Triton 3.8 is needed", exc_type=ImportError
)
pytest.importorskip(
    "gpuconv.kernels.tl.hopper.tiles", reason="not run: Gluon as of Triton 3.8 is needed", exc_type=ImportError
)

pytestmark = pytest.mark.codegen

FORMS = hopper_forms.FORMS
FEW = (
    "tiles 128x256",
    "tiles 256x128, four phases",
    "strips 4x64x128, whole epilogue",
    "strips 4x64x64, 7 taps of a signal, 5 apart",
    "2 x pixels 128x256, equal shares, 3 taps",
    "weight gradient 64x64x3",
)
TAKEN = tuple(FORMS) if FULL else FEW


def count(found: list[str], pattern: str) -> int:
    return sum(1 for operation in found if re.match(pattern, operation))


def test_every_form_of_the_product_is_here() -> None:
    taken = {(form.module, form.name) for form in FORMS.values()}
    assert {(form.kernel, name) for name, form in product.FORMS.items()} <= taken
    assert {("wgrad", name) for name in hopper_forms.GRADIENT_FORMS} <= taken


@pytest.mark.parametrize("name", TAKEN)
def test_form(name: str) -> None:
    form = FORMS[name]
    entry, cubin = hopper_forms.compiled(form)
    sass = sass_of(cubin)
    found, gradient = operations(sass), form.kind == "wgrad"

    assert entry.arch == "sm_90a" and entry.stack == 0 and not count(found, "LDL|STL"), "it spills"
    assert entry.shared <= hopper_forms.SHARED_MEMORY
    shared = "" if gradient else form.product.shared
    assert entry.cluster == (2 if shared else 1, 1, 1)
    if not gradient and form.product.resident > 1:
        assert 2 * (entry.shared + 1024) <= 228 * 1024 and 2 * 32 * entry.warps * entry.registers <= 65536

    loop = shortest_loop(sass, "HGMMA")
    assert 0 < loop <= 1.1 * form.budget, (loop, form.budget)

    loads = [operation for operation in found if operation.startswith("UTMALDG")]
    assert loads and ("LDG" not in {operation.split(".")[0] for operation in found} or form.epilogue or form.shares)
    # Signals: one is given, and one awaited, by each consumer, which take the sums of others in between.
    signals = 0 if gradient else form.product.consumers * form.shares
    assert count(found, r"STG.*STRONG\.GPU") == count(found, r"LDG.*STRONG\.GPU") == signals
    by_one_thread = re.findall(r"@!?U?P\d+\s+STG\S*\.STRONG\.GPU", sass)
    assert len(by_one_thread) == signals, "every warp gives the signal"
    by_pixels = form.module == "pixels" or (gradient and entry.constants["AXES"] > 0)
    assert any("IM2COL" in operation for operation in loads) == by_pixels
    assert any("MULTICAST" in operation for operation in loads) == bool(shared)
    assert bool(count(found, "UTMASTG")) != gradient
    assert count(found, "HGMMA") and not count(found, "HMMA")
    assert not count(found, "LDSM") or form.epilogue.get("residual"), "an operand goes through registers"
    assert count(found, "USETMAXREG")

    sizes = [size for parameter in entry.layout.parameters for size in parameter.sizes]
    assert parameter_sizes(cubin, entry.name) == [*sizes, 8, 8]
    assert [name for name, _ in entry.tensor_maps] == [name for name, type_, _ in entry.parameters if is_map(type_)]


def test_one_binary_serves_all_sizes() -> None:
    """What a pack knows a launch by does not change with the sizes of a problem."""
    form = FORMS["tiles 128x256"]
    others = [
        replace(form, channels=(264, 520), size=(40, 40), kernel=(5, 1)),
        replace(form, channels=(512, 1024), size=(8, 56), kernel=(1, 3)),
    ]
    assert {hopper_forms.launch_of(one).key for one in others} == {hopper_forms.launch_of(form).key}


def test_a_spill_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too few registers for the producer of ten strips: the check has something to find."""
    strips = product.FORMS["strips 8x64x64"]
    monkeypatch.setitem(product.FORMS, "strips 8x64x64", replace(strips, registers=(240, 24)))
    entry, _ = hopper_forms.compiled.__wrapped__(FORMS["strips 8x64x64"])
    assert entry.stack > 0
