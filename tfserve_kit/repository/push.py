"""Pushing a model version: it is either fully there or not there.

::

    source ──▶ gate ──▶ hidden folder of the base path ──▶ manifest ──▶ disk ──▶ one rename ──▶ 7/
"""

import contextlib
import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tfserve_kit import redaction
from tfserve_kit.errors import Problem
from tfserve_kit.progress import SILENT, Progress
from tfserve_kit.repository import places, remote
from tfserve_kit.repository.durable import sync, sync_path
from tfserve_kit.repository.gate import Gate
from tfserve_kit.repository.preparing import Approve, prepare
from tfserve_kit.repository.refusals import refusing
from tfserve_kit.repository.sources import Source
from tfserve_kit.repository.staging import (
    VersionChoice,
    choose_version,
    held,
    publish,
    staging_folder,
    sweep,
    taken_numbers,
)
from tfserve_kit.repository.versions import scan

__all__ = ["Approve", "Pushed", "push"]


@dataclass(frozen=True, slots=True)
class Pushed:
    """What a push made.

    Attributes:
        version: its number.
        path: its directory, or its URL in an object store.
        size_bytes: length of its files together.
        remarks: what the gate found worth telling.
        atomic: whether it became visible all at once. Where not (in object stores), a server that
            loads the latest version may have seen it half; `remote.pin_line` says what helps.
    """

    version: int
    path: Path | str
    size_bytes: int
    remarks: tuple[Problem, ...] = ()
    atomic: bool = True

    @property
    def place(self) -> str:
        """The absolute path of its directory, or its URL."""
        return str(self.path.absolute()) if isinstance(self.path, Path) else self.path


def push(
    source: Source | Path | str,
    base_path: Path | str,
    *,
    version: VersionChoice = "next",
    gate: Gate | None = None,
    approve: Approve | None = None,
    progress: Progress = SILENT,
) -> Pushed:
    """Add a model version to a base path, atomically.

    Args:
        source: where the SavedModel is: a directory, an archive, a URL; see `Source`.
        base_path: the folder of the model's versions, made where it is missing, or its URL in an
            object store (see `remote`), as text.
        version: a number >= 1, `next` (highest + 1) or `epoch` (seconds since 1970).
        gate: what the version must satisfy.
        approve: looks at the staged copy last of all.
        progress: told the steps, the bytes copied, and what the gate remarks.

    Returns:
        The new version.

    Raises:
        PushRefused: the source is no complete SavedModel, the gate refuses it, the version is no
            positive int64 or exists, or the file system refuses. Nothing visible has changed then.
    """
    source = source if isinstance(source, Source) else Source(str(source))
    gate = gate or Gate()
    if isinstance(base_path, str) and places.scheme(base_path):
        with refusing("push to", redaction.url(base_path)):
            sent = remote.push(source, base_path, version, gate, approve=approve, progress=progress)
        return Pushed(sent.version, sent.url, sent.size_bytes, sent.remarks, atomic=False)
    return _push(source, places.local(str(base_path)), version, gate, approve, progress)


def _push(
    source: Source,
    base_path: Path,
    version: VersionChoice,
    gate: Gate,
    approve: Approve | None,
    progress: Progress,
) -> Pushed:
    def serving() -> Path | None:
        older = [each.path for each in scan(base_path) if each.path.is_dir()]
        return older[-1] if older else None

    with refusing("push to", base_path), _made(base_path), held(base_path) as base:
        taken = taken_numbers(base_path)
        choose_version(taken, version, base_path)  # rather now than after copying
        sweep(base_path)
        with staging_folder(base) as folder:
            ready = prepare(
                source, folder, gate, serving=serving, approve=approve, progress=progress
            )
            ready.root.chmod(0o755)  # the staging folder is private; servers may be other users
            progress.step("writing to disk")
            sync(ready.root)
            number = publish(ready.root, base, version)
    return Pushed(number, base_path / str(number), ready.manifest.size_bytes, ready.remarks)


@contextlib.contextmanager
def _made(base_path: Path) -> Iterator[None]:
    """Make a base path that is missing, and remove it again where nothing comes of it."""
    missing = [path for path in (base_path, *base_path.parents) if not path.exists()]
    made: dict[Path, os.stat_result] = {}
    if not missing and not base_path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "it is no folder", str(base_path))
    try:
        if missing:
            base_path.mkdir(parents=True, exist_ok=True)
            made = {path: path.stat() for path in missing}
            for path in missing:
                sync_path(path.parent)
        yield
    except BaseException:
        for path in missing:
            with contextlib.suppress(OSError):  # never made, or somebody uses it by now
                if path not in made or os.path.samestat(path.stat(), made[path]):
                    path.rmdir()
        raise
