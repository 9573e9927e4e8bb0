"""`tfkit stop`."""

import click

from tfserve_kit.cli import output
from tfserve_kit.cli.options import json_option, name_argument
from tfserve_kit.engines import ServerHandle, registry
from tfserve_kit.errors import UsageError


def named_or_only(name: str | None) -> ServerHandle:
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
@click.option("--grace", "grace_s", default=10.0, show_default=True, metavar="SECONDS",
              help="Time to finish requests before the server is killed.")  # fmt: skip
@json_option
def command(name: str | None, everything: bool, grace_s: float, as_json: bool) -> None:
    """Stop servers.

    The server NAME, or the only one if there is just one.
    """
    handles = registry.servers() if everything else [named_or_only(name)]
    for handle in handles:
        handle.stop(grace_s=grace_s)
    names = [handle.server_name for handle in handles]
    text = f"Stopped {', '.join(names)}" if names else "No server runs"
    output.result("stopped", names, as_json=as_json, text=text)
