"""The reasons that the library's own solvers and backends give for not running a problem, read from their sources."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
NO_REASONS = {"others", "other_forms", "origin"}
"""Functions that answer in words as well, but to other questions."""


def reasons() -> dict[str, str]:
    """Return each reason, with `…` where numbers and names stand, and the file that gives it."""
    found = {}
    for path in sorted((REPO / "gpuconv" / "backends").rglob("*.py")):
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(function, ast.FunctionDef) and _answers(function) and function.name not in NO_REASONS:
                for text in _texts(function):
                    found[text] = str(path.relative_to(REPO))
    return found


def _answers(function: ast.FunctionDef) -> bool:
    return function.returns is not None and ast.unparse(function.returns) == "str | None"


def _texts(function: ast.FunctionDef) -> Iterator[str]:
    """Yield the sentences of a function: what it returns, or puts together to return."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    stack: list[ast.AST] = [*body]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.JoinedStr):
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
        else:
            stack += ast.iter_child_nodes(node)
            continue
        if len(text.replace("…", "").split()) > 1:
            yield re.sub("…+", "…", " ".join(text.split()))
