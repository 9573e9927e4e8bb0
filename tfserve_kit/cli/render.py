"""`tfkit render`."""

from collections.abc import Mapping
from pathlib import Path

import click

from tfserve_kit.cli import deployment, output
from tfserve_kit.cli.options import json_option
from tfserve_kit.deployment import render
from tfserve_kit.errors import UsageError, did_you_mean


@click.command("render")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@deployment.deployment_options
@click.option("--out", type=click.Path(file_okay=False, path_type=Path),
              help="Write the files into this folder instead of showing them.")  # fmt: skip
@json_option
def command(
    names: tuple[str, ...],
    config: Path | None,
    models: tuple[str, ...],
    templates: Path | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Show or write the server's configuration files.

    All of them, or those NAMEd.
    """
    files = render.render(deployment.load(config, models), templates=templates)
    for name in names:
        if name not in files:
            raise UsageError(f"{name} is not rendered here", remedy=did_you_mean(name, files))
    chosen = {name: text for name, text in files.items() if name in names or not names}
    if out:
        _write(chosen, out)
    shown = "" if out else "\n".join(f"# {name}\n{text}" for name, text in chosen.items())
    output.result("render", chosen, as_json=as_json, text=shown.rstrip())


def _write(files: Mapping[str, str], folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text, "utf-8")
            output.note(f"Wrote {folder / name}")
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror}") from error
