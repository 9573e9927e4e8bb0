"""Commands about the servers that tfkit runs, and about what can run them here."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from threading import Thread
from typing import Any

import click

from tfserve_kit import safe_text
from tfserve_kit.cli import exits, options, output
from tfserve_kit.cli.exits import deferred
from tfserve_kit.cli.options import (
    ServerChoice,
    access_options,
    finite,
    json_option,
    name_argument,
    positive,
    server_options,
)
from tfserve_kit.cli.target import destinations
from tfserve_kit.clients import Client, Target, addresses
from tfserve_kit.clients.addresses import Address
from tfserve_kit.clock import Clock
from tfserve_kit.deployment import DEFAULT_FILE, Spec, load
from tfserve_kit.engines import FleetHandle, Plan, ServerHandle, process, registry
from tfserve_kit.engines.base import ALIVE, LOG_TAIL
from tfserve_kit.engines.process import shell_line
from tfserve_kit.errors import (
    ModelNotFound,
    RequestError,
    ServerFailed,
    Severity,
    SpecError,
    TfkitError,
    UsageError,
)
from tfserve_kit.serving import launch, reload, rollback
from tfserve_kit.serving.access import Access, ServedModel, reached_by, server_at
from tfserve_kit.serving.rollback import Served


def described(handle: ServerHandle) -> dict[str, Any]:
    """Return what is known of a server, as JSON shows it; of a fleet also its replicas."""
    state = handle.state()
    replicas = {"replicas": _replicas(handle)} if isinstance(handle, FleetHandle) else {}
    return {
        "name": handle.server_name,
        "engine": handle.engine,
        "state": state.phase.value,
        "exit_code": state.exit_code,
        "grpc": handle.endpoints.grpc,
        "rest": handle.endpoints.rest,
        "models": {name: safe_text.redacted_url(path) for name, path in handle.models.items()},
        **replicas,
    }


def _replicas(handle: ServerHandle) -> list[dict[str, Any]]:
    return [
        {
            "name": each.name,
            "node": each.node,
            "state": each.state.phase.value,
            "exit_code": each.state.exit_code,
            "grpc": each.endpoints.grpc if each.endpoints else None,
            "rest": each.endpoints.rest if each.endpoints else None,
            "reason": each.reason,
        }
        for each in handle.replicas()
    ]


@click.command("ps")
@json_option
def ps_command(as_json: bool) -> None:
    """List the servers that tfkit runs.

    A server that ended by itself stays listed, with its log, until `tfkit stop`.
    """
    rows = [described(handle) for handle in registry.servers()]
    text = output.table(
        ["NAME", "ENGINE", "STATE", "GRPC", "REST", "MODELS"], [_cells(row) for row in rows]
    )
    output.result("servers", rows, as_json=as_json, text=text)


def _cells(row: dict[str, Any]) -> list[str]:
    state = _shown(row)
    if (replicas := row.get("replicas")) is not None:
        state += f" {sum(each['state'] == 'running' for each in replicas)}/{len(replicas)}"
    return [row["name"], row["engine"], state, row["grpc"], row["rest"], ",".join(row["models"])]


def _shown(row: dict[str, Any]) -> str:
    code = row["exit_code"]
    return str(row["state"]) if code is None else f"{row['state']} ({code})"


# How often the foreground command looks whether the server still runs, in seconds.
_LOOK_S = 0.2
_LOOK_FAR_S = 2.0  # where each look is a process and a request


@click.command("serve")
@options.deployment_options
@click.option("--name", help="Name of the server.")
@options.engine_options
@click.option("--pull", metavar="missing|always|never", help="When to pull the image.")
@click.option("--gpu", metavar="all|N|device=IDS", help="GPUs for the container.")
@click.option("--host", help="Address to listen on.")
@click.option("--grpc-port", type=int, envvar="TFKIT_GRPC_PORT",
              help="gRPC port; 0 finds a free one.")  # fmt: skip
@click.option("--rest-port", type=int, envvar="TFKIT_REST_PORT",
              help="REST port; 0 finds a free one.")  # fmt: skip
@click.option("--ready-timeout", "ready_timeout_s", type=positive, metavar="SECONDS",
              help="Maximum wait until all models are available.")  # fmt: skip
@click.option("--detach", "-d", is_flag=True, help="Leave the server running and return.")
@click.option("--dry-run", is_flag=True, help="Show the command and its files; start nothing.")
@click.option("--show-secrets", is_flag=True,
              help="Show what --dry-run hides: values of env, passwords in URLs.")  # fmt: skip
@access_options
@json_option
def serve_command(
    config: Path | None,
    models: tuple[str, ...],
    templates: Path | None,
    image: str | None,
    pull: str | None,
    gpu: str | None,
    detach: bool,
    dry_run: bool,
    show_secrets: bool,
    access: Access,
    as_json: bool,
    **server: str | float | None,
) -> None:
    """Start a server and wait until its models are available.

    Runs in the foreground until Ctrl-C, which stops the server; --detach leaves it running.
    """
    docker = {"image": image, "pull": pull, "gpu": gpu}
    spec = options.load_deployment(config, models, server=server, docker=docker)
    spec = reached_by(spec, access)
    engine, why = registry.choose(
        spec.server.engine, binary=spec.server.binary, docker=spec.docker, is_to_run=not dry_run
    )
    if dry_run:
        todo = launch.plan(spec, engine, templates=templates)
        _show_plan(todo, show_secrets=show_secrets, as_json=as_json)
        return
    output.note(f"Engine: {engine.name} ({why})")
    with output.TerminalProgress() as progress:
        launch.prepare(spec, engine, progress=progress)
    with deferred() as interrupts, ExitStack() as undo:
        with output.TerminalProgress() as progress:
            handle = launch.start(
                spec, engine, templates=templates, progress=progress, clock=interrupts
            )
        if not detach:
            undo.callback(handle.stop)
        output.result("server", described(handle), as_json=as_json, text=_announcement(handle))
        if not detach:
            _attend(handle, interrupts)


_END = "END"  # of what a command reads


def _show_plan(plan: Plan, *, show_secrets: bool, as_json: bool) -> None:
    for note in plan.notes:
        output.note(f"Note: {note}.")
    argv, files, stdin = list(plan.argv), dict(plan.files), plan.stdin
    if not show_secrets:
        argv = [plan.private.get(each, safe_text.redacted(each)) for each in argv]
        files = {path: safe_text.redacted(text) for path, text in files.items()}
        stdin = safe_text.redacted(plan.private.get(stdin, stdin))
    if (argv, files, stdin) != (list(plan.argv), plan.files, plan.stdin):
        output.note("Note: secrets are hidden as ***; --show-secrets shows them.")
    text = "".join(f"\n# {path}\n{text}" for path, text in files.items())
    data: dict[str, Any] = {"engine": plan.engine, "argv": argv, "files": files}
    data |= {"before": [list(each) for each in plan.before]} if plan.before else {}
    data |= {"stdin": stdin} if stdin else {}
    lines = "".join(f"{shell_line(each)}\n" for each in (*plan.before, argv))
    if stdin:
        lines = f"{lines.rstrip()} <<'{_END}'\n{stdin}\n{_END}\n"
    output.result("plan", data, as_json=as_json, text=lines + text.rstrip())


def _announcement(handle: ServerHandle) -> str:
    models = ", ".join(handle.models)
    where = f"  gRPC  {handle.endpoints.grpc}\n  REST  {handle.endpoints.rest}"
    return f"Server {handle.server_name!r} is ready: {models}\n{where}"


def _attend(handle: ServerHandle, clock: Clock) -> None:
    """Show the log until Ctrl-C or until the server ends."""
    Thread(target=_show_log, args=(handle,), daemon=True).start()
    # A container with a restart policy may start again.
    while (state := handle.state()).phase in ALIVE:
        clock.sleep(_LOOK_FAR_S if handle.engine == "kubernetes" else _LOOK_S)
    raise ServerFailed(
        f"server {handle.server_name!r} ended by itself with {process.exit_text(state.exit_code)}",
        exit_code=state.exit_code,
        log_tail=list(handle.logs(tail=LOG_TAIL)),
        remedy="the log below says why; `tfkit lint` looks for causes in the deployment",
    )


def _show_log(handle: ServerHandle) -> None:
    with suppress(TfkitError):  # who attends to the server will say the same
        for line in handle.logs(tail=0, follow=True):
            output.note(line)


_COLUMNS = ("model", "version", "state", "error")


@click.command("status")
@server_options
@json_option
def status_command(
    server: ServerChoice,
    timeout_s: float,
    as_json: bool,
) -> int:
    """Show the versions of a model and their states.

    Without --model, of every model that the server is known to have. A fleet is shown server by
    server; of a server with replicas also where each of them runs.
    """
    places = destinations(*server)
    address = addresses.read(places[0].url)
    if address.is_fleet:
        return _status_of_fleet(places, address, timeout_s, as_json=as_json)
    with places[0].connect() as client:
        rows = list(_rows(client, [each.target() for each in places], timeout_s))
    blocks = [_table(rows), *([] if as_json else _replicas_at(address))]
    output.result("status", rows, as_json=as_json, text="\n\n".join(blocks))
    return exits.OK


def _status_of_fleet(
    places: Sequence[ServedModel], address: Address, timeout_s: float, *, as_json: bool
) -> int:
    """Show a block for each server of a fleet; return the exit code, of the first that fails."""
    rows, blocks = list[dict[str, Any]](), list[str]()
    code = exits.OK
    for url in addresses.servers(address):
        try:
            with places[0].access.connect(url) as client:
                found = list(_rows(client, [each.target() for each in places], timeout_s))
            blocks.append(f"{url}\n{_table(found)}")
        except RequestError as error:
            code = code or exits.exit_code(error)
            found = [dict.fromkeys(_COLUMNS) | {"state": "UNKNOWN", "error": error.message}]
            blocks.append(f"{url}\n  {error}")
        rows += [{"replica": url} | row for row in found]
    blocks += [] if as_json else _replicas_at(address)
    output.result("status", rows, as_json=as_json, text="\n\n".join(blocks))
    return code


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    return output.table(
        [column.upper() for column in _COLUMNS], [list(row.values()) for row in rows]
    )


def _replicas_at(address: Address) -> list[str]:
    """Return a table of the replicas at an address; none where tfkit runs no fleet there."""
    running = server_at(address)
    if running is None or running.engine not in {"swarm", "kubernetes"}:
        return []
    return [_replica_table(registry.find(running.server_name))]


def _replica_table(handle: ServerHandle) -> str:
    rows: list[Sequence[object]] = [
        [row["name"], row["node"], _shown(row), row["grpc"] or "", row["reason"]]
        for row in _replicas(handle)
    ]
    return output.table(["REPLICA", "NODE", "STATE", "GRPC", "REASON"], rows)


def _rows(client: Client, models: Sequence[Target], timeout_s: float) -> Iterator[dict[str, Any]]:
    """Yield a row for each version; of several models, one that is unknown there hides no other."""
    for target in models:
        model = target.model
        try:
            found = client.status(target, timeout_s=timeout_s)
        except ModelNotFound as error:
            if len(models) == 1:
                raise
            yield dict(zip(_COLUMNS, (model, None, "NOT_FOUND", error.message), strict=True))
            continue
        for each in found:
            row = (model, each.version, each.state, each.error)
            yield dict(zip(_COLUMNS, row, strict=True))


def _named_or_only(name: str | None) -> ServerHandle:
    """Return the named server, or the only one.

    Raises:
        ServerNotFound: there is none of that name.
        UsageError: no name, and there is not exactly one.
    """
    if name is not None:
        return registry.find(name)
    handles = registry.servers()
    if len(handles) == 1:
        return handles[0]
    names = ", ".join(handle.server_name for handle in handles) or "none"
    raise UsageError(f"which server? There are: {names}", remedy="give its name")


@click.command("stop")
@name_argument
@click.option("--all", "everything", is_flag=True, help="Stop all servers.")
@click.option("--grace", "grace_s", type=finite(min=0), default=10.0,
              show_default=True, metavar="SECONDS",
              help="Time to end, after its requests, before the server is killed.")  # fmt: skip
@json_option
def stop_command(name: str | None, everything: bool, grace_s: float, as_json: bool) -> None:
    """Stop servers.

    NAME is optional if there is only one.
    """
    handles = registry.servers() if everything else [_named_or_only(name)]
    for handle in handles:
        handle.stop(grace_s=grace_s)
    names = [handle.server_name for handle in handles]
    text = f"Stopped {', '.join(names)}" if names else "No server runs"
    output.result("stopped", names, as_json=as_json, text=text)


@click.command("logs")
@name_argument
@click.option("--follow", "-f", is_flag=True, help="Follow the log until the server ends.")
@click.option("--tail", type=click.IntRange(min=0), metavar="N", help="Only the last N lines.")
def logs_command(name: str | None, follow: bool, tail: int | None) -> None:
    """Show the log of a server.

    NAME is optional if there is only one.
    """
    for line in _named_or_only(name).logs(tail=tail, follow=follow):
        output.line(line)


@click.command("reload")
@name_argument
@options.deployment_options
@access_options
@json_option
def reload_command(
    name: str | None,
    config: Path | None,
    models: tuple[str, ...],
    templates: Path | None,
    access: Access,
    as_json: bool,
) -> None:
    """Change the models of a running server.

    Models, versions and labels become those of the deployment; waits until they are served. Says
    which other keys of it differ from the running server's: `tfkit restart` applies them.
    NAME is optional if there is only one server.
    """
    handle = _named_or_only(name)
    spec = _with_models(handle, config, models) if models else options.load_deployment(config, ())
    spec = reached_by(spec, access)
    with output.TerminalProgress() as progress:
        launch.check(spec)
        kept = reload.not_applied(handle, spec)
        now = reload.reload(handle, spec, templates=templates, progress=progress)
    for problem in kept:
        output.note(f"Warning: {problem}")
    text = f"Server {handle.server_name!r} serves: {', '.join(now.models)}"
    handle = registry.find(handle.server_name)  # it knows its models anew
    data = described(handle) | {"not_applied": [asdict(each) for each in kept]}
    output.result("server", data, as_json=as_json, text=text)


def _with_models(handle: ServerHandle, config: Path | None, models: tuple[str, ...]) -> Spec:
    """Return a server's own deployment with the models of `--model`; refuses a file beside them."""
    known = reload.deployment(handle.home).model_dump(exclude={"models"}, exclude_none=True)
    return options.load_deployment(config, models, **known)


@click.command("restart")
@name_argument
@options.deployment_options
@access_options
@json_option
def restart_command(
    name: str | None,
    config: Path | None,
    models: tuple[str, ...],
    templates: Path | None,
    access: Access,
    as_json: bool,
) -> None:
    """Stop a server and start it again.

    One with replicas serves on meanwhile: they are replaced one after the other.
    Detached, and with the deployment it has, unless --config or --model give another. NAME may be
    left out if there is just one.
    """
    handle = _named_or_only(name)
    spec = reached_by(_changed(handle, config, models), access)
    if isinstance(handle, FleetHandle) and spec.server.engine == handle.engine:
        with output.TerminalProgress() as progress:
            launch.check(spec)
            new = launch.change(
                handle, spec, is_forced=True, templates=templates, progress=progress
            )
        output.result("server", described(new), as_json=as_json, text=_ready_again(new))
        return
    name = handle.engine if spec.server.engine == "auto" else spec.server.engine
    engine, _ = registry.choose(name, binary=spec.server.binary, docker=spec.docker)
    with output.TerminalProgress() as progress:
        launch.prepare(spec, engine, progress=progress)
    with deferred() as interrupts, output.TerminalProgress() as progress:
        handle.stop()
        new = launch.start(spec, engine, templates=templates, progress=progress, clock=interrupts)
    output.result("server", described(new), as_json=as_json, text=_ready_again(new))


def _ready_again(handle: ServerHandle) -> str:
    return f"Server {handle.server_name!r} is ready again"


@click.command("scale")
@click.argument("name")
@click.argument("replicas", type=click.IntRange(min=1))
@json_option
def scale_command(name: str, replicas: int, as_json: bool) -> None:
    """Change how many replicas a server has.

    Those that go finish their requests first. tfkit.toml is not changed: set `replicas` there too.
    """
    handle = _named_or_only(name)
    with output.TerminalProgress() as progress:
        new = reload.scale(handle, replicas, progress=progress)
    text = f"Server {new.server_name!r} has {replicas} replica{'s' if replicas > 1 else ''}"
    output.result("server", described(new), as_json=as_json, text=text)


def _changed(handle: ServerHandle, config: Path | None, models: tuple[str, ...]) -> Spec:
    """Return what a file says, or the server's own deployment, with other models if there are."""
    if models:
        return _with_models(handle, config, models)
    if config:
        return options.load_deployment(config, (), server={"name": handle.server_name})
    return reload.deployment(handle.home)


@click.command("promote")
@click.argument("model")
@click.argument("version", type=int, required=False)
@click.option("--server", metavar="NAME", help="Server; optional if there is only one.")
@click.option("--label", default="stable", show_default=True, help="Label to move.")
@click.option("--keep-old", is_flag=True, help="Keep unlabelled versions loaded.")
@access_options
@json_option
def promote_command(
    model: str,
    version: int | None,
    server: str | None,
    label: str,
    keep_old: bool,
    access: Access,
    as_json: bool,
) -> None:
    """Move a label of a running server to another version.

    Loads VERSION first, moves the label then, and unloads last what no label names. Without VERSION
    the canary is promoted, or the highest version if there is no canary. No request for the label
    is refused meanwhile. tfkit.toml is not changed: copy the lines that are printed.
    """
    handle = _named_or_only(server)
    with output.TerminalProgress() as progress:
        served = rollback.promote(
            handle, model, version, label=label, keep_old=keep_old, access=access, progress=progress
        )
    show("promote", served, as_json=as_json)


def show(kind: str, served: Served, *, as_json: bool) -> None:
    """Show what a server serves of a model now."""
    data = {"model": served.model, "versions": served.versions, "labels": dict(served.labels)}
    output.result(kind, {**data, "toml": served.as_toml()}, as_json=as_json, text=served.as_toml())


@click.command("canary")
@click.argument("model")
@click.argument("version", type=int, required=False)
@click.option("--server", metavar="NAME", help="Server; optional if there is only one.")
@click.option("--abort", is_flag=True, help="Remove and unload the canary instead.")
@access_options
@json_option
def canary_command(
    model: str,
    version: int | None,
    server: str | None,
    abort: bool,
    access: Access,
    as_json: bool,
) -> None:
    """Serve a version alongside the others, labelled canary.

    Requests for the label get VERSION; `tfkit promote` makes it the stable one. A request that
    names neither a label nor a version gets the highest version loaded, which may be the canary.
    From then on the server loads no other versions by itself. tfkit.toml is not changed: copy the
    lines that are printed.
    """
    if abort is (version is not None):
        raise UsageError("give a version, or --abort alone")
    handle = _named_or_only(server)
    with output.TerminalProgress() as progress:
        if version is None:
            served = rollback.abort(handle, model, access=access, progress=progress)
        else:
            served = rollback.canary(handle, model, version, access=access, progress=progress)
    show("canary", served, as_json=as_json)


_CHECKED = ("check", "outcome", "found", "remedy")
_OUTCOMES = {Severity.INFO: "ok", Severity.WARNING: "warning", Severity.ERROR: "failed"}


@click.command("doctor")
@click.option("--binary", envvar="TFKIT_MODEL_SERVER", metavar="PATH",
              help="Path of tensorflow_model_server, for the native engine.")  # fmt: skip
@click.option("--config", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="Deployment to serve here; default: tfkit.toml, if there is one.")  # fmt: skip
@json_option
def doctor_command(binary: str | None, config: Path | None, as_json: bool) -> int:
    """Check what this machine can run.

    Fails if no engine can run here.
    """
    from tfserve_kit import doctor

    checks = doctor.examine(binary=binary, spec=load(config) if config else _valid())
    rows = [(each.path, _OUTCOMES[each.severity], each.message, each.remedy) for each in checks]
    text = output.table([column.upper() for column in _CHECKED], rows)
    data = [dict(zip(_CHECKED, row, strict=True)) for row in rows]
    output.result("checks", data, as_json=as_json, text=text)
    if doctor.can_serve(checks):
        return exits.OK
    return exits.ENGINE_UNAVAILABLE


def _valid() -> Spec | None:
    """Return the deployment of this folder; None if there is none that is valid."""
    try:
        return load(Path(DEFAULT_FILE))
    except OSError:
        return None
    except SpecError as error:
        output.note(f"Note: {error.source} is not valid, so it does not count: see `tfkit lint`")
        return None
