"""How the codegen tables read what compilers print, and how they are written."""

from __future__ import annotations

import json

import pytest
from budgets import Budget, broken, stated, unnoticed
from disassembly import by_kernel
from loops import (
    accesses,
    conversions,
    counts,
    hot_loop,
    loading_loop,
    occupancy,
    operations,
    round_trips,
    stepping_loop,
)
from rows import load, markdown, moves, slashed, write

pytestmark = pytest.mark.codegen


def _sass(*lines):
    return "".join(
        f"        /*{16 * place:04x}*/                   {text} ;                    /* 0x0 */\n"
        for place, text in enumerate(lines)
    )


def test_hot_loop_is_the_one_that_multiplies_most():
    sass = _sass(
        "MOV R1, R2", "LDG.E R1, [R2]", "IADD3 R1, R1, R2, RZ", "@P0 BRA 0x10", "LDS R1, [R2]", "NOP",
        "HGMMA.64x128x16.F32 R24, gdesc[UR4], R24", "@!P1 BRA 0x40", "EXIT", "BRA 0x90",
    )  # fmt: skip
    assert hot_loop(sass) == 4
    assert hot_loop(sass.replace("HGMMA", "MOV")) == 3
    assert hot_loop("") == 0


def test_hot_loop_is_not_an_epilogue_where_loops_that_store_do_not_count():
    sass = _sass(
        "LDG.E R1, [R2]", "LDS R1, [R2]", "FFMA R1, R2, R3, R4", "@P0 BRA 0x0",
        "FFMA R1, R2, R3, R4", "STG.E [R2], R1", "@!P1 BRA 0x40",
    )  # fmt: skip
    assert hot_loop(sass) == 3
    assert hot_loop(sass, stores=False) == 4


def test_loading_loop_is_the_innermost_that_loads_most_bytes():
    sass = _sass(
        "MOV R1, R2", "IADD3 R1, R1, R2, RZ", "LDG.E.128.CONSTANT R4, desc[UR4][R2.64]", "LDG.E.U16 R1, [R2]",
        "@P0 BRA 0x20", "LDG.E R1, [R2]", "MOV R1, R2", "@!P1 BRA 0x50", "@P2 BRA 0x10", "EXIT",
    )  # fmt: skip
    assert loading_loop(sass) == (3, 18)
    assert loading_loop(sass.replace("LDG.E.128.CONSTANT", "MOV").replace("LDG.E.U16", "MOV")) == (3, 4)
    assert loading_loop(sass.replace("LDG", "LDS")) == (0, 0)


def test_stepping_loop_is_the_shortest_with_most_products():
    sass = _sass(
        "MOV R1, R2", "HMMA.16816.F32 R4, R8, R12, R4", "@P0 BRA 0x10", "HMMA.16816.F32 R4, R8, R12, R4",
        "HMMA.16816.F32 R4, R8, R12, R4", "HMMA.16816.F32 R4, R8, R12, R4", "@P0 BRA 0x20", "STG.E [R2], R1",
        "@P1 BRA 0x0", "FFMA R1, R2, R3, R4", "STG.E [R2], R1", "@P2 BRA 0x90",
    )  # fmt: skip
    assert stepping_loop(sass, stores=False) == 5
    assert stepping_loop(sass, stores=True) == 9
    assert stepping_loop(sass.replace("HMMA", "MOV"), stores=False) == 0


def test_accesses_are_counted_by_width():
    sass = _sass(
        "LDG.E.128.CONSTANT R4, desc[UR4][R2.64]", "@P0 LDG.E.U16 R1, [R2]", "@!UP1 LDG.E R1, [R2]",
        "LDG.E.S8 R1, [R2]", "LDGSTS.E.BYPASS.128 [R1], desc[UR4][R2.64]", "STG.E.64 desc[UR4][R2.64], R1",
        "STS.128 [R1], R4", "NOP",
    )  # fmt: skip
    assert accesses(sass) == {"LDG128": 1, "LDG16": 1, "LDG32": 1, "LDG8": 1, "STG64": 1}
    assert counts(sass) == {"LDGSTS": 1, "LDG": 4, "STG": 1, "STS": 1}
    assert operations(sass)[-1] == "NOP" and len(operations(sass)) == 8
    assert moves(accesses(sass)) == "1 LDG128 1 LDG16 1 LDG32 1 LDG8 1 STG64"


def test_kernels_of_a_binary_are_told_apart():
    sass = f"headers\n\t\tFunction : first\n{_sass('NOP')}\t\tFunction : second\n{_sass('EXIT', 'NOP')}"
    assert {name: operations(text) for name, text in by_kernel(sass).items()} == {
        "first": ["NOP"],
        "second": ["EXIT", "NOP"],
    }


def test_round_trips_are_counted_inside_loops():
    ttgir = """
      %0 = ttg.convert_layout %a : tensor<1xf32> -> tensor<1xf32>
      %1 = scf.for %i = %c0 to %n step %c1 iter_args(%x = %0) -> (tensor<1xf32>) : i32 {
        %2 = ttg.convert_layout %x : tensor<1xf32> -> tensor<1xf32>
        scf.yield %2 : tensor<1xf32>
      } {tt.num_stages = 2 : i32}
      %3 = ttg.convert_layout %1 : tensor<1xf32> -> tensor<1xf32>
    """
    assert round_trips(ttgir) == 1
    assert conversions(ttgir) == 3


def test_occupancy_is_bounded_by_what_runs_out_first():
    row = {"registers": 128, "shared": 0, "warps": 8}
    assert occupancy(row, 90) == 2  # 65536 / (128 * 256)
    assert occupancy(row | {"registers": 32, "shared": 99 * 1024}, 90) == 2  # 228 KiB, 1 of each block reserved
    assert occupancy(row | {"registers": 16, "warps": 1}, 90) == 32
    assert occupancy(row | {"registers": 16}, 90) == 8  # 64 warps
    assert occupancy(row | {"registers": 168, "warps": 2}, 90) == 6  # 3 warps in each of 4 parts, of 2 each in 2
    assert occupancy(row | {"registers": 168, "warps": 2}, 60) == 6
    assert occupancy(row | {"registers": 32, "shared": 32 * 1024}, 60) == 2  # 64 KiB, nothing reserved
    assert occupancy(row | {"registers": 32, "shared": 32 * 1024}, 70) == 3
    assert occupancy(row | {"registers": 32, "shared": 32 * 1024}, 80) == 4


def test_tables_have_a_line_for_each_row(tmp_path):
    part = {"sources": {"a": "1", "b": "2"}, "rows": {"90": {"y": {"n": 1}, "x": {"n": {"m": 2}}}, "80": {}}}
    for table in (part, {"3.9.0": part, "3.6.0": part}):
        write(tmp_path / "table.json", table)
        assert load(tmp_path / "table.json") == table
        lines = (tmp_path / "table.json").read_text().splitlines()
        several = 1 if table is part else 2
        assert sum(json.dumps({"n": {"m": 2}}) in line for line in lines) == several
        assert sum(json.dumps(part["sources"]) in line for line in lines) == several
    assert load(tmp_path / "none.json") == {}


def test_cells_show_one_value_or_that_of_each_architecture():
    assert slashed([4, 4, 4]) == "4" and slashed([4, 4, 2]) == "4/4/2"
    assert markdown(["a", "b"], [[1, "x | y"]]) == ["| a | b |", "|---|---|", "| 1 | x \\| y |"]


def test_budgets_notice_longer_loops_and_fewer_warps():
    row = {"registers": 64, "shared": 0, "warps": 8, "hot_loop": 100}
    rows = [(90, "a", row), (80, "a", row | {"hot_loop": 90, "registers": 32}), (90, "b", row | {"hot_loop": 0})]
    budgets = stated(rows, str)
    assert budgets == {"a": Budget(loop=100, warps=32), "b": Budget(loop=0, warps=32)}
    assert [*broken(rows, budgets, str)] == [] and unnoticed(rows, budgets, str) == []
    assert [*broken([(90, "a", row | {"hot_loop": 105})], budgets, str)] == []
    assert [*broken([(90, "a", row | {"hot_loop": 106})], budgets, str)] == [
        "sm_90 a: a hot loop of 106 instructions, 105 are the most"
    ]
    assert [*broken([(90, "b", row | {"registers": 72})], budgets, str)] == [
        "sm_90 b: a hot loop of 100 instructions, 0 are the most",
        "sm_90 b: 24 warps fit, 32 are the fewest",
    ]
