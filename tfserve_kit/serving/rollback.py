"""Which version is served: rolled back on the disk, or moved by its label on a running server.

::

    stable -> 7              {7}        before
    stable -> 7, canary -> 8 {7, 8}     canary: 8 is loaded first, then labelled
    stable -> 8              {7, 8}     promote: the label moves once 8 is AVAILABLE
    stable -> 8              {8}        what no label names goes last

From the first step on the model's versions are pinned: a later push is loaded by the next `canary`
or `promote`, not by itself. A request that names neither a version nor a label is answered by the
highest version loaded, the canary included (tensorflow_serving/core/basic_manager.cc).
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tfserve_kit import savedmodel, strict_json
from tfserve_kit.clients import Target, VersionStatus
from tfserve_kit.deployment.spec import Model, Spec, VersionPolicy
from tfserve_kit.engines import ServerHandle, registry
from tfserve_kit.engines.base import endpoints
from tfserve_kit.engines.records import deployed_models, homes
from tfserve_kit.engines.registry import resolved
from tfserve_kit.errors import (
    PushRefused,
    RequestError,
    UsageError,
    did_you_mean,
    file_error,
    listed,
)
from tfserve_kit.progress import SILENT, Progress
from tfserve_kit.repository import list_versions
from tfserve_kit.repository.versions import above, restore, rollback
from tfserve_kit.serving import access, reload
from tfserve_kit.serving.access import NOTHING, Access, ServedModel, connect_each
from tfserve_kit.serving.waiting import ask, available, wait_each, wait_gone

_CANARY, _STABLE = "canary", "stable"


@dataclass(frozen=True, slots=True)
class Served:
    """What a server serves of a model now: version numbers, and version by label."""

    model: str
    versions: tuple[int, ...]
    labels: Mapping[str, int]

    def as_toml(self) -> str:
        """Return the lines of the deployment file that say the same."""
        labels = ", ".join(f"{_key(label)} = {n}" for label, n in sorted(self.labels.items()))
        return (
            f"[models.{_key(self.model)}]\n"
            f"versions = {{specific = [{', '.join(map(str, self.versions))}]}}\n"
            f"labels = {{{labels}}}"
        )


def canary(
    handle: ServerHandle,
    model: str,
    version: int,
    *,
    access: Access = NOTHING,
    progress: Progress = SILENT,
) -> Served:
    """Load a version beside what is served, and label it `canary`.

    Args:
        handle: the server.
        model: name of the model.
        version: a version in its base path.
        access: wins over what is known of how to reach the server.
        progress: told the steps.

    Returns:
        What is served now.

    Raises:
        UsageError: there is no such model or version.
        ServerFailed: the version does not load; the server serves as before.
        RequestError: the server refuses; it serves as before.
    """
    change = _Change(handle, model, access, progress)
    change.require_sound(version)
    labels = {**change.now.labels, _CANARY: version}
    return change.apply(change.loaded() | {version}, labels)


def promote(  # noqa: PLR0913 (what is moved, and what stays)
    handle: ServerHandle,
    model: str,
    version: int | None = None,
    *,
    label: str = _STABLE,
    keep_old: bool = False,
    access: Access = NOTHING,
    progress: Progress = SILENT,
) -> Served:
    """Load a version if it is not, move a label to it, then unload what no label names.

    Args:
        handle: the server.
        model: name of the model.
        version: a version in its base path; None for the canary, or the highest if there is none.
        label: what is moved; a `canary` that points to the same version is dropped.
        keep_old: leave everything loaded that is.
        access: wins over what is known of how to reach the server.
        progress: told the steps.

    Returns:
        What is served now.

    Raises:
        UsageError: there is no such model or version.
        ServerFailed: the version does not load; the server serves as before.
        RequestError: the server refuses; it serves as before, or has yet to unload.
    """
    change = _Change(handle, model, access, progress)
    version = _chosen(change.now, model, version)
    change.require_sound(version)
    old = change.now.labels.items()
    others = {name: number for name, number in old if name != _CANARY or number != version}
    labels = {**others, label: version}
    served = change.apply(change.loaded() | {version}, labels)
    if keep_old or set(served.versions) == set(labels.values()):
        return served
    return change.apply(set(labels.values()), labels)


def abort(
    handle: ServerHandle, model: str, *, access: Access = NOTHING, progress: Progress = SILENT
) -> Served:
    """Drop the label `canary`, and unload its version unless another label names it.

    Raises:
        UsageError: there is no such model, it has no canary, or nothing else is loaded.
        RequestError: the server refuses; it serves as before.
    """
    change = _Change(handle, model, access, progress)
    now = change.now
    if _CANARY not in now.labels:
        raise UsageError(
            f"model {model!r} of server {handle.server_name!r} has no canary",
            remedy=f"its labels are {', '.join(now.labels) or 'none'}",
        )
    labels = {name: number for name, number in now.labels.items() if name != _CANARY}
    staying = change.loaded() - {now.labels[_CANARY]} | set(labels.values())
    if not staying:
        raise UsageError(
            f"version {now.labels[_CANARY]}, the canary, is all that is loaded of {model!r}",
            remedy=f"`tfkit promote {model}` makes it {_STABLE}",
        )
    return change.apply(staying, labels)


def _chosen(now: Model, model: str, version: int | None) -> int:
    """Return the version that is meant: the one given, the canary or the highest."""
    if version is None:
        version = now.labels.get(_CANARY)
    if version is None:
        version = max(_there(now), default=None)
    if version is None:
        raise UsageError(
            f"there is no version of {model!r} in {now.base_path}", remedy="give its number"
        )
    return version


def _there(now: Model) -> dict[int, Path]:
    """Return the versions in a base path, number to directory; none known for a remote one."""
    try:
        return {version.number: version.path for version in list_versions(Path(now.base_path))}
    except OSError:
        return {}


class _Change:
    """A change of what a server serves of a model; `now` is what its deployment says of that.

    Raises:
        UsageError: there is no such model.
    """

    def __init__(
        self, handle: ServerHandle, model: str, access: Access, progress: Progress
    ) -> None:
        self._handle, self._model, self._access, self._progress = handle, model, access, progress
        self._spec = reload.deployment(handle.home)
        if model not in self._spec.models:
            raise UsageError(
                f"server {handle.server_name!r} has no model {model!r}",
                remedy=did_you_mean(model, self._spec.models),
            )
        self.now = self._spec.models[model]

    def require_sound(self, version: int) -> None:
        """Refuse a version that is not there in full; elsewhere it is the server's own affair."""
        base_path, model = self.now.base_path, self._model
        if not self._spec.is_here(base_path):
            return
        there = _there(self.now)
        if version not in there:
            raise UsageError(
                f"there is no version {version} of {model!r} in {base_path}",
                remedy=f"these are there: {', '.join(map(str, there)) or 'none'}",
            )
        tag = str(self._spec.server.flags.get("saved_model_tags", "serve"))
        if found := savedmodel.problems(there[version], tag=tag):
            lines = listed(found)
            raise UsageError(f"version {version} of {model!r} is not a complete SavedModel:{lines}")

    def loaded(self) -> set[int]:
        """Return the versions that are AVAILABLE now, on any replica."""
        reached = self._access.over(access.of_server(self._handle.home))
        place = ServedModel(self._handle.endpoints.grpc, self._model, access=reached)
        with connect_each(place) as found:
            each = [available(client.status(Target(self._model))) for client in found.values()]
        return set().union(*each)

    def apply(self, versions: Collection[int], labels: Mapping[str, int]) -> Served:
        """Make the server serve these versions under these labels."""
        served = Served(self._model, tuple(sorted({*versions, *labels.values()})), dict(labels))
        policy = VersionPolicy(specific=served.versions)
        update = {"versions": policy, "labels": dict(labels)}
        models = {**self._spec.models, self._model: self.now.model_copy(update=update)}
        wanted = self._spec.model_copy(update={"models": models})
        reload.reload(self._handle, wanted, access=self._access, progress=self._progress)
        return served


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else strict_json.dumps(name)


_ASK_S = 2.0
_IN_USE = {"START", "LOADING", "AVAILABLE"}


# Why a version is needed; of the first two somebody wrote the number down.
_LABELLED, _PINNED, _SERVED, _LATEST = "labelled", "pinned", "served", "among the latest"


@dataclass(frozen=True, slots=True)
class Claim:
    """A version that somebody needs: its number, who it is, why, and the label if it has one."""

    version: int
    who: str
    reason: str
    label: str = ""

    def __str__(self) -> str:
        name = f" {self.label!r}" if self.label else ""
        return f"version {self.version} is {self.reason}{name} by {self.who}"


def claims(
    base_path: Path, deployment: Spec | None = None, *, progress: Progress = SILENT
) -> list[Claim]:
    """Return who needs which versions of a base path, lowest version first.

    A server that runs says itself what it serves; what its deployment labels or pins counts too.
    Of one that does not answer all counts that its deployment would load.

    Args:
        base_path: the folder of the model's versions.
        deployment: one that is not served, such as that of tfkit.toml.
        progress: told which servers could not be asked.

    Raises:
        UsageError: the base path cannot be read.
    """
    try:
        numbers = [version.number for version in list_versions(base_path)]
    except OSError as error:
        raise file_error(UsageError, "read", base_path, error) from error
    found: set[Claim] = set()
    here = resolved(base_path)
    for home in homes():
        for name, path in deployed_models(home).items():
            if resolved(path) == here:
                found.update(_claimed(home, name, numbers, progress))
    for model in deployment.models.values() if deployment else ():
        if resolved(model.base_path) == here:
            found.update(_named(model, "the deployment file", numbers))
    return sorted(found, key=lambda claim: (claim.version, claim.who, claim.reason))


def _claimed(home: Path, name: str, numbers: list[int], progress: Progress) -> Iterator[Claim]:
    """Yield what a server needs of its model, where the base path holds these numbers."""
    who = f"server {home.name!r}"
    try:
        spec = reload.deployment(home)
    except UsageError as error:
        progress.note(f"Warning: {error}")
        return
    statuses = _statuses(home, spec, name)
    if statuses is None:
        progress.note(f"Warning: {who} does not answer; what its deployment names is kept")
    for status in statuses or []:
        if status.state in _IN_USE:
            yield Claim(status.version, who, _SERVED)
    yield from _named(spec.models[name], who, [] if statuses is not None else numbers)


def _named(model: Model, who: str, numbers: list[int]) -> Iterator[Claim]:
    """Yield what a model of a deployment needs, where the base path holds these numbers."""
    for label, version in model.labels.items():
        yield Claim(version, who, _LABELLED, label)
    for version in model.versions.specific:
        yield Claim(version, who, _PINNED)
    if model.versions.latest:
        for version in model.versions.loads(numbers):
            yield Claim(version, who, _LATEST)


def _statuses(home: Path, spec: Spec, model: str) -> list[VersionStatus] | None:
    """Return what a server says of a model, None where it does not answer."""
    try:
        with access.of_server(home).connect(endpoints(spec.server).grpc) as client:
            return ask(client, model, timeout_s=_ASK_S)
    except (RequestError, UsageError):  # such as a certificate that was deleted meanwhile
        return None


def roll_back(  # noqa: PLR0913 (where to, where it is waited for, and how)
    base_path: Path,
    to: int | None = None,
    *,
    places: Sequence[ServedModel] | None = (),
    access: Access = NOTHING,
    timeout_s: float = 120.0,
    is_forced: bool = False,
    progress: Progress = SILENT,
) -> tuple[int, list[int], list[ServedModel]]:
    """Retire every version above one, and wait until it is served.

    Args:
        base_path: the folder of the model's versions.
        to: the version to go back to; None for the second highest.
        places: where to wait for it; None for every server of ours that serves what is retired.
        access: wins over what is known of how to reach servers of ours.
        timeout_s: longest wait at each place, in seconds.
        is_forced: retire also what a label or a pinned version of a server of ours names.
        progress: told the steps.

    Returns:
        The highest version in service now, the numbers retired, and where it was waited for.

    Raises:
        PushRefused: as for `versions.rollback`, or a server names a version that would go. Nothing
            has changed.
        ServerFailed: a server does not serve the version; the others stay retired.
    """
    version, going = above(base_path, to)
    if not is_forced:
        _require_unnamed(base_path, going, progress)
    found = _serving(base_path, going, access) if places is None else list(places)
    progress.step(f"retiring {', '.join(map(str, going))}")
    gone = rollback(base_path, version)
    for place in found:
        _await(place, version, gone, timeout_s, progress)
    return version, gone, found


def bring_back(
    base_path: Path,
    number: int,
    *,
    places: Sequence[ServedModel] | None = (),
    access: Access = NOTHING,
    timeout_s: float = 120.0,
    progress: Progress = SILENT,
) -> list[ServedModel]:
    """Restore a retired version, and wait until it is served; return where.

    Args:
        base_path: the folder of the model's versions.
        number: the version.
        places: where to wait for it; None for every server of ours that serves this base path.
        access: wins over what is known of how to reach servers of ours.
        timeout_s: longest wait at each place, in seconds.
        progress: told the steps.

    Raises:
        PushRefused: as for `versions.restore`; nothing has changed.
        ServerFailed: a server does not serve the version, for instance because a higher one is
            there; it stays restored.
    """
    restore(base_path, number)
    found = _serving(base_path, (), access) if places is None else list(places)
    for place in found:
        _await(place, number, (), timeout_s, progress)
    return found


def _require_unnamed(base_path: Path, going: Collection[int], progress: Progress) -> None:
    named = [
        claim
        for claim in claims(base_path, progress=progress)
        if claim.version in going and claim.reason in {_LABELLED, _PINNED}
    ]
    if named:
        raise PushRefused(
            f"{named[0]}, so it cannot be retired",
            remedy="`tfkit promote MODEL VERSION` moves its labels first; --force retires it",
        )


def _serving(base_path: Path, going: Collection[int], given: Access) -> list[ServedModel]:
    """Return where one of these versions is served, or any if none is given."""
    found = []
    for server, model in registry.sharing(base_path):
        reached = given.over(access.of_server(server.home))
        with suppress(RequestError), reached.connect(server.endpoints.grpc) as client:
            served = available(ask(client, model) or [])
            if served & set(going) or (served and not going):
                found.append(ServedModel(server.endpoints.grpc, model, base_path, reached))
    return found


def _await(
    place: ServedModel, version: int, gone: Collection[int], timeout_s: float, progress: Progress
) -> None:
    with connect_each(place) as found:
        wait_each(found, place.model, version, timeout_s=timeout_s, progress=progress)
        for client in found.values():
            for each in gone:
                wait_gone(client, place.model, each, timeout_s=timeout_s, progress=progress)
