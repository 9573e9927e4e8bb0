"""Where a model comes from, and how it gets into a staging folder.

Models as Keras saves them are exported to a SavedModel by Keras itself, in a process of its own.
"""

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

from tfserve_kit import processes, safe_text, savedmodel
from tfserve_kit.errors import PushRefused, listed, missing
from tfserve_kit.http import downloads
from tfserve_kit.progress import SILENT, Progress
from tfserve_kit.repository import archives, locate
from tfserve_kit.repository.disk import checksums, copy_tree, require_room
from tfserve_kit.repository.intake import Intake, Limits
from tfserve_kit.repository.locate import look_around
from tfserve_kit.repository.manifest import Files
from tfserve_kit.repository.object_store import Store

_HDF5 = b"\x89HDF\r\n\x1a\n"
_TIMEOUT_S = 1800
_MEMBERS = {"config.json", "model.weights.h5"}

# Before 3.11.3 safe_mode could be got around, and did nothing for HDF5 files.
_EXPORT = """
import sys, keras
numbers = tuple(int(part) for part in keras.__version__.split(".")[:3] if part.isdigit())
if numbers < (3, 11, 3):
    sys.exit(f"keras {keras.__version__} is installed; files are loaded safely from 3.11.3 on")
model = keras.saving.load_model(sys.argv[1], compile=False, safe_mode=True)
model.export(sys.argv[2], format="tf_saved_model", verbose=False)
"""


def _keras_suffix(file: Path, limits: Limits, name: str) -> str | None:
    """Return `.keras` or `.h5` for a file of this kind, None for others; the content says it.

    Raises:
        PushRefused: it is a damaged zip archive, which errors call `name`.
    """
    with file.open("rb") as stream:
        if stream.read(len(_HDF5)) == _HDF5:
            return ".h5"
    if archives.kind(file) == "zip" and archives.zip_names(file, limits, name) >= _MEMBERS:
        return ".keras"
    return None


def _export_keras(file: Path, directory: Path, name: str, most_bytes: int) -> None:
    """Export a Keras file to a SavedModel directory that is made.

    Code in the file is not run: models with Lambda layers are refused.

    Args:
        file: it; its name ends as `suffix` says.
        directory: the SavedModel.
        name: what errors call the file.
        most_bytes: how long each file of the SavedModel may be.

    Raises:
        PushRefused: Keras is not installed here, or refuses.
    """
    if find_spec("keras") is None or find_spec("tensorflow") is None:
        raise PushRefused(
            f"{name} is a Keras file, and Keras is not installed to export it",
            remedy="pip install 'tfserve-kit[embedded]', or give what model.export() writes",
        )
    quiet = {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", _EXPORT, str(file), str(directory)]
    try:
        done = subprocess.run(
            processes.confined(command, processes.free_memory_bytes(), most_bytes),
            env=os.environ | quiet,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _refusal(name, f"it took longer than {_TIMEOUT_S} s") from None
    if done.returncode:
        raise _refusal(name, done.stderr)


def _refusal(name: str, log: str) -> PushRefused:
    lines = [line for line in log.splitlines() if line.strip()] or ["it exited without a message"]
    if "safe_mode" in log or "unsafe" in log:
        return PushRefused(
            f"{name} holds code (such as a Lambda layer), which is not run",
            remedy="export the model where you trust it, with model.export(), and push that",
        )
    if "No model config found" in log:
        return PushRefused(
            f"{name} holds weights, without the model that uses them",
            remedy="load them into the model: model.load_weights(FILE), then model.export(FOLDER)",
        )
    return PushRefused(
        f"Keras cannot export {name}: {lines[-1]}",
        remedy="export the model yourself, with model.export(), and push that",
    )


_MOST_REDIRECTS = 30
_TIMEOUTS_S = (10.0, 60.0)  # to connect; between two pieces of the answer
_STATUS_REMEDIES = {
    401: "give credentials (USER:PASSWORD@ before the host), or a signed URL",
    403: "give credentials (USER:PASSWORD@ before the host), or a signed URL that has not expired",
    404: "check the address",
}


def download(url: str, target: Path, limits: Limits, *, progress: Progress) -> bool:
    """Store what a URL gives; redirects are followed, but none from https to http.

    Args:
        url: http or https.
        target: the file to make.
        limits: of which the size and the time of a download hold here.
        progress: told the bytes received.

    Returns:
        Whether it came encrypted all the way, redirects included.

    Raises:
        PushRefused: the server cannot be reached, refuses, sends too much, or breaks off.
        OSError: the file system refuses.
    """
    try:
        with downloads.opened(
            url,
            time.monotonic() + limits.max_download_s,
            limits.max_size_bytes,
            most_redirects=_MOST_REDIRECTS,
            timeouts_s=_TIMEOUTS_S,
            is_decoded=False,  # archives are wanted as they are
        ) as found:
            require_room(target.parent, found.size_bytes)
            done = 0
            with target.open("xb") as file:
                for chunk in found.chunks:
                    file.write(chunk)
                    done += len(chunk)
                    progress.advance(done, max(done, found.size_bytes))
            return found.is_encrypted
    except downloads.DownloadError as error:
        raise _not_downloaded(url, error, limits) from None


def _not_downloaded(url: str, error: downloads.DownloadError, limits: Limits) -> PushRefused:
    shown = safe_text.redacted_url(url)
    if error.kind == "size":
        text = f"{shown} is larger than {limits.max_size_bytes:,} bytes"
        return PushRefused(text, remedy="allow more with --max-size, if that is right")
    if error.kind == "status":
        return PushRefused(
            f"cannot download {shown}: HTTP status {error}",
            remedy=_STATUS_REMEDIES.get(
                error.status, "try again later, or ask who runs the server"
            ),
        )
    if error.kind == "time":
        text = f"cannot download {shown}: not all of it came within {limits.max_download_s:g} s"
        return PushRefused(text, remedy="allow more with --download-timeout, if that is right")
    return PushRefused(
        f"cannot download {shown}: {error}",
        remedy="check the address and the network, then push again",
    )


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Source:
    """A model to push.

    Attributes:
        place: a SavedModel directory, a folder of version folders, an archive of either (zip, tar,
            tar.gz, tar.bz2, tar.xz, tar.zst), a Keras file (.keras, .h5), a model that MLflow saved
            with TensorFlow or Keras, the http or https URL of such a file, or the URL of any of
            these in an object store (gs, s3, ...).
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
        return safe_text.redacted_url(self.place)

    def fetch(
        self, folder: Path, *, tag: str = "serve", progress: Progress = SILENT
    ) -> tuple[Path, Files]:
        """Bring the model into a folder.

        Args:
            folder: an empty folder, which may be left with other things as well.
            tag: the graph a server will load.
            progress: told the steps and the bytes.

        Returns:
            Its directory in the folder, and its files.

        Raises:
            PushRefused: there is not a complete SavedModel, it exceeds the limits, its checksum is
                another, or it cannot be reached.
            OSError: the file system refuses.
        """
        scheme = locate.scheme(self.place)
        if scheme in {"http", "https"}:
            return self._from_web(folder, progress)
        if scheme:
            return self._from_store(folder, progress)
        path = locate.local(self.place)
        if not path.exists():
            raise missing(PushRefused, path, locate.remedy_for(self.place))
        if path.is_file():
            return self._from_file(path, folder, progress)
        return self._from_directory(path, folder, tag, progress)

    def _from_web(self, folder: Path, progress: Progress) -> tuple[Path, Files]:
        progress.step(f"downloading {self.described()}")
        file = folder / "download"
        encrypted = download(self.place, file, self.limits, progress=progress)
        if not encrypted and self.sha256 is None:
            progress.note("Downloaded over plain HTTP: give --sha256 to be sure of the content")
        return self._from_file(file, folder, progress)

    def _from_store(self, folder: Path, progress: Progress) -> tuple[Path, Files]:
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
            is_mlflow = locate.is_mlflow(there)
            models = locate.models_among(there)
            inner = (
                ""
                if is_mlflow
                else locate.choose_model(models, self.version, store.shown, progress)
            )
            store.download(_below(there, inner), intake, progress)
        if is_mlflow:
            return self._unpacked(root, intake.files, folder, progress)
        return root, intake.files

    def _from_directory(
        self, path: Path, folder: Path, tag: str, progress: Progress
    ) -> tuple[Path, Files]:
        self._require_no_checksum()
        progress.step(f"checking {path}")
        if (inner := locate.mlflow_model(path, str(path))) is not None:
            progress.note(f"{path} is an MLflow model: taking {inner.relative_to(path)}")
            if inner.is_file():
                return self._exported(inner, folder, progress)
            path = inner
        models = list(locate.models_in(path))
        if not models and (found := look_around(path, to_push=True)):
            raise PushRefused(
                f"{path} is not a complete SavedModel: it {found.message}",
                remedy=found.remedy,
            )
        directory = path / locate.choose_model(models, self.version, str(path), progress)
        _require_complete(directory, tag)
        _require_apart(directory, folder)
        root = folder / "model"
        root.mkdir()
        progress.step(f"copying to {folder.parent}")
        return root, copy_tree(directory, root, progress)

    def _from_file(self, file: Path, folder: Path, progress: Progress) -> tuple[Path, Files]:
        name = self.described()
        self._require_checksum(file)
        root = folder / "model"
        if _keras_suffix(file, self.limits, name) is not None:
            return self._exported(file, folder, progress)
        if archives.kind(file) is None and (found := locate.other_format(Path(self.place))):
            raise PushRefused(f"{name} {found.message}", remedy=found.remedy)
        progress.step(f"unpacking {name}")
        root.mkdir()
        files = archives.unpack(file, root, self.limits, name=name, progress=progress)
        return self._unpacked(root, files, folder, progress)

    def _unpacked(
        self, root: Path, files: Files, folder: Path, progress: Progress
    ) -> tuple[Path, Files]:
        """Choose the model among files that came from an archive or from afar."""
        name = self.described()
        if locate.is_mlflow(files) and (found := locate.mlflow_model(root, name)) is not None:
            inner = found.relative_to(root).as_posix()
            progress.note(f"{name} is an MLflow model: taking {inner}")
            if found.is_file():
                return self._exported(found, folder, progress)
        else:
            inner = locate.choose_model(locate.models_among(files), self.version, name, progress)
        return root / inner, _below(files, inner)

    def _exported(self, file: Path, folder: Path, progress: Progress) -> tuple[Path, Files]:
        """Export a Keras file."""
        name = self.described()
        suffix = _keras_suffix(file, self.limits, name)
        progress.step(f"exporting {name} with Keras")
        named, root = folder / f"source{suffix}", folder / "exported"  # Keras goes by the name
        named.symlink_to(file.absolute())
        _export_keras(named, root, name, self.limits.max_size_bytes)
        return root, checksums(root)

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
                f"{self.described()} is not a single file, so it has no SHA-256",
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
        raise PushRefused(f"{directory} is not a complete SavedModel:{lines}")


def _require_apart(source: Path, folder: Path) -> None:
    if folder.resolve().is_relative_to(source.resolve()):
        raise PushRefused(
            f"{folder.parent} lies inside the model {source}, which would be copied into itself",
            remedy="give a base path outside the SavedModel",
        )
