"""`tfkit rollback`."""

from pathlib import Path

import click

from tfserve_kit.cli import output
from tfserve_kit.cli.options import access_options, json_option
from tfserve_kit.cli.target import base_path_of, server_of
from tfserve_kit.errors import UsageError
from tfserve_kit.serving.access import Access
from tfserve_kit.serving.swap.rollback import Place, RolledBack, bring_back, roll_back


@click.command("rollback")
@click.argument("base_path", type=click.Path(path_type=Path))
@click.option("--to", type=int, metavar="N",
              help="Version to go back to; the second highest if left out.")  # fmt: skip
@click.option("--restore", type=int, metavar="N",
              help="Bring a retired version back instead.")  # fmt: skip
@click.option("--wait/--no-wait", "waits", default=True, show_default=True,
              help="Wait until the servers have followed.")  # fmt: skip
@click.option("--url", metavar="URL",
              help="Wait for this server; left out: those that tfkit runs.")  # fmt: skip
@click.option("--model", metavar="NAME",
              help="The model's name at --url; left out: the name of the folder.")  # fmt: skip
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=0, min_open=True), default=120.0,
              show_default=True, metavar="SECONDS", help="Longest wait.")  # fmt: skip
@click.option("--force", is_flag=True,
              help="Retire also what labels or pinned versions of a server name.")  # fmt: skip
@access_options
@json_option
def command(
    base_path: Path,
    to: int | None,
    restore: int | None,
    waits: bool,
    url: str | None,
    model: str | None,
    timeout_s: float,
    force: bool,
    access: Access,
    as_json: bool,
) -> None:
    """Go back to an earlier version of a model.

    Takes the versions above it out of service by renaming them; nothing is deleted, and a server
    loads the earlier one before it lets go of the later one. Where a server's labels say what is
    served, use `tfkit promote` instead. BASE_PATH is the folder that holds the version folders; a
    bare model name means models/NAME.
    """
    base_path = base_path_of(base_path)
    places = _places(base_path, waits, url, model, access)
    with output.TerminalProgress() as progress:
        if restore is None:
            done = roll_back(base_path, to, places=places, access=access, timeout_s=timeout_s,
                             is_forced=force, progress=progress)  # fmt: skip
        elif to is not None:
            raise UsageError("give --to or --restore, not both")
        else:
            done = bring_back(base_path, restore, places=places, access=access, timeout_s=timeout_s,
                              progress=progress)  # fmt: skip
    data = {
        "version": done.version,
        "retired": done.retired,
        "restored": done.restored,
        "servers": [place.url for place in done.places],
    }
    output.result("rollback", data, as_json=as_json, text=_text(done))


def _places(
    base_path: Path, waits: bool, url: str | None, model: str | None, access: Access
) -> list[Place] | None:
    """Return where to wait: nowhere, at the address given, or None for our own servers."""
    if not waits:
        return []
    if url is None:
        return None
    where = server_of(base_path.absolute(), url, model, access)
    return [Place(where.url, where.model, where.access)]


def _text(done: RolledBack) -> str:
    retired = ", ".join(map(str, done.retired))
    did = f"retired {retired}" if done.retired else f"restored {done.version}"
    where = ", ".join(f"{place.model!r} at {place.url}" for place in done.places)
    return f"Version {done.version}: {did}; " + (f"served as {where}" if where else "not waited")
