"""Options that several commands share, and what a shell offers for them."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from functools import wraps
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click
from click.core import ParameterSource

from tfserve_kit.cli import output
from tfserve_kit.errors import UsageError, missing
from tfserve_kit.serving.access import FILE, Access

if TYPE_CHECKING:
    from tfserve_kit.deployment import Spec

_PATIENCE_S = 1.0  # somebody waits for the Tab key


class _Number(click.FloatRange):
    """A number within limits; what none of them keeps out, `nan` and `inf`, is no number."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read the number."""
        found = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{value!r} is not a number that can be counted with.", param, ctx)
        return found


def finite(**limits: Any) -> click.FloatRange:
    """Return the type of an option that takes a number; `limits` are those of click's range."""
    return _Number(**limits)


positive = finite(min=0, min_open=True)


def _offer_models(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    """Return the models of the servers that tfkit runs, or of the one that `--url` names."""
    del param
    from tfserve_kit.clients import addresses
    from tfserve_kit.engines.registry import running
    from tfserve_kit.serving.access import at

    try:
        address = addresses.read(url) if (url := _given(ctx, "url")) else None
        found = {
            name
            for server in running()
            if address is None or at(server.endpoints, address)
            for name in server.models
        }
    except Exception:  # noqa: BLE001 (a prompt must not show errors)
        return []
    return [name for name in sorted(found) if name.startswith(incomplete)]


def _offer_versions(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    """Return the versions of the model with their states, newest first, as the server says."""
    del param
    from click.shell_completion import CompletionItem

    from tfserve_kit.cli.target import destination
    from tfserve_kit.serving.access import NOTHING

    try:
        protocol = _given(ctx, "protocol") or "grpc"
        url, model = _given(ctx, "url") or None, _given(ctx, "model") or None
        with redirect_stderr(StringIO()):  # where it says what it takes from a URL
            where = destination(url, protocol, model, NOTHING)
        with where.connect() as client:
            found = client.status(where.target(), timeout_s=_PATIENCE_S)
    except Exception:  # noqa: BLE001 (a prompt must not show errors)
        return []
    return [
        CompletionItem(str(each.version), help=each.state)
        for each in found
        if str(each.version).startswith(incomplete)
    ]


def _given(ctx: click.Context, name: str) -> str:
    value = ctx.params.get(name)
    return value if isinstance(value, str) else ""


json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")

signature_option = click.option(
    "--signature", default="", help="Signature; default: serving_default."
)

base_path_option = click.option(
    "--base-path", type=click.Path(path_type=Path), metavar="DIR",
    help="Base path of the model, where its preprocessing note is.",
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
                 help="CA certificates to trust, or the server's own certificate."),
    click.option("--cert", envvar="TFKIT_CERT", type=_pem, metavar="PEM",
                 help="Client certificate."),
    click.option("--key", envvar="TFKIT_KEY", type=_pem, metavar="PEM",
                 help="Private key of the client certificate."),
    click.option("--server-name", envvar="TFKIT_SERVER_NAME", metavar="NAME",
                 help="Name in the server's certificate; default: the host in the address."),
    click.option("--header", "headers", envvar="TFKIT_HEADERS", multiple=True, type=_Lines(),
                 callback=_headers, metavar="NAME=VALUE",
                 help="Header to send with every request; the value may be env:NAME or "
                 "file:PATH; may be repeated."),
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


class ServerChoice(NamedTuple):
    """Which server and model a request goes to, as the options say; see `target.destination`."""

    url: str | None
    protocol: str
    model: str | None
    access: Access


def server_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say where a request goes, collected as `server`, and `timeout_s`."""

    @wraps(function)
    def collected(
        *args: Any, url: str | None, protocol: str, model: str | None, access: Access, **others: Any
    ) -> Any:
        return function(*args, server=ServerChoice(url, protocol, model, access), **others)

    decorated = access_options(collected)
    for option in (
        click.option("--timeout", "timeout_s", type=positive,
                     default=30.0, show_default=True, metavar="SECONDS",
                     help="Maximum wait for an answer."),
        click.option("--protocol", type=click.Choice(["grpc", "rest"]), default="grpc",
                     show_default=True, help="Protocol for a server that tfkit runs."),
        click.option("--model", metavar="NAME", shell_complete=_offer_models,
                     help="Model; optional if the server has only one."),
        url_option("grpc://HOST:PORT or http://HOST:PORT, with TLS grpcs:// or https://; repeat it "
                   "for a fleet, or give a name, dns:///HOST:PORT; default: the server that tfkit "
                   "runs."),
    ):  # fmt: skip
        decorated = option(decorated)
    return decorated


def url_option(help: str, **more: Any) -> Callable[..., Any]:  # noqa: A002 (click's own name)
    """Return the option for the address of a server, or for several of a fleet's."""
    return click.option(
        "--url", metavar="URL", multiple=True, callback=_joined, help=help,
        **{"envvar": "TFKIT_URL", **more},
    )  # fmt: skip


def _joined(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> str | None:
    """Return several addresses as one fleet's, see `clients.addresses`."""
    del ctx, param
    return ",".join(value) or None


def version_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say which version of a model is meant."""
    for option in (
        click.option("--label", help="Version label instead of a version."),
        click.option("--version", type=click.IntRange(min=0), shell_complete=_offer_versions,
                     help="Version; default: the newest."),
    ):  # fmt: skip
        function = option(function)
    return function


def deployment_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say what is deployed."""
    for option in (
        click.option("--templates", type=click.Path(exists=True, file_okay=False, path_type=Path),
                     help="Folder whose templates replace tfkit's own."),
        click.option("--model", "models", multiple=True, metavar="NAME=BASE_PATH",
                     help="Serve this model without a deployment file; may be repeated."),
        click.option("--config", type=click.Path(dir_okay=False, path_type=Path),
                     help="Deployment file; default: tfkit.toml."),
    ):  # fmt: skip
        function = option(function)
    return function


class _EngineOption(click.Option):
    """An option whose help names the engines; they are imported only for it."""

    def make_metavar(self, ctx: click.Context) -> str:
        """Return what stands for the value in help."""
        del ctx
        from tfserve_kit.engines.registry import engines

        return "|".join(["auto", *(each.name for each in engines())])


def engine_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say what runs it."""
    for option in (
        click.option("--image", envvar="TFKIT_IMAGE", metavar="IMAGE",
                     help="Image for the Docker engine; default: tensorflow/serving."),
        click.option("--binary", envvar="TFKIT_MODEL_SERVER", metavar="PATH",
                     help="Path of tensorflow_model_server, for the native engine."),
        click.option("--engine", cls=_EngineOption, help="Engine to run it with."),
    ):  # fmt: skip
        function = option(function)
    return function


def load_deployment(
    config: Path | None, models: Sequence[str], **sections: Mapping[str, Any]
) -> "Spec":
    """Return the deployment that the options describe.

    Args:
        config: the deployment file; the default one if None and no models are given.
        models: `NAME=BASE_PATH` texts, instead of a file.
        sections: keys that the command line overrides, by section such as `server`; None values
            do not count.

    Raises:
        UsageError: neither or both are given, or a model is misspelled.
        SpecError: the deployment is invalid.
    """
    from tfserve_kit import deployment  # slow to import, and `predict` needs none of it

    overrides = {
        name: {key: value for key, value in given.items() if value is not None}
        for name, given in sections.items()
    }
    if models:
        if config is not None:
            raise UsageError("give --config or --model, not both")
        document = {"models": dict(map(_named_model, models)), **overrides}
        return deployment.build(document, source="command line", folder=Path.cwd())
    file = config or Path(deployment.DEFAULT_FILE)
    if not file.is_file():
        raise missing(
            UsageError, file, "`tfkit init` writes a tfkit.toml; or give --model NAME=BASE_PATH"
        )
    return deployment.load(file, overrides=overrides)


def _named_model(text: str) -> tuple[str, dict[str, str]]:
    name, equals, base_path = text.partition("=")
    if not (name and equals and base_path):
        raise UsageError(
            f"--model {text!r} is not NAME=BASE_PATH",
            remedy="write --model NAME=BASE_PATH, such as --model digits=models/digits",
        )
    return name, {"base_path": base_path}


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion_command(context: click.Context, shell: str) -> None:
    """Print the shell completion script.

    For bash: eval "$(tfkit completion bash)" in ~/.bashrc.
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None  # noqa: S101 (the choices are click's own shells)
    root = context.find_root()
    output.line(kind(root.command, {}, "tfkit", "_TFKIT_COMPLETE").source())
