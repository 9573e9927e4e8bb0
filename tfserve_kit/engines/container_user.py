"""Who the server in a container is: never root unless asked for, and able to read its files."""

import itertools
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

NOBODY = "65534:65534"  # as in the images that tfkit builds
_NUMBERS = re.compile(r"(\d+)(?::(\d+))?")
_MOST_FILES = 10_000  # looked at for each model


def default_user(base_paths: Iterable[str]) -> str:
    """Return the `uid:gid` of a server of which the deployment says nothing.

    That is the invoking user; where this is root, the owner of the base paths, or nobody where
    they belong to root or to several.
    """
    if os.geteuid() != 0:
        return f"{os.getuid()}:{os.getgid()}"
    owners = {owner for path in base_paths if (owner := _owner(path))}
    return owners.pop() if len(owners) == 1 else NOBODY


def _owner(path: str) -> str:
    """Return who owns a folder; nothing for root's, and for what is no folder here."""
    try:
        found = Path(path).stat()
    except (OSError, ValueError):
        return ""
    return f"{found.st_uid}:{found.st_gid}" if found.st_uid else ""


def unreadable(user: str, base_path: str) -> Path | None:
    """Return the first file or folder below a base path that a user of the container cannot read.

    Args:
        user: `uid:gid`; of a user known by name in the image alone nothing can be said.
        base_path: a folder of this machine.
    """
    numbers = _NUMBERS.fullmatch(user)
    if numbers is None:
        return None
    uid, gid = int(numbers[1]), int(numbers[2] or 0)
    for path in itertools.islice(_below(Path(base_path)), _MOST_FILES):
        try:
            if not _may_read(path.stat(), uid, gid):
                return path
        except FileNotFoundError:  # a link to nowhere, or a version that was just retired
            continue
        except OSError:
            return path
    return None


def _below(base_path: Path) -> Iterator[Path]:
    """Yield a base path and what servers read below it, folders before what they hold."""
    yield base_path
    for place, folders, files in os.walk(base_path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in (*folders, *sorted(files)):
            yield Path(place, name)


def _may_read(found: os.stat_result, uid: int, gid: int) -> bool:
    """Say what the permission bits say; root has no capabilities in the container either."""
    needed = stat.S_IROTH | (stat.S_IXOTH if stat.S_ISDIR(found.st_mode) else 0)
    shift = 6 if found.st_uid == uid else 3 if found.st_gid == gid else 0
    return found.st_mode & needed << shift == needed << shift


def hand_over(folder: Path, user: str) -> None:
    """Let the container's user read a folder of rendered files, and as few others as possible.

    The folder lies in one that no other user of this machine can enter.
    """
    numbers = _NUMBERS.fullmatch(user)
    uid = int(numbers[1]) if numbers else -1
    if uid == os.geteuid():
        return
    for path in (*folder.iterdir(), folder):
        if os.geteuid() == 0 and numbers:
            os.chown(path, uid, int(numbers[2] or 0))
        else:
            path.chmod(0o755 if path is folder else 0o644)
