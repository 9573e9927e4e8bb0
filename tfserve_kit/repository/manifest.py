"""The manifest: what a version consisted of when it was pushed, to tell later if it still does.

It lies in the version's `assets.extra`, a folder that TensorFlow Serving leaves alone, as JSON::

    {"format": 1, "source": "model.zip", "pushed_at": "2026-01-31T12:00:00Z", "tfkit": "0.1.0",
     "files": {"saved_model.pb": {"size_bytes": 5120, "sha256": "9f86d08..."}}}
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from tfserve_kit import input_files
from tfserve_kit.errors import Problem
from tfserve_kit.progress import SILENT, Progress
from tfserve_kit.version import VERSION

MANIFEST_PATH = Path("assets.extra") / "tfkit.manifest.json"
_FORMAT = 1
_MOST_BYTES = 64 << 20  # some hundred for each file


@dataclass(frozen=True, slots=True)
class File:
    """A file's length in bytes, and its SHA-256 in hexadecimal."""

    size_bytes: int
    sha256: str


Files = Mapping[str, File]
"""Every file of a version by its path within it, with `/` between folders."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What was pushed.

    Attributes:
        files: every file but the manifest itself.
        source: where it came from, without secrets.
        pushed_at: when, in UTC (ISO 8601).
        tfkit: the tfkit that pushed it.
    """

    files: Files
    source: str
    pushed_at: str
    tfkit: str

    @classmethod
    def of(cls, files: Files, source: str) -> "Manifest":
        """Return the manifest of a push that happens now."""
        others = {name: file for name, file in files.items() if name != MANIFEST_PATH.as_posix()}
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return cls(others, source, now, VERSION)

    @property
    def size_bytes(self) -> int:
        """Length of all files together, in bytes."""
        return sum(file.size_bytes for file in self.files.values())

    def write(self, version_dir: Path) -> Path:
        """Store the manifest in a version directory that is not visible yet; return its path."""
        file = version_dir / MANIFEST_PATH
        file.parent.mkdir(exist_ok=True)
        file.write_text(self.to_json(), "utf-8")
        return file

    def to_json(self) -> str:
        """Return the text that is stored, a line for each file.

        Put together here: json's own indentation takes longer than copying a thousand small files.
        """
        about = {
            "format": _FORMAT,
            "pushed_at": self.pushed_at,
            "source": self.source,
            "tfkit": self.tfkit,
        }
        lines = [f" {json.dumps(key)}: {json.dumps(value)},\n" for key, value in about.items()]
        files = ",\n".join(
            f'  {json.dumps(name)}: {{"sha256": "{file.sha256}", "size_bytes": {file.size_bytes}}}'
            for name, file in sorted(self.files.items())
        )
        return f'{{\n{"".join(lines)} "files": {{\n{files}\n }}\n}}\n'

    @classmethod
    def read(cls, version_dir: Path) -> "Manifest | None":
        """Read the manifest of a version directory, None where it has none.

        Raises:
            ValueError: it is damaged, or of a format that this tfkit does not know.
        """
        try:
            return cls.from_json(input_files.read_text(version_dir / MANIFEST_PATH, _MOST_BYTES))
        except FileNotFoundError:
            return None

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Read what `to_json` wrote; errors as for `read`."""
        try:
            content: Any = json.loads(text)
            if content.pop("format") != _FORMAT:
                raise ValueError(
                    f"is of a format that this tfkit does not know (it reads {_FORMAT})"
                )
            files = {str(name): _file(name, **file) for name, file in content.pop("files").items()}
            return cls(files=files, **{key: str(value) for key, value in content.items()})
        except (AttributeError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"is not a manifest: {error!r:.200}") from error


def _file(name: str, size_bytes: int, sha256: str) -> File:
    """Return an entry; a manifest that came with a model may say anything."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise ValueError(f"names {name!r:.100}, which lies outside the version")
    if type(size_bytes) is not int or size_bytes < 0 or not isinstance(sha256, str):
        raise ValueError(f"says of {name!r:.100} what no file can have")
    return File(size_bytes, sha256)


def verify(version_dir: Path, progress: Progress = SILENT) -> tuple[Manifest | None, list[Problem]]:
    """Return the manifest of a version, and how its files differ from it; see `differences`.

    Args:
        version_dir: what is looked at; without a manifest (None) nothing can be told of it.
        progress: told the bytes read.
    """
    try:
        manifest = Manifest.read(version_dir)
        return manifest, differences(version_dir, manifest, progress) if manifest else []
    except (OSError, ValueError) as error:
        return None, [Problem("manifest", str(error))]


def differences(
    version_dir: Path, manifest: Manifest, progress: Progress = SILENT
) -> list[Problem]:
    """Return how the files of a version differ from its manifest; reads every byte.

    Args:
        version_dir: what is looked at.
        manifest: what it ought to be.
        progress: told the bytes read.
    """
    there = {
        Path(place, name).relative_to(version_dir).as_posix()
        for place, _, names in os.walk(version_dir)
        for name in names
    }
    unknown = sorted(there - manifest.files.keys() - {MANIFEST_PATH.as_posix()})
    found = [Problem(name, "was not there when it was pushed", "remove it") for name in unknown]
    done = 0
    for name, wanted in sorted(manifest.files.items()):
        if (problem := _difference(version_dir / name, wanted)) is not None:
            found.append(Problem(name, problem, "push the version again under a new number"))
        done += wanted.size_bytes
        progress.advance(done, manifest.size_bytes)
    return found


def _difference(file: Path, wanted: File) -> str | None:
    try:
        with file.open("rb") as stream:
            size_bytes = os.fstat(stream.fileno()).st_size
            if size_bytes != wanted.size_bytes:
                return f"has {size_bytes} bytes, was pushed with {wanted.size_bytes}"
            if hashlib.file_digest(stream, "sha256").hexdigest() != wanted.sha256:
                return "has changed since it was pushed (SHA-256 differs)"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None
