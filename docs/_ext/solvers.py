"""Pages of kernels: what the sources, the codegen tables and the cost model say of a solver, read when pages are built.

``{solver} id id ...`` stands on the page of the solvers that it names. Its options: ``:files:`` of the repository,
device code first, whose own words are quoted; ``:compiled:`` says where codegen is tested of solvers without a table.
A `{solver-list}` names every solver of the library with its page.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

logger = logging.getLogger(__name__)

REPO = Path(__file__).resolve().parents[2]
TABLES = REPO / "tests" / "codegen"
PAGES = {
    "table.json": "TABLE.md",
    "narrow_table.json": "NARROW_TABLE.md",
    "banded_table.json": "BANDED_TABLE.md",
    "pool_table.json": "POOL_TABLE.md",
    "pool_adaptive_table.json": "POOL_ADAPTIVE_TABLE.md",
    "columns_table.json": "COLUMNS_TABLE.md",
}
GENERAL = {
    "conv.fprop.implicit_gemm": "",
    "conv.dgrad.implicit_gemm": "dgrad/",
    "conv.wgrad.split_k": "wgrad/",
}
"""Solvers of ``table.json``, with how its rows begin: those of the forward kernel have nothing in front."""

ARCHITECTURES = ("80", "90", "100")
ROWS = 4
"""Rows of a codegen table on a page, of each solver."""


class SolverFacts(SphinxDirective):
    """What can be said of solvers without running them."""

    required_arguments = 1
    final_argument_whitespace = True
    option_spec: ClassVar[dict[str, Any]] = {"files": directives.unchanged, "compiled": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        """Write the sections as Markdown and have it parsed."""
        names = self.arguments[0].split()
        files = self.options.get("files", "").split()
        depth = self.env.docname.count("/") + 1
        lines = [
            *_identity(names, files, depth),
            *_words(files),
            *_compiled(names, self.options.get("compiled"), depth),
        ]
        lines += [*_modelled(names, depth), *_measured(depth)]
        holder = nodes.container()
        self.state.nested_parse(StringList(lines, self.get_source_info()[0]), 0, holder)
        return holder.children


def _identity(names: list[str], files: list[str], depth: int) -> Iterator[str]:
    yield f"Solvers: {', '.join(f'`{name}`' for name in names)}."
    if files:
        links = ", ".join(f"[{file}]({'../' * depth}{file})" for file in files)
        yield f"Sources: {links}."
    yield ""


def _words(files: list[str]) -> Iterator[str]:
    """Quote what device code says of itself."""
    for file in files:
        text = (REPO / file).read_text(encoding="utf-8")
        said = ast.get_docstring(ast.parse(text)) if file.endswith(".py") else _comment(text)
        if said and file.startswith("kernels/"):
            yield f"**The kernel's own words** (`{file}`):"
            yield ""
            yield from (f"> {line}".rstrip() for line in said.replace("``", "`").replace(":mod:", "").splitlines())
            yield ""


def _comment(text: str) -> str:
    """Return the comment at the head of a CUDA source."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("//"):
            break
        lines.append(line.lstrip("/").removeprefix(" "))
    return "\n".join(lines)


@lru_cache
def _table(name: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the rows of a codegen table by architecture, of the newest Triton in it."""
    releases: dict[str, Any] = json.loads((TABLES / name).read_text(encoding="utf-8"))
    newest = max(releases, key=lambda key: [int(part) for part in key.split(".")])
    rows: dict[str, dict[str, dict[str, Any]]] = releases[newest]["rows"]
    return rows


def rows_of(name: str) -> Iterator[tuple[str, str, dict[str, dict[str, Any]]]]:
    """Yield the rows of a solver in the codegen tables: table, launch, and a row for each architecture."""
    backend, _, idea = name.partition(".")
    if backend != "triton":
        return
    for table in PAGES:
        rows = _table(table)
        for launch in rows["90"]:
            if table == "table.json":
                start = GENERAL.get(idea)
                own = start is not None and (launch.startswith(start) if start else "/" not in launch)
            else:
                own = rows["90"][launch]["solver"] in (idea, idea.removeprefix("pool."))
            if own:
                yield table, launch, {arch: rows[arch][launch] for arch in ARCHITECTURES if launch in rows[arch]}


def _compiled(names: list[str], elsewhere: str | None, depth: int) -> Iterator[str]:
    yield "**Compiled** (without a GPU; registers per thread, bytes of stack and of shared memory, instructions of the"
    yield "hot loop; sm_80 / sm_90 / sm_100 where they differ):"
    yield ""
    found = [row for name in names for row in [*rows_of(name)][:ROWS]]
    up = "../" * depth
    if found:
        yield "| launch | tile | warps | registers | stack | shared | hot loop |"
        yield "|---|---|---:|---:|---:|---:|---:|"
        for _, launch, by in found:
            cells = [_joined(by, key) for key in ("tile", "warps", "registers", "stack", "shared", "hot_loop")]
            yield f"| {launch.replace(' | ', ', ').replace('|', ',')} | {' | '.join(cells)} |"
        yield ""
        pages = sorted({PAGES[table] for table, _, _ in found})
        yield (
            "The first rows of these solvers in "
            + ", ".join(f"[{page}]({up}tests/codegen/{page})" for page in pages)
            + "."
        )
    elif elsewhere and (REPO / elsewhere).suffix == ".py":
        yield f"No table: [{elsewhere}]({up}{elsewhere}) compiles the kernel and asserts what it must be."
    elif elsewhere:
        yield f"Every variant stands in [{elsewhere}]({up}{elsewhere})."
    else:
        yield "No kernel is compiled."
    yield ""


def _joined(by: dict[str, dict[str, Any]], key: str) -> str:
    values = [str(row[key]) for row in by.values()]
    return values[0] if len(set(values)) == 1 else " / ".join(values)


def _modelled(names: list[str], depth: int) -> Iterator[str]:
    """Copy what the page of modelled times has of these solvers."""
    up = "../" * (depth - 1)
    ideas = [name.partition(".")[2] for name in names]
    text = (REPO / "docs" / "model-gap.md").read_text(encoding="utf-8")
    families = text.partition("## Families")[2].partition("\n## ")[0]
    lines = [line.strip("|") for line in families.splitlines()[1:] if "|" in line]
    rows = [[cell.strip() for cell in line.split(" | ")] for line in lines]
    own = [row for row in rows if any(re.search(rf"(^|[ ,]){re.escape(idea)} \(", row[-1]) for idea in ideas)]
    yield f"**Modelled** ([all families]({up}model-gap.md): an H200, bfloat16, channels-last, batch 32; time over"
    yield "roofline, so 1 is the limit; of all layers of a family, whichever solver has them):"
    yield ""
    if own:
        yield "| family | pass | layers | geometric mean | worst | solvers of the family (layers) |"
        yield "|---|---|---:|---:|---:|---|"
        for row in own:
            yield f"| {row[0]} | {row[1]} | {row[2]} | {row[4]} | {row[5]} | {row[6]} |"
    elif names[0].startswith("triton."):
        yield "It is the first choice of no layer of these workloads: they have none of its operation, or another"
        yield "solver is modelled faster."
    else:
        yield "The cost model describes Triton kernels alone. Estimates of this backend are rules of thumb (`guess`)."
    yield ""


def _measured(depth: int) -> Iterator[str]:
    """Say what was measured: nothing, as long as there is no run on a GPU."""
    runs = sorted(path.name for path in (REPO / "bench" / "results").iterdir() if path.is_dir() and path.name != "cpu")
    if runs:
        yield f"**Measured**: see the runs in bench/results of {', '.join(runs)}."
    else:
        yield "**Measured on a GPU**: not run."
    yield ""


def pages_of_solvers() -> dict[str, str]:
    """Return the page of each solver that a page names."""
    found = {}
    for path in sorted((REPO / "docs" / "kernels").glob("*.md")):
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("```{solver} "):
                found.update({name: path.stem for name in line.split()[1:]})
    return found


class SolverList(SphinxDirective):
    """Every solver of the library, by backend, with its page."""

    def run(self) -> list[nodes.Node]:
        """Write the table."""
        from gpuconv.dispatch.selection import backends

        pages = pages_of_solvers()
        lines = ["| solver | page |", "|---|---|"]
        for backend in backends().values():
            for solver in backend.solvers():
                if solver.id not in pages:
                    logger.warning("solver %s has no page", solver.id, location=self.get_location())
                lines.append(f"| `{solver.id}` | [{pages.get(solver.id, '?')}]({pages.get(solver.id, '?')}.md) |")
        holder = nodes.container()
        self.state.nested_parse(StringList(lines, self.get_source_info()[0]), 0, holder)
        return holder.children


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.add_directive("solver", SolverFacts)
    app.add_directive("solver-list", SolverList)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
