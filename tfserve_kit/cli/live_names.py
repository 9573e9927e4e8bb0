"""What a shell offers for `--model` and `--version`, from the running server; or nothing."""

from contextlib import redirect_stderr
from io import StringIO
from typing import Any

import click

_PATIENCE_S = 1.0  # somebody waits for the Tab key


def models(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    """Return the models of the servers that tfkit runs, or of the one that `--url` names."""
    del param
    from tfserve_kit.clients import addresses
    from tfserve_kit.engines.records import records
    from tfserve_kit.serving.access import at

    try:
        address = addresses.read(url) if (url := _given(ctx, "url")) else None
        found = {
            name
            for record in records()
            if address is None or at(record.endpoints, address)
            for name in record.models
        }
    except Exception:  # noqa: BLE001 (a prompt is no place for errors)
        return []
    return [name for name in sorted(found) if name.startswith(incomplete)]


def versions(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    """Return the versions of the model with their states, newest first, as the server says."""
    del param
    from click.shell_completion import CompletionItem

    from tfserve_kit.cli.target import destination
    from tfserve_kit.serving.access import NOTHING

    try:
        protocol = _given(ctx, "protocol") or "grpc"
        url, model = _given(ctx, "url") or None, _given(ctx, "model") or None
        with redirect_stderr(StringIO()):  # where it says what it takes from a URL
            where = destination(url, protocol, model, NOTHING)
        with where.connect() as client:
            found = client.status(where.target(), timeout_s=_PATIENCE_S)
    except Exception:  # noqa: BLE001 (a prompt is no place for errors)
        return []
    return [
        CompletionItem(str(each.version), help=each.state)
        for each in found
        if str(each.version).startswith(incomplete)
    ]


def _given(ctx: click.Context, name: str) -> str:
    value = ctx.params.get(name)
    return value if isinstance(value, str) else ""
