"""What the tests of `bench/gpu_report.py` share: options of a worker in a folder, and stages of made-up items."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from bench.gpu_report import arguments
from bench.items import Item
from bench.stages import STAGES, Stage
from bench.worker import Worker


def options_for(folder: Path, *words: str, session: str = "first", known: Mapping[str, str] | None = None) -> Any:
    """Return the options of a dry run in `folder`, as a worker of it has them."""
    options = arguments(["--dry-run", "--out", str(folder / "out"), *words])
    options.out.mkdir(parents=True, exist_ok=True)
    options.scratch = folder / "scratch"
    options.scratch.mkdir(exist_ok=True)
    options.known, options.session = dict(known or {"gpuconv": "sources"}), session
    return options


def only_stages(patch: pytest.MonkeyPatch, *stages: Stage) -> None:
    """Let these be all the stages there are."""
    patch.setattr("bench.stages.STAGES", {stage.name: stage for stage in stages})


def stage(items: Callable[[Any], Iterable[Item]], name: str = "parity", **fields: Any) -> Stage:
    return Stage(name, STAGES[name].share, lambda context: iter(items(context)), **fields)


def item(key: str, run: Callable[[], Mapping[str, Any]], **fields: Any) -> Item:
    def records(missing: Sequence[str]) -> Iterator[Mapping[str, Any]]:
        yield run()

    return Item((key,), records, **fields)


def work(options: argparse.Namespace) -> int:
    """Let a worker do what there is; return its exit status."""
    worker = Worker(options, time.time() + 60)
    try:
        worker.work()
    except SystemExit as ending:
        return int(ending.code or 0)
    finally:
        worker.store.close()
    return 0


def records(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return what is on disk, but environments."""
    lines = (options.out / "results.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["stage"] != "environment"]
