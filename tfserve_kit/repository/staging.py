"""The hidden folder in which a version is prepared, and the one rename that makes it visible.

::

    base_path/.tfkit-staging-<pid>.<started>.<host>.<unique>/...   ->   base_path/7/

No server takes the hidden name for a version. It says whose it is, so that the next push can remove
what a killed one left.
"""

import contextlib
import errno
import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Literal

from tfserve_kit import processes
from tfserve_kit.errors import PushRefused
from tfserve_kit.repository.durable import rename
from tfserve_kit.repository.retention import retired
from tfserve_kit.repository.versions import HIDDEN_PREFIX, MAX_VERSION, scan

STAGING_PREFIX = f"{HIDDEN_PREFIX}staging-"
_SWEPT_PREFIX = f"{HIDDEN_PREFIX}swept-"

_TAKEN = (errno.ENOTEMPTY, errno.EEXIST)

VersionChoice = int | Literal["next", "epoch"]


@contextlib.contextmanager
def staging_folder(base_path: Path) -> Iterator[Path]:
    """Give an empty folder on the file system of a base path; it is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix=_staging_prefix(), dir=base_path))
    try:
        yield folder
    finally:
        try:
            folder.rmdir()  # all there is to do once its content has a name of its own
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)  # the next push sweeps what stays


def sweep(base_path: Path) -> list[Path]:
    """Remove what pushes of this machine left that were killed; return what was removed.

    Each loses its name first: should its push live after all, that finds nothing to publish, rather
    than a folder that is being deleted.
    """
    abandoned = [each for each in base_path.glob(f"{STAGING_PREFIX}*") if _is_abandoned(each)]
    for each in abandoned:
        with contextlib.suppress(OSError):  # another push was quicker
            each.rename(each.with_name(each.name.replace(STAGING_PREFIX, _SWEPT_PREFIX, 1)))
    for each in base_path.glob(f"{_SWEPT_PREFIX}*"):  # also what a killed sweep left
        shutil.rmtree(each, ignore_errors=True)
    return abandoned


def _staging_prefix() -> str:
    import psutil

    try:
        started_ms = round(processes.started_s(os.getpid()) * 1000)
    except psutil.Error as error:
        raise OSError(errno.EACCES, "the start time of this process is unknown", "/proc") from error
    return f"{STAGING_PREFIX}{os.getpid()}.{started_ms}.{processes.host()}."


def _is_abandoned(staging: Path) -> bool:
    """Say whether a staging folder's push is over; of other machines nothing is known."""
    pid, _, rest = staging.name.removeprefix(STAGING_PREFIX).partition(".")
    started_ms, _, rest = rest.partition(".")
    host, _, _ = rest.rpartition(".")
    if not (pid.isdecimal() and started_ms.isdecimal()) or host != processes.host():
        return False
    if not os.access(staging, os.W_OK, effective_ids=True):
        return False  # another user's, whose processes may be hidden from this one
    return processes.alive(int(pid), int(started_ms) / 1000) is None


def choose_version(taken: Collection[int], choice: VersionChoice, base_path: object) -> int:
    """Return the number a push will use.

    Args:
        taken: the numbers that may not be used again.
        choice: a number >= 1, `next` (highest + 1) or `epoch` (the first free second from now on).
        base_path: named in errors.

    Raises:
        PushRefused: it is no positive int64, or it is taken.
    """
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


def taken_numbers(base_path: Path) -> list[int]:
    """Return the numbers that a base path holds, under any spelling, and those retired."""
    return [version.number for version in scan(base_path)] + retired(base_path)


def _free_second(taken: Collection[int]) -> int:
    """Return the time, or the first second after it that another push has not taken."""
    return next(second for second in itertools.count(int(time.time())) if second not in taken)


def publish(content: Path, base_path: Path, choice: VersionChoice) -> int:
    """Make a durable folder visible as a version; return its number.

    Where another push was quicker, `next` and `epoch` go on to the next free number.

    Raises:
        PushRefused: as for `choose_version`.
        OSError: the rename failed, or the number given was taken at the same moment.
    """
    while True:
        number = choose_version(taken_numbers(base_path), choice, base_path)
        try:
            rename(content, base_path / str(number))
        except OSError as error:
            if error.errno not in _TAKEN or not isinstance(choice, str):
                raise
        else:
            return number
