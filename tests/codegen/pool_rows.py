"""What the two codegen tables of pools share: their rows, the pages that show them, and how they are refreshed."""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import triton
from aot import compile_source, excess_of_tensor_memory, report, signature_of, specialise
from disassembly import sass_of
from loops import accesses, conversions, loading_loop, occupancy, operations, round_trips
from pool_launches import Launch
from rows import load, markdown, moves, slashed, write

from bench.sources import closure

ARCHITECTURES = (80, 90, 100)
VERSION = triton.__version__

ROOM_PER_BYTE = 132 * 4 * 32 * 1.98e9 / 4.3e12
"""Instructions of a thread that 132 multiprocessors at 1.98 GHz, each issuing one of 32 threads to each of 4 schedulers
per clock, can execute while 4.3 TB/s (a measured copy on an H200) deliver one byte."""

_COLUMNS = (
    "solver", "tile", "warps", "registers", "stack", "shared", "blocks", "instructions", "loop", "copies", "TMA",
    "STSM", "trips",
)  # fmt: skip

_LEGEND = f"""
Cells with slashes are {" / ".join(f"sm_{arch}" for arch in ARCHITECTURES)}; one number stands for all of them.
Registers and stack are per thread, shared memory in bytes per block; `blocks` is how many fit on a multiprocessor.
`instructions` are those of the whole kernel, without NOP; `loop` those of its hot loop: {{loop}}.
`copies` counts LDGSTS, `TMA` UTMALDG, `STSM` stores of matrices to shared memory; `trips` the values that change their
layout, in brackets those that do inside a loop (in kernels without shared memory, from registers to registers).
Accesses are loads and stores of global memory, by width in bits.
"""

_LOOPS = {
    True: "of the loop that loads\nmost bytes of global memory per instruction, mostly an innermost one (0: none)",
    False: "of the loop that\nmultiplies most, but not of one that forms again what is not finite (0: none)",
}

Room = Callable[[Launch, Mapping[str, Any], tuple[int, int]], dict[str, float]]


def planned(launch: Launch) -> dict[str, Any]:
    """Return the part of a row that the plan decides."""
    signature = signature_of(specialise(launch.kernel, launch.arguments), launch.config)
    solver = launch.solver.removeprefix("triton.").removeprefix("pool.")
    return {"signature": signature, "solver": solver, "tile": launch.tile, "warps": launch.config["num_warps"]}


@dataclass(frozen=True)
class PoolTable:
    """A table: its name, its launches by name, and the modules of their kernels.

    `room` gives ``"per_<per>"``, what one result (or element) costs, and ``"room"``, what there is room for, from the
    launch, its row and its hot loop (instructions, and the bytes that a thread loads there). `words` stand at the head
    of the page.
    """

    name: str
    title: str
    words: str
    per: str
    launches: Mapping[str, Launch]
    modules: tuple[ModuleType, ...]
    room: Room
    loop: Callable[[str], tuple[int, int]] = loading_loop

    @property
    def file(self) -> Path:
        return Path(__file__).parent / f"{self.name}.json"

    @property
    def page(self) -> Path:
        return Path(__file__).parent / f"{self.name.upper()}.md"

    @property
    def remedy(self) -> str:
        return f"run: python tests/codegen/{self.name}.py, and look at the diff"

    @cached_property
    def source(self) -> str:
        """A hash of the sources of the kernels."""
        texts = [Path(str(module.__file__)).read_bytes() for module in self.modules]
        return hashlib.sha256(b"".join(texts)).hexdigest()[:16]

    @cached_property
    def sources(self) -> dict[str, str]:
        """A hash of the source of each module, by its name."""
        return {
            module.__name__: hashlib.sha256(Path(str(module.__file__)).read_bytes()).hexdigest()[:16]
            for module in self.modules
        }

    def load(self) -> dict[str, Any]:
        """Return the committed table: version -> {"source": hash, "sources": hashes of modules, "rows": rows}.

        Rows are by architecture and name.
        """
        return load(self.file)

    def stale(self, table: Mapping[str, Any]) -> list[str]:
        """Return what is not of today's sources and launches in a table's part of this Triton, and in the page."""
        part = table[VERSION]
        found = [f"{self.name}.json is of other sources"] if part["source"] != self.source else []
        plans = {name: planned(launch) for name, launch in self.launches.items()}
        for arch, rows in part["rows"].items():
            found += [f"sm_{arch} {name}: no such launch" for name in sorted(rows.keys() - plans.keys())]
            old = [name for name, plan in plans.items() if not plan.items() <= rows.get(name, {}).items()]
            found += [f"sm_{arch} {name}: another plan, or no row" for name in old]
        return (
            found if found or self.page.read_text() == self.text(table) else [f"{self.page.name} is of another table"]
        )

    def measure(self, name: str, capability: int) -> dict[str, Any]:
        """Compile a launch for an architecture and return its row."""
        launch = self.launches[name]
        source = specialise(launch.kernel, launch.arguments)
        compiled = compile_source(source, capability, launch.config, launched=False)
        sass, ttgir = sass_of(compiled.asm["cubin"]), compiled.asm["ttgir"]
        row = planned(launch) | report(compiled, sass).row()
        del row["wide_async"]
        row["instructions"] -= operations(sass).count("NOP")
        if excess := excess_of_tensor_memory(compiled):
            row["excess_of_tensor_memory"] = excess
        loop = self.loop(sass)
        row |= {"accesses": accesses(sass), "hot_loop": loop[0]}
        row |= {"conversions": conversions(ttgir), "round_trips": round_trips(ttgir)}
        return row | self.room(launch, row, loop)

    def text(self, table: Mapping[str, Any]) -> str:
        """Render the table as Markdown."""
        text = [
            f"# {self.title}",
            "",
            *self.words.strip().splitlines(),
            *_LEGEND.replace("{loop}", _LOOPS[self.loop is loading_loop]).splitlines(),
            "",
        ]
        text += [f"`make codegen` makes this page and `{self.name}.json`. Nothing here has run on a GPU."]
        for version, part in sorted(table.items()):
            rows = [part["rows"].get(str(arch), {}) for arch in ARCHITECTURES]
            names = sorted(set.intersection(*map(set, rows)))
            text += ["", f"## Triton {version}", ""]
            missing = len(self.launches) - len(names)
            if missing:
                text += [f"Not run: {missing} of {len(self.launches)} launches, not compiled since they changed.", ""]
            several = {name: dict(zip(ARCHITECTURES, (part[name] for part in rows), strict=True)) for name in names}
            text += ["Over the room that there is on sm_90 (failures):"]
            text += [f"- {line}" for line in self.over(part["rows"].get("90", {}))] or ["- none"]
            heads = ["launch", *_COLUMNS, f"per {self.per}", "room", "accesses on sm_90"]
            text += ["", *markdown(heads, [[name, *self._cells(several[name])] for name in names])]
        return "\n".join(text) + "\n"

    def over(self, rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """Return the launches that execute more per result or element than there is room for, with the numbers."""
        found = [(name, row[f"per_{self.per}"], row["room"]) for name, row in sorted(rows.items()) if "room" in row]
        return [f"{name}: {cost} of {most}" for name, cost, most in found if cost > most]

    def _cells(self, rows: Mapping[int, Mapping[str, Any]]) -> list[str]:
        """Return the cells of a launch behind its name, from its row of each architecture."""
        cells = []
        for arch, row in rows.items():
            counts = row["counts"]
            line = [row[name] for name in ("solver", "tile", "warps", "registers", "stack", "shared")]
            line += [occupancy(row, arch), row["instructions"], row["hot_loop"]]
            line += [counts.get(name, 0) for name in ("LDGSTS", "UTMALDG", "STSM")]
            line += [
                f"{row['conversions']} ({row['round_trips']})",
                row.get(f"per_{self.per}", ""),
                row.get("room", ""),
            ]
            cells.append(line)
        return [*(slashed(values) for values in zip(*cells, strict=True)), moves(rows[90]["accesses"])]

    def refresh(self, everything: bool) -> None:
        """Recompile with the installed Triton what changed, or everything, and rewrite the table and its page.

        The table is written after every row: a run that was stopped goes on where it was.
        """
        table = self.load()
        old = table.get(VERSION, {"source": "", "rows": {}})
        before = self.sources if old["source"] == self.source else old.get("sources", {})
        changed = {name for name, hash in self.sources.items() if everything or before.get(name) != hash}
        kept = {
            arch: {
                name: row
                for name, row in of.items()
                if name in self.launches and not changed & closure(self.launches[name].kernel.fn.__module__)
            }
            for arch, of in old["rows"].items()
        }
        plans = {name: planned(launch) for name, launch in self.launches.items()}
        rows = {
            str(arch): {
                name: row
                for name, row in kept.get(str(arch), {}).items()
                if name in plans and plans[name].items() <= row.items()
            }
            for arch in ARCHITECTURES
        }
        table[VERSION] = {"source": self.source, "sources": self.sources, "rows": rows}
        jobs = [(name, arch) for arch in (90, 80, 100) for name in self.launches if name not in rows[str(arch)]]
        kept_rows = sum(map(len, rows.values()))
        print(f"{self.name}, triton {VERSION}: {kept_rows} rows kept, {len(jobs)} to compile", flush=True)
        for done, (name, arch) in enumerate(jobs, 1):
            rows[str(arch)][name] = self.measure(name, arch)
            write(self.file, table)
            print(f"\r{done}/{len(jobs)}", end="", file=sys.stderr, flush=True)
        write(self.file, table)
        self.page.write_text(self.text(table))

    def main(self) -> None:
        parser = argparse.ArgumentParser(description=f"Refresh {self.name}.json and its page with this Triton.")
        parser.add_argument("--all", action="store_true", help="recompile everything, not what changed alone")
        self.refresh(parser.parse_args().all)
