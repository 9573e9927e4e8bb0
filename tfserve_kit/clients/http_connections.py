"""HTTP over connections that stay open, blocking; no read or write outlasts the deadline."""

import contextlib
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable

from tfserve_kit.clients.http_bodies import TooLarge
from tfserve_kit.clients.http_messages import Cut, Endpoint, Response, lost, reading
from tfserve_kit.clients.http_tls import tls_context
from tfserve_kit.clients.options import Options
from tfserve_kit.clients.protocol import HttpRequest, Loss, Lost, Outcome

_READ_BYTES = 1 << 18


class HttpTransport:
    """Sends HTTP requests. Thread-safe; each request has a connection for itself.

    Args:
        url: `http://host:port` or `https://host:port`, with a path if a proxy wants one.
        options: TLS files, headers, compression, size of answers.
    """

    def __init__(self, url: str, options: Options) -> None:
        self._endpoint, self._options = Endpoint(url, options), options
        self._tls = tls_context(options) if url.lower().startswith("https") else None
        self._idle: list[_Connection] = []
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
            if not (self._options.idempotent and was_stale(outcome)):
                return outcome
        try:
            connection = _Connection(self._endpoint, self._tls, end_s)
        except (OSError, ValueError) as error:
            return Lost(lost(error, Loss.UNSENT).how, str(error), error)
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

    def _take(self) -> "_Connection | None":
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

    def _exchange(self, connection: "_Connection", data: bytes, end_s: float) -> Outcome:
        keep = False
        try:
            response = connection.exchange(data, end_s, self._options.max_answer_bytes)
            keep = response.stays_open
            return response.outcome()
        except (OSError, ValueError, TooLarge) as error:
            return lost(error, Loss.BROKEN)
        finally:
            self._give_back(connection, keep=keep)

    def _give_back(self, connection: "_Connection", *, keep: bool) -> None:
        with self._lock:
            if keep and not self._is_closed:
                self._idle.append(connection)
                return
        connection.close()


class _Connection:
    """One connection, for one request after another."""

    def __init__(self, endpoint: Endpoint, tls: ssl.SSLContext | None, end_s: float) -> None:
        self._socket = _connected(endpoint, end_s)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is not None:
            plain = self._socket
            try:
                plain.settimeout(_left_s(end_s))
                self._socket = tls.wrap_socket(plain, server_hostname=endpoint.server_name)
            except BaseException:
                plain.close()
                raise
        self._poll = select.poll()  # select.select cannot take files beyond the thousandth
        self._poll.register(self._socket, select.POLLIN)

    def exchange(self, data: bytes, end_s: float, most: int) -> Response:
        """Send a request and return the answer, of at most `most` bytes."""
        left = memoryview(data)
        while left:
            self._socket.settimeout(_left_s(end_s))
            left = left[self._socket.send(left) :]
        reader = reading(most)
        next(reader)
        try:
            while True:
                self._socket.settimeout(_left_s(end_s))
                reader.send(self._socket.recv(_READ_BYTES))
        except StopIteration as end:
            response: Response = end.value
            return response

    def is_quiet(self) -> bool:
        """Say whether the server has neither closed the connection nor sent what nobody asked."""
        pending = self._socket.pending() if isinstance(self._socket, ssl.SSLSocket) else 0
        return not pending and not self._poll.poll(0)

    def close(self) -> None:
        """Close it."""
        with contextlib.suppress(OSError):
            self._socket.close()


def _connected(endpoint: Endpoint, end_s: float) -> socket.socket:
    """Connect to the first address of a host that answers, all of them within the time."""
    failure: OSError = ConnectionError(f"{endpoint.host} has no address")
    for *_, address in socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM):
        try:
            return socket.create_connection((str(address[0]), endpoint.port), _left_s(end_s))
        except OSError as error:
            failure = error
    raise failure


def was_stale(outcome: Outcome) -> bool:
    """Say whether a connection ended without a byte of an answer."""
    error = outcome.cause if isinstance(outcome, Lost) else None
    if isinstance(error, Cut):
        return not error.has_begun
    return isinstance(error, ConnectionResetError | BrokenPipeError)


def _left_s(end_s: float) -> float:
    left_s = end_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError("the time is up")
    return left_s
