"""What a cubin says of the parameters of a kernel, read from its ELF sections.

``.nv.info.<kernel>`` is a list of attributes: a format, a number, and two bytes that are the value or, in the format of
sized values, its size. ``EIATTR_KPARAM_INFO`` is 12 bytes for each parameter, its place in bytes 4 and 5, its size in
the upper 14 bits of the last word. NVIDIA documents none of that: ``cuobjdump -elf`` prints it so.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

__all__ = ["parameter_sizes"]

_SIZED = 4
_KPARAM_INFO = 0x17
_NO_BITS = 8


def _sections(cubin: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield name and content of each section of a 64-bit ELF file."""
    (start,) = struct.unpack_from("<Q", cubin, 0x28)
    step, count, names = struct.unpack_from("<HHH", cubin, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", cubin, start + step * place) for place in range(count)]
    for name, kind, _, _, offset, size in headers:
        at = headers[names][4] + name
        yield cubin[at : cubin.index(b"\0", at)], b"" if kind == _NO_BITS else cubin[offset : offset + size]


def _attributes(content: bytes) -> Iterator[tuple[int, bytes]]:
    place = 0
    while place < len(content):
        form, number, size = struct.unpack_from("<BBH", content, place)
        place += 4
        if form == _SIZED:
            yield number, content[place : place + size]
            place += size


def parameter_sizes(cubin: bytes, kernel: str) -> list[int] | None:
    """Return the bytes of each parameter of a kernel, in order; None where the cubin says nothing of them."""
    found: dict[int, int] = {}
    try:
        for name, content in _sections(cubin):
            if name == f".nv.info.{kernel}".encode():
                for number, value in _attributes(content):
                    if number == _KPARAM_INFO:
                        _, place, _, word = struct.unpack("<IHHI", value)
                        found[place] = word >> 18
    except (struct.error, ValueError, IndexError, OverflowError):
        return None
    return [found[place] for place in sorted(found)] or None
