"""REST over HTTP/1.1: the connections, and what becomes of their requests, one after the other.

What clients can make the server keep is bounded, and so is the time they can take: see `limits`.
Whoever goes beyond gets an error and is hung up on; nobody else notices.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from typing import Any

from tfserve_kit.embedded.batching import Flow
from tfserve_kit.embedded.front import EventLoop, Listener, listening
from tfserve_kit.embedded.http_request import KnownHeads, RequestReader, RestRequest
from tfserve_kit.embedded.kinds import CallKind, belongs_on_the_spot
from tfserve_kit.embedded.lanes import Lane, Lanes
from tfserve_kit.embedded.ledger import Account, Call, Ledger
from tfserve_kit.embedded.limits import LINGER_S, MOST_PIPELINED, PATIENCE_S, STEADY_BYTES
from tfserve_kit.embedded.rest_surface import JSON, RestAnswer, page, timed_out
from tfserve_kit.embedded.running import Runner, Work
from tfserve_kit.embedded.status import Code, ServingError, invalid

# (method, target, body, call) -> what makes the RestAnswer; for OPTIONS there may be an origin
Surface = Callable[..., Flow[RestAnswer]]
# (target, (body, account) of each) -> answers to short POSTs, None where the surface has to do it
AtOnce = Callable[[str, Sequence[tuple[bytes, Account]]], Sequence[RestAnswer | None]]

_log = logging.getLogger(__name__)

_OK = 200  # members of an enumeration take long to find
_REASONS = {status.value: status.phrase for status in HTTPStatus} | {499: "Client Closed Request"}
# While pipelined requests of this size wait, no more of them are read.
_WAITING_BYTES = 1 << 17
# Requests that need not be parsed, and answers, are counted from here on: in the ledger they would
# cost more than the memory is worth that one for each connection takes.
_SMALL_BYTES = 4096
# An answer's body is copied behind its head up to this size; a larger one goes out as it lies.
_COPIED_BYTES = 1 << 14


@dataclass(slots=True)
class _Shared:
    """What the connections of a server have in common; lives in the event loop.

    Attributes:
        surface: (method, target, body, call) -> what makes the RestAnswer, in any thread.
        at_once: a short cut of the surface, for short requests; None where there is none.
        runner: does the work of requests.
        loop: the event loop.
        ledger: what clients make the server hold.
        timeout_s: how long an answer may take, in seconds.
        patience_s: how long a client may take without getting on, in seconds.
        connections: those that are open.
        is_draining: the server is about to end: every answer is a connection's last.
        known_heads: what requests begin with that need not be parsed.
    """

    surface: Surface
    at_once: AtOnce | None
    runner: Runner
    loop: asyncio.AbstractEventLoop
    ledger: Ledger
    timeout_s: float
    patience_s: float
    connections: "set[_Connection]" = field(default_factory=set)
    is_draining: bool = False
    known_heads: KnownHeads = field(default_factory=KnownHeads)
    row: "_Row" = field(init=False)
    _heads: dict[Hashable, bytes] = field(default_factory=dict)
    _heads_s: int = 0

    def __post_init__(self) -> None:
        self.row = _Row(self)

    @property
    def lanes(self) -> Lanes:
        """How many requests are worked on in threads at once."""
        return self.runner.lanes

    def head(self, reply: RestAnswer) -> bytes:
        """Return a reply's head up to the number of its body's bytes; made once a second."""
        now_s = int(time.time())
        if self._heads_s != now_s:
            self._heads_s = now_s
            self._heads.clear()
        is_usual = reply.headers is JSON  # which need not be looked through
        key = reply.status if is_usual else (reply.status, *reply.headers.items())
        head = self._heads.get(key)
        if head is None:
            lines = [f"HTTP/1.1 {reply.status} {_REASONS.get(reply.status, '')}"]
            lines += [f"{name}: {value}" for name, value in reply.headers.items()]
            lines += [f"Date: {formatdate(now_s, usegmt=True)}", "Content-Length: "]
            head = self._heads[key] = "\r\n".join(lines).encode("latin-1")
        return head

    def short_kind(self, request: RestRequest) -> CallKind | None:
        """Return what is known of requests of its kind where it is answered on the spot."""
        if request.head.method != "POST" or request.head.is_zipped:
            return None
        known = self.runner.kinds.find(request.kind)
        is_short = belongs_on_the_spot(known, len(request.body), time.monotonic())
        return known if is_short else None

    def lane(self, request: RestRequest) -> Lane:
        """Return whose turns a request takes."""
        lanes = self.runner.lanes
        return lanes.predictions if request.head.method == "POST" else lanes.others


class _Asked(Work):
    """A request whose answer is made."""

    timer: asyncio.TimerHandle | None = None

    def __init__(self, connection: "_Connection", shared: _Shared, request: RestRequest) -> None:
        super().__init__(request.kind)
        self._connection, self._shared, self._request = connection, shared, request

    def begin(self) -> Flow[RestAnswer]:
        """Return what makes the answer."""
        request = self._request
        if not request.is_wanted:  # it waited too long for its turn, or its client has gone
            raise ServingError(Code.CANCELLED, "")
        shared = self._shared
        call = Call.within(shared.timeout_s, request.account, lambda: not request.is_wanted)
        head = request.head
        origin = {"origin": head.origin} if head.origin else {}
        return shared.surface(head.method, head.target, request.take_body(), call, **origin)

    def failed(self, error: ServingError | None) -> RestAnswer:
        """Return the answer for an error."""
        return page(503) if error else RestAnswer(HTTPStatus.INTERNAL_SERVER_ERROR, close=True)

    def is_usual(self, result: RestAnswer) -> bool:
        """Say whether it went as others will; what was compressed can become anything."""
        return result.status == _OK and not self._request.head.is_zipped

    def done(self, result: RestAnswer) -> None:
        """Answer."""
        if self.timer:
            self.timer.cancel()
        self._connection.take_reply(self._request, result)


class _Row:
    """Short requests that have arrived together: they are answered, then all answers are sent.

    Whoever gets an answer wakes up and asks again. If that came in between, the processor would
    have nothing at hand any more for the next one.

    Args:
        shared: what the connections have in common.
    """

    def __init__(self, shared: _Shared) -> None:
        self._shared = shared
        self._asked: dict[CallKind, list[tuple[_Connection, RestRequest]]] = {}
        self._is_due = False

    def add(self, connection: "_Connection", request: RestRequest, kind: CallKind) -> None:
        """Have a request answered, once all that has arrived is read."""
        others = self._asked.get(kind)
        if others is None:
            others = self._asked[kind] = []
        others.append((connection, request))
        if not self._is_due:
            self._is_due = True
            self._shared.runner.step_soon(self._step)

    def _step(self) -> bool:
        """Answer some of one kind; say whether there are more. See `Runner.step_soon`."""
        self._is_due = False  # whatever happens
        kind = next(iter(self._asked))
        row = self._asked.pop(kind)
        most = kind.most_in_row
        if len(row) > most:
            self._asked[kind] = row[most:]
            row = row[:most]
        for (connection, request), reply in zip(row, self._replies(row, kind), strict=True):
            try:
                if reply is None:
                    connection.ask_here(request)
                else:
                    connection.take_reply(request, reply)
            except Exception:  # noqa: BLE001 (the others must be served)
                _log.exception("an answer was lost")
        goes_on = bool(self._asked) and not self._is_due
        self._is_due = self._is_due or goes_on
        return goes_on

    def _replies(
        self, row: "Sequence[tuple[_Connection, RestRequest]]", kind: CallKind
    ) -> Sequence[RestAnswer | None]:
        at_once = self._shared.at_once
        if at_once is None or kind.waits:
            return [None] * len(row)
        began_s = time.perf_counter()
        target = row[0][1].head.target
        replies = at_once(target, [(request.body, request.account) for _, request in row])
        if any(reply and reply.status == _OK for reply in replies):
            self._shared.runner.note_here(kind, time.perf_counter() - began_s, len(row))
        return replies


class _Connection(asyncio.Protocol):
    """A client connection; lives in the event loop.

    Args:
        shared: what it has in common with the server's other connections.
    """

    def __init__(self, shared: _Shared) -> None:
        self._shared = shared
        self._transport: Any = None
        self._reader: RequestReader
        self._waiting: deque[RestRequest] = deque()
        self._asked: RestRequest | None = None
        self._has_ended = False  # the client sends no more
        self._is_to_encourage = False  # the client waits to be told to send the body
        self._refusal: RestAnswer | None = None  # the last answer, once all others are given
        self._unsent: RestRequest | None = None  # whose answer is on its way
        self._unsent_bytes = 0
        self._overdue: asyncio.TimerHandle | None = None
        self._stuck: asyncio.TimerHandle | None = None

    # Called by asyncio

    def connection_made(self, transport: Any) -> None:
        """Begin, with an asyncio transport."""
        self._transport = transport
        peer = transport.get_extra_info("peername") or ("",)
        self._reader = RequestReader(
            self._shared.ledger, str(peer[0]), self, self._shared.known_heads
        )
        # Any answer that the system does not take at once counts as not taken.
        transport.set_write_buffer_limits(0)
        self._shared.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of everything the client wanted."""
        del exc
        self._shared.connections.discard(self)
        self._stop_reading()
        for request in (*self._waiting, self._asked, self._unsent):
            if request:
                request.drop()
        self._waiting.clear()
        self._asked = self._unsent = None
        self._watch_unsent(0)

    def data_received(self, data: bytes) -> None:
        """Take up what has arrived."""
        reader = self._reader
        if not reader.open:
            return
        if not (self._asked or self._waiting or self._stuck) and len(data) <= _SMALL_BYTES:
            request = reader.known(data)
            kind = self._shared.short_kind(request) if request else None
            if request and kind and not kind.waits:
                self._ask_in_row(request, kind)  # and nothing else is left to do
                return
        reader.feed(data)
        self._proceed()

    def eof_received(self) -> bool:
        """Answer what has been asked; the client may have closed its half only."""
        self._has_ended = True
        self._proceed()
        return not self._transport.is_closing()

    def pause_writing(self) -> None:
        """Wait until the client takes its answer, but not for ever."""
        self._watch_unsent(self._transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """Go on, as the answer is taken."""
        self._watch_unsent(0)
        if self._unsent:
            self._unsent.drop()
            self._unsent = None
        self._proceed()

    # Called by the reader

    def take(self, request: RestRequest) -> None:
        """Queue a request that is whole."""
        self._is_to_encourage = False
        self._expect_no_more()
        self._waiting.append(request)

    def has_room(self) -> bool:
        """Say whether further requests may be parsed."""
        if not self._waiting:
            return True
        if len(self._waiting) >= MOST_PIPELINED:
            return False
        return sum(each.account.held_bytes for each in self._waiting) < _WAITING_BYTES

    def refuse(self, status: int) -> None:
        """Read no further, and answer so after the requests before."""
        if self._reader.open:
            self._refusal = page(status)
            self._stop_reading()

    def encourage(self) -> None:
        """Tell the client to go on and send the body, after the answers before."""
        self._is_to_encourage = True

    # Requests

    def _proceed(self) -> None:
        """Do what can be done now: read on, answer the next request, or hang up."""
        if self._reader.unread:
            self._reader.parse()
        if self._transport.is_closing():
            return
        if not self._asked and not self._stuck:
            self._turn_to_client()
        if self._has_ended or self._transport.is_closing():
            return
        if self._reader.unread or not self.has_room():
            self._transport.pause_reading()
        elif not self._transport.is_reading():
            self._expect_no_more()  # what had to wait has its time from now on
            self._transport.resume_reading()
        if self._reader.begun and not self._overdue:
            self._await_rest()

    def _turn_to_client(self) -> None:
        """Do what comes next as no answer is being made or taken."""
        if self._waiting:
            self._ask(self._waiting.popleft())
        elif self._is_to_encourage and self._reader.open:
            self._is_to_encourage = False
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        elif not self._reader.open or self._has_ended:
            self._hang_up()

    def _await_rest(self) -> None:
        self._overdue = self._shared.loop.call_later(
            self._shared.patience_s, self._check_progress, self._reader.body_bytes
        )

    def _check_progress(self, before_bytes: int) -> None:
        """Refuse a request that takes too long to arrive, unless it has to wait or gets on."""
        self._overdue = None
        progress_bytes = self._reader.body_bytes - before_bytes
        if self._transport.is_reading() and progress_bytes < STEADY_BYTES:
            self.refuse(408)
        self._proceed()

    def _expect_no_more(self) -> None:
        if self._overdue:
            self._overdue.cancel()
            self._overdue = None

    def _stop_reading(self) -> None:
        self._reader.stop()
        self._expect_no_more()

    # Answers

    def _ask(self, request: RestRequest) -> None:
        shared = self._shared
        kind = shared.short_kind(request)
        if kind:
            self._ask_in_row(request, kind)
            return
        self._asked, request.is_working = request, True
        work = _Asked(self, shared, request)
        shared.runner.do_later(work, shared.lane(request), request.group)
        request.turn = work.turn
        self._watch_over(work, request)

    def _ask_in_row(self, request: RestRequest, kind: CallKind) -> None:
        self._asked, request.is_working = request, True
        self._shared.row.add(self, request, kind)

    def ask_here(self, request: RestRequest) -> None:
        """Have the surface answer a short request on the spot, as far as it can be."""
        work = _Asked(self, self._shared, request)
        self._shared.runner.do_here(work, self._shared.lane(request))
        self._watch_over(work, request)

    def _watch_over(self, work: _Asked, request: RestRequest) -> None:
        """Let a client wait no longer than it may."""
        if not work.has_ended:
            shared = self._shared
            work.timer = shared.loop.call_later(shared.timeout_s, self._give_up, request)

    def take_reply(self, request: RestRequest, reply: RestAnswer) -> None:
        """Pass a reply on if somebody still waits for it."""
        request.is_working = False
        if request.is_wanted:
            self._answer(request, reply)
        else:
            request.account.close()

    def _give_up(self, request: RestRequest) -> None:
        request.drop()
        self._answer(request, timed_out())

    def _answer(self, request: RestRequest, reply: RestAnswer) -> None:
        self._asked = None
        if self._transport.is_closing():
            request.drop()
            return
        if len(reply.body) > _SMALL_BYTES and not request.is_working:
            reply = _afforded(request, reply)
        reader, is_last = self._reader, reply.close or not request.head.keep_alive
        if not is_last and (self._has_ended or not reader.open or self._shared.is_draining):
            is_last = not (self._waiting or reader.unread or self._refusal)
        self._write(reply, is_last=is_last, request=request)
        if self._stuck and not request.is_working:
            self._unsent = request
            request.account.keep(self._unsent_bytes)
        else:
            request.drop()
        if not is_last:
            if self._has_more():
                self._proceed()
        elif self._shared.is_draining:
            self._linger()
        else:
            self._transport.close()

    def _has_more(self) -> bool:
        """Say whether there is anything to go on with now that an answer is given."""
        if self._waiting or self._reader.unread or self._is_to_encourage or self._has_ended:
            return True
        return not self._reader.open or not self._transport.is_reading()

    def _write(
        self, reply: RestAnswer, *, is_last: bool, request: RestRequest | None = None
    ) -> None:
        body, end = reply.body, b"\r\n\r\n"
        if is_last:
            end = b"\r\nConnection: close\r\n\r\n"
        elif request and request.head.says_keep_alive:
            end = b"\r\nConnection: keep-alive\r\n\r\n"
        head, size_bytes = self._shared.head(reply), len(body)
        if request and request.head.method == "HEAD":
            self._transport.write(b"%b%d%b" % (head, size_bytes, end))
        elif size_bytes < _COPIED_BYTES:
            self._transport.write(b"%b%d%b%b" % (head, size_bytes, end, body))
        else:
            self._transport.writelines((b"%b%d%b" % (head, size_bytes, end), body))

    def _watch_unsent(self, unsent_bytes: int) -> None:
        """Note how much of the answers the client has yet to take."""
        self._unsent_bytes = unsent_bytes
        if self._unsent:
            self._unsent.account.keep(unsent_bytes)
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
        self._linger()

    def _linger(self) -> None:
        """Close once the client does, or soon: closing at once might lose it the answer."""
        self._stop_reading()
        try:
            self._transport.write_eof()
        except (OSError, RuntimeError):  # the client has gone meanwhile
            self.abort()
        self._shared.loop.call_later(LINGER_S, self.abort)

    def finish(self) -> None:
        """Close, after the answers to the requests that have arrived or begun to."""
        if not self._reader.begun and not self._reader.unread:
            self._stop_reading()
            self._proceed()

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()


def _afforded(request: RestRequest, reply: RestAnswer) -> RestAnswer:
    """Return the reply, or an error where there is no room to hold it until it is taken."""
    try:
        request.account.take(len(reply.body) - request.account.held_bytes, "the answer")
    except ServingError:
        return page(503)
    return reply


# How long a client that has an answer may ask once more when the server ends.
_ANOTHER_REQUEST_S = 0.2


@dataclass(frozen=True, slots=True)
class RestOptions:
    """How a server treats its requests.

    Attributes:
        threads: predictions computed in threads at the same time.
        timeout_s: how long an answer may take before the client gets an error, in seconds.
        patience_s: how long a request that has begun may take to arrive, and an answer to be
            taken, without getting on, in seconds; `timeout_s` if that is longer. Between requests
            a connection may stay as long as it likes.
        processors: the lane of predictions that compute for long, see `Lanes`; None for its own.
    """

    threads: int = 8
    timeout_s: float = 30.0
    patience_s: float = PATIENCE_S
    processors: Lane | None = None


class HttpServer:
    """A REST server.

    Args:
        surface: (method, target, body, call) -> what makes the RestAnswer, in any thread.
        ledger: what clients make the server hold.
        address: where to listen, and the TCP port; 0 asks the system for a free one.
        options: how it treats its requests.
        loop: the event loop, shared with other servers; one of its own if left out.
        at_once: a short cut of the surface, for short requests; None where there is none.

    Raises:
        ServingError: the address cannot be listened on.
    """

    def __init__(
        self,
        surface: Surface,
        ledger: Ledger,
        address: tuple[str, int],
        options: RestOptions = RestOptions(),
        loop: EventLoop | None = None,
        at_once: AtOnce | None = None,
    ) -> None:
        self._owns_loop = loop is None
        self._front = loop or EventLoop()
        self._loop = self._front.loop
        self._shared = _Shared(
            surface,
            at_once,
            Runner(self._front, Lanes(options.threads, options.processors), "rest"),
            self._loop,
            ledger,
            options.timeout_s,
            max(options.timeout_s, options.patience_s),
        )
        self._listener: Listener | None = None
        self._has_started = False
        try:
            listener = listening(*address)
        except (OSError, OverflowError) as error:  # taken, or no port number at all
            self._discard()
            raise invalid(f"cannot listen for REST on {address[0]}:{address[1]}") from error
        self.port: int = listener.getsockname()[1]
        self._front.connections.append(self._shared.connections)
        self._listener = Listener(self._front, listener, self._connection)

    def start(self) -> None:
        """Begin to answer."""
        self._has_started = True
        self._front.start()
        self._front.do(self._open())

    async def _open(self) -> None:
        if self._listener:
            self._listener.open()

    def stop(self, grace_s: float) -> None:
        """Refuse new connections, wait up to `grace_s` seconds for answers, then close all."""
        if self._has_started:
            self._has_started = False
            self._front.do(self._drain(grace_s))
        self._discard()

    def _discard(self) -> None:
        if self._listener:
            self._listener.close()
        self._shared.runner.end()
        if self._owns_loop:
            self._front.stop()

    def _connection(self) -> _Connection:
        return _Connection(self._shared)

    async def _drain(self, grace_s: float) -> None:
        """Let in who has knocked, answer what is asked, and tell everybody to come no more."""
        connections = self._shared.connections
        end_s = self._loop.time() + grace_s
        self._shared.is_draining = True
        if self._listener:
            await self._listener.close_gently()
        another_s = min(end_s, self._loop.time() + _ANOTHER_REQUEST_S)
        await self._front.until(lambda: not connections, another_s)
        for connection in list(connections):
            connection.finish()
        await self._front.until(lambda: not connections, end_s)
        for connection in list(connections):
            connection.abort()
        await asyncio.sleep(0)  # lets the transports say goodbye
