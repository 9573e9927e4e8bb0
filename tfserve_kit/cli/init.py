"""`tfkit init`."""

import tomllib
from pathlib import Path

import click

from tfserve_kit.cli import output
from tfserve_kit.deployment import DEFAULT_FILE, build, render
from tfserve_kit.errors import UsageError


@click.command("init")
@click.argument("file", type=click.Path(path_type=Path), default=DEFAULT_FILE)
@click.option("--model", default="my_model", show_default=True, help="Name of the first model.")
@click.option("--name", default="default", show_default=True, help="Name of the server.")
def command(file: Path, model: str, name: str) -> None:
    """Write a commented deployment file.

    FILE is tfkit.toml if left out; a file that exists is left alone.
    """
    if file.exists():
        raise UsageError(f"{file} exists already", remedy="give another file name")
    text = render.text("tfkit.toml", {"model": model, "name": name})
    build(tomllib.loads(text), source="--model and --name", folder=Path())
    try:
        file.write_text(text, "utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {file}: {error.strerror}") from error
    output.note(f"Wrote {file}. Next: tfkit push-model SAVED_MODEL --model {model}; tfkit serve")
