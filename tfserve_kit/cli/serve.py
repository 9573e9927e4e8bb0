"""`tfkit serve`."""

from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Thread

import click

from tfserve_kit import redaction
from tfserve_kit.cli import deployment, output
from tfserve_kit.cli.interrupts import deferred
from tfserve_kit.cli.options import access_options, json_option
from tfserve_kit.cli.ps import described
from tfserve_kit.clock import Clock
from tfserve_kit.engines import Phase, Plan, ServerHandle, exits, registry
from tfserve_kit.engines.process import shell_line
from tfserve_kit.errors import ServerFailed, TfkitError
from tfserve_kit.serving import launch
from tfserve_kit.serving.access import Access, reached_by

# How often the foreground command looks whether the server still runs, in seconds.
_LOOK_S = 0.2


@click.command("serve")
@deployment.deployment_options
@click.option("--name", help="Name of the server.")
@deployment.engine_options
@click.option("--pull", metavar="missing|always|never", help="When that image is pulled.")
@click.option("--gpu", metavar="all|N|device=IDS", help="GPUs for the container.")
@click.option("--host", help="Address to listen on.")
@click.option("--grpc-port", type=int, envvar="TFKIT_GRPC_PORT",
              help="Port of gRPC; 0 finds a free one.")  # fmt: skip
@click.option("--rest-port", type=int, envvar="TFKIT_REST_PORT",
              help="Port of REST; 0 finds a free one.")  # fmt: skip
@click.option("--ready-timeout", "ready_timeout_s", type=float, metavar="SECONDS",
              help="Longest wait until all models are available.")  # fmt: skip
@click.option("--detach", "-d", is_flag=True, help="Leave it running and return.")
@click.option("--dry-run", is_flag=True, help="Show the command and its files, start nothing.")
@click.option("--show-secrets", is_flag=True,
              help="Show what --dry-run hides: values of env, passwords in URLs.")  # fmt: skip
@access_options
@json_option
def command(
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
    """Start a server and wait until its models answer.

    Runs in the foreground until Ctrl-C, which stops the server; --detach leaves it running.
    """
    docker = {"image": image, "pull": pull, "gpu": gpu}
    spec = deployment.load(config, models, server=server, docker=docker)
    spec = reached_by(spec, access)
    engine, why = registry.choose(
        spec.server.engine, binary=spec.server.binary, docker=spec.docker, is_to_run=not dry_run
    )
    if dry_run:
        todo = launch.plan(spec, engine, templates=templates)
        _show_plan(todo, show_secrets=show_secrets, as_json=as_json)
        return
    output.note(f"Engine {engine.name}: {why}.")
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


def _show_plan(plan: Plan, *, show_secrets: bool, as_json: bool) -> None:
    for note in plan.notes:
        output.note(f"Note: {note}.")
    argv, files = list(plan.argv), dict(plan.files)
    if not show_secrets:
        argv = [plan.private.get(each, redaction.text(each)) for each in argv]
        files = {path: redaction.text(text) for path, text in files.items()}
    if argv != list(plan.argv) or files != plan.files:
        output.note("Note: secrets are hidden as ***; --show-secrets shows them.")
    text = "".join(f"\n# {path}\n{text}" for path, text in files.items())
    data = {"engine": plan.engine, "argv": argv, "files": files}
    output.result("plan", data, as_json=as_json, text=shell_line(argv) + "\n" + text.rstrip())


def _announcement(handle: ServerHandle) -> str:
    models = ", ".join(handle.models)
    where = f"  gRPC  {handle.endpoints.grpc}\n  REST  {handle.endpoints.rest}"
    return f"Server {handle.server_name!r} is ready: {models}\n{where}"


def _attend(handle: ServerHandle, clock: Clock) -> None:
    """Show the log until Ctrl-C or until the server ends."""
    Thread(target=_show_log, args=(handle,), daemon=True).start()
    # A container with a restart policy may start again.
    while (state := handle.state()).phase in {Phase.STARTING, Phase.RUNNING}:
        clock.sleep(_LOOK_S)
    raise ServerFailed(
        f"server {handle.server_name!r} ended by itself with {exits.described(state.exit_code)}",
        exit_code=state.exit_code,
        log_tail=list(handle.logs(tail=launch.LOG_TAIL)),
    )


def _show_log(handle: ServerHandle) -> None:
    with suppress(TfkitError):  # who attends to the server will say the same
        for line in handle.logs(tail=0, follow=True):
            output.note(line)
