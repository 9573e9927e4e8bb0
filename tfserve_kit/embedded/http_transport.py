"""REST over HTTP/1.1: the connections, and what becomes of their requests, one after the other.

What clients can make the server keep is bounded, and so is the time they can take: see `limits`.
Whoever goes beyond gets an error and is hung up on; nobody else notices.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from email.utils import formatdate
from functools import partial
from http import HTTPStatus
from typing import Any

from tfserve_kit.embedded.front import EventLoop, Listener, listening, most_connections
from tfserve_kit.embedded.http_request import Reader, Request
from tfserve_kit.embedded.lanes import Lanes
from tfserve_kit.embedded.ledger import Call, Ledger
from tfserve_kit.embedded.limits import LINGER_S, MOST_PIPELINED, PATIENCE_S, STEADY_BYTES
from tfserve_kit.embedded.rest_surface import Reply, page, timed_out
from tfserve_kit.embedded.running import Runner, Took, belongs_on_the_spot
from tfserve_kit.embedded.status import ServingError, invalid

# (method, target, body, call) -> Reply; for OPTIONS there may be an origin
Surface = Callable[..., Reply]

_log = logging.getLogger(__name__)

_REASONS = {status.value: status.phrase for status in HTTPStatus} | {499: "Client Closed Request"}
# While pipelined requests of this size wait, no more of them are read.
_WAITING_BYTES = 1 << 17


@dataclass(slots=True)
class _Shared:
    """What the connections of a server have in common; lives in the event loop.

    Attributes:
        surface: (method, target, body, call) -> Reply; called in any thread.
        runner: does the work of requests.
        loop: the event loop.
        ledger: what clients make the server hold.
        timeout_s: how long an answer may take, in seconds.
        patience_s: how long a client may take without getting on, in seconds.
        connections: those that are open.
        is_draining: the server is about to end: every answer is a connection's last.
    """

    surface: Surface
    runner: Runner
    loop: asyncio.AbstractEventLoop
    ledger: Ledger
    timeout_s: float
    patience_s: float
    connections: "set[Connection]" = field(default_factory=set)
    is_draining: bool = False
    _date: tuple[int, str] = (0, "")

    @property
    def lanes(self) -> Lanes:
        """How many requests are worked on in threads at once."""
        return self.runner.lanes

    @property
    def date(self) -> str:
        """The time now, for a header."""
        now_s = int(time.time())
        if self._date[0] != now_s:
            self._date = (now_s, formatdate(now_s, usegmt=True))
        return self._date[1]

    def kind(self, request: Request) -> Hashable:
        """Return what kind of request it is, for how long others like it have taken."""
        _, *asked_for = request.group
        return (*asked_for, len(request.body).bit_length())

    def is_short(self, request: Request, kind: Hashable) -> bool:
        """Say whether a request is answered on the spot."""
        if request.method != "POST" or request.is_zipped:
            return False
        known = self.runner.kinds.find(kind)
        return belongs_on_the_spot(known, len(request.body), time.monotonic())

    def ask(self, request: Request, kind: Hashable, answer: Callable[[Reply], object]) -> None:
        """Have a request answered in a thread, when its turn has come.

        Args:
            request: what is asked.
            kind: see `kind`.
            answer: told the reply, in the event loop.

        Raises:
            ServingError: too many others wait.
        """
        lanes = self.runner.lanes
        request.turn = self.runner.run(
            lanes.predictions if request.method == "POST" else lanes.others,
            request.group,
            partial(self.reply, request, kind, on_the_spot=False),
            answer,
            lambda: answer(page(503)),
        )

    def reply(self, request: Request, kind: Hashable, *, on_the_spot: bool) -> Reply:
        """Ask the surface; called in any thread."""
        if not request.is_wanted:  # it waited too long for its turn, or its client has gone
            return timed_out()
        call = Call.within(self.timeout_s, request.account, lambda: not request.is_wanted)
        took = Took()
        try:
            origin = {"origin": request.origin} if request.origin else {}
            body = request.take_body()
            reply = self.surface(request.method, request.target, body, call, **origin)
        except ServingError:
            return page(503)
        except Exception:  # noqa: BLE001 (whoever asks must get an answer)
            _log.exception("a request failed")
            return Reply(HTTPStatus.INTERNAL_SERVER_ERROR, close=True)
        if reply.status == HTTPStatus.OK and not request.is_zipped:
            took.end()
            self.runner.kinds.note(
                kind, took, time.monotonic(), on_the_spot=on_the_spot, waits=call.waits
            )
        return reply


class Connection(asyncio.Protocol):
    """A client connection; lives in the event loop.

    Args:
        shared: what it has in common with the server's other connections.
    """

    def __init__(self, shared: _Shared) -> None:
        self._shared = shared
        self._transport: Any = None
        self._reader: Reader
        self._waiting: deque[Request] = deque()
        self._asked: Request | None = None
        self._has_ended = False  # the client sends no more
        self._refusal: Reply | None = None  # the last answer, once all others are given
        self._unsent: Request | None = None  # whose answer is on its way
        self._unsent_bytes = 0
        self._overdue: asyncio.TimerHandle | None = None
        self._stuck: asyncio.TimerHandle | None = None

    # Called by asyncio

    def connection_made(self, transport: Any) -> None:
        """Begin, with an asyncio transport."""
        self._transport = transport
        peer = transport.get_extra_info("peername") or ("",)
        self._reader = Reader(self._shared.ledger, str(peer[0]), self)
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
        if self._reader.open:
            self._reader.feed(data)
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

    def take(self, request: Request) -> None:
        """Queue a request that is whole."""
        self._expect_no_more()
        self._waiting.append(request)

    def has_room(self) -> bool:
        """Say whether further requests may be parsed."""
        if len(self._waiting) >= MOST_PIPELINED:
            return False
        return sum(each.account.held_bytes for each in self._waiting) < _WAITING_BYTES

    def refuse(self, status: int) -> None:
        """Read no further, and answer so after the requests before."""
        if self._reader.open:
            self._refusal = page(status)
            self._stop_reading()

    def encourage(self) -> None:
        """Tell the client to go on and send the body."""
        self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    # Requests

    def _proceed(self) -> None:
        """Do what can be done now: read on, answer the next request, or hang up."""
        self._reader.parse()
        if self._transport.is_closing():
            return
        if not self._asked and not self._stuck:
            if self._waiting:
                self._ask(self._waiting.popleft())
            elif not self._reader.open or self._has_ended:
                self._hang_up()
        if self._has_ended or self._transport.is_closing():
            return
        if self._reader.unread or not self.has_room():
            self._transport.pause_reading()
        elif not self._transport.is_reading():
            self._expect_no_more()  # what had to wait has its time from now on
            self._transport.resume_reading()
        if self._reader.begun and not self._overdue:
            self._await_rest()

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

    def _ask(self, request: Request) -> None:
        self._asked, request.is_working = request, True
        kind = self._shared.kind(request)
        if self._shared.is_short(request, kind):
            self._shared.runner.step(partial(self._reply_now, request, kind))
            return

        def answer(reply: Reply) -> None:
            timer.cancel()
            self._take(request, reply)

        timer = self._shared.loop.call_later(self._shared.timeout_s, self._give_up, request)
        try:
            self._shared.ask(request, kind, answer)
        except ServingError:
            answer(page(503))

    def _reply_now(self, request: Request, kind: Hashable) -> bool:
        """Answer a request that takes a moment only; see `Runner.step`."""
        self._take(request, self._shared.reply(request, kind, on_the_spot=True))
        return False

    def _take(self, request: Request, reply: Reply) -> None:
        """Pass a reply on if somebody still waits for it."""
        request.is_working = False
        if request.is_wanted:
            self._answer(request, reply)
        else:
            request.account.close()

    def _give_up(self, request: Request) -> None:
        request.drop()
        self._answer(request, timed_out())

    def _answer(self, request: Request, reply: Reply) -> None:
        self._asked = None
        if self._transport.is_closing():
            request.drop()
            return
        if not request.is_working:
            reply = _afforded(request, reply)
        is_last = not (request.keep_alive and not reply.close)
        is_last = is_last or not (self._may_ask_more() or self._refusal)
        self._write(reply, is_last=is_last, headless=request.method == "HEAD")
        if self._stuck and not request.is_working:
            self._unsent = request
            request.account.keep(self._unsent_bytes)
        else:
            request.drop()
        if not is_last:
            self._proceed()
        elif self._shared.is_draining:
            self._linger()
        else:
            self._transport.close()

    def _may_ask_more(self) -> bool:
        if self._waiting or self._reader.unread:
            return True
        return self._reader.open and not self._has_ended and not self._shared.is_draining

    def _write(self, reply: Reply, *, is_last: bool, headless: bool = False) -> None:
        head = [f"HTTP/1.1 {reply.status} {_REASONS.get(reply.status, '')}"]
        head += [f"{name}: {value}" for name, value in reply.headers.items()]
        head += [f"Date: {self._shared.date}", f"Content-Length: {len(reply.body)}"]
        head += ["Connection: close"] if is_last else []
        body = b"" if headless else reply.body
        self._transport.write("\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + body)

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


def _afforded(request: Request, reply: Reply) -> Reply:
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
    """

    threads: int = 8
    timeout_s: float = 30.0
    patience_s: float = PATIENCE_S


class HttpTransport:
    """A REST server.

    Args:
        surface: (method, target, body, call) -> Reply; called in any thread.
        ledger: what clients make the server hold.
        address: where to listen, and the TCP port; 0 asks the system for a free one.
        options: how it treats its requests.
        loop: the event loop, shared with other servers; one of its own if left out.

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
    ) -> None:
        self._owns_loop = loop is None
        self._front = loop or EventLoop()
        self._loop = self._front.loop
        self._shared = _Shared(
            surface,
            Runner(self._loop, Lanes(options.threads), "rest"),
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
        self._listener = Listener(self._loop, listener, self._connection, self._has_room)

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

    def _connection(self) -> Connection:
        return Connection(self._shared)

    def _has_room(self, coming: int) -> bool:
        return len(self._shared.connections) + coming < most_connections()

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
