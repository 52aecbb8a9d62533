"""Load a kernel with one deliberate mistake in its source."""

from __future__ import annotations

import importlib
import shutil
import sys
from pathlib import Path
from typing import Any

from gpuconv.kernels.tl import common

SOURCES = Path(common.__file__).parent


def mutant(folder: Path, name: str, module: str, kernel: str, file: str, old: str, new: str) -> Any:
    """Return `kernel` of a copy of the kernel sources in which `old`, which stands once in `file`, reads `new`."""
    return getattr(mutant_module(folder, name, module, file, old, new), kernel)


def mutant_module(folder: Path, name: str, module: str, file: str, old: str, new: str, *others: tuple[str, str]) -> Any:
    """Return `module` of a copy of the kernel sources in which `old`, which stands once in `file`, reads `new`.

    So do `others`, pairs of the same kind.
    """
    package = "mutant_" + "".join(letter if letter.isalnum() else "_" for letter in f"{module} {name}")
    shutil.copytree(SOURCES, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    path = folder / package / file
    text = path.read_text()
    for before, after in ((old, new), *others):
        assert text.count(before) == 1, f"mutation {name!r} must match once, it matches {text.count(before)} times"
        text = text.replace(before, after)
    path.write_text(text)
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(f"{package}.{module}")
    finally:
        sys.path.remove(str(folder))
