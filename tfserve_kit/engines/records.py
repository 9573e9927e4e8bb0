"""The folders of servers; imports nothing heavy, so that `tfkit predict` starts quickly.

::

    <state>/servers/<name>/deployment.json   config/*.txt   server.json of a process
                                                            container: its id, of a container
                                                            service: its id, of a swarm's service
                                                            cluster: where pods run

Only a process has a record: what runs in Docker is known to Docker. Deployments may hold secrets,
so folders have the mode 0700 and files 0600.
"""

import contextlib
import errno
import fcntl
import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

from tfserve_kit import processes
from tfserve_kit.engines.base import Endpoints, Plan
from tfserve_kit.errors import ServerFailed

CONFIG, DEPLOYMENT = "config", "deployment.json"
_RECORD, CONTAINER, SERVICE = "server.json", "container", "service"
CLUSTER = "cluster"
_PRIVATE_FOLDER, _PRIVATE_FILE = 0o700, 0o600


def state_folder() -> Path:
    """Return where servers are kept: $TFKIT_STATE_DIR, or the user's state folder."""
    if folder := os.environ.get("TFKIT_STATE_DIR"):
        return Path(folder).absolute()
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "tfkit"


def home_of(server_name: str, folder: Path | None = None) -> Path:
    """Return the folder of a server, in today's state folder or another one."""
    return (folder or state_folder()) / "servers" / server_name


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
        raise NotADirectoryError(errno.ENOTDIR, "it is not a folder", str(folder))
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
    """What is remembered of a server that is a process; implements `RunningServer`.

    Attributes:
        started_s: the process's start time in Unix seconds.
    """

    server_name: str
    engine: str
    pid: int
    started_s: float
    argv: tuple[str, ...]
    endpoints: Endpoints

    @property
    def home(self) -> Path:
        """Its folder, among those of today's state folder."""
        return home_of(self.server_name)

    @property
    def models(self) -> Mapping[str, str]:
        """Base path by model name, as last deployed."""
        return deployed_models(self.home)

    def is_running(self) -> bool:
        """Say whether the very process that was started still runs."""
        return processes.is_alive(self.pid, self.started_s)

    @classmethod
    def read(cls, folder: Path) -> "Record | None":
        """Read a server's folder, None where it holds no whole record of this user."""
        try:
            with (folder / _RECORD).open(encoding="utf-8") as stream:
                if os.fstat(stream.fileno()).st_uid != os.geteuid():
                    return None  # whoever wrote it would decide what is stopped
                values: dict[str, Any] = json.load(stream)
            known = {each.name: values[each.name] for each in fields(cls)}
            endpoints = Endpoints(**values["endpoints"])
            record = cls(**known | {"endpoints": endpoints, "argv": tuple(values["argv"])})
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        return record if record.pid else None

    def write(self, folder: Path) -> None:
        """Write the record in one step: it is there in full or not at all."""
        write_private(folder / _RECORD, json.dumps(asdict(self), indent=1))


def homes(folder: Path | None = None) -> list[Path]:
    """Return the folders of all servers, dead or alive, by name."""
    return sorted(((folder or state_folder()) / "servers").glob("*/"))


def records(folder: Path | None = None) -> list[Record]:
    """Return the records of all processes, dead or alive, by name; looks at no process."""
    found = [Record.read(each) for each in homes(folder)]
    return [record for record in found if record is not None]


def owner(home: Path) -> str:
    """Return the name of the engine that a server's folder belongs to; empty if it is none's."""
    if (record := Record.read(home)) is not None:
        return record.engine
    signs = ((SERVICE, "swarm"), (CLUSTER, "kubernetes"), (DEPLOYMENT, "docker"))
    return next((engine for file, engine in signs if (home / file).is_file()), "")


def deployed(home: Path, *keys: str) -> Any:
    """Return a part of what a server was last deployed with; empty if it is not known.

    Args:
        home: its folder.
        keys: what leads to the part, from the top.
    """
    try:
        found: Any = json.loads((home / DEPLOYMENT).read_text("utf-8"))
        for key in keys:
            found = found[key]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return found


def deployed_models(home: Path) -> Mapping[str, str]:
    """Return what a server was last deployed with, base path by model name; empty if unknown."""
    try:
        return {name: model["base_path"] for name, model in deployed(home, "models").items()}
    except (KeyError, TypeError, AttributeError):
        return {}


def deployed_labels(home: Path, model: str) -> Mapping[str, int]:
    """Return the labels that a server's model was last deployed with, version by label."""
    try:
        labels = deployed(home, "models", model, "labels")
        return {str(label): int(version) for label, version in labels.items()}
    except (ValueError, TypeError, AttributeError):
        return {}


def container_id(home: Path) -> str:
    """Return which container a server's folder belongs to; empty if it is not known."""
    try:
        return (home / CONTAINER).read_text("ascii")
    except (OSError, ValueError):
        return ""


class Home:
    """A server's folder on this machine, as its handle shows it; a base of handles.

    Args:
        home: the folder, which for a swarm or a cluster has a copy of what is kept there.
    """

    def __init__(self, home: Path) -> None:
        self._home = home

    @property
    def server_name(self) -> str:
        """Its name."""
        return self._home.name

    @property
    def home(self) -> Path:
        """Its folder; see `RunningServer.home`."""
        return self._home

    @property
    def models(self) -> Mapping[str, str]:
        """Base path by model name, as last deployed."""
        return deployed_models(self._home)

    def keep(self, files: Mapping[str, str]) -> None:
        """Write files into its folder; see `ServerHandle.keep`."""
        for name, text in files.items():
            file = self._home / name
            write_private(file, text, like=file if file.exists() else None)

    def sees(self, base_path: str) -> bool:
        """Say yes: it sees the whole machine, or a change gives it what is lacking."""
        del base_path
        return True


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
            remedy="free some space, or set TFKIT_STATE_DIR to another folder of yours",
        ) from error


def keep_copy(home: Path, engine: str, files: Mapping[str, str]) -> None:
    """Write into a server's folder what is kept elsewhere, unless another server has the folder.

    Args:
        home: the folder, which need not be there.
        engine: name of the engine.
        files: text by name.
    """
    if home.exists() and owner(home) != engine:
        return
    for folder in (home.parent.parent, home.parent, home):
        private_folder(folder)
    for name, text in files.items():
        if not (home / name).is_file() or (home / name).read_text("utf-8") != text:
            write_private(home / name, text)


def write_files(plan: Plan, home: Path) -> None:
    """Write a server's rendered files and what they were made of into its folder."""
    private_folder(home / CONFIG)
    for path, text in plan.files.items():
        write_private(Path(path), text)
    write_private(home / DEPLOYMENT, plan.deployment)
