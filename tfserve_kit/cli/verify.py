"""`tfkit verify`."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from tfserve_kit.cli import exit_codes, output
from tfserve_kit.cli.options import json_option
from tfserve_kit.cli.target import base_path_of
from tfserve_kit.errors import Problem, PushRefused, UsageError, did_you_mean
from tfserve_kit.progress import Progress
from tfserve_kit.repository import Version, scan
from tfserve_kit.repository.manifest import Manifest, differences


@click.command("verify")
@click.argument("base_path", type=click.Path(path_type=Path))
@click.option("--version", "numbers", type=int, multiple=True, metavar="N",
              help="Look at this version only; may be repeated.")  # fmt: skip
@json_option
def command(base_path: Path, numbers: tuple[int, ...], as_json: bool) -> int:
    """Compare versions with what was pushed.

    Reads every byte, and compares it with the checksums stored with the version. BASE_PATH is the
    folder that holds the version folders; a bare model name means models/NAME.
    """
    with output.TerminalProgress() as progress:
        rows = [_row(version, progress) for version in _chosen(base_path_of(base_path), numbers)]
    text = output.table(("VERSION", "STATE"), [(row["version"], _state(row)) for row in rows])
    output.result("verify", rows, as_json=as_json, text=text)
    damaged = any(row["problems"] for row in rows)
    return exit_codes.exit_code(PushRefused("")) if damaged else exit_codes.OK


def _chosen(base_path: Path, numbers: Sequence[int]) -> list[Version]:
    try:
        there = {version.number: version for version in scan(base_path)}
    except OSError as error:
        raise UsageError(f"cannot read {base_path}: {error.strerror}") from error
    for number in numbers:
        if number not in there:
            known = did_you_mean(str(number), map(str, there))
            raise UsageError(f"there is no version {number} in {base_path}", remedy=known)
    return [there[number] for number in numbers or there]


def _row(version: Version, progress: Progress) -> dict[str, Any]:
    progress.step(f"reading version {version.number}")
    try:
        manifest = Manifest.read(version.path)
        found = differences(version.path, manifest, progress) if manifest else []
    except (OSError, ValueError) as error:
        manifest, found = None, [Problem("manifest", str(error))]
    return {
        "version": version.number,
        "pushed_at": manifest.pushed_at if manifest else None,
        "source": manifest.source if manifest else None,
        "problems": [asdict(problem) for problem in found],
    }


def _state(row: Mapping[str, Any]) -> str:
    if row["problems"]:
        return "; ".join(str(Problem(**problem)) for problem in row["problems"])
    pushed = f"as pushed {row['pushed_at']} from {row['source']}"
    return pushed if row["pushed_at"] else "unknown: it has no manifest (tfkit did not push it)"
