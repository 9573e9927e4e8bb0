"""`tfkit metadata`."""

import click

from tfserve_kit.cli import output
from tfserve_kit.cli.options import json_option, server_options, version_options
from tfserve_kit.cli.target import destination
from tfserve_kit.savedmodel import Signature
from tfserve_kit.serving.access import Access


@click.command("metadata")
@server_options
@version_options
@json_option
def command(
    url: str | None,
    model: str | None,
    protocol: str,
    timeout_s: float,
    access: Access,
    version: int | None,
    label: str | None,
    as_json: bool,
) -> None:
    """Show the signatures of a model.

    That is each input and output with its type and shape.
    """
    where = destination(url, protocol, model, access)
    with where.connect() as client:
        found = client.metadata(where.target(version, label), timeout_s=timeout_s)
    rows = [row for signature in found.signatures.values() for row in _rows(signature)]
    columns = ("signature", "direction", "name", "type", "tensor")
    text = f"{where.model} version {found.version}\n" + output.table(
        [column.upper() for column in columns], rows
    )
    data = {
        "model": where.model,
        "version": found.version,
        "tensors": [dict(zip(columns, row, strict=True)) for row in rows],
    }
    output.result("metadata", data, as_json=as_json, text=text)


def _rows(signature: Signature) -> list[tuple[str, str, str, str, str]]:
    return [
        (signature.name, direction, alias, str(spec), spec.name)
        for direction, specs in (("in", signature.inputs), ("out", signature.outputs))
        for alias, spec in specs.items()
    ]
