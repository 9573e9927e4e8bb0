"""Where a model comes from, and how it gets into a staging folder."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from tfserve_kit import redaction, savedmodel
from tfserve_kit.errors import PushRefused, listed
from tfserve_kit.progress import SILENT, Progress
from tfserve_kit.repository import archives, keras_files, layout, places
from tfserve_kit.repository.copying import checksums, copy_tree
from tfserve_kit.repository.downloads import download
from tfserve_kit.repository.intake import Intake, Limits
from tfserve_kit.repository.manifest import Files
from tfserve_kit.repository.object_store import Store
from tfserve_kit.repository.surroundings import look_around

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Fetched:
    """A SavedModel in a staging folder: its directory there, and its files."""

    root: Path
    files: Files


@dataclass(frozen=True, slots=True)
class Source:
    """A model to push.

    Attributes:
        place: a SavedModel directory, a folder of version folders, an archive of either (zip, tar,
            tar.gz, tar.bz2, tar.xz, tar.zst), a Keras file (.keras, .h5), the http or https URL of
            such a file, or the URL of any of these in an object store (gs, s3, ...).
        version: which version folder is taken; None for the highest.
        sha256: what the file must have as its SHA-256, in hexadecimal; None to take any.
        limits: how much may come in archives and from afar.
    """

    place: str
    version: int | None = None
    sha256: str | None = None
    limits: Limits = field(default_factory=Limits)

    def described(self) -> str:
        """Return the place without secrets, to be remembered."""
        return redaction.url(self.place)

    def fetch(self, folder: Path, *, tag: str = "serve", progress: Progress = SILENT) -> Fetched:
        """Bring the model into a folder.

        Args:
            folder: an empty folder, which may be left with other things as well.
            tag: the graph a server will load.
            progress: told the steps and the bytes.

        Raises:
            PushRefused: there is no complete SavedModel, it exceeds the limits, its checksum is
                another, or it cannot be reached.
            OSError: the file system refuses.
        """
        scheme = places.scheme(self.place)
        if scheme in {"http", "https"}:
            return self._from_web(folder, progress)
        if scheme:
            return self._from_store(folder, progress)
        path = places.local(self.place)
        if not path.exists():
            raise PushRefused(
                f"there is no {path}", remedy="give a SavedModel directory, an archive or a URL"
            )
        if path.is_file():
            return self._from_file(path, folder, progress)
        return self._from_directory(path, folder, tag, progress)

    def _from_web(self, folder: Path, progress: Progress) -> Fetched:
        progress.step(f"downloading {self.described()}")
        file = folder / "download"
        encrypted = download(self.place, file, self.limits, progress=progress)
        if not encrypted and self.sha256 is None:
            progress.note("Downloaded over plain HTTP: give --sha256 to be sure of the content")
        return self._from_file(file, folder, progress)

    def _from_store(self, folder: Path, progress: Progress) -> Fetched:
        store = Store(self.place)
        progress.step(f"downloading {store.shown}")
        with store.talking():
            is_file = store.is_file()
            if is_file:
                store.save(folder / "download", self.limits, progress)
        if is_file:
            return self._from_file(folder / "download", folder, progress)
        self._require_no_checksum()
        root = folder / "model"
        root.mkdir()
        intake = Intake(root, self.limits)
        with store.talking():
            there = store.files()
            inner = layout.choose(layout.models_among(there), self.version, store.shown, progress)
            store.download(_below(there, inner), intake, progress)
        return Fetched(root, intake.files)

    def _from_directory(self, path: Path, folder: Path, tag: str, progress: Progress) -> Fetched:
        self._require_no_checksum()
        progress.step(f"checking {path}")
        models = list(layout.models_in(path))
        if not models and (found := look_around(path)):
            raise PushRefused(
                f"{path} is no complete SavedModel: it {found.what}",
                remedy=found.push or found.serve,
            )
        directory = path / layout.choose(models, self.version, str(path), progress)
        _require_complete(directory, tag)
        _require_apart(directory, folder)
        root = folder / "model"
        root.mkdir()
        progress.step(f"copying to {folder.parent}")
        return Fetched(root, copy_tree(directory, root, progress))

    def _from_file(self, file: Path, folder: Path, progress: Progress) -> Fetched:
        name = self.described()
        self._require_checksum(file)
        root = folder / "model"
        if (suffix := keras_files.suffix(file, self.limits, name)) is not None:
            progress.step(f"exporting {name} with Keras")
            named = folder / f"source{suffix}"  # Keras goes by the name
            named.symlink_to(file.absolute())
            keras_files.export(named, root, name, self.limits.max_size_bytes)
            return Fetched(root, checksums(root))
        progress.step(f"unpacking {name}")
        root.mkdir()
        files = archives.unpack(file, root, self.limits, name=name, progress=progress)
        inner = layout.choose(layout.models_among(files), self.version, name, progress)
        return Fetched(root / inner, _below(files, inner))

    def _require_checksum(self, file: Path) -> None:
        if self.sha256 is None:
            return
        with file.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != self.sha256.strip().lower():
            raise PushRefused(
                f"the SHA-256 of {self.described()} is {found}, not {self.sha256}",
                remedy="download it again; do not use it before both agree",
            )

    def _require_no_checksum(self) -> None:
        if self.sha256 is not None:
            raise PushRefused(
                f"{self.described()} is no file, so it has no SHA-256",
                remedy="give an archive, or leave the checksum out",
            )


def _below(files: Mapping[str, T], inner: str) -> dict[str, T]:
    """Return the files below an inner folder, by their path within it."""
    start = f"{inner}/" if inner else ""
    return {name[len(start) :]: file for name, file in files.items() if name.startswith(start)}


def _require_complete(directory: Path, tag: str) -> None:
    found = savedmodel.problems(directory, tag=tag)
    if found:
        lines = listed(found)
        raise PushRefused(f"{directory} is no complete SavedModel:{lines}")


def _require_apart(source: Path, folder: Path) -> None:
    if folder.resolve().is_relative_to(source.resolve()):
        raise PushRefused(
            f"{folder.parent} lies inside the model {source}, which would be copied into itself",
            remedy="give a base path outside the SavedModel",
        )
