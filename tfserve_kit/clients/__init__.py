"""Clients for TensorFlow Serving that need no tensorflow."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Unpack

from tfserve_kit.clients import addresses
from tfserve_kit.clients.options import OptionNames, Options
from tfserve_kit.clients.results import (
    BatchPrediction,
    Classification,
    LabelScore,
    Metadata,
    Prediction,
    Regression,
    Target,
    VersionStatus,
)
from tfserve_kit.clients.sync import Client
from tfserve_kit.clock import SystemClock
from tfserve_kit.errors import UsageError

if TYPE_CHECKING:
    from tfserve_kit.clients.aio import AsyncClient

__all__ = [
    "BatchPrediction",
    "Classification",
    "Client",
    "LabelScore",
    "Metadata",
    "Options",
    "Prediction",
    "Regression",
    "Target",
    "VersionStatus",
    "connect",
    "connect_async",
]


Servers = str | Sequence[str]


def connect(url: Servers, **options: Unpack[OptionNames]) -> Client:
    """Return a client for a server, to be closed or used in a `with` block; it connects when used.

    Several addresses are a fleet: servers of the same models, of which each call takes the one with
    the least to do. One that fails or falls silent is left out until it answers again, and calls
    that are safe to repeat go to another.

    Args:
        url: `grpc://host:port`, `grpcs://host:port` with TLS, `unix:/path` (gRPC over a socket of
            this machine), `http://host:port` or `https://host:port`; several of them, in a list or
            with commas between; or a name that is resolved to several servers, again and again:
            `dns:///host:port` for gRPC, `dns+SCHEME://host:port` for each of the schemes.
        options: see `Options`.

    Raises:
        UsageError: the URL is of another form, or an option is out of its range.
    """
    address, chosen = _address(url, Options(**options))
    protocol, transport = _spoken(address, is_async=False)
    if not address.is_fleet:
        return Client(protocol(address.url), transport(address.url, chosen), chosen)
    from tfserve_kit.clients.fleet import Fleet, FleetAttempts

    clock = SystemClock()
    fleet: Any = Fleet(address.members, partial(_replica, transport, chosen), protocol, clock)
    return Client(protocol(fleet.url), fleet, chosen, clock, FleetAttempts(fleet, chosen, clock))


def connect_async(url: Servers, **options: Unpack[OptionNames]) -> "AsyncClient":
    """Return a client for a server, to be awaited; it belongs to the event loop that first uses it.

    Args:
        url: as for `connect`.
        options: see `Options`.

    Raises:
        UsageError: as for `connect`.
    """
    from tfserve_kit.clients.aio import AsyncClient

    address, chosen = _address(url, Options(**options))
    protocol, transport = _spoken(address, is_async=True)
    if not address.is_fleet:
        return AsyncClient(protocol(address.url), transport(address.url, chosen), chosen)
    from tfserve_kit.clients.fleet import AsyncFleet, FleetAttempts

    clock = SystemClock()
    fleet: Any = AsyncFleet(address.members, partial(_replica, transport, chosen), protocol, clock)
    return AsyncClient(protocol(fleet.url), fleet, chosen, FleetAttempts(fleet, chosen, clock))


def _spoken(address: addresses.Address, *, is_async: bool) -> tuple[Any, Any]:
    """Return the protocol of an address, and what sends its requests."""
    if address.is_rest:
        from tfserve_kit.clients.http_transport import AsyncHttpTransport, HttpTransport
        from tfserve_kit.clients.rest import RestProtocol

        return RestProtocol, AsyncHttpTransport if is_async else HttpTransport
    from tfserve_kit.clients.grpc import GrpcProtocol
    from tfserve_kit.clients.grpc_channel import AsyncGrpcTransport, GrpcTransport

    return GrpcProtocol, AsyncGrpcTransport if is_async else GrpcTransport


# A replica that takes no connection so soon is none that others should wait for.
_CONNECT_S = 1.0


def _replica(transport: Any, options: Options, url: str, source: addresses.Address) -> Any:
    """Return a transport to one replica; behind a name, it must prove to be of that name."""
    if source.is_name:
        place = source.url.partition("://")[2].lstrip("/").partition("/")[0]
        if source.is_secure and not options.server_name:
            options = replace(options, server_name=source.host)
        if source.is_rest and not any(name.lower() == "host" for name in options.headers):
            options = replace(options, headers={**options.headers, "Host": place})
    if source.is_rest:
        return transport(url, options, connect_s=_CONNECT_S)
    return transport(url, options, is_alone=True)


def _address(url: Servers, options: Options) -> tuple[addresses.Address, Options]:
    address = addresses.server(url if isinstance(url, str) else ",".join(url))
    if options.has_tls_files and not address.is_secure:
        raise UsageError(
            f"{address.url} does not use TLS, but TLS options are set",
            remedy="write grpcs:// or https://, or leave out the TLS options",
        )
    return address, options
