"""Staging a model version: it is either fully there or not there.

A push copies into a hidden sibling of the version directory, which no server takes for a version,
checks the copy, makes it durable and gives it its name in one rename::

    base_path/.tfkit-staging-<unique>/   ->   base_path/7/
"""

import contextlib
import errno
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tfserve_kit import savedmodel
from tfserve_kit.errors import PushRefused
from tfserve_kit.progress import SILENT, Progress
from tfserve_kit.repository.versions import MAX_VERSION, scan

STAGING_PREFIX = ".tfkit-staging-"

VersionChoice = int | Literal["next", "epoch"]


@dataclass(frozen=True, slots=True)
class Pushed:
    """What a push made: the version's number, its directory and the bytes copied."""

    version: int
    path: Path
    size_bytes: int


def push(
    source: Path,
    base_path: Path,
    *,
    version: VersionChoice = "next",
    tag: str = "serve",
    progress: Progress = SILENT,
) -> Pushed:
    """Add a model version to a base path, atomically.

    Args:
        source: a SavedModel directory.
        base_path: the folder of the model's versions; made where it is missing.
        version: a number >= 1, `next` (highest + 1) or `epoch` (seconds since 1970).
        tag: the graph a server will load; its presence is checked.
        progress: told the steps and the bytes copied.

    Returns:
        The new version.

    Raises:
        PushRefused: the source is no complete SavedModel, the version is no positive int64 or
            exists, or the file system refuses. Nothing visible has changed then.
    """
    progress.step(f"checking {source}")
    _require_complete(source, tag)
    with _refusing(base_path):
        made = _ensure(base_path)
        try:
            number = choose_version(base_path, version)
            return _stage(source, base_path, number, tag, progress)
        except BaseException:
            _forget(made)
            raise


def choose_version(base_path: Path, choice: VersionChoice) -> int:
    """Return the number a push will use.

    Raises:
        PushRefused: it is no positive int64, or it exists under any spelling.
    """
    taken = [version.number for version in scan(base_path)]
    number = {
        "next": max([0, *taken]) + 1,
        "epoch": int(time.time()),
    }.get(choice, choice)  # type: ignore[call-overload]
    if not isinstance(number, int) or not 1 <= number <= MAX_VERSION:
        raise PushRefused(
            f"version {number!r} is not a positive 64-bit integer",
            remedy="give a whole number from 1 to 9223372036854775807, `next` or `epoch`",
        )
    if number in taken:
        raise PushRefused(
            f"version {number} exists already in {base_path}",
            remedy=f"servers never reload a changed version; push --version {max(taken) + 1}",
        )
    return number


def _require_complete(directory: Path, tag: str) -> None:
    found = savedmodel.problems(directory, tag=tag)
    if found:
        lines = "".join(f"\n  - {problem}" for problem in found)
        raise PushRefused(f"{directory} is no complete SavedModel:{lines}")


def _stage(source: Path, base_path: Path, number: int, tag: str, progress: Progress) -> Pushed:
    staging = Path(tempfile.mkdtemp(prefix=STAGING_PREFIX, dir=base_path))
    try:
        progress.step(f"copying to {base_path}")
        size_bytes = _copy(source, staging, progress)
        progress.step("checking the copy")
        _require_complete(staging, tag)
        staging.chmod(0o755)  # mkdtemp makes it private; the server may be another user
        progress.step("writing to disk")
        _sync(staging)
        target = base_path / str(number)
        staging.rename(target)
        _sync_directory(base_path)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return Pushed(number, target, size_bytes)


def _copy(source: Path, target: Path, progress: Progress) -> int:
    """Copy a tree; links are followed, so that the version depends on nothing outside it."""
    files = [path for path in sorted(source.rglob("*")) if path.is_file()]
    total, done = sum(path.stat().st_size for path in files), 0
    for path in files:
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
        done += copy.stat().st_size
        progress.advance(done, total)
    for folder in (path for path in sorted(source.rglob("*")) if path.is_dir()):
        (target / folder.relative_to(source)).mkdir(exist_ok=True)
    return done


def _sync(directory: Path) -> None:
    """Make a tree durable: its files, then each directory, the deepest first."""
    for folder, _, files in os.walk(directory, topdown=False):
        for name in files:
            _sync_directory(Path(folder) / name)
        _sync_directory(Path(folder))


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _ensure(base_path: Path) -> list[Path]:
    """Make the base path; return the directories that had to be made, the deepest first."""
    missing = [path for path in (base_path, *base_path.parents) if not path.exists()]
    base_path.mkdir(parents=True, exist_ok=True)
    return missing


def _forget(made: list[Path]) -> None:
    for path in made:
        with contextlib.suppress(OSError):  # not empty: somebody uses it by now
            path.rmdir()


_FILE_SYSTEM_ADVICE = {
    errno.ENOSPC: "free some space, or push to another disk",
    errno.EDQUOT: "free some of your quota, or push to another disk",
    errno.EROFS: "push to a folder on a writable file system",
    errno.EACCES: "push as a user who may write there",
    errno.EPERM: "push as a user who may write there",
    errno.ENOTEMPTY: "another push took this version at the same moment; push again",
    errno.EEXIST: "another push took this version at the same moment; push again",
    errno.ENOTDIR: "give a folder as base path",
}


@contextlib.contextmanager
def _refusing(base_path: Path) -> Iterator[None]:
    """Translate what the file system says."""
    try:
        yield
    except OSError as error:
        raise PushRefused(
            f"cannot push to {base_path}: {error.strerror or error} ({error.filename})",
            remedy=_FILE_SYSTEM_ADVICE.get(error.errno or 0, "look at the file system"),
        ) from error
