"""Which server and model a request goes to: `--url` and `--model`, or the server tfkit runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tfserve_kit.engines.records import Record, records
from tfserve_kit.errors import UsageError


@dataclass(frozen=True, slots=True)
class Destination:
    """A server's address, a model of it, and the model's base path if it is known here."""

    url: str
    model: str
    base_path: Path | None


def destination(url: str | None, protocol: str, model: str | None) -> Destination:
    """Return where a request goes.

    Args:
        url: address of a server; None for the one that tfkit runs.
        protocol: `grpc` or `rest`, for a server that tfkit runs.
        model: name of the model; None if the server has just one.

    Raises:
        UsageError: it cannot be told which server or which model is meant.
    """
    known = records()
    if url is None:
        server = _only(known)
        url = server.endpoints.grpc if protocol == "grpc" else server.endpoints.rest
    models: Mapping[str, str] = {}
    for record in known:
        if url.rstrip("/") in {record.endpoints.grpc, record.endpoints.rest}:
            models = record.models
    name = model or _only_model(models, url)
    return Destination(url, name, Path(models[name]) if name in models else None)


def _only(known: list[Record]) -> Record:
    if len(known) == 1:
        return known[0]
    if not known:
        raise UsageError(
            "tfkit runs no server", remedy="start one with `tfkit serve`, or give its --url"
        )
    names = ", ".join(f"{each.server_name} ({each.endpoints.grpc})" for each in known)
    raise UsageError(f"tfkit runs {len(known)} servers: {names}", remedy="give the --url of one")


def _only_model(models: Mapping[str, str], url: str) -> str:
    if len(models) == 1:
        return next(iter(models))
    names = f"it has {', '.join(models)}" if models else "its models cannot be listed from here"
    raise UsageError(f"no model given for {url}: {names}", remedy="give --model NAME")
