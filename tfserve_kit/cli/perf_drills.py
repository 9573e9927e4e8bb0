"""What `--during` means: words of its own, which run this very program, or a shell command."""

import json
import sys
from typing import TYPE_CHECKING

from tfserve_kit.clients import addresses
from tfserve_kit.engines.records import Record
from tfserve_kit.errors import UsageError
from tfserve_kit.serving.access import server_at

if TYPE_CHECKING:
    from tfserve_kit.cli.target import Destination
    from tfserve_kit.perf.drills import Command

RESTART, PUSH = "restart", "push"


def serving(url: str) -> Record | None:
    """Return what is remembered of the server at an address; None if tfkit runs none there."""
    return server_at(addresses.read(url))


def command(during: str, where: "Destination", version: int) -> "Command | None":
    """Return what one of the words runs; None for all that is none of them.

    Args:
        during: the value of `--during`.
        where: the server and the model that are measured.
        version: the version that requests without one go to.

    Raises:
        UsageError: tfkit does not run the server, or does not know where its models are.
    """
    from tfserve_kit.perf.drills import Command

    if during not in {RESTART, PUSH}:
        return None
    record = serving(where.url)
    if record is None:
        raise UsageError(
            f"--during {during}, but tfkit does not run the server at {where.url}",
            remedy="give the shell command that does it: --during COMMAND",
        )
    if during == RESTART:
        return Command(RESTART, _tfkit("restart", record.server_name))
    return Command(PUSH, _push(where, record, version), _available)


def _push(where: "Destination", record: Record, version: int) -> list[str]:
    """Return what pushes the version in service again; what is served needs no new leave."""
    source = where.base_path / str(version) if where.base_path else None
    if source is None or not source.is_dir():
        raise UsageError(
            f"--during push, but version {version} of {where.model!r} is in no folder "
            f"of this machine",
            remedy="give the shell command that pushes: --during COMMAND",
        )
    return _tfkit(
        "push-model", str(source), "--to", str(source.parent), "--allow-op", "*", "--wait",
        "--url", record.endpoints.grpc, "--model", where.model, "--json",
    )  # fmt: skip


def _tfkit(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "tfserve_kit", *arguments]


def _available(printed: str) -> str:
    """Return what `tfkit push-model --wait --json` says by having printed this."""
    document = json.loads(printed)
    if document["kind"] != "push":
        return ""
    return f"version {document['data']['version']} is AVAILABLE"
