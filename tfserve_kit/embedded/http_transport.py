"""HTTP/1.1 on a TCP port: asyncio sockets, the httptools parser, answers from worker threads."""

import asyncio
import socket
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from http import HTTPStatus
from typing import Any

import httptools

from tfserve_kit.embedded.rest_surface import Reply, page
from tfserve_kit.embedded.status import ServingError, invalid

Surface = Callable[[str, str, bytes], Reply]

_REASONS = {status.value: status.phrase for status in HTTPStatus} | {499: "Client Closed Request"}
_BACKLOG = 1024


class HttpTransport:
    """An HTTP server with an event loop in a thread of its own.

    Args:
        surface: (method, target, body) -> Reply; called in a worker thread.
        host: address to listen on.
        port: TCP port; 0 asks the system for a free one.
        threads: requests answered at the same time.
    """

    def __init__(self, surface: Surface, host: str, port: int, threads: int) -> None:
        self._workers = ThreadPoolExecutor(threads, "rest")
        self._connections: set[_Connection] = set()
        self._surface = surface
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)
        try:
            self._socket = socket.create_server((host, port), backlog=_BACKLOG)
        except OSError as error:
            self._loop.close()
            self._workers.shutdown()
            raise _unusable(host, port) from error
        self.port: int = self._socket.getsockname()[1]

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self, grace_s: float) -> None:
        """Refuse new connections, wait up to `grace_s` seconds for answers, then close all."""
        if not self._thread.is_alive():
            self._socket.close()
            return
        asyncio.run_coroutine_threadsafe(self._drain(grace_s), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._workers.shutdown(cancel_futures=True)

    def _run(self) -> None:
        async def listen() -> None:
            self._server = await self._loop.create_server(self._accept, sock=self._socket)

        self._loop.run_until_complete(listen())
        self._loop.run_forever()
        self._loop.close()

    def _accept(self) -> "_Connection":
        return _Connection(self._surface, self._workers, self._loop, self._connections)

    async def _drain(self, grace_s: float) -> None:
        self._server.close()
        end_s = self._loop.time() + grace_s
        while any(each.busy for each in self._connections) and self._loop.time() < end_s:
            await asyncio.sleep(0.01)
        for connection in list(self._connections):
            connection.close()
        await asyncio.sleep(0)  # lets the transports say goodbye


def _unusable(host: str, port: int) -> ServingError:
    return invalid(f"cannot listen for REST on {host}:{port}")


class _Connection(asyncio.Protocol):
    """One client connection: parses requests, answers them one after the other."""

    def __init__(
        self,
        surface: Surface,
        workers: ThreadPoolExecutor,
        loop: asyncio.AbstractEventLoop,
        connections: "set[_Connection]",
    ) -> None:
        self._surface, self._workers, self._loop = surface, workers, loop
        self._connections = connections
        self._parser = httptools.HttpRequestParser(self)
        self._waiting: deque[tuple[str, str, bytes, bool]] = deque()
        self._transport: Any = None
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
        except httptools.HttpParserUpgrade:
            self.close()
        except httptools.HttpParserError:
            self._write(page(400), keep_alive=False)

    # Called by the parser

    def on_message_begin(self) -> None:
        self._target = b""
        self._body: list[bytes] = []

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"expect" and value.lower() == b"100-continue":
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        method = self._parser.get_method().decode("latin-1")
        keep_alive = self._parser.should_keep_alive()
        target = self._target.decode("latin-1")
        self._waiting.append((method, target, b"".join(self._body), keep_alive))
        self._next()

    # Answers

    def _next(self) -> None:
        if self.busy or not self._waiting:
            return
        self.busy = True
        method, target, body, keep_alive = self._waiting.popleft()
        future = self._workers.submit(self._surface, method, target, body)
        future.add_done_callback(
            lambda done: self._loop.call_soon_threadsafe(
                self._done, done.result(), method == "HEAD", keep_alive
            )
        )

    def _done(self, reply: Reply, headless: bool, keep_alive: bool) -> None:  # noqa: FBT001
        self.busy = False
        self._write(reply, keep_alive=keep_alive, headless=headless)
        self._next()

    def _write(self, reply: Reply, *, keep_alive: bool, headless: bool = False) -> None:
        if self._transport.is_closing():
            return
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
