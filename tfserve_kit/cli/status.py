"""`tfkit status`."""

from collections.abc import Iterator, Sequence
from typing import Any

import click

from tfserve_kit.cli import output
from tfserve_kit.cli.options import json_option, server_options
from tfserve_kit.cli.target import destinations
from tfserve_kit.clients import Client, Target
from tfserve_kit.errors import ModelNotFound
from tfserve_kit.serving.access import Access

_COLUMNS = ("model", "version", "state", "error")


@click.command("status")
@server_options
@json_option
def command(
    url: str | None,
    model: str | None,
    protocol: str,
    timeout_s: float,
    access: Access,
    as_json: bool,
) -> None:
    """Show the versions of a model and their states.

    Without --model, of all models that tfkit knows the server has.
    """
    places = destinations(url, protocol, model, access)
    with places[0].connect() as client:
        rows = list(_rows(client, [each.target() for each in places], timeout_s))
    text = output.table(
        [column.upper() for column in _COLUMNS], [list(row.values()) for row in rows]
    )
    output.result("status", rows, as_json=as_json, text=text)


def _rows(client: Client, models: Sequence[Target], timeout_s: float) -> Iterator[dict[str, Any]]:
    """Yield a row for each version; of several models, one that is unknown there hides no other."""
    for target in models:
        model = target.model
        try:
            found = client.status(target, timeout_s=timeout_s)
        except ModelNotFound as error:
            if len(models) == 1:
                raise
            yield dict(zip(_COLUMNS, (model, None, "NOT_FOUND", error.message), strict=True))
            continue
        for each in found:
            row = (model, each.version, each.state, each.error)
            yield dict(zip(_COLUMNS, row, strict=True))
