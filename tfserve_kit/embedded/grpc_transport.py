"""gRPC on a TCP port, with grpcio; everything above it deals in bytes."""

from collections.abc import Callable
from concurrent import futures
from typing import Any

import grpc

from tfserve_kit.embedded.grpc_surface import Answer
from tfserve_kit.embedded.status import ServingError, invalid

_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # Two servers on one port would share its connections without a word.
    ("grpc.so_reuseport", 0),
]
_CODES = {code.value[0]: code for code in grpc.StatusCode}


class GrpcTransport:
    """A gRPC server.

    Args:
        answer: the surface: (method path, request bytes) -> Answer.
        address: `host:port`; port 0 asks the system for a free one.
        threads: requests answered at the same time.
    """

    def __init__(self, answer: Callable[[str, bytes], Answer], address: str, threads: int) -> None:
        self._server = grpc.server(
            futures.ThreadPoolExecutor(threads, "grpc"),
            handlers=[_Routes(answer)],
            options=_OPTIONS,
        )
        try:
            self.port: int = self._server.add_insecure_port(address)
        except RuntimeError:
            self.port = 0
        if not self.port:
            raise _unusable(address)

    def start(self) -> None:
        """Begin to answer."""
        self._server.start()

    def stop(self, grace_s: float) -> None:
        """Refuse new requests, wait up to `grace_s` seconds for those in flight, then end."""
        self._server.stop(grace_s).wait()


def _unusable(address: str) -> ServingError:
    return invalid(f"Failed to BuildAndStart gRPC server: cannot listen on {address}")


class _Routes(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Sends every method to the surface, as bytes."""

    def __init__(self, answer: Callable[[str, bytes], Answer]) -> None:
        self._answer = answer

    def service(self, handler_call_details: Any) -> Any:
        path = handler_call_details.method

        def call(request: bytes, context: Any) -> bytes:
            answer = self._answer(path, request)
            if answer.code:
                context.set_code(_CODES[answer.code])
                context.set_details(answer.details)
            return answer.body

        return grpc.unary_unary_rpc_method_handler(call)
