"""What a push does to the file system: copy a tree, bring it to the disk, translate its errors.

A tree is copied the fastest way the system offers, with each checksum taken in the same pass. Large
files are copied at once with others: shared with the source where the file system can (reflink),
else by the kernel (copy_file_range), while another thread takes the checksum. Paths are strings
there: with thousands of files, Path objects take longer than the copying.
"""

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tfserve_kit.errors import PushRefused
from tfserve_kit.progress import Progress
from tfserve_kit.repository.manifest import File

# Up to here one read and one write are the quickest way to copy a file.
_SMALL_BYTES = 1 << 20
_CHUNK_BYTES = 8 << 20
_WORKERS = 4
# Beyond it a link leads back to where it lies.
_MAX_DEPTH = 40
# ioctl(FICLONE) of linux/fs.h: both files share their blocks until one changes.
_FICLONE = 0x40049409
# What the kernel says where it cannot copy between two files itself.
_NOT_HERE = {errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.ENOTTY, errno.EPERM}


@dataclass
class Count:
    """Counts bytes from several threads, for a progress that is told from one at a time."""

    progress: Progress
    total: int
    done: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, size_bytes: int) -> None:
        """Count bytes that are ready."""
        with self.lock:
            self.done += size_bytes
            self.progress.advance(self.done, self.total)


def copy_tree(source: Path, target: Path, progress: Progress) -> dict[str, File]:
    """Copy all that a folder holds; links are followed, so that the copy depends on nothing else.

    Args:
        source: the folder.
        target: an empty folder.
        progress: told the bytes copied.

    Returns:
        Size and checksum of every file by its path within the folder.

    Raises:
        PushRefused: there is no room for it, a file changed while it was copied, or is no file.
        OSError: as the system says.
    """
    folders, files = _contents(source)
    size_bytes = sum(found.st_size for found in files.values())
    large = [name for name, found in files.items() if found.st_size > _SMALL_BYTES]
    try:
        require_room(target, size_bytes)
    except PushRefused:
        if not large or not _shares_blocks(f"{source}/{large[0]}", target):
            raise
    count = Count(progress, size_bytes)
    for name in folders:
        (target / name).mkdir()

    def copied(name: str) -> File:
        file = _copy(f"{source}/{name}", f"{target}/{name}", files[name])
        count.add(file.size_bytes)
        return file

    small = files.keys() - set(large)
    with ThreadPoolExecutor(_WORKERS) as pool:
        try:
            jobs = {name: pool.submit(copied, name) for name in large}
            done = {name: copied(name) for name in sorted(small)}
            return done | {name: job.result() for name, job in jobs.items()}
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def require_room(folder: Path, size_bytes: int) -> None:
    """Refuse what the disk of a folder has no room for, rather than fill it first.

    Raises:
        PushRefused: fewer bytes are free.
    """
    free_bytes = shutil.disk_usage(folder).free
    if size_bytes > free_bytes:
        raise PushRefused(
            f"No space left: the model takes {size_bytes:,} bytes, {free_bytes:,} are free",
            remedy=_ADVICE[errno.ENOSPC],
        )


def _shares_blocks(source: str, folder: Path) -> bool:
    """Say whether a copy in a folder takes no room of its own, since it shares the source's."""
    reader = os.open(source, os.O_RDONLY)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            return _cloned(reader, file.fileno())
    finally:
        os.close(reader)


def checksums(directory: Path, names: Iterable[str] | None = None) -> dict[str, File]:
    """Return size and checksum of files by their paths within a folder: of some, or of all.

    Raises:
        OSError: as the system says.
    """
    found = {}
    for name in _contents(directory)[1] if names is None else names:
        with (directory / name).open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            found[name] = File(os.fstat(stream.fileno()).st_size, digest)
    return found


def _contents(source: Path) -> tuple[list[str], Mapping[str, os.stat_result]]:
    """Return the relative paths of all folders within a tree, outer first, and of all files."""
    folders: list[str] = [""]
    files: dict[str, os.stat_result] = {}
    for place in folders:  # which grows meanwhile
        if place.count("/") > _MAX_DEPTH:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), f"{source}/{place}")
        with os.scandir(f"{source}/{place}") as entries:
            for entry in entries:
                if entry.is_dir():
                    folders.append(f"{place}{entry.name}/")
                else:
                    files[place + entry.name] = entry.stat()
    return folders[1:], files


def _copy(source: str, target: str, found: os.stat_result) -> File:
    """Copy one file, of which `found` is known."""
    if not stat.S_ISREG(found.st_mode):
        raise PushRefused(f"{source} is neither a file nor a folder", remedy="remove it")
    reader = os.open(source, os.O_RDONLY)
    try:
        writer = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            small = found.st_size <= _SMALL_BYTES
            file = (_read_and_write if small else _in_kernel)(reader, writer, found.st_size)
        finally:
            os.close(writer)
        now = os.fstat(reader)
    finally:
        os.close(reader)
    if (file.size_bytes, now.st_size, now.st_mtime_ns) != (
        found.st_size,
        found.st_size,
        found.st_mtime_ns,
    ):
        raise PushRefused(
            f"{source} changed while it was copied",
            remedy="wait until the export has finished, then push again",
        )
    return file


def _read_and_write(reader: int, writer: int, size_bytes: int) -> File:
    """Copy the bytes that a file had; if it has more by now, its length says so."""
    data = os.read(reader, min(size_bytes, _CHUNK_BYTES))
    digest, done = hashlib.sha256(data, usedforsecurity=False), len(data)
    write_all(writer, data)
    while data and done < size_bytes:
        data = os.read(reader, min(size_bytes - done, _CHUNK_BYTES))
        digest.update(data)
        write_all(writer, data)
        done += len(data)
    return File(done, digest.hexdigest())


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write all bytes, however few of them the system takes at a time."""
    done = os.write(descriptor, data)
    while done < len(data):
        done += os.write(descriptor, memoryview(data)[done:])


def _in_kernel(reader: int, writer: int, size_bytes: int) -> File:
    """Copy a file without its bytes passing through here, if the kernel can."""
    with ThreadPoolExecutor(1) as pool, os.fdopen(os.dup(reader), "rb") as stream:
        digest = pool.submit(hashlib.file_digest, stream, "sha256")
        if _cloned(reader, writer) or _copied_in_ranges(reader, writer, size_bytes):
            os.fsync(writer)  # the disk writes while the checksum is taken
            return File(size_bytes, digest.result().hexdigest())
        digest.result()
    os.lseek(reader, 0, os.SEEK_SET)
    return _read_and_write(reader, writer, size_bytes)


def _cloned(reader: int, writer: int) -> bool:
    try:
        fcntl.ioctl(writer, _FICLONE, reader)
    except OSError as error:
        if error.errno in _NOT_HERE:
            return False
        raise
    return True


def _copied_in_ranges(reader: int, writer: int, size_bytes: int) -> bool:
    done = 0
    while done < size_bytes:
        try:
            copied = os.copy_file_range(reader, writer, size_bytes - done, done, done)
        except OSError as error:
            if error.errno in _NOT_HERE and not done:
                return False
            raise
        if not copied:  # the file became shorter, or the file system cannot do this
            return False
        done += copied
    return True


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


_ACCESS = "run as a user who can read the model and write to the base path"
_TAKEN = "another push took this version at the same moment; push another one"
_ADVICE = {
    errno.ENOSPC: "free some space, or use another disk",
    errno.EDQUOT: "free some of your quota, or use another disk",
    errno.EROFS: "use a folder on a writable file system",
    errno.EACCES: _ACCESS,
    errno.EPERM: _ACCESS,
    errno.ENOTEMPTY: _TAKEN,
    errno.EEXIST: _TAKEN,
    errno.ENOENT: "give the folder that holds the version folders",
    errno.ENOTDIR: "give a folder as base path",
    errno.EMFILE: "allow more open files (ulimit -n)",
    errno.EIO: "the disk is failing; look at the system's log (dmesg)",
    errno.EXDEV: "use a plain folder; this file system cannot rename directories",
}


@contextlib.contextmanager
def translate_os_errors(what: str, base_path: Path | str) -> Iterator[None]:
    """Translate errors of the file system.

    Args:
        what: the operation, as in "cannot push to".
        base_path: where.

    Raises:
        PushRefused: instead of an OSError, or of a MemoryError.
    """
    try:
        yield
    except MemoryError as error:
        raise PushRefused(
            f"cannot {what} {base_path}: the model takes more memory than is free",
            remedy="free some, or use a machine that has more",
        ) from error
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise PushRefused(
            f"cannot {what} {base_path}: {error.strerror or error}{where}",
            remedy=_ADVICE.get(error.errno or 0, "look at the file system"),
        ) from error
