"""gRPC over one HTTP/2 connection as a state machine: bytes in, calls out; answers in, bytes out.

No socket, no thread, no look at a clock. Source: PROTOCOL-HTTP2.md of gRPC.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tfserve_kit.embedded import http2
from tfserve_kit.embedded.http2 import (
    DataReceived,
    ErrorCode,
    Http2,
    Http2Error,
    Http2Limits,
    RequestReceived,
    StreamClosed,
)
from tfserve_kit.embedded.ledger import Account, Ledger, Sent
from tfserve_kit.embedded.limits import MOST_MESSAGE_BYTES
from tfserve_kit.embedded.status import Code, ServingError, encoded

_PREFIX_BYTES = 5
# Smaller messages that arrive at once, and smaller answers, are not worth an entry in the ledger.
SMALL_BYTES = 1 << 16
# Memory for a message that arrives in pieces: so many times what has arrived. Up to a size it is
# all there at once: pages that are not used yet cost nothing, and nothing is copied as it grows.
_GROWTH = 4
_AT_ONCE_BYTES = 1 << 20
# tensorflow computes on numbers where they lie if they begin on such a line of memory, as other
# numbers it copies. Those of a message mostly end it, and fill whole lines; so it ends on one.
_LINE_BYTES = 64
# Larger ones it copies: where they lie it would hold them until its next call.
_MOST_IN_LINE_BYTES = 16 << 20
_LONGEST_PATH_BYTES = 1024
_MOST_DETAILS_BYTES = 1024
_CUT = b"...TRUNCATED"
# A small message and what goes before it are one piece.
_ONE_PIECE_BYTES = 1 << 14

_HEADERS = (
    (b":status", b"200"),
    (b"content-type", b"application/grpc"),
    (b"grpc-accept-encoding", b"identity, deflate, gzip"),
)
_OK = ((b"grpc-status", b"0"),)
_OK_CODE = Code.OK  # members of an enumeration take long to find
_WRONG_METHOD = ((b":status", b"405"), (b"allow", b"POST"))
_WRONG_TYPE = ((b":status", b"415"),)
_TYPE = b"application/grpc"
_ENCODINGS = (b"gzip", b"deflate")

_UNITS_S = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_MOST_TIMEOUT_DIGITS = 8
# Frames that do nothing for a call: so many between two calls, then the client has to calm down.
_MOST_IDLE_FRAMES = 10_000
# Pieces of a message come larger than that; each whole message makes up for so many that do not.
_LEAST_PIECE_BYTES = 64
_FORGIVEN = 8
# What a breach of the protocol wastes: a connection has to be made anew.
_BREACH = 300
# Windows are opened a good deal at once; smaller steps count as frames that do nothing.
_LARGE_STEP_BYTES = 1024


@dataclass(frozen=True, slots=True)
class GrpcLimits:
    """What one connection may do; sizes in bytes.

    Attributes:
        http2: streams and headers.
        most_message_bytes: what a message may have.
        most_answer_bytes: the same for an answer; None for any.
        ping_interval_s: how far apart pings have to be while nothing is sent to the client.
        idle_ping_interval_s: the same while there is no call.
        most_ping_strikes: how often they may be closer; 0 for any number of times.
    """

    http2: Http2Limits = field(default_factory=Http2Limits)
    most_message_bytes: int = MOST_MESSAGE_BYTES
    most_answer_bytes: int | None = None
    ping_interval_s: float = 300.0
    idle_ping_interval_s: float = 7200.0
    most_ping_strikes: int = 2


class _Body:
    """A message that arrives in pieces.

    Attributes:
        prefix: what goes before it and says how long it is, as far as that has arrived.
        wanted_bytes: how long it will be; -1 while that is not known.
        arrived_bytes: how much of it is there.
        room_bytes: what there is memory for, and the call's account is charged with.
    """

    __slots__ = ("_begin", "_memory", "arrived_bytes", "prefix", "room_bytes", "wanted_bytes")

    def __init__(self) -> None:
        self.prefix = b""
        self.wanted_bytes = -1
        self.arrived_bytes = self.room_bytes = self._begin = 0
        self._memory = memoryview(bytearray())

    def make_room(self, room_bytes: int) -> None:
        """Get more memory."""
        self.room_bytes = room_bytes
        is_all = self.wanted_bytes <= _AT_ONCE_BYTES
        if is_all and len(self._memory):
            return
        memory = np.empty((self.wanted_bytes if is_all else room_bytes) + _LINE_BYTES, np.uint8)
        end = memory.ctypes.data + self.wanted_bytes
        begin = -end % _LINE_BYTES if self.wanted_bytes <= _MOST_IN_LINE_BYTES else 0
        old, self._memory, self._begin = self.content, memory.data, begin
        self._memory[begin : begin + len(old)] = old

    def add(self, piece: bytes) -> None:
        """Add a piece for which there is room."""
        at = self._begin + self.arrived_bytes
        self._memory[at : at + len(piece)] = piece
        self.arrived_bytes += len(piece)

    @property
    def content(self) -> memoryview:
        """What has arrived."""
        return self._memory[self._begin : self._begin + self.arrived_bytes].toreadonly()


class GrpcStream:
    """One call.

    Attributes:
        path: full name of the method.
        deadline_s: until when the client waits for the answer; None for ever.
        account: what it makes the server hold.
        message: the request, once all of it is there and until somebody takes it.
        body: what there is of it before.
        is_whole: all of the request has come.
        is_compressed: whether the message is.
        is_gone: the client has left.
        is_answered: all of its answer is made.
        is_working: somebody works on the answer, and holds what the account holds.
    """

    __slots__ = (
        "_told",
        "account",
        "body",
        "deadline_s",
        "encoding",
        "has_ended",
        "is_answered",
        "is_compressed",
        "is_gone",
        "is_open",
        "is_whole",
        "is_working",
        "message",
        "number",
        "path",
    )

    def __init__(self, number: int, account: Account) -> None:
        self.number = number
        self.account = account
        self.path = ""
        self.deadline_s: float | None = None
        self.encoding: bytes | None = None
        self.message: Sent | None = None
        self.body: _Body | None = None
        self.is_compressed = self.is_gone = self.is_answered = self.is_working = False
        self.is_whole = False
        self.has_ended = False  # the client sends no more
        self.is_open = False  # an answer of several messages has begun
        self._told: list[Callable[[], object]] | None = None

    def has_gone(self) -> bool:
        """Say whether the client has left; from any thread."""
        return self.is_gone

    def on_gone(self, told: Callable[[], object]) -> None:
        """Have something called when the client leaves, perhaps twice; from any thread."""
        if self._told is None:
            self._told = []
        self._told.append(told)
        if self.is_gone:
            told()

    def leave(self) -> None:
        """Note that the client has left."""
        self.is_gone = True
        for told in self._told or ():
            told()
        self._told = None

    def close(self) -> None:
        """Note that it is answered."""
        self.is_answered = True
        self.body = self.message = self._told = None

    def settle(self) -> None:
        """Give back what it holds, unless somebody still works with it."""
        if not self.is_working and not self.account.is_closed:
            self.account.close()


@dataclass(frozen=True, slots=True)
class _Head:
    """What the headers of a call say.

    Attributes:
        path: full name of the method.
        encoding: how the message may be compressed.
        timeout_s: how long the client will wait; None for ever.
        refusal: headers to answer with where it is no call.
    """

    path: str = ""
    encoding: bytes | None = None
    timeout_s: float | None = None
    refusal: http2.Headers = ()


class GrpcSession:
    """The server's end of one connection.

    Args:
        ledger: what clients make the server hold.
        client: whose share that counts for.
        limits: what the client may do.
        is_greeted: it has been sent the beginning, see `Http2`.

    Attributes:
        streams: calls that have begun and not ended, by number.
        is_over: nothing more can be said; hang up once everything is sent.
        pong: content of the last answer to a ping of ours.
        wasted: what has come that did nothing for a call: frames, tiny pieces, calls taken back.
    """

    __slots__ = (
        "_begun",
        "_client",
        "_gone",
        "_head",
        "_headers",
        "_http",
        "_idle_frames",
        "_last_ping_s",
        "_ledger",
        "_limits",
        "_ping_strikes",
        "_unended",
        "is_over",
        "pong",
        "streams",
        "wasted",
    )

    def __init__(
        self, ledger: Ledger, client: str, limits: GrpcLimits, *, is_greeted: bool = False
    ) -> None:
        self._ledger = ledger
        self._client = client
        self._limits = limits
        self._http = Http2(limits.http2, is_greeted=is_greeted)
        self.streams: dict[int, GrpcStream] = {}
        self.is_over = False
        self.pong = b""
        self.wasted = 0
        self._gone: list[GrpcStream] = []
        self._begun: list[GrpcStream] = []
        self._unended: list[int] = []  # answered, though the client may send more
        self._idle_frames = 0
        self._last_ping_s: float | None = None
        self._ping_strikes = 0
        # Clients mostly repeat their headers.
        self._headers: Any = None
        self._head = _Head()

    # From the client

    def receive(self, data: bytes | bytearray | memoryview, now_s: float) -> list[GrpcStream]:
        """Take up bytes; return the calls whose message is whole with them."""
        if self.is_over:
            return []
        try:
            events = self._http.receive(data)
        except Http2Error:
            self.wasted += _BREACH
            self.end()
            return []
        whole: list[GrpcStream] = []
        for event in events:
            kind = type(event)
            if kind is DataReceived:
                self._data(event, whole)
            elif kind is RequestReceived:
                self._request(event, now_s)
            elif kind is StreamClosed:
                self._close(event.stream_id)
            else:
                self._other(event, now_s)
        if self.wasted:
            whole = [stream for stream in whole if not stream.is_gone]
            self.wasted = max(0, self.wasted - _FORGIVEN * len(whole))
        return whole

    def take_gone(self) -> list[GrpcStream]:
        """Return the calls that have ended since the last time without being answered."""
        gone, self._gone = self._gone, []
        return gone

    def take_begun(self) -> list[GrpcStream]:
        """Return the calls that have begun since the last time, and lacked their message."""
        begun, self._begun = self._begun, []
        return begun

    def hang_up(self) -> None:
        """Tell the client to calm down; what is left to be sent is the last."""
        self._http.end_at_once(ErrorCode.ENHANCE_YOUR_CALM)

    def end(self) -> None:
        """Note that the connection has ended, for whatever reason."""
        self.is_over = True
        for number in list(self.streams):
            self._close(number)

    def _request(self, event: Any, now_s: float) -> None:
        self._idle_frames = 0
        number, headers = event.stream_id, event.headers
        stream = self.streams[number] = GrpcStream(number, Account(self._ledger, self._client))
        if headers != self._headers:
            self._headers, self._head = headers, _head(dict(headers))
        head = self._head
        stream.path, stream.encoding = head.path, head.encoding
        if head.timeout_s is not None:
            stream.deadline_s = now_s + head.timeout_s
        if head.refusal:
            stream.has_ended = event.end_stream
            self._calm()
            self._refuse(stream, head.refusal)
        elif event.end_stream:
            self._end_of_message(stream)
        else:
            self._begun.append(stream)

    def _data(self, event: Any, whole: list[GrpcStream]) -> None:
        stream = self.streams.get(event.stream_id)
        if stream is None:
            return
        data, body = event.data, stream.body
        if event.end_stream:
            stream.has_ended = True
        elif len(data) < _LEAST_PIECE_BYTES:
            self._small(data)
        elif body is not None and body.arrived_bytes + len(data) < body.room_bytes:
            body.add(data)  # one of many pieces
            return
        if stream.is_answered or stream.is_whole:
            return  # one message is all that is wanted
        if stream.body is None and len(data) >= _PREFIX_BYTES:
            size = int.from_bytes(data[1:_PREFIX_BYTES], "big")
            if (
                len(data) == size + _PREFIX_BYTES
                and self._accepts(stream, data[0], size)
                and (size <= SMALL_BYTES or self._charge(stream, size))
            ):
                stream.message, stream.is_whole = data[_PREFIX_BYTES:], True
                whole.append(stream)
                return
        if not stream.is_answered and data and self._collect(stream, data):
            whole.append(stream)
        if event.end_stream:
            self._end_of_message(stream)

    def _collect(self, stream: GrpcStream, data: bytes) -> bool:
        """Add a piece to a message that comes in several; say whether it is whole."""
        body = stream.body
        if body is None:
            body = stream.body = _Body()
        if body.wanted_bytes < 0:
            missing = _PREFIX_BYTES - len(body.prefix)
            body.prefix, data = body.prefix + data[:missing], data[missing:]
            if len(body.prefix) < _PREFIX_BYTES:
                return False
            size = int.from_bytes(body.prefix[1:], "big")
            if not self._accepts(stream, body.prefix[0], size):
                return False
            body.wanted_bytes = size
        data = data[: body.wanted_bytes - body.arrived_bytes]
        arrived_bytes = body.arrived_bytes + len(data)
        if arrived_bytes > body.room_bytes and not self._make_room(stream, body, arrived_bytes):
            return False
        body.add(data)
        if arrived_bytes == body.wanted_bytes:
            stream.message, stream.is_whole, stream.body = body.content, True, None
        return stream.is_whole

    def _make_room(self, stream: GrpcStream, body: _Body, arrived_bytes: int) -> bool:
        """Get memory for a piece and some of what will follow, or answer that there is no room.

        What a client says will come is not believed before a part of it has; and memory that grows
        little by little would be copied again and again.
        """
        room_bytes = min(body.wanted_bytes, max(SMALL_BYTES, _GROWTH * arrived_bytes))
        if not self._charge(stream, room_bytes - body.room_bytes):
            return False
        body.make_room(room_bytes)
        return True

    def _accepts(self, stream: GrpcStream, flag: int, size: int) -> bool:
        """Say whether a message may come, or answer that it may not."""
        if flag:
            if flag != 1 or stream.encoding in {None, b"identity"}:
                self.answer(stream, Code.INTERNAL, "the message's compression is not known")
                return False
            if stream.encoding not in _ENCODINGS:
                self.answer(stream, Code.UNIMPLEMENTED, "the encoding is not supported")
                return False
            stream.is_compressed = True
        most = self._limits.most_message_bytes
        if size > most:
            text = f"Received message larger than max ({size} vs. {most})"
            self.answer(stream, Code.RESOURCE_EXHAUSTED, text)
            return False
        return True

    def _charge(self, stream: GrpcStream, size: int) -> bool:
        """Take bytes from the call's account, or answer that there is no room."""
        try:
            stream.account.take(size, "the message")
        except ServingError as error:
            self.answer(stream, error.code, error.message)
            return False
        return True

    def _end_of_message(self, stream: GrpcStream) -> None:
        """Answer a call that ends without a message, or within one."""
        stream.has_ended = True
        if stream.is_answered or stream.is_whole:
            return
        if stream.body is not None:
            self.answer(stream, Code.INTERNAL, "the message was cut")
            return
        text = f'"{stream.path}" requires exactly one request message.'
        self.answer(stream, Code.UNIMPLEMENTED, text)

    def _other(self, event: Any, now_s: float) -> None:
        kind = type(event)
        if kind is http2.TrailersReceived:
            stream = self.streams.get(event.stream_id)
            if stream is not None:
                self._end_of_message(stream)
        elif kind is http2.ConnectionClosed:
            self.wasted += _BREACH if event.error_code else 0
            self.end()
        elif kind is http2.PingReceived:
            self._ping(now_s)
        elif kind is http2.PingAcknowledged:
            self.pong = event.opaque_data
        elif kind is not http2.WindowUpdated or event.increment < _LARGE_STEP_BYTES:
            self._idle()

    def _small(self, data: bytes) -> None:
        if data:
            self.wasted += 1
        else:
            self._idle()

    def _idle(self) -> None:
        self.wasted += 1
        self._idle_frames += 1
        if self._idle_frames == _MOST_IDLE_FRAMES:
            self.hang_up()

    def _ping(self, now_s: float) -> None:
        """Allow pings now and then; each answer of ours allows one more."""
        last_s, self._last_ping_s = self._last_ping_s, now_s
        self._idle()
        limits = self._limits
        interval_s = limits.ping_interval_s if self.streams else limits.idle_ping_interval_s
        if last_s is None or now_s - last_s >= interval_s:
            return
        self._ping_strikes += 1
        if self._ping_strikes == limits.most_ping_strikes + 1 > 1:
            self._http.end_at_once(ErrorCode.ENHANCE_YOUR_CALM, b"too_many_pings")

    def _close(self, number: int) -> None:
        """Note that a stream has ended."""
        stream = self.streams.pop(number, None)
        if stream is None:
            return
        stream.body = None
        if not stream.is_answered:
            self.wasted += 1
            stream.leave()
            self._gone.append(stream)
        stream.settle()

    # To the client

    def answer(self, stream: GrpcStream, code: Code, details: str = "", body: bytes = b"") -> None:
        """Answer a call; nothing where it has ended."""
        if stream.is_answered or stream.is_gone:
            stream.settle()
            return
        most = self._limits.most_answer_bytes
        if most is not None and len(body) > most:
            code, details = (
                Code.RESOURCE_EXHAUSTED,
                f"Sent message larger than max ({len(body)} vs. {most})",
            )
        self._calm()
        if code is not _OK_CODE:
            self._refuse(stream, (*_HEADERS, *_status(code, details)))
            return
        size = len(body)
        prefix = b"\0" + size.to_bytes(4, "big")
        pieces = (prefix + body,) if size <= _ONE_PIECE_BYTES else (prefix, body)
        try:
            self._http.respond(stream.number, _HEADERS, pieces, _OK)
        except Http2Error:
            self._lose(stream)
        self._note_answered(stream, size)

    def begin(self, stream: GrpcStream, body: bytes) -> None:
        """Send a message that others may follow, see `finish`."""
        if stream.is_answered or stream.is_gone:
            return
        self._calm()
        try:
            if not stream.is_open:
                self._http.begin(stream.number, _HEADERS)
                stream.is_open = True
            self._http.proceed(stream.number, b"\0" + len(body).to_bytes(4, "big") + body)
        except Http2Error:
            self._lose(stream)

    def finish(self, stream: GrpcStream, code: Code, details: str = "") -> None:
        """End a call that was answered with `begin`."""
        if stream.is_answered or stream.is_gone:
            return
        try:
            self._http.end(stream.number, _status(code, details))
        except Http2Error:
            self._lose(stream)
        self._note_answered(stream)

    def reset(self, stream: GrpcStream) -> None:
        """End a call without a word more: its client does not take the answer."""
        self._http.reset(stream.number, ErrorCode.CANCEL)

    def _refuse(self, stream: GrpcStream, headers: http2.Headers) -> None:
        try:
            self._http.respond_at_once(stream.number, headers)
        except Http2Error:
            self._lose(stream)
        self._note_answered(stream)

    def _note_answered(self, stream: GrpcStream, held_bytes: int = 0) -> None:
        """Hold a large answer until the client has taken it; a small one is not counted."""
        stream.close()
        if not stream.has_ended:
            self._unended.append(stream.number)
        if held_bytes > SMALL_BYTES:
            stream.account.keep(held_bytes)
        elif stream.account.held_bytes:
            stream.settle()

    def _lose(self, stream: GrpcStream) -> None:
        """Give up a stream that the engine has ended, as it will tell in a moment."""
        self._http.reset(stream.number, ErrorCode.INTERNAL_ERROR)

    def _calm(self) -> None:
        self._ping_strikes = 0
        self._last_ping_s = None

    def take(self, most_bytes: int) -> bytes:
        """Return bytes for the client, as many as are wanted or there are."""
        try:
            data = self._http.take(most_bytes)
        except Http2Error:
            self.end()
            return b""
        for event in self._http.events():
            if type(event) is StreamClosed:
                self._close(event.stream_id)
            else:
                self._other(event, 0.0)
        if self._unended and len(data) < most_bytes and self._end_unended():
            data += self.take(most_bytes)
        return data

    def _end_unended(self) -> bool:
        """Tell clients that have all of their answer, and still send, that nobody listens."""
        streams = [self.streams[number] for number in self._unended if number in self.streams]
        listening = [stream for stream in streams if not stream.has_ended]
        ended = [stream for stream in listening if not self._http.unsent_bytes(stream.number)]
        self._unended = [stream.number for stream in listening if stream not in ended]
        for stream in ended:
            self._http.reset(stream.number, ErrorCode.NO_ERROR)
        return bool(ended)

    def unsent_bytes(self, stream: GrpcStream | None = None) -> int:
        """Return how much of an answer, or of all, the client has yet to make room for."""
        return self._http.unsent_bytes(None if stream is None else stream.number)

    def ping(self, content: bytes) -> None:
        """Ask the client for a sign of life; `pong` will be its answer."""
        self._http.ping(content)

    def announce_end(self) -> None:
        """Ask the client to begin no more calls; those on their way are still answered."""
        self._http.announce_end()

    def end_after_calls(self) -> None:
        """Begin no call any more; once all are answered the connection is over."""
        self._http.end_after_streams()


def _head(headers: dict[bytes, bytes]) -> _Head:
    if headers.get(b":method") != b"POST":
        return _Head(refusal=_WRONG_METHOD)
    if not headers.get(b"content-type", b"").startswith(_TYPE):
        return _Head(refusal=_WRONG_TYPE)
    path = headers.get(b":path", b"")
    if len(path) > _LONGEST_PATH_BYTES:
        return _refused(Code.UNIMPLEMENTED, "the method's name is too long")
    timeout, timeout_s = headers.get(b"grpc-timeout"), None
    if timeout is not None:
        timeout_s = _timeout_s(timeout)
        if timeout_s is None:
            return _refused(Code.INTERNAL, "grpc-timeout cannot be read")
    return _Head(path.decode("latin-1"), headers.get(b"grpc-encoding"), timeout_s)


def _refused(code: Code, details: str) -> _Head:
    return _Head(refusal=(*_HEADERS, *_status(code, details)))


def _timeout_s(text: bytes) -> float | None:
    """Return a `grpc-timeout` in seconds, None where it is none."""
    digits, unit = text[:-1], _UNITS_S.get(text[-1:])
    if unit is None or not digits.isdigit() or len(digits) > _MOST_TIMEOUT_DIGITS:
        return None
    return int(digits) * unit


def _status(code: Code, details: str) -> http2.Headers:
    return ((b"grpc-status", b"%d" % code), (b"grpc-message", _told(details)))


def _told(details: str) -> bytes:
    """Return details as they are sent: percent-encoded, and what is quoted need not be UTF-8.

    Source: tensorflow_serving/model_servers/grpc_status_util.cc, which cuts them.
    """
    text = encoded(details, errors="surrogateescape")
    if len(text) > _MOST_DETAILS_BYTES:
        text = text[:_MOST_DETAILS_BYTES] + _CUT
    return b"".join(_PERCENT[byte] for byte in text)


_PERCENT = [
    bytes([byte]) if 0x20 <= byte <= 0x7E and byte != ord("%") else b"%%%02X" % byte  # noqa: PLR2004
    for byte in range(256)
]
