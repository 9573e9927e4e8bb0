"""Options that several commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from tfserve_kit.cli import live_names

json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")

signature_option = click.option(
    "--signature", default="", help="Signature; serving_default if left out."
)

base_path_option = click.option(
    "--base-path", type=click.Path(path_type=Path), metavar="DIR",
    help="Base path of the model, to find its preprocessing note.",
)  # fmt: skip

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


def version_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say which version of a model is meant."""
    for option in (
        click.option("--label", help="Version label instead of a version."),
        click.option("--version", type=click.IntRange(min=0), shell_complete=live_names.versions,
                     help="Version; the newest if left out."),
    ):  # fmt: skip
        function = option(function)
    return function
