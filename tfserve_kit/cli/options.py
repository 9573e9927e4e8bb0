"""Options that several commands share."""

from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from tfserve_kit.cli import live_names
from tfserve_kit.errors import UsageError
from tfserve_kit.serving.access import FILE, Access

json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")

signature_option = click.option(
    "--signature", default="", help="Signature; serving_default if left out."
)

base_path_option = click.option(
    "--base-path", type=click.Path(path_type=Path), metavar="DIR",
    help="Base path of the model, to find its preprocessing note.",
)  # fmt: skip

name_argument = click.argument("name", required=False)


def _headers(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> dict[str, str]:
    del ctx, param
    found = {}
    for text in value:
        name, equals, content = text.partition("=")
        if not equals or not name.strip():
            raise click.BadParameter("a header is not NAME=VALUE")  # nor told: it may be secret
        if content.startswith(FILE):  # to be found from anywhere by who is told of it
            file = Path(content.removeprefix(FILE)).expanduser()
            content = f"{FILE}{file.absolute()}"
        found[name.strip()] = content
    return found


class _Lines(click.types.StringParamType):
    """Text that an environment variable may hold several of, one on each line."""

    def split_envvar_value(self, rv: str) -> list[str]:
        """Return its lines."""
        return [line for line in rv.splitlines() if line.strip()]


_pem = click.Path(dir_okay=False, path_type=Path)
_ACCESS = (
    click.option("--ca-file", envvar="TFKIT_CA_FILE", type=_pem, metavar="PEM",
                 help="Trust a server with a certificate of these authorities, or with this one."),
    click.option("--cert", envvar="TFKIT_CERT", type=_pem, metavar="PEM",
                 help="Certificate to show to a server that asks for one."),
    click.option("--key", envvar="TFKIT_KEY", type=_pem, metavar="PEM", help="Its key."),
    click.option("--server-name", envvar="TFKIT_SERVER_NAME", metavar="NAME",
                 help="Name that the server's certificate has; the address's if left out."),
    click.option("--header", "headers", envvar="TFKIT_HEADERS", multiple=True, type=_Lines(),
                 callback=_headers, metavar="NAME=VALUE",
                 help="Send this with every request; env:NAME and file:PATH as the value stand for "
                 "what is there; may be repeated."),
)  # fmt: skip


def access_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say how a server is reached, and collect them as `access`."""

    @wraps(function)
    def collected(
        *args: Any,
        ca_file: Path | None,
        cert: Path | None,
        key: Path | None,
        server_name: str | None,
        headers: Mapping[str, str],
        **others: Any,
    ) -> Any:
        if (cert is None) != (key is None):
            raise UsageError("--cert and --key belong together", remedy="give both")
        files = {"ca_file": ca_file, "cert": cert, "key": key}
        given = {name: str(path.absolute()) for name, path in files.items() if path}
        access = Access(
            **given, server_name=server_name, headers=headers, is_firm=_is_tls_written_out()
        )
        return function(*args, access=access, **others)

    for option in reversed(_ACCESS):
        option(collected)
    return collected


def _is_tls_written_out() -> bool:
    """Say whether TLS was asked for on the command line, not by the environment alone."""
    context = click.get_current_context()
    return any(
        context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        for name in ("ca_file", "cert", "key", "server_name")
    )


def server_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say which server and model a request goes to, and how."""
    function = access_options(function)
    for option in (
        click.option("--timeout", "timeout_s", type=click.FloatRange(min=0, min_open=True),
                     default=30.0, show_default=True, metavar="SECONDS",
                     help="Longest wait for an answer."),
        click.option("--protocol", type=click.Choice(["grpc", "rest"]), default="grpc",
                     show_default=True, help="How to talk to a server that tfkit runs."),
        click.option("--model", metavar="NAME", shell_complete=live_names.models,
                     help="Model to use; not needed if the server has just one."),
        click.option("--url", envvar="TFKIT_URL", metavar="URL",
                     help="grpc://HOST:PORT or http://HOST:PORT, with TLS grpcs:// or https://; "
                     "without it, the server that tfkit runs."),
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
