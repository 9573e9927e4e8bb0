"""Which server and model a request goes to: `--url` and `--model`, or the server tfkit runs."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from tfserve_kit.cli import output
from tfserve_kit.clients import addresses
from tfserve_kit.clients.addresses import Address
from tfserve_kit.engines import RunningServer
from tfserve_kit.engines.registry import running, sharing
from tfserve_kit.errors import UsageError
from tfserve_kit.serving.access import Access, ServedModel, at, of_file, of_server, server_at

if TYPE_CHECKING:
    from tfserve_kit.perf.metrics import Look, Usage

_FILE = Path("tfkit.toml")  # as spec.DEFAULT_FILE, which is slow to import


def base_path_of(given: Path) -> Path:
    """Return the base path that an argument means: itself, or models/NAME for a bare name."""
    from tfserve_kit.repository import (
        list_versions,  # slow to import, and `predict` needs none of it
    )

    inside = Path("models") / given
    is_bare = len(given.parts) == 1 and not (given.is_dir() and list_versions(given))
    return inside if is_bare and inside.is_dir() else given


def destination(url: str | None, protocol: str, model: str | None, access: Access) -> ServedModel:
    """Return where a request goes.

    Args:
        url: address of a server, or a URL of its REST API; None for the one that tfkit runs.
        protocol: `grpc` or `rest`, for a server that tfkit runs.
        model: name of the model; None if the server has just one.
        access: what the options say of how the server is reached.

    Raises:
        UsageError: it cannot be told which server or which model is meant.
    """
    found = destinations(url, protocol, model, access)
    if len(found) > 1:
        raise _unnamed(found[0].url, [each.model for each in found])
    return found[0]


def destinations(
    url: str | None, protocol: str, model: str | None, access: Access
) -> list[ServedModel]:
    """Return where a request about a model goes, or one about each model that the server has.

    Args:
        url: as for `destination`.
        protocol: as for `destination`.
        model: name of the model; None for all that are known.
        access: as for `destination`.

    Returns:
        At least one, all with the same URL.

    Raises:
        UsageError: it cannot be told which server is meant, or its models are not known here.
    """
    if url is None:
        here = _only(running())
        address = Address(here.endpoints.grpc if protocol == "grpc" else here.endpoints.rest)
        server: RunningServer | None = here
    else:
        address = read_url(url)
        server = server_at(address)
    models = server.models if server else {}
    if model and address.model not in {"", model}:
        raise UsageError(
            f"the URL names the model {address.model!r}, --model names {model!r}",
            remedy="leave one of them out",
        )
    named = model or address.model
    names = [named] if named else list(models)
    if not names:
        raise _unnamed(address.url, names)
    reached = _reaching_all(address, reaching(server, access))
    return [
        ServedModel(
            address.url,
            name,
            Path(models[name]) if name in models else None,
            reached,
            address.version,
            address.label,
        )
        for name in names
    ]


def _reaching_all(address: Address, reached: Access) -> Access:
    """Return how the servers of a fleet are reached.

    What is behind a name is reached by its address, and proves to be of that name.
    """
    name = next((each for each in address.members if each.is_name), None)
    if name is None or not address.is_secure:
        return reached
    return replace(reached, server_name=reached.server_name or name.host)


def read_url(url: str) -> Address:
    """Return the address that `--url` means; says what it takes from a pasted one.

    Raises:
        UsageError: it is none.
    """
    address = addresses.read(url)
    if address.is_pasted:
        output.note(f"From the URL: {address}.")
    return address


def reaching(server: RunningServer | None, given: Access) -> Access:
    """Return how a server is reached.

    Args:
        server: what is remembered of it; None for one that tfkit does not run, which is reached as
            tfkit.toml says, if there is one here.
        given: what the options say, which win.
    """
    known = of_server(server.home) if server else of_file(_FILE)
    return given.over(known)


def look_at(home: Path) -> "Look":
    """Return what looks at the process of the server that has this folder, restarted or not."""
    from tfserve_kit.engines.records import Record, container_id
    from tfserve_kit.perf import metrics

    @cache
    def of(pid: int, container: str) -> "Look":
        return metrics.of_process(pid) if pid else metrics.of_container(container)

    def look() -> "Usage | None":
        record, container = Record.read(home), container_id(home)
        return of(record.pid if record else 0, container)() if record or container else None

    return look


def server_of(
    base_path: Path | str, url: str | None, model: str | None, access: Access
) -> ServedModel:
    """Return the server that serves a base path, and the model's name there.

    Args:
        base_path: the folder or URL of the model's versions.
        url: address of the server or fleet; None for the one that tfkit runs.
        model: name of the model; None for the one with this base path, or the path's last part.
        access: what the options say of how the server is reached.

    Raises:
        UsageError: tfkit runs no such server, or more than one.
    """
    place = base_path if isinstance(base_path, Path) else None
    if url is not None:
        address = read_url(url)
        known = [name for each, name in sharing(base_path) if at(each.endpoints, address)]
        name = model or address.model or (known[0] if known else Path(base_path).name)
        reached = _reaching_all(address, reaching(server_at(address), access))
        return ServedModel(address.url, name, place, reached)
    found = list(sharing(base_path))
    chosen = [each for each in found if model in {None, each[1]}] or found
    if len(chosen) != 1:
        listed = ", ".join(f"{name} at {each.endpoints.grpc}" for each, name in chosen)
        if not chosen:
            raise UsageError(
                f"tfkit runs no server on {base_path}",
                remedy=f"start one with `tfkit serve --model NAME={base_path}`, or give its --url",
            )
        raise UsageError(
            f"tfkit runs {len(chosen)} servers on {base_path}: {listed}",
            remedy="give the --url of the server to watch",
        )
    server, name = chosen[0]
    return ServedModel(server.endpoints.grpc, name, place, reaching(server, access))


def _only(known: list[RunningServer]) -> RunningServer:
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
