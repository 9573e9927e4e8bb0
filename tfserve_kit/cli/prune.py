"""`tfkit prune`."""

from pathlib import Path

import click

from tfserve_kit import deployment
from tfserve_kit.cli import output
from tfserve_kit.cli.options import json_option
from tfserve_kit.cli.target import base_path_of
from tfserve_kit.repository import retention
from tfserve_kit.serving.swap.claims import claims


@click.command("prune")
@click.argument("base_path", type=click.Path(path_type=Path))
@click.option("--keep", type=click.IntRange(min=1), required=True, metavar="N",
              help="How many of the highest versions stay.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Only say what would be deleted.")
@json_option
def command(base_path: Path, keep: int, dry_run: bool, as_json: bool) -> None:
    """Delete the oldest versions of a model.

    What a running server serves stays, and so does what a server's deployment or tfkit.toml labels,
    pins or loads as one of the latest. Incomplete versions stay too; retired ones go once they are
    older than all that stay. BASE_PATH is the folder that holds the version folders; a bare model
    name means models/NAME.
    """
    base_path = base_path_of(base_path)
    file = Path(deployment.DEFAULT_FILE)
    with output.TerminalProgress() as progress:
        needed = claims(
            base_path, deployment.load(file) if file.is_file() else None, progress=progress
        )
    gone = retention.prune(base_path, keep, {claim.version for claim in needed}, dry_run=dry_run)
    did = "Would delete" if dry_run else "Deleted"
    numbers = ", ".join(map(str, gone)) or "no version"
    lines = [f"{did} {numbers} of {base_path}", *(f"  {claim}" for claim in needed)]
    data = {
        "deleted": gone,
        "dry_run": dry_run,
        "needed": [
            {"version": claim.version, "who": claim.who, "reason": claim.reason.value}
            for claim in needed
        ],
    }
    output.result("prune", data, as_json=as_json, text="\n".join(lines))
