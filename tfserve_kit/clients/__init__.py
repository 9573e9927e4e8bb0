"""Clients for TensorFlow Serving that need no tensorflow."""

from urllib.parse import urlsplit

from tfserve_kit.clients.base import Client, Metadata, Prediction, Target, VersionStatus
from tfserve_kit.errors import UsageError

__all__ = ["Client", "Metadata", "Prediction", "Target", "VersionStatus", "connect"]


def connect(url: str) -> Client:
    """Return a client for a server.

    Args:
        url: `grpc://host:port` or `http://host:port`.

    Raises:
        UsageError: the URL is of another form.
    """
    try:
        parts = urlsplit(url)
    except ValueError:  # an IPv6 address without its closing bracket
        parts = urlsplit("")
    if parts.scheme == "grpc" and parts.netloc:
        from tfserve_kit.clients.grpc import GrpcClient

        return GrpcClient(parts.netloc)
    if parts.scheme in {"http", "https"} and parts.netloc:
        from tfserve_kit.clients.rest import RestClient

        return RestClient(url)
    raise UsageError(
        f"{url!r} is no address of a model server",
        remedy="write grpc://localhost:8500 or http://localhost:8501",
    )
