"""`tfkit versions`."""

from pathlib import Path

import click

from tfserve_kit import savedmodel
from tfserve_kit.cli import output
from tfserve_kit.cli.options import json_option
from tfserve_kit.cli.target import base_path_of
from tfserve_kit.errors import UsageError
from tfserve_kit.repository import Version, scan


@click.command("versions")
@click.argument("base_path")
@json_option
def command(base_path: str, as_json: bool) -> None:
    """List the versions in a base path.

    Says of each whether it is complete. BASE_PATH is the folder that holds the version folders; a
    bare model name means models/NAME. It may be the URL of an object store (gs://...).
    """
    rows = _remote_rows(base_path) if "://" in base_path else _rows(base_path_of(Path(base_path)))
    text = output.table(
        ("VERSION", "STATE", "PATH"),
        [(row["version"], row["state"], row["path"]) for row in rows],
    )
    output.result("versions", rows, as_json=as_json, text=text)


def _rows(base_path: Path) -> list[dict[str, object]]:
    try:
        return [_row(version) for version in scan(base_path)]
    except OSError as error:
        raise UsageError(f"cannot read {base_path}: {error.strerror}") from error


def _remote_rows(url: str) -> list[dict[str, object]]:
    from tfserve_kit.repository import remote

    return [
        {
            "version": version.number,
            "state": "complete" if version.complete else f"{savedmodel.GRAPH_FILE}: is missing",
            "path": version.url,
        }
        for version in remote.versions(url)
    ]


def _row(version: Version) -> dict[str, object]:
    found = savedmodel.problems(version.path)
    return {
        "version": version.number,
        "state": "; ".join(map(str, found)) if found else "complete",
        "path": str(version.path),
    }
