"""Read binaries with cuobjdump, which comes with Triton."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

DISASSEMBLED = (80, 90, 100)
"""Compute capabilities that it reads: those of CUDA 13 read none before sm_75."""


@lru_cache(maxsize=1)
def cuobjdump() -> Path:
    """Return the path of the tool in the installed Triton."""
    found = importlib.util.find_spec("triton")
    assert found is not None and found.origin is not None, "cuobjdump comes with triton, which is not installed"
    return Path(found.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def dump(cubin: bytes, flag: str) -> str:
    """Return what cuobjdump prints of a binary, such as for the flag ``--dump-sass``."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        return subprocess.run([cuobjdump(), flag, path], capture_output=True, text=True, check=True).stdout


def sass_of(cubin: bytes) -> str:
    """Return the machine code of a binary as text."""
    return dump(cubin, "--dump-sass")


def by_kernel(sass: str) -> dict[str, str]:
    """Return the machine code of each kernel of a binary that has several, by its name in the binary."""
    _, *parts = re.split(r"^\s*Function : (\w+)", sass, flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))
