"""Other models for a running server, without a restart.

The official server replaces its whole set of models at once, looks at labels before it loads what
they point to, and waits for new names but not for new versions (tensorflow_serving/model_servers/
server_core.cc). So a label that moves to a version yet to be loaded takes two configurations, and
what was asked for is awaited here.
"""

from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from tfserve_kit import protos
from tfserve_kit.clients.sync import Client
from tfserve_kit.clock import Clock, SystemClock
from tfserve_kit.deployment import render
from tfserve_kit.deployment.flags import MODEL_CONFIG
from tfserve_kit.deployment.spec import Model, Spec, VersionPolicy
from tfserve_kit.engines.base import ServerHandle
from tfserve_kit.engines.records import CONFIG, DEPLOYMENT
from tfserve_kit.errors import RequestError, ServerFailed, UsageError
from tfserve_kit.progress import SILENT, Progress
from tfserve_kit.repository import list_versions
from tfserve_kit.serving.access import NOTHING, Access, connect
from tfserve_kit.serving.waiting import ask, wait_for_models

_RESTORE_S = 10.0
# What a server reads once, when it starts.
_FIXED: dict[str, Callable[[Spec], object]] = {
    "server.flags": lambda spec: spec.server.flags,
    "batching": lambda spec: spec.batching,
    "monitoring": lambda spec: spec.monitoring,
}


def deployment(home: Path) -> Spec:
    """Return what a server was started with, or last reloaded with.

    Args:
        home: the server's folder.

    Raises:
        UsageError: it is not known any more.
    """
    try:
        return Spec.model_validate_json((home / DEPLOYMENT).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"the deployment of server {home.name!r} is not known: {error}",
            remedy="stop the server and serve it again",
        ) from error


def reload(
    handle: ServerHandle,
    spec: Spec,
    *,
    templates: Path | None = None,
    access: Access = NOTHING,
    progress: Progress = SILENT,
    clock: Clock | None = None,
) -> Spec:
    """Make a running server serve the models of another deployment, and wait until it does.

    Args:
        handle: the server.
        spec: the deployment; its flags, batching and monitoring must be the server's own.
        templates: a folder whose templates replace ours.
        access: wins over what is known of how to reach the server.
        progress: told the steps and how many models are as wanted.
        clock: what the waiting measures with.

    Returns:
        The deployment as it is served now.

    Raises:
        UsageError: the server must be restarted for this.
        ServerFailed: a version that is wanted did not become available.
        RequestError: the server refuses the configuration. After each of them it serves as before.
    """
    before = deployment(handle.home)
    spec = _applicable(handle, before, spec)
    reached = access.over(Access.of(spec.client))
    with connect(handle, reached) as client, ExitStack() as undo:
        undo.callback(_restore, client, handle)
        for step in _steps(client, before, spec):
            progress.step("telling the server its models")
            client.reload(_config(step, templates), timeout_s=spec.server.ready_timeout_s)
            _await(client, handle, step, progress, clock or SystemClock())
        undo.pop_all()
    _remember(handle, spec, templates)
    return spec


def _applicable(handle: ServerHandle, before: Spec, after: Spec) -> Spec:
    """Return the new models in the old server; refuse what a reload cannot change."""
    differ = [name for name, of in _FIXED.items() if of(after) != of(before)]
    after = after.model_copy(update={"server": before.server, "docker": before.docker})
    unseen = [
        model.base_path
        for model in after.models.values()
        if "://" not in model.base_path and not handle.sees(model.base_path)
    ]
    if differ or unseen:
        what = f"[{differ[0]}] differs" if differ else f"{unseen[0]} is not mounted in it"
        raise UsageError(
            f"server {handle.server_name!r} cannot be reloaded: {what}",
            remedy=f"`tfkit restart {handle.server_name} --config FILE` with the new deployment",
        )
    return after


def _steps(client: Client, before: Spec, after: Spec) -> list[Spec]:
    """Return the configurations to send: first one that loads what labels will move to."""
    interim, is_needed = {}, False
    for name, model in after.models.items():
        available = _available(client, name)
        if not set(model.labels.values()) <= available:
            is_needed = True
        kept = before.models[name].labels if name in before.models else {}
        both = sorted(available | set(_wanted(model)))
        interim[name] = model.model_copy(
            update={
                "versions": VersionPolicy(specific=tuple(both)) if both else model.versions,
                "labels": {label: n for label, n in kept.items() if n in available},
            }
        )
    return [after.model_copy(update={"models": interim}), after] if is_needed else [after]


def _available(client: Client, name: str) -> set[int]:
    statuses = ask(client, name) or []
    return {each.version for each in statuses if each.state == "AVAILABLE"}


def _wanted(model: Model) -> list[int]:
    """Return the versions that a model's policy loads now; none known for a remote base path."""
    if "://" in model.base_path:
        return []
    return model.versions.loads(version.number for version in list_versions(Path(model.base_path)))


def _config(spec: Spec, templates: Path | None) -> Any:
    text = render.render(spec, templates=templates)[MODEL_CONFIG]
    return protos.from_text("ModelServerConfig", text)


def _restore(client: Client, handle: ServerHandle) -> None:
    """Tell the server what it was told before; it keeps a configuration that it refused halfway."""
    text = (handle.home / CONFIG / MODEL_CONFIG).read_text("utf-8")
    with suppress(RequestError):  # what failed before says more
        client.reload(protos.from_text("ModelServerConfig", text), timeout_s=_RESTORE_S)


def _await(
    client: Client, handle: ServerHandle, spec: Spec, progress: Progress, clock: Clock
) -> None:
    """Wait until every wanted version is available."""
    wanted = {name: _wanted(model) for name, model in spec.models.items()}
    timeout_s = spec.server.ready_timeout_s
    waited = wait_for_models(
        client,
        {name: versions for name, versions in wanted.items() if versions},
        timeout_s=timeout_s,
        clock=clock,
        progress=progress,
    )
    if waited.failed:
        raise ServerFailed(
            f"server {handle.server_name!r} could not load version {waited.failed.version} of "
            f"{waited.model!r}: {waited.failed.error}"
        )
    if waited.duration_s is None:
        raise ServerFailed(
            f"server {handle.server_name!r} does not serve the new models after {timeout_s:g} s",
            remedy=f"`tfkit logs {handle.server_name}` says why",
        )


def _remember(handle: ServerHandle, spec: Spec, templates: Path | None) -> None:
    """Keep what is served now, so that a restart serves the same."""
    text = render.render(spec, templates=templates)[MODEL_CONFIG]
    handle.keep({f"{CONFIG}/{MODEL_CONFIG}": text, DEPLOYMENT: spec.model_dump_json()})
