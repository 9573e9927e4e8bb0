"""`tfkit versions`."""

from pathlib import Path

import click

from tfserve_kit import savedmodel
from tfserve_kit.cli import output
from tfserve_kit.cli.options import json_option
from tfserve_kit.errors import UsageError
from tfserve_kit.repository import Version, scan


@click.command("versions")
@click.argument("base_path", type=click.Path(path_type=Path))
@json_option
def command(base_path: Path, as_json: bool) -> None:
    """List the versions in a base path.

    Says of each whether it is complete. BASE_PATH is the folder that holds the version folders; a
    bare model name means models/NAME.
    """
    if not base_path.exists() and (Path("models") / base_path).is_dir():
        base_path = Path("models") / base_path
    try:
        rows = [_row(version) for version in scan(base_path)]
    except OSError as error:
        raise UsageError(f"cannot read {base_path}: {error.strerror}") from error
    text = output.table(
        ("VERSION", "STATE", "PATH"),
        [(row["version"], row["state"], row["path"]) for row in rows],
    )
    output.result("versions", rows, as_json=as_json, text=text)


def _row(version: Version) -> dict[str, object]:
    found = savedmodel.problems(version.path)
    return {
        "version": version.number,
        "state": "; ".join(map(str, found)) if found else "complete",
        "path": str(version.path),
    }
