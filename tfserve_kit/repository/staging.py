"""The hidden folder in which a version is prepared, and the one rename that makes it visible.

::

    base_path/.tfkit-staging-<pid>.<started>.<host>.<unique>/...   ->   base_path/7/

No server takes the hidden name for a version. It says whose it is, so that the next push can remove
what a killed one left. The base path is held by a descriptor: should its name come to stand for
another folder meanwhile, this is noticed, and what was made in the first one is removed there.
"""

import contextlib
import errno
import itertools
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tfserve_kit import processes
from tfserve_kit.errors import PushRefused
from tfserve_kit.repository.disk import rename_in
from tfserve_kit.repository.versions import (
    HIDDEN_PREFIX,
    MAX_VERSION,
    RETIRED_PREFIX,
    numbers_in,
)

_STAGING_PREFIX = f"{HIDDEN_PREFIX}staging-"
_SWEPT_PREFIX = f"{HIDDEN_PREFIX}swept-"

_TAKEN = (errno.ENOTEMPTY, errno.EEXIST)

VersionChoice = int | Literal["next", "epoch"]


@dataclass(frozen=True, slots=True)
class Held:
    """A base path: its name, and a descriptor of the folder that it stood for at first."""

    path: Path
    folder: int

    def require_same(self) -> None:
        """Refuse where the name stands for another folder now, or for none.

        Raises:
            PushRefused: it does.
            OSError: it cannot be told.
        """
        if not self._is_same():
            raise PushRefused(
                f"{self.path} was moved, replaced or deleted while a version was copied to it",
                remedy="push again once it stays where it is",
            )

    def _is_same(self) -> bool:
        try:
            now = self.path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        return os.path.samestat(now, os.fstat(self.folder))


@contextlib.contextmanager
def held(base_path: Path) -> Iterator[Held]:
    """Hold a base path for a `with` block; what fails in it because it was replaced says so."""
    base = Held(base_path, os.open(base_path, os.O_RDONLY | os.O_DIRECTORY))
    try:
        yield base
    except (OSError, PushRefused):
        with contextlib.suppress(OSError):
            base.require_same()
        raise
    finally:
        with contextlib.suppress(OSError):  # nothing was written through it
            os.close(base.folder)


@contextlib.contextmanager
def staging_folder(base: Held) -> Iterator[Path]:
    """Give an empty folder in a base path; it is gone afterwards, wherever that is by then."""
    folder = Path(tempfile.mkdtemp(prefix=_staging_prefix(), dir=base.path))
    try:
        yield folder
    finally:
        try:  # all there is to do once its content has a name of its own
            os.rmdir(folder.name, dir_fd=base.folder)
        except OSError:  # the next push sweeps what stays
            shutil.rmtree(folder.name, ignore_errors=True, dir_fd=base.folder)


def sweep(base_path: Path) -> list[Path]:
    """Remove what pushes of this machine left that were killed; return what was removed.

    Each loses its name first: should its push live after all, that finds nothing to publish, rather
    than a folder that is being deleted.
    """
    abandoned = [each for each in base_path.glob(f"{_STAGING_PREFIX}*") if _is_abandoned(each)]
    for each in abandoned:
        with contextlib.suppress(OSError):  # another push was quicker
            each.rename(each.with_name(each.name.replace(_STAGING_PREFIX, _SWEPT_PREFIX, 1)))
    for each in base_path.glob(f"{_SWEPT_PREFIX}*"):  # also what a killed sweep left
        shutil.rmtree(each, ignore_errors=True)
    return abandoned


def fresh_name() -> str:
    """Return a hidden name that says whose it is, for where no folder can be made from here."""
    return f"{_staging_prefix()}{uuid.uuid4().hex[:8]}"


def _staging_prefix() -> str:
    import psutil

    try:
        started_ms = round(processes.started_s(os.getpid()) * 1000)
    except psutil.Error as error:
        raise OSError(errno.EACCES, "the start time of this process is unknown", "/proc") from error
    return f"{_STAGING_PREFIX}{os.getpid()}.{started_ms}.{processes.host()}."


def _is_abandoned(staging: Path) -> bool:
    """Say whether a folder's push is over; processes of other users may be hidden from this one."""
    return is_abandoned(staging.name) and os.access(staging, os.W_OK, effective_ids=True)


def is_abandoned(name: str) -> bool:
    """Say whether a name is of a push that is over; of other machines nothing is known."""
    pid, _, rest = name.removeprefix(_STAGING_PREFIX).partition(".")
    started_ms, _, rest = rest.partition(".")
    host, _, _ = rest.rpartition(".")
    if not name.startswith(_STAGING_PREFIX) or host != processes.host():
        return False
    if not (pid.isdecimal() and started_ms.isdecimal()):
        return False
    return processes.alive(int(pid), int(started_ms) / 1000) is None


def choose_version(taken: Collection[int], choice: VersionChoice, base_path: object) -> int:
    """Return the number a push will use.

    Args:
        taken: the numbers that may not be used again.
        choice: a number >= 1, `next` (highest + 1) or `epoch` (the first free second from now on).
        base_path: named in errors.

    Raises:
        PushRefused: it is not a positive int64, or it is taken.
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
            f"version {number} already exists in {base_path}",
            remedy=f"--version {max(taken) + 1} (servers never reload a changed version)",
        )
    return number


def taken_numbers(base_path: Path) -> set[int]:
    """Return the numbers that a base path holds, under any spelling, and those retired."""
    return numbers_in((child.name for child in base_path.iterdir()), RETIRED_PREFIX)


def _free_second(taken: Collection[int]) -> int:
    """Return the time, or the first second after it that another push has not taken."""
    return next(second for second in itertools.count(int(time.time())) if second not in taken)


def publish(content: Path, base: Held, choice: VersionChoice) -> int:
    """Make a durable folder visible as a version; return its number.

    Where another push was quicker, `next` and `epoch` go on to the next free number.

    Raises:
        PushRefused: as for `choose_version`; or the base path was replaced.
        OSError: the rename failed, or the number given was taken at the same moment.
    """
    name = str(content.absolute().relative_to(base.path.absolute()))
    while True:
        base.require_same()
        number = choose_version(taken_numbers(base.path), choice, base.path)
        try:
            rename_in(base.folder, name, str(number), check=base.require_same)
        except OSError as error:
            if error.errno not in _TAKEN or not isinstance(choice, str):
                raise
        else:
            return number
