"""Each replica of a server, reached by itself: what all of them do is known only from all of them.

A fleet's servers have addresses. Replicas behind a gateway of ours have one between them; there a
header says which one is asked, and the answer says who gave it (templates/haproxy.cfg.j2).
"""

from collections.abc import Collection, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from typing import Any

from tfserve_kit.clients import Client, Options, Target, addresses
from tfserve_kit.clock import Clock, SystemClock, wait_until
from tfserve_kit.engines import Phase, Replica, registry, services
from tfserve_kit.engines.base import Fleet, RunningServer
from tfserve_kit.errors import ServerFailed
from tfserve_kit.serving.access import NOTHING, Access, ServedModel, server_at

_HEADER = "tfkit-replica"
_ASK_S = 5.0
# How long the gateway may take to notice that a replica is in service, and between looks.
_SETTLE_S, _LOOK_S = 10.0, 0.5


def of(to: ServedModel, *, clock: Clock | None = None) -> dict[str, ServedModel]:
    """Return a model on each replica of its server, by the replica's name.

    A server that is alone is its own replica, and named by its address. Replicas behind what tfkit
    does not run cannot be told from that.

    Args:
        to: the model.
        clock: what waiting for the gateway measures with.

    Raises:
        ServerFailed: a replica does not run, or is not in service.
        ServerUnreachable: a name of a fleet cannot be resolved.
    """
    address = addresses.read(to.url)
    if address.is_fleet:
        return {url: replace(to, url=url) for url in addresses.servers(address)}
    server = server_at(address)
    if server is None or not isinstance(server, Fleet):
        return {to.url: to}
    return {
        each.name: replace(to, url=url, access=pin.over(to.access))
        for each, url, pin in _reached(server, to, clock or SystemClock())
    }


@contextmanager
def connected(
    to: ServedModel, *, clock: Clock | None = None, **options: Any
) -> Iterator[dict[str, Client]]:
    """Give a client of each replica, by its name; arguments and errors as of `of`.

    Args:
        to: the model.
        clock: as there.
        options: of the clients.
    """
    with ExitStack() as stack:
        found = of(to, clock=clock).items()
        yield {name: stack.enter_context(each.connect(**options)) for name, each in found}


def _reached(
    server: RunningServer, to: ServedModel, clock: Clock
) -> Iterator[tuple[Replica, str, Access]]:
    """Yield each replica of a fleet, its address, and what takes requests to it alone."""
    replicas = registry.find(server.server_name).replicas()
    for each in replicas:
        if each.state.phase is not Phase.RUNNING:
            raise _unasked(each, server, f"is {each.state.phase.value} {each.reason}".rstrip())
    behind = {each.address for each in replicas if each.endpoints is None}
    names = _at_gateway(server, to, behind, clock) if behind else {}
    for each in replicas:
        if each.endpoints is not None:
            yield each, each.endpoints.grpc, NOTHING
        elif each.address in names:
            yield each, server.endpoints.grpc, Access(headers={_HEADER: names[each.address]})
        else:
            raise _unasked(each, server, "is not in service at the gateway")


def _at_gateway(
    server: RunningServer, to: ServedModel, wanted: Collection[str], clock: Clock
) -> dict[str, str]:
    """Return by address what the gateway calls the replicas that are in service."""
    # Every command about servers imports this module, and few need grpc.
    from tfserve_kit.clients.grpc import GrpcProtocol
    from tfserve_kit.clients.grpc_channel import GrpcTransport

    url = server.endpoints.grpc
    request: Any = GrpcProtocol(url).status(Target(to.model)).request
    found: dict[str, str] = {}

    def look() -> bool | None:
        for slot in range(1, 1 + services.slots(len(wanted))):
            asked = request._replace(headers=((_HEADER, f"replica{slot}"),))
            name = str(transport.answer_headers(asked, _ASK_S).get(_HEADER, ""))
            found[name.partition("/")[2]] = name
            if found.keys() >= set(wanted):
                return True
        return None

    with closing(GrpcTransport(url, Options(**to.access.options(url)))) as transport:
        wait_until(look, timeout_s=_SETTLE_S, interval_s=_LOOK_S, clock=clock)
    return found


def _unasked(replica: Replica, server: RunningServer, why: str) -> ServerFailed:
    name = server.server_name
    return ServerFailed(
        f"replica {replica.name} of server {name!r} {why}, so it cannot be asked",
        remedy=f"`tfkit status` shows the replicas; `tfkit restart {name}` replaces them, and the "
        "gateway if it is of an older tfkit",
    )
