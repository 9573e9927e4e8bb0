"""Use cases over engines, clients and the repository: the only module that knows all three."""

import errno
import socket
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.parse import urlsplit

from tfserve_kit.clients import Client, Target, addresses
from tfserve_kit.clock import Clock, SystemClock
from tfserve_kit.deployment import render
from tfserve_kit.deployment.lint import lint
from tfserve_kit.deployment.spec import Spec
from tfserve_kit.engines import process, registry
from tfserve_kit.engines.base import (
    ALIVE,
    LOG_TAIL,
    Engine,
    FleetHandle,
    Phase,
    Plan,
    ServerHandle,
    taken,
)
from tfserve_kit.errors import (
    DeadlineExceeded,
    Problem,
    RequestError,
    ServerFailed,
    ServerUnreachable,
    Severity,
    SpecError,
    UsageError,
)
from tfserve_kit.progress import SILENT, Progress
from tfserve_kit.serving import access
from tfserve_kit.serving.waiting import wait_for_models

_LAST_WORDS_S = 1.0
_HANGS_UP_WITHIN_S = 0.5


def plan(spec: Spec, engine: Engine, *, templates: Path | None = None) -> Plan:
    """Return what `up` would start, having changed nothing.

    Raises:
        SpecError: a template is broken.
    """
    return engine.plan(spec, render.render(spec, templates=templates))


def up(
    spec: Spec,
    engine: Engine,
    *,
    templates: Path | None = None,
    progress: Progress = SILENT,
    clock: Clock | None = None,
) -> ServerHandle:
    """Start a server and wait until every model answers: `prepare`, then `start`.

    Raises:
        TfkitError: as these two.
    """
    prepare(spec, engine, progress=progress)
    return start(spec, engine, templates=templates, progress=progress, clock=clock)


def prepare(spec: Spec, engine: Engine, *, progress: Progress = SILENT) -> None:
    """Check a deployment and fetch what its server will need; may be interrupted anywhere.

    Raises:
        SpecError: the server could never serve this.
        EngineUnavailable: the engine lacks what it needs, such as its image.
    """
    for finding in check(spec):
        if finding.severity is Severity.WARNING:
            progress.note(f"Warning: {finding}")
    engine.prepare(spec, progress=progress)


def start(
    spec: Spec,
    engine: Engine,
    *,
    templates: Path | None = None,
    progress: Progress = SILENT,
    clock: Clock | None = None,
) -> ServerHandle:
    """Start a server that is prepared, and wait until every model answers.

    Args:
        spec: what to serve; ports of 0 are replaced by free ones.
        engine: what runs it.
        templates: a folder whose templates replace ours.
        progress: told the steps and how many models are ready.
        clock: what the waiting measures with.

    Raises:
        SpecError: a template is broken.
        ServerExists: a server of that name runs.
        ServerFailed: a port is taken, the server ended, or a model did not become available in
            time. What was started is stopped; the error holds the last log lines.
    """
    _make_room(spec.server.name, engine)
    spec = _settle_ports(spec, binds_here=engine.binds_here)
    todo = plan(spec, engine, templates=templates)
    progress.step(f"starting {todo.server_name!r} ({engine.name})")
    handle = engine.start(todo, progress=progress, clock=clock)
    try:
        handle.keep(access.trusted(spec))
        if engine.answers_here:
            _wait_ready(handle, spec, progress, clock or SystemClock())
        else:
            _require_running(handle, spec)
    except BaseException:
        handle.stop()
        raise
    return handle


def change(
    handle: ServerHandle,
    spec: Spec,
    *,
    is_forced: bool = False,
    templates: Path | None = None,
    progress: Progress = SILENT,
    clock: Clock | None = None,
) -> ServerHandle:
    """Give a fleet another deployment while it serves, one replica after the other.

    Args:
        handle: the server.
        spec: the deployment; one that the server has already changes nothing.
        is_forced: replace all replicas even then.
        templates: a folder whose templates replace ours.
        progress: told the steps and how many replicas are as wanted.
        clock: what the waiting measures with.

    Returns:
        The server as it is now.

    Raises:
        UsageError: the server is not a fleet.
        ServerFailed: a replica did not become healthy; the server serves as before.
    """
    if not isinstance(handle, FleetHandle):
        raise UsageError(
            f"server {handle.server_name!r} has no replicas (engine {handle.engine})",
            remedy='serve with engine = "swarm" or "kubernetes" in [server]',
        )
    engine, _ = registry.choose(handle.engine, docker=spec.docker)
    todo = plan(_settle_ports(spec, binds_here=engine.binds_here), engine, templates=templates)
    new = handle.update(todo, is_forced=is_forced, progress=progress, clock=clock)
    new.keep(access.trusted(spec))
    return new


def _make_room(server_name: str, engine: Engine) -> None:
    """Refuse a name that runs on another engine, and forget what ended there."""
    other = registry.elsewhere(server_name, engine.name)
    if other is None:
        return
    if other.state().phase in ALIVE:
        raise taken(server_name, f"engine {other.engine}")
    other.stop()


def check(spec: Spec) -> list[Problem]:
    """Return what the server may stumble over, none of it an error.

    Raises:
        SpecError: with every error that the linter found.
    """
    found = lint(spec)
    errors = [each for each in found if each.severity is Severity.ERROR]
    if errors:
        raise SpecError("deployment", errors)
    return found


def _settle_ports(spec: Spec, *, binds_here: bool = True) -> Spec:
    """Return the deployment with ports of 0 replaced by free ones.

    Args:
        spec: the deployment.
        binds_here: whether its server will take them here; others are not looked at.

    Raises:
        ServerFailed: a port that was asked for is taken.
    """
    server = spec.server
    with ExitStack() as held:
        ports = {
            key: _probe(server.host if binds_here else "", port, key, held)
            if binds_here or not port
            else port
            for key in ("grpc_port", "rest_port")
            for port in (getattr(server, key),)
        }
    return spec.model_copy(update={"server": server.model_copy(update=ports)})


def _probe(host: str, port: int, key: str, held: ExitStack) -> int:
    """Bind a port to see that it is free; it stays bound until both were found."""
    try:
        probe = held.enter_context(socket.create_server((host, port)))
    except OSError as error:
        option = f"--{key.replace('_', '-')}"
        said = (error.strerror or str(error)).partition(" (while")[0]  # which repeats the address
        remedy = f"`tfkit ps` shows what runs; {option} 0 finds a free port"
        is_name = isinstance(error.__context__, socket.gaierror)
        if is_name or error.errno == errno.EADDRNOTAVAIL:
            remedy = "give an address that this machine has: --host 127.0.0.1, or 0.0.0.0 for all"
        elif error.errno in {errno.EACCES, errno.EPERM}:
            remedy = f"give a port above 1023: {option} {port + 8000}"
        raise ServerFailed(
            f"cannot listen on {host}:{port} for {key.replace('_', ' ')}: {said}", remedy=remedy
        ) from error
    found: int = probe.getsockname()[1]
    return found


def _wait_ready(handle: ServerHandle, spec: Spec, progress: Progress, clock: Clock) -> None:
    progress.step("waiting for " + ", ".join(spec.models))
    timeout_s = spec.server.ready_timeout_s
    with access.connect(handle) as client:
        waited = wait_for_models(
            client,
            dict.fromkeys(handle.models, ()),
            timeout_s=timeout_s,
            clock=clock,
            progress=progress,
            is_listening=lambda: _require_running(handle, spec) and _all_listen(handle),
        )
        if waited.failed:
            raise _failed(handle, spec, f"could not load {waited.model!r}: {waited.failed.error}")
        if waited.duration_s is None:
            text = f"was not ready after {timeout_s:g} s{_last_words(handle, client)}"
            raise _failed(handle, spec, text)


def _require_running(handle: ServerHandle, spec: Spec) -> bool:
    state = handle.state()
    if state.phase in {Phase.EXITED, Phase.GONE}:
        text = f"ended with {process.exit_text(state.exit_code)}"
        raise _failed(handle, spec, text, state.exit_code)
    return True


def _failed(
    handle: ServerHandle, spec: Spec, what: str, exit_code: int | None = None
) -> ServerFailed:
    return ServerFailed(
        f"server {handle.server_name!r} {what}{_likely_causes(spec)}",
        exit_code=exit_code,
        log_tail=list(handle.logs(tail=LOG_TAIL)),
        remedy="the log above says why; `tfkit serve --dry-run` shows the command",
    )


def _likely_causes(spec: Spec) -> str:
    """Return what the linter says of the models now, which may be why a server is not ready."""
    worth = {Severity.ERROR, Severity.WARNING}
    told = [each for each in lint(spec) if each.severity in worth and each.path[:7] == "models."]
    return "".join(f"\n  - {each.path}: {each.message} ({each.remedy})" for each in told)


def _last_words(handle: ServerHandle, client: Client) -> str:
    """Return why the first model cannot be asked about, if it cannot: perhaps it is the TLS."""
    if not handle.endpoints.grpc.startswith("grpcs:"):
        return ""
    try:
        client.status(Target(next(iter(handle.models))), timeout_s=_LAST_WORDS_S)
    except (ServerUnreachable, DeadlineExceeded) as error:
        return f": {error.message}"
    except RequestError:
        return ""
    return ""


def _all_listen(handle: ServerHandle) -> bool:
    return all(map(_listens, addresses.read(handle.endpoints.grpc).members))


def _listens(address: addresses.Address) -> bool:
    """Say whether a server listens; a gRPC channel that failed once waits seconds to try again.

    Docker's own proxy opens the port of a container at once, and hangs up while the server in it
    does not listen yet; a server speaks first, or waits.
    """
    parts = urlsplit(address.url)
    try:
        with socket.create_connection((parts.hostname or "", parts.port or 0), 1.0) as connection:
            connection.settimeout(_HANGS_UP_WITHIN_S)
            with suppress(TimeoutError):
                return connection.recv(1) != b""
    except OSError:
        return False
    return True
