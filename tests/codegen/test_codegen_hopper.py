"""What the compiler makes of the Hopper kernels for sm_90a: TMA, wgmma out of shared memory, and nothing in the way."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from aot import report
from disassembly import sass_of
from loops import operations, shortest_loop
from sample import FULL

hopper_forms = pytest.importorskip(
    "hopper_forms", reason="not run: Gluon as of Triton 3.8 is needed", exc_type=ImportError
)


pytestmark = pytest.mark.codegen

FORMS = hopper_forms.FORMS
FEW = (
    "tiles 128x256",
    "2 x tiles 128x256, weights shared",
    "strips 6x64x128",
    "pixels 256x128",
    "weight gradient 128x256",
)
TAKEN = tuple(FORMS) if FULL else FEW


def count(found: list[str], pattern: str) -> int:
    return sum(1 for operation in found if re.match(pattern, operation))


@pytest.mark.parametrize("name", TAKEN)
def test_form(name: str) -> None:
    form = FORMS[name]
    compiled = hopper_forms.compiled(form)
    sass = sass_of(compiled.asm["cubin"])
    found, made = operations(sass), report(compiled, sass)

    assert made.stack == 0 and not count(found, "LDL|STL"), "it spills"
    assert made.registers == form.launch_registers
    assert made.shared <= hopper_forms.SHARED_MEMORY
    if "two blocks" in name:
        assert 2 * (made.shared + 1024) <= 228 * 1024

    loop = shortest_loop(sass, "HGMMA")
    assert 0 < loop <= 1.1 * form.budget, (loop, form.budget)

    loads = [operation for operation in found if operation.startswith("UTMALDG")]
    assert loads and ("LDG" not in {operation.split(".")[0] for operation in found} or form.vectors)
    assert any("IM2COL" in operation for operation in loads) == (form.kernel == "pixels")
    assert any("MULTICAST" in operation for operation in loads) == bool(form.shared)
    assert bool(count(found, "UTMASTG")) == (form.kernel != "wgrad")
    assert count(found, "HGMMA") and not count(found, "HMMA")
    assert bool(count(found, "LDSM")) == form.residual, "an operand goes through registers"
    assert count(found, "USETMAXREG")
    assert ("sm_90a" in compiled.asm["ptx"]) and compiled.metadata.num_ctas == (2 if form.shared else 1)


def test_a_spill_would_be_noticed() -> None:
    """Too few registers for the producer of ten strips: the check has something to find."""
    compiled = hopper_forms.compiled(replace(FORMS["strips 8x64x64"], registers=(240, 24)))
    assert report(compiled, sass_of(compiled.asm["cubin"])).stack > 0
