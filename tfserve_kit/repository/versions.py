"""Which versions a base path holds, as TensorFlow Serving sees it.

Source: tensorflow_serving/sources/storage_path/file_system_storage_path_source.cc: every child
whose name is an integer counts, whether or not it is a directory.
"""

import re
from dataclasses import dataclass
from pathlib import Path

MAX_VERSION = 2**63 - 1
HIDDEN_PREFIX = ".tfkit-"  # of all that is ours in a base path and no version

# What absl::SimpleAtoi accepts: surrounding white space, a sign, decimal digits.
_INTEGER = re.compile(r"[ \t\n\v\f\r]*([+-]?[0-9]+)[ \t\n\v\f\r]*", re.ASCII)


@dataclass(frozen=True, slots=True, order=True)
class Version:
    """One version in a base path: its number and the directory that holds it."""

    number: int
    path: Path


def parse_version(name: str) -> int | None:
    """Return the version number a directory name stands for, None if it stands for none.

    `123`, `00123` and `+123` are version 123; `v1`, `1.0`, `.123` and `123.tmp` are none.
    """
    match = _INTEGER.fullmatch(name)
    number = int(match[1]) if match else None
    return number if number is not None and -MAX_VERSION - 1 <= number <= MAX_VERSION else None


def scan(base_path: Path) -> list[Version]:
    """Return the versions of a base path, lowest first.

    Of two names for one number (`1` and `0001`) the lexicographically last counts.

    Raises:
        FileNotFoundError: the base path does not exist.
        NotADirectoryError: it is a file.
    """
    found: dict[int, Path] = {}
    for child in sorted(base_path.iterdir(), key=lambda path: path.name):
        if (number := parse_version(child.name)) is not None:
            found[number] = child
    return sorted(Version(number, path) for number, path in found.items())
