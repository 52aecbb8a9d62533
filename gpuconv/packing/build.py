"""Build a pack: plan for every GPU of every architecture, compile what the pack does not have yet, write it."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..backends.cupy.backend import BACKEND as CUPY
from ..backends.cupy.common import OPTIONS
from ..kernels import cu
from ..packs import (
    CudaEntry,
    Entry,
    Index,
    PackError,
    claim,
    cuda_key_of,
    read_cubin,
    read_index,
    sources_hash,
    write_pack,
)
from ..problem import Problem
from . import nvrtc
from .compile import compile_entries, compiler_versions, prepare
from .plans import Launch, Variants, gpus_of, launches_of

__all__ = ["Built", "build_pack"]

Progress = Callable[[int, int], None]
"""Is told how many launches and sources are done, of how many."""

_Place = tuple[str, str]
"""Architecture and key of an entry."""


@dataclass(frozen=True)
class Built:
    """What became of a pack: its entries, launches and sources compiled now, distinct cubins, and bytes on disk."""

    entries: int
    compiled: int
    cubins: int
    bytes: int
    failures: tuple[str, ...]


@dataclass(frozen=True)
class _Task:
    """What is compiled at once: a launch, or the kernels of a CUDA C++ source, which share a cubin.

    `function` returns the entries of all `places` and their cubin; `prepare` sets up its process.
    """

    places: tuple[_Place, ...]
    function: Callable[..., tuple[Sequence[Entry | CudaEntry], bytes]]
    arguments: tuple[Any, ...]
    prepare: Callable[[], None] | None


def _planned(wanted: Mapping[Variants, list[Problem]], arch: str) -> dict[str, Launch]:
    """Return the launches of all GPUs of an architecture. In a process of its own: planners remember constants."""
    found: dict[str, Launch] = {}
    for gpu in gpus_of(arch):
        for variants, problems in wanted.items():
            found = launches_of(problems, gpu, variants) | found
    return found


def _alone(prepare: Callable[[], None] | None) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), initializer=prepare)


def _of_problems(wanted: Mapping[Variants, list[Problem]], archs: list[str]) -> tuple[list[_Task], dict[str, str]]:
    """Return what there is to compile for problems, and the releases of the compilers."""
    tasks, versions = list[_Task](), dict[str, str]()
    for arch in archs if any(wanted.values()) else ():
        with _alone(prepare) as process:
            versions |= process.submit(compiler_versions, arch).result()
            for launch in process.submit(_planned, wanted, arch).result().values():
                tasks.append(_Task(((arch, launch.key),), compile_entries, (launch, arch), prepare))
    return tasks, versions


def _of_cupy(archs: list[str]) -> tuple[list[_Task], dict[str, str]]:
    """Return every kernel that the CuPy backend can launch, by source, and the release of NVRTC."""
    release = next((each for each in nvrtc.RELEASES if nvrtc.library(each)), nvrtc.RELEASES[0])
    with _alone(None) as process:
        versions = {"nvrtc": process.submit(nvrtc.version, release).result()}
    sources: dict[str, set[str]] = {}
    for solver in CUPY.solvers():
        for source, kernel in solver.instantiations():  # type: ignore[attr-defined]
            sources.setdefault(source, set()).add(kernel)
    tasks = []
    for arch in archs:
        for source, kernels in sorted(sources.items()):
            places = tuple((arch, cuda_key_of(cu.source(source), kernel, OPTIONS)) for kernel in sorted(kernels))
            arguments = (source, sorted(kernels), arch, release)
            tasks.append(_Task(places, nvrtc.compile_entries, arguments, None))
    return tasks, versions


def _known(folder: Path, versions: dict[str, str]) -> tuple[dict[_Place, Entry | CudaEntry], dict[str, bytes]]:
    """Return the entries and cubins of a pack that is there already and was made of the same sources and releases.

    The key of a kernel of CUDA C++ holds its source, that of a launch does not.
    """
    try:
        index = read_index(folder)
        if any(versions.get(name, release) != release for name, release in index.versions.items()):
            return {}, {}
        cubins = {hash: read_cubin(folder, index, hash) for hash in index.cubins}
    except PackError:
        return {}, {}
    found: list[Entry | CudaEntry] = [*index.cuda]
    found += index.entries if index.sources == sources_hash() else ()
    return {(entry.arch.rstrip("a"), entry.key): entry for entry in found}, cubins


def _compiled(tasks: list[_Task], jobs: int) -> Iterator[tuple[_Task, Any]]:
    """Yield tasks as they are done, with what they return, or the error that they raised."""
    for initializer in dict.fromkeys(task.prepare for task in tasks):
        alike = [task for task in tasks if task.prepare is initializer]
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(jobs, len(alike)), mp_context=context, initializer=initializer) as workers:
            running = {workers.submit(task.function, *task.arguments): task for task in alike}
            for future in as_completed(running):
                try:
                    yield running[future], future.result()
                except Exception as error:  # of one launch: the others are worth their time
                    yield running[future], error if isinstance(error, RuntimeError) else RuntimeError(repr(error))


def build_pack(
    problems: Mapping[Variants, Iterable[Problem]],
    archs: Sequence[str],
    folder: Path,
    jobs: int = 1,
    progress: Progress | None = None,
    cupy: bool = False,
) -> Built:
    """Compile what problems launch on architectures, and write it as a pack.

    Parameters
    ----------
    problems
        The problems, by which of their plans count (see :func:`.plans.launches_of`). Each is planned as the dispatcher
        would for every GPU of an architecture by its shipped constants.
    archs
        Architectures, such as ``["sm_80", "sm_90"]``.
    folder
        Where the pack goes. What it has already of this, from the same kernels and compilers, is not compiled again;
        what else it has is taken away.
    jobs
        Processes that compile at the same time.
    progress
        Is told how many launches and sources are done, of how many.
    cupy
        Whether the kernels of the CuPy backend are compiled as well, by NVRTC, all that it can launch.

    Raises
    ------
    ValueError
        If an architecture is none, or there is nothing to launch.
    RuntimeError
        If NVRTC is needed and not installed, or nothing at all could be compiled; the folder stays as it was.
    OSError
        If the folder cannot be written.
    """
    archs, jobs = list(dict.fromkeys(archs)), max(jobs, 1)
    for arch in archs:
        gpus_of(arch)
    tasks, versions = _of_problems({of: list(dict.fromkeys(listed)) for of, listed in problems.items()}, archs)
    if cupy:
        more, release = _of_cupy(archs)
        tasks, versions = tasks + more, versions | release
    if not tasks:
        raise ValueError("no Triton kernel is launched for these problems")
    claim(folder)
    known, cubins = _known(folder, versions)
    todo = [task for task in tasks if not known.keys() >= set(task.places)]
    entries = {place: known[place] for task in tasks for place in task.places if place in known}
    failures: list[str] = []
    for count, (task, made) in enumerate(_compiled(todo, jobs), len(tasks) - len(todo) + 1):
        if isinstance(made, RuntimeError):
            failures.append(str(made))
        else:
            found, cubin = made
            entries |= dict(zip(task.places, found, strict=True))
            cubins[found[0].cubin] = cubin
        if progress is not None:
            progress(count, len(tasks))
    if not entries:
        first = f"the first of {len(failures)} errors: {min(failures)}"
        raise RuntimeError(f"nothing could be compiled, {folder} stays as it was; {first}")
    used = {entry.cubin for entry in entries.values()}
    launches = tuple(entry for entry in entries.values() if isinstance(entry, Entry))
    kernels = tuple(entry for entry in entries.values() if isinstance(entry, CudaEntry))
    index = Index(sources_hash(), versions, {}, launches, kernels)
    size = write_pack(folder, index, {hash: cubins[hash] for hash in used})
    return Built(len(entries), len(todo) - len(failures), len(used), size, tuple(sorted(failures)))
