"""Our own REST client: many HTTP/1.1 connections that stay open, in one thread.

Requests are bytes that are built before the start. Answers are read by the clients' own reader of
HTTP (`http.messages`); heads that repeat, as those of a model server do, are recognised.
"""

import resource
import time
from collections import deque
from collections.abc import Generator, Sequence
from typing import Any

from tfserve_kit.errors import ServerUnreachable, UsageError
from tfserve_kit.http.connections import tls_context
from tfserve_kit.http.messages import Response, TooLarge, read_response
from tfserve_kit.perf import samples
from tfserve_kit.perf.load import Closed, Load, Payload
from tfserve_kit.perf.samples import CONNECTION_LOST, UNREADABLE_ANSWER
from tfserve_kit.perf.sending.judging import Judges
from tfserve_kit.perf.sending.pools import RETRY_NS, Finished
from tfserve_kit.perf.sending.sockets import READ, Link, Readiness, resolve

_SECOND_NS = 1_000_000_000
_NOTE_BYTES = 200
_MOST_KNOWN = 64
_START = b"HTTP/1."
_END_OF_HEAD = b"\r\n\r\n"
_SPARE_FILES = 32
_NOBODY = -1
_POLL_S = 0.05


class _Heads:
    """Reads answers that come in one piece by their heads, once a head was read in full."""

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[int, int]] = {}

    def status(self, data: bytes) -> tuple[int, int] | None:
        """Return HTTP status and length of the body, if `data` is a whole answer of a known kind.

        A head that leaves the connection open says where its body ends, so that the same head
        with as many bytes after it is an answer of the same status.
        """
        end = data.find(_END_OF_HEAD) + len(_END_OF_HEAD)
        known = self._known.get(data[:end])
        return known if known is not None and known[1] == len(data) - end else None

    def learn(self, data: bytes, response: Response) -> None:
        """Remember the head of an answer that came in one piece, `data`."""
        end = data.find(_END_OF_HEAD) + len(_END_OF_HEAD)
        size = len(response.body)
        is_whole = data.startswith(_START) and data[end:] == response.body
        if response.stays_open and is_whole:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()  # heads that bear the time are new each second
            self._known[data[:end]] = (response.status, size)


class _PooledConnection:
    """One connection and the request on it.

    Attributes:
        link: its socket.
        key: the request's, `_NOBODY` while there is none.
        reader: of an answer that did not come in one piece.
        first_ns: when the answer began, 0 before.
    """

    __slots__ = ("first_ns", "key", "link", "reader")

    def __init__(self) -> None:
        self.link: Link | None = None
        self.key = _NOBODY
        self.reader: Generator[None, bytes, Response] | None = None
        self.first_ns = 0


class Http1Pool:
    """Sends REST requests; see `Pool`.

    Each request in flight has a connection for itself; a new one is made where none is idle. A
    request whose connection ends before its answer is there is "connection lost"; where none can
    be made, the next attempt waits 100 ms. A request that would need one file more than this
    process may open waits for a connection.

    Args:
        load: where to send.
        payloads: what to send.
    """

    replicas = None

    def __init__(self, load: Load, payloads: Sequence[Payload]) -> None:
        host, port = load.address
        self.notes: dict[int, str] = {}
        self.judges = Judges(payloads, is_rest=True)
        self._judge = self.judges.judge
        self.sends_at_once = True
        options = load.options
        self._tls = (
            (
                tls_context(options.ca_file, options.cert_file, options.key_file),
                options.server_name or host,
            )
            if load.is_secure
            else None
        )
        self._address: tuple[int, Any] = resolve(host, port)
        self._requests = [_request(load, payload) for payload in payloads]
        self._most_bytes = load.options.max_answer_bytes
        is_closed = isinstance(load.schedule, Closed)
        self._first_lines = load.most_in_flight if is_closed else load.connections
        self._most_lines = min(load.most_in_flight, _most_connections(self._first_lines))
        self._readiness = Readiness()
        self._heads = _Heads()
        self._lines: set[_PooledConnection] = set()
        self._idle: list[_PooledConnection] = []
        self._waiting: deque[int] = deque()
        self._retry_ns = 0
        self._finished: list[Finished] = []

    def open(self, timeout_s: float) -> None:
        """Connect; see `Pool.open`."""
        end_ns = time.monotonic_ns() + round(timeout_s * _SECOND_NS)
        while len(self._lines) < min(self._first_lines, self._most_lines):
            self._connect(_NOBODY)
        while len(self._idle) < len(self._lines):
            self.wait(_POLL_S)
            if self._retry_ns or time.monotonic_ns() > end_ns:
                raise ServerUnreachable(
                    f"no connection to {self._address[1]}: {self.notes.get(CONNECTION_LOST)}",
                    remedy="check that this is a model server's REST port, usually 8501; for its "
                    "gRPC port write grpc://",
                )

    def start(self, keys: Sequence[int]) -> None:
        """Take requests and send them; see `Pool.start`."""
        self._waiting.extend(keys)
        self._deal()

    def _deal(self) -> None:
        """Give waiting requests to idle connections, or to new ones."""
        while self._waiting and self._idle:
            line = self._idle.pop()
            line.key = self._waiting.popleft()
            self._send(line)
        if self._waiting and time.monotonic_ns() >= self._retry_ns:
            while self._waiting and len(self._lines) < self._most_lines:
                if not self._connect(self._waiting.popleft()):
                    break

    def flush(self) -> None:
        """Do nothing: `start` has sent already."""

    def wait(self, timeout_s: float) -> list[Finished]:
        """Return what ended; see `Pool.wait`."""
        if self._waiting:
            left_ns = max(0, self._retry_ns - time.monotonic_ns())
            timeout_s = min(timeout_s, left_ns / _SECOND_NS or timeout_s)
        for link, events in self._readiness.wait(timeout_s):
            self._serve(link.owner, link, events)
        if self._waiting:
            self._deal()
        found, self._finished = self._finished, []
        return found

    def fileno(self) -> int:
        """Return the file that can be read when `wait` has something to do."""
        return self._readiness.fileno()

    def cancel(self, keys: set[int]) -> None:
        """Close the connections of requests; see `Pool.cancel`."""
        self._waiting = deque(key for key in self._waiting if key not in keys)
        for line in [line for line in self._lines if line.key in keys]:
            self._drop(line)

    def close(self) -> None:
        """Close the connections."""
        for line in list(self._lines):
            self._drop(line)
        self._readiness.close()

    def _connect(self, key: int) -> bool:
        """Begin a connection, with a request that waits for it; say whether that was possible."""
        line = _PooledConnection()
        line.key = key
        self._lines.add(line)
        try:
            line.link = Link(self._readiness, self._address, self._tls, line)
        except OSError as error:
            self._lose(line, error)
            return False
        return True

    def _send(self, line: _PooledConnection) -> None:
        line.reader, line.first_ns = None, 0
        if line.link is None:
            return
        try:
            line.link.write((self._requests[line.key % len(self._requests)],))
        except OSError as error:
            self._lose(line, error)

    def _serve(self, line: _PooledConnection, link: Link, events: int) -> None:
        if link is not line.link:
            return  # it was lost while another event was looked at
        try:
            if not link.is_open:
                if link.finish_opening():
                    self._retry_ns = 0
                    self._opened(line)
            elif events & READ:
                data = link.read()
                if data is not None:
                    self._read(line, data)
            else:
                link.push()
        except OSError as error:
            self._lose(line, error)

    def _opened(self, line: _PooledConnection) -> None:
        if line.key == _NOBODY:
            self._idle.append(line)
        else:
            self._send(line)

    def _read(self, line: _PooledConnection, data: bytes) -> None:
        if line.key == _NOBODY:  # the server closes an idle connection, or talks out of turn
            self._drop(line)
            return
        now_ns = time.monotonic_ns()
        line.first_ns = line.first_ns or now_ns
        if line.reader is None:
            known = self._heads.status(data)
            if known is not None:
                status = samples.status_of_http(known[0])
                if not status and self._judge is not None:
                    status = self._judged(line.key, data[len(data) - known[1] :])
                self._finish(line, status, now_ns, known[1])
                self._release(line, is_open=True)
                return
            line.reader = read_response(self._most_bytes)
            next(line.reader)
        try:
            line.reader.send(data)
        except StopIteration as end:
            self._answered(line, data, end.value, now_ns)
        except (ValueError, TooLarge) as error:
            self.notes.setdefault(UNREADABLE_ANSWER, str(error))
            self._finish(line, UNREADABLE_ANSWER, now_ns, 0)
            self._drop(line)

    def _answered(
        self, line: _PooledConnection, data: bytes, response: Response, now_ns: int
    ) -> None:
        self._heads.learn(data, response)
        status = samples.status_of_http(response.status)
        if status:
            text = response.body[:_NOTE_BYTES].decode("utf-8", "replace")
            self.notes.setdefault(status, f"HTTP {response.status}: {text}")
        elif self._judge is not None:
            status = self._judged(line.key, response.body)
        self._finish(line, status, now_ns, len(response.body))
        self._release(line, is_open=response.stays_open)

    def _judged(self, key: int, body: bytes) -> int:
        """Return the status of an answer that HTTP calls good."""
        status = self._judge(key, body) if self._judge else samples.OK
        if status:
            self.notes.setdefault(status, self.judges.why)
        return status

    def _finish(self, line: _PooledConnection, status: int, now_ns: int, size: int) -> None:
        self._finished.append((line.key, status, line.first_ns or now_ns, now_ns, size))
        line.key = _NOBODY

    def _release(self, line: _PooledConnection, *, is_open: bool) -> None:
        if is_open and line.link is not None and line.link.is_idle:
            self._idle.append(line)
        else:
            self._drop(line)

    def _lose(self, line: _PooledConnection, error: OSError) -> None:
        """End the request of a connection that broke, or was never made."""
        now_ns = time.monotonic_ns()
        self.notes.setdefault(CONNECTION_LOST, str(error))
        if line.link is None or not line.link.is_open:
            self._retry_ns = now_ns + RETRY_NS
        if line.key != _NOBODY:
            self._finish(line, CONNECTION_LOST, now_ns, 0)
        self._drop(line)

    def _drop(self, line: _PooledConnection) -> None:
        if line.link is not None:
            line.link.close()
            line.link = None
        self._lines.discard(line)
        if line in self._idle:
            self._idle.remove(line)


def _request(load: Load, payload: Payload) -> bytes:
    """Return a payload as it goes over the wire."""
    host, port = load.address
    lines = [
        b"POST %b HTTP/1.1" % (load.prefix + payload.path).encode(),
        f"Host: {host}:{port}".encode(),
        *(b"%b: %b" % pair for pair in payload.headers),
        b"Content-Length: %d" % len(payload.body),
    ]
    return b"\r\n".join(lines) + _END_OF_HEAD + payload.body


def _most_connections(least: int) -> int:
    """Return how many connections this process may open.

    Raises:
        UsageError: they are fewer than `least`.
    """
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if least + _SPARE_FILES > limit:
        raise UsageError(
            f"{least} connections need more than the {limit} files a process may open here",
            remedy=f"run `ulimit -n {least + _SPARE_FILES}` first, or send less at once",
        )
    return limit - _SPARE_FILES
