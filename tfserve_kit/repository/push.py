"""Pushing a model version: it is either fully there or not there.

::

    source ──▶ hidden folder of the base path ──▶ gate ──▶ approval ──▶ manifest
           ──▶ disk ──▶ one rename ──▶ 7/

For an object store the folder is a temporary one, and an upload takes the place of the rename. For
places behind shells it is sent from there to a hidden folder of each, before the first is renamed.
"""

import contextlib
import errno
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from tfserve_kit import safe_text
from tfserve_kit.errors import Problem, PushRefused, Severity, listed
from tfserve_kit.progress import SILENT, Progress
from tfserve_kit.repository import locate, object_store, shells
from tfserve_kit.repository.disk import checksums, sync, sync_path, translate_os_errors
from tfserve_kit.repository.inspection import Gate, check_gate
from tfserve_kit.repository.manifest import MANIFEST_PATH, Files, Manifest
from tfserve_kit.repository.object_store import Store
from tfserve_kit.repository.shells import Place
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
from tfserve_kit.repository.versions import RETIRED_PREFIX, list_versions, numbers_in

Approve = Callable[[Path], Sequence[Problem] | None]
"""Looks at a staged version before it becomes visible: returns remarks, or raises to refuse it."""


@dataclass(frozen=True, slots=True)
class Pushed:
    """What a push made.

    Attributes:
        version: its number.
        path: its directory, or its URL in an object store.
        size_bytes: length of its files together.
        remarks: what the gate found worth telling.
        atomic: whether it became visible all at once. Where not (in object stores), a server that
            loads the latest version may have seen it half; `object_store.pin_line` says what helps.
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


@dataclass(frozen=True, slots=True)
class Waves:
    """How a version becomes visible in several places.

    Attributes:
        size: in how many places at once.
        deliver: makes it visible in a place by calling what it is given, and raises where it does
            not serve there.
    """

    size: int = 1
    deliver: Callable[[Place, Callable[[], Pushed]], object] = lambda _, publish: publish()


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
            object store (see `object_store`), as text.
        version: a number >= 1, `next` (highest + 1) or `epoch` (seconds since 1970).
        gate: what the version must satisfy.
        approve: looks at the staged copy last of all.
        progress: told the steps, the bytes copied, and what the gate remarks.

    Returns:
        The new version.

    Raises:
        PushRefused: the source is not a complete SavedModel, the gate refuses it, the version is
            not a positive int64, or exists, or the file system refuses. Nothing visible has
            changed then.
    """
    source = source if isinstance(source, Source) else Source(str(source))
    pushing = _Push(source, version, gate or Gate(), approve, progress)
    if isinstance(base_path, str) and locate.scheme(base_path):
        with translate_os_errors("push to", safe_text.redacted_url(base_path)):
            return pushing.to_store(base_path)
    folder = locate.local(str(base_path))
    with translate_os_errors("push to", folder):
        return pushing.to_folder(folder)


def push_to_places(  # noqa: PLR0913 (as many as `push`, and the waves)
    source: Source | Path | str,
    places: Sequence[Place],
    waves: Waves | None = None,
    *,
    version: VersionChoice = "next",
    gate: Gate | None = None,
    approve: Approve | None = None,
    progress: Progress = SILENT,
) -> dict[Place, Pushed]:
    """Add a model version to several base paths that only shells reach: to all of them or none.

    It is copied to all of them before it becomes visible in the first.

    Args:
        source: as for `push`.
        places: the base paths; each may be missing.
        version: as for `push`; `next` is above what any of them holds.
        gate: as for `push`; compared with the version in service of each place.
        approve: looks at a copy here last of all.
        waves: how it becomes visible: one place after the other, unless said. What its `deliver`
            raises takes the version out of service everywhere, and is raised.
        progress: told the steps, the bytes copied, and what the gate remarks.

    Raises:
        PushRefused: as for `push`; or a place cannot be reached. Says what has changed.
        TfkitError: whatever `deliver` raises.
    """
    source = source if isinstance(source, Source) else Source(str(source))
    pushing = _Push(source, version, gate or Gate(), approve, progress)
    with translate_os_errors("push to", ", ".join(map(str, places))):
        return pushing.to_places(places, waves or Waves())


@dataclass(frozen=True, slots=True)
class _Push:
    """What is pushed, and on which conditions; see `push`."""

    source: Source
    version: VersionChoice
    gate: Gate
    approve: Approve | None
    progress: Progress

    def to_folder(self, base_path: Path) -> Pushed:
        """Stage a version in a hidden folder of the base path, then rename it."""

        def serving() -> Path | None:
            older = [each.path for each in list_versions(base_path) if each.path.is_dir()]
            return older[-1] if older else None

        with _made(base_path), held(base_path) as base:
            choose_version(taken_numbers(base_path), self.version, base_path)  # before copying
            sweep(base_path)
            with staging_folder(base) as folder:
                root, manifest, remarks = self._prepare(folder, serving)
                root.chmod(0o755)  # the staging folder is private; servers may be other users
                self.progress.step("writing to disk")
                sync(root)
                number = publish(root, base, self.version)
        return Pushed(number, base_path / str(number), manifest.size_bytes, remarks)

    def to_store(self, url: str) -> Pushed:
        """Stage a version in a temporary folder, then upload it."""
        store = Store(url)
        with tempfile.TemporaryDirectory(prefix="tfkit-push-") as folder:
            staging, older = Path(folder) / "new", Path(folder) / "older"
            staging.mkdir()
            with store.talking():
                there = store.files()
                taken = object_store.taken_in(there)
                choose_version(taken, self.version, store.shown)  # before copying
                object_store.sweep_claims(store, there)
            root, manifest, remarks = self._prepare(
                staging, lambda: object_store.download_serving(store, there, older)
            )
            with store.talking(), object_store.claimed(store, self.version, taken) as number:
                object_store.upload(store, number, root, manifest, self.progress)
        shown = f"{safe_text.redacted_url(url).rstrip('/')}/{number}"
        return Pushed(number, shown, manifest.size_bytes, remarks, atomic=False)

    def to_places(self, places: Sequence[Place], waves: Waves) -> dict[Place, Pushed]:
        """Stage a version in every place, then make it visible in one wave after the other."""
        self.progress.step("looking at every place")
        held = {place: place.names() for place in places}
        taken = numbers_in(chain.from_iterable(held.values()), RETIRED_PREFIX)
        number = choose_version(taken, self.version, ", ".join(map(str, places)))
        with tempfile.TemporaryDirectory(prefix="tfkit-push-") as made:
            folder = Path(made)
            (folder / "new").mkdir()
            for place, names in held.items():
                place.sweep(names)
            graphs = shells.serving_graphs(held, folder)
            root, manifest, remarks = self._prepare(folder / "new", lambda: next(graphs, None))
            for graph in graphs:  # the places need not serve the same
                _refuse(check_gate(root, self.gate, serving=graph))
            files = {**manifest.files, **checksums(root, [MANIFEST_PATH.as_posix()])}
            with shells.staged(places, root, files, self.progress) as staged:
                done = {
                    place: Pushed(
                        number, f"{place.base_path}/{number}", manifest.size_bytes, remarks
                    )
                    for place in places
                }

                def deliver(place: Place, publish: Callable[[], None]) -> None:
                    def pushing() -> Pushed:
                        publish()
                        return done[place]

                    waves.deliver(place, pushing)

                shells.publish(staged, number, waves.size, deliver, self.progress)
        return done

    def _prepare(
        self, folder: Path, serving: Callable[[], Path | None]
    ) -> tuple[Path, Manifest, tuple[Problem, ...]]:
        """Bring the model into a folder, and see whether it may be published.

        Args:
            folder: an empty folder, which may be left with other things as well.
            serving: gives the directory of the version in service, None where there is none.

        Returns:
            The version's directory, its manifest, which lies there already, and the remarks of the
            gate and the approval.
        """
        root, files = self.source.fetch(folder, tag=self.gate.tag, progress=self.progress)
        _require_room(files)
        self.progress.step("checking the copy")
        found = check_gate(root, self.gate, serving=serving())
        remarks = self._told([each for each in found if each.severity is Severity.WARNING])
        _refuse(found)
        if self.approve is not None:
            remarks += self._told(self.approve(root) or ())
        _require_as_pushed(root, files)
        manifest = Manifest.of(files, self.source.described())
        manifest.write(root)
        return root, manifest, remarks

    def _told(self, remarks: Sequence[Problem]) -> tuple[Problem, ...]:
        for remark in remarks:
            self.progress.note(f"Note: {remark}")
        return tuple(remarks)


def _refuse(found: Sequence[Problem]) -> None:
    if refusals := [each for each in found if each.severity is Severity.ERROR]:
        raise PushRefused(f"the model is refused:{listed(refusals)}")


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


@contextlib.contextmanager
def _made(base_path: Path) -> Iterator[None]:
    """Make a base path that is missing, and remove it again where nothing comes of it."""
    missing = [path for path in (base_path, *base_path.parents) if not path.exists()]
    made: dict[Path, os.stat_result] = {}
    if not missing and not base_path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "it is not a folder", str(base_path))
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
