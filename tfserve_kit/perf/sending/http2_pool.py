"""Our own gRPC client: a few HTTP/2 connections in one thread."""

import contextlib
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

from tfserve_kit.errors import ServerUnreachable
from tfserve_kit.perf import statuses
from tfserve_kit.perf.load import Load, Payload
from tfserve_kit.perf.samples import CONNECTION_LOST, UNREADABLE_ANSWER
from tfserve_kit.perf.sending import header_blocks, http2
from tfserve_kit.perf.sending.driving import RETRY_NS, Finished
from tfserve_kit.perf.sending.frames import PROTOCOL_ERROR, ProtocolError, goaway
from tfserve_kit.perf.sending.http2_outbox import Request
from tfserve_kit.perf.sending.judging import Judges
from tfserve_kit.perf.sending.sockets import READ, Link, Readiness, resolve

# How often a request that was turned away is sent again. A busy server counts a stream for a while
# after its client has seen the end of it, and then turns the next one away several times.
_MOST_MOVES = 20
_SECOND_NS = 1_000_000_000
_POLL_S = 0.05


class _Line:
    """One of the connections that are kept up: what it is now, and when to try again.

    Attributes:
        link: the socket, None after it was lost.
        connection: what is said over it.
        retry_ns: not before this time may it be made anew.
    """

    __slots__ = ("connection", "link", "retry_ns")

    def __init__(self, connection: http2.Connection) -> None:
        self.link: Link | None = None
        self.connection = connection
        self.retry_ns = 0


class Http2Pool:
    """Sends gRPC requests; see `Pool`.

    A connection that is lost is made anew, at once and then every 100 ms. Requests that were on
    it end as "connection lost"; those that the server turned away unseen (GOAWAY,
    REFUSED_STREAM) are sent again, twenty times at most, as gRPC's own clients do. While no
    connection can be made, each failed attempt ends the requests that waited for it.

    Args:
        load: where to send, over how many connections.
        payloads: what to send.
        now_ns: a monotonic clock in nanoseconds.
    """

    def __init__(
        self, load: Load, payloads: Sequence[Payload], now_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        host, port = load.address
        self.notes: dict[int, str] = {}
        self.judges = Judges(payloads, is_rest=False)
        self._most_bytes = load.options.max_answer_bytes
        self.sends_at_once = False
        self._where = f"{host}:{port}"
        self._address: tuple[int, Any] = resolve(host, port)
        self._requests = [_request(self._where, payload, load.timeout_s) for payload in payloads]
        self._now_ns = now_ns
        self._readiness = Readiness()
        self._lines = [_Line(self._connection()) for _ in range(load.connections)]
        self._draining: set[_Line] = set()
        self._waiting: deque[int] = deque()
        self._moves: Counter[int] = Counter()
        self._finished: list[Finished] = []

    def open(self, timeout_s: float) -> None:
        """Connect and exchange settings; see `Pool.open`."""
        end_ns = self._now_ns() + round(timeout_s * _SECOND_NS)
        self._reconnect(self._now_ns())
        while not all(line.connection.is_greeted for line in self._lines):
            if self._now_ns() > end_ns or any(line.link is None for line in self._lines):
                raise ServerUnreachable(
                    f"{self._where} does not speak HTTP/2 in plain text",
                    remedy="is this a model server's gRPC port?",
                )
            self.flush()
            self.wait(_POLL_S)

    def start(self, keys: Sequence[int]) -> None:
        """Take requests; see `Pool.start`."""
        self._waiting.extend(keys)
        self._deal()

    def _deal(self) -> None:
        """Give waiting requests to the connections with room, each to the one with fewest."""
        waiting, requests = self._waiting, self._requests
        count = len(requests)
        ready = [each for line in self._lines if (each := line.connection).room()]
        while waiting and ready:
            one = ready[0] if len(ready) == 1 else min(ready, key=_in_flight)
            alone = len(ready) == 1
            for _ in range(min(one.room(), len(waiting)) if alone else 1):
                key = waiting.popleft()
                one.start(key, requests[key % count])
            if not one.room():
                ready.remove(one)

    def flush(self) -> None:
        """Hand over what was started; see `Pool.flush`."""
        for line in self._all():
            link = line.link
            if link is None or not link.is_idle:
                continue
            if pieces := line.connection.outgoing():
                try:
                    link.write(pieces)
                except OSError:
                    self._lose(line, CONNECTION_LOST)

    def wait(self, timeout_s: float) -> list[Finished]:
        """Return what ended; see `Pool.wait`."""
        retries_ns = [line.retry_ns for line in self._lines if line.link is None]
        if retries_ns:
            timeout_s = min(timeout_s, max(0, min(retries_ns) - self._now_ns()) / _SECOND_NS)
        for link, events in self._readiness.wait(timeout_s):
            self._serve(link.owner, link, events)
        if retries_ns:
            self._reconnect(self._now_ns())
        if self._waiting:
            self._deal()
        self.flush()
        found, self._finished = self._finished, []
        return found

    def cancel(self, keys: set[int]) -> None:
        """Reset the streams of requests; see `Pool.cancel`."""
        self._waiting = deque(key for key in self._waiting if key not in keys)
        for line in self._all():
            line.connection.cancel(keys)
        self.flush()

    def close(self) -> None:
        """Close the connections."""
        for line in self._all():
            if line.link is not None:
                line.link.close()
        self._readiness.close()

    def _all(self) -> list[_Line]:
        return [*self._lines, *self._draining] if self._draining else self._lines

    def _serve(self, line: _Line, link: Link, events: int) -> None:
        if link is not line.link:
            return  # it was lost while another event was looked at
        try:
            if not link.is_open:
                link.finish_opening()
            elif events & READ:
                self._read(line, link)
            else:
                link.push()
        except OSError:
            self._lose(line, CONNECTION_LOST)
        except ProtocolError as error:
            self.notes.setdefault(UNREADABLE_ANSWER, str(error))
            self._say_goodbye(link)
            self._lose(line, UNREADABLE_ANSWER)

    def _read(self, line: _Line, link: Link) -> None:
        data = link.read()
        if data is None:
            return
        connection = line.connection
        now_ns = self._now_ns()
        self._finished += connection.receive(data, now_ns)
        for status, message in connection.messages.items():
            self.notes.setdefault(status, message)
        if connection.refused:
            self._move(connection.refused, now_ns)
        if not link.is_idle:
            link.push()
        if connection.is_spent:
            self._replace(line)
        if not data:
            self._lose(line, CONNECTION_LOST)

    def _move(self, refused: list[int], now_ns: int) -> None:
        """Send requests again that a server has turned away, before those that wait."""
        for key in reversed(refused):
            self._moves[key] += 1
            if self._moves[key] > _MOST_MOVES:
                self.notes.setdefault(statuses.UNAVAILABLE, "the server turns requests away")
                self._finished.append((key, statuses.UNAVAILABLE, now_ns, now_ns, 0))
            else:
                self._waiting.appendleft(key)
        refused.clear()

    def _replace(self, line: _Line) -> None:
        """Leave a connection to its last answers, and put another in its place."""
        if line in self._draining:
            if not line.connection.in_flight:
                self._lose(line, CONNECTION_LOST)
            return
        self._lines[self._lines.index(line)] = _Line(self._connection())
        if line.connection.in_flight:
            self._draining.add(line)
        elif line.link is not None:
            self.flush()
            line.link.close()
            line.link = None
        self._reconnect(self._now_ns())

    def _lose(self, line: _Line, status: int) -> None:
        """End what was on a connection that is no more."""
        now_ns = self._now_ns()
        if line.link is not None:
            line.link.close()
            line.link = None
        keys = line.connection.unanswered()
        was_greeted = line.connection.is_greeted
        line.connection = self._connection()
        if line in self._draining:
            self._draining.remove(line)
        elif not was_greeted:
            line.retry_ns = now_ns + RETRY_NS
            if not any(each.connection.is_greeted for each in self._lines):
                keys += self._waiting
                self._waiting.clear()
        self._finished += [(key, status, now_ns, now_ns, 0) for key in keys]

    def _reconnect(self, now_ns: int) -> None:
        for line in self._lines:
            if line.link is None and now_ns >= line.retry_ns:
                line.connection = self._connection()
                try:
                    line.link = Link(self._readiness, self._address, None, line)
                except OSError:
                    self._lose(line, CONNECTION_LOST)

    def _connection(self) -> http2.Connection:
        return http2.Connection(self.judges, self._most_bytes)

    def _say_goodbye(self, link: Link) -> None:
        with contextlib.suppress(OSError):  # it is lost anyway
            link.write([goaway(PROTOCOL_ERROR)])


def _in_flight(connection: http2.Connection) -> int:
    return connection.in_flight


def _request(authority: str, payload: Payload, timeout_s: float) -> Request:
    """Return a payload with the headers of gRPC (its PROTOCOL-HTTP2.md)."""
    headers = (
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        (b"user-agent", b"tfkit-perf"),
        (b"grpc-timeout", b"%dm" % min(99_999_999, max(1, round(timeout_s * 1000)))),
        *payload.headers,
    )
    return Request(header_blocks.encoded(authority, payload.path, headers), payload.body)
