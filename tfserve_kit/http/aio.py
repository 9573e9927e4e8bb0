"""Connections that stay open, for asyncio; the twin of `connections.py`."""

import asyncio
import ssl
from collections import deque

from tfserve_kit.http.messages import Endpoint, Response, read_response

# What a connection holds unread before it stops the server from sending.
_MOST_UNREAD_BYTES = 1 << 20


async def connect(endpoint: Endpoint, tls: ssl.SSLContext | None) -> "AsyncConnection":
    """Return a new connection; errors are those of `loop.create_connection`."""
    _, connection = await asyncio.get_running_loop().create_connection(
        AsyncConnection,
        endpoint.host,
        endpoint.port,
        ssl=tls,
        server_hostname=endpoint.server_name if tls is not None else None,
    )
    return connection


class AsyncConnection(asyncio.Protocol):
    """One connection, for one request after another."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._unread: deque[bytes] = deque()
        self._unread_bytes = 0
        self._is_over = False
        self._error: Exception | None = None
        self._changed = asyncio.Event()
        self._ended = asyncio.Event()

    async def exchange(self, data: bytes, most: int) -> Response:
        """Send a request and return the answer, of at most `most` bytes."""
        if self._transport is None or self._is_over:
            raise ConnectionResetError("the server closed the connection")
        self._transport.write(data)
        reader = read_response(most)
        next(reader)
        try:
            while True:
                reader.send(await self._read())
        except StopIteration as end:
            response: Response = end.value
            return response

    async def _read(self) -> bytes:
        while not self._unread:
            if self._error is not None:
                raise self._error
            if self._is_over:
                return b""
            self._changed.clear()
            await self._changed.wait()
        data = self._unread.popleft()
        self._unread_bytes -= len(data)
        if self._transport is not None and self._unread_bytes == 0:
            self._transport.resume_reading()
        return data

    def is_quiet(self) -> bool:
        """Say whether the server has neither closed the connection nor sent what nobody asked."""
        return not self._unread and not self._is_over

    def close(self) -> None:
        """Close it, at once."""
        if self._transport is not None:
            self._transport.abort()

    async def ended(self) -> None:
        """Wait until it is closed."""
        await self._ended.wait()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport; asyncio calls this."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 (that of a stream is one)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Keep what came; asyncio calls this."""
        self._unread.append(data)
        self._unread_bytes += len(data)
        if self._unread_bytes > _MOST_UNREAD_BYTES and self._transport is not None:
            self._transport.pause_reading()
        self._changed.set()

    def eof_received(self) -> None:
        """Note that the server sends no more; asyncio calls this."""
        self._is_over = True
        self._changed.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the end; asyncio calls this."""
        self._is_over, self._error = True, exc
        self._changed.set()
        self._ended.set()
