"""`tfkit push-model`."""

from pathlib import Path

import click

from tfserve_kit.cli import output
from tfserve_kit.cli.options import json_option
from tfserve_kit.errors import UsageError
from tfserve_kit.repository import VersionChoice, push


def _version(ctx: click.Context, param: click.Parameter, value: str) -> VersionChoice:
    del ctx, param
    if value == "next":
        return "next"
    if value == "epoch":
        return "epoch"
    try:
        return int(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is not next, epoch or a whole number") from None


@click.command("push-model")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--model", metavar="NAME", help="Model to push to: base path models/NAME.")
@click.option("--to", "base_path", type=click.Path(path_type=Path), metavar="BASE_PATH",
              help="Base path to push to, instead of models/NAME.")  # fmt: skip
@click.option("--version", default="next", show_default=True, callback=_version,
              metavar="next|epoch|N", help="Number of the new version.")  # fmt: skip
@json_option
def command(
    source: Path, model: str | None, base_path: Path | None, version: VersionChoice, as_json: bool
) -> None:
    """Add a model version to a base path, atomically.

    SOURCE is a SavedModel directory. A running server picks the new version up by itself.
    """
    if base_path is None:
        if model is None:
            raise UsageError("no destination", remedy="give --model NAME or --to BASE_PATH")
        base_path = Path("models") / model
    with output.TerminalProgress() as progress:
        pushed = push(source, base_path, version=version, progress=progress)
    data = {
        "version": pushed.version,
        "path": str(pushed.path.absolute()),
        "size_bytes": pushed.size_bytes,
    }
    text = f"Pushed version {pushed.version}: {pushed.path} ({pushed.size_bytes:,} bytes)"
    output.result("push", data, as_json=as_json, text=text)
