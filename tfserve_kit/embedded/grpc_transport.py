"""gRPC on a TCP port, with grpcio; everything above it deals in bytes."""

import logging
import threading
from collections.abc import Callable, Iterable
from functools import partial
from queue import SimpleQueue
from threading import TIMEOUT_MAX
from typing import Any
from urllib.parse import quote, unquote

import grpc

from tfserve_kit.embedded.call import Call
from tfserve_kit.embedded.grpc_surface import Answer
from tfserve_kit.embedded.settings import Tls
from tfserve_kit.embedded.status import ServingError, invalid

_log = logging.getLogger(__name__)

_OPTIONS = [
    # As the official server: what protobuf can hold (tensorflow_serving/model_servers/server.cc).
    ("grpc.max_receive_message_length", (1 << 31) - 1),
    ("grpc.max_send_message_length", -1),
    # Two servers on one port would share its connections without a word.
    ("grpc.so_reuseport", 0),
]
_CODES = {code.value[0]: code for code in grpc.StatusCode}
# Details travel percent-encoded in a header; with a longer one clients refuse the whole answer.
_MOST_DETAILS_BYTES = 7000
_UNQUOTED = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")

# (method path, request bytes, call) -> Answer
Surface = Callable[[str, bytes, Call], Answer]


class GrpcTransport:
    """A gRPC server.

    Args:
        answer: the surface.
        address: `host:port`; port 0 asks the system for a free one. Empty for no TCP port.
        threads: requests answered at the same time.
        socket_path: UNIX socket to listen on as well, without TLS; empty for none.
        tls: certificates, None for plain text.
        arguments: further arguments of the gRPC library, such as `grpc.max_connection_age_ms`.

    Raises:
        ServingError: an address cannot be listened on, or a certificate cannot be used.
    """

    def __init__(
        self,
        answer: Surface,
        address: str,
        threads: int,
        *,
        socket_path: str = "",
        tls: Tls | None = None,
        arguments: Iterable[tuple[str, int | str]] = (),
    ) -> None:
        self._workers = _Workers(threads)
        self._server = grpc.server(
            self._workers,
            handlers=[_Routes(answer)],
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
        """Refuse new requests, wait up to `grace_s` seconds for those in flight, then end."""
        self._server.stop(grace_s).wait()
        self._workers.end()


def _credentials(tls: Tls) -> Any:
    return grpc.ssl_server_credentials(
        [(tls.server_key, tls.server_cert)],
        root_certificates=tls.custom_ca or None,
        require_client_auth=tls.client_verify,
    )


def _unusable(address: str) -> ServingError:
    return invalid(f"Failed to BuildAndStart gRPC server: cannot listen on {address}")


class _Workers:
    """What grpcio asks of a thread pool: `submit`.

    A ThreadPoolExecutor makes a future with a lock of its own for each call, of which grpcio uses
    nothing but its end, and that only to limit the number of calls; so there is none here, which
    makes a server of small models a fifth faster.
    """

    def __init__(self, threads: int) -> None:
        self._calls: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"grpc_{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, call: Callable[..., object], *arguments: object) -> None:
        """Have a call made by the next thread that is free."""
        self._calls.put(partial(call, *arguments))

    def end(self) -> None:
        """Let the threads end when they have made all calls."""
        for _ in self._threads:
            self._calls.put(None)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                call()
            except Exception:  # noqa: BLE001 (the thread must live)
                _log.exception("a call failed")


class _Routes(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Sends every method to the surface, as bytes."""

    def __init__(self, answer: Surface) -> None:
        self._answer = answer

    def service(self, handler_call_details: Any) -> Any:
        path = handler_call_details.method

        def call(request: bytes, context: Any) -> bytes:
            if not context.is_active():  # the client did not wait for its turn
                return b""
            with_limits = Call.within(_timeout_s(context), Call.unbounded().account)
            answer = self._answer(path, request, with_limits)
            if answer.code:
                context.set_code(_CODES[answer.code])
                context.set_details(_fitting(answer.details))
            return answer.body

        return grpc.unary_unary_rpc_method_handler(call)


def _fitting(details: str) -> str:
    """Cut a text to what a header can carry."""
    sent = quote(details, safe=_UNQUOTED, errors="replace")[:_MOST_DETAILS_BYTES]
    return unquote(sent, errors="ignore")


def _timeout_s(context: Any) -> float | None:
    """Return how long the client will wait; without a deadline grpcio says 292 billion years."""
    remaining_s: float | None = context.time_remaining()
    return remaining_s if remaining_s is not None and remaining_s < TIMEOUT_MAX else None
