"""Base paths in object stores, such as Google Cloud Storage and S3, through fsspec.

Nothing can be renamed there. A version is made ready in a folder here, and is then uploaded file by
file: the manifest first, `saved_model.pb` last, after all others were found there in full. A claim
beside the version folders, an object that only one push can create, keeps two pushes from the same
number::

    gs://bucket/models/resnet/.tfkit-claim-7
    gs://bucket/models/resnet/7/assets.extra/tfkit.manifest.json    first
    gs://bucket/models/resnet/7/variables/...
    gs://bucket/models/resnet/7/saved_model.pb                      last

What this guarantees: whoever finds `saved_model.pb` finds all other files as they were pushed, and
a push that fails removes what it uploaded. What it cannot: the folder is visible from its first
file on. A server that loads the latest version takes any folder with a number for one at its next
look, fails to load it, and may retry for minutes. So let deployments name their version
(`pin_line`), and change it after the push.

Of stores without exclusive creation, the later of two claims at the same moment wins.

Source: tensorflow_serving/sources/storage_path/file_system_storage_path_source.cc.
"""

import contextlib
import errno
import hashlib
import json
import os
import time
import uuid
from base64 import b64encode
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tfserve_kit import processes, safe_text
from tfserve_kit.errors import PushRefused, TfkitError
from tfserve_kit.progress import Progress
from tfserve_kit.repository.disk import Count
from tfserve_kit.repository.intake import CHUNK_BYTES, Intake, Limits
from tfserve_kit.repository.manifest import MANIFEST_PATH, File, Files, Manifest
from tfserve_kit.repository.staging import VersionChoice, choose_version
from tfserve_kit.repository.versions import HIDDEN_PREFIX, numbers_in, parse_version
from tfserve_kit.savedmodel import GRAPH_FILES

_WORKERS = 8
_OURS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}  # of the disk here, not of the store


class Store:
    """One folder of an object store; `fs` is fsspec's file system, `path` its way there.

    Raises:
        PushRefused: the package for this kind of store is missing, or the URL is of no kind known.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.shown = safe_text.redacted_url(url)
        with self.talking():
            import fsspec

            fs, path = fsspec.core.url_to_fs(url)
        self.fs: Any = fs
        self.path: str = path.rstrip("/")

    @contextlib.contextmanager
    def talking(self) -> Iterator[None]:
        """Translate what a store's client says, which may be anything."""
        try:
            yield
        except TfkitError:
            raise
        except ImportError as error:
            raise PushRefused(
                f"{self.shown} needs a package that is not installed ({error.name or error})",
                remedy="pip install 'tfserve-kit[cloud]'",
            ) from error
        except Exception as error:
            if isinstance(error, OSError) and error.errno in _OURS:
                raise
            raise PushRefused(
                f"{self.shown}: {safe_text.redacted(_said(error), self.url)}",
                remedy="check the address, and the credentials its client finds on this machine",
            ) from error

    def files(self, inner: str = "") -> dict[str, dict[str, Any]]:
        """List all files below a path anew: relative path to what is known of each."""
        top = f"{self.path}/{inner}".rstrip("/")
        self.fs.invalidate_cache()
        try:
            found = self.fs.find(top, detail=True)
        except FileNotFoundError:
            return {}
        start = len(self.fs._strip_protocol(top)) + 1  # noqa: SLF001 (its documented name)
        names = {path[start:]: info for path, info in found.items()}
        # Some tools store an empty object for a folder.
        return {name: info for name, info in names.items() if name and not name.endswith("/")}

    def is_file(self) -> bool:
        """Say whether the path is one object."""
        self.fs.invalidate_cache()
        return bool(self.fs.isfile(self.path))

    def chunks(self, path: str, counted: Callable[[int], None]) -> Iterator[bytes]:
        """Yield the bytes of an object, each counted before."""
        with self.fs.open(path, "rb", block_size=8 * CHUNK_BYTES) as stream:
            while chunk := stream.read(CHUNK_BYTES):
                counted(len(chunk))
                yield chunk

    def save(self, target: Path, limits: Limits, progress: Progress) -> None:
        """Store the object at the path as a file."""
        info = self.fs.info(self.path)
        intake = Intake(target.parent, limits)
        intake.expect(info.get("size") or 0)
        counted = _counting(intake, Count(progress, info.get("size") or 0))
        with target.open("xb") as file:
            for chunk in self.chunks(self.path, counted):
                file.write(chunk)

    def download(
        self, names: dict[str, dict[str, Any]], intake: Intake, progress: Progress
    ) -> None:
        """Bring objects into a folder, several at once: relative path to what is known of each."""
        total = sum(info.get("size") or 0 for info in names.values())
        intake.expect(total)
        counted = _counting(intake, Count(progress, total))

        def one(name: str) -> None:
            file = intake.add_file(name, self.chunks(names[name]["name"], counted))
            wanted = names[name].get("size")
            if wanted is not None and file.size_bytes != wanted:
                raise PushRefused(
                    f"{self.shown}/{name} has {wanted:,} bytes, {file.size_bytes:,} came",
                    remedy="push again once nothing else writes there",
                )

        _at_once(one, names)


def _counting(intake: Intake, count: Count) -> Callable[[int], None]:
    def counted(size_bytes: int) -> None:
        intake.count(size_bytes)
        count.add(size_bytes)

    return counted


def _at_once(act: Callable[[str], object], names: Any) -> None:
    """Do something for each name, several at once; the first failure ends it and is raised."""
    with ThreadPoolExecutor(_WORKERS) as pool:
        try:
            for job in [pool.submit(act, name) for name in names]:
                job.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _said(error: Exception) -> str:
    """Return an error's text, its type where it has none."""
    if isinstance(error, FileNotFoundError):
        return "there is nothing"
    return str(error).strip() or type(error).__name__


_CLAIM_PREFIX = f"{HIDDEN_PREFIX}claim-"
_ABANDONED_S = 24 * 3600.0


def pin_line(version: int) -> str:
    """Return the line of a deployment file's model section that names one version."""
    return f"versions = {{specific = [{version}]}}"


def remote_versions(url: str) -> list[tuple[int, str, bool]]:
    """Return the versions at a URL, lowest first: number, URL, whether a push has completed it.

    Raises:
        PushRefused: the store cannot be read.
    """
    store = Store(url)
    with store.talking():
        return _versions(store, store.files())


def _versions(store: Store, there: dict[str, Any]) -> list[tuple[int, str, bool]]:
    folders = {name.partition("/")[0] for name in there}
    found = {
        number: name for name in sorted(folders) if (number := parse_version(name)) is not None
    }
    base_url = store.shown.rstrip("/")
    return sorted(
        (number, f"{base_url}/{name}", bool(_graph_names(there, name)))
        for number, name in found.items()
    )


def _graph_names(there: Collection[str], folder: str) -> list[str]:
    """Return the names of what makes a folder a SavedModel, the one that a server takes first."""
    return [name for each in GRAPH_FILES if (name := f"{folder}/{each}") in there]


def taken_in(there: dict[str, Any]) -> set[int]:
    """Return the numbers that are used, half used or claimed."""
    return numbers_in({name.partition("/")[0] for name in there}, _CLAIM_PREFIX)


def download_serving(store: Store, there: dict[str, Any], folder: Path) -> Path | None:
    """Bring the graph of the highest complete version here, for the gate to compare with."""
    graphs = {
        number: names[0]
        for name in {each.partition("/")[0] for each in there}
        if (number := parse_version(name)) is not None
        if (names := _graph_names(there, name))
    }
    if not graphs:
        return None
    newest = graphs[max(graphs)]
    folder.mkdir()
    with store.talking():
        store.fs.get_file(there[newest]["name"], str(folder / newest.rpartition("/")[2]))
    return folder


@contextlib.contextmanager
def claimed(store: Store, choice: VersionChoice, taken: set[int]) -> Iterator[int]:
    """Claim a number; what lies under it is removed where its use fails, and so is the claim.

    Args:
        store: the base path.
        choice: which number.
        taken: numbers that were taken before left-overs were swept: a server may remember them.
    """
    number = _claim(store, choice, taken)
    try:
        yield number
    except BaseException:
        with contextlib.suppress(Exception):  # a later push sweeps what stays
            _remove(store, number)
        raise
    store.fs.rm_file(f"{store.path}/{_CLAIM_PREFIX}{number}")


def _claim(store: Store, choice: VersionChoice, taken: set[int]) -> int:
    while True:
        taken = taken | taken_in(store.files())
        number = choose_version(taken, choice, store.shown)
        path, mine = f"{store.path}/{_CLAIM_PREFIX}{number}", _new_claim()
        with contextlib.suppress(FileExistsError):
            _create(store, path, mine)
            if store.fs.cat_file(path) == mine:
                if not any(name.startswith(f"{number}/") for name in store.files()):
                    return number
                store.fs.rm_file(path)  # another push has just finished this number
        taken = {*taken, number}


def _create(store: Store, path: str, content: bytes) -> None:
    """Create an object that must not exist, as far as the store can tell."""
    try:
        store.fs.pipe_file(path, content, mode="create")
    except (NotImplementedError, TypeError):  # the store's client knows no such mode
        if store.fs.exists(path):
            raise FileExistsError(path) from None
        store.fs.pipe_file(path, content)


def _new_claim() -> bytes:
    claim = {
        "pid": os.getpid(),
        "started_s": round(processes.started_s(os.getpid()), 3),
        "host": processes.host(),
        "claimed_s": round(time.time(), 3),
        "unique": uuid.uuid4().hex,
    }
    return json.dumps(claim).encode()


def sweep_claims(store: Store, there: dict[str, Any]) -> None:
    """Remove what killed pushes left; of whole versions only the claim."""
    for name, info in there.items():
        number = parse_version(name.removeprefix(_CLAIM_PREFIX))
        if name.startswith(_CLAIM_PREFIX) and number is not None:
            with contextlib.suppress(FileNotFoundError):  # its push has ended meanwhile
                if _is_abandoned(store.fs.cat_file(info["name"])):
                    if not _graph_names(store.files(), str(number)):
                        _remove(store, number)
                    else:
                        store.fs.rm_file(info["name"])


def _is_abandoned(claim: bytes) -> bool:
    """Say whether the push that claimed is over; of other machines one knows only the time."""
    try:
        content = json.loads(claim)
        if time.time() - content["claimed_s"] > _ABANDONED_S:
            return True
        if content["host"] != processes.host():
            return False
        return processes.alive(content["pid"], content["started_s"]) is None
    except (ValueError, KeyError, TypeError):
        return False


def _remove(store: Store, number: int) -> None:
    """Remove a version and its claim, what makes it loadable first and the claim last."""
    names = sorted(store.files(str(number)), key=lambda name: name not in GRAPH_FILES)
    for name in names:
        store.fs.rm_file(f"{store.path}/{number}/{name}")
    with contextlib.suppress(FileNotFoundError):
        store.fs.rm_file(f"{store.path}/{_CLAIM_PREFIX}{number}")


def upload(store: Store, number: int, root: Path, manifest: Manifest, progress: Progress) -> None:
    """Upload a version in the order that the guarantee needs.

    Args:
        store: the base path.
        number: the version, which is claimed.
        root: its directory here.
        manifest: its files; the manifest itself lies in the directory already.
        progress: told the bytes sent.

    Raises:
        PushRefused: what is in the store is not what was sent.
    """
    progress.step(f"uploading to {store.shown}")
    count = Count(progress, manifest.size_bytes)

    def send(name: str) -> None:
        store.fs.put_file(str(root / name), f"{store.path}/{number}/{name}")
        if name in manifest.files:
            count.add(manifest.files[name].size_bytes)

    graph = next(name for name in GRAPH_FILES if name in manifest.files)
    most = manifest.files.keys() - {graph}
    send(MANIFEST_PATH.as_posix())
    _at_once(send, sorted(most))
    _require_whole(store, number, root, {name: manifest.files[name] for name in most})
    send(graph)
    _require_whole(store, number, root, {graph: manifest.files[graph]})


def _require_whole(store: Store, number: int, root: Path, sent: Files) -> None:
    """Refuse what the store has not as it was sent, as far as its list tells."""
    there = store.files(str(number))
    for name, file in sorted(sent.items()):
        if wrong := _difference(there.get(name), file, root / name):
            raise PushRefused(
                f"{store.shown}/{number}/{name} {wrong}", remedy="push again; see the store's log"
            )


def _difference(info: dict[str, Any] | None, file: File, sent: Path) -> str | None:
    if info is None:
        return "is not there after it was uploaded"
    if info.get("size") != file.size_bytes:
        return f"has {info.get('size')} bytes, {file.size_bytes} were uploaded"
    if "md5Hash" in info:  # Google Cloud Storage has it for what was uploaded in one piece
        with sent.open("rb") as stream:
            digest = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False))
        if b64encode(digest.digest()).decode() != info["md5Hash"]:
            return "is not what was uploaded (MD5 differs)"
    return None
