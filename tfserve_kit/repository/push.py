"""Pushing a model version: it is either fully there or not there.

::

    source ──▶ gate ──▶ hidden folder of the base path ──▶ manifest ──▶ disk ──▶ one rename ──▶ 7/
"""

import contextlib
import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tfserve_kit.errors import Problem, PushRefused
from tfserve_kit.progress import SILENT, Progress
from tfserve_kit.repository import gate as gates
from tfserve_kit.repository.gate import Gate
from tfserve_kit.repository.manifest import MANIFEST_PATH, Files, Manifest
from tfserve_kit.repository.sources import Source
from tfserve_kit.repository.staging import (
    VersionChoice,
    choose_version,
    publish,
    staging_folder,
    sweep,
    sync,
    taken_numbers,
)
from tfserve_kit.repository.versions import scan

Approve = Callable[[Path], None]
"""Looks at a staged version before it becomes visible; raises to refuse it."""


@dataclass(frozen=True, slots=True)
class Pushed:
    """What a push made.

    Attributes:
        version: its number.
        path: its directory.
        size_bytes: length of its files together.
        remarks: what the gate found worth telling.
    """

    version: int
    path: Path
    size_bytes: int
    remarks: tuple[Problem, ...] = ()


def push(
    source: Source | Path | str,
    base_path: Path,
    *,
    version: VersionChoice = "next",
    gate: Gate | None = None,
    approve: Approve | None = None,
    progress: Progress = SILENT,
) -> Pushed:
    """Add a model version to a base path, atomically.

    Args:
        source: where the SavedModel is: a directory, an archive, a URL; see `Source`.
        base_path: the folder of the model's versions; made where it is missing.
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
    with _refusing(base_path), _made(base_path):
        choose_version(
            taken_numbers(base_path), version, base_path
        )  # rather now than after copying
        sweep(base_path)
        with staging_folder(base_path) as folder:
            fetched = source.fetch(folder, tag=gate.tag, progress=progress)
            remarks = _pass(fetched.root, gate, base_path, progress)
            if approve is not None:
                approve(fetched.root)
            size_bytes = _finish(fetched.root, fetched.files, source, progress)
            number = publish(fetched.root, base_path, version)
    return Pushed(number, base_path / str(number), size_bytes, remarks)


def _pass(candidate: Path, gate: Gate, base_path: Path, progress: Progress) -> tuple[Problem, ...]:
    """Let a staged version through the gate; return what it remarks."""
    progress.step("checking the copy")
    older = [version for version in scan(base_path) if version.path.is_dir()]
    verdict = gates.check(candidate, gate, serving=older[-1].path if older else None)
    for remark in verdict.remarks:
        progress.note(f"Note: {remark}")
    if verdict.refusals:
        lines = "".join(f"\n  - {problem}" for problem in verdict.refusals)
        raise PushRefused(f"the model is refused:{lines}")
    return verdict.remarks


def _finish(root: Path, files: Files, source: Source, progress: Progress) -> int:
    """Write the manifest and make all of it durable; return the bytes of the model."""
    _require_as_pushed(root, files)
    manifest = Manifest.of(files, source.described())
    manifest.write(root)
    root.chmod(0o755)  # the staging folder is private; the server may be another user
    progress.step("writing to disk")
    sync(root)
    return manifest.size_bytes


def _require_as_pushed(root: Path, files: Files) -> None:
    """Refuse a copy of a pushed version that is not as it was pushed."""
    try:
        before = Manifest.read(root)
    except ValueError as error:
        raise PushRefused(f"{MANIFEST_PATH} {error}", remedy="remove it") from error
    if before is None:
        return
    differ = sorted(
        name
        for name in (files.keys() | before.files.keys()) - {MANIFEST_PATH.as_posix()}
        if files.get(name) != before.files.get(name)
    )
    if differ:
        raise PushRefused(
            f"{', '.join(differ)} differ from the manifest that the model was pushed with before",
            remedy=f"push an undamaged copy; if the change was meant, remove {MANIFEST_PATH}",
        )


@contextlib.contextmanager
def _made(base_path: Path) -> Iterator[None]:
    """Make a base path that is missing, and remove it again where nothing comes of it."""
    missing = [path for path in (base_path, *base_path.parents) if not path.exists()]
    if not missing and not base_path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "it is no folder", str(base_path))
    try:
        if missing:
            base_path.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for path in missing:
            with contextlib.suppress(OSError):  # never made, or somebody uses it by now
                path.rmdir()
        raise


_ACCESS = "push as a user who may read the model and write to the base path"
_RACE = "another push took this version at the same moment; push another one"
_FILE_SYSTEM_ADVICE = {
    errno.ENOSPC: "free some space, or push to another disk",
    errno.EDQUOT: "free some of your quota, or push to another disk",
    errno.EROFS: "push to a folder on a writable file system",
    errno.EACCES: _ACCESS,
    errno.EPERM: _ACCESS,
    errno.ENOTEMPTY: _RACE,
    errno.EEXIST: _RACE,
    errno.ENOTDIR: "give a folder as base path",
    errno.EMFILE: "allow more open files (ulimit -n)",
    errno.EIO: "the disk is failing; look at the system's log (dmesg)",
    errno.EXDEV: "push to a plain folder; this file system cannot rename directories",
}


@contextlib.contextmanager
def _refusing(base_path: Path) -> Iterator[None]:
    """Translate what the file system says."""
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise PushRefused(
            f"cannot push to {base_path}: {error.strerror or error}{where}",
            remedy=_FILE_SYSTEM_ADVICE.get(error.errno or 0, "look at the file system"),
        ) from error
