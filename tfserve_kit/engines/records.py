"""What is remembered of servers; imports nothing heavy, so that `tfkit predict` starts quickly.

::

    <state>/servers/<name>/server.json   deployment.json   config/*.txt
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tfserve_kit.engines.base import Endpoints, Plan
from tfserve_kit.errors import ServerFailed

CONFIG, DEPLOYMENT = "config", "deployment.json"
_RECORD = "server.json"


def state_folder() -> Path:
    """Return where servers are kept: $TFKIT_STATE_DIR, or the user's state folder."""
    if folder := os.environ.get("TFKIT_STATE_DIR"):
        return Path(folder).absolute()
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "tfkit"


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

    @classmethod
    def read(cls, folder: Path) -> "Record | None":
        """Read a server's folder, None where it holds no whole record."""
        try:
            values: dict[str, Any] = json.loads((folder / _RECORD).read_text("utf-8"))
            endpoints = Endpoints(**values.pop("endpoints"))
            return cls(**values | {"endpoints": endpoints, "argv": tuple(values["argv"])})
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, folder: Path) -> None:
        """Write the record in one step: it is there in full or not at all."""
        draft = folder / f".{_RECORD}"
        draft.write_text(json.dumps(asdict(self), indent=1), "utf-8")
        draft.rename(folder / _RECORD)


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
        ServerFailed: the folder cannot be written, for instance because its disk is full.
    """
    servers = folder / "servers"
    try:
        servers.mkdir(parents=True, exist_ok=True)
        with (servers / f".{server_name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise ServerFailed(
            f"cannot keep server {server_name!r} in {servers}: {error.strerror or error}",
            remedy="make room there, or set TFKIT_STATE_DIR to another folder",
        ) from error


def write_files(plan: Plan, home: Path) -> None:
    """Write a server's rendered files and what they were made of into its folder."""
    (home / CONFIG).mkdir(exist_ok=True)
    for path, text in plan.files.items():
        Path(path).write_text(text, "utf-8")
    (home / DEPLOYMENT).write_text(plan.deployment, "utf-8")
