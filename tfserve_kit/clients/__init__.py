"""Clients for TensorFlow Serving that need no tensorflow."""

from typing import TYPE_CHECKING, Unpack

from tfserve_kit.clients import addresses
from tfserve_kit.clients.base import (
    BatchPrediction,
    Classification,
    Client,
    LabelScore,
    Metadata,
    Prediction,
    Regression,
    Target,
    VersionStatus,
)
from tfserve_kit.clients.options import OptionNames, Options
from tfserve_kit.errors import UsageError

if TYPE_CHECKING:
    from tfserve_kit.clients.aio import AsyncClient
    from tfserve_kit.clients.sync import SyncClient

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


def connect(url: str, **options: Unpack[OptionNames]) -> "SyncClient":
    """Return a client for a server, to be closed or used in a `with` block; it connects when used.

    Args:
        url: `grpc://host:port`, `grpcs://host:port` with TLS, `unix:/path` (gRPC over a socket of
            this machine), `http://host:port` or `https://host:port`.
        options: see `Options`.

    Raises:
        UsageError: the URL is of another form, or an option cannot be so.
    """
    address, chosen = addresses.server(url), Options(**options)
    _check_tls(address, chosen)
    if address.is_rest:
        from tfserve_kit.clients.rest import RestClient

        return RestClient(address.url, chosen)
    from tfserve_kit.clients.grpc import GrpcClient

    return GrpcClient(_grpc_target(address), chosen, secure=address.is_secure)


def connect_async(url: str, **options: Unpack[OptionNames]) -> "AsyncClient":
    """Return a client for a server, to be awaited; it belongs to the event loop that first uses it.

    Args:
        url: as for `connect`.
        options: see `Options`.

    Raises:
        UsageError: as for `connect`.
    """
    from tfserve_kit.clients import aio

    address, chosen = addresses.server(url), Options(**options)
    _check_tls(address, chosen)
    if address.is_rest:
        return aio.rest_client(address.url, chosen)
    return aio.grpc_client(_grpc_target(address), chosen, secure=address.is_secure)


def _grpc_target(address: addresses.Address) -> str:
    return address.url if address.scheme == "unix" else address.url.partition("://")[2]


def _check_tls(address: addresses.Address, options: Options) -> None:
    if options.has_tls_files and not address.is_secure:
        raise UsageError(
            f"{address.url} uses no TLS, so its files say nothing",
            remedy="write grpcs:// or https://",
        )
