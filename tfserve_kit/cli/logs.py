"""`tfkit logs`."""

import click

from tfserve_kit.cli import output
from tfserve_kit.cli.options import name_argument
from tfserve_kit.cli.stop import named_or_only


@click.command("logs")
@name_argument
@click.option("--follow", "-f", is_flag=True, help="Go on until the server ends or Ctrl-C.")
@click.option("--tail", type=click.IntRange(min=0), metavar="N", help="Only the last N lines.")
def command(name: str | None, follow: bool, tail: int | None) -> None:
    """Show the log of a server.

    NAME may be left out if there is just one.
    """
    for line in named_or_only(name).logs(tail=tail, follow=follow):
        output.line(line)
