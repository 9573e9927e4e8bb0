"""Commands about the deployment file and what is rendered from it."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import click

from tfserve_kit.cli import exit_codes, options, output
from tfserve_kit.cli.options import json_option
from tfserve_kit.cli.result_files import force_option, require_writable
from tfserve_kit.deployment import DEFAULT_FILE, build, render
from tfserve_kit.deployment.lint import lint
from tfserve_kit.errors import Problem, Severity, UsageError, did_you_mean

_HEADER = "# written by tfkit render, which replaces this file\n"  # `result_files` knows it by this


@click.command("init")
@click.argument("file", type=click.Path(path_type=Path), default=DEFAULT_FILE)
@click.option("--model", default="my_model", show_default=True, help="Name of the first model.")
@click.option("--name", default="default", show_default=True, help="Name of the server.")
def init_command(file: Path, model: str, name: str) -> None:
    """Write a commented deployment file.

    FILE defaults to tfkit.toml; an existing file is not replaced.
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


@click.command("render")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@options.deployment_options
@click.option("--out", type=click.Path(file_okay=False, path_type=Path),
              help="Write the files to this folder instead of showing them.")  # fmt: skip
@force_option
@json_option
def render_command(
    names: tuple[str, ...],
    config: Path | None,
    models: tuple[str, ...],
    templates: Path | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Show or write the server's configuration files.

    All of them, or only those named.
    """
    files = render.render(options.load_deployment(config, models), templates=templates)
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
        require_writable(*(folder / name for name in files))
        for name, text in files.items():
            (folder / name).write_text(_HEADER + text, "utf-8")
            output.note(f"Wrote {folder / name}")
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror}") from error


@click.command("lint")
@options.deployment_options
@click.option("--strict", is_flag=True, help="Treat warnings as errors.")
@json_option
def lint_command(
    config: Path | None,
    models: tuple[str, ...],
    templates: Path | None,
    strict: bool,
    as_json: bool,
) -> int:
    """Report problems before the server starts.

    Fails if there are errors.
    """
    spec = options.load_deployment(config, models)
    render.render(spec, templates=templates)
    found = lint(spec)
    data = [asdict(each) for each in found]
    output.result("findings", data, as_json=as_json, text=_table(found) or "Nothing found.")
    bad = {Severity.ERROR, Severity.WARNING} if strict else {Severity.ERROR}
    failed = any(each.severity in bad for each in found)
    return exit_codes.SPEC_INVALID if failed else exit_codes.OK


def _table(found: Sequence[Problem]) -> str:
    rows = [(each.severity, each.path, each.message, each.remedy) for each in found]
    return output.table(("SEVERITY", "WHERE", "WHAT", "REMEDY"), rows) if rows else ""
