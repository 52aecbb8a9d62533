"""Read the hot loop of a kernel from its SASS, its layout round trips from TTGIR, and how many blocks fit on an SM."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

__all__ = ["hot_loop", "occupancy", "round_trips"]

_LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)(.*?);", re.MULTILINE)

_PRODUCTS = ("HGMMA", "HMMA", "DMMA", "UTCHMMA", "UTCQMMA", "FFMA", "DFMA")

_SHARED_PER_SM = {80: 164 * 1024, 90: 228 * 1024, 100: 228 * 1024}
_SHARED_RESERVED = 1024
_REGISTERS_PER_SM = 65536
_WARPS_PER_SM = 64
_BLOCKS_PER_SM = 32


def hot_loop(sass: str) -> int:
    """Return the number of instructions of the loop that multiplies most per instruction, or 0 without such a loop.

    A loop is what lies between a backward branch and its target. Where none multiplies (kernels that move data), it is
    the loop that loads most per instruction.
    """
    code = [(int(address, 16), operation, rest) for address, operation, rest in _LINE.findall(sass)]
    best = {True: (0.0, 0), False: (0.0, 0)}
    for address, operation, rest in code:
        target = re.search(r"0x([0-9a-f]+)", rest) if operation.startswith("BRA") else None
        if target is None or int(target[1], 16) >= address:
            continue
        body = [op.split(".")[0] for place, op, _ in code if int(target[1], 16) <= place <= address]
        for multiplies in (True, False):
            found = sum(op in _PRODUCTS if multiplies else op in ("LDG", "LDGSTS") for op in body)
            best[multiplies] = max(best[multiplies], (found / len(body), len(body) if found else 0))
    return best[True][1] or best[False][1]


def round_trips(ttgir: str) -> int:
    """Return how many values change their layout inside a loop, most of them by way of shared memory.

    Counted are ``ttg.convert_layout`` between the braces of an ``scf.for`` or ``scf.while``.
    """
    loops: list[int] = []
    depth = found = 0
    for line in ttgir.splitlines():
        if re.search(r"\bscf\.(for|while)\b", line):
            loops.append(depth)
        found += bool(loops) and "ttg.convert_layout" in line
        # Attributes such as {tt.num_stages = 2 : i32} open and close on one line.
        depth += line.count("{") - line.count("}")
        while loops and depth <= loops[-1]:
            loops.pop()
    return found


def occupancy(row: Mapping[str, Any], capability: int) -> int:
    """Return how many blocks of a kernel fit on a multiprocessor, from registers, shared memory and warps.

    Limits are those of CUDA's programming guide, table "Technical Specifications per Compute Capability"; registers are
    handed out to warps in units of 256.
    """
    registers = -(-row["registers"] * 32 // 256) * 256 * row["warps"]
    by_registers = _REGISTERS_PER_SM // registers
    by_shared = _SHARED_PER_SM[capability] // (row["shared"] + _SHARED_RESERVED)
    return min(by_registers, by_shared, _WARPS_PER_SM // row["warps"], _BLOCKS_PER_SM)
