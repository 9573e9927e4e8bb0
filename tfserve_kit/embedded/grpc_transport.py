"""gRPC on TCP ports and UNIX sockets: the connections, and what becomes of their calls."""

import asyncio
import logging
import math
import random
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from tfserve_kit import protos
from tfserve_kit.embedded.batching import Flow
from tfserve_kit.embedded.front import EventLoop, Listener, listening, listening_at, tls_context
from tfserve_kit.embedded.grpc_protocol import GrpcLimits, GrpcSession, GrpcStream
from tfserve_kit.embedded.grpc_surface import GrpcAnswer
from tfserve_kit.embedded.http2 import Http2Limits
from tfserve_kit.embedded.inflate import GZIP_OR_ZLIB, inflated
from tfserve_kit.embedded.kinds import CallKind, belongs_on_the_spot
from tfserve_kit.embedded.lanes import Lane, Lanes
from tfserve_kit.embedded.ledger import Account, Call, Ledger, Sent
from tfserve_kit.embedded.limits import (
    MOST_INFLATED_BYTES,
    MOST_INFLATED_TIMES,
    MOST_MESSAGE_BYTES,
    MOST_METADATA_BYTES,
    MOST_STREAMS,
    MOST_UNHEARD,
    PATIENCE_S,
    STEADY_BYTES,
)
from tfserve_kit.embedded.running import Runner, Work
from tfserve_kit.embedded.settings import Tls
from tfserve_kit.embedded.status import Code, ServingError, invalid
from tfserve_kit.tensors.proto import decode_varint

# (method path, request, call) -> what makes the GrpcAnswer
Surface = Callable[[str, Sent, Call], Flow[GrpcAnswer]]
# ((request, account) of some Predicts as long) -> answers of the first ones, as many as are alike;
# none where the surface has to make the first
Repeat = Callable[[Sequence[tuple[Sent, Account]]], Sequence[GrpcAnswer]]

_log = logging.getLogger(__name__)

# What is read at once, for all connections into the same memory: each turn of the loop costs, and a
# large message comes in few of them.
_READ_BYTES = 1 << 18
# Calls that are ready when reading stops, where more has arrived than is read at once.
_MOST_READY = 8
# What is handed to the system at once, and what may wait for it before more is made ready.
_WRITE_BYTES = 1 << 18
# What comes of a client and does nothing for a call: when there is so much, all its connections
# rest for so long each. It takes up to a quarter of that time, so the others have the rest.
_MOST_WASTED = 256
_WASTED_S = 2e-4
# Others may come from the same address: a new connection is heard no later than this.
_NEW_WAITS_S = 0.5
# A connection that would have to rest for longer is closed: at rest, its end is not noticed either.
_LONGEST_REST_S = 5.0
# What a client that takes nothing may go on sending.
_MOST_UNREPLIED_BYTES = 1 << 20
# Field 1, of any length: the ModelSpec of every prediction but MultiInference.
_FIRST_FIELD = b"\x0a"
_LONGEST_SPEC_BYTES = 4096
_LEAST_BYTES, _LONG = 2, 0x80  # its length takes one byte up to there
_OK = Code.OK  # members of an enumeration take long to find
_RELOAD, _PREDICT = "HandleReloadConfigRequest", protos.METHODS["Predict"].path
# Names of methods whose lanes are kept.
_MOST_PATHS = 64
_QUICK = frozenset({"GetModelStatus", "GetModelMetadata", "Check", "Watch"})
_WATCH, _CHECK = "/grpc.health.v1.Health/Watch", "/grpc.health.v1.Health/Check"
_SERVICE_UNKNOWN, _NOT_SERVING = b"\x08\x03", b"\x08\x02"

# When a connection is to end: how long a client may take to hear of it.
_LONGEST_FAREWELL_S = 1.0
_QUIET_S = 0.05
_FAREWELL, _ALIVE = b"farewell", b"anybody?"
_LEAST_LOOK_S = 0.01
_FOREVER_MS = (1 << 31) - 1  # what the library takes for it
_AGE_JITTER = 0.1


class Unheard:
    """Calls that wait for their client: its message, or for it to lose interest; not too many.

    When there are, the client with the most of them loses the one that has been silent longest.

    Args:
        most: how many there may be.
    """

    def __init__(self, most: int = MOST_UNHEARD) -> None:
        self._most = most
        self._count = 0
        self._by_client: dict[str, OrderedDict[int, tuple[GrpcStream, Any]]] = {}

    def __contains__(self, client: str) -> bool:
        """Say whether any call of a client waits."""
        return client in self._by_client

    def add(self, client: str, stream: GrpcStream, owner: Any) -> tuple[GrpcStream, Any] | None:
        """Note a call and whose it is; return the one that has to give way, if any."""
        mine = self._by_client.get(client)
        if mine is not None and id(stream) in mine:
            return None
        evicted = None
        if self._count >= self._most:
            most = max(self._by_client, key=lambda each: len(self._by_client[each]))
            evicted = next(iter(self._by_client[most].values()))
            self.forget(most, evicted[0])
        self._by_client.setdefault(client, OrderedDict())[id(stream)] = (stream, owner)
        self._count += 1
        return evicted

    def forget(self, client: str, stream: GrpcStream) -> None:
        """Note that a call is heard, or has ended."""
        calls = self._by_client.get(client)
        if calls and calls.pop(id(stream), None):
            self._count -= 1
            if not calls:
                del self._by_client[client]


@dataclass(frozen=True, slots=True)
class Ports:
    """Where a server listens.

    Attributes:
        address: `host:port`; port 0 asks the system for a free one. Empty for no TCP port.
        socket_path: UNIX socket to listen on as well, without TLS; empty for none.
        tls: certificates, None for plain text.
    """

    address: str = ""
    socket_path: str = ""
    tls: Tls | None = None


@dataclass(frozen=True, slots=True)
class GrpcOptions:
    """How a server treats its connections; times in seconds.

    Attributes:
        limits: what one may do.
        patience_s: how long a message that has begun may take to arrive, and an answer to be
            taken, without getting on.
        most_age_s: after that clients are asked to go elsewhere.
        age_grace_s: how long their calls may take then.
        most_idle_s: the same as `most_age_s` for those without calls.
        keepalive_s: after such a silence a client is asked for a sign of life.
        keepalive_timeout_s: how long it may take to give one.
    """

    limits: GrpcLimits = field(default_factory=GrpcLimits)
    patience_s: float = PATIENCE_S
    most_age_s: float = math.inf
    age_grace_s: float = math.inf
    most_idle_s: float = math.inf
    keepalive_s: float = 7200.0
    keepalive_timeout_s: float = 20.0

    @property
    def look_s(self) -> float:
        """How often to look at connections."""
        return min(
            self.patience_s, self.most_idle_s / 2, self.keepalive_s / 2, self.keepalive_timeout_s
        )


def options_of(arguments: Iterable[tuple[str, int | str]]) -> GrpcOptions:
    """Return what arguments of the gRPC library stand for, such as `grpc.max_connection_age_ms`.

    Those that make no difference here are passed over, as the library does with unknown ones.
    """
    given = {name: value for name, value in arguments if isinstance(value, int)}

    def number(name: str, default: int) -> int:
        value = given.get(f"grpc.{name}", default)
        return value if value >= 0 else default

    def seconds(name: str, default_s: float = math.inf) -> float:
        value = given.get(f"grpc.{name}", 0)
        return value / 1e3 if 0 < value < _FOREVER_MS else default_s

    default = GrpcOptions()
    ping_s = number("http2.min_ping_interval_without_data_ms", 300_000) / 1e3
    permitted = given.get("grpc.keepalive_permit_without_calls", 0)
    largest = given.get("grpc.max_send_message_length", -1)
    limits = GrpcLimits(
        Http2Limits(
            number("max_concurrent_streams", MOST_STREAMS) or MOST_STREAMS,
            number("max_metadata_size", MOST_METADATA_BYTES),
        ),
        min(number("max_receive_message_length", MOST_MESSAGE_BYTES), MOST_MESSAGE_BYTES),
        largest if largest >= 0 else None,
        ping_s,
        ping_s if permitted else max(ping_s, default.limits.idle_ping_interval_s),
        number("http2.max_ping_strikes", 2),
    )
    return GrpcOptions(
        limits,
        most_age_s=seconds("max_connection_age_ms"),
        age_grace_s=seconds("max_connection_age_grace_ms"),
        most_idle_s=seconds("max_connection_idle_ms"),
        keepalive_s=seconds("keepalive_time_ms", default.keepalive_s),
        keepalive_timeout_s=seconds("keepalive_timeout_ms", default.keepalive_timeout_s),
    )


class _Shared:
    """What the connections of a server have in common; lives in the event loop."""

    def __init__(
        self,
        surface: Surface,
        repeat: Repeat | None,
        ledger: Ledger,
        runner: Runner,
        loop: asyncio.AbstractEventLoop,
        options: GrpcOptions,
    ) -> None:
        self.surface, self.ledger, self.runner, self.loop = surface, ledger, runner, loop
        self.repeat = repeat
        self.options = options
        self.unheard = Unheard()
        self.connections: set[_Connection] = set()
        # A view: with TLS, asyncio fills it slice by slice, and a slice of a bytearray is a copy.
        self.buffer = memoryview(bytearray(_READ_BYTES))
        self.is_draining = False
        self._rests: dict[str, float] = {}  # until when, by client
        # A server speaks first: what begins a connection is always the same.
        self.greeting = GrpcSession(ledger, "", options.limits).take(_WRITE_BYTES)
        self.lane = lru_cache(_MOST_PATHS)(self._lane_of)

    def rest(self, client: str, wasted: int) -> float:
        """Return when a client is to be heard again, by the loop's clock.

        Args:
            client: its address.
            wasted: what a connection of it has sent in vain since; nothing if it is new.
        """
        now_s = self.loop.time()
        until_s = max(now_s, self._rests.get(client, 0.0))
        if not wasted:
            return min(until_s, now_s + _NEW_WAITS_S)
        until_s += wasted * _WASTED_S
        self._rests = {each: end_s for each, end_s in self._rests.items() if end_s > now_s}
        self._rests[client] = until_s
        return until_s

    def _lane_of(self, path: str) -> Lane:
        """Return the lane of a method."""
        method = path.rpartition("/")[2]
        if method in _QUICK:
            return self.runner.lanes.others
        return self.runner.lanes.reloads if method == _RELOAD else self.runner.lanes.predictions


class _Asked(Work):
    """A call whose answer is made."""

    timer: asyncio.TimerHandle | None = None

    def __init__(self, connection: "_Connection", stream: GrpcStream, kind: Hashable) -> None:
        super().__init__(kind)
        self._connection, self._stream = connection, stream

    def begin(self) -> Flow[GrpcAnswer]:
        """Return what makes the answer."""
        stream = self._stream
        message, stream.message = stream.message, None
        if message is None or stream.is_gone or stream.is_answered:
            raise ServingError(Code.CANCELLED, "")
        call = Call(stream.account, stream.deadline_s, stream.has_gone, stream.on_gone)
        if stream.deadline_s is not None:
            call.check()
        if stream.is_compressed:
            message = _inflated(message, stream.account)
        path = _CHECK if stream.path == _WATCH else stream.path
        return self._connection.surface(path, message, call)

    def failed(self, error: ServingError | None) -> GrpcAnswer:
        """Return the answer for an error."""
        return GrpcAnswer(error.code, error.message) if error else GrpcAnswer(Code.INTERNAL)

    def is_usual(self, result: GrpcAnswer) -> bool:
        """Say whether it went as others will; what was compressed can become anything."""
        return result.code is Code.OK and not self._stream.is_compressed

    def done(self, result: GrpcAnswer) -> None:
        """Answer."""
        if self.timer:
            self.timer.cancel()
        self._stream.is_working = False
        self._connection.answer(self._stream, result)

    def expire(self) -> None:
        """Answer that it is too late."""
        self._connection.answer(
            self._stream, GrpcAnswer(Code.DEADLINE_EXCEEDED, "Deadline Exceeded"), is_late=True
        )
        self.drop()

    def drop(self) -> None:
        """Wait for its turn no longer, as nobody waits for the answer."""
        if self.timer:
            self.timer.cancel()
        if self.turn and not self.turn.has_come:
            self.turn.end()
            self._stream.is_working = False
            self._stream.settle()


class _Connection(asyncio.BufferedProtocol):
    """A client connection; lives in the event loop.

    Args:
        shared: what it has in common with the server's other connections.
    """

    __slots__ = (
        "_apart",
        "_before",
        "_busy_s",
        "_client",
        "_has_left",
        "_is_flushing",
        "_is_full",
        "_is_leaving",
        "_is_resting",
        "_is_stepping",
        "_pinged_s",
        "_protocol",
        "_ready",
        "_received_s",
        "_sent_bytes",
        "_shared",
        "_transport",
        "_unreplied_bytes",
    )

    def __init__(self, shared: _Shared) -> None:
        self._shared = shared
        self._transport: Any = None
        self._client = ""
        self._protocol: GrpcSession | None = None  # from the first byte on
        self._ready: list[GrpcStream] = []
        self._apart = 0  # so many of them have to be made one by one
        self._is_full = False  # what was written is not taken
        self._is_flushing = self._is_stepping = self._is_leaving = self._has_left = False
        self._unreplied_bytes = 0
        self._is_resting = False
        self._received_s = self._busy_s = time.monotonic()
        self._pinged_s: float | None = None
        self._sent_bytes = 0
        self._before: dict[Any, int] = {}

    # Called by asyncio

    def connection_made(self, transport: Any) -> None:
        """Begin, with an asyncio transport."""
        self._transport = transport
        peer = transport.get_extra_info("peername") or ("",)
        self._client = str(peer[0]) if isinstance(peer, tuple) else ""
        transport.set_write_buffer_limits(_WRITE_BYTES)
        transport.write(self._shared.greeting)
        self._shared.connections.add(self)
        self._shared.loop.call_soon(self._rest, 0)  # uvloop begins to read after this
        self._is_leaving = self._shared.is_draining
        age_s = self._shared.options.most_age_s
        if age_s < math.inf:
            age_s *= random.uniform(1 - _AGE_JITTER, 1 + _AGE_JITTER)  # noqa: S311
            self._shared.loop.call_later(age_s, self.retire)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where the next bytes go."""
        del sizehint
        return self._shared.buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Take up what has arrived.

        If the memory is full, more probably has: it is read first, and calls are made together.
        """
        shared, now_s, has_more = self._shared, time.monotonic(), nbytes == _READ_BYTES
        self._received_s = now_s
        protocol = self._protocol or self._begin()
        calls = protocol.receive(shared.buffer[:nbytes], now_s)
        self._note(protocol, calls)
        if calls:
            self._busy_s = now_s
            self._ready.extend(calls)
            if not self._is_stepping:
                self._is_stepping = True
                (shared.runner.step_soon if has_more else shared.runner.step)(self._step)
        if self._is_full:
            self._unreplied_bytes += nbytes
        most_ready = _MOST_READY if has_more else 1
        if self._unreplied_bytes > _MOST_UNREPLIED_BYTES or len(self._ready) >= most_ready:
            self._transport.pause_reading()
        if (self._is_stepping or not calls) and not self._is_flushing:
            if has_more:
                self._flush_soon()
            else:
                self.flush()
        if protocol.wasted > _MOST_WASTED:
            self._rest(protocol.wasted)
            protocol.wasted = 0

    def _rest(self, wasted: int) -> None:
        """Hear nothing while its client has to rest."""
        loop = self._shared.loop
        until_s = self._shared.rest(self._client, wasted)
        if self._protocol and until_s > loop.time() + _LONGEST_REST_S:
            self._protocol.hang_up()
            self.flush()
            self._transport.close()
        elif until_s > loop.time() and not self._transport.is_closing():
            self._is_resting = True
            self._transport.pause_reading()
            loop.call_at(until_s, self._wake)

    def _wake(self) -> None:
        self._is_resting = False
        self._read_on()

    def _begin(self) -> GrpcSession:
        shared = self._shared
        limits = shared.options.limits
        protocol = GrpcSession(shared.ledger, self._client, limits, is_greeted=True)
        self._protocol = protocol
        if self._is_leaving:
            protocol.announce_end()
            protocol.ping(_FAREWELL)
        return protocol

    def eof_received(self) -> bool:
        """Close: whoever sends no more cannot open windows for its answers."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of everything the client wanted."""
        del exc
        self._shared.connections.discard(self)
        self._ready.clear()
        if self._protocol:
            streams = list(self._protocol.streams.values())
            self._protocol.end()
            for stream in streams:
                self._shared.unheard.forget(self._client, stream)

    def pause_writing(self) -> None:
        """Make no more ready, as the client takes its answers slowly."""
        self._is_full = True

    def resume_writing(self) -> None:
        """Go on, as the client has taken what it was sent."""
        self._is_full = False
        self._unreplied_bytes = 0
        self.flush()
        self._read_on()

    # Calls

    def _note(self, protocol: GrpcSession, calls: list[GrpcStream]) -> None:
        """Keep an eye on calls whose message has not arrived, and forget those that have ended."""
        unheard = self._shared.unheard
        if self._client in unheard:
            for stream in calls:
                unheard.forget(self._client, stream)
        for stream in protocol.take_gone():
            unheard.forget(self._client, stream)
        for stream in protocol.take_begun():
            if not (stream.is_whole or stream.is_answered or stream.is_gone):
                self._wait_for(stream)

    def _wait_for(self, stream: GrpcStream) -> None:
        evicted = self._shared.unheard.add(self._client, stream, self)
        if evicted:
            silent, owner = evicted
            owner.answer(silent, GrpcAnswer(Code.CANCELLED, "Too many calls wait for their client"))

    def _step(self) -> bool:
        """Make a call, or some that are alike; say whether there are more."""
        ready = self._ready
        if ready:
            stream, made = ready[0], 1
            try:
                if stream.message is not None and not stream.is_gone:
                    made = self._ask(stream, stream.message)
            finally:
                del ready[:made]
            if ready:
                return True
        self._is_stepping = False
        self.flush()
        self._read_on()
        return False

    def _ask(self, stream: GrpcStream, message: Sent) -> int:
        """Make a call, the first of those that are ready; return how many were made."""
        shared, path, size_bytes = self._shared, stream.path, len(message)
        runner, asked_for, lane = shared.runner, _asked_for(message), shared.lane(path)
        name = (path, asked_for, size_bytes.bit_length())
        # All others wait for the manager's lock.
        may_be_short = lane is runner.lanes.predictions or path == _CHECK
        kind = runner.kinds.find(name) if may_be_short and not stream.is_compressed else None
        if kind is not None and not belongs_on_the_spot(kind, size_bytes, time.monotonic()):
            kind = None
        if kind is not None and path == _PREDICT and shared.repeat and not self._apart:
            made = self._repeat(shared.repeat, kind)
            if made:
                return made
            if kind.waits:
                self._apart = len(self._ready)
        self._apart -= self._apart > 0
        work = _Asked(self, stream, name)
        stream.is_working = True
        if kind is not None:
            runner.do_here(work, lane)
        else:
            runner.do_later(work, lane, (self._client, asked_for))
        if not work.has_ended:
            self._watch_over(work, stream)
        return 1

    def _repeat(self, repeat: Repeat, kind: CallKind) -> int:
        """Answer what only its numbers tell apart from a call before; return how many calls."""
        if kind.waits and len(self._ready) == 1 < len(self._shared.connections):
            return 0  # it may be put together with those of other connections
        began_s, row = time.perf_counter(), self._row(kind)
        answers = repeat(row) if row else ()
        if any(answer.code is _OK for answer in answers):
            self._shared.runner.note_here(kind, time.perf_counter() - began_s, len(answers))
        for stream, answer in zip(self._ready[: len(answers)], answers, strict=True):
            self.answer(stream, answer)
        return len(answers)

    def _row(self, kind: CallKind) -> list[tuple[Sent, Account]]:
        """Return what the first calls that are ready ask for, as far as they may be alike."""
        now_s, row = time.monotonic(), list[tuple[Sent, Account]]()
        size = len(self._ready[0].message or b"")
        for stream in self._ready[: kind.most_in_row]:
            deadline_s, message = stream.deadline_s, stream.message
            if stream.path != _PREDICT or message is None or len(message) != size:
                break
            if stream.is_gone or stream.is_compressed or (deadline_s and deadline_s <= now_s):
                break
            row.append((message, stream.account))
        return row

    def _watch_over(self, work: _Asked, stream: GrpcStream) -> None:
        """Let a call go that nobody waits for any more."""
        stream.on_gone(work.drop)
        if stream.deadline_s is not None:
            left_s = max(0.0, stream.deadline_s - time.monotonic())
            work.timer = self._shared.loop.call_later(left_s, work.expire)

    @property
    def surface(self) -> Surface:
        """What answers."""
        return self._shared.surface

    def answer(self, stream: GrpcStream, answer: GrpcAnswer, *, is_late: bool = False) -> None:
        """Answer a call."""
        if not self._protocol:
            return
        if stream.path == _WATCH and not is_late:
            self._watch(self._protocol, stream, answer)
        else:
            self._protocol.answer(stream, answer.code, answer.details, answer.body)
        if not self._is_stepping:
            self._flush_soon()

    def _watch(self, protocol: GrpcSession, stream: GrpcStream, answer: GrpcAnswer) -> None:
        """Tell the health and stay in touch: it does not change before the server ends."""
        if answer.code is Code.NOT_FOUND:
            protocol.begin(stream, _SERVICE_UNKNOWN)
        elif answer.code is not Code.OK:
            protocol.answer(stream, answer.code, answer.details)
            return
        else:
            protocol.begin(stream, answer.body)
        self._wait_for(stream)
        if self._is_leaving:
            self._end_watches(protocol)

    def _end_watches(self, protocol: GrpcSession) -> None:
        for stream in list(protocol.streams.values()):
            if stream.is_open and not stream.is_answered:
                protocol.begin(stream, _NOT_SERVING)
                protocol.finish(stream, Code.UNAVAILABLE, "The server ends")
                self._shared.unheard.forget(self._client, stream)

    # Bytes

    def _flush_soon(self) -> None:
        if not self._is_flushing:
            self._is_flushing = True
            self._shared.loop.call_soon(self.flush)

    def flush(self) -> None:
        """Send what there is, as far as the client takes it."""
        self._is_flushing = False
        protocol, transport = self._protocol, self._transport
        if protocol is None or transport.is_closing():
            return
        while not self._is_full:
            data = protocol.take(_WRITE_BYTES)
            if data:
                self._sent_bytes += len(data)
                transport.write(data)
            if len(data) < _WRITE_BYTES:
                break
        for stream in protocol.take_gone():
            self._shared.unheard.forget(self._client, stream)
        if protocol.pong == _FAREWELL and self._is_leaving:
            protocol.pong = b""
            self.leave()
        if protocol.is_over:
            transport.close()

    def _read_on(self) -> None:
        if self._ready or self._is_resting or self._unreplied_bytes > _MOST_UNREPLIED_BYTES:
            return
        if not self._transport.is_closing() and not self._transport.is_reading():
            self._transport.resume_reading()

    # The end

    def retire(self) -> None:
        """Ask the client to go elsewhere, as the connection is old enough."""
        if self._is_leaving or self._transport.is_closing():
            return
        self.announce_end()
        loop, grace_s = self._shared.loop, self._shared.options.age_grace_s
        loop.call_later(_LONGEST_FAREWELL_S, self.leave)
        if grace_s < math.inf:
            loop.call_later(grace_s, self.abort)

    def announce_end(self) -> None:
        """Ask the client to begin no more calls, and to confirm that it has heard."""
        self._is_leaving = True
        if self._protocol:
            self._protocol.announce_end()
            self._protocol.ping(_FAREWELL)
            self._end_watches(self._protocol)
            self.flush()

    def leave(self) -> None:
        """Begin no call any more, and close when those that have begun are answered."""
        if self._has_left:
            return
        self._has_left = True
        if self._protocol is None:
            self._transport.close()
        elif not self._protocol.is_over:
            self._protocol.end_after_calls()
            self._flush_soon()

    @property
    def has_heard(self) -> bool:
        """Whether the client knows that it is to begin no more calls, as far as it ever will."""
        return self._protocol is None or self._has_left

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    # Patience

    def look(self, now_s: float) -> None:
        """Hang up on a client that does not get on, or is no more; called now and then."""
        options, protocol = self._shared.options, self._protocol
        taken_bytes = self._sent_bytes - self._transport.get_write_buffer_size()
        if self._transport.get_write_buffer_size() and self._before.get("taken") == taken_bytes:
            self.abort()
            return
        before, self._before = self._before, {"taken": taken_bytes}
        if protocol:
            for stream in list(protocol.streams.values()):
                self._look_at(protocol, stream, before)
            if protocol.streams:
                self._busy_s = now_s
        if now_s - self._busy_s > options.most_idle_s:
            self.retire()
        self._keep_alive(now_s)
        self._flush_soon()

    def _look_at(self, protocol: GrpcSession, stream: GrpcStream, before: dict[Any, int]) -> None:
        """End a call whose answer is not taken, or whose message does not come on."""
        number = stream.number
        if stream.is_answered:
            unsent = protocol.unsent_bytes(stream)
            if unsent and before.get(-number) == unsent:
                protocol.reset(stream)
            self._before[-number] = unsent
        elif stream.body is not None:
            arrived = stream.body.arrived_bytes
            if number in before and arrived - before[number] < STEADY_BYTES:
                text = "The message did not arrive in time"
                self.answer(stream, GrpcAnswer(Code.DEADLINE_EXCEEDED, text))
                self._shared.unheard.forget(self._client, stream)
            self._before[number] = arrived

    def _keep_alive(self, now_s: float) -> None:
        """Ask a client that has long been silent for a sign of life."""
        options = self._shared.options
        if self._received_s >= (self._pinged_s or 0.0):
            self._pinged_s = None
        if self._pinged_s is not None:
            if now_s - self._pinged_s > options.keepalive_timeout_s:
                self.abort()
        elif self._protocol and now_s - self._received_s > options.keepalive_s:
            self._pinged_s = now_s
            self._protocol.ping(_ALIVE)


class GrpcServer:
    """A gRPC server.

    Args:
        surface: (method path, request bytes, call) -> what makes the GrpcAnswer, in any thread.
        lanes: how many calls are worked on in threads at once.
        ledger: what clients make the server hold.
        ports: where it listens.
        options: how it treats its connections.
        loop: the event loop, shared with other servers; one of its own if left out.
        repeat: a short cut of the surface, for short calls that repeat; None where there is none.

    Raises:
        ServingError: an address cannot be listened on, or a certificate cannot be used.
    """

    def __init__(  # noqa: PLR0913 (what answers, and where and how it is reached)
        self,
        surface: Surface,
        lanes: Lanes,
        ledger: Ledger,
        ports: Ports,
        options: GrpcOptions = GrpcOptions(),
        loop: EventLoop | None = None,
        *,
        repeat: Repeat | None = None,
    ) -> None:
        self._loop = loop or EventLoop()
        self._owns_loop = loop is None
        runner = Runner(self._loop, lanes, "grpc")
        self._shared = _Shared(surface, repeat, ledger, runner, self._loop.loop, options)
        self._loop.connections.append(self._shared.connections)
        self._has_started = False
        self._listeners: list[Listener] = []
        self.port = 0
        try:
            if ports.address:
                self._listen(ports.address, ports.tls)
            if ports.socket_path:
                self._listen_at(ports.socket_path)
        except ServingError:
            self._discard()
            raise

    def _listen(self, address: str, tls: Tls | None) -> None:
        host, _, port = address.rpartition(":")
        try:
            context = tls_context(tls, "h2") if tls else None
            listener = listening(host, int(port))
        except (OSError, OverflowError, ValueError) as error:
            raise _unusable(address) from error
        self.port = listener.getsockname()[1]
        self._add(listener, context)

    def _listen_at(self, path: str) -> None:
        try:
            self._add(listening_at(path), None)
        except OSError as error:
            raise _unusable(f"unix:{path}") from error

    def _add(self, listener: Any, tls: Any) -> None:
        def protocol() -> _Connection:
            return _Connection(self._shared)

        self._listeners.append(Listener(self._loop, listener, protocol, tls))

    def start(self) -> None:
        """Begin to answer."""
        self._has_started = True
        self._loop.start()
        self._loop.do(self._open())

    async def _open(self) -> None:
        for listener in self._listeners:
            listener.open()
        self._looking = self._loop.loop.create_task(self._look())

    async def _look(self) -> None:
        """Look at all connections now and then."""
        shared = self._shared
        while True:
            await asyncio.sleep(max(shared.options.look_s, _LEAST_LOOK_S))
            for connection in list(shared.connections):
                try:
                    connection.look(time.monotonic())
                except Exception:  # noqa: BLE001 (the others are looked at)
                    _log.exception("a connection failed")
                    connection.abort()

    def stop(self, grace_s: float) -> None:
        """Refuse new requests, wait up to `grace_s` seconds for those in flight, then end."""
        if self._has_started:
            self._has_started = False
            self._loop.do(self._drain(grace_s))
        self._discard()

    def _discard(self) -> None:
        for listener in self._listeners:
            listener.close()
        self._shared.runner.end()
        if self._owns_loop:
            self._loop.stop()

    async def _drain(self, grace_s: float) -> None:
        """Let in who has knocked, answer what is asked, and tell everybody to come no more.

        A client confirms that it has heard: what it had sent before has come in by then.
        """
        shared, loop = self._shared, self._loop.loop
        end_s = loop.time() + grace_s
        await asyncio.gather(*(listener.close_gently() for listener in self._listeners))
        self._looking.cancel()
        shared.is_draining = True
        for connection in list(shared.connections):
            connection.announce_end()
        await asyncio.sleep(_QUIET_S)
        await self._loop.until(
            lambda: all(each.has_heard for each in shared.connections),
            min(end_s, loop.time() + _LONGEST_FAREWELL_S),
        )
        for connection in list(shared.connections):
            connection.leave()
        await self._loop.until(lambda: not shared.connections, end_s)
        for connection in list(shared.connections):
            connection.abort()
        await asyncio.sleep(0)  # lets the transports say goodbye


def _asked_for(message: Sent) -> tuple[str, str] | None:
    """Return the model and signature, if they are told as usual; all others are one."""
    if message[:1] != _FIRST_FIELD or len(message) < _LEAST_BYTES:
        return None
    size = message[1]
    if size < _LONG:
        return _named(bytes(message[2 : 2 + size]))
    try:
        size, begin = decode_varint(message[:11], 1)
    except ValueError:
        return None
    return None if size > _LONGEST_SPEC_BYTES else _named(bytes(message[begin : begin + size]))


@lru_cache(maxsize=128)
def _named(spec: bytes) -> tuple[str, str] | None:
    """Return the names in a ModelSpec; most calls repeat it."""
    try:
        found = protos.ModelSpec.FromString(spec)
    except protos.DecodeError:
        return None
    return found.name, found.signature_name


def _inflated(message: Sent, account: Account) -> bytes:
    """Return a compressed message as it was meant.

    Raises:
        ServingError: it is damaged, or becomes too large.
    """
    most_bytes = max(MOST_INFLATED_BYTES, MOST_INFLATED_TIMES * len(message))
    whole = inflated(message, account, wbits=GZIP_OR_ZLIB, most_bytes=most_bytes)
    if whole is None:
        raise ServingError(Code.INTERNAL, "The message cannot be decompressed")
    return whole


def _unusable(address: str) -> ServingError:
    return invalid(f"Failed to BuildAndStart gRPC server: cannot listen on {address}")
