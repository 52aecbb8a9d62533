"""A worker of `gpu_report.py`: does the items of some stages, one after the other, as long as there is time.

Whatever an item raises is its record, and then a synchronise tells whether the CUDA context has died of it: if so the
process ends, and the next one goes on behind the item. After each item the GPU is waited for, so that what fails there
later than it was launched is charged to the item that launched it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["CONTEXT_LOST", "Worker", "in_hand"]

CONTEXT_LOST = 75
"""Exit status of a worker whose CUDA context is of no use any more."""


def in_hand(part: str) -> str:
    """Return the name of the file that says what the worker of a part is at."""
    return f"in-hand-{part.replace('/', '-')}.json"


class Worker:
    """Does items until the stages or the time are at an end."""

    def __init__(self, options: argparse.Namespace, deadline: float) -> None:
        from .environment import environment, fingerprint, note
        from .items import Context
        from .store import Store
        from .timing import clock_for

        self.options, self.deadline = options, deadline
        device = "cpu" if options.dry_run else "cuda"
        self.run = fingerprint(environment(device, whole=False))
        self.part, self.parts = map(int, options.part.split("/"))
        self.store = Store(options.out, self.run, options.known, options.session)
        self.context = Context(
            clock_for(device),
            self.store,
            options.out,
            lambda: self.deadline - time.time(),
            options.kind,
            options.network,
            options.pack is not None,
        )
        self.mark: Path = options.scratch / in_hand(options.part)
        self.parent = os.getppid()
        if self.part == 0:
            note(self.store, lambda: environment(device))

    def work(self) -> None:
        """Do the stages, each until its share of the time is over."""
        from .stages import STAGES, allotted
        from .store import ResultsFullError

        stages = [stage for name, stage in STAGES.items() if name in self.options.stage]
        for place, stage in enumerate(stages):
            self.stage_ends = time.time() + allotted(stages[place:], self.options.stage, self.deadline - time.time())
            try:
                self._stage(stage)
            except ResultsFullError as error:
                print(f"{error}: no more is measured", flush=True)
                return

    def items(self, stage: Any) -> Iterator[Any]:
        """Yield this worker's items that are not done, one at a time: nothing runs before the one in front has."""
        for number, item in enumerate(stage.items(self.context)):
            if stage.parallel and number % self.parts != self.part:
                continue
            if self._missing(stage, item):
                yield item

    def _missing(self, stage: Any, item: Any) -> list[str]:
        """Return the keys of an item that are to be recorded; older records of them do not count any more."""
        if item.serves is not None:
            over = self._stands(*item.serves, item) or self.store.done(stage.name, item.keys[0])
            return [] if over else list(item.keys)
        missing = [key for key in item.keys if not self._stands(stage.name, key, item)]
        for key in missing:
            self.store.forget(stage.name, key)
        return missing

    def _stands(self, stage: str, key: str, item: Any) -> bool:
        """Tell whether nothing is to be done for a record: it is there and holds, or it is not among the failed."""
        if self.options.only == "failed":
            return not self.store.failed_before(stage, key)
        from gpuconv.packs.origins import NOT_PACKED

        found = self.store.find(stage, key)
        if found is None or found.get("session") == self.options.session:
            return found is not None
        in_part = self.options.pack is None and found.get("not_packed", 0) > 0
        if in_part or NOT_PACKED in found.get("why", ""):
            return False
        return item.stands is None or bool(item.stands(found))

    def _stage(self, stage: Any) -> None:
        from .progress import Progress

        progress = Progress(stage.name, time.monotonic() + self.stage_ends - time.time())
        for item in self.items(stage):
            if time.time() > self.stage_ends:
                print(f"{stage.name}: out of time after {progress.count} items", flush=True)
                break
            self.do(stage, item)
            progress.step(item.keys[0])
        else:
            print(f"{stage.name}: nothing is left, {progress.count} items were done here", flush=True)
        progress.close()

    def do(self, stage: Any, item: Any) -> None:
        """Record what an item yields; an error of one is its record, a lost CUDA context the end of this worker."""
        if os.getppid() != self.parent:
            sys.exit("the parent is gone")
        missing = self._missing(stage, item)
        from gpuconv.packs.origins import origins

        results = iter(item.run(missing))
        for place, key in enumerate(missing):
            self._mark(stage, key, item)
            start = time.perf_counter()
            try:
                with origins() as packed:
                    fields = dict(next(results))
                self._wait()
            except Exception as error:
                self._failed(stage, key, error)
                results = iter(item.run(missing[place + 1 :]))
                continue
            if packed:
                fields["launches"] = {"from_packs": sum(packed), "of": len(packed)}
            if not stage.silent:
                self.store.add(stage.name, key, **fields, seconds=round(time.perf_counter() - start, 3))
        self.mark.unlink(missing_ok=True)
        if stage.parallel and not self.options.dry_run:
            import torch

            torch.cuda.empty_cache()  # others need memory, too

    def _wait(self) -> None:
        """Wait for the GPU: an error of this item must not surface in the next."""
        import torch

        if torch.cuda.is_initialized():
            torch.cuda.synchronize()

    def _failed(self, stage: Any, key: str, error: Exception) -> None:
        from gpuconv.packs.origins import NotPackedError
        from gpuconv.tuning.trial import context_lost, reason_of

        why, lost = reason_of(error), context_lost()
        if lost is not None and lost not in why:
            why = f"{why}; then {lost}"
        if not stage.silent or lost is not None or type(error).__name__ != "OutOfMemoryError":
            status = "not run" if isinstance(error, NotPackedError) else "error"
            self.store.add(stage.name, key, status="crashed" if lost else status, why=why)
        if lost is not None:
            sys.exit(CONTEXT_LOST)

    def _mark(self, stage: Any, key: str, item: Any) -> None:
        from .store import write_atomically

        limit = self.options.item_limit or item.limit or stage.item_limit
        mark = {"stage": stage.name, "key": key, "run": self.run, "limit": limit, "since": time.time()}
        write_atomically(self.mark, json.dumps(mark))
