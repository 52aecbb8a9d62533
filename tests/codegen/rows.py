"""What the codegen tables share: files with one row per line, and pages with a value for each architecture."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Rows = dict[str, dict[str, Any]]
"""Rows of one architecture by name."""


def load(path: Path) -> dict[str, Any]:
    """Return a committed table, or an empty one."""
    return json.loads(path.read_text()) if path.exists() else {}


def write(path: Path, table: Mapping[str, Any]) -> None:
    """Write a table with one row per line, so that a diff shows what changed.

    A table is a part, or parts by Triton version. A part has ``"rows"``, {architecture: {name: row}}, and what else it
    has takes a line each.
    """
    if "rows" in table:
        lines = _part(table, "")
    else:
        parts = [[f' "{version}": {{', *_part(part, " ")[1:]] for version, part in sorted(table.items())]
        lines = ["{", *_separated(parts), "}"]
    path.write_text("\n".join(lines) + "\n")


def _part(part: Mapping[str, Any], indent: str) -> list[str]:
    lines = ["{", *(f' "{name}": {json.dumps(value)},' for name, value in part.items() if name != "rows"), ' "rows": {']
    blocks = []
    for arch, rows in sorted(part["rows"].items()):
        body = [f"   {json.dumps(name)}: {json.dumps(row)}" for name, row in sorted(rows.items())]
        blocks.append([f'  "{arch}": {{', *_separated([[line] for line in body]), "  }"])
    return [indent + line for line in [*lines, *_separated(blocks), " }", "}"]]


def _separated(blocks: Sequence[list[str]]) -> list[str]:
    """Return the lines of blocks, with a comma behind every block but the last."""
    commas = [","] * (len(blocks) - 1) + [""]
    return [line for block, comma in zip(blocks, commas, strict=False) for line in [*block[:-1], block[-1] + comma]]


def slashed(values: Iterable[Any]) -> str:
    """Return one cell for a value of each architecture: the value where all are alike, else all with slashes."""
    texts = [str(value) for value in values]
    return texts[0] if len(set(texts)) == 1 else "/".join(texts)


def moves(accesses: Mapping[str, int]) -> str:
    """Return counted accesses in words, such as "4 LDG128 1 STG128"."""
    return " ".join(f"{count} {kind}" for kind, count in sorted(accesses.items()))


def markdown(heads: Sequence[str], lines: Iterable[Sequence[Any]]) -> list[str]:
    """Return the lines of a table in Markdown; bars in cells are escaped."""
    body = ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |" for cells in lines]
    return ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|", *body]
