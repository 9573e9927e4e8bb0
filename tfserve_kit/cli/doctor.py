"""`tfkit doctor` and `tfkit completion`."""

from pathlib import Path

import click
from click.shell_completion import get_completion_class

from tfserve_kit import doctor
from tfserve_kit.cli import exit_codes, output
from tfserve_kit.cli.options import json_option
from tfserve_kit.deployment import DEFAULT_FILE, Spec, load
from tfserve_kit.errors import Severity, SpecError

_COLUMNS = ("check", "outcome", "found", "remedy")
_OUTCOMES = {Severity.INFO: "ok", Severity.WARNING: "warning", Severity.ERROR: "failed"}


@click.command("doctor")
@click.option("--binary", envvar="TFKIT_MODEL_SERVER", metavar="PATH",
              help="Path of tensorflow_model_server, for the native engine.")  # fmt: skip
@click.option("--config", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="Deployment to serve here; default: tfkit.toml, if there is one.")  # fmt: skip
@json_option
def doctor_command(binary: str | None, config: Path | None, as_json: bool) -> int:
    """Check what this machine can run.

    Fails if no engine can run here.
    """
    checks = doctor.examine(binary=binary, spec=load(config) if config else _default())
    rows = [(each.path, _OUTCOMES[each.severity], each.message, each.remedy) for each in checks]
    text = output.table([column.upper() for column in _COLUMNS], rows)
    data = [dict(zip(_COLUMNS, row, strict=True)) for row in rows]
    output.result("checks", data, as_json=as_json, text=text)
    if doctor.can_serve(checks):
        return exit_codes.OK
    return exit_codes.ENGINE_UNAVAILABLE


def _default() -> Spec | None:
    """Return the deployment of this folder; None if there is none that is valid."""
    try:
        return load(Path(DEFAULT_FILE))
    except OSError:
        return None
    except SpecError as error:
        output.note(f"Note: {error.source} is not valid, so it does not count: see `tfkit lint`")
        return None


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion_command(context: click.Context, shell: str) -> None:
    """Print the shell completion script.

    For bash: eval "$(tfkit completion bash)" in ~/.bashrc.
    """
    kind = get_completion_class(shell)
    assert kind is not None  # noqa: S101 (the choices are click's own shells)
    root = context.find_root()
    output.line(kind(root.command, {}, "tfkit", "_TFKIT_COMPLETE").source())
