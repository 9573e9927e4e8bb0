"""Options that several commands share."""

from collections.abc import Callable
from typing import Any

import click

from tfserve_kit.cli import live_names

json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")

name_argument = click.argument("name", required=False)


def server_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say which server and model a request goes to."""
    for option in (
        click.option("--timeout", "timeout_s", type=click.FloatRange(min=0, min_open=True),
                     default=30.0, show_default=True, metavar="SECONDS",
                     help="Longest wait for an answer."),
        click.option("--protocol", type=click.Choice(["grpc", "rest"]), default="grpc",
                     show_default=True, help="How to talk to a server that tfkit runs."),
        click.option("--model", metavar="NAME", shell_complete=live_names.models,
                     help="Model to use; not needed if the server has just one."),
        click.option("--url", envvar="TFKIT_URL", metavar="URL",
                     help="grpc://HOST:PORT or http://HOST:PORT; without it, the server that tfkit "
                     "runs."),
    ):  # fmt: skip
        function = option(function)
    return function
