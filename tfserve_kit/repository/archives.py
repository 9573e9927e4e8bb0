"""Unpacking archives that need not be trusted: zip, and tar in whatever compression.

What an archive is, its first bytes say, not its name. Names, sizes and counts in it are checked as
they come (see `intake`); links, devices and encrypted members are refused, modes and owners are not
taken over.

Memory stays below 300 MiB, whatever the archive holds: 1 MiB for each of a few buffers, at most
128 MiB for the window of xz or zstd, and about 1 KiB for each of the 100,000 files allowed. The
standard library's reader of tar keeps whole headers in memory, however long, and takes a damaged
header for the end; the one here refuses both.

Source: the POSIX pax format (ustar headers, `x` and `g` records) and GNU's `L` and `K` records.
"""

import bz2
import contextlib
import gzip
import importlib
import io
import lzma
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tfserve_kit.errors import PushRefused
from tfserve_kit.progress import SILENT, Progress
from tfserve_kit.repository.intake import CHUNK_BYTES, Intake, Limits
from tfserve_kit.repository.manifest import File

_BLOCK_BYTES = tarfile.BLOCKSIZE
_MAX_RECORD_BYTES = 1 << 20
_FILES = {tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE}
_LINKS = {tarfile.LNKTYPE, tarfile.SYMTYPE}
_PAX = {tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE}
_SKIPPED = {tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK, b"V"}
_RECORDS = {*_PAX, *_SKIPPED, tarfile.GNUTYPE_LONGNAME}

_WINDOW_BYTES = 128 << 20
_MAX_DIRECTORY_BYTES = 64 << 20
_ENTRY = b"PK\1\2"  # begins each entry of a zip's directory
_ENCRYPTED = 1
_SHOWN_BYTES = 16
_UNLINKED = "pack the files themselves: `tar --dereference --hard-dereference`, zip without -y"
_MAGIC = {
    b"PK\3\4": "zip",
    b"PK\5\6": "zip",
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}


def kind(file: Path) -> str | None:
    """Return `zip`, `tar`, `gzip`, `bzip2`, `xz` or `zstd`; None if it is not an archive."""
    with file.open("rb") as stream:
        start = stream.read(_BLOCK_BYTES)
    for magic, name in _MAGIC.items():
        if start.startswith(magic):
            return name
    return "tar" if _looks_like_tar(start) else None


def zip_names(file: Path, limits: Limits, name: str) -> set[str]:
    """Return the names in a zip archive, which errors call `name`.

    Raises:
        PushRefused: it is damaged.
    """
    with translated(name), file.open("rb") as raw, _zip(raw, limits) as archive:
        return {info.filename for info in archive.infolist()}


def unpack(
    file: Path, folder: Path, limits: Limits, *, name: str = "", progress: Progress = SILENT
) -> Mapping[str, File]:
    """Unpack an archive.

    What macOS adds for itself (`__MACOSX`, `.DS_Store`, `._*`) is left out.

    Args:
        file: the archive.
        folder: an empty folder that nobody else writes to.
        limits: how much it may hold.
        name: what errors call it; by default its file name.
        progress: told the packed bytes read.

    Returns:
        Size and checksum of every file by its path within the folder.

    Raises:
        PushRefused: it is not an archive, is damaged, encrypted or beyond the limits, or holds what
            is neither a file nor a folder, or would lie outside; the folder may then hold a part.
        OSError: the file system refuses.
    """
    found = kind(file)
    if found is None:
        with file.open("rb") as stream:
            start = stream.read(_SHOWN_BYTES)
        said = f"it starts with {start!r}" if start else "it is empty"
        raise PushRefused(
            f"{name or file.name} is no archive that can be unpacked here: {said}",
            remedy="give .zip, .tar, .tar.gz, .tar.bz2, .tar.xz or .tar.zst",
        )
    size_bytes = file.stat().st_size
    intake = Intake(folder, limits, size_bytes)
    with translated(name or file.name) as at, file.open("rb") as raw:
        watched = _Watched(raw, size_bytes, progress)
        if found == "zip":
            _unzip(watched, intake, limits, at)
        else:
            _untar(_Metered(_DECOMPRESSORS[found](watched), intake), intake, at)
    progress.advance(size_bytes, size_bytes)
    return intake.files


@contextlib.contextmanager
def translated(archive: str) -> Iterator[list[str]]:
    """Translate what the standard library says of a damaged archive.

    Yields:
        A list whose last item is the member being read, for the message.
    """
    at: list[str] = [""]
    try:
        yield at
    except (
        tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, gzip.BadGzipFile,
        EOFError, struct.error, ValueError, OverflowError, NotImplementedError, RuntimeError,
        LookupError, OSError,
    ) as error:  # fmt: skip
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the file system; those of gzip and bz2 bear no number
        member = f" at {at[-1]!a}" if at[-1] else ""
        raise PushRefused(
            f"{archive} is damaged or incomplete{member}: {str(error) or type(error).__name__}",
            remedy="copy or download it again, or pack it again",
        ) from error


class _Watched(io.RawIOBase):
    """A file that tells how far it was read, and is never read in huge pieces."""

    def __init__(self, stream: BinaryIO, size_bytes: int, progress: Progress) -> None:
        self._stream, self._size_bytes, self._progress = stream, size_bytes, progress
        self._done = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._stream.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        if whence == os.SEEK_SET and not 0 <= offset <= self._size_bytes:
            raise ValueError(f"it refers to its byte {offset}")
        return self._stream.seek(offset, whence)

    def read(self, size: int | None = -1, /) -> bytes:
        """Return bytes; a zip's directory is asked for in one piece, by a size that may lie."""
        left = self._size_bytes - self._stream.tell()
        wanted = left if size is None or size < 0 else min(size, left)
        if wanted > _MAX_DIRECTORY_BYTES:
            raise ValueError(f"a directory of {wanted:,} bytes")
        data = self._stream.read(wanted)
        self._done = min(self._done + len(data), self._size_bytes)  # some parts are read twice
        self._progress.advance(self._done, self._size_bytes)
        return data


class _Metered:
    """What a decompressor gives, counted; reads exactly, and translates nothing."""

    def __init__(self, stream: Any, intake: Intake) -> None:
        self._stream, self._intake = stream, intake

    def read(self, size_bytes: int, /) -> bytes:
        pieces, left = [], size_bytes
        while left and (piece := self._stream.read(left)):
            self._intake.count(len(piece))
            pieces.append(piece)
            left -= len(piece)
        return b"".join(pieces)


def _unzip(watched: _Watched, intake: Intake, limits: Limits, at: list[str]) -> None:
    with _zip(watched, limits) as archive:
        intake.expect(sum(info.file_size for info in archive.infolist()))
        for info in archive.infolist():
            name = info.orig_filename  # `filename` ends at a NUL
            at.append(name)
            _require_plain(info)
            if name.endswith("/"):
                _keep_folder(name, intake)
            else:
                with archive.open(info) as member:
                    _keep(name, _zip_content(member, info.file_size, intake), intake)
            at.pop()


def _zip(stream: BinaryIO | _Watched, limits: Limits) -> zipfile.ZipFile:
    """Open a zip archive whose directory is not too long to be kept in memory."""
    size_bytes = stream.seek(0, os.SEEK_END)
    guarded = _FewEntries(stream, size_bytes, limits.max_files)
    return zipfile.ZipFile(guarded)


class _FewEntries(_Watched):
    """A zip archive that gives no directory of too many entries."""

    def __init__(self, stream: Any, size_bytes: int, max_entries: int) -> None:
        super().__init__(stream, size_bytes, SILENT)
        self._max_entries = max_entries

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        if data.startswith(_ENTRY) and data.count(_ENTRY) > self._max_entries:
            raise PushRefused(
                f"the archive holds more than {self._max_entries:,} files and folders",
                remedy="pack the SavedModel alone",
            )
        return data


def _require_plain(info: zipfile.ZipInfo) -> None:
    name = ascii(info.filename)
    if info.flag_bits & _ENCRYPTED:
        raise PushRefused(f"{name} is encrypted", remedy="pack the model without a password")
    if stat.S_IFMT(info.external_attr >> 16) not in {0, stat.S_IFREG, stat.S_IFDIR}:
        raise PushRefused(f"{name} is a link or a device in the archive", remedy=_UNLINKED)
    if info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise PushRefused(
            f"{name} is packed by method {info.compress_type}",
            remedy="pack it by the usual one (deflate)",
        )


def _zip_content(member: Any, size_bytes: int, intake: Intake) -> Iterator[bytes]:
    done = 0
    while chunk := member.read(CHUNK_BYTES):
        intake.count(len(chunk))
        done += len(chunk)
        yield chunk
    if done != size_bytes:
        raise ValueError(f"it has {done} bytes of {size_bytes}")


def _untar(stream: _Metered, intake: Intake, at: list[str]) -> None:
    for member in _tar_members(stream):
        at.append(member.name)
        if member.kind == "folder":
            _keep_folder(member.name, intake)
        elif member.kind == "file":
            intake.expect(member.size_bytes)
            _keep(member.name, _tar_content(stream, member, CHUNK_BYTES), intake)
        else:
            text = f"{member.name!a} is a {member.kind} in the archive"
            raise PushRefused(text.replace("special", "device"), remedy=_UNLINKED)
        at.pop()
    while stream.read(CHUNK_BYTES):  # the checksum of what was packed comes last
        pass


def _keep(name: str, chunks: Iterator[bytes], intake: Intake) -> None:
    """Store a file, or read over it where it is none of the model's."""
    if _is_of_macos(name):
        for _ in chunks:
            pass
    else:
        intake.add_file(name, chunks)


def _keep_folder(name: str, intake: Intake) -> None:
    if not _is_of_macos(name):
        intake.add_folder(name)


def _is_of_macos(name: str) -> bool:
    parts = name.rstrip("/").split("/")
    return "__MACOSX" in parts or parts[-1] == ".DS_Store" or parts[-1].startswith("._")


class _Xz:
    """An xz stream that is not given more memory than it should need."""

    def __init__(self, stream: _Watched) -> None:
        self._stream, self._rest = stream, b""
        self._decompressor: lzma.LZMADecompressor | None = self._new()

    @staticmethod
    def _new() -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_WINDOW_BYTES + (8 << 20))

    def read(self, size_bytes: int, /) -> bytes:
        while True:
            if self._decompressor is None or self._decompressor.eof:
                self._next_stream()
            if self._decompressor is None:
                return b""
            if self._decompressor.needs_input:
                packed, self._rest = self._rest or self._stream.read(CHUNK_BYTES), b""
                if not packed:
                    raise EOFError("it ends too early")
            else:
                packed = b""
            if data := self._decompressor.decompress(packed, size_bytes):
                return data

    def _next_stream(self) -> None:
        """Go on to what follows the end of a stream: padding, another stream, nothing."""
        if self._decompressor is not None:
            self._rest = self._decompressor.unused_data
        self._decompressor = None
        while not self._rest.lstrip(b"\0"):
            self._rest = self._stream.read(CHUNK_BYTES)
            if not self._rest:
                return
        self._rest = self._rest.lstrip(b"\0")
        self._decompressor = self._new()


class _Zstd:
    """A zstd stream, read by the package zstandard."""

    def __init__(self, stream: _Watched) -> None:
        try:
            zstandard = importlib.import_module("zstandard")
        except ImportError as error:
            raise PushRefused(
                "zstd archives need the package zstandard, which is not installed",
                remedy="pip install 'tfserve-kit[zst]'",
            ) from error
        decompressor = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES)
        self._reader = decompressor.stream_reader(stream, read_across_frames=True)
        self._error = zstandard.ZstdError

    def read(self, size_bytes: int, /) -> bytes:
        try:
            return bytes(self._reader.read(size_bytes))
        except self._error as error:
            raise ValueError(str(error)) from error


_DECOMPRESSORS: Mapping[str, Callable[[_Watched], Any]] = {
    "tar": lambda stream: stream,
    "gzip": lambda stream: gzip.GzipFile(fileobj=stream, mode="rb"),
    "bzip2": bz2.BZ2File,
    "xz": _Xz,
    "zstd": _Zstd,
}


@dataclass(frozen=True, slots=True)
class _Member:
    """One entry: its name, its kind (`file`, `folder`, `link` or `special`), its length."""

    name: str
    kind: str
    size_bytes: int


def _looks_like_tar(block: bytes) -> bool:
    """Say whether a file starts as a tar archive does."""
    try:
        tarfile.TarInfo.frombuf(block[:_BLOCK_BYTES], "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError):
        return False
    return True


def _tar_members(stream: _Metered) -> Iterator[_Member]:
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
        yield _Member(named.get("path", header.name), kind, stored)
        _exactly(stream, -stored % _BLOCK_BYTES)
        named = {}


def _tar_content(stream: _Metered, member: _Member, chunk_bytes: int) -> Iterator[bytes]:
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


def _header(stream: _Metered) -> tarfile.TarInfo | None:
    """Return the next header, None at the end of the archive."""
    block = _exactly(stream, _BLOCK_BYTES)
    if not any(block):
        return None
    return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")


def _exactly(stream: _Metered, size_bytes: int) -> bytes:
    data = stream.read(size_bytes)
    if len(data) != size_bytes:
        raise ValueError("it ends too early")
    return data


def _record(stream: _Metered, header: tarfile.TarInfo) -> dict[str, str]:
    """Read what an entry without a file says of the next one."""
    if not 0 <= header.size <= _MAX_RECORD_BYTES:
        raise ValueError(f"a header of {header.size:,} bytes")
    data = _exactly(stream, header.size)
    _exactly(stream, -header.size % _BLOCK_BYTES)
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
