"""`tfkit promote`."""

import click

from tfserve_kit.cli import output
from tfserve_kit.cli.options import access_options, json_option
from tfserve_kit.cli.stop import named_or_only
from tfserve_kit.serving.access import Access
from tfserve_kit.serving.swap import promote
from tfserve_kit.serving.swap.promote import Served


@click.command("promote")
@click.argument("model")
@click.argument("version", type=int, required=False)
@click.option("--server", metavar="NAME", help="Server; not needed if there is just one.")
@click.option("--label", default="stable", show_default=True, help="Label to move.")
@click.option("--keep-old", is_flag=True, help="Leave loaded what no label names any more.")
@access_options
@json_option
def command(
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
    handle = named_or_only(server)
    with output.TerminalProgress() as progress:
        served = promote.promote(
            handle, model, version, label=label, keep_old=keep_old, access=access, progress=progress
        )
    show("promote", served, as_json=as_json)


def show(kind: str, served: Served, *, as_json: bool) -> None:
    """Show what a server serves of a model now."""
    data = {"model": served.model, "versions": served.versions, "labels": dict(served.labels)}
    output.result(kind, {**data, "toml": served.as_toml()}, as_json=as_json, text=served.as_toml())
