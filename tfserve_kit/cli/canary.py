"""`tfkit canary`."""

import click

from tfserve_kit.cli import output
from tfserve_kit.cli.options import access_options, json_option
from tfserve_kit.cli.promote import show
from tfserve_kit.cli.stop import named_or_only
from tfserve_kit.errors import UsageError
from tfserve_kit.serving.access import Access
from tfserve_kit.serving.swap import promote


@click.command("canary")
@click.argument("model")
@click.argument("version", type=int, required=False)
@click.option("--server", metavar="NAME", help="Server; not needed if there is just one.")
@click.option("--abort", is_flag=True, help="Drop the canary instead, and unload it.")
@access_options
@json_option
def command(
    model: str,
    version: int | None,
    server: str | None,
    abort: bool,
    access: Access,
    as_json: bool,
) -> None:
    """Serve a version beside the others, under the label canary.

    Whoever asks for the label gets VERSION; `tfkit promote` makes it the stable one. A request that
    names neither a label nor a version gets the highest version loaded, which may be the canary.
    From now on the server loads no other versions by itself. tfkit.toml is not changed: copy the
    lines that are printed.
    """
    if abort is (version is not None):
        raise UsageError("give a version, or --abort alone")
    handle = named_or_only(server)
    with output.TerminalProgress() as progress:
        if version is None:
            served = promote.abort(handle, model, access=access, progress=progress)
        else:
            served = promote.canary(handle, model, version, access=access, progress=progress)
    show("canary", served, as_json=as_json)
