"""What the package of size formulas is made of."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import pkgutil

from gpuconv import shapes


def test_package_is_plain() -> None:
    """Standard library only, everything public is handed on, and the examples are right."""
    attempted, handed_on = 0, set()
    for found in pkgutil.iter_modules(shapes.__path__, f"{shapes.__name__}."):
        module = importlib.import_module(found.name)
        tree = ast.parse(inspect.getsource(module))
        modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level}
        modules |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
        assert modules <= {"math", "collections.abc", "dataclasses", "typing"}
        defined = {n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name[0] != "_"}
        assert set(module.__all__) - {"Size", "Layer", "PADDINGS"} == defined
        assert all(">>> " in (getattr(shapes, name).__doc__ or "") for name in defined)
        results = doctest.testmod(module)
        assert results.failed == 0
        attempted += results.attempted
        handed_on |= set(module.__all__)
    assert set(shapes.__all__) == handed_on and {"Size", "Layer", "PADDINGS"} <= handed_on
    assert attempted >= 15
