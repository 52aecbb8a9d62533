"""Who imports whom, read from the syntax trees of a checkout: imports inside functions and ``import_module`` count."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

Graph = dict[str, set[str]]
"""Modules by name, each with those that it imports."""


def modules_in(root: Path, folders: tuple[str, ...]) -> dict[str, Path]:
    """Return the files of `folders` by module name; ``kernels/`` is ``gpuconv.kernels``, where a wheel puts it."""
    found = {}
    for folder in folders:
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            found[".".join(("gpuconv", *parts) if folder == "kernels" else parts)] = path
    return found


def imports(root: Path, folders: tuple[str, ...] = ("gpuconv", "kernels", "bench")) -> Graph:
    """Return the imports between the modules of `folders`. A name that is no module counts for the module it is in."""
    modules = modules_in(root, folders)
    graph: Graph = {}
    for name, path in modules.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        wanted = _imported(ast.parse(path.read_text(encoding="utf-8"), str(path)), package)
        graph[name] = {_owner(target, modules) for target in wanted} - {"", name}
    return graph


def _owner(target: str, modules: dict[str, Path]) -> str:
    if f"{target}.".startswith("gpuconv.bench."):  # as it is called where it is installed
        target = target.removeprefix("gpuconv.")
    while target and target not in modules:
        target = target.rpartition(".")[0]
    return target


def _imported(tree: ast.AST, package: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute("." * node.level + (node.module or ""), package)
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and "import_module" in (getattr(node.func, key, "") for key in ("id", "attr")):
            yield from (_absolute(text, package) for text in _texts(node.args[0]))


def _texts(argument: ast.expr) -> Iterator[str]:
    """Yield what ``import_module`` is asked for; what is computed, by the part before it: the room it is in.

    What begins with something computed is taken for a module of the package itself.
    """
    if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
        yield argument.value
    elif isinstance(argument, ast.JoinedStr):
        first, *rest = argument.values
        if isinstance(first, ast.Constant):
            yield str(first.value).rstrip(".")
        elif rest and isinstance(rest[0], ast.Constant) and str(rest[0].value).startswith("."):
            yield f"gpuconv{rest[0].value}".rstrip(".")


def _absolute(name: str, package: str) -> str:
    level = len(name) - len(name.lstrip("."))
    if not level:
        return name
    parts = package.split(".")
    return ".".join([*parts[: len(parts) - level + 1], *filter(None, [name[level:]])])


def circles(graph: Graph) -> list[list[str]]:
    """Return the sets of modules that import each other, in one step or several, each sorted (Tarjan 1972)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        order[name] = low[name] = len(order)
        stack.append(name)
        for target in sorted(graph[name]):
            if target not in order:
                visit(target)
                low[name] = min(low[name], low[target])
            elif target in stack:
                low[name] = min(low[name], order[target])
        if low[name] == order[name]:
            place = stack.index(name)
            circle = stack[place:]
            del stack[place:]
            if len(circle) > 1:
                found.append(sorted(circle))

    for name in sorted(graph):
        if name not in order:
            visit(name)
    return found


def rooms(graph: Graph) -> Graph:
    """Return the graph of rooms: a file directly in a package is a room of its own, a folder's files are one."""
    found: Graph = {}
    for name, targets in graph.items():
        room = _room(name)
        found.setdefault(room, set()).update({_room(target) for target in targets} - {room})
    return found


def _room(name: str) -> str:
    parts = name.split(".")
    return ".".join(parts[: 3 if parts[:2] == ["gpuconv", "backends"] else 2])
