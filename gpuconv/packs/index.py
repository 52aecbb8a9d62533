"""A pack on disk: ``index.json``, read as data and trusted in nothing, and cubins by the hash of their content.

::

    <pack>/index.json
    <pack>/cubins/<sha256 of the bundle>.xz

A bundle is some cubins of one kernel, one behind the other: they are much alike, and are compressed together. No path
stands in the index: the name of a file follows from a hash, so nothing can point outside of the folder. A pack holds no
date and no path of where it was made, so the same inputs give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple

from ..launcher import PORTABLE_CLUSTER, Layout, Parameter, is_map, parse_map_type
from .identity import CONSTANT, TYPES

__all__ = [
    "SCHEMA", "CudaEntry", "Entry", "Index", "PackError", "Place", "arch_number", "claim", "parse_index", "read_cubin",
    "read_index", "write_pack",
]  # fmt: skip

SCHEMA = 2
INDEX = "index.json"
CUBINS = "cubins"

_MOST_INDEX = 64 << 20
_MOST_CUBIN = 16 << 20
_BUNDLE = 512 << 10
"""Bytes beyond which a bundle gets no further cubin: one is unpacked in some milliseconds."""

_MOST_ENTRIES = 200_000
_HASH = re.compile(r"[0-9a-f]{64}")
_ARCH = re.compile(r"sm_(\d{2,3})(a?)")
_SYMBOL = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_WARPS = (1, 2, *range(4, 33, 4))
"""A kernel of several roles has any number of groups of four."""


class PackError(ValueError):
    """A pack, or a part of one, is not what it should be; the message says what and where."""


class Place(NamedTuple):
    """Where a cubin is: the hash of its bundle, and the bytes in front of it, of it, and of the whole bundle."""

    bundle: str
    offset: int
    size: int
    whole: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One launch that a pack has compiled.

    Attributes
    ----------
    key
        What the launch is known by, see :func:`.identity.key_of`.
    arch
        ``sm_90a``: what it was compiled for. With the letter at the end it runs on no other architecture.
    kernel, solver
        The kernel by module and name, and the solver whose plan launches it.
    name
        The symbol in the cubin.
    constants
        The constants by name.
    parameters
        (name, type, whether 16 divides it) of each parameter of the symbol, in order.
    warps, shared
        Warps of a block, and its bytes of shared memory.
    cluster
        Blocks of a cluster along each axis of the grid.
    tensor_maps
        How tensor maps among the parameters are made, in their order: the name of each, and the elements along each
        axis of what one instruction copies. What the driver is told besides is in the parameter's type, and in the
        launch.
    registers, stack
        Registers and bytes of local memory of a thread; a stack says that registers spill.
    cubin
        The hash of the cubin that has the symbol.
    """

    key: str
    arch: str
    kernel: str
    solver: str
    name: str
    constants: Mapping[str, Any]
    parameters: tuple[tuple[str, str, bool], ...]
    warps: int
    shared: int
    cluster: tuple[int, int, int]
    tensor_maps: tuple[tuple[str, tuple[int, ...]], ...]
    registers: int
    stack: int
    cubin: str

    @property
    def layout(self) -> Layout:
        """What the symbol takes."""
        plain = self.cluster[1:] == (1, 1) and self.cluster[0] <= PORTABLE_CLUSTER
        return Layout(tuple(Parameter(*parameter) for parameter in self.parameters), plain)

    def runs_on(self, capability: tuple[int, int]) -> bool:
        """Tell whether a GPU of that compute capability takes the cubin."""
        return _runs_on(self.arch, capability)

    def fits(self, told: Mapping[str, Sequence[Any]]) -> bool:
        """Tell whether it has the constants and parameters of a launch that :func:`.identity.key_of` describes."""
        taken = {name: [type_, aligned] for name, type_, aligned in self.parameters}
        taken |= {name: [CONSTANT, value] for name, value in self.constants.items()}
        asked = {name: [type_, known if type_[0] in "*c" else is_map(type_)] for name, (type_, known) in told.items()}
        return json.dumps(taken, sort_keys=True) == json.dumps(asked, sort_keys=True)


@dataclass(frozen=True, slots=True)
class CudaEntry:
    """A kernel of a CUDA C++ source that a pack has compiled, for the CuPy backend.

    Attributes
    ----------
    key
        What the kernel is known by, see :func:`.identity.cuda_key_of`.
    arch
        ``sm_90``: what it was compiled for.
    source, kernel
        The file of :mod:`gpuconv.kernels.cu`, and the C++ name of the kernel with its template arguments.
    name
        The symbol in the cubin.
    registers, stack
        Registers and bytes of local memory of a thread.
    cubin
        The hash of the cubin that has the symbol.
    """

    key: str
    arch: str
    source: str
    kernel: str
    name: str
    registers: int
    stack: int
    cubin: str

    def runs_on(self, capability: tuple[int, int]) -> bool:
        """Tell whether a GPU of that compute capability takes the cubin."""
        return _runs_on(self.arch, capability)


def arch_number(arch: str) -> int:
    """Return 90 for ``sm_90a``."""
    return int(arch.removeprefix("sm_").rstrip("a"))


def _runs_on(arch: str, capability: tuple[int, int]) -> bool:
    """Tell whether a GPU takes a binary.

    They are compatible within a major version, upwards (CUDA C++ Programming Guide, 3.1.2); specific ones not.
    """
    major, minor = divmod(arch_number(arch), 10)
    return capability == (major, minor) if arch[-1] == "a" else capability[0] == major and capability[1] >= minor


@dataclass(frozen=True, slots=True)
class Index:
    """What ``index.json`` says: hash of the kernels' sources, versions, places of cubins by hash, and entries.

    `entries` are launches of Triton's kernels, `cuda` kernels of CUDA C++.
    """

    sources: str
    versions: Mapping[str, Any]
    cubins: Mapping[str, Place]
    entries: tuple[Entry, ...]
    cuda: tuple[CudaEntry, ...] = ()

    @property
    def archs(self) -> list[str]:
        """The architectures of the entries, each once."""
        return sorted({launch.arch for launch in self.entries} | {kernel.arch for kernel in self.cuda})

    def to_json(self) -> dict[str, Any]:
        """Return plain data that :func:`parse_index` reads."""
        return {
            "schema": SCHEMA, "sources": self.sources, "versions": dict(self.versions),
            "cubins": dict(sorted(self.cubins.items())), "entries": _listed(self.entries), "cuda": _listed(self.cuda),
        }  # fmt: skip


def _listed(entries: Sequence[Entry] | Sequence[CudaEntry]) -> list[dict[str, Any]]:
    found = [asdict(entry) for entry in entries]
    return sorted(found, key=lambda entry: (entry["arch"], entry["key"]))


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise PackError(what)


def _text(value: Any, pattern: re.Pattern[str], what: str) -> str:
    _require(isinstance(value, str) and len(value) < 512 and bool(pattern.fullmatch(value)), f"{what} is {value!r:.80}")
    return str(value)


def _count(value: Any, most: int, what: str) -> int:
    _require(type(value) is int and 0 <= value <= most, f"{what} must be 0 to {most}, not {value!r:.80}")
    return int(value)


def _complete(data: Any, kind: Any, at: str) -> None:
    _require(isinstance(data, dict), f"{at} is no object")
    missing = kind.__dataclass_fields__.keys() - data.keys()
    _require(not missing, f"{at} lacks {', '.join(sorted(missing))}")


def _cubin_of(data: Mapping[str, Any], cubins: Mapping[str, Place], at: str) -> str:
    cubin = _text(data["cubin"], _HASH, f"{at}: cubin")
    _require(cubin in cubins, f"{at}: its cubin is not listed")
    return cubin


def _parse_cuda(data: Any, place: int, cubins: Mapping[str, Place]) -> CudaEntry:
    at = f"CUDA entry {place}"
    _complete(data, CudaEntry, at)
    return CudaEntry(
        key=_text(data["key"], _HASH, f"{at}: key"), arch=_text(data["arch"], _ARCH, f"{at}: arch"),
        source=_text(data["source"], re.compile(r"\w+"), f"{at}: source"),
        kernel=_text(data["kernel"], re.compile(r"[\w:<>, ]+"), f"{at}: kernel"),
        name=_text(data["name"], _SYMBOL, f"{at}: name"),
        registers=_count(data["registers"], 255, f"{at}: registers"),
        stack=_count(data["stack"], 1 << 20, f"{at}: stack"), cubin=_cubin_of(data, cubins, at),
    )  # fmt: skip


def _parse_place(data: Any) -> Place:
    _require(isinstance(data, list) and len(data) == 4, f"the place of a cubin is {data!r:.80}")
    bundle, *numbers = data
    return Place(_text(bundle, _HASH, "a bundle"), *(_count(number, _MOST_CUBIN, "a place") for number in numbers))


def _parse_entry(data: Any, place: int, cubins: Mapping[str, Place]) -> Entry:
    at = f"entry {place}"
    _complete(data, Entry, at)
    _require(isinstance(data["constants"], dict), f"{at}: constants is no object")
    parameters = data["parameters"]
    _require(isinstance(parameters, list) and len(parameters) <= 510, f"{at}: parameters is no list of at most 510")
    found = []
    for parameter in parameters:
        _require(isinstance(parameter, list) and len(parameter) == 3, f"{at}: a parameter is {parameter!r:.80}")
        name, type_, aligned = parameter
        _require(type(aligned) is bool, f"{at}: a parameter is {parameter!r:.80}")
        _require(isinstance(type_, str) and (type_ in TYPES or is_map(type_)), f"{at}: a type is {type_!r:.80}")
        found.append((_text(name, _SYMBOL, f"{at}: a name"), type_, aligned))
    names = [*data["constants"], *(name for name, *_ in found)]
    _require(len(set(names)) == len(names), f"{at}: a name is there twice")
    cluster, maps = data["cluster"], data["tensor_maps"]
    _require(isinstance(cluster, list) and len(cluster) == 3, f"{at}: cluster is {cluster!r:.80}")
    messages = [[name, list(parse_map_type(type_).message)] for name, type_, _ in found if is_map(type_)]
    _require(maps == messages, f"{at}: tensor_maps are not those of the parameters")
    cubin = _cubin_of(data, cubins, at)
    x, y, z = (_count(size, 16, f"{at}: cluster") for size in cluster)
    _require(x * y * z > 0, f"{at}: cluster is {cluster!r:.80}")
    warps = _count(data["warps"], 32, f"{at}: warps")
    _require(warps in _WARPS, f"{at}: warps are {warps}")
    return Entry(
        key=_text(data["key"], _HASH, f"{at}: key"), arch=_text(data["arch"], _ARCH, f"{at}: arch"),
        kernel=_text(data["kernel"], re.compile(r"[\w.]+:\w+"), f"{at}: kernel"),
        solver=_text(data["solver"], re.compile(r"[\w.]+"), f"{at}: solver"),
        name=_text(data["name"], _SYMBOL, f"{at}: name"), constants=data["constants"], parameters=tuple(found),
        warps=warps, shared=_count(data["shared"], 1 << 20, f"{at}: shared"),
        cluster=(x, y, z), tensor_maps=tuple((name, tuple(box)) for name, box in maps),
        registers=_count(data["registers"], 255, f"{at}: registers"),
        stack=_count(data["stack"], 1 << 20, f"{at}: stack"), cubin=cubin,
    )  # fmt: skip


def parse_index(data: Any) -> Index:
    """Read what :meth:`Index.to_json` returns.

    Raises
    ------
    PackError
        If it is of another schema, or anything in it is not of its type, its form or its size.
    """
    _require(isinstance(data, dict), "the index is no object")
    _require(data.get("schema") == SCHEMA, f"the index has schema {data.get('schema')!r:.80}, this library {SCHEMA}")
    listed, versions = data.get("cubins"), data.get("versions")
    entries, cuda = data.get("entries"), data.get("cuda")
    _require(isinstance(listed, dict) and isinstance(versions, dict), "cubins and versions must be objects")
    for of in (entries, cuda):
        _require(isinstance(of, list) and len(of) <= _MOST_ENTRIES, f"no list of at most {_MOST_ENTRIES} entries")
    cubins = {_text(hash, _HASH, "a cubin"): _parse_place(place) for hash, place in listed.items()}
    found = tuple(_parse_entry(entry, place, cubins) for place, entry in enumerate(entries))
    found_cuda = tuple(_parse_cuda(entry, place, cubins) for place, entry in enumerate(cuda))
    for some in (found, found_cuda):
        _require(len({(entry.arch, entry.key) for entry in some}) == len(some), "an entry is there twice")
    return Index(_text(data.get("sources"), _HASH, "sources"), versions, cubins, found, found_cuda)


def _read(path: Path, most: int) -> bytes:
    """Return the content of a regular file of at most `most` bytes; links are not followed.

    Raises
    ------
    PackError
        If it is none, or cannot be read.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
        try:
            about = os.fstat(handle)
            _require(stat.S_ISREG(about.st_mode), f"{path.name} is no file")
            _require(about.st_size <= most, f"{path.name} has {about.st_size:,} bytes, {most:,} are the most")
            with os.fdopen(handle, "rb", closefd=False) as file:
                return file.read(most + 1)
        finally:
            os.close(handle)
    except OSError as error:
        raise PackError(f"{path.name} cannot be read: {error.strerror}") from None


def read_index(folder: Path) -> Index:
    """Read the index of a pack.

    Raises
    ------
    PackError
        If there is none, it is no JSON, or :func:`parse_index` refuses it.
    """
    content = _read(folder / INDEX, _MOST_INDEX)
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise PackError(f"{INDEX} is no JSON: {error}") from None
    return parse_index(data)


def _bundle_path(folder: Path, hash: str) -> Path:
    return folder / CUBINS / f"{hash}.xz"


@lru_cache(maxsize=4)
def _bundle(path: Path, most: int, changed: int) -> tuple[bytes, bool]:
    """Return the content of a bundle, `most` bytes of it at most, and whether it ends there; neighbours follow."""
    packed = _read(path, _MOST_CUBIN)
    try:
        unpacker = lzma.LZMADecompressor(memlimit=64 << 20)
        content = unpacker.decompress(packed, most + 1)
    except lzma.LZMAError as error:
        raise PackError(f"bundle {path.name[:12]} is damaged: {error}") from None
    return content, unpacker.eof


def read_cubin(folder: Path, index: Index, hash: str) -> bytes:
    """Return a cubin of a pack, whose content has been found to be that of its hash.

    Raises
    ------
    PackError
        If it is missing, damaged, or another one.
    """
    bundle, offset, size, whole = index.cubins[hash]
    path = _bundle_path(folder, bundle)
    try:
        changed = path.stat().st_mtime_ns
    except OSError as error:
        raise PackError(f"{path.name} cannot be read: {error.strerror}") from None
    content, ended = _bundle(path, whole, changed)
    cubin = content[offset : offset + size]
    if hashlib.sha256(cubin).hexdigest() != hash or not ended:
        raise PackError(f"cubin {hash[:12]} is damaged, or another one: its content has another hash or no end")
    _require(cubin[:4] == b"\x7fELF", f"cubin {hash[:12]} is no ELF file")
    return cubin


def _bundles(index: Index, cubins: Mapping[str, bytes]) -> Iterator[list[str]]:
    """Yield the hashes of cubins in bundles: those of one kernel and architecture, in the order of their constants."""

    def order(entry: Entry | CudaEntry) -> tuple[str, ...]:
        constants = json.dumps(entry.constants, sort_keys=True) if isinstance(entry, Entry) else ""
        return entry.arch, entry.kernel if isinstance(entry, Entry) else entry.source, constants, entry.key

    found: list[str] = []
    seen: set[str] = set()
    last: tuple[str, ...] = ()
    entries: list[Entry | CudaEntry] = [*index.entries, *index.cuda]
    for entry in sorted(entries, key=order):
        if entry.cubin in seen or entry.cubin not in cubins:
            continue
        full = sum(len(cubins[hash]) for hash in found) + len(cubins[entry.cubin]) > _BUNDLE
        if found and (full or order(entry)[:2] != last):
            yield found
            found = []
        seen.add(entry.cubin)
        found, last = [*found, entry.cubin], order(entry)[:2]
    if found:
        yield found


def claim(folder: Path) -> None:
    """Make the folder of a pack, and see that it can be written.

    Raises
    ------
    OSError
        If it cannot.
    """
    (folder / CUBINS).mkdir(parents=True, exist_ok=True)
    for place in (folder, folder / CUBINS):
        with TemporaryFile(dir=place):
            pass


@contextmanager
def _one_writer(folder: Path) -> Iterator[None]:
    """Wait until no other process writes the pack; the system frees the lock of one that ends, however it ends."""
    if os.name != "posix":
        yield
        return
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems have no locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def write_pack(folder: Path, index: Index, cubins: Mapping[str, bytes]) -> int:
    """Write a pack and return its bytes; what was there before is taken away.

    The new bundles come first, then the index, and then what it does not name is taken away: whenever this is killed,
    the folder is the old pack or the new one, whole.

    Parameters
    ----------
    folder
        Where it goes.
    index
        What it has. The places of `cubins` are found here.
    cubins
        The cubins of its entries by hash.

    Raises
    ------
    OSError
        If the folder cannot be written.
    PackError
        If :func:`read_index` would refuse what it has; the pack that is there stays.
    """
    claim(folder)
    with _one_writer(folder):
        return _write(folder, index, cubins)


def _write(folder: Path, index: Index, cubins: Mapping[str, bytes]) -> int:
    target, places = folder / CUBINS, dict(index.cubins)
    for hashes in _bundles(index, cubins):
        content = b"".join(cubins[hash] for hash in hashes)
        bundle, offset = hashlib.sha256(content).hexdigest(), 0
        for hash in hashes:
            places[hash] = Place(bundle, offset, len(cubins[hash]), len(content))
            offset += len(cubins[hash])
        _replace(_bundle_path(folder, bundle), lzma.compress(content, preset=6 | lzma.PRESET_EXTREME))
    written = replace(index, cubins=places).to_json()
    text = json.dumps(written, indent=0, sort_keys=True, separators=(",", ":")) + "\n"
    parse_index(json.loads(text))  # what is written can be read
    _require(len(text) <= _MOST_INDEX, f"{INDEX} would have {len(text):,} bytes, {_MOST_INDEX:,} are the most")
    _replace(folder / INDEX, text.encode())
    used = {_bundle_path(folder, place.bundle) for place in places.values()}
    for path in (*folder.glob(f".{INDEX}.*"), *target.iterdir()):
        if path not in used:
            path.unlink()
    return sum(path.stat().st_size for path in (folder / INDEX, *target.iterdir()))


def _replace(path: Path, content: bytes) -> None:
    """Write a file at once: readers see the old one or the new one."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_bytes(content)
    os.replace(partial, path)
