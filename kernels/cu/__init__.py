"""CUDA C++ sources, compiled at run time; entered by the CuPy backend, and by packing.

A source is one text: :func:`source` puts the folder's own headers in place of the lines that include them, so that the
compiler needs no search path and a cache that looks at the text sees every change.
"""

import re
from functools import cache
from pathlib import Path

__all__ = ["expand", "names", "source"]

_FOLDER = Path(__file__).resolve().parent
_INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"\s*$')


def names() -> list[str]:
    """Return the names of the sources in this package, sorted."""
    return sorted(path.stem for path in _FOLDER.glob("*.cu"))


@cache
def source(name: str) -> str:
    """Return the text of `<name>.cu`, its headers put in; a name that is not there raises ValueError."""
    available = names()
    if name not in available:
        raise ValueError(f"kernels.cu.source: name is {name!r}; it must be one of {', '.join(available) or '(none)'}")
    return expand(f"{name}.cu", {})


def expand(file: str, replaced: dict[str, str]) -> str:
    """Return the text of `file` with each quoted header put in where it is first included, and not again.

    ``#line`` markers keep the compiler's messages at the lines of the files.

    Parameters
    ----------
    file
        Name of a file in this folder.
    replaced
        Texts that stand in for headers, by file name (the tests' host version of ``ptx.cuh``).
    """
    lines: list[str] = []
    _append(file, replaced, set(), lines)
    return "\n".join(lines) + "\n"


def _append(file: str, replaced: dict[str, str], seen: set[str], lines: list[str]) -> None:
    seen.add(file)
    text = replaced[file] if file in replaced else (_FOLDER / file).read_text(encoding="utf-8")
    lines.append(f'#line 1 "{file}"')
    for number, line in enumerate(text.splitlines(), 1):
        header = _INCLUDE.match(line)
        if header is None:
            lines.append(line)
        elif header[1] not in seen:
            _append(header[1], replaced, seen, lines)
            lines.append(f'#line {number + 1} "{file}"')
        else:
            lines.append("")
