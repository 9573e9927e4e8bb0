"""`tfkit top`: what servers do now."""

import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from tfserve_kit.cli import exits, output
from tfserve_kit.cli.options import access_options, finite, json_option
from tfserve_kit.cli.target import look_at, reaching, read_url
from tfserve_kit.clients import Target
from tfserve_kit.clients.options import Options
from tfserve_kit.engines import ServerHandle, registry
from tfserve_kit.engines.base import ALIVE
from tfserve_kit.errors import TfkitError, UsageError
from tfserve_kit.serving.access import Access, replica_at, server_at

if TYPE_CHECKING:
    from tfserve_kit.engines import Endpoints, RunningServer
    from tfserve_kit.perf.top import Watched

_COLUMNS = ("SERVER", "MODEL", "VERSIONS", "REQ/S", "ERR/S", "P50", "P99", "BATCH", "FILL", "PAD",
            "QUEUE P99", "CPU", "MEMORY")  # fmt: skip
_UNKNOWN = "-"
_MIB, _WHOLE = 1 << 20, 100
_PATIENCE_S = 2.0


@click.command("top")
@click.option(
    "--url",
    "urls",
    multiple=True,
    metavar="URL",
    help="REST address of a server; default: those that tfkit runs; may be repeated.",
)
@click.option(
    "--interval",
    "interval_s",
    type=finite(min=0.1),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="Time between two looks.",
)
@click.option("--once", is_flag=True, help="Show what one interval brought, and end.")
@access_options
@json_option
def top_command(
    urls: tuple[str, ...], interval_s: float, once: bool, access: Access, as_json: bool
) -> int:
    """Show what servers do now, until Ctrl-C.

    A row for each model: versions in service, requests and errors a second, quantiles of their
    latency; and for its server the mean rows of a batch, how full that is, padding, waiting for a
    batch, processors busy and memory. `-` is what a server does not say: latency and batches need
    the page of metrics that [monitoring] opens. Without a terminal it ends as with --once; with
    --json alone every interval is a line.
    """
    watched = [each for url in urls for each in _at(url, access)]
    if not urls:
        watched = [replica for each in registry.servers() for replica in _own(each, access)]
    if not watched:
        raise UsageError(
            "tfkit runs no server", remedy="start one with `tfkit serve`, or give its --url"
        )
    rounds = _rounds(watched, interval_s)
    if sys.stdout.isatty() and not once and not as_json:
        output.refreshed(_COLUMNS, map(_table, rounds))
        return exits.OK
    for found in rounds:
        output.result("top", found, as_json=as_json, text=output.table(_COLUMNS, _table(found)))
        if once or not as_json:
            return _code(found)
    return exits.OK


def _code(found: Sequence[dict[str, Any]]) -> int:
    """Return the code of one look: where no server at all answers, that is a failure."""
    answers = any(each["state"] in {"running", "no metrics"} for each in found)
    return exits.OK if answers else exits.SERVER_FAILED


def _at(url: str, access: Access) -> Iterator["Watched"]:
    """Yield the servers at an address: one, or those of a fleet."""
    for address in read_url(url).members:
        server = server_at(address)
        reached = reaching(server, access)
        if server:
            where = replica_at(server.endpoints, address)
            yield _watched(server, where, reached, name=address.url)
        else:
            yield _foreign(address.url, reached)


def _foreign(url: str, reached: Access) -> "Watched":
    from tfserve_kit.perf import metrics
    from tfserve_kit.perf.top import Watched

    read = metrics.reader(url, Options(**reached.options(url)))
    return Watched(url, url, "", (), read, partial(_versions, url, reached))


def _own(handle: ServerHandle, access: Access) -> Iterator["Watched"]:
    """Yield a server as `tfkit ps` lists it, of several replicas each; none that ended is asked."""
    reached, found = reaching(handle, access), handle.replicas()
    each = [(one.name, one.state, one.endpoints) for one in found if one.endpoints]
    if len(each) < 2:  # noqa: PLR2004 (it is one, or all are reached in one place)
        each = [(handle.server_name, handle.state(), handle.endpoints)]
    for name, state, where in each:
        is_up = state.phase in ALIVE
        told = "" if is_up else state.phase.value
        yield _watched(handle, where, reached, name=name, state=told)


def _watched(
    server: "RunningServer", where: "Endpoints", reached: Access, *, name: str, state: str = ""
) -> "Watched":
    from tfserve_kit.perf import metrics
    from tfserve_kit.perf.top import Watched
    from tfserve_kit.serving import reload

    try:
        spec = reload.deployment(server.home)
    except TfkitError:
        spec = None  # of another tfkit, or gone meanwhile
    page = spec and spec.monitoring and spec.monitoring.path
    rest = where.rest
    most = spec.batching.most_rows if spec and spec.batching else None
    return Watched(
        name=name,
        url=rest,
        state=state,
        models=list(server.models),
        read=metrics.reader(
            rest, Options(**reached.options(rest)), page or metrics.PROMETHEUS_PATH
        ),
        versions=partial(_versions, where.grpc, reached),
        look=look_at(server.home),
        max_batch_size=most,
    )


def _versions(url: str, reached: Access, model: str) -> list[int]:
    with reached.connect(url) as client:
        found = client.status(Target(model), timeout_s=_PATIENCE_S)
    return [each.version for each in found if each.state == "AVAILABLE"]


def _rounds(watched: Sequence["Watched"], interval_s: float) -> Iterator[list[dict[str, Any]]]:
    """Yield what happened in each interval."""
    from tfserve_kit.perf.top import described, look_all

    before = look_all(watched)
    while True:
        time.sleep(interval_s)
        now = look_all(watched)
        yield [described(*each) for each in zip(watched, before, now, strict=True)]
        before = now


def _table(found: Sequence[dict[str, Any]]) -> list[list[str]]:
    return [row for server in found for row in _server_rows(server)]


def _server_rows(server: dict[str, Any]) -> Iterator[list[str]]:
    """Yield a row for each model; what is the whole server's stands in the first one."""
    batch, name = server["batch"], server["name"]
    if server["state"] != "running":
        name = f"{name} ({server['state']})"
    whole = [
        _number(batch["rows"]),
        _share(batch["fill"]),
        _share(batch["padding_share"]),
        _time(batch["queue_p99_s"]),
        _share(server["processors"]),
        _memory(server["memory_bytes"]),
    ]
    models = server["models"] or [dict.fromkeys(("rate", "error_rate", "p50_s", "p99_s"))]
    for number, model in enumerate(models):
        versions = model.get("versions")
        yield [
            "" if number else name,
            model.get("model", _UNKNOWN),
            _UNKNOWN if versions is None else ",".join(map(str, versions)) or "none",
            _number(model["rate"]),
            _number(model["error_rate"]),
            _time(model["p50_s"]),
            _time(model["p99_s"]),
            *([""] * len(whole) if number else whole),
        ]


def _number(value: float | None) -> str:
    if value is None:
        return _UNKNOWN
    return f"{value:.1f}" if value < _WHOLE else f"{value:,.0f}"


def _share(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:.0%}"


def _time(value_s: float | None) -> str:
    return _UNKNOWN if value_s is None else f"{value_s * 1000:.3g} ms"


def _memory(value_bytes: int | None) -> str:
    return _UNKNOWN if value_bytes is None else f"{value_bytes / _MIB:,.0f} MiB"
