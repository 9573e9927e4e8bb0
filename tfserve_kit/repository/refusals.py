"""What the file system says, in the words of a push."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from tfserve_kit.errors import PushRefused

_ACCESS = "do it as a user who may read the model and write to the base path"
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
def refusing(what: str, base_path: Path | str) -> Iterator[None]:
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
            remedy="free some, or do it on a machine that has more",
        ) from error
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise PushRefused(
            f"cannot {what} {base_path}: {error.strerror or error}{where}",
            remedy=_ADVICE.get(error.errno or 0, "look at the file system"),
        ) from error
