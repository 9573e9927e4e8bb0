"""REST requests over HTTP connections that are kept, blocking and with asyncio."""

import os
import ssl
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING

from tfserve_kit.clients.options import Options, for_http
from tfserve_kit.clients.protocol import Loss, Lost, Outcome, Reply
from tfserve_kit.http.connections import Connection, tls_context
from tfserve_kit.http.messages import Cut, Endpoint, HttpRequest, Response, TooLarge

if TYPE_CHECKING:
    from tfserve_kit.http.aio import AsyncConnection


class HttpTransport:
    """Sends HTTP requests. Thread-safe; each request has a connection for itself.

    Args:
        url: `http://host:port` or `https://host:port`, with a path if a proxy wants one.
        options: TLS files, headers, compression, size of answers.
        connect_s: how long a connection may take to be made, in seconds; None for all the time
            of a request.
    """

    def __init__(self, url: str, options: Options, *, connect_s: float | None = None) -> None:
        self._endpoint, self._tls = _endpoint(url, options)
        self._options, self._connect_s = options, connect_s
        self._idle: list[Connection] = []
        self._busy: set[Connection] = set()
        self._lock = threading.Lock()
        self._is_closed = False
        self._process = os.getpid()

    def send(self, request: HttpRequest, timeout_s: float) -> Outcome:
        """Send a request; see `Transport.send`."""
        end_s = time.monotonic() + timeout_s
        data = self._endpoint.written(request)
        connection = self._take()
        if connection is not None:
            outcome = self._exchange(connection, data, end_s)
            # The server may close a connection that idles just when it is used again.
            if not (self._options.idempotent and _was_stale(outcome)) or self._is_closed:
                return outcome
        connected_s = min(end_s, time.monotonic() + (self._connect_s or timeout_s))
        try:
            connection = Connection(self._endpoint, self._tls, connected_s)
        except (OSError, ValueError) as error:
            if self._connect_s and isinstance(error, TimeoutError) and time.monotonic() < end_s:
                return Lost(Loss.UNSENT, f"no connection within {self._connect_s:g} s", error)
            return Lost(_lost(error, Loss.UNSENT).how, str(error), error)
        return self._exchange(connection, data, end_s)

    def start(
        self, request: HttpRequest, timeout_s: float, done: Callable[[Outcome], None]
    ) -> Callable[[], None]:
        """Send a request in the background; see `Transport.start`. It cannot be called off."""
        threading.Thread(target=lambda: done(self.send(request, timeout_s)), daemon=True).start()
        return lambda: None

    def close(self) -> None:
        """Close the connections; one in use is closed after its answer."""
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def abandon(self) -> None:
        """Close the connections, also those in use: their requests are lost."""
        self.close()
        for connection in tuple(self._busy):
            connection.break_off()

    def _take(self) -> Connection | None:
        """Return an open connection that nothing has come from since its last answer."""
        if self._process != os.getpid():
            self._leave_to_parent()
        while True:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            if connection is None or connection.is_quiet():
                return connection
            connection.close()

    def _leave_to_parent(self) -> None:
        """Give up, in a forked child, the connections that the parent goes on using."""
        idle, self._idle = self._idle, []
        self._lock, self._process = threading.Lock(), os.getpid()
        for connection in idle:
            connection.close()

    def _exchange(self, connection: Connection, data: bytes, end_s: float) -> Outcome:
        keep = False
        self._busy.add(connection)
        try:
            response = connection.exchange(data, end_s, self._options.max_answer_bytes)
            keep = response.stays_open
            return _outcome(response)
        except (OSError, ValueError, TooLarge) as error:
            return _lost(error, Loss.BROKEN)
        finally:
            self._busy.discard(connection)
            self._give_back(connection, keep=keep)

    def _give_back(self, connection: Connection, *, keep: bool) -> None:
        with self._lock:
            if keep and not self._is_closed:
                self._idle.append(connection)
                return
        connection.close()


class AsyncHttpTransport:
    """Sends HTTP requests; each has a connection for itself.

    Args:
        url: `http://host:port` or `https://host:port`, with a path if a proxy wants one.
        options: TLS files, headers, compression, size of answers.
        connect_s: as for `HttpTransport`.
    """

    def __init__(self, url: str, options: Options, *, connect_s: float | None = None) -> None:
        self._endpoint, self._tls = _endpoint(url, options)
        self._options, self._connect_s = options, connect_s
        self._idle: list[AsyncConnection] = []
        self._busy: set[AsyncConnection] = set()
        self._is_closed = False

    async def send(self, request: HttpRequest, timeout_s: float) -> Outcome:
        """Send a request; see `AsyncTransport.send`."""
        import asyncio  # the blocking client does without

        from tfserve_kit.http.aio import connect

        data = self._endpoint.written(request)
        try:
            async with asyncio.timeout(timeout_s):
                connection = self._take()
                if connection is not None:
                    outcome = await self._exchange(connection, data)
                    # The server may close a connection that idles just when it is used again.
                    if not (self._options.idempotent and _was_stale(outcome)) or self._is_closed:
                        return outcome
                try:
                    async with asyncio.timeout(self._connect_s) as within:
                        connection = await connect(self._endpoint, self._tls)
                except TimeoutError as error:
                    if not within.expired():
                        raise
                    text = f"no connection within {self._connect_s:g} s"
                    return Lost(Loss.UNSENT, text, error)
                except (OSError, ValueError) as error:
                    return Lost(_lost(error, Loss.UNSENT).how, str(error), error)
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

    async def abandon(self) -> None:
        """Close the connections, also those in use: their requests are lost."""
        for connection in self._busy:
            connection.close()
        await self.close()

    def _take(self) -> "AsyncConnection | None":
        """Return an open connection that nothing has come from since its last answer."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_quiet():
                return connection
            connection.close()
        return None

    async def _exchange(self, connection: "AsyncConnection", data: bytes) -> Outcome:
        keep = False
        self._busy.add(connection)
        try:
            response = await connection.exchange(data, self._options.max_answer_bytes)
            keep = response.stays_open
            return _outcome(response)
        except TimeoutError:
            raise
        except (OSError, ValueError, TooLarge) as error:
            return _lost(error, Loss.BROKEN)
        finally:
            self._busy.discard(connection)
            if keep and not self._is_closed:
                self._idle.append(connection)
            else:
                connection.close()


def _endpoint(url: str, options: Options) -> tuple[Endpoint, ssl.SSLContext | None]:
    """Return where requests go, and what secures the connections."""
    endpoint = Endpoint(
        url, for_http(options.headers), gzip=options.gzip, server_name=options.server_name
    )
    if not url.lower().startswith("https"):
        return endpoint, None
    return endpoint, tls_context(options.ca_file, options.cert_file, options.key_file)


def _outcome(response: Response) -> Outcome:
    is_ok = response.status == HTTPStatus.OK
    return Reply(is_ok, response.body, str(response.status), response.reason)


def _was_stale(outcome: Outcome) -> bool:
    """Say whether a connection ended without a byte of an answer."""
    error = outcome.cause if isinstance(outcome, Lost) else None
    if isinstance(error, Cut):
        return not error.has_begun
    return isinstance(error, ConnectionResetError | BrokenPipeError)


def _lost(error: Exception, how: Loss) -> Lost:
    """Return what a flow is told of a failure; `how` is what a broken connection means."""
    if isinstance(error, TimeoutError):
        how = Loss.LATE
    elif isinstance(error, TooLarge):
        how = Loss.TOO_LARGE
    elif isinstance(error, ValueError) and not isinstance(
        error, OSError
    ):  # a bad certificate is both
        how = Loss.GARBLED
    return Lost(how, str(error) or type(error).__name__, error)
