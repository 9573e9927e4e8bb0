"""gRPC on a TCP port, with grpcio; everything above it deals in bytes.

grpcio neither tells how much of a message has arrived nor lets us bound what all of those hold
together; what it hands over whole is accounted for, see `grpc_calls`.
"""

import time
from collections.abc import Iterable
from typing import Any

import grpc

from tfserve_kit.embedded.grpc_calls import Calls
from tfserve_kit.embedded.grpc_workers import Workers
from tfserve_kit.embedded.limits import MOST_STREAMS
from tfserve_kit.embedded.settings import Tls
from tfserve_kit.embedded.status import ServingError, invalid

_OPTIONS = [
    # As the official server: what protobuf can hold (tensorflow_serving/model_servers/server.cc).
    ("grpc.max_receive_message_length", (1 << 31) - 1),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_concurrent_streams", MOST_STREAMS),
    # Messages are inflated here, with a bound: what a thousandth was sent of would be made.
    ("grpc.per_message_decompression", 0),
    # With more of them in its hands grpcio would refuse some, whosever they are.
    ("grpc.server.max_pending_requests", 1 << 20),
    ("grpc.server.max_pending_requests_hard_limit", 1 << 20),
    # Two servers on one port would share its connections without a word.
    ("grpc.so_reuseport", 0),
]
# Before connections are told to end: how long no call must have come, and the most that is waited.
_QUIET_S = 0.05
_LONGEST_QUIET_S = 1.0


class GrpcTransport:
    """A gRPC server.

    Args:
        calls: what answers.
        address: `host:port`; port 0 asks the system for a free one. Empty for no TCP port.
        socket_path: UNIX socket to listen on as well, without TLS; empty for none.
        tls: certificates, None for plain text.
        arguments: further arguments of the gRPC library, such as `grpc.max_connection_age_ms`.

    Raises:
        ServingError: an address cannot be listened on, or a certificate cannot be used.
    """

    def __init__(
        self,
        calls: Calls,
        address: str,
        *,
        socket_path: str = "",
        tls: Tls | None = None,
        arguments: Iterable[tuple[str, int | str]] = (),
    ) -> None:
        self._calls = calls
        self._workers = Workers(calls.most)
        self._server = grpc.server(
            self._workers,
            handlers=[calls],
            options=[*_OPTIONS, *arguments],
        )
        self.port = self._listen(address, tls) if address else 0
        asked = address.rpartition(":")[2]
        if asked not in {"", "0", str(self.port)}:  # 70000 would become 4464
            raise _unusable(address)
        if socket_path:
            self._listen(f"unix:{socket_path}", None)

    def _listen(self, address: str, tls: Tls | None) -> int:
        try:
            if tls is None:
                port = self._server.add_insecure_port(address)
            else:
                port = self._server.add_secure_port(address, _credentials(tls))
        except (RuntimeError, ValueError):
            port = 0
        if not port:
            raise _unusable(address)
        return int(port)

    def start(self) -> None:
        """Begin to answer."""
        self._server.start()

    def stop(self, grace_s: float) -> None:
        """Refuse new requests, wait up to `grace_s` seconds for those in flight, then end.

        grpcio cancels calls that were on their way when it was told to stop, so it is told when
        there are none: answers are kept back until nobody asks any more, and given once the
        connections have been told to go.
        """
        end_s = time.monotonic() + grace_s
        self._calls.hold(_QUIET_S, min(grace_s, _LONGEST_QUIET_S))
        ended = self._server.stop(max(0.0, end_s - time.monotonic()))
        self._calls.release()
        ended.wait()
        self._workers.end()


def _credentials(tls: Tls) -> Any:
    return grpc.ssl_server_credentials(
        [(tls.server_key, tls.server_cert)],
        root_certificates=tls.custom_ca or None,
        require_client_auth=tls.client_verify,
    )


def _unusable(address: str) -> ServingError:
    return invalid(f"Failed to BuildAndStart gRPC server: cannot listen on {address}")
