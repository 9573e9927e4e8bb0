"""Reading tar archives from a stream, in bounded memory.

The standard library's reader keeps whole headers in memory, however long, and takes a damaged
header for the end; this one refuses both.

Source: the POSIX pax format (ustar headers, `x` and `g` records) and GNU's `L` and `K` records.
"""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

BLOCK_BYTES = tarfile.BLOCKSIZE
_MAX_RECORD_BYTES = 1 << 20
_FILES = {tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE}
_LINKS = {tarfile.LNKTYPE, tarfile.SYMTYPE}
_PAX = {tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE}
_SKIPPED = {tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK, b"V"}
_RECORDS = {*_PAX, *_SKIPPED, tarfile.GNUTYPE_LONGNAME}


class Reader(Protocol):
    """Gives the bytes of a stream."""

    def read(self, size_bytes: int, /) -> bytes:
        """Return as many bytes as asked for, fewer only at the end."""


@dataclass(frozen=True, slots=True)
class Member:
    """One entry: its name, its kind (`file`, `folder`, `link` or `special`), its length."""

    name: str
    kind: str
    size_bytes: int


def looks_like_tar(block: bytes) -> bool:
    """Say whether a file starts as a tar archive does."""
    try:
        tarfile.TarInfo.frombuf(block[:BLOCK_BYTES], "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError):
        return False
    return True


def members(stream: Reader) -> Iterator[Member]:
    """Yield the entries of an archive; of each the content must be read before the next is taken.

    Raises:
        ValueError: it is truncated, damaged, or uses a form not supported; `tarfile.TarError` too.
    """
    named: dict[str, str] = {}
    while (header := _header(stream)) is not None:
        if header.type in _RECORDS:
            named |= _record(stream, header)
            continue
        if any(key.startswith("GNU.sparse") for key in named) or header.type in tarfile.GNU_TYPES:
            raise ValueError("it holds a sparse file (or another of GNU tar's own forms)")
        size_bytes = int(named.get("size", header.size))
        if size_bytes < 0:
            raise ValueError(f"a file of {size_bytes} bytes")
        kind = _kind(header)
        stored = size_bytes if kind == "file" else 0
        yield Member(named.get("path", header.name), kind, stored)
        _exactly(stream, -stored % BLOCK_BYTES)
        named = {}


def content(stream: Reader, member: Member, chunk_bytes: int) -> Iterator[bytes]:
    """Yield the bytes of the member that was yielded last, in chunks."""
    left = member.size_bytes
    while left:
        chunk = _exactly(stream, min(left, chunk_bytes))
        left -= len(chunk)
        yield chunk


def _kind(header: tarfile.TarInfo) -> str:
    if header.type in _FILES:
        return "file"
    if header.type in _LINKS:
        return "link"
    return "folder" if header.type == tarfile.DIRTYPE else "special"


def _header(stream: Reader) -> tarfile.TarInfo | None:
    """Return the next header, None at the end of the archive."""
    block = _exactly(stream, BLOCK_BYTES)
    if not any(block):
        return None
    return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")


def _exactly(stream: Reader, size_bytes: int) -> bytes:
    data = stream.read(size_bytes)
    if len(data) != size_bytes:
        raise ValueError("it ends too early")
    return data


def _record(stream: Reader, header: tarfile.TarInfo) -> dict[str, str]:
    """Read what an entry without a file says of the next one."""
    if not 0 <= header.size <= _MAX_RECORD_BYTES:
        raise ValueError(f"a header of {header.size:,} bytes")
    data = _exactly(stream, header.size)
    _exactly(stream, -header.size % BLOCK_BYTES)
    if header.type in _PAX:
        return _pax(data)
    if header.type == tarfile.GNUTYPE_LONGNAME:
        return {"path": data.rstrip(b"\0").decode("utf-8", "surrogateescape")}
    return {}


def _pax(data: bytes) -> dict[str, str]:
    """Parse records: length, blank, key, `=`, value, end of line."""
    found: dict[str, str] = {}
    while data:
        head, blank, _ = data.partition(b" ")
        length = int(head)
        key, equals, value = data[len(head) + 1 : length].partition(b"=")
        if not (blank and equals and value.endswith(b"\n") and 0 < length <= len(data)):
            raise ValueError("a damaged pax header")
        found[key.decode()] = value[:-1].decode("utf-8", "surrogateescape")
        data = data[length:]
    return found
