"""Versions in object stores, where nothing can be renamed.

A version is made ready here, passes the gate here, and is then uploaded file by file: the manifest
first, `saved_model.pb` last, after all others were found there in full. A claim beside the version
folders, an object that only one push can create, keeps two pushes from the same number::

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
import hashlib
import json
import os
import tempfile
import time
import uuid
from base64 import b64encode
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfserve_kit import processes, redaction
from tfserve_kit.errors import Problem, PushRefused
from tfserve_kit.progress import SILENT, Progress
from tfserve_kit.repository.copying import Count
from tfserve_kit.repository.gate import Gate
from tfserve_kit.repository.manifest import MANIFEST_PATH, File
from tfserve_kit.repository.object_store import Store, at_once
from tfserve_kit.repository.preparing import Approve, Prepared, prepare
from tfserve_kit.repository.sources import Source
from tfserve_kit.repository.staging import VersionChoice, choose_version
from tfserve_kit.repository.versions import HIDDEN_PREFIX, parse_version
from tfserve_kit.savedmodel import GRAPH_FILES

CLAIM_PREFIX = f"{HIDDEN_PREFIX}claim-"
_ABANDONED_S = 24 * 3600.0


@dataclass(frozen=True, slots=True, order=True)
class RemoteVersion:
    """A version folder in an object store.

    Attributes:
        number: its version.
        url: where it lies.
        complete: whether its `saved_model.pb` is there, which a push uploads last.
    """

    number: int
    url: str
    complete: bool


@dataclass(frozen=True, slots=True)
class Sent:
    """A version that was uploaded: its number, its URL, the bytes of its files, the remarks."""

    version: int
    url: str
    size_bytes: int
    remarks: tuple[Problem, ...]


def pin_line(version: int) -> str:
    """Return the line of a deployment file's model section that names one version."""
    return f"versions = {{specific = [{version}]}}"


def versions(url: str) -> list[RemoteVersion]:
    """Return the versions at a URL, lowest first.

    Raises:
        PushRefused: the store cannot be read.
    """
    store = Store(url)
    with store.talking():
        return _versions(store, store.files())


def push(
    source: Source,
    url: str,
    choice: VersionChoice,
    gate: Gate,
    *,
    approve: Approve | None = None,
    progress: Progress = SILENT,
) -> Sent:
    """Add a model version to a base path in an object store; see above for what that guarantees.

    Args:
        source: where the SavedModel is.
        url: the folder of the model's versions, such as `gs://bucket/models/resnet`.
        choice: a number >= 1, `next` (highest + 1) or `epoch` (seconds since 1970).
        gate: what the version must satisfy.
        approve: looks at the staged copy last of all.
        progress: told the steps, the bytes, and what the gate remarks.

    Raises:
        PushRefused: as for a push to a folder, or the store refuses. What was uploaded is removed.
    """
    store = Store(url)
    with tempfile.TemporaryDirectory(prefix="tfkit-push-") as folder:
        staging, older = Path(folder) / "new", Path(folder) / "older"
        staging.mkdir()
        with store.talking():
            there = store.files()
            taken = _taken(there)
            choose_version(taken, choice, store.shown)  # rather now than after copying
            _sweep(store, there)
        ready = prepare(
            source,
            staging,
            gate,
            serving=lambda: _serving(store, there, older),
            approve=approve,
            progress=progress,
        )
        with store.talking(), _claimed(store, choice, taken) as number:
            _upload(store, number, ready, progress)
    where = f"{redaction.url(url).rstrip('/')}/{number}"
    return Sent(number, where, ready.manifest.size_bytes, ready.remarks)


def _versions(store: Store, there: dict[str, Any]) -> list[RemoteVersion]:
    folders = {name.partition("/")[0] for name in there}
    found = {
        number: name for name in sorted(folders) if (number := parse_version(name)) is not None
    }
    base_url = store.shown.rstrip("/")
    return sorted(
        RemoteVersion(number, f"{base_url}/{name}", bool(_graph_names(there, name)))
        for number, name in found.items()
    )


def _graph_names(there: Collection[str], folder: str) -> list[str]:
    """Return the names of what makes a folder a SavedModel, the one that a server takes first."""
    return [name for each in GRAPH_FILES if (name := f"{folder}/{each}") in there]


def _taken(there: dict[str, Any]) -> set[int]:
    """Return the numbers that are used, half used or claimed."""
    names = {name.partition("/")[0].removeprefix(CLAIM_PREFIX) for name in there}
    return {number for name in names if (number := parse_version(name)) is not None}


def _serving(store: Store, there: dict[str, Any], folder: Path) -> Path | None:
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
def _claimed(store: Store, choice: VersionChoice, taken: set[int]) -> Iterator[int]:
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
    store.fs.rm_file(f"{store.path}/{CLAIM_PREFIX}{number}")


def _claim(store: Store, choice: VersionChoice, taken: set[int]) -> int:
    while True:
        taken = taken | _taken(store.files())
        number = choose_version(taken, choice, store.shown)
        path, mine = f"{store.path}/{CLAIM_PREFIX}{number}", _new_claim()
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


def _sweep(store: Store, there: dict[str, Any]) -> None:
    """Remove what killed pushes left; of whole versions only the claim."""
    for name, info in there.items():
        number = parse_version(name.removeprefix(CLAIM_PREFIX))
        if name.startswith(CLAIM_PREFIX) and number is not None:
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
        store.fs.rm_file(f"{store.path}/{CLAIM_PREFIX}{number}")


def _upload(store: Store, number: int, ready: Prepared, progress: Progress) -> None:
    """Upload a version in the order that the guarantee needs."""
    progress.step(f"uploading to {store.shown}")
    manifest = MANIFEST_PATH.as_posix()
    count = Count(progress, ready.manifest.size_bytes)

    def send(name: str) -> None:
        store.fs.put_file(str(ready.root / name), f"{store.path}/{number}/{name}")
        if name in ready.manifest.files:
            count.add(ready.manifest.files[name].size_bytes)

    graph = next(name for name in GRAPH_FILES if name in ready.manifest.files)
    most = ready.manifest.files.keys() - {graph}
    send(manifest)
    at_once(send, sorted(most))
    _require_whole(store, number, ready, most)
    send(graph)
    _require_whole(store, number, ready, {graph})


def _require_whole(store: Store, number: int, ready: Prepared, names: Any) -> None:
    """Refuse what the store has not as it was sent, as far as its list tells."""
    there = store.files(str(number))
    for name in sorted(names):
        wrong = _difference(there.get(name), ready.manifest.files[name], ready.root / name)
        if wrong:
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
