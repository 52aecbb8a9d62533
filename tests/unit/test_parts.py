"""What the gate and the full run leave out: parts that are told by names alone, other ones on either Triton."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
from gate import COMPILED_IN_PARTS, PARTS, left_out, left_out_in_full

triton = pytest.importorskip("triton", reason="not run: triton is missing")

FOLDER = Path(__file__).resolve().parents[1]


class Case:
    """Stands for a case of a test of tests/codegen, which is named as in :data:`.gate.PARTS`."""

    def __init__(self, test: str, number: int) -> None:
        file, _, self.originalname = test.partition("::")
        self.path = FOLDER / "codegen" / f"{file}.py"
        self.name = f"{self.originalname}[{number}]"
        self.nodeid = f"{self.path}::{self.name}"


def kept(leave, items: list[Case], version: str) -> set[str]:
    """Return the names of the cases that a release of Triton runs."""
    with mock.patch.object(triton, "__version__", version):
        out = leave(items)
    return {item.name for item in items if item not in out}


@pytest.mark.parametrize("test", COMPILED_IN_PARTS)
def test_either_triton_compiles_another_part_in_the_full_run(test):
    items = [Case(test, number) for number in range(48)]
    newest, oldest = (kept(left_out_in_full, items, version) for version in ("3.9.0", "3.6.0"))
    assert {len(newest), len(oldest)} <= {48 // COMPILED_IN_PARTS[test], 48 // COMPILED_IN_PARTS[test] + 1}
    assert not newest & oldest


def test_the_full_run_has_all_of_every_other_list():
    items = [Case("test_codegen::test_row_is_what_the_compiler_does_today", number) for number in range(9)]
    assert left_out_in_full(items) == set()
    assert 0 < len(left_out(items)) < 9


@pytest.mark.parametrize("test", (*PARTS, *COMPILED_IN_PARTS))
def test_lists_that_are_cut_are_there(test):
    """A test that was renamed would run whole, and nobody would know why the gate takes longer."""
    file, _, name = test.partition("::")
    assert any(f"def {name}(" in path.read_text(encoding="utf-8") for path in FOLDER.glob(f"*/{file}.py"))
