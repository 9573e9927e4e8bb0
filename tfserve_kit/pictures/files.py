"""Where pictures come from: files, folders, patterns, the web, standard input."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tfserve_kit import redaction
from tfserve_kit.errors import InvalidRequest, UsageError
from tfserve_kit.pictures import web

# Larger files are no pictures but a mistake, and would fill the memory.
MAX_BYTES = 256 * 1024 * 1024
# What is looked for in folders; any name will do for a file that is named itself.
SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})

STDIN = "-"
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class PictureFile:
    """A picture that was not read yet.

    Attributes:
        name: as it was given, or its path in the folder that was.
        read: returns its bytes; raises InvalidRequest.
    """

    name: str
    read: Callable[[], bytes]


def find(given: Iterable[str], stdin: BinaryIO, *, timeout_s: float) -> list[PictureFile]:
    """Return the pictures that names stand for, in order; nothing is read yet.

    Args:
        given: paths of files; folders, searched through all levels for names that end as pictures
            do; patterns with `*`, `?`, `[...]` and `**`; http and https URLs; `-`.
        stdin: what `-` means.
        timeout_s: how long all downloads may take together, in seconds.

    Raises:
        UsageError: a folder or pattern has no picture, or `-` stands twice.
    """
    names = list(given)
    if names.count(STDIN) > 1:
        raise UsageError("- stands for one picture on standard input; give it once")
    patience = web.Patience(timeout_s)
    return [file for name in names for file in _files(name, stdin, patience)]


def _files(name: str, stdin: BinaryIO, patience: web.Patience) -> Iterator[PictureFile]:
    if name == STDIN:
        yield PictureFile("standard input", lambda: _limited(stdin, "standard input"))
    elif name.lower().startswith(("http://", "https://")):
        shown = redaction.url(name)
        yield PictureFile(shown, lambda: web.download(name, patience, MAX_BYTES))
    else:
        for path in _paths(name):
            yield PictureFile(_printable(path), lambda path=path: _read(path))  # type: ignore[misc]


def _printable(path: str) -> str:
    """Return a path as text, whatever bytes it was made of."""
    return os.fsencode(path).decode("utf-8", "replace")


def _paths(name: str) -> list[str]:
    try:
        if Path(name).is_dir():
            return _in_folder(name)
        is_file = Path(name).exists()
    except OSError:  # such as a name that is too long: reading it says so
        return [name]
    return [name] if is_file or not any(sign in name for sign in "*?[") else _matching(name)


def _in_folder(name: str) -> list[str]:
    found = sorted(
        str(each)
        for each in Path(name).rglob("*")
        if each.suffix.lower() in SUFFIXES and each.is_file()
    )
    if not found:
        endings = " ".join(sorted(SUFFIXES))
        raise UsageError(
            f"{name} has no pictures, no file that ends in {endings}", remedy=_instead(name)
        )
    return found


def _instead(folder: str) -> str:
    """Return which other files a folder has, as a remedy: a file by itself may have any ending."""
    endings = Counter(each.suffix.lower() for each in Path(folder).rglob("*") if each.is_file())
    held = ", ".join(f"{count} {ending or 'without ending'}"
                     for ending, count in endings.most_common(_SHOWN))  # fmt: skip
    return f"it has {held}: give the files themselves, or convert them" if held else ""


def _matching(pattern: str) -> list[str]:
    """Return the files that a pattern means; brackets count as they stand if nothing else fits."""
    literal = pattern.replace("[", "[[]")
    found = _found(_beyond_folders(pattern)) or ("[" in pattern and _found(literal))
    if not found:
        raise UsageError(f"no file matches {pattern!r}")
    return found


def _beyond_folders(pattern: str) -> str:
    """Return a pattern in which folders that are really called so stand for themselves."""
    from glob import escape

    ends = [position for position, sign in enumerate(pattern) if sign == "/" and position]
    there = next((end for end in reversed(ends) if Path(pattern[:end]).is_dir()), 0)
    return escape(pattern[:there]) + pattern[there:]


def _found(pattern: str) -> list[str]:
    from glob import glob

    return sorted(each for each in glob(pattern, recursive=True) if not Path(each).is_dir())  # noqa: PTH207 (absolute patterns too)


def _read(path: str) -> bytes:
    name = _printable(path)
    try:
        with Path(path).open("rb") as stream:
            return _limited(stream, name)
    except OSError as error:
        raise InvalidRequest(f"cannot read {name}: {error.strerror}") from error


def _limited(stream: BinaryIO, name: str) -> bytes:
    data = stream.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise _too_large(name)
    return data


def _too_large(name: str) -> InvalidRequest:
    return web.too_large(name, MAX_BYTES)
