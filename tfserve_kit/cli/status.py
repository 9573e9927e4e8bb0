"""`tfkit status`."""

import click

from tfserve_kit.cli import output
from tfserve_kit.cli.options import json_option, server_options
from tfserve_kit.cli.target import destination
from tfserve_kit.clients import Target, connect


@click.command("status")
@server_options
@json_option
def command(
    url: str | None, model: str | None, protocol: str, timeout_s: float, as_json: bool
) -> None:
    """Show the versions of a model and their states."""
    where = destination(url, protocol, model)
    with connect(where.url) as client:
        statuses = client.status(Target(where.model), timeout_s=timeout_s)
    rows = [(where.model, status.version, status.state, status.error) for status in statuses]
    columns = ("model", "version", "state", "error")
    text = output.table([column.upper() for column in columns], rows)
    data = [dict(zip(columns, row, strict=True)) for row in rows]
    output.result("status", data, as_json=as_json, text=text)
