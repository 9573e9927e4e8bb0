"""gRPC over grpcio's channels, blocking and with asyncio."""

import asyncio
from collections.abc import Callable
from typing import Any

import grpc

from tfserve_kit import protos
from tfserve_kit.clients.options import Options, for_grpc, read_pem
from tfserve_kit.clients.protocol import GrpcRequest, Outcome, Reply
from tfserve_kit.http.messages import user_agent

_Metadata = tuple[tuple[str, str | bytes], ...]


class GrpcTransport:
    """Sends unary calls over one channel. Thread-safe.

    Args:
        url: `grpc://host:port`, `grpcs://host:port` with TLS, or `unix:/path`.
        options: TLS files, headers, compression, size of answers.
        is_alone: whether no connection is shared with other channels to the same address.
    """

    def __init__(self, url: str, options: Options, *, is_alone: bool = False) -> None:
        arguments = {
            "options": _arguments(options, is_alone=is_alone),
            "compression": _compression(options),
        }
        address, is_secure = _address(url)
        self._channel = (
            grpc.secure_channel(address, _credentials(options), **arguments)
            if is_secure
            else grpc.insecure_channel(address, **arguments)
        )
        self._headers = for_grpc(options.headers) or None
        self._calls = {
            name: self._channel.unary_unary(method.path) for name, method in protos.METHODS.items()
        }

    def send(self, request: GrpcRequest, timeout_s: float) -> Outcome:
        """Make a call; see `Transport.send`."""
        try:
            body = self._calls[request.method](
                request.body, timeout=timeout_s, metadata=_joined(self._headers, request)
            )
        except grpc.RpcError as error:
            return _failure(error)
        except ValueError as error:  # the channel is closed, or a header is none
            return Reply(False, b"", "CANCELLED", str(error), error)
        return Reply(True, body)

    def start(
        self, request: GrpcRequest, timeout_s: float, done: Callable[[Outcome], None]
    ) -> Callable[[], None]:
        """Make a call in the background; see `Transport.start`."""

        def finished(future: Any) -> None:
            if future.cancelled():
                return
            error = future.exception()
            done(Reply(True, future.result()) if error is None else _failure(error))

        call = self._calls[request.method]
        try:
            metadata = _joined(self._headers, request)
            future = call.future(request.body, timeout=timeout_s, metadata=metadata)
        except ValueError as error:  # as for `send`
            done(Reply(False, b"", "CANCELLED", str(error), error))
            return lambda: None
        future.add_done_callback(finished)
        return lambda: future.cancel() and None

    def answer_headers(self, request: GrpcRequest, timeout_s: float) -> dict[str, str | bytes]:
        """Make a call, and return the headers of its answer or error, by name."""
        try:
            _, call = self._calls[request.method].with_call(
                request.body, timeout=timeout_s, metadata=_joined(self._headers, request)
            )
        except grpc.RpcError as error:
            call = error
        return dict([*(call.trailing_metadata() or ()), *(call.initial_metadata() or ())])

    def close(self) -> None:
        """Close the channel; calls that wait for an answer are cancelled."""
        self._channel.close()

    abandon = close


class AsyncGrpcTransport:
    """Sends unary calls over one channel, opened in the event loop of the first call.

    Args:
        url: `grpc://host:port`, `grpcs://host:port` with TLS, or `unix:/path`.
        options: TLS files, headers, compression, size of answers.
        is_alone: as for `GrpcTransport`.
    """

    def __init__(self, url: str, options: Options, *, is_alone: bool = False) -> None:
        self._address, is_secure = _address(url)
        self._is_alone, self._is_closed = is_alone, False
        self._options = options
        self._credentials = _credentials(options) if is_secure else None
        self._headers = for_grpc(options.headers) or None
        self._channel: Any = None
        self._calls: dict[str, Any] = {}

    async def send(self, request: GrpcRequest, timeout_s: float) -> Outcome:
        """Make a call; see `AsyncTransport.send`."""
        if self._channel is None:
            self._open()
        try:
            body = await self._calls[request.method](
                request.body, timeout=timeout_s, metadata=_joined(self._headers, request)
            )
        except grpc.aio.AioRpcError as error:
            return _failure(error)
        except (ValueError, grpc.aio.UsageError) as error:  # the channel is closed, or a bad header
            return Reply(False, b"", "CANCELLED", str(error), error)
        except asyncio.CancelledError as error:  # by who awaits this, or by the channel's end
            task = asyncio.current_task()
            if not self._is_closed or (task is not None and task.cancelling()):
                raise
            return Reply(False, b"", "CANCELLED", "the channel is closed", error)
        return Reply(True, body)

    async def close(self) -> None:
        """Close the channel; calls that wait for an answer are cancelled."""
        self._is_closed = True
        if self._channel is not None:
            await self._channel.close()

    abandon = close

    def _open(self) -> None:
        arguments = {
            "options": _arguments(self._options, is_alone=self._is_alone),
            "compression": _compression(self._options),
        }
        self._channel = (
            grpc.aio.secure_channel(self._address, self._credentials, **arguments)
            if self._credentials is not None
            else grpc.aio.insecure_channel(self._address, **arguments)
        )
        self._calls = {
            name: self._channel.unary_unary(method.path) for name, method in protos.METHODS.items()
        }


def _address(url: str) -> tuple[str, bool]:
    """Return where grpcio connects to, and whether with TLS."""
    scheme, separator, place = url.partition("://")
    return place if separator else url, scheme.lower() == "grpcs"


def _joined(headers: _Metadata | None, request: GrpcRequest) -> _Metadata | None:
    """Return what goes with every request, and what goes with this one instead."""
    if not request.headers:
        return headers
    own = {name for name, _ in request.headers}
    return (*(each for each in headers or () if each[0] not in own), *request.headers)


def _failure(error: Any) -> Reply:
    return Reply(False, b"", error.code().name, error.details() or "", error)


def _arguments(options: Options, *, is_alone: bool) -> list[tuple[str, int | str]]:
    name = options.server_name
    return [
        *([("grpc.ssl_target_name_override", name)] if name else []),
        ("grpc.primary_user_agent", user_agent()),
        # The server accepts any size; grpcio's own limit of 4 MiB on answers is too small.
        ("grpc.max_receive_message_length", options.max_answer_bytes),
        ("grpc.max_send_message_length", -1),
        # A proxy for the web is none for the model server.
        ("grpc.enable_http_proxy", 0),
        # What may be repeated is decided by `Attempts` alone.
        ("grpc.enable_retries", 0),
        # A server that comes back is found after a tenth of a second, not after one or more.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 1000),
        ("grpc.max_reconnect_backoff_ms", 1000 if is_alone else 2000),
        # A connection that is given up must not come back with the next channel to its address.
        ("grpc.use_local_subchannel_pool", int(is_alone)),
    ]


def _compression(options: Options) -> Any:
    return grpc.Compression.Gzip if options.gzip else None


def _credentials(options: Options) -> Any:
    return grpc.ssl_channel_credentials(
        read_pem(options.ca_file), read_pem(options.key_file), read_pem(options.cert_file)
    )
