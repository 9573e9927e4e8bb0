"""What the file system has taken is not yet on the disk: here it is brought there."""

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

# From here on one sync of the file system is quicker than one of each file.
_MANY_FILES = 64


def rename(before: Path, after: Path) -> None:
    """Rename within a folder or file system durably, or not at all."""
    before.rename(after)
    try:
        sync_path(after.parent)
    except BaseException:
        after.rename(before)
        raise


def rename_in(folder: int, before: str, after: str, *, check: Callable[[], None]) -> None:
    """Rename within an open folder durably, or not at all, wherever the folder is called what.

    Args:
        folder: a descriptor of it.
        before: a path within it.
        after: a name in it.
        check: raises where it must not be so, once it is.
    """
    os.rename(before, after, src_dir_fd=folder, dst_dir_fd=folder)
    try:
        os.fsync(folder)
        check()
    except BaseException:
        os.rename(after, before, src_dir_fd=folder, dst_dir_fd=folder)
        raise


def sync(directory: Path) -> None:
    """Make a tree durable.

    A few files are synced one by one, the folders after what they hold. Many are synced together
    with all else on their file system: each fsync would be a commit of its own.
    """
    places = list(os.walk(directory, topdown=False))
    if sum(len(names) for _, _, names in places) > _MANY_FILES and _sync_file_system(directory):
        return
    for place, _, names in places:
        for name in names:
            sync_path(Path(place) / name)
        sync_path(Path(place))


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


def sync_path(path: Path) -> None:
    """Make a file's content durable, or a folder's entries."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
