"""Labels of a running server, moved so that no request for them is ever refused.

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
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from tfserve_kit import savedmodel, strict_json
from tfserve_kit.clients import Target
from tfserve_kit.deployment.schema import Model, Spec, VersionPolicy
from tfserve_kit.engines.base import ServerHandle
from tfserve_kit.errors import UsageError, did_you_mean, listed
from tfserve_kit.progress import SILENT, Progress
from tfserve_kit.repository import scan
from tfserve_kit.serving import reload
from tfserve_kit.serving.access import NOTHING, Access, connect

CANARY, STABLE = "canary", "stable"


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
    spec, now = _current(handle, model)
    _require_sound(spec, model, version)
    labels = {**now.labels, CANARY: version}
    return change.apply(spec, change.loaded() | {version}, labels)


def promote(  # noqa: PLR0913 (what is moved, and what stays)
    handle: ServerHandle,
    model: str,
    version: int | None = None,
    *,
    label: str = STABLE,
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
    spec, now = _current(handle, model)
    version = _chosen(now, model, version)
    _require_sound(spec, model, version)
    others = {
        name: number for name, number in now.labels.items() if name != CANARY or number != version
    }
    labels = {**others, label: version}
    served = change.apply(spec, change.loaded() | {version}, labels)
    if keep_old or set(served.versions) == set(labels.values()):
        return served
    return change.apply(spec, set(labels.values()), labels)


def abort(
    handle: ServerHandle, model: str, *, access: Access = NOTHING, progress: Progress = SILENT
) -> Served:
    """Drop the label `canary`, and unload its version unless another label names it.

    Raises:
        UsageError: there is no such model, it has no canary, or nothing else is loaded.
        RequestError: the server refuses; it serves as before.
    """
    change = _Change(handle, model, access, progress)
    spec, now = _current(handle, model)
    if CANARY not in now.labels:
        raise UsageError(
            f"model {model!r} of server {handle.server_name!r} has no canary",
            remedy=f"its labels are {', '.join(now.labels) or 'none'}",
        )
    labels = {name: number for name, number in now.labels.items() if name != CANARY}
    staying = change.loaded() - {now.labels[CANARY]} | set(labels.values())
    if not staying:
        raise UsageError(
            f"version {now.labels[CANARY]}, the canary, is all that is loaded of {model!r}",
            remedy=f"`tfkit promote {model}` makes it {STABLE}",
        )
    return change.apply(spec, staying, labels)


def _current(handle: ServerHandle, model: str) -> tuple[Spec, Model]:
    spec = reload.deployment(handle)
    if model not in spec.models:
        raise UsageError(
            f"server {handle.server_name!r} has no model {model!r}",
            remedy=did_you_mean(model, spec.models),
        )
    return spec, spec.models[model]


def _chosen(now: Model, model: str, version: int | None) -> int:
    """Return the version that is meant: the one given, the canary or the highest."""
    if version is None:
        version = now.labels.get(CANARY)
    if version is None:
        version = max(_there(now), default=None)
    if version is None:
        raise UsageError(
            f"there is no version of {model!r} in {now.base_path}", remedy="give its number"
        )
    return version


def _require_sound(spec: Spec, model: str, version: int) -> None:
    """Refuse a version that is not there in full; a remote one is the server's own affair."""
    base_path = spec.models[model].base_path
    if "://" in base_path:
        return
    there = _there(spec.models[model])
    if version not in there:
        raise UsageError(
            f"there is no version {version} of {model!r} in {base_path}",
            remedy=f"these are there: {', '.join(map(str, there)) or 'none'}",
        )
    tag = str(spec.server.flags.get("saved_model_tags", "serve"))
    found = savedmodel.problems(there[version], tag=tag)
    if found:
        lines = listed(found)
        raise UsageError(f"version {version} of {model!r} is no complete SavedModel:{lines}")


def _there(now: Model) -> dict[int, Path]:
    """Return the versions in a base path, number to directory; none known for a remote one."""
    try:
        return {version.number: version.path for version in scan(Path(now.base_path))}
    except OSError:
        return {}


@dataclass(frozen=True, slots=True)
class _Change:
    """A change of what a server serves of a model."""

    handle: ServerHandle
    model: str
    access: Access
    progress: Progress

    def loaded(self) -> set[int]:
        """Return the versions that are AVAILABLE now."""
        with connect(self.handle, self.access) as client:
            statuses = client.status(Target(self.model))
        return {each.version for each in statuses if each.state == "AVAILABLE"}

    def apply(self, spec: Spec, versions: Collection[int], labels: Mapping[str, int]) -> Served:
        """Make the server serve these versions under these labels."""
        served = Served(self.model, tuple(sorted({*versions, *labels.values()})), dict(labels))
        policy = VersionPolicy(specific=served.versions)
        update = {"versions": policy, "labels": dict(labels)}
        models = {**spec.models, self.model: spec.models[self.model].model_copy(update=update)}
        wanted = spec.model_copy(update={"models": models})
        reload.reload(self.handle, wanted, access=self.access, progress=self.progress)
        return served


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else strict_json.dumps(name)
