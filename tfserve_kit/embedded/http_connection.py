"""One HTTP/1.1 connection: what arrives becomes requests, answered one after the other.

What clients can make the server keep is bounded, and so is the time they can take: see the
constants. Whoever goes beyond gets an error and is hung up on; nobody else notices.
"""

import asyncio
import contextlib
import zlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from io import BytesIO
from typing import Any

import httptools

from tfserve_kit.embedded.call import Call
from tfserve_kit.embedded.rest_surface import Reply, page, timed_out

# (method, target, body, call) -> Reply
Surface = Callable[[str, str, bytes, Call], Reply]

_REASONS = {status.value: status.phrase for status in HTTPStatus} | {499: "Client Closed Request"}
# As much as the official server inflates (tensorflow_serving/util/net_http/).
_MOST_INFLATED_BYTES = 100_000_000
# Request line and headers; each header counts for its text and what it costs to keep, as HTTP/2
# has it (RFC 9113, 6.5.2).
_MOST_HEAD_BYTES = 65_536
_HEADER_BYTES = 32
_MOST_BODY_BYTES = (1 << 31) - 1
# Bodies and answers of all clients together; a request counts for more than its body.
_MOST_HELD_BYTES = 1 << 32
_REQUEST_BYTES = 512
# Pipelined requests are parsed a piece at a time, until so many wait for their turn.
_PIECE_BYTES = 32_768
_MOST_WAITING = 16
# A request may take longer than the limit if every limit's time brings so much of its body.
_STEADY_BYTES = 1 << 20
# How long a client that was refused may go on sending: closing at once might lose the answer.
_LINGER_S = 2.0


@dataclass(slots=True)
class _Request:
    method: str
    target: str
    body: bytes
    is_zipped: bool
    keep_alive: bool
    is_wanted: bool = True  # somebody still waits for the answer

    @property
    def cost_bytes(self) -> int:
        return len(self.body) + _REQUEST_BYTES

    def take_body(self) -> bytes:
        """Return the body as it was meant, and let go of it as it was sent."""
        body, self.body = self.body, b""
        return _inflated(body) if self.is_zipped else body


@dataclass(slots=True)
class Shared:
    """What the connections of a server have in common; lives in the event loop.

    Attributes:
        surface: (method, target, body, call) -> Reply; called in a worker thread.
        workers: the threads.
        loop: the event loop.
        timeout_s: how long an answer may take, in seconds.
        patience_s: how long a client may take without getting on, in seconds.
        connections: those that are open.
        held_bytes: what requests without an answer, and answers not taken, take up.
    """

    surface: Surface
    workers: ThreadPoolExecutor
    loop: asyncio.AbstractEventLoop
    timeout_s: float
    patience_s: float
    connections: "set[Connection]" = field(default_factory=set)
    held_bytes: int = 0


def _reply(shared: Shared, request: _Request) -> Reply:
    """Ask the surface; called in a worker thread."""
    if not request.is_wanted:  # it waited too long for its turn, or its client has gone
        return timed_out()
    call = Call.within(shared.timeout_s, Call.unbounded().account, lambda: not request.is_wanted)
    return shared.surface(request.method, request.target, request.take_body(), call)


def _inflated(body: bytes) -> bytes:
    """Return a gzip body inflated; nothing where it is damaged, cut or too large."""
    inflater = zlib.decompressobj(zlib.MAX_WBITS | 16)
    try:
        inflated = inflater.decompress(body, _MOST_INFLATED_BYTES)
    except zlib.error:
        return b""
    return inflated if inflater.eof else b""


class Connection(asyncio.Protocol):
    """A client connection; lives in the event loop.

    Args:
        shared: what it has in common with the server's other connections.
    """

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._parser = httptools.HttpRequestParser(self)
        self._transport: Any = None
        self._unread = memoryview(b"")
        self._silent_bytes = 0  # parsed since something came of it
        self._begun = False  # a request has begun and is not complete
        self._forget()
        self._waiting: deque[_Request] = deque()
        self._asked: _Request | None = None
        self._open = True  # what arrives is read; else it is thrown away
        self._refusal: Reply | None = None  # the last answer, once all others are given
        self._unsent_bytes = 0
        self._overdue: asyncio.TimerHandle | None = None
        self._stuck: asyncio.TimerHandle | None = None

    def _forget(self) -> None:
        """Make room for the next request."""
        self._target = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._head_bytes = 0
        self._body = BytesIO()  # one piece of memory, however small the chunks are

    # Called by asyncio

    def connection_made(self, transport: Any) -> None:
        """Begin, with an asyncio transport."""
        self._transport = transport
        # Any answer that the system does not take at once counts as not taken.
        transport.set_write_buffer_limits(0)
        self._shared.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of everything the client wanted."""
        del exc
        self._shared.connections.discard(self)
        self._stop_reading()
        self._shared.held_bytes -= sum(request.cost_bytes for request in self._waiting)
        self._waiting.clear()
        if self._asked:
            self._asked.is_wanted = False
        self._watch_unsent(0)

    def data_received(self, data: bytes) -> None:
        """Take up what has arrived."""
        if self._open:
            self._unread = memoryview(data)
            self._proceed()

    def pause_writing(self) -> None:
        """Wait until the client takes its answer, but not for ever."""
        self._watch_unsent(self._transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """Go on, as the answer is taken."""
        self._watch_unsent(0)
        self._proceed()

    # Called by the parser

    def on_message_begin(self) -> None:
        """Note that a request begins."""
        self._begun = True
        self._silent_bytes = 0

    def on_url(self, url: bytes) -> None:
        """Add a piece of the request target."""
        self._target += url
        self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header, or one behind a chunked body."""
        self._headers.append((name.lower(), value))
        self._count_head(len(name) + len(value) + _HEADER_BYTES)

    def on_headers_complete(self) -> None:
        """Refuse a body that is too large before it comes."""
        headers = dict(reversed(self._headers))  # the first of several counts
        if int(headers.get(b"content-length", 0)) > _MOST_BODY_BYTES:
            self._refuse(413)
        elif headers.get(b"expect", b"").lower() == b"100-continue" and self._open:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """Add a piece of the body."""
        self._silent_bytes = 0
        if not self._open:
            return
        self._body.write(body)
        self._shared.held_bytes += len(body)
        if self._body.tell() > _MOST_BODY_BYTES:
            self._refuse(413)
        self._check_room()

    def on_message_complete(self) -> None:
        """Queue the request."""
        self._check_room()
        if self._parser.should_upgrade() or not self._open:
            return  # an offer to upgrade is read again without the offer
        method = self._parser.get_method().decode("latin-1")
        zipped = (b"content-encoding", b"gzip") in self._headers
        request = _Request(
            method,
            self._target.decode("latin-1"),
            self._body.getvalue(),
            zipped,
            self._parser.should_keep_alive(),
        )
        self._waiting.append(request)
        self._silent_bytes = 0
        self._shared.held_bytes += _REQUEST_BYTES
        self._end_request()

    def _check_room(self) -> None:
        if self._shared.held_bytes > _MOST_HELD_BYTES:
            self._refuse(503)

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > _MOST_HEAD_BYTES:
            self._refuse(431)

    # Requests

    def _proceed(self) -> None:
        """Do what can be done now: read on, answer the next request, or hang up."""
        self._parse()
        if self._transport.is_closing():
            return
        if not self._asked and not self._stuck:
            if self._waiting:
                self._ask(self._waiting.popleft())
            elif not self._open:
                self._hang_up()
        if self._unread or len(self._waiting) >= _MOST_WAITING:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()
        if self._begun and not self._overdue:
            self._await_rest()

    def _parse(self) -> None:
        while self._unread and self._open and len(self._waiting) < _MOST_WAITING:
            piece, self._unread = self._unread[:_PIECE_BYTES], self._unread[_PIECE_BYTES:]
            self._silent_bytes += len(piece)
            try:
                self._parser.feed_data(piece)
            except httptools.HttpParserUpgrade as offer:
                self._decline(piece[offer.args[0] :])
            except httptools.HttpParserError:
                self._refuse(400)
            # An endless header, trailer or line between chunks is known to the parser alone.
            if self._silent_bytes > _MOST_HEAD_BYTES:
                self._refuse(431)

    def _decline(self, rest: memoryview) -> None:
        """Read a request that offers another protocol once more, without the offer."""
        method = self._parser.get_method()
        if method == b"CONNECT" or not self._open:
            self._refuse(400)
            return
        headers = [b"%b: %b" % each for each in self._headers if each[0] != b"upgrade"]
        head = b"\r\n".join([b"%b %b HTTP/1.1" % (method, self._target), *headers])
        self._parser = httptools.HttpRequestParser(self)
        self._forget()
        self._unread = memoryview(b"".join([head, b"\r\n\r\n", rest, self._unread]))

    def _end_request(self) -> None:
        """Expect no more of the request that is being read."""
        self._begun = False
        if self._overdue:
            self._overdue.cancel()
            self._overdue = None
        self._forget()

    def _await_rest(self) -> None:
        self._overdue = self._shared.loop.call_later(
            self._shared.patience_s, self._check_progress, self._body.tell()
        )

    def _check_progress(self, before_bytes: int) -> None:
        """Refuse a request that takes too long to arrive, unless it has to wait or gets on."""
        self._overdue = None
        if self._transport.is_reading() and self._body.tell() - before_bytes < _STEADY_BYTES:
            self._refuse(408)
        self._proceed()

    def _refuse(self, status: int) -> None:
        """Read no further, and answer so after the requests before."""
        if self._open:
            self._refusal = page(status)
            self._stop_reading()

    def _stop_reading(self) -> None:
        self._open = False
        self._unread = memoryview(b"")
        self._shared.held_bytes -= self._body.tell()
        self._end_request()

    # Answers

    def _ask(self, request: _Request) -> None:
        def answer(reply: Reply) -> None:
            timer.cancel()
            self._shared.held_bytes -= cost_bytes
            if request.is_wanted:
                self._answer(request, reply)

        def on_done(done: Future[Reply]) -> None:
            if done.cancelled():  # the server has stopped before its turn came
                return
            with contextlib.suppress(RuntimeError):  # or meanwhile
                self._shared.loop.call_soon_threadsafe(answer, done.result())

        self._asked, cost_bytes = request, request.cost_bytes
        timer = self._shared.loop.call_later(self._shared.timeout_s, self._give_up, request)
        asked = self._shared.workers.submit(_reply, self._shared, request)
        asked.add_done_callback(on_done)

    def _give_up(self, request: _Request) -> None:
        request.is_wanted = False
        self._answer(request, timed_out())

    def _answer(self, request: _Request, reply: Reply) -> None:
        self._asked = None
        if self._transport.is_closing():
            return
        is_last = not (request.keep_alive and not reply.close)
        is_last = is_last or not (self._open or self._waiting or self._refusal)
        self._write(reply, is_last=is_last, headless=request.method == "HEAD")
        if is_last:
            self._transport.close()
        else:
            self._proceed()

    def _write(self, reply: Reply, *, is_last: bool, headless: bool = False) -> None:
        head = [f"HTTP/1.1 {reply.status} {_REASONS.get(reply.status, '')}"]
        head += [f"{name}: {value}" for name, value in reply.headers.items()]
        head += [f"Date: {formatdate(usegmt=True)}", f"Content-Length: {len(reply.body)}"]
        head += ["Connection: close"] if is_last else []
        body = b"" if headless else reply.body
        self._transport.write("\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + body)

    def _watch_unsent(self, unsent_bytes: int) -> None:
        """Note how much of the answers the client has yet to take."""
        self._shared.held_bytes += unsent_bytes - self._unsent_bytes
        self._unsent_bytes = unsent_bytes
        if self._stuck:
            self._stuck.cancel()
        loop, patience_s = self._shared.loop, self._shared.patience_s
        self._stuck = loop.call_later(patience_s, self._check_taken) if unsent_bytes else None

    def _check_taken(self) -> None:
        """Hang up on a client that has taken nothing of its answer for too long."""
        unsent_bytes = self._transport.get_write_buffer_size()
        if unsent_bytes < self._unsent_bytes:
            self._watch_unsent(unsent_bytes)
        else:
            self.abort()

    def _hang_up(self) -> None:
        """Give the refusal if there is one, and close."""
        refusal, self._refusal = self._refusal, None
        if not refusal:
            self._transport.close()
            return
        self._write(refusal, is_last=True)
        self._transport.write_eof()
        self._shared.loop.call_later(_LINGER_S, self.abort)

    def finish(self) -> None:
        """Close after the answers to the requests that have arrived."""
        self._stop_reading()
        self._proceed()

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()
