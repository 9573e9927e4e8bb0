"""Other models for a running server, without a restart.

The official server replaces its whole set of models at once, looks at labels before it loads what
they point to, and waits for new names but not for new versions (tensorflow_serving/model_servers/
server_core.cc). So a label that moves to a version yet to be loaded takes two configurations, and
what was asked for is awaited here.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from tfserve_kit import protos
from tfserve_kit.clients.sync import Client
from tfserve_kit.clock import Clock, SystemClock
from tfserve_kit.deployment import render
from tfserve_kit.deployment.flags import MODEL_CONFIG
from tfserve_kit.deployment.spec import Model, Spec, VersionPolicy
from tfserve_kit.engines import registry
from tfserve_kit.engines.base import FleetHandle, ServerHandle
from tfserve_kit.engines.records import CONFIG, DEPLOYMENT
from tfserve_kit.errors import Problem, RequestError, ServerFailed, Severity, UsageError
from tfserve_kit.progress import SILENT, Progress
from tfserve_kit.repository import list_versions
from tfserve_kit.serving import launch
from tfserve_kit.serving.access import (
    NOTHING,
    Access,
    ServedModel,
    connect,
    connect_each,
    of_server,
)
from tfserve_kit.serving.waiting import ask, available, wait_for_models

_RESTORE_S = 10.0
# What a reload applies, and the name, by which its server was found. All else a server reads once,
# when it starts: where that differs, the models may depend on it, or the difference is told.
_APPLIED = {"models", "client", "server.name", "server.ready_timeout_s"}
# What the new models may have been made for: a reload is refused where it differs.
_DEPENDED_ON = {"server.flags", "batching", "monitoring"}
_OF_ENGINE = {"server.binary": "native", "docker": "docker", "swarm": "swarm", "gateway": "swarm",
              "kubernetes": "kubernetes"}  # fmt: skip
_LEFT_OPEN = {"server.engine": "auto", "server.grpc_port": 0, "server.rest_port": 0}


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
        spec: the deployment; its flags, batching and monitoring must be the server's own, but for
            a fleet, of which all may change.
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
    if isinstance(handle, FleetHandle):
        return _roll(handle, spec, templates, access, progress, clock or SystemClock())
    before = deployment(handle.home)
    spec = _applicable(handle, before, spec)
    reached = access.over(Access.of(spec.client))
    with connect(handle, reached) as client, ExitStack() as undo:
        undo.callback(_restore, client, handle)
        for step in _steps(client, before, spec):
            progress.step("telling the server its models")
            client.reload(_config(step, templates), timeout_s=spec.server.ready_timeout_s)
            what = f"server {handle.server_name!r}"
            _await(client, what, step, progress, clock or SystemClock())
        undo.pop_all()
    _remember(handle, spec, templates)
    return spec


def scale(
    handle: ServerHandle, replicas: int, *, progress: Progress = SILENT, clock: Clock | None = None
) -> ServerHandle:
    """Give a fleet another number of replicas; those that go finish their requests first.

    Raises:
        UsageError: the server is not a fleet, and has one replica for ever; or an autoscaler
            decides.
        ServerFailed: there is no room for so many; there are as many as before.
    """
    if replicas == 1 and not isinstance(handle, FleetHandle):
        return handle
    spec = deployment(handle.home)
    if most := spec.kubernetes.max_replicas:
        raise UsageError(
            f"how many replicas server {handle.server_name!r} has is its autoscaler's business, "
            f"from {spec.server.replicas} to {most}",
            remedy="change replicas and max_replicas in tfkit.toml, and `tfkit reload "
            f"{handle.server_name}`",
        )
    server = spec.server.model_copy(update={"replicas": replicas})
    wanted = spec.model_copy(update={"server": server})
    return launch.change(handle, wanted, progress=progress, clock=clock)


def _roll(
    handle: ServerHandle,
    spec: Spec,
    templates: Path | None,
    access: Access,
    progress: Progress,
    clock: Clock,
) -> Spec:
    """Change a fleet replica by replica: each reads its configuration when it starts.

    One that is in service may have another version than the one that is wanted, so all are asked.
    """
    before = deployment(handle.home)
    server = {"name": handle.server_name, "engine": handle.engine}
    spec = spec.model_copy(update={"server": spec.server.model_copy(update=server)})
    new = launch.change(handle, spec, templates=templates, progress=progress, clock=clock)
    engine, _ = registry.choose(handle.engine, is_to_run=False)
    if not engine.answers_here or not any(_wanted(spec).values()):
        return spec
    to = ServedModel(
        new.endpoints.grpc, next(iter(spec.models)), access=access.over(of_server(new.home))
    )
    try:
        with connect_each(to, clock=clock) as found:
            for name, client in found.items():
                _await(client, f"replica {name}", spec, progress, clock)
    except (ServerFailed, RequestError) as error:
        launch.change(new, before, templates=templates, progress=progress, clock=clock)
        error.message += "; the server is again as it was"
        raise
    return spec


def _applicable(handle: ServerHandle, before: Spec, after: Spec) -> Spec:
    """Return the new models in the old server; refuse what a reload cannot change."""
    differ = [key for key, _, _ in _differences(handle, before, after) if key in _DEPENDED_ON]
    timeout = {"ready_timeout_s": after.server.ready_timeout_s}
    server = before.server.model_copy(update=timeout)
    after = after.model_copy(update={"server": server, "docker": before.docker})
    unseen = [
        model.base_path
        for model in after.models.values()
        if after.is_here(model.base_path) and not handle.sees(model.base_path)
    ]
    if differ or unseen:
        what = f"[{differ[0]}] differs" if differ else f"{unseen[0]} is not mounted in it"
        raise UsageError(
            f"server {handle.server_name!r} cannot be reloaded: {what}",
            remedy=f"{_restart(handle)} with the new deployment",
        )
    return after


def not_applied(handle: ServerHandle, spec: Spec) -> list[Problem]:
    """Return a warning for each key whose new value a reload leaves out; of a fleet, none.

    Raises:
        UsageError: what the server was started with is not known any more.
    """
    if isinstance(handle, FleetHandle):
        return []
    remedy = f"{_restart(handle)} applies it"
    return [
        Problem(key, f"{_change(old, new)}; not applied", remedy, Severity.WARNING)
        for key, old, new in _differences(handle, deployment(handle.home), spec)
    ]


def _restart(handle: ServerHandle) -> str:
    return f"`tfkit restart {handle.server_name} --config FILE`"


def _change(old: object, new: object) -> str:
    """Return a change as a predicate to its key; the values of a table may be secret."""
    if isinstance(old, Mapping):
        return "differs from the running server's"
    return f"is {new!r}, but {old!r} in the running server"


def _differences(
    handle: ServerHandle, before: Spec, after: Spec
) -> Iterator[tuple[str, object, object]]:
    """Yield what the server would read when it starts: key, value it has, value it would have."""
    have, want = _keys(before), _keys(after)
    have["server.engine"] = handle.engine
    for key, value in want.items():
        engine = _OF_ENGINE.get(key) or _OF_ENGINE.get(key.partition(".")[0])
        is_chosen = key in _APPLIED or (key, value) in _LEFT_OPEN.items()
        if value != have[key] and not is_chosen and engine in {None, handle.engine}:
            yield key, have[key], value


def _keys(spec: Spec) -> dict[str, object]:
    """Return the sections of a deployment, `server` and `docker` key by key."""
    sections = dict(spec)
    keys = {
        f"{name}.{key}": value for name in ("server", "docker") for key, value in sections.pop(name)
    }
    return sections | keys


def _steps(client: Client, before: Spec, after: Spec) -> list[Spec]:
    """Return the configurations to send: first one that loads what labels will move to."""
    interim, is_needed = {}, False
    for name, model in after.models.items():
        there = available(ask(client, name) or [])
        if not set(model.labels.values()) <= there:
            is_needed = True
        kept = before.models[name].labels if name in before.models else {}
        both = sorted(there | set(_loaded(after, model)))
        interim[name] = model.model_copy(
            update={
                "versions": VersionPolicy(specific=tuple(both)) if both else model.versions,
                "labels": {label: n for label, n in kept.items() if n in there},
            }
        )
    return [after.model_copy(update={"models": interim}), after] if is_needed else [after]


def _wanted(spec: Spec) -> dict[str, list[int]]:
    """Return by model the versions that its policy loads now, as far as that can be known here."""
    return {name: _loaded(spec, model) for name, model in spec.models.items()}


def _loaded(spec: Spec, model: Model) -> list[int]:
    if not spec.is_here(model.base_path):
        return list(model.versions.specific)
    return model.versions.loads(version.number for version in list_versions(Path(model.base_path)))


def _config(spec: Spec, templates: Path | None) -> Any:
    text = render.render(spec, templates=templates)[MODEL_CONFIG]
    return protos.from_text("ModelServerConfig", text)


def _restore(client: Client, handle: ServerHandle) -> None:
    """Tell the server what it was told before; it keeps a configuration that it refused halfway."""
    text = (handle.home / CONFIG / MODEL_CONFIG).read_text("utf-8")
    with suppress(RequestError):  # what failed before says more
        client.reload(protos.from_text("ModelServerConfig", text), timeout_s=_RESTORE_S)


def _await(client: Client, what: str, spec: Spec, progress: Progress, clock: Clock) -> None:
    """Wait until every wanted version is available; `what` is called so in errors."""
    timeout_s = spec.server.ready_timeout_s
    waited = wait_for_models(
        client,
        {name: versions for name, versions in _wanted(spec).items() if versions},
        timeout_s=timeout_s,
        clock=clock,
        progress=progress,
    )
    if waited.failed:
        raise ServerFailed(
            f"{what} could not load version {waited.failed.version} of {waited.model!r}: "
            f"{waited.failed.error}",
            remedy=f"`tfkit logs {spec.server.name}` says why; push a model that loads, under a "
            "new number",
        )
    if waited.duration_s is None:
        raise ServerFailed(
            f"{what} does not serve the new models after {timeout_s:g} s",
            remedy=f"`tfkit logs {spec.server.name}` says why",
        )


def _remember(handle: ServerHandle, spec: Spec, templates: Path | None) -> None:
    """Keep what is served now, so that a restart serves the same."""
    text = render.render(spec, templates=templates)[MODEL_CONFIG]
    handle.keep({f"{CONFIG}/{MODEL_CONFIG}": text, DEPLOYMENT: spec.model_dump_json()})
