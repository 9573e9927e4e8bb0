"""What is remembered of servers; imports nothing heavy, so that `tfkit predict` starts quickly.

::

    <state>/servers/<name>/server.json   deployment.json   config/*.txt

Deployments may hold secrets, so folders have the mode 0700 and files 0600.
"""

import contextlib
import errno
import fcntl
import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tfserve_kit.engines.base import Endpoints, Plan
from tfserve_kit.errors import ServerFailed

CONFIG, DEPLOYMENT = "config", "deployment.json"
_RECORD = "server.json"
_PRIVATE_FOLDER, _PRIVATE_FILE = 0o700, 0o600


def state_folder() -> Path:
    """Return where servers are kept: $TFKIT_STATE_DIR, or the user's state folder."""
    if folder := os.environ.get("TFKIT_STATE_DIR"):
        return Path(folder).absolute()
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "tfkit"


def private_folder(folder: Path) -> None:
    """Make a folder that nobody but this user can look into, whatever the umask.

    One of this user's that others may look into is closed to them.

    Raises:
        OSError: it cannot be made; or it is another user's, or behind another user's link, who
            could have put anything there.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=_PRIVATE_FOLDER)
    for found in (folder.lstat(), folder.stat()):
        if found.st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, f"it belongs to user {found.st_uid}", str(folder))
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, "it is no folder", str(folder))
    if stat.S_IMODE(found.st_mode) != _PRIVATE_FOLDER:
        folder.chmod(_PRIVATE_FOLDER)


def write_private(file: Path, text: str, *, like: Path | None = None) -> None:
    """Write a file that nobody but this user can read, in one step, whatever was there before.

    Args:
        file: where.
        text: its content.
        like: a file whose owner and mode it gets instead.
    """
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    with os.fdopen(_opened(draft), "w", encoding="utf-8") as stream:
        stream.write(text)
        if like is not None:
            found = like.stat()
            os.fchown(stream.fileno(), found.st_uid, found.st_gid)
            os.fchmod(stream.fileno(), stat.S_IMODE(found.st_mode))
    draft.rename(file)


def open_private(file: Path) -> BinaryIO:
    """Open a new file for writing that nobody but this user can read."""
    return os.fdopen(_opened(file), "wb")


def _opened(file: Path, mode: int = os.O_EXCL) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | mode
    descriptor = os.open(file, flags, _PRIVATE_FILE)
    os.fchmod(descriptor, _PRIVATE_FILE)
    return descriptor


@dataclass(frozen=True, slots=True)
class Record:
    """What is remembered of a server.

    Attributes:
        pid: of a process; 0 for a container.
        started_s: the process's start time in Unix seconds.
        container_id: of a container; empty for a process.
    """

    server_name: str
    engine: str
    pid: int
    started_s: float
    argv: tuple[str, ...]
    endpoints: Endpoints
    models: Mapping[str, str]
    container_id: str = ""

    @property
    def home(self) -> Path:
        """Its folder, among those of today's state folder."""
        return state_folder() / "servers" / self.server_name

    @classmethod
    def read(cls, folder: Path) -> "Record | None":
        """Read a server's folder, None where it holds no whole record of this user."""
        try:
            with (folder / _RECORD).open(encoding="utf-8") as stream:
                if os.fstat(stream.fileno()).st_uid != os.geteuid():
                    return None  # whoever wrote it would decide what is stopped
                values: dict[str, Any] = json.load(stream)
            endpoints = Endpoints(**values.pop("endpoints"))
            return cls(**values | {"endpoints": endpoints, "argv": tuple(values["argv"])})
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def write(self, folder: Path) -> None:
        """Write the record in one step: it is there in full or not at all."""
        write_private(folder / _RECORD, json.dumps(asdict(self), indent=1))


def records(folder: Path | None = None) -> list[Record]:
    """Return the records of all servers, dead or alive, by name; cheap, looks at no process."""
    servers = (folder or state_folder()) / "servers"
    found = [Record.read(each) for each in sorted(servers.glob("*/"))]
    return [record for record in found if record is not None]


def sharing(base_path: Path | str) -> Iterator[tuple[Record, str]]:
    """Yield every recorded server with a model of this base path, and the model's name there."""
    here = resolved(base_path)
    for record in records():
        for name, path in record.models.items():
            if resolved(path) == here:
                yield record, name


def resolved(base_path: Path | str) -> str:
    """Return a base path as it can be compared: absolute without links, or a URL."""
    text = str(base_path)
    return text.rstrip("/") if "://" in text else str(Path(text).resolve())


@contextlib.contextmanager
def claimed(folder: Path, server_name: str) -> Iterator[None]:
    """Hold a name while starting, so that two starts at once cannot both have it.

    Raises:
        ServerFailed: the folder cannot be written, for instance because its disk is full; or it is
            another user's, or a link.
    """
    servers = folder / "servers"
    try:
        private_folder(folder)
        private_folder(servers)
        with os.fdopen(_opened(servers / f".{server_name}.lock", 0), "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise ServerFailed(
            f"cannot keep server {server_name!r} in {error.filename or servers}: "
            f"{error.strerror or error}",
            remedy="make room there, or set TFKIT_STATE_DIR to another folder of yours",
        ) from error


def write_files(plan: Plan, home: Path) -> None:
    """Write a server's rendered files and what they were made of into its folder."""
    private_folder(home / CONFIG)
    for path, text in plan.files.items():
        write_private(Path(path), text)
    write_private(home / DEPLOYMENT, plan.deployment)
