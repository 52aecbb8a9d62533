"""The codegen table of adaptive, global, fractional and unpooling kernels.

``python tests/codegen/pool_adaptive_table.py`` recompiles with the installed Triton and rewrites its part of
``pool_adaptive_table.json``, of sm_80, sm_90 and sm_100, or of those that follow as numbers.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import triton
from pool_adaptive_aot import compile_launch, launches
from pool_adaptive_problems import ENTRIES

from gpuconv.backends import triton_backend
from gpuconv.kernels.tl import pool_adaptive, pool_adaptive_lines, pool_axes, pool_fractional, pool_global, pool_unpool
from gpuconv.problem import itemsize

TABLE = Path(__file__).parent / "pool_adaptive_table.json"
ARCHITECTURES = (80, 90, 100)
VERSION = triton.__version__
SOURCES = (pool_axes, pool_adaptive, pool_adaptive_lines, pool_fractional, pool_global, pool_unpool)

INSTRUCTIONS_PER_BYTE = 132 * 128 * 1.98e9 / 4.3e12
"""What 132 multiprocessors at 1.98 GHz, each issuing to 128 lanes, can execute while 4.3 TB/s deliver one byte."""


def source_hash() -> str:
    """Return a hash of the sources of the kernels."""
    return hashlib.sha256(b"".join(Path(module.__file__).read_bytes() for module in SOURCES)).hexdigest()[:16]


def rows_of(name: str, capability: int) -> dict[str, dict[str, Any]]:
    """Compile the launches of an entry and return one row per kernel, named after entry and kernel."""
    solver_id, problem = ENTRIES[name]
    solver = next(solver for solver in triton_backend.BACKEND.solvers() if solver.id == solver_id)
    rows = {}
    for number, (kernel, arguments, config, _) in enumerate(launches(solver.plan(problem), problem)):
        row = compile_launch(kernel, arguments, config, capability)
        loop = row.pop("loop")
        if number == 0 and loop["bytes"]:
            elements = loop["bytes"] / itemsize(problem.dtype)
            row["per_element"] = round(loop["instructions"] / elements, 2)
            row["room"] = round(INSTRUCTIONS_PER_BYTE * itemsize(problem.dtype), 1)
        rows[f"{name} | {kernel.__name__}"] = row
    return rows


def load() -> dict[str, Any]:
    """Return the committed table: version -> {"source": hash, "rows": {architecture: {name: row}}}."""
    return json.loads(TABLE.read_text()) if TABLE.exists() else {}


def refresh(architectures: tuple[int, ...], only: str = "") -> None:
    """Compile the entries for `architectures`, or those of which the solver's id has `only`, and write the table."""
    table = load()
    part = table.get(VERSION, {})
    kept = part.get("rows", {}) if only or part.get("source") == source_hash() else {}
    for arch in architectures:
        names = [name for name, (solver, _) in ENTRIES.items() if only in solver]
        rows = {key: row for name in names for key, row in rows_of(name, arch).items()}
        kept[str(arch)] = (kept.get(str(arch), {}) if only else {}) | rows
        table[VERSION] = {"source": source_hash(), "rows": kept}
        _write(table)
        print(f"sm_{arch}: {len(kept[str(arch)])} rows", flush=True)


def _write(table: dict[str, Any]) -> None:
    lines = ["{"]
    for number, (version, part) in enumerate(sorted(table.items())):
        lines.append(f' "{version}": {{"source": "{part["source"]}", "rows": {{')
        for place, (arch, rows) in enumerate(sorted(part["rows"].items(), key=lambda item: int(item[0]))):
            body = [f"   {json.dumps(name)}: {json.dumps(row)}" for name, row in sorted(rows.items())]
            lines += [f'  "{arch}": {{', ",\n".join(body), "  }" + ("," if place + 1 < len(part["rows"]) else "")]
        lines.append(" }}" + ("," if number + 1 < len(table) else ""))
    TABLE.write_text("\n".join([*lines, "}"]) + "\n")


if __name__ == "__main__":
    refresh(tuple(int(arch) for arch in sys.argv[1:]) or ARCHITECTURES)
