"""`tfkit restart`."""

import click

from tfserve_kit import launch, reload
from tfserve_kit.cli import output
from tfserve_kit.cli.interrupts import deferred
from tfserve_kit.cli.options import json_option, name_argument
from tfserve_kit.cli.ps import described
from tfserve_kit.cli.stop import named_or_only
from tfserve_kit.engines import registry


@click.command("restart")
@name_argument
@json_option
def command(name: str | None, as_json: bool) -> None:
    """Stop a server and start it again.

    With the same deployment, on the same ports, detached. NAME may be left out if there is just
    one server.
    """
    handle = named_or_only(name)
    spec = reload.deployment(handle)
    engine, _ = registry.choose(handle.engine, binary=spec.server.binary, docker=spec.docker)
    with output.TerminalProgress() as progress:
        launch.prepare(spec, engine, progress=progress)
    with deferred() as interrupts, output.TerminalProgress() as progress:
        handle.stop()
        new = launch.start(spec, engine, progress=progress, clock=interrupts)
    text = f"Server {new.server_name!r} is ready again"
    output.result("server", described(new), as_json=as_json, text=text)
