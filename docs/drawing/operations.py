"""The README's picture: the first block of ``docs/index.md``, drawn into ``docs/_static/operations.png``.

PYTHONPATH=docs:. python -m drawing.operations
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[1]


def main() -> None:
    """Run the block and write its figure."""
    block = re.findall(r"^```python\n(.*?)^```$", (DOCS / "index.md").read_text(encoding="utf-8"), re.M | re.S)[0]
    statements, _, last = block.rpartition("\npictures(")
    scope: dict[str, Any] = {}
    exec(statements, scope)
    images = eval(f"dict({last.rstrip().removesuffix(')')})", scope)
    figure = scope["pictures"](images, columns=4)
    figure.savefig(DOCS / "_static" / "operations.png", dpi=150, facecolor="white")


if __name__ == "__main__":
    main()
