"""`tfkit reload`."""

from pathlib import Path

import click

from tfserve_kit.cli import deployment, output
from tfserve_kit.cli.options import access_options, json_option, name_argument
from tfserve_kit.cli.ps import described
from tfserve_kit.cli.stop import named_or_only
from tfserve_kit.deployment import Spec
from tfserve_kit.engines import ServerHandle, registry
from tfserve_kit.serving import launch, reload
from tfserve_kit.serving.access import Access, reached_by


@click.command("reload")
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
    """Change the models of a running server.

    Models, versions and labels become those of the deployment; waits until they are served.
    NAME may be left out if there is just one server.
    """
    handle = named_or_only(name)
    spec = with_models(handle, config, models) if models else deployment.load(config, ())
    spec = reached_by(spec, access)
    with output.TerminalProgress() as progress:
        launch.check(spec)
        now = reload.reload(handle, spec, templates=templates, progress=progress)
    text = f"Server {handle.server_name!r} serves: {', '.join(now.models)}"
    handle = registry.find(handle.server_name)  # it knows its models anew
    output.result("server", described(handle), as_json=as_json, text=text)


def with_models(handle: ServerHandle, config: Path | None, models: tuple[str, ...]) -> Spec:
    """Return a server's own deployment with the models of `--model`; refuses a file beside them."""
    known = reload.deployment(handle).model_dump(exclude={"models"}, exclude_none=True)
    return deployment.load(config, models, **known)
