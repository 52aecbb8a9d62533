"""Read a kernel's SASS: instructions, accesses, hot loop; its layout round trips from TTGIR; and blocks on an SM."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = [
    "PRODUCTS", "TENSOR_CORE", "accesses", "conversions", "counts", "hot_loop", "loading_loop", "occupancy",
    "operations", "products_of", "round_trips", "shortest_loop", "stepping_loop", "straight",
]  # fmt: skip

WATCHED = (
    "HGMMA", "HMMA", "DMMA", "UTCHMMA", "UTCQMMA", "FFMA", "DFMA", "LDGSTS", "UTMALDG", "UTMASTG", "LDG", "STG", "LDS",
    "STS", "LDSM", "STSM", "LDL", "STL",
)  # fmt: skip

TENSOR_CORE = ("HGMMA", "HMMA", "DMMA", "UTCHMMA", "UTCQMMA")
PRODUCTS = (*TENSOR_CORE, "FFMA", "DFMA")

_LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)(.*?);", re.MULTILINE)

_SHARED_PER_SM = {60: 64 * 1024, 70: 96 * 1024, 80: 164 * 1024, 90: 228 * 1024, 100: 228 * 1024}
_SHARED_RESERVED = {60: 0, 70: 0, 80: 1024, 90: 1024, 100: 1024}
_SHARED_UNIT = {60: 256, 70: 256, 80: 128, 90: 128, 100: 128}
_PARTITIONS = {60: 2, 70: 4, 80: 4, 90: 4, 100: 4}
_REGISTERS_PER_SM = 65536
_WARPS_PER_SM = 64
_BLOCKS_PER_SM = 32


def operations(sass: str) -> list[str]:
    """Return the operation of every instruction with its modifiers, such as ``LDG.E.128``, without predicates."""
    return re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", sass, re.MULTILINE)


def counts(sass: str) -> dict[str, int]:
    """Count the instructions that a reader of the tables looks for, by name."""
    found = Counter(operation.split(".")[0] for operation in operations(sass))
    return {name: found[name] for name in WATCHED if found[name]}


def width(operation: str) -> int:
    """Return the bits that a load or a store moves for each thread."""
    modifiers = operation.split(".")[1:]
    return next((bits for bits in (256, 128, 64, 16, 8) if {str(bits), f"U{bits}", f"S{bits}"} & {*modifiers}), 32)


def accesses(sass: str) -> dict[str, int]:
    """Count the loads from and the stores to global memory by width in bits, such as ``{"LDG128": 4, "STG32": 1}``."""
    found = Counter()
    for operation in operations(sass):
        name = operation.split(".")[0]
        if name in ("LDG", "STG"):
            found[f"{name}{width(operation)}"] += 1
    return dict(sorted(found.items()))


def _loops(sass: str) -> Iterator[list[str]]:
    """Yield the operations of every loop: of what lies between a backward branch and its target."""
    code = [(int(address, 16), operation, rest) for address, operation, rest in _LINE.findall(sass)]
    for address, operation, rest in code:
        target = re.search(r"0x([0-9a-f]+)", rest) if operation.startswith("BRA") else None
        if target is not None and int(target[1], 16) < address:
            yield [op for place, op, _ in code if int(target[1], 16) <= place <= address]


def hot_loop(sass: str, stores: bool = True, products: tuple[str, ...] = PRODUCTS) -> int:
    """Return the number of instructions of the loop that multiplies most per instruction, or 0 without such a loop.

    Where none multiplies (kernels that move data), it is the loop that loads most often per instruction. Without
    `stores` a loop that stores to global memory is not one that multiplies: an epilogue whose activation does.
    """
    best = {True: (0.0, 0), False: (0.0, 0)}
    for operations_of_loop in _loops(sass):
        body = [operation.split(".")[0] for operation in operations_of_loop]
        for multiplies in (True, False):
            found = sum(op in (products if multiplies else ("LDG", "LDGSTS")) for op in body)
            if multiplies and not stores and "STG" in body:
                continue
            best[multiplies] = max(best[multiplies], (found / len(body), len(body) if found else 0))
    return best[True][1] or best[False][1]


def stepping_loop(sass: str, stores: bool) -> int:
    """Return the instructions of the shortest loop with at least half as many tensor-core products as another.

    With `stores` the loop must store to global memory as well; 0 without such a loop.
    """
    found = []
    for operations_of_loop in _loops(sass):
        body = [operation.split(".")[0] for operation in operations_of_loop]
        products = sum(op in TENSOR_CORE for op in body)
        found += [(products, len(body))] if products and (not stores or "STG" in body) else []
    most = max((products for products, _ in found), default=0)
    return min((length for products, length in found if 2 * products >= most), default=0)


def shortest_loop(sass: str, product: str) -> int:
    """Return the instructions of the shortest loop with a product of this name; 0 without such a loop.

    Where warps are specialised, longer ones lead from one partition's loop to another's.
    """
    bodies = [[operation.split(".")[0] for operation in body] for body in _loops(sass)]
    return min((len(body) for body in bodies if product in body), default=0)


def products_of(sass: str) -> list[tuple[str, str]]:
    """Return operations, and what is behind them, of the loop with most tensor-core products; none without one.

    Names end where small letters begin: of ``HGMMA.64x128x16.F32`` the shape is behind ``HGMMA.64``.
    """
    code = [(int(address, 16), operation, rest) for address, operation, rest in _LINE.findall(sass)]
    best: tuple[int, int, list[tuple[str, str]]] = (0, 0, [])
    for address, operation, rest in code:
        target = re.search(r"0x([0-9a-f]+)", rest) if operation.startswith("BRA") else None
        if target is not None and int(target[1], 16) < address:
            body = [(op, behind) for place, op, behind in code if int(target[1], 16) <= place <= address]
            found = sum(op.split(".")[0] in TENSOR_CORE for op, _ in body)
            best = max(best, (found, -len(body), body), key=lambda entry: entry[:2])
    return best[2]


def straight(sass: str) -> int:
    """Return how many instructions, NOP not counted, are in no loop."""
    code = [(int(address, 16), operation, rest) for address, operation, rest in _LINE.findall(sass)]
    spans = []
    for address, operation, rest in code:
        target = re.search(r"0x([0-9a-f]+)", rest) if operation.startswith("BRA") else None
        if target is not None and int(target[1], 16) < address:
            spans.append((int(target[1], 16), address))
    return sum(
        operation != "NOP" and not any(low <= address <= high for low, high in spans) for address, operation, _ in code
    )


def loading_loop(sass: str) -> tuple[int, int]:
    """Return the instructions of the loop that loads most bytes of global memory per instruction, and these bytes.

    Bytes are those of one thread in one turn. Of loops inside of one another that is mostly the innermost, which does
    little else. Without a loop that loads both are 0.
    """
    best = (0, 0)
    for body in _loops(sass):
        loaded = sum(width(operation) // 8 for operation in body if operation.split(".")[0] in ("LDG", "LDGSTS"))
        if loaded and (not best[1] or len(body) * best[1] < best[0] * loaded):
            best = (len(body), loaded)
    return best


def conversions(ttgir: str) -> int:
    """Return how many values change their layout anywhere in a kernel, by way of shared memory or between registers."""
    return sum("ttg.convert_layout" in line for line in ttgir.splitlines())


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

    Limits are those of CUDA's programming guide, table "Technical Specifications per Compute Capability"; registers
    are handed out to warps in units of 256, and each part of a multiprocessor has its own.
    """
    by_warp = -(-row["registers"] * 32 // 256) * 256
    parts = _PARTITIONS[capability]
    by_registers = _REGISTERS_PER_SM // parts // by_warp * parts // row["warps"]
    unit = _SHARED_UNIT[capability]
    shared = -(-row["shared"] // unit) * unit + _SHARED_RESERVED[capability]
    by_shared = _SHARED_PER_SM[capability] // shared if shared else _BLOCKS_PER_SM
    return min(by_registers, by_shared, _WARPS_PER_SM // row["warps"], _BLOCKS_PER_SM)
