"""Staging a model version: it is either fully there or not there.

A push copies into a hidden sibling of the version directory, which no server takes for a version,
checks the copy, makes it durable and gives it its name in one rename::

    base_path/.tfkit-staging-<pid>.<started>.<host>.<unique>/   ->   base_path/7/

The hidden name says whose it is, so that the next push can remove what a killed one left.
"""

import contextlib
import ctypes
import errno
import itertools
import os
import platform
import shutil
import stat
import tempfile
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tfserve_kit import processes, savedmodel
from tfserve_kit.errors import PushRefused
from tfserve_kit.progress import SILENT, Progress
from tfserve_kit.repository.versions import MAX_VERSION, scan

STAGING_PREFIX = ".tfkit-staging-"

# Up to here one read and one write are the quickest way to copy a file.
_SMALL_BYTES = 1 << 20
# From here on one sync of the file system is quicker than one of each file.
_MANY_FILES = 64

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
    with _refusing(base_path):
        progress.step(f"checking {source}")
        _require_complete(source, tag)
        _require_apart(source, base_path)
        missing = [path for path in (base_path, *base_path.parents) if not path.exists()]
        try:
            if missing:
                base_path.mkdir(parents=True, exist_ok=True)
            sweep(base_path)
            choose_version(base_path, version)  # refuses now what would be refused after copying
            return _stage(source, base_path, version, tag, progress)
        except BaseException:
            _forget(missing)
            raise


def choose_version(base_path: Path, choice: VersionChoice) -> int:
    """Return the number a push will use.

    Raises:
        PushRefused: it is no positive int64, or it exists under any spelling.
    """
    taken = [version.number for version in scan(base_path)]
    words = {"next": max([0, *taken]) + 1, "epoch": _free_second(taken)}
    number = words.get(choice) if isinstance(choice, str) else choice
    if type(number) is not int or not 1 <= number <= MAX_VERSION:
        raise PushRefused(
            f"version {choice if number is None else number!r} is not a positive 64-bit integer",
            remedy="give a whole number from 1 to 9223372036854775807, `next` or `epoch`",
        )
    if number in taken:
        raise PushRefused(
            f"version {number} exists already in {base_path}",
            remedy=f"servers never reload a changed version; push --version {max(taken) + 1}",
        )
    return number


def _free_second(taken: Collection[int]) -> int:
    """Return the time, or the first second after it that another push has not taken."""
    return next(second for second in itertools.count(int(time.time())) if second not in taken)


def sweep(base_path: Path) -> list[Path]:
    """Remove what pushes of this machine left that were killed; return what was removed."""
    abandoned = [each for each in base_path.glob(f"{STAGING_PREFIX}*") if _is_abandoned(each)]
    for each in abandoned:
        shutil.rmtree(each, ignore_errors=True)
    return abandoned


def _staging_prefix() -> str:
    started_ms = round(processes.started_s(os.getpid()) * 1000)
    return f"{STAGING_PREFIX}{os.getpid()}.{started_ms}.{platform.node()}."


def _is_abandoned(staging: Path) -> bool:
    """Say whether a staging folder's push is over; of other machines nothing is known."""
    pid, _, rest = staging.name.removeprefix(STAGING_PREFIX).partition(".")
    started_ms, _, rest = rest.partition(".")
    host, _, _ = rest.rpartition(".")
    if not (pid.isdecimal() and started_ms.isdecimal()) or host != platform.node():
        return False
    return processes.alive(int(pid), int(started_ms) / 1000) is None


def _require_complete(directory: Path, tag: str) -> None:
    found = savedmodel.problems(directory, tag=tag)
    if found:
        lines = "".join(f"\n  - {problem}" for problem in found)
        raise PushRefused(f"{directory} is no complete SavedModel:{lines}")


def _require_apart(source: Path, base_path: Path) -> None:
    if base_path.resolve().is_relative_to(source.resolve()):
        raise PushRefused(
            f"{base_path} lies inside the model {source}, which would be copied into itself",
            remedy="give a base path outside the SavedModel",
        )


def _stage(
    source: Path, base_path: Path, choice: VersionChoice, tag: str, progress: Progress
) -> Pushed:
    staging = Path(tempfile.mkdtemp(prefix=_staging_prefix(), dir=base_path))
    try:
        progress.step(f"copying to {base_path}")
        size_bytes = _copy(source, staging, progress)
        progress.step("checking the copy")
        _require_complete(staging, tag)
        staging.chmod(0o755)  # mkdtemp makes it private; the server may be another user
        progress.step("writing to disk")
        _sync(staging)
        number = _name(staging, base_path, choice)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return Pushed(number, base_path / str(number), size_bytes)


def _name(staging: Path, base_path: Path, choice: VersionChoice) -> int:
    """Publish under the chosen number; where another push was quicker, under the next free one."""
    while True:
        number = choose_version(base_path, choice)
        try:
            _publish(staging, base_path / str(number))
        except OSError as error:
            if error.errno not in _TAKEN or not isinstance(choice, str):
                raise
        else:
            return number


def _publish(staging: Path, target: Path) -> None:
    """Give the version its name, and take it back if that cannot be made durable."""
    staging.rename(target)
    try:
        _sync_path(target.parent)
    except BaseException:
        target.rename(staging)
        raise


def _copy(source: Path, target: Path, progress: Progress) -> int:
    """Copy a tree; links are followed, so that the version depends on nothing outside it.

    Paths are strings here: with thousands of files, Path objects take longer than the copying.
    """
    folders, files = _contents(source)
    total, done = sum(found.st_size for found in files.values()), 0
    for name in folders:
        (target / name).mkdir()
    for name, found in files.items():
        done += _copy_file(f"{source}/{name}", f"{target}/{name}", found)
        progress.advance(done, total)
    return done


def _copy_file(source: str, target: str, found: os.stat_result) -> int:
    """Copy one file, of which `found` is known; return the bytes copied."""
    if found.st_size > _SMALL_BYTES or not stat.S_ISREG(found.st_mode):
        shutil.copyfile(source, target)  # in the kernel where that is possible; refuses pipes
        return os.stat(target).st_size  # noqa: PTH116
    done = 0
    reader = os.open(source, os.O_RDONLY)
    try:
        writer = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            while data := os.read(reader, found.st_size + 1):
                done += _write(writer, data)
        finally:
            os.close(writer)
    finally:
        os.close(reader)
    return done


def _write(descriptor: int, data: bytes) -> int:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
    return len(data)


def _contents(source: Path) -> tuple[list[str], dict[str, os.stat_result]]:
    """Return the relative paths of all folders within a tree, outer first, and of all files."""

    def fail(error: OSError) -> None:
        raise error

    folders: list[str] = []
    files: dict[str, os.stat_result] = {}
    for place, inner, names in os.walk(source, onerror=fail, followlinks=True):
        start = "" if place == str(source) else f"{Path(place).relative_to(source)}/"
        folders += [start + name for name in inner]
        files |= {start + name: os.stat(f"{place}/{name}") for name in sorted(names)}  # noqa: PTH116
    return folders, files


def _sync(directory: Path) -> None:
    """Make a tree durable.

    A few files are synced one by one, the folders after what they hold. Many are synced together
    with all else on their file system: each fsync would be a commit of its own.
    """
    places = list(os.walk(directory, topdown=False))
    if sum(len(names) for _, _, names in places) > _MANY_FILES and _sync_file_system(directory):
        return
    for place, _, names in places:
        for name in names:
            _sync_path(Path(place) / name)
        _sync_path(Path(place))


def _sync_file_system(path: Path) -> bool:
    """Write a whole file system to disk; return False where the system has no such call."""
    syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    if syncfs is None:
        return False
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if syncfs(descriptor):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(path))
    finally:
        os.close(descriptor)
    return True


def _sync_path(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _forget(made: list[Path]) -> None:
    """Remove the directories that a push made, the deepest first."""
    for path in made:
        with contextlib.suppress(OSError):  # never made, or not empty: somebody uses it by now
            path.rmdir()


_TAKEN = (errno.ENOTEMPTY, errno.EEXIST)
_FILE_SYSTEM_ADVICE = {
    errno.ENOSPC: "free some space, or push to another disk",
    errno.EDQUOT: "free some of your quota, or push to another disk",
    errno.EROFS: "push to a folder on a writable file system",
    errno.EACCES: "push as a user who may read the model and write to the base path",
    errno.EPERM: "push as a user who may read the model and write to the base path",
    errno.ENOTEMPTY: "another push took this version at the same moment; push another one",
    errno.EEXIST: "another push took this version at the same moment; push another one",
    errno.ENOTDIR: "give a folder as base path",
}


@contextlib.contextmanager
def _refusing(base_path: Path) -> Iterator[None]:
    """Translate what the file system says."""
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise PushRefused(
            f"cannot push to {base_path}: {error.strerror or error}{where}",
            remedy=_FILE_SYSTEM_ADVICE.get(error.errno or 0, "look at the file system"),
        ) from error
