"""The gRPC client: TensorFlow Serving's own protocol, without tensorflow."""

from tfserve_kit.clients.grpc_channel import GrpcTransport
from tfserve_kit.clients.grpc_messages import GrpcWire
from tfserve_kit.clients.options import Options
from tfserve_kit.clients.sync import SyncClient


class GrpcClient(SyncClient):
    """Talks gRPC to one server. Thread-safe.

    Args:
        address: `host:port`, or `unix:/path` of a socket.
        options: how the client behaves.
        secure: whether to use TLS.
    """

    def __init__(
        self, address: str, options: Options | None = None, *, secure: bool = False
    ) -> None:
        options = options or Options()
        transport = GrpcTransport(address, options, secure=secure)
        super().__init__(GrpcWire(grpc_url(address, secure=secure)), transport, options)


def grpc_url(address: str, *, secure: bool) -> str:
    """Return the URL of an address."""
    if address.startswith("unix:"):
        return address
    return f"{'grpcs' if secure else 'grpc'}://{address}"
