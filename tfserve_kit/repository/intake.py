"""What a foreign source sends, written into a folder of ours and nowhere else, within limits.

Archives and object stores name files as they like and say of their sizes what they like. Here each
name is checked, each byte is counted as it comes, and each file is made anew: nothing is followed,
overwritten or made executable.
"""

import hashlib
import os
import re
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tfserve_kit.errors import PushRefused, UsageError
from tfserve_kit.repository.disk import require_room, write_all
from tfserve_kit.repository.manifest import File

CHUNK_BYTES = 1 << 20
_MAX_NAME_BYTES = 255  # of one folder or file, as file systems have it
_MAX_PATH_BYTES = 1024
# Below this even a ratio that no model has is harmless.
_SMALL_BYTES = 16 << 20
_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
# C0, DEL, C1, and what turns the direction of text: none is in a model's names, and all deceive.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_TWICE = "occurs twice for the file system here"
_SIZE = re.compile(r"([0-9]+) ?([KMGT]?)(i?B)?", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a model may hold that comes as an archive or from afar.

    Attributes:
        max_size_bytes: of all files together once unpacked, and of a download.
        max_files: files and folders.
        max_ratio: unpacked bytes per packed byte.
        max_depth: folders within each other.
        max_download_s: how long a download may take as a whole, in seconds.
    """

    max_size_bytes: int = 64 << 30
    max_files: int = 100_000
    max_ratio: int = 1000
    max_depth: int = 32
    max_download_s: float = 3600.0


def parse_size(text: str) -> int:
    """Return the bytes that `500`, `10M`, `10MB` or `10 MiB` stand for; M is 1024 * 1024.

    Raises:
        UsageError: it is none of these.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(
            f"{text!r} is not a valid size", remedy="give bytes, or a number such as 500M or 64G"
        )
    return int(match[1]) << _UNITS[match[2].upper()]


def _checked_name(name: str, limits: Limits) -> str:
    """Return a foreign path in its plain form: `./a//b` is `a/b`, `./` is the empty text.

    Raises:
        PushRefused: it leads out of the folder, or no file system of ours takes it.
    """
    parts = [part for part in name.split("/") if part not in {"", "."}]
    try:
        longest = max([0, *(len(part.encode()) for part in parts)])
        length = len(name.encode())
    except UnicodeEncodeError:
        raise _bad_name(name, "is not UTF-8") from None
    faults = {
        "is absolute": name.startswith("/") or re.match("[A-Za-z]:", name),
        "leads out of its folder": ".." in parts,
        "holds a backslash": "\\" in name,
        "holds a NUL": "\0" in name,
        "holds a control character": _CONTROL.search(name),
        "is too long": longest > _MAX_NAME_BYTES or length > _MAX_PATH_BYTES,
        "is too deep": len(parts) > limits.max_depth,
    }
    for fault, found in faults.items():
        if found:
            raise _bad_name(name, fault)
    return "/".join(parts)


def _bad_name(name: str, fault: str) -> PushRefused:
    short = ascii(name if len(name) <= 100 else f"{name[:100]}...")  # noqa: PLR2004
    return PushRefused(f"the path {short} {fault}", remedy="pack the model again, with plain names")


class Intake:
    """Takes files for a folder; thread-safe.

    Args:
        folder: an empty folder that nobody else writes to.
        limits: how much it takes.
        packed_bytes: length of the archive the files come from, None where there is none.
    """

    def __init__(self, folder: Path, limits: Limits, packed_bytes: int | None = None) -> None:
        self.files: dict[str, File] = {}
        self._folder = str(folder)
        self._limits = limits
        self._taken: dict[str, bool] = {"": False}  # path -> whether it is a file
        self._size_bytes = 0
        self._max_bytes = limits.max_size_bytes
        self._ratio_bytes = (
            self._max_bytes
            if packed_bytes is None
            else max(_SMALL_BYTES, packed_bytes * limits.max_ratio)
        )
        self._lock = threading.Lock()

    def expect(self, size_bytes: int) -> None:
        """Refuse what is announced to be more than the disk has room for.

        Raises:
            PushRefused: it is.
        """
        require_room(Path(self._folder), size_bytes)

    def count(self, size_bytes: int) -> None:
        """Count bytes that came, kept or not.

        Raises:
            PushRefused: they are too many.
        """
        with self._lock:
            self._size_bytes += size_bytes
            if self._size_bytes > self._max_bytes:
                raise PushRefused(
                    f"the model holds more than {self._max_bytes:,} bytes",
                    remedy="allow more with --max-size, if that is right",
                )
            if self._size_bytes > self._ratio_bytes:
                raise PushRefused(
                    f"it unpacks to more than {self._limits.max_ratio} times its size, "
                    "which no model does",
                    remedy="give the model unpacked, if that is right",
                )

    def add_folder(self, name: str) -> None:
        """Make a folder, and those it lies in; one that is there already is fine."""
        with self._lock:
            self._make_folder(_checked_name(name, self._limits))

    def add_file(self, name: str, chunks: Iterable[bytes]) -> File:
        """Write a file; its bytes must have been counted.

        Raises:
            PushRefused: the name is bad or taken, or there are too many files.
        """
        path = _checked_name(name, self._limits)
        with self._lock:
            self._make_folder(path.rpartition("/")[0])
            if path in self._taken:
                raise _bad_name(name, "occurs twice")
            self._take(path, is_file=True)
        digest, size_bytes = hashlib.sha256(usedforsecurity=False), 0
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        try:
            descriptor = os.open(f"{self._folder}/{path}", flags, 0o666)
        except FileExistsError:  # where capitals or accents make no difference
            raise _bad_name(name, _TWICE) from None
        try:
            for chunk in chunks:
                digest.update(chunk)
                write_all(descriptor, chunk)
                size_bytes += len(chunk)
        finally:
            os.close(descriptor)
        self.files[path] = File(size_bytes, digest.hexdigest())
        return self.files[path]

    def _make_folder(self, path: str) -> None:
        if self._taken.get(path):
            raise _bad_name(path, "is a file and a folder")
        if path not in self._taken:
            self._make_folder(path.rpartition("/")[0])
            self._take(path, is_file=False)
            try:
                os.mkdir(f"{self._folder}/{path}")  # noqa: PTH102 (Path objects take longer)
            except FileExistsError:
                raise _bad_name(path, _TWICE) from None

    def _take(self, path: str, *, is_file: bool) -> None:
        if len(self._taken) > self._limits.max_files:
            raise PushRefused(
                f"the model holds more than {self._limits.max_files:,} files and folders",
                remedy="give the SavedModel alone",
            )
        self._taken[path] = is_file
