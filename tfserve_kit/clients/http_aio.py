"""HTTP over connections that stay open, for asyncio; the twin of `http_connections.py`."""

import asyncio
from collections import deque

from tfserve_kit.clients.http_bodies import TooLarge
from tfserve_kit.clients.http_connections import was_stale
from tfserve_kit.clients.http_messages import Endpoint, Response, lost, reading
from tfserve_kit.clients.http_tls import tls_context
from tfserve_kit.clients.options import Options
from tfserve_kit.clients.protocol import HttpRequest, Loss, Lost, Outcome

# What a connection holds unread before it stops the server from sending.
_MOST_UNREAD_BYTES = 1 << 20


class AsyncHttpTransport:
    """Sends HTTP requests; each has a connection for itself.

    Args:
        url: `http://host:port` or `https://host:port`, with a path if a proxy wants one.
        options: TLS files, headers, compression, size of answers.
    """

    def __init__(self, url: str, options: Options) -> None:
        self._endpoint, self._options = Endpoint(url, options), options
        self._tls = tls_context(options) if url.lower().startswith("https") else None
        self._idle: list[_Connection] = []
        self._is_closed = False

    async def send(self, request: HttpRequest, timeout_s: float) -> Outcome:
        """Send a request; see `AsyncTransport.send`."""
        data = self._endpoint.written(request)
        try:
            async with asyncio.timeout(timeout_s):
                connection = self._take()
                if connection is not None:
                    outcome = await self._exchange(connection, data)
                    # The server may close a connection that idles just when it is used again.
                    if not (self._options.idempotent and was_stale(outcome)):
                        return outcome
                try:
                    connection = await self._connected()
                except (OSError, ValueError) as error:
                    return Lost(lost(error, Loss.UNSENT).how, str(error), error)
                return await self._exchange(connection, data)
        except TimeoutError as error:
            return Lost(Loss.LATE, "the time is up", error)

    async def close(self) -> None:
        """Close the connections; one in use is closed after its answer."""
        self._is_closed = True
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()
        for connection in idle:
            await connection.ended()

    def _take(self) -> "_Connection | None":
        """Return an open connection that nothing has come from since its last answer."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_quiet():
                return connection
            connection.close()
        return None

    async def _connected(self) -> "_Connection":
        loop = asyncio.get_running_loop()
        name = self._endpoint.server_name if self._tls is not None else None
        _, connection = await loop.create_connection(
            _Connection,
            self._endpoint.host,
            self._endpoint.port,
            ssl=self._tls,
            server_hostname=name,
        )
        return connection

    async def _exchange(self, connection: "_Connection", data: bytes) -> Outcome:
        keep = False
        try:
            response = await connection.exchange(data, self._options.max_answer_bytes)
            keep = response.stays_open
            return response.outcome()
        except TimeoutError:
            raise
        except (OSError, ValueError, TooLarge) as error:
            return lost(error, Loss.BROKEN)
        finally:
            if keep and not self._is_closed:
                self._idle.append(connection)
            else:
                connection.close()


class _Connection(asyncio.Protocol):
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
        reader = reading(most)
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
