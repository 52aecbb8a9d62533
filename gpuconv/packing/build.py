"""Build a pack: plan for every GPU of every architecture, compile what the pack does not have yet, write it."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..packs.identity import sources_hash
from ..packs.index import Entry, Index, PackError, read_cubin, read_index, write_pack
from ..problem import Problem
from .compile import compile_launch, compiler_versions, prepare
from .plans import Launch, gpus_of, launches_of

__all__ = ["Built", "build_pack"]

Progress = Callable[[int, int], None]
"""Is told how many launches are done, of how many."""


@dataclass(frozen=True)
class Built:
    """What became of a pack: its entries, how many of them were compiled now, distinct cubins, and bytes on disk."""

    entries: int
    compiled: int
    cubins: int
    bytes: int
    failures: tuple[str, ...]


def _planned(problems: Sequence[Problem], arch: str, every_solver: bool) -> dict[str, Launch]:
    """Return the launches of all GPUs of an architecture. In a process of its own: planners remember constants."""
    found: dict[str, Launch] = {}
    for gpu in gpus_of(arch):
        found = launches_of(problems, gpu, every_solver) | found
    return found


def _known(folder: Path, versions: dict[str, str]) -> tuple[dict[tuple[str, str], Entry], dict[str, bytes]]:
    """Return the entries and cubins of a pack that is there already and was made of the same sources and releases."""
    try:
        index = read_index(folder)
        if index.sources != sources_hash() or dict(index.versions) != versions:
            return {}, {}
        cubins = {hash: read_cubin(folder, index, hash) for hash in index.cubins}
    except PackError:
        return {}, {}
    return {(entry.arch.rstrip("a"), entry.key): entry for entry in index.entries}, cubins


def build_pack(
    problems: Iterable[Problem],
    archs: Sequence[str],
    folder: Path,
    jobs: int = 1,
    progress: Progress | None = None,
    every_solver: bool = False,
) -> Built:
    """Compile what problems launch on architectures, and write it as a pack.

    Parameters
    ----------
    problems
        The problems; each is planned as the dispatcher would for every GPU of an architecture by its shipped constants.
    archs
        Architectures, such as ``["sm_80", "sm_90"]``.
    folder
        Where the pack goes. What it has already, of the same kernels and compilers, is kept.
    jobs
        Processes that compile at the same time.
    progress
        Is told how many launches are done, of how many.
    every_solver
        Whether every solver that takes a problem is planned, and not the one alone that the dispatcher would take.

    Raises
    ------
    ValueError
        If an architecture is none, or there is nothing to launch.
    OSError
        If the folder cannot be written.
    """
    listed, context = list(dict.fromkeys(problems)), multiprocessing.get_context("spawn")
    for arch in archs:
        gpus_of(arch)
    jobs = max(jobs, 1)
    versions: dict[str, str] = {}
    planned: dict[str, dict[str, Launch]] = {}
    for arch in dict.fromkeys(archs):
        with ProcessPoolExecutor(1, mp_context=context, initializer=prepare) as alone:
            versions |= alone.submit(compiler_versions, arch).result()
            planned[arch] = alone.submit(_planned, listed, arch, every_solver).result()
    wanted = [(arch, launch) for arch, launches in planned.items() for launch in launches.values()]
    if not wanted:
        raise ValueError("no Triton kernel is launched for these problems")
    entries, cubins = _known(folder, versions)
    entries = {place: entry for place, entry in entries.items() if place in {(a, each.key) for a, each in wanted}}
    todo = [(arch, launch) for arch, launch in wanted if (arch, launch.key) not in entries]
    failures: list[str] = []
    done = len(wanted) - len(todo)
    if todo:
        with ProcessPoolExecutor(min(jobs, len(todo)), mp_context=context, initializer=prepare) as workers:
            running: dict[Any, tuple[str, str]] = {
                workers.submit(compile_launch, launch, arch): (arch, launch.key) for arch, launch in todo
            }
            for future in as_completed(running):
                done += 1
                try:
                    entry, cubin = future.result()
                except RuntimeError as error:
                    failures.append(str(error))
                else:
                    entries[running[future]] = entry
                    cubins[entry.cubin] = cubin
                if progress is not None:
                    progress(done, len(wanted))
    used = {entry.cubin for entry in entries.values()}
    index = Index(sources_hash(), versions, {hash: len(cubins[hash]) for hash in sorted(used)}, tuple(entries.values()))
    size = write_pack(folder, index, {hash: cubins[hash] for hash in used})
    return Built(len(entries), len(todo) - len(failures), len(used), size, tuple(sorted(failures)))
