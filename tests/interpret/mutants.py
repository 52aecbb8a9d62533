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


def mutant_module(folder: Path, name: str, module: str, file: str, old: str, new: str) -> Any:
    """Return `module` of a copy of the kernel sources in which `old`, which stands once in `file`, reads `new`."""
    package = "mutant_" + "".join(letter if letter.isalnum() else "_" for letter in f"{module} {name}")
    shutil.copytree(SOURCES, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    path = folder / package / file
    text = path.read_text()
    assert text.count(old) == 1, f"mutation {name!r} must match once, it matches {text.count(old)} times"
    path.write_text(text.replace(old, new))
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(f"{package}.{module}")
    finally:
        sys.path.remove(str(folder))
