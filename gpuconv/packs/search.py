"""Where packs lie, which of them are trusted, and what they have for a launch on a GPU.

A launch that no pack has goes the ordinary way; if none of them has anything for the GPU, one warning says so.

Asked in this order: the folders of ``GPUCONV_PACKS``, the packs in ``gpuconv/packs`` of the user's data folder
(``$XDG_DATA_HOME``, or ``~/.local/share``), and installed distributions that have an entry point in the group
``gpuconv.packs``, whose module is named ``gpuconv_pack_...``. Nothing is read from the current folder unless that is
one of them.

A pack is code that runs on the GPU with this process's rights. So a folder that others may write, or that belongs to
another user than this one or root, or lies in such a folder, is refused, unless ``GPUCONV_PACKS_TRUST=1`` says that
this is wanted.
"""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..config import pack_folders
from ..costs import warn_once
from .identity import KernelReference, cuda_key_of, key_of, sources_hash
from .index import CudaEntry, Entry, Index, PackError, arch_number, read_index

__all__ = ["Found", "Pack", "any_packs", "forget", "look_up", "look_up_cuda", "packs"]

GROUP = "gpuconv.packs"
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_INSTALLED = "installed as"


@dataclass(frozen=True)
class Pack:
    """A folder that should be a pack: its index, or the reason why it is ignored."""

    folder: Path
    origin: str
    index: Index | None
    reason: str | None = None

    @property
    def entries(self) -> tuple[Entry | CudaEntry, ...]:
        """The launches and CUDA C++ kernels that it has; none where it is ignored."""
        return (*self.index.entries, *self.index.cuda) if self.index is not None else ()


@dataclass(frozen=True)
class Found:
    """A launch, or a CUDA C++ kernel, that a pack has: the pack, and the entry."""

    pack: Pack
    entry: Entry | CudaEntry


@dataclass
class _Library:
    """All packs of this process, and what they have, by what a launch is known by."""

    packs: tuple[Pack, ...]
    by_key: dict[str, list[Found]] = field(default_factory=lambda: defaultdict(list))
    samples: dict[tuple[type, str], Entry | CudaEntry] = field(default_factory=dict)
    """One entry of each kind and architecture."""

    def __post_init__(self) -> None:
        for pack in self.packs:
            for entry in sorted(pack.entries, key=lambda entry: -arch_number(entry.arch)):
                self.by_key[entry.key].append(Found(pack, entry))
                self.samples.setdefault((type(entry), entry.arch), entry)


def _installed() -> list[tuple[Path, str]]:
    """Return the folders of installed packs, found without running their code."""
    found = []
    for point in entry_points(group=GROUP):
        name = point.value.partition(":")[0]
        if not (name.startswith("gpuconv_pack_") and name.isidentifier()):  # of a module in a package code would run
            warn_once(f"{GROUP} {name}", "ignored pack %s: a module of a pack is named gpuconv_pack_...", name)
            continue
        try:
            spec = find_spec(name)
        except (ImportError, ValueError) as error:
            warn_once(f"{GROUP} {name}", "ignored pack %s: %s", name, error)
            continue
        for place in (spec.submodule_search_locations or ()) if spec is not None else ():
            found.append((Path(place), f"{_INSTALLED} {name}"))
    return found


def _user_packs() -> list[tuple[Path, str]]:
    data = os.environ.get("XDG_DATA_HOME", "")
    try:
        root = Path(data) if os.path.isabs(data) else Path.home() / ".local" / "share"
        folder = root / "gpuconv" / "packs"
        return [(path, "user's data folder") for path in sorted(folder.iterdir()) if path.is_dir()]
    except (OSError, RuntimeError):  # there is none, or nobody knows this user's home folder
        return []


def _distrust(folder: Path, installed: bool) -> str | None:
    """Return why the content of a folder, of which no part is a link, may be somebody else's, or None.

    Who writes a folder above it can put another one in its place, unless the sticky bit keeps that to owners. Above an
    installed pack lies code that this process runs anyway.
    """
    for path in (folder, folder / "cubins", folder / "index.json", *(() if installed else folder.parents)):
        about = path.stat()
        kept = path in folder.parents and about.st_mode & stat.S_ISVTX
        if about.st_mode & _OTHERS_WRITE and not kept:
            return f"{path.name or path} may be written by others ({stat.filemode(about.st_mode)})"
        if hasattr(os, "getuid") and about.st_uid not in (os.getuid(), 0):
            return f"{path.name or path} belongs to user {about.st_uid}"
    return None


def _open(folder: Path, origin: str, trust: bool) -> Pack:
    try:
        real = Path(os.path.realpath(folder))  # of a loop of links it makes what cannot be read, where resolve() raises
        reason = None if trust else _distrust(real, origin.startswith(_INSTALLED))
        if reason is not None:
            return Pack(folder, origin, None, f"{reason}; GPUCONV_PACKS_TRUST=1 takes it all the same")
        index = read_index(real)
    except PackError as error:
        return Pack(folder, origin, None, str(error))
    except OSError as error:
        return Pack(folder, origin, None, f"cannot be read: {error.strerror or error}")
    if index.sources != sources_hash():
        return Pack(folder, origin, None, "was made of other kernel sources than this library's")
    return Pack(folder, origin, index)


@lru_cache(maxsize=4)
def _library(named: tuple[str, ...], trust: bool) -> _Library:
    places = [(Path(name), "GPUCONV_PACKS") for name in named] + _user_packs() + _installed()
    found = tuple(_open(folder, origin, trust) for folder, origin in dict(places).items())
    for pack in found:
        if pack.reason is not None:
            warn_once(f"pack {pack.folder}", "ignored pack %s: %s", pack.folder, pack.reason)
    return _Library(found)


def _current() -> _Library:
    named, trust = pack_folders()
    return _library(named, trust)


def packs() -> tuple[Pack, ...]:
    """Return the packs that were found, also those that are ignored, in the order in which they are asked."""
    return _current().packs


def any_packs(capability: tuple[int, int] | None = None, kind: type[Entry | CudaEntry] = Entry) -> bool:
    """Tell whether a pack has a launch (or a :class:`.index.CudaEntry`) at all, or one for a GPU of that capability."""
    samples = _current().samples.items()
    return any(of is kind and (capability is None or entry.runs_on(capability)) for (of, _), entry in samples)


def look_up(
    kernel: KernelReference, arguments: Mapping[str, Any], options: Mapping[str, Any], capability: tuple[int, int],
    aligned: bool | None = None,
) -> list[Found]:  # fmt: skip
    """Return what packs have for a launch on a GPU of that compute capability, the best first.

    Arguments are those of :func:`.identity.key_of`.
    """
    library = _current()
    if not library.by_key:
        return []
    key, told = key_of(kernel, arguments, options, aligned)
    some = [found for found in library.by_key.get(key, ()) if found.entry.runs_on(capability)]
    if not some:
        _tell_of_others(library, Entry, capability)
    return [found for found in some if isinstance(found.entry, Entry) and _fits(found, told)]


def _tell_of_others(library: _Library, kind: type[Entry | CudaEntry], capability: tuple[int, int]) -> None:
    """Warn once where all that packs have is for other GPUs."""
    archs = sorted((arch for of, arch in library.samples if of is kind), key=arch_number)
    if archs and not any_packs(capability, kind):
        what = "launches" if kind is Entry else "CUDA C++ kernels"
        folders = ", ".join(str(pack.folder) for pack in library.packs if any(type(e) is kind for e in pack.entries))
        this, others = "sm_{}{}".format(*capability), ", ".join(archs)
        warn_once(
            f"packs {kind} {this} {folders}", "packs have %s for %s, and none for %s: %s", what, others, this, folders
        )


def _fits(found: Found, told: Mapping[str, Any]) -> bool:
    assert isinstance(found.entry, Entry)
    fits, pack, name = found.entry.fits(told), found.pack.folder, found.entry.name
    if not fits:
        warn_once(f"{pack} {found.entry.key}", "pack %s: the parameters of %s are not those of its key", pack, name)
    return fits


def look_up_cuda(text: str, kernel: str, options: Sequence[str], capability: tuple[int, int]) -> list[Found]:
    """Return what packs have of a CUDA C++ kernel for a GPU of that compute capability, the best first.

    Arguments are those of :func:`.identity.cuda_key_of`.
    """
    library = _current()
    found = library.by_key.get(cuda_key_of(text, kernel, options), ())
    some = [each for each in found if isinstance(each.entry, CudaEntry) and each.entry.runs_on(capability)]
    if not some:
        _tell_of_others(library, CudaEntry, capability)
    return some


def forget() -> None:
    """Look for packs anew, for tests and for a process that has just got one."""
    _library.cache_clear()
