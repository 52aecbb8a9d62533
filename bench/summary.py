"""From records to what people read: a row per problem, losses first, totals per network, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gpuconv.problem import ConvProblem

from .cases import DTYPES, Case
from .contenders import CONTENDERS
from .measure import ceilings, figures
from .plot import write_plots
from .rows import OTHERS, TORCH, Row
from .store import FAILED, write_atomically

__all__ = ["network_totals", "report_text", "rows_of", "stage_counts", "summary_of", "write_summary"]


def rows_of(records: Sequence[Mapping[str, Any]], cases: Sequence[Case]) -> list[Row]:
    """Return a row for each case that gpuconv was measured, refused or failed on."""
    found: dict[str, dict[str, Mapping[str, Any]]] = defaultdict(dict)
    for record in records:
        if record["stage"] == "benchmark":
            found[record["key"].partition(" | ")[2]][record["key"].partition(" | ")[0]] = record
    limits = ceilings(records)
    rows = []
    for case in cases:
        by_name = found.get(case.key, {})
        if "gpuconv" not in by_name:
            continue
        timed = [by_name[name] for name in TORCH if "kernel" in by_name.get(name, ())]
        best = min(timed, key=lambda record: record["kernel"]["p50"], default=None)
        ours = by_name["gpuconv"]
        numbers = figures(case.problem, ours["kernel"]["p50"], limits) if "kernel" in ours else {}
        others = {name: by_name[name] for name in OTHERS if name in by_name}
        rows.append(Row(case, ours, best, others, numbers))
    return rows


def _number(case: Case) -> str:
    wanted = (case.problem.dtype, getattr(case.problem, "precision", "ieee"))
    return next(name for name, of in DTYPES.items() if of == wanted)


def network_totals(rows: Iterable[Row], cases: Iterable[Case]) -> list[dict[str, Any]]:
    """Return sums over the layers of each network, by phase, batch, number format and pass.

    A sum holds the layers that both sides were timed on; `calls` of `of` says how much of the network that is.
    """
    calls: dict[tuple[Any, ...], int] = defaultdict(int)
    sums: dict[tuple[Any, ...], dict[str, float]] = defaultdict(lambda: {"calls": 0, "us": 0.0, "torch_us": 0.0})

    def groups(case: Case) -> Iterable[tuple[tuple[Any, ...], int]]:
        family = case.problem.kind if isinstance(case.problem, ConvProblem) else f"pooling {case.problem.kind}"
        for use in case.uses:
            yield (use.network, use.phase, use.batch, _number(case), family), use.count

    for case in cases:
        for group, count in groups(case):
            calls[group] += count
    for row in rows:
        if row.us is None or row.torch_us is None:
            continue
        for group, count in groups(row.case):
            sums[group]["calls"] += count
            sums[group]["us"] += count * row.us
            sums[group]["torch_us"] += count * row.torch_us
    names = ("network", "phase", "batch", "number", "pass")
    return [
        dict(zip(names, group)) | {
            "calls": int(total["calls"]), "of": calls[group], "us": round(total["us"], 2),
            "torch_us": round(total["torch_us"], 2), "speedup": round(total["torch_us"] / total["us"], 3),
        }
        for group, total in sorted(sums.items(), key=lambda entry: tuple(map(str, entry[0])))
    ]  # fmt: skip


def _csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([
        "problem", "networks", "status", "solver", "p20_us", "p50_us", "p80_us", "eager_us", "cold_l2", "tflops",
        "gbps", "roofline", "torch_us", "torch_layout", "torch_eager_us", "speedup", *(f"{name}_us" for name in OTHERS),
    ])  # fmt: skip

    def shown(value: Any) -> Any:
        return "" if value is None else f"{value:.4g}" if isinstance(value, float) else value

    for row in rows:
        kernel, best = row.ours.get("kernel", {}), row.torch or {}
        networks = ", ".join(f"{u.network} {u.phase} {u.batch} x{u.count}" for u in row.case.uses)
        values = [row.case.key, networks, row.ours["status"], row.ours.get("solver")]
        values += [kernel.get(name) for name in ("p20", "p50", "p80")]
        values += [row.ours.get("eager", {}).get("p50"), kernel.get("cold")]
        values += [row.figures.get(name) for name in ("tflops", "gbps", "roofline")]
        values += [row.torch_us, best.get("contender", "").removeprefix("torch_"), best.get("eager", {}).get("p50")]
        values += [row.speedup, *(row.others.get(name, {}).get("kernel", {}).get("p50") for name in OTHERS)]
        writer.writerow(map(shown, values))
    return text.getvalue()


def stage_counts(records: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Return how many records each stage has, by status."""
    counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for record in records:
        if record["stage"] != "environment":
            counts[record["stage"]][record.get("status", "ok")] += 1
    return {stage: dict(of) for stage, of in counts.items()}


def _table(rows: Sequence[Row]) -> list[str]:
    lines = [f"{'speedup':>8}{'ours us':>13}{'torch us':>13}{'roofline':>10}{'TFLOP/s':>9}  problem"]
    for row in rows:
        values = (row.speedup, row.us, row.torch_us, row.figures.get("roofline"), row.figures.get("tflops"))
        texts = ["-" if value is None else f"{value:.2f}" for value in values]
        cells = "".join(text.rjust(width) for text, width in zip(texts, (8, 13, 13, 10, 9)))
        lines.append(f"{cells}  {row.case.key}")
    return lines


def report_text(about: Mapping[str, Any], records: Sequence[Mapping[str, Any]], cases: Sequence[Case]) -> str:
    """Return the report: what failed, then losses against torch, then the rest, then totals per network."""
    rows = rows_of(records, cases)
    lines = [f"gpuconv {about['gpuconv']} on {about['gpu']}, torch {about['torch']}, triton {about['triton']}"]
    if about["dry_run"]:
        lines.append("DRY RUN in the interpreter: every time below is meaningless")
    for stage, counts in stage_counts(records).items():
        lines.append(f"{stage:<12}" + ", ".join(f"{count} {status}" for status, count in counts.items()))
    limits = ceilings(records)
    units = {name: "TB/s" if name == "copy" else "TFLOP/s" for name in limits}
    lines += ["ceilings: " + ", ".join(f"{name} {limits[name] / 1e6:.3g} {units[name]}" for name in limits), ""]
    bad = [record for record in records if record.get("status") in FAILED]
    lines.append(f"wrong, failed or crashed: {len(bad)}")
    for record in bad:
        why = record.get("why") or record.get("gate", {}).get("why") or "see its record"
        lines.append(f"  {record['stage']}: {record['key']}: {why}")
    launches = [record["launches"] for record in records if "launches" in record]
    if launches:
        whole = sum(each["from_packs"] == each["of"] for each in launches)
        lines.append(f"records whose kernels all came from packs: {whole} of {len(launches)}")
    slow = sorted({str(record.get("solver", record["key"].partition(" | ")[0])) for record in records
                   if record.get("replayed") is False})  # fmt: skip
    lines.append(f"repeated calls that were not replayed, by solver: {', '.join(slow) or 'none'}")
    faster = [row for row in rows if row.us and "kernel" in row.others.get("gpuconv_cupy", {})
              and row.others["gpuconv_cupy"]["kernel"]["p50"] < row.us]  # fmt: skip
    lines += ["", f"faster on CuPy's kernels than on those that ran: {len(faster)}"]
    for row in faster:
        other = row.others["gpuconv_cupy"]
        lines.append(f"  {row.us:.2f} us, {other['kernel']['p50']:.2f} us on {other.get('solver')}: {row.case.key}")
    compared = sorted((row for row in rows if row.speedup is not None), key=lambda row: row.speedup or 0.0)
    losses = [row for row in compared if (row.speedup or 0.0) < 1]
    lines += ["", f"slower than torch (the better of its two memory formats): {len(losses)} of {len(compared)}"]
    lines += _table(losses)
    lines += [
        "",
        f"as fast or faster: {len(compared) - len(losses)} of {len(compared)}",
        *_table(compared[len(losses) :]),
    ]
    lines += ["", "sums over the layers of each network, in microseconds, calls measured of calls made"]
    for t in network_totals(rows, cases):
        name = f"{t['network']} {t['phase']} {t['batch']} {t['number']} {t['pass']}"
        lines.append(
            f"{name:<58}{t['us']:>12.1f}{t['torch_us']:>12.1f}{t['speedup']:>8.2f}x  {t['calls']} of {t['of']}"
        )
    return "\n".join(lines) + "\n"


def summary_of(about: Mapping[str, Any], records: Sequence[Mapping[str, Any]], cases: Sequence[Case]) -> dict[str, Any]:
    """Return what ``summary.json`` holds."""
    rows = rows_of(records, cases)
    return {
        "environment": dict(about),
        "stages": stage_counts(records),
        "ceilings_per_us": ceilings(records),
        "networks": network_totals(rows, cases),
        "layers": len(rows),
    }


def write_summary(
    folder: Path,
    about: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]],
    cases: Sequence[Case],
    plots: bool = True,
) -> list[Path]:
    """Write ``summary.txt``, ``summary.json``, ``layers.csv`` and, with matplotlib, the plots; return their paths."""
    rows = rows_of(records, cases)
    write_atomically(folder / "summary.json", json.dumps(summary_of(about, records, cases), indent=1) + "\n")
    write_atomically(folder / "summary.txt", report_text(about, records, cases))
    write_atomically(folder / "layers.csv", _csv(rows))
    written = [folder / name for name in ("summary.json", "summary.txt", "layers.csv")]
    if not plots:
        return written
    return written + write_plots(folder, rows, ceilings(records), str(about["gpu"]))


assert set(TORCH) | set(OTHERS) | {"gpuconv"} == set(CONTENDERS)
