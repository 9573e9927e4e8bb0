"""Making a version ready in a folder of our own, whatever it is to be pushed to.

::

    source ──▶ folder ──▶ gate ──▶ approval ──▶ manifest
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tfserve_kit.errors import Problem, PushRefused, listed
from tfserve_kit.progress import Progress
from tfserve_kit.repository import gate as gates
from tfserve_kit.repository.gate import Gate
from tfserve_kit.repository.manifest import MANIFEST_PATH, Files, Manifest
from tfserve_kit.repository.sources import Source

Approve = Callable[[Path], Sequence[Problem] | None]
"""Looks at a staged version before it becomes visible: returns remarks, or raises to refuse it."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A version that may be published.

    Attributes:
        root: its directory.
        manifest: its files; the manifest itself lies in the directory already.
        remarks: what the gate and the approval found worth telling.
    """

    root: Path
    manifest: Manifest
    remarks: tuple[Problem, ...]


def prepare(
    source: Source,
    folder: Path,
    gate: Gate,
    *,
    serving: Callable[[], Path | None],
    approve: Approve | None,
    progress: Progress,
) -> Prepared:
    """Bring a model into a folder and see whether it may be published.

    Args:
        source: where the SavedModel is.
        folder: an empty folder, which may be left with other things as well.
        gate: what the version must satisfy.
        serving: gives the directory of the version in service, None where there is none.
        approve: looks at the staged copy last of all.
        progress: told the steps, the bytes copied, and what the gate remarks.

    Raises:
        PushRefused: the source is no complete SavedModel, or the gate refuses it.
        OSError: the file system refuses.
    """
    fetched = source.fetch(folder, tag=gate.tag, progress=progress)
    _require_room(fetched.files)
    progress.step("checking the copy")
    remarks = _pass(fetched.root, gate, serving(), progress)
    if approve is not None:
        remarks += _told(approve(fetched.root) or (), progress)
    _require_as_pushed(fetched.root, fetched.files)
    manifest = Manifest.of(fetched.files, source.described())
    manifest.write(fetched.root)
    return Prepared(fetched.root, manifest, remarks)


def _pass(
    candidate: Path, gate: Gate, serving: Path | None, progress: Progress
) -> tuple[Problem, ...]:
    """Let a staged version through the gate; return what it remarks."""
    verdict = gates.check(candidate, gate, serving=serving)
    remarks = _told(verdict.remarks, progress)
    if verdict.refusals:
        lines = listed(verdict.refusals)
        raise PushRefused(f"the model is refused:{lines}")
    return remarks


def _told(remarks: Sequence[Problem], progress: Progress) -> tuple[Problem, ...]:
    for remark in remarks:
        progress.note(f"Note: {remark}")
    return tuple(remarks)


def _require_room(files: Files) -> None:
    """Refuse a model that has something else where the manifest goes."""
    extra = MANIFEST_PATH.parent.as_posix()
    if extra in files:
        raise PushRefused(
            f"{extra} is a file in the model, and must be a folder", remedy=f"rename {extra}"
        )


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
            f"{', '.join(differ[:10])} differ from the manifest that the model was pushed with "
            "before",
            remedy=f"push an undamaged copy; if the change was meant, remove {MANIFEST_PATH}",
        )
