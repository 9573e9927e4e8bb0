"""Clients for TensorFlow Serving that need no tensorflow."""

from typing import TYPE_CHECKING, Unpack
from urllib.parse import SplitResult, urlsplit

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
    parts, chosen = _parts(url), Options(**options)
    _check_tls(url, parts, chosen)
    if parts.scheme in {"http", "https"}:
        from tfserve_kit.clients.rest import RestClient

        return RestClient(url, chosen)
    from tfserve_kit.clients.grpc import GrpcClient

    return GrpcClient(_address(parts), chosen, secure=parts.scheme == "grpcs")


def connect_async(url: str, **options: Unpack[OptionNames]) -> "AsyncClient":
    """Return a client for a server, to be awaited; it belongs to the event loop that first uses it.

    Args:
        url: as for `connect`.
        options: see `Options`.

    Raises:
        UsageError: as for `connect`.
    """
    from tfserve_kit.clients import aio

    parts, chosen = _parts(url), Options(**options)
    _check_tls(url, parts, chosen)
    if parts.scheme in {"http", "https"}:
        return aio.rest_client(url, chosen)
    return aio.grpc_client(_address(parts), chosen, secure=parts.scheme == "grpcs")


def _parts(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises if it is no number
    except ValueError:  # such as an IPv6 address without its closing bracket
        parts = urlsplit("")
    with_host = parts.scheme in {"grpc", "grpcs", "http", "https"} and parts.netloc
    if with_host and "@" not in parts.netloc:
        return parts
    if parts.scheme == "unix" and parts.path.startswith("/") and not parts.netloc:
        return parts
    raise UsageError(
        f"{url!r} is no address of a model server",
        remedy="write grpc://localhost:8500 or http://localhost:8501",
    )


def _address(parts: SplitResult) -> str:
    return f"unix:{parts.path}" if parts.scheme == "unix" else parts.netloc


def _check_tls(url: str, parts: SplitResult, options: Options) -> None:
    if options.has_tls_files and parts.scheme not in {"grpcs", "https"}:
        raise UsageError(
            f"{url} uses no TLS, so its files say nothing", remedy="write grpcs:// or https://"
        )
