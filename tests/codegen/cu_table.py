"""The table of the CUDA sources: what NVRTC makes of every kernel that the CuPy backend can ask for.

``python tests/codegen/cu_table.py`` compiles the kernels of the sources that changed (``--all``: of every source) and
rewrites ``cu_table.json`` and the page ``CU_TABLE.md``. The lane checks the committed rows, and compiles a sample.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import active_children
from pathlib import Path
from typing import Any

from disassembly import DISASSEMBLED
from loops import TENSOR_CORE, occupancy
from nvrtc import ARCHITECTURES, timed, version
from rows import load as load_table
from rows import markdown, moves, slashed
from rows import write as write_table

from gpuconv.backends.cupy.backend import BACKEND
from gpuconv.backends.cupy.common import OPTIONS, CupySolver
from gpuconv.kernels import cu

HERE = Path(__file__).parent
TABLE = HERE / "cu_table.json"
PAGE = HERE / "CU_TABLE.md"

CHUNK = 8
"""Kernels of one run of NVRTC: its own cost of about 0.3 s is shared, and two processes find work."""

Job = tuple[str, int, tuple[str, ...]]


def kernels() -> dict[str, list[str]]:
    """Return every kernel that a solver can ask for, by source."""
    found: dict[str, set[str]] = defaultdict(set)
    for solver in BACKEND.solvers():
        assert isinstance(solver, CupySolver)
        for source, kernel in solver.instantiations():
            found[source].add(kernel)
    return {source: sorted(names) for source, names in sorted(found.items())}


def source_hashes() -> dict[str, str]:
    """Return a hash of what the compiler sees of each source: its text with all headers, and the options."""
    return {
        name: hashlib.sha256((cu.source(name) + repr(OPTIONS)).encode()).hexdigest()[:16] for name in sorted(kernels())
    }


def load() -> dict[str, Any]:
    """Return the committed table: versions, sources {name: hash}, rows {architecture: {"source kernel": row}}."""
    return load_table(TABLE) or {"versions": {}, "sources": {}, "rows": {}}


def key(source: str, kernel: str) -> str:
    """Return the name of a row."""
    return f"{source} {kernel}"


def measure(job: Job) -> tuple[Job, dict[str, dict[str, Any]], float]:
    """Compile kernels of a source for an architecture; return their rows, and the seconds."""
    source, arch, names = job
    reports, seconds = timed(source, names, arch)
    return job, {key(source, kernel): report.row() for kernel, report in reports.items()}, seconds


def jobs(sources: dict[str, list[str]]) -> list[Job]:
    """Cut the kernels of `sources` into jobs, for every architecture."""
    return [
        (source, arch, tuple(names[start : start + CHUNK]))
        for source, names in sources.items()
        for arch in ARCHITECTURES
        for start in range(0, len(names), CHUNK)
    ]


def versions() -> dict[str, str | None]:
    """Return the versions of NVRTC that are installed, by CUDA release."""
    return {str(release): version(release) for release in sorted(set(ARCHITECTURES.values()))}


def write(table: dict[str, Any]) -> None:
    """Write the table and the page."""
    write_table(TABLE, table)
    PAGE.write_text(page(table))


def page(table: dict[str, Any]) -> str:
    """Render the table as Markdown."""
    releases = " and ".join(f"NVRTC {found}" for found in table["versions"].values())
    read = [f"sm_{arch}" for arch in DISASSEMBLED]
    unread = " and ".join(f"sm_{arch}" for arch in ARCHITECTURES if arch not in DISASSEMBLED)
    text = [
        "# Codegen table of the CUDA sources",
        "",
        f"What {releases} make of every kernel of the CuPy backend; `make codegen` makes this page and",
        f"`cu_table.json`. Cells with slashes are {' / '.join(f'sm_{arch}' for arch in ARCHITECTURES)};",
        "one number stands for all of them. Registers per thread, stack and spills in bytes per thread, shared memory",
        "in bytes per block; `warps` is the largest block that the launch bounds allow, `blocks` how many such fit on",
        "a multiprocessor.",
        "",
        f"The columns from `instructions` on are read from the machine code of {' / '.join(read)};",
        f"that of {unread} is not read: CUDA 13's disassembler does not know them. `instructions` are those of the",
        "whole kernel, without NOP; `loop` those of its hot loop: of a convolution the loop that multiplies most per",
        "instruction and stores no results, of a pool the one that loads most bytes of global memory per instruction",
        "(0: there is none). `products` counts the instructions of the tensor cores (HMMA, DMMA), `copies` LDGSTS.",
        "Accesses are loads and stores of global memory, by width in bits.",
    ]
    heads = ("kernel", "registers", "stack", "spills", "shared", "warps", "blocks", "instructions", "loop", "products")
    for source in sorted({name.partition(" ")[0] for rows in table["rows"].values() for name in rows}):
        names = sorted({n for rows in table["rows"].values() for n in rows if n.partition(" ")[0] == source})
        lines = [_cells(name, {arch: table["rows"][str(arch)].get(name) for arch in ARCHITECTURES}) for name in names]
        text += ["", f"## {source}.cu", "", *markdown([*heads, "copies", "accesses on sm_90"], lines)]
    return "\n".join(text) + "\n"


def _cells(name: str, rows: dict[int, dict[str, Any] | None]) -> list[str]:
    """Return the cells of a kernel in the order of the page's columns; "-" where an architecture has no row."""
    reported, read = [], []
    for arch, row in rows.items():
        plain = ("registers", "stack", "spills", "shared", "warps")
        reported.append([*(row[column] for column in plain), occupancy(row, arch)] if row else ["-"] * 6)
        if row is None or "counts" in row:
            read.append(_read(row) if row else ["-"] * 4)
    unread = "not read; " if len(read) < len(rows) else ""
    cells = [slashed(values) for values in zip(*reported, strict=True)]
    cells += [unread + slashed(values) for values in zip(*read, strict=True)] or ["not read"] * 4
    return [f"`{name.partition(' ')[2]}`", *cells, moves((rows[90] or {}).get("accesses", {}))]


def _read(row: dict[str, Any]) -> list[int]:
    """Return the cells of an architecture that show the machine code."""
    products = sum(row["counts"].get(name, 0) for name in TENSOR_CORE)
    return [row["instructions"], row["hot_loop"], products, row["counts"].get("LDGSTS", 0)]


def refresh(everything: bool, workers: int | None, only: list[str]) -> None:
    """Compile what changed, or everything, print the times, and rewrite the table and its page.

    With names of sources in `only`, those alone are compiled, and the table has no rows of others that changed.
    """
    old, found, hashes = load(), kernels(), source_hashes()
    kept = old["versions"] == versions() and not everything
    same = {name for name in found if kept and old["sources"].get(name) == hashes[name]}
    rows: dict[str, dict[str, Any]] = {str(arch): {} for arch in ARCHITECTURES}
    for arch, part in rows.items():
        wanted = {key(source, kernel) for source in same for kernel in found[source]}
        part.update({name: row for name, row in old["rows"].get(arch, {}).items() if name in wanted})
    todo = [
        (source, int(arch), missing[start : start + CHUNK])
        for source, names in found.items()
        if not only or source in only
        for arch, part in rows.items()
        for missing in [tuple(name for name in names if key(source, name) not in part)]
        for start in range(0, len(missing), CHUNK)
    ]
    seconds: dict[tuple[str, int], float] = defaultdict(float)
    table = {"versions": versions(), "sources": hashes, "rows": rows}
    try:
        with ProcessPoolExecutor(workers or os.cpu_count()) as pool:
            for (source, arch, names), part, spent in pool.map(
                measure, [(source, int(arch), names) for source, arch, names in todo]
            ):
                rows[str(arch)].update(part)
                seconds[source, arch] += spent
                print(f"{source} sm_{arch}: {len(names)} kernels, {spent:.1f} s", file=sys.stderr, flush=True)
            for worker in active_children():  # each would wait for a process of its own, which has the older NVRTC
                worker.terminate()
    finally:  # what was compiled is kept when an interruption or a failure ends this
        write(table)
    for (source, arch), spent in sorted(seconds.items()):
        print(f"{source:<20} sm_{arch:<4} {spent:6.1f} s")


def look_at(source: str, archs: list[int]) -> None:
    """Print the rows of one source, while it is being written; the table stays as it is."""
    for job in jobs({source: kernels()[source]}):
        if job[1] not in archs:
            continue
        _, rows, seconds = measure(job)
        for name, row in rows.items():
            spilled = "  SPILLS" if row["spills"] else ""
            print(f"sm_{job[1]} {name}: {', '.join(f'{what} {count}' for what, count in row.items())}{spilled}")
        print(f"  {seconds:.1f} s for {len(rows)} kernels", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Refresh the codegen table of the CUDA sources.")
    parser.add_argument("--all", action="store_true", help="compile every source, not those that changed alone")
    parser.add_argument("--workers", type=int, help="processes that compile; default: one for each core")
    parser.add_argument("--only", metavar="SOURCE", action="append", help="compile this source alone; may be repeated")
    parser.add_argument("--look-at", metavar="SOURCE", help="print what this source compiles to, and write nothing")
    parser.add_argument("--arch", type=int, action="append", help="of --look-at; default: all")
    arguments = parser.parse_args()
    if arguments.look_at:
        look_at(arguments.look_at, arguments.arch or list(ARCHITECTURES))
        return
    refresh(arguments.all, arguments.workers, arguments.only or [])


if __name__ == "__main__":
    main()
