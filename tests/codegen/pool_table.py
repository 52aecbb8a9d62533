"""The codegen table of the pools: what each launch compiles to, per Triton version and GPU architecture.

``python tests/codegen/pool_table.py`` recompiles with the installed Triton every entry whose kernels or plan changed
(``--all``: every entry) and rewrites its part of ``pool_table.json`` and the page ``POOL_TABLE.md``.

How much room there is: at 4.3 TB/s (a measured copy on an H200) a result element takes ``bytes / 4.3e12`` seconds,
``bytes`` being what must be read and written for it at least. In that time 132 multiprocessors, each issuing one
instruction of 32 threads to each of 4 schedulers per clock at 1.98 GHz, can execute
``132 * 4 * 32 * 1.98e9 * bytes / 4.3e12 = 7.78 * bytes`` thread instructions. Of a kernel without loops, the
instructions in its SASS (without NOP) over the results of one thread are what it executes per result at most.
"""

from __future__ import annotations

import hashlib
import json
import sys
from math import prod
from pathlib import Path
from typing import Any

import triton
from pool_launches import Launch, accesses, compiled, launches, report
from pool_problems import problems

from gpuconv.kernels.tl import pool
from gpuconv.problem import PoolProblem, itemsize

HERE = Path(__file__).parent
TABLE = HERE / "pool_table.json"
PAGE = HERE / "POOL_TABLE.md"
ARCHITECTURES = (80, 90, 100)
VERSION = triton.__version__
ROOM_PER_BYTE = 132 * 4 * 32 * 1.98e9 / 4.3e12

Rows = dict[str, dict[str, Any]]


def source_hash() -> str:
    """Return a hash of the sources of the window pooling kernels."""
    folder = Path(pool.__file__).parent
    names = ("pool", "pool_keys", "pool_max", "pool_sum", "pool_tiled", "pool_tiled_bwd")
    return hashlib.sha256(b"".join((folder / f"{name}.py").read_bytes() for name in names)).hexdigest()[:16]


def bytes_per_result(problem: PoolProblem) -> float:
    """Return the bytes that must move per element of the result: a gradient of maxima reads the indices as well."""
    moved = problem.min_bytes
    if problem.kind == "bwd" and problem.pool == "max":
        moved += itemsize(problem.index_dtype) * prod(problem.y_shape)
    if problem.kind == "bwd" and problem.pool == "lp":
        moved += itemsize(problem.dtype) * prod(problem.x_shape)
    return moved / prod(problem.result_shape)


def results_per_thread(problem: PoolProblem, launch: Launch) -> float:
    """Return how many results one thread of a tiled kernel computes."""
    config = launch.config
    items = config["BLOCK_M"] * config["BLOCK_L"] / (32 * config["num_warps"])
    results = items * config["TILE_P"] * config["TILE_Q"]
    if problem.kind == "bwd":
        results *= launch.arguments["STRIDE_H"] * launch.arguments["STRIDE_W"]
    return results


def tile_of(launch: Launch) -> str:
    """Return the tile of a launch in words."""
    sides = [str(launch.config[name]) for name in ("TILE_P", "TILE_Q", "BLOCK_M", "BLOCK_L") if name in launch.config]
    return "x".join(sides)


def entries() -> dict[str, tuple[PoolProblem, str, Launch]]:
    """Return each launch of the plans for every problem, by name: the problem, its solver and the launch."""
    found = {}
    for name, problem in problems():
        solver, several = launches(problem)
        for place, launch in enumerate(several):
            suffix = f", launch {place + 1}" if len(several) > 1 else ""
            found[f"{name}{suffix}"] = (problem, solver, launch)
    return found


def measure(entry: tuple[PoolProblem, str, Launch], capability: int) -> dict[str, Any]:
    """Compile an entry for an architecture and return its row."""
    problem, solver, launch = entry
    kernel = compiled(launch, capability)
    row = planned(entry) | report(kernel).row() | {"accesses": accesses(kernel)}
    del row["wide_async"]
    row["instructions"] -= row["accesses"].pop("NOP", 0)
    if solver.endswith("tiled"):
        row["per_result"] = round(row["instructions"] / results_per_thread(problem, launch), 1)
        row["room"] = round(ROOM_PER_BYTE * bytes_per_result(problem), 1)
    return row


def planned(entry: tuple[PoolProblem, str, Launch]) -> dict[str, Any]:
    """Return the part of a row that the plan decides."""
    _, solver, launch = entry
    return {"solver": solver.removeprefix("triton.pool."), "tile": tile_of(launch), "warps": launch.config["num_warps"]}


def load() -> dict[str, Any]:
    """Return the committed table: version -> {"source": hash, "rows": {architecture: {name: row}}}."""
    return json.loads(TABLE.read_text()) if TABLE.exists() else {}


def write(table: dict[str, Any]) -> None:
    """Write the table with one row per line, so that a diff shows what changed."""
    lines = ["{"]
    for number, (version, part) in enumerate(sorted(table.items())):
        lines += [f' "{version}": {{', f'  "source": {json.dumps(part["source"])},', '  "rows": {']
        for place, (arch, rows) in enumerate(sorted(part["rows"].items())):
            body = [f"    {json.dumps(name)}: {json.dumps(row)}" for name, row in sorted(rows.items())]
            lines += [f'   "{arch}": {{', ",\n".join(body), "   }" + ("," if place + 1 < len(part["rows"]) else "")]
        lines += ["  }", " }" + ("," if number + 1 < len(table) else "")]
    TABLE.write_text("\n".join([*lines, "}"]) + "\n")


def over(rows: Rows) -> list[str]:
    """Return the entries whose kernels execute more than there is room for."""
    return sorted(name for name, row in rows.items() if row.get("per_result", 0) > row.get("room", 0))


def page(table: dict[str, Any]) -> str:
    """Render the rows of sm_90 as Markdown."""
    assert __doc__ is not None
    text = ["# Codegen table of the pools", "", *__doc__.split("\n\n")[2].strip().split("\n"), ""]
    text += [
        "Registers and stack are per thread. `instructions` are those of the whole kernel; `per result` and `room`"
    ]
    text += ["stand where it has no loop. Accesses are loads and stores of global memory, by width in bits."]
    text += ["`pool_table.json` has sm_80 and sm_100 as well. Nothing here has run on a GPU."]
    total = len(entries())
    for version, part in sorted(table.items()):
        rows = part["rows"]["90"]
        text += ["", f"## Triton {version}", ""]
        if len(rows) < total:
            text += [f"Not run: {total - len(rows)} of {total} launches, not compiled since they changed.", ""]
        text += ["Over the room that there is (failures):"]
        text += [f"- {name}: {rows[name]['per_result']} of {rows[name]['room']}" for name in over(rows)] or ["- none"]
        text += [
            "",
            "| problem | solver | tile | registers | stack | shared | instructions | accesses | per result | room |",
        ]
        text += ["|---|---|---|---|---|---|---|---|---|---|"]
        for name, row in sorted(rows.items()):
            moves = " ".join(f"{count} {kind}" for kind, count in sorted(row["accesses"].items()))
            cells = [name, row["solver"], row["tile"], row["registers"], row["stack"], row["shared"]]
            cells += [row["instructions"], moves, row.get("per_result", ""), row.get("room", "")]
            text.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(text) + "\n"


def refresh(everything: bool) -> None:
    """Recompile with the installed Triton what changed, or everything, and rewrite the table and its page.

    The table is written after every entry: a run that was stopped goes on where it was.
    """
    table, found = load(), entries()
    part = table.setdefault(VERSION, {"source": "", "rows": {}})
    if everything or part["source"] != source_hash():
        part["rows"] = {}
    part["source"] = source_hash()
    for arch in (90, 80, 100):
        rows = part["rows"].get(str(arch), {})
        part["rows"][str(arch)] = {name: row for name, row in rows.items() if name in found}
    jobs = [(name, arch) for arch in (90, 80, 100) for name in found]
    for done, (name, arch) in enumerate(jobs, 1):
        rows = part["rows"][str(arch)]
        if not planned(found[name]).items() <= rows.get(name, {}).items():
            rows[name] = measure(found[name], arch)
            write(table)
        print(f"\r{done}/{len(jobs)}", end="", file=sys.stderr, flush=True)
    write(table)
    PAGE.write_text(page(table))


if __name__ == "__main__":
    refresh("--all" in sys.argv[1:])
