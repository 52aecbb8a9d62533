"""Rebuild the README's section on GPU speed from the runs in `bench/results/<gpu>/<run>/` (``make report``).

The section lies between two markers. Where no run exists it says so; a dry run is no run. Plots are linked, not copied.

    python bench/readme.py [--check]    # --check: exit 1 if the README is not what the runs say
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- gpu-results: begin, written by `make report` -->", "<!-- gpu-results: end -->"


def runs(results: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Return (folder, summary) of the newest run of each GPU, by the date in its name; dry runs are left out."""
    newest: dict[str, tuple[Path, dict[str, Any]]] = {}
    for path in sorted(results.glob("*/*/summary.json")):
        summary = json.loads(path.read_text())
        if not summary["environment"]["dry_run"]:
            newest[path.parents[1].name] = (path.parent, summary)
    return list(newest.values())


def _networks(totals: Iterable[Mapping[str, Any]]) -> list[str]:
    lines = ["| network | phase, batch | numbers | pass | gpuconv ms | torch ms | torch / gpuconv | calls measured |"]
    lines.append("|---|---|---|---|---:|---:|---:|---:|")
    for t in sorted(totals, key=lambda t: t["speedup"]):
        lines.append(
            f"| {t['network']} | {t['phase']}, {t['batch']} | {t['number']} | {t['pass']} | {t['us'] / 1e3:.3f} |"
            f" {t['torch_us'] / 1e3:.3f} | {t['speedup']:.2f} | {t['calls']} of {t['of']} |"
        )
    return lines


def _section(folder: Path, summary: Mapping[str, Any], root: Path) -> list[str]:
    about, limits = summary["environment"], summary["ceilings_per_us"]
    where = folder.relative_to(root).as_posix()
    ceilings = ", ".join(
        f"{name} {value / 1e6:.3g} {'TB/s' if name == 'copy' else 'TFLOP/s'}" for name, value in limits.items()
    )
    parity = ", ".join(f"{count} {status}" for status, count in summary["stages"].get("parity", {}).items())
    lines = [
        f"### {about['gpu']}, {about['date']}",
        "",
        f"gpuconv {about['gpuconv']} ({about['commit']}), torch {about['torch']}, cuDNN {about['cudnn']},"
        f" triton {about['triton']}. Ceilings of the same run: {ceilings}. Parity stage: {parity or 'not run'}.",
        "",
        "Sums of kernel times over the layers of each network, the worst for us first; torch is the better of its two",
        f"memory formats for each layer. Every layer: [{where}/layers.csv]({where}/layers.csv), losses first in",
        f"[summary.txt]({where}/summary.txt).",
        "",
        *_networks(summary["networks"]),
    ]
    plots = [name for name in ("layers.png", "roofline.png") if (folder / name).exists()]
    return [*lines, *([""] if plots else []), *(f"![{name}]({where}/{name})" for name in plots)]


def section(root: Path) -> str:
    """Return the text between the markers."""
    found = runs(root / "bench" / "results")
    if not found:
        return "Not yet measured: no run on a GPU is in [bench/results](bench/results)."
    return "\n\n".join("\n".join(_section(folder, summary, root)) for folder, summary in found)


def rebuilt(text: str, content: str) -> str:
    """Return `text` with `content` between the markers.

    Raises
    ------
    ValueError
        If the markers are not there once each, in order.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"the text must have one line {BEGIN!r} and, after it, one line {END!r}")
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{content}\n{END}{tail}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    readme = REPO / "README.md"
    before = readme.read_text()
    after = rebuilt(before, section(REPO))
    if options.check:
        print("README.md is what the runs say" if before == after else "README.md is stale: make report")
        return int(before != after)
    if before != after:
        readme.write_text(after)
    print(f"README.md: {len(runs(REPO / 'bench' / 'results'))} runs on GPUs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
