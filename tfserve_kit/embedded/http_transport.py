"""HTTP/1.1 on a TCP port: asyncio sockets, the httptools parser, answers from worker threads."""

import asyncio
import contextlib
import socket
import threading
import zlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from email.utils import formatdate
from http import HTTPStatus
from typing import Any

import httptools

from tfserve_kit.embedded.rest_surface import Reply, page, timed_out
from tfserve_kit.embedded.status import ServingError, invalid

Surface = Callable[[str, str, bytes], Reply]

_REASONS = {status.value: status.phrase for status in HTTPStatus} | {499: "Client Closed Request"}
_BACKLOG = 1024
# As much as the official server inflates (tensorflow_serving/util/net_http/).
_MOST_INFLATED_BYTES = 100_000_000


class HttpTransport:
    """An HTTP server with an event loop in a thread of its own.

    Args:
        surface: (method, target, body) -> Reply; called in a worker thread.
        host: address to listen on.
        port: TCP port; 0 asks the system for a free one.
        threads: requests answered at the same time.
        timeout_s: how long an answer may take before the client gets an error, in seconds.
    """

    def __init__(
        self, surface: Surface, host: str, port: int, threads: int, *, timeout_s: float = 30.0
    ) -> None:
        self._timeout_s = timeout_s
        self._workers = ThreadPoolExecutor(threads, "rest")
        self._connections: set[_Connection] = set()
        self._surface = surface
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)
        self._listening = threading.Event()
        try:
            self._socket = socket.create_server((host, port), backlog=_BACKLOG)
        except (OSError, OverflowError) as error:  # taken, or no port number at all
            self._loop.close()
            self._workers.shutdown()
            raise _unusable(host, port) from error
        self.port: int = self._socket.getsockname()[1]

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()
        self._listening.wait()

    def stop(self, grace_s: float) -> None:
        """Refuse new connections, wait up to `grace_s` seconds for answers, then close all."""
        if not self._thread.is_alive():
            self._socket.close()
            self._loop.close()
            self._workers.shutdown()
            return
        asyncio.run_coroutine_threadsafe(self._drain(grace_s), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._workers.shutdown(wait=False, cancel_futures=True)

    def _run(self) -> None:
        async def listen() -> None:
            self._server = await self._loop.create_server(self._accept, sock=self._socket)

        self._loop.run_until_complete(listen())
        self._listening.set()
        self._loop.run_forever()
        self._loop.close()

    def _accept(self) -> "_Connection":
        return _Connection(
            self._surface, self._workers, self._loop, self._connections, self._timeout_s
        )

    async def _drain(self, grace_s: float) -> None:
        self._server.close()
        end_s = self._loop.time() + grace_s
        await asyncio.sleep(0.01)  # connections just accepted come into being
        while any(each.busy for each in self._connections) and self._loop.time() < end_s:
            await asyncio.sleep(0.01)
        for connection in list(self._connections):
            connection.close()
        while self._connections and self._loop.time() < end_s:  # until all that was written is sent
            await asyncio.sleep(0.01)
        for connection in list(self._connections):
            connection.abort()
        await asyncio.sleep(0)  # lets the transports say goodbye


def _unusable(host: str, port: int) -> ServingError:
    return invalid(f"cannot listen for REST on {host}:{port}")


def _inflated(body: bytes) -> bytes:
    """Return a gzip body inflated; nothing where it is damaged, cut or too large."""
    inflater = zlib.decompressobj(zlib.MAX_WBITS | 16)
    try:
        inflated = inflater.decompress(body, _MOST_INFLATED_BYTES)
    except zlib.error:
        return b""
    return inflated if inflater.eof else b""


class _Connection(asyncio.Protocol):
    """One client connection: parses requests, answers them one after the other."""

    def __init__(
        self,
        surface: Surface,
        workers: ThreadPoolExecutor,
        loop: asyncio.AbstractEventLoop,
        connections: "set[_Connection]",
        timeout_s: float,
    ) -> None:
        self._surface, self._workers, self._loop = surface, workers, loop
        self._timeout_s = timeout_s
        self._connections = connections
        self._parser = httptools.HttpRequestParser(self)
        self._waiting: deque[tuple[str, str, bytes, bool]] = deque()
        self._transport: Any = None
        self._broken = False
        self.busy = False

    # Called by asyncio

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._connections.discard(self)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            self._decline(data[offer.args[0] :])
        except httptools.HttpParserError:
            self._refuse()

    def _decline(self, rest: bytes) -> None:
        """Read a request that offers another protocol once more, without the offer."""
        method = self._parser.get_method()
        if method == b"CONNECT":
            self._refuse()
            return
        headers = [b"%b: %b" % each for each in self._headers if each[0].lower() != b"upgrade"]
        head = b"\r\n".join([b"%b %b HTTP/1.1" % (method, self._target), *headers])
        self._parser = httptools.HttpRequestParser(self)
        self.data_received(head + b"\r\n\r\n" + rest)

    def _refuse(self) -> None:
        self._broken = True
        self._next()

    # Called by the parser

    def on_message_begin(self) -> None:
        self._target = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        for name, value in self._headers:
            if name.lower() == b"expect" and value.lower() == b"100-continue":
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        if self._parser.should_upgrade():
            return  # it is read again without the offer
        method = self._parser.get_method().decode("latin-1")
        keep_alive = self._parser.should_keep_alive()
        target = self._target.decode("latin-1")
        body = b"".join(self._body)
        if b"gzip" in (v for name, v in self._headers if name.lower() == b"content-encoding"):
            body = _inflated(body)
        self._waiting.append((method, target, body, keep_alive))
        self._next()

    # Answers

    def _next(self) -> None:
        """Take up the next request; what cannot be parsed is refused after those before it."""
        if self.busy or self._transport.is_closing():
            return
        if self._waiting:
            self._ask(*self._waiting.popleft())
        elif self._broken:
            self._write(page(400), keep_alive=False)

    def _ask(self, method: str, target: str, body: bytes, keep_alive: bool) -> None:  # noqa: FBT001
        answered = False

        def answer(reply: Reply) -> None:
            nonlocal answered
            if answered:  # by the timer, before the surface was done
                return
            answered, self.busy = True, False
            timer.cancel()
            if not self._transport.is_closing():
                self._write(reply, keep_alive=keep_alive, headless=method == "HEAD")
            self._next()

        def on_done(done: Future[Reply]) -> None:
            if done.cancelled():  # the server has stopped before its turn came
                return
            with contextlib.suppress(RuntimeError):  # or meanwhile
                self._loop.call_soon_threadsafe(answer, done.result())

        self.busy = True
        timer = self._loop.call_later(self._timeout_s, answer, timed_out())
        self._workers.submit(self._surface, method, target, body).add_done_callback(on_done)

    def _write(self, reply: Reply, *, keep_alive: bool, headless: bool = False) -> None:
        keep_alive = keep_alive and not reply.close
        head = [f"HTTP/1.1 {reply.status} {_REASONS.get(reply.status, '')}"]
        head += [f"{name}: {value}" for name, value in reply.headers.items()]
        head += [f"Date: {formatdate(usegmt=True)}", f"Content-Length: {len(reply.body)}"]
        head += [] if keep_alive else ["Connection: close"]
        body = b"" if headless else reply.body
        self._transport.write("\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + body)
        if not keep_alive:
            self._transport.close()

    def close(self) -> None:
        """Close once what was written is sent."""
        self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()
