"""`tfkit restart`."""

from pathlib import Path

import click

from tfserve_kit.cli import deployment, output
from tfserve_kit.cli.interrupts import deferred
from tfserve_kit.cli.options import access_options, json_option, name_argument
from tfserve_kit.cli.ps import described
from tfserve_kit.cli.reload import with_models
from tfserve_kit.cli.stop import named_or_only
from tfserve_kit.deployment import Spec
from tfserve_kit.engines import ServerHandle, registry
from tfserve_kit.serving import launch, reload
from tfserve_kit.serving.access import Access, reached_by


@click.command("restart")
@name_argument
@deployment.deployment_options
@access_options
@json_option
def command(
    name: str | None,
    config: Path | None,
    models: tuple[str, ...],
    templates: Path | None,
    access: Access,
    as_json: bool,
) -> None:
    """Stop a server and start it again.

    Detached, and with the deployment it has, unless --config or --model give another. NAME may be
    left out if there is just one.
    """
    handle = named_or_only(name)
    spec = reached_by(_changed(handle, config, models), access)
    name = handle.engine if spec.server.engine == "auto" else spec.server.engine
    engine, _ = registry.choose(name, binary=spec.server.binary, docker=spec.docker)
    with output.TerminalProgress() as progress:
        launch.prepare(spec, engine, progress=progress)
    with deferred() as interrupts, output.TerminalProgress() as progress:
        handle.stop()
        new = launch.start(spec, engine, templates=templates, progress=progress, clock=interrupts)
    text = f"Server {new.server_name!r} is ready again"
    output.result("server", described(new), as_json=as_json, text=text)


def _changed(handle: ServerHandle, config: Path | None, models: tuple[str, ...]) -> Spec:
    """Return what a file says, or the server's own deployment, with other models if there are."""
    if models:
        return with_models(handle, config, models)
    if config:
        return deployment.load(config, (), server={"name": handle.server_name})
    return reload.deployment(handle)
