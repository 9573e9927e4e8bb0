"""`tfkit ps`."""

from typing import Any

import click

from tfserve_kit import redaction
from tfserve_kit.cli import output
from tfserve_kit.cli.options import json_option
from tfserve_kit.engines import ServerHandle, registry


def described(handle: ServerHandle) -> dict[str, Any]:
    """Return what is known of a server, as JSON shows it."""
    state = handle.state()
    return {
        "name": handle.server_name,
        "engine": handle.engine,
        "state": state.phase.value,
        "exit_code": state.exit_code,
        "grpc": handle.endpoints.grpc,
        "rest": handle.endpoints.rest,
        "models": {name: redaction.url(path) for name, path in handle.models.items()},
    }


@click.command("ps")
@json_option
def command(as_json: bool) -> None:
    """List the servers that tfkit runs.

    One that ended by itself stays listed, with its log, until it is stopped.
    """
    rows = [described(handle) for handle in registry.servers()]
    text = output.table(
        ["NAME", "ENGINE", "STATE", "GRPC", "REST", "MODELS"], [_cells(row) for row in rows]
    )
    output.result("servers", rows, as_json=as_json, text=text)


def _cells(row: dict[str, Any]) -> list[str]:
    code = row["exit_code"]
    state = row["state"] if code is None else f"{row['state']} ({code})"
    return [row["name"], row["engine"], state, row["grpc"], row["rest"], ",".join(row["models"])]
