"""`tfkit init`."""

from pathlib import Path

import click

from tfserve_kit import render
from tfserve_kit.cli import output
from tfserve_kit.errors import UsageError
from tfserve_kit.spec import DEFAULT_FILE


@click.command("init")
@click.argument("file", type=click.Path(path_type=Path), default=DEFAULT_FILE)
@click.option("--model", default="my_model", show_default=True, help="Name of the first model.")
@click.option("--name", default="default", show_default=True, help="Name of the server.")
def command(file: Path, model: str, name: str) -> None:
    """Write a commented deployment file, tfkit.toml if no FILE is given."""
    if file.exists():
        raise UsageError(f"{file} exists already", remedy="give another file name")
    file.write_text(render.text("tfkit.toml", {"model": model, "name": name}), "utf-8")
    output.note(f"Wrote {file}. Next: tfkit push-model SAVED_MODEL --model {model}; tfkit serve")
