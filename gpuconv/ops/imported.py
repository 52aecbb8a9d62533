"""What is done when a module of torch's is imported, and not before: importing it for our sake would cost too much."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

__all__ = ["when_imported"]


class _Watch(MetaPathFinder):
    """Finds one module as the path finder does, and calls a function with it once it has run."""

    def __init__(self, name: str, action: Callable[[Any], None]) -> None:
        self.name, self.action = name, action

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != self.name:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return spec
        loader: Any = spec.loader
        run = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            if module.__name__ == self.name:  # a loader may have several modules
                self.action(module)

        loader.exec_module = exec_module
        return spec


def when_imported(name: str, action: Callable[[Any], None]) -> None:
    """Call `action` with the module called `name`, now if it is there, else when it is imported."""
    module = sys.modules.get(name)
    if module is None:
        sys.meta_path.insert(0, _Watch(name, action))
    else:
        action(module)
