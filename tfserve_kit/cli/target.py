"""Which server and model a request goes to: `--url` and `--model`, or the server tfkit runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tfserve_kit.engines.records import Record, records, sharing
from tfserve_kit.errors import UsageError


@dataclass(frozen=True, slots=True)
class Destination:
    """A server's address, a model of it, and the model's base path if it is known here."""

    url: str
    model: str
    base_path: Path | None


def base_path_of(given: Path) -> Path:
    """Return the base path that an argument means: itself, or models/NAME for a bare name."""
    from tfserve_kit.repository import scan  # slow to import, and `predict` needs none of it

    inside = Path("models") / given
    is_bare = len(given.parts) == 1 and not (given.is_dir() and scan(given))
    return inside if is_bare and inside.is_dir() else given


def destination(url: str | None, protocol: str, model: str | None) -> Destination:
    """Return where a request goes.

    Args:
        url: address of a server; None for the one that tfkit runs.
        protocol: `grpc` or `rest`, for a server that tfkit runs.
        model: name of the model; None if the server has just one.

    Raises:
        UsageError: it cannot be told which server or which model is meant.
    """
    found = destinations(url, protocol, model)
    if len(found) > 1:
        raise _unnamed(found[0].url, [each.model for each in found])
    return found[0]


def destinations(url: str | None, protocol: str, model: str | None) -> list[Destination]:
    """Return where a request about a model goes, or one about each model that the server has.

    Args:
        url: as for `destination`.
        protocol: as for `destination`.
        model: name of the model; None for all that are known.

    Returns:
        At least one, all with the same URL.

    Raises:
        UsageError: it cannot be told which server is meant, or its models are not known here.
    """
    known = records()
    if url is None:
        server = _only(known)
        url = server.endpoints.grpc if protocol == "grpc" else server.endpoints.rest
    models: Mapping[str, str] = {}
    for record in known:
        if url.rstrip("/") in {record.endpoints.grpc, record.endpoints.rest}:
            models = record.models
    names = [model] if model else list(models)
    if not names:
        raise _unnamed(url, names)
    return [
        Destination(url, name, Path(models[name]) if name in models else None) for name in names
    ]


def server_of(base_path: Path | str, url: str | None, model: str | None) -> tuple[str, str]:
    """Return the address of the server that serves a base path, and the model's name there.

    Args:
        base_path: the folder or URL of the model's versions.
        url: address of the server; None for the one that tfkit runs.
        model: name of the model; None for the one with this base path, or the path's last part.

    Raises:
        UsageError: tfkit runs no such server, or more than one.
    """
    found = [
        (record.endpoints.grpc, name)
        for record, name in sharing(base_path)
        if url in {None, record.endpoints.grpc, record.endpoints.rest}
    ]
    if url is not None:
        known = found[0][1] if found else Path(base_path).name
        return url, model or known
    chosen = [each for each in found if model in {None, each[1]}] or found
    if len(chosen) != 1:
        listed = ", ".join(f"{name} at {address}" for address, name in chosen)
        raise UsageError(
            f"tfkit runs {len(chosen)} servers on {base_path}{': ' if listed else ''}{listed}",
            remedy="give the --url of the server to watch",
        )
    return chosen[0]


def _only(known: list[Record]) -> Record:
    if len(known) == 1:
        return known[0]
    if not known:
        raise UsageError(
            "tfkit runs no server", remedy="start one with `tfkit serve`, or give its --url"
        )
    names = ", ".join(f"{each.server_name} ({each.endpoints.grpc})" for each in known)
    raise UsageError(f"tfkit runs {len(known)} servers: {names}", remedy="give the --url of one")


def _unnamed(url: str, models: Sequence[str]) -> UsageError:
    names = f"it has {', '.join(models)}" if models else "its models cannot be listed from here"
    return UsageError(f"no model given for {url}: {names}", remedy="give --model NAME")
