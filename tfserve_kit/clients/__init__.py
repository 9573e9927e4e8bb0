"""Clients for TensorFlow Serving that need no tensorflow."""

from typing import TYPE_CHECKING, Unpack

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


def connect(url: str, **options: Unpack[OptionNames]) -> Client:
    """Return a client for a server, to be closed or used in a `with` block; it connects when used.

    Args:
        url: `grpc://host:port`, `grpcs://host:port` with TLS, `unix:/path` (gRPC over a socket of
            this machine), `http://host:port` or `https://host:port`.
        options: see `Options`.

    Raises:
        UsageError: the URL is of another form, or an option is out of its range.
    """
    address, chosen = _address(url, Options(**options))
    if address.is_rest:
        from tfserve_kit.clients.http_transport import HttpTransport
        from tfserve_kit.clients.rest import RestProtocol

        return Client(RestProtocol(address.url), HttpTransport(address.url, chosen), chosen)
    from tfserve_kit.clients.grpc import GrpcProtocol
    from tfserve_kit.clients.grpc_channel import GrpcTransport

    return Client(GrpcProtocol(address.url), GrpcTransport(address.url, chosen), chosen)


def connect_async(url: str, **options: Unpack[OptionNames]) -> "AsyncClient":
    """Return a client for a server, to be awaited; it belongs to the event loop that first uses it.

    Args:
        url: as for `connect`.
        options: see `Options`.

    Raises:
        UsageError: as for `connect`.
    """
    from tfserve_kit.clients.aio import AsyncClient

    address, chosen = _address(url, Options(**options))
    if address.is_rest:
        from tfserve_kit.clients.http_transport import AsyncHttpTransport
        from tfserve_kit.clients.rest import RestProtocol

        return AsyncClient(
            RestProtocol(address.url), AsyncHttpTransport(address.url, chosen), chosen
        )
    from tfserve_kit.clients.grpc import GrpcProtocol
    from tfserve_kit.clients.grpc_channel import AsyncGrpcTransport

    return AsyncClient(GrpcProtocol(address.url), AsyncGrpcTransport(address.url, chosen), chosen)


def _address(url: str, options: Options) -> tuple[addresses.Address, Options]:
    address = addresses.server(url)
    if options.has_tls_files and not address.is_secure:
        raise UsageError(
            f"{address.url} does not use TLS, but TLS options are set",
            remedy="write grpcs:// or https://, or leave out the TLS options",
        )
    return address, options
