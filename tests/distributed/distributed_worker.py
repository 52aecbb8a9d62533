"""Run cases in several processes that are forked from one, which imports what they need once.

``python distributed_worker.py OUT ["2: CASE" ...]`` writes to the folder OUT, by the number of processes, what went
wrong in each case (or in those named), null for nothing. Processes tell each other after every case; where one is no
longer to be heard, the rest of the cases are not run, and say so.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import torch.distributed as dist
from distributed_cases import WORLDS
from distributed_world import World, agree

PATIENCE = timedelta(seconds=30)


def trial(case: Callable[[Any], None], world: World) -> str | None:
    """Run a case; return what went wrong here."""
    try:
        case(world)
    except BaseException:
        return f"on process {world.rank}:\n{traceback.format_exc()}"
    return None


def work(rank: int, size: int, folder: Path, chosen: frozenset[str]) -> None:
    """Be one process of `size`."""
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting-{size}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size, timeout=PATIENCE)
    world, found, lost = World(rank, size), {}, ""
    for name, case in WORLDS[size].items():
        if chosen and f"{size}: {name}" not in chosen:
            continue
        if lost:
            found[name] = f"not run after {lost}"
            continue
        error = trial(case, world)
        try:
            found[name] = next((e for e in agree(error) if e is not None), None)
        except RuntimeError:
            lost, found[name] = name, error or "another process is lost"
    (folder / f"found-{size}-{rank}.json").write_text(json.dumps(found))
    if not lost:
        dist.destroy_process_group()


def fork(size: int, folder: Path, chosen: frozenset[str]) -> None:
    """Run the processes of one world."""
    children = []
    for rank in range(size):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                work(rank, size, folder, chosen)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)


def main(out: Path, chosen: frozenset[str]) -> None:
    """Run every world."""
    for size in WORLDS:
        start = time.monotonic()
        fork(size, out, chosen)
        print(f"{size} processes: {time.monotonic() - start:.1f} s", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), frozenset(sys.argv[2:]))
