"""Our own gRPC client: a few HTTP/2 connections in one thread.

`_Http2Connection` is a state machine, bytes in, answers and bytes out, without socket and clock: of
RFC 9113 what a client needs that sends unary calls. Answers are thrown away when they have been
judged; nothing a server sends makes it keep more of one than the limit, or raise anything but
`ProtocolError`. `Http2Pool` drives connections over sockets. Why it is our own, in figures:
docs/adr/0009-own-http2-sender.md.
"""

import contextlib
import struct
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

from tfserve_kit.errors import ServerUnreachable
from tfserve_kit.perf import samples
from tfserve_kit.perf.load import Load, Payload
from tfserve_kit.perf.samples import CONNECTION_LOST, UNREADABLE_ANSWER
from tfserve_kit.perf.sending import frames
from tfserve_kit.perf.sending.frames import PROTOCOL_ERROR, ProtocolError, goaway
from tfserve_kit.perf.sending.judging import Judges
from tfserve_kit.perf.sending.pools import RETRY_NS, Finished
from tfserve_kit.perf.sending.sockets import READ, Buffer, Link, Readiness, resolve

# A server that makes us answer, and does not read the answers, is cut off.
_MOST_REPLIES = 10_000
# Before each gRPC message: whether it is compressed, and its length.
_PREFIX = struct.Struct(">BI")


class _Request:
    """A request whose bytes are the same on each stream, but for the stream's id.

    Args:
        block: its header block, see `frames.encoded`.
        body: the serialized message.
    """

    __slots__ = ("block", "message", "pieces", "window_bytes")

    def __init__(self, block: bytes, body: bytes) -> None:
        self.block = block
        self.message = _PREFIX.pack(0, len(body)) + body
        data_start = frames.start(
            len(self.message) & frames.LARGEST_MAX_FRAME, frames.DATA, frames.END_STREAM
        )
        # Joined with the stream's id, these are a HEADERS and a DATA frame.
        self.pieces = (
            frames.start(len(block), frames.HEADERS, frames.END_HEADERS),
            block + data_start,
            self.message,
        )
        # A block that takes more than a frame is never sent the short way.
        fits = len(block) <= frames.SMALLEST_MAX_FRAME
        self.window_bytes = len(self.message) if fits else frames.LARGEST_WINDOW + 1


class _Unsent:
    """What flow control has kept back of a request."""

    __slots__ = ("left", "window")

    def __init__(self, message: bytes, window: int) -> None:
        self.left = memoryview(message)
        self.window = window


class _Outbox:
    """The bytes to send on one connection, in order. Bodies are not copied.

    Args:
        opening: what every connection begins with.
    """

    def __init__(self, opening: bytes) -> None:
        self._pieces: list[Buffer] = [opening]
        self._replies = 0
        self._unsent: dict[int, _Unsent] = {}
        self._max_frame = frames.SMALLEST_MAX_FRAME
        self._first_window = frames.DEFAULT_WINDOW  # of each stream
        self._window = frames.DEFAULT_WINDOW  # of the connection
        self._is_new = True

    def take(self) -> list[Buffer]:
        """Return what must be sent now, and forget it."""
        found, self._pieces, self._replies = self._pieces, [], 0
        return found

    def start(self, stream_id: int, request: _Request) -> None:
        """Begin a request; as much of it as flow control allows goes out at once."""
        size = request.window_bytes
        if (
            size <= self._window
            and size <= self._first_window
            and size <= self._max_frame
            and not self._is_new
        ):
            self._window -= size
            self._pieces.append(stream_id.to_bytes(4, "big").join(request.pieces))
            return
        self._headers(stream_id, request.block)
        self._unsent[stream_id] = _Unsent(request.message, self._first_window)
        self._data()

    def reply(self, frame: bytes) -> None:
        """Send a frame that something the server sent gave rise to.

        Raises:
            ProtocolError: there are too many that it has not read.
        """
        self._replies += 1
        if self._replies > _MOST_REPLIES:
            raise ProtocolError("the server asks for answers and does not read them")
        self._pieces.append(frame)

    def forget(self, stream_id: int) -> bool:
        """Send no more of a request; say whether anything was left of it."""
        return self._unsent.pop(stream_id, None) is not None

    def clear(self) -> None:
        """Send no more of any request."""
        self._unsent.clear()

    def allow(self, name: int, value: int) -> None:
        """Take note of a setting of the server; `acknowledge` puts it to use.

        Raises:
            ProtocolError: its value is out of range.
        """
        if name == frames.MAX_FRAME_SIZE:
            if not frames.SMALLEST_MAX_FRAME <= value <= frames.LARGEST_MAX_FRAME:
                raise ProtocolError(f"frames of at most {value} bytes")
            self._max_frame = value
        elif name == frames.INITIAL_WINDOW_SIZE:
            if value > frames.LARGEST_WINDOW:
                raise ProtocolError(f"a window of {value} bytes")
            for unsent in self._unsent.values():
                unsent.window += value - self._first_window
            self._first_window = value

    def acknowledge(self) -> None:
        """Say that settings were noted; only then may anything go out that they first allow."""
        self.reply(frames.frame(frames.SETTINGS, frames.ACK, 0))
        self._data()

    def widen(self, stream_id: int, more: int) -> None:
        """Take note that the server takes more bytes, of a stream or (0) of the connection.

        Raises:
            ProtocolError: a window that does not grow, or grows beyond its bounds.
        """
        unsent = self._unsent.get(stream_id)
        if not stream_id:
            window = self._window = self._window + more
        elif unsent is not None:
            window = unsent.window = unsent.window + more
        else:
            window = more  # of a request that was sent, where it says nothing
        if not more or window > frames.LARGEST_WINDOW:
            raise ProtocolError(f"a window that grows by {more} to {window} bytes")
        if self._unsent:
            self._data()

    def _headers(self, stream_id: int, block: bytes) -> None:
        if self._is_new:
            block = frames.NO_TABLE + block
            self._is_new = False
        kind = frames.HEADERS
        for at in range(0, len(block), self._max_frame):
            part = block[at : at + self._max_frame]
            flags = frames.END_HEADERS if at + len(part) == len(block) else 0
            self._pieces.append(frames.frame(kind, flags, stream_id, part))
            kind = frames.CONTINUATION

    def _data(self) -> None:
        """Send what the windows allow of what they kept back; a shut stream blocks no other."""
        for stream_id, unsent in list(self._unsent.items()):
            while unsent.left and (size := min(self._window, unsent.window, self._max_frame)) > 0:
                part = unsent.left[:size]
                unsent.left = unsent.left[size:]
                unsent.window -= len(part)
                self._window -= len(part)
                flags = 0 if unsent.left else frames.END_STREAM
                start = frames.start(len(part), frames.DATA, flags)
                self._pieces += (start + stream_id.to_bytes(4, "big"), part)
            if not unsent.left:
                del self._unsent[stream_id]
            if self._window <= 0:
                return


_HTTP_OK = 200


class _Stream:
    """An answer that has begun."""

    __slots__ = ("body", "expected", "first_ns", "http_status", "prefix", "received", "unread")

    def __init__(self, first_ns: int) -> None:
        self.first_ns = first_ns
        self.http_status = 0
        self.prefix = b""
        self.body = bytearray()  # with its prefix, where it is to be judged
        self.expected = -1  # bytes of the message with its prefix
        self.received = 0
        self.unread = 0  # bytes received since the server was last told to go on

    def keep(self, payload: bytes, most: int) -> str:
        """Keep a part of the answer until it is judged; return why that cannot be."""
        if self.received - _PREFIX.size > most:
            return f"an answer of more than {most:,} bytes"
        if self.prefix[:1] == b"\1":
            return "a compressed answer that was not requested"
        self.body += payload
        return ""


class _Block:
    """Headers that go on in the next frame."""

    __slots__ = ("count", "end_stream", "parts", "stream_id")

    def __init__(self, stream_id: int, end_stream: int, start: bytes) -> None:
        self.stream_id = stream_id
        self.end_stream = end_stream
        self.parts = bytearray(start)
        self.count = 0  # frames may be empty, but not without end


def _status_without_trailers(stream: _Stream) -> int:
    """Return the status of a sample whose answer bears none."""
    if stream.http_status != _HTTP_OK:
        return samples.status_of_proxy(stream.http_status)
    return UNREADABLE_ANSWER


def _stream_status(stream: _Stream, meta: frames.Meta) -> int:
    """Return the status of a sample whose answer has ended with these trailers."""
    if meta.grpc_status is None:
        return _status_without_trailers(stream)
    if meta.grpc_status == samples.OK and stream.received != stream.expected:
        return UNREADABLE_ANSWER
    return meta.grpc_status


# How much a server may send before we must say that it may go on.
_STREAM_WINDOW = 1 << 24
_CONNECTION_WINDOW = 1 << 30
_LAST_STREAM_ID = (1 << 31) - 1
_START = struct.Struct(">BHBBI")
_DATA_START = struct.Struct(">BHHIBI")  # with type and flags as one number, and a message's prefix
_LAST_HEADERS = frames.END_HEADERS | frames.END_STREAM
_GOOD_HEAD = frames.Meta(_HTTP_OK, None, "")
_GOOD_END = frames.Meta(None, samples.OK, "")


_Handler = Callable[[bytes, int, int], None]  # payload, flags, stream's id


class _Http2Connection:
    """One connection, from its preface on. Not thread-safe.

    Args:
        judges: of what answers hold; None lets all pass.
        most: bytes that an answer may have.

    Attributes:
        messages: the first grpc-message that came with each status but OK.
        refused: keys of requests that the server will not handle; they can be sent elsewhere.
        is_greeted: whether the server's settings have come; requests wait for them.
        is_closing: whether the server has announced the end of the connection.
    """

    def __init__(self, judges: Judges | None = None, most: int = 1 << 30) -> None:
        self._judges, self._most = judges, most
        self._judge = judges.judge if judges else None
        self.messages: dict[int, str] = {}
        self.refused: list[int] = []
        self.is_greeted = False
        self.is_closing = False
        settings = {frames.ENABLE_PUSH: 0, frames.INITIAL_WINDOW_SIZE: _STREAM_WINDOW}
        wide = frames.window_update(0, _CONNECTION_WINDOW - frames.DEFAULT_WINDOW)
        self._outbox = _Outbox(frames.PREFACE + frames.settings(settings) + wide)
        self._keys: dict[int, int] = {}  # of all open streams
        self._begun: dict[int, _Stream] = {}  # those of them whose answers have begun
        self._next_id = 1
        self._most_streams = frames.LARGEST_WINDOW
        self._unread = 0
        self._rest = b""
        self._block: _Block | None = None
        self._reader = frames.Reader()
        self._now_ns = 0
        self._answers: list[Finished] = []
        self._handlers: dict[int, _Handler] = {
            frames.DATA: self._on_data,
            frames.HEADERS: self._on_headers,
            frames.RST_STREAM: self._on_reset,
            frames.SETTINGS: self._on_settings,
            frames.PUSH_PROMISE: self._on_push,
            frames.PING: self._on_ping,
            frames.GOAWAY: self._on_goaway,
            frames.WINDOW_UPDATE: self._on_window_update,
            frames.CONTINUATION: self._on_continuation,
        }

    @property
    def in_flight(self) -> int:
        """How many requests have no answer yet."""
        return len(self._keys)

    @property
    def is_spent(self) -> bool:
        """Whether no further request can be sent on this connection."""
        return self.is_closing or self._next_id > _LAST_STREAM_ID

    def room(self) -> int:
        """Return how many requests could be started now."""
        if self.is_closing or not self.is_greeted:
            return 0
        ids_left = (_LAST_STREAM_ID - self._next_id) // 2 + 1
        return max(0, min(self._most_streams - len(self._keys), ids_left))

    def start(self, key: int, request: _Request) -> None:
        """Send a request; there must be room.

        Args:
            key: what the answer is told apart by.
            request: what to send; as much as flow control allows goes out at once.
        """
        stream_id = self._next_id
        self._next_id = stream_id + 2
        self._keys[stream_id] = key
        self._outbox.start(stream_id, request)

    def cancel(self, keys: set[int]) -> None:
        """Reset the streams of requests; no answer to them will come."""
        for stream_id in [each for each, key in self._keys.items() if key in keys]:
            self._close(stream_id)
            self._outbox.reply(frames.reset(stream_id, frames.CANCEL))

    def unanswered(self) -> list[int]:
        """Return the keys of all requests without an answer, and forget them."""
        keys = list(self._keys.values())
        self._keys.clear()
        self._begun.clear()
        self._outbox.clear()
        return keys

    def outgoing(self) -> list[Buffer]:
        """Return what must be sent now, and forget it."""
        return self._outbox.take()

    def receive(self, data: bytes, now_ns: int) -> list[Finished]:
        """Take what the server has sent.

        Args:
            data: any number of bytes.
            now_ns: when they came.

        Returns:
            The requests that ended with it.

        Raises:
            ProtocolError: the connection is of no further use.
        """
        self._now_ns, self._answers = now_ns, []
        if self._rest:
            data = self._rest + data
        at, end, handlers = 0, len(data), self._handlers
        while end - at >= frames.HEADER_BYTES:
            high, low, kind, flags, stream_id = _START.unpack_from(data, at)
            length = high << 16 | low
            if not self.is_greeted or length > frames.SMALLEST_MAX_FRAME or self._block:
                self._check_frame(length, kind)
            if kind == frames.HEADERS and (stop := self._whole(data, at)):
                at = stop
                continue
            if end - at - frames.HEADER_BYTES < length:
                break
            at += frames.HEADER_BYTES
            handler = handlers.get(kind)
            if handler is not None:
                handler(data[at : at + length], flags, stream_id & _LAST_STREAM_ID)
            at += length
        self._rest = data[at:]
        return self._answers

    def _check_frame(self, length: int, kind: int) -> None:
        if not self.is_greeted and kind != frames.SETTINGS:
            raise ProtocolError("the server does not begin with its settings")
        if length > frames.SMALLEST_MAX_FRAME:
            raise ProtocolError(f"a frame of {length} bytes, which is more than we take")
        if self._block and kind != frames.CONTINUATION:
            raise ProtocolError("a block of headers is interrupted")

    def _whole(self, data: bytes, at: int) -> int:
        """Take an answer that lies there whole, as three frames whose headers were seen before.

        So come most answers. This is the quick way through `_on_headers`, `_on_data` and
        `_on_headers`; whatever is in the least unusual is left to them.

        Args:
            data: what came.
            at: where a HEADERS frame begins.

        Returns:
            Where the answer ends; 0 if it was not taken.
        """
        end, known = len(data), self._reader.known
        high, low, _, flags, stream_id = _START.unpack_from(data, at)
        middle = at + frames.HEADER_BYTES + (high << 16 | low)
        if flags != frames.END_HEADERS or end - middle < _DATA_START.size:
            return 0
        head = known.get(data[at + frames.HEADER_BYTES : middle])
        high, low, kind_and_flags, other, packed, size = _DATA_START.unpack_from(data, middle)
        length = high << 16 | low
        last = middle + frames.HEADER_BYTES + length
        is_message = not kind_and_flags and other == stream_id and length == size + _PREFIX.size
        if head != _GOOD_HEAD or not is_message or packed or end - last < frames.HEADER_BYTES:
            return 0
        high, low, kind, flags, other = _START.unpack_from(data, last)
        stop: int = last + frames.HEADER_BYTES + (high << 16 | low)
        is_last = kind == frames.HEADERS and flags == _LAST_HEADERS and other == stream_id
        if not is_last or stop > end:
            return 0
        trailers = known.get(data[last + frames.HEADER_BYTES : stop])
        if trailers != _GOOD_END or stream_id in self._begun or stream_id not in self._keys:
            return 0
        key = self._keys.pop(stream_id)
        self._count(length)
        if self._outbox.forget(stream_id):
            self._outbox.reply(frames.reset(stream_id, frames.CANCEL))
        now_ns, status = self._now_ns, samples.OK
        if self._judge is not None:
            status = self._judged(key, data[last - size : last])
        self._answers.append((key, status, now_ns, now_ns, size))
        return stop

    def _judged(self, key: int, message: bytes) -> int:
        """Return the status of an answer that gRPC calls good."""
        status = self._judge(key, message) if self._judge else samples.OK
        if status and self._judges:
            self.messages.setdefault(status, self._judges.why)
        return status

    def _count(self, length: int) -> None:
        """Note that a DATA frame has come; let the server go on in time."""
        self._unread += length
        if self._unread > _CONNECTION_WINDOW // 2:
            self._outbox.reply(frames.window_update(0, self._unread))
            self._unread = 0

    def _close(self, stream_id: int) -> bool:
        """Forget a stream; say whether something of its request was not sent yet."""
        self._keys.pop(stream_id)
        self._begun.pop(stream_id, None)
        return self._outbox.forget(stream_id)

    def _end(self, stream_id: int, status: int, message: str = "") -> None:
        """Report the end of a stream; what was not sent of its request stays unsent."""
        key, stream, now_ns = self._keys[stream_id], self._begun.get(stream_id), self._now_ns
        if self._close(stream_id):
            self._outbox.reply(frames.reset(stream_id, frames.CANCEL))
        first_ns = stream.first_ns if stream else now_ns
        size = max(0, stream.received - _PREFIX.size) if stream else 0
        if status == samples.OK and self._judge is not None and stream:
            status = self._judged(key, bytes(memoryview(stream.body)[_PREFIX.size :]))
        self._answers.append((key, status, first_ns, now_ns, size))
        if status:
            self.messages.setdefault(status, message)

    def _malformed(self, stream_id: int, why: str) -> None:
        """Report an answer that cannot be understood, while the connection can."""
        self._outbox.forget(stream_id)
        self._end(stream_id, UNREADABLE_ANSWER, why)
        self._outbox.reply(frames.reset(stream_id, frames.PROTOCOL_ERROR))

    def _is_open(self, stream_id: int) -> bool:
        """Say whether a stream is open; frames for one that was open are allowed."""
        if stream_id in self._keys:
            return True
        if stream_id % 2 == 0 or stream_id >= self._next_id:
            raise ProtocolError(f"a frame for stream {stream_id}, which was never opened")
        return False

    def _on_data(self, payload: bytes, flags: int, stream_id: int) -> None:
        is_open = self._is_open(stream_id)
        self._count(len(payload))
        if not is_open:
            return
        stream = self._begun.get(stream_id)
        if stream is None or not stream.http_status:
            self._malformed(stream_id, "an answer without headers")
            return
        self._keep_open(stream_id, stream, len(payload))
        if flags & frames.PADDED:
            payload = frames.unpadded(payload, frames.PADDED)
        if stream.expected < 0:
            stream.prefix += payload[: _PREFIX.size]
            if len(stream.prefix) >= _PREFIX.size:
                stream.expected = _PREFIX.unpack_from(stream.prefix)[1] + _PREFIX.size
        stream.received += len(payload)
        if self._judge is not None and (fault := stream.keep(payload, self._most)):
            self._malformed(stream_id, fault)
            return
        if flags & frames.END_STREAM:
            self._end(stream_id, _status_without_trailers(stream), "an answer without a status")

    def _keep_open(self, stream_id: int, stream: _Stream, size: int) -> None:
        stream.unread += size
        if stream.unread > _STREAM_WINDOW // 2:
            self._outbox.reply(frames.window_update(stream_id, stream.unread))
            stream.unread = 0

    def _on_headers(self, payload: bytes, flags: int, stream_id: int) -> None:
        if flags & (frames.PADDED | frames.PRIORITY):
            payload = frames.unpadded(payload, flags)
        if flags & frames.END_HEADERS:
            self._on_block(payload, stream_id, flags & frames.END_STREAM)
        else:
            self._block = _Block(stream_id, flags & frames.END_STREAM, payload)

    def _on_continuation(self, payload: bytes, flags: int, stream_id: int) -> None:
        block = self._block
        if block is None or block.stream_id != stream_id:
            raise ProtocolError("a continuation of nothing")
        block.parts += payload
        block.count += 1
        if max(len(block.parts), block.count << 10) > frames.MOST_BLOCK_BYTES:
            raise ProtocolError(f"more than {frames.MOST_BLOCK_BYTES} bytes of headers")
        if flags & frames.END_HEADERS:
            self._block = None
            self._on_block(bytes(block.parts), stream_id, block.end_stream)

    def _on_block(self, block: bytes, stream_id: int, end_stream: int) -> None:
        meta = self._reader.read(block)  # in any case: later blocks depend on it
        if not self._is_open(stream_id):
            return
        stream = self._begun.get(stream_id)
        if stream is None:
            stream = self._begun[stream_id] = _Stream(self._now_ns)
        if meta.http_status is not None and not stream.http_status:
            if meta.http_status < _HTTP_OK and not end_stream:
                return  # it only announces the answer
            stream.http_status = meta.http_status
        elif not stream.http_status or not end_stream:
            self._malformed(stream_id, "an answer without a status, or with two")
            return
        if end_stream:
            self._end(stream_id, _stream_status(stream, meta), meta.grpc_message)

    def _on_reset(self, payload: bytes, flags: int, stream_id: int) -> None:
        del flags
        code = frames.number(payload)
        if not self._is_open(stream_id):
            return
        self._outbox.forget(stream_id)
        if code == frames.REFUSED_STREAM:
            self.refused.append(self._keys[stream_id])
            self._close(stream_id)
        else:
            self._end(stream_id, samples.status_of_reset(code), f"reset with HTTP/2's code {code}")

    def _on_settings(self, payload: bytes, flags: int, stream_id: int) -> None:
        if stream_id or (flags & frames.ACK and payload):
            raise ProtocolError("settings of a stream, or in an acknowledgement")
        if flags & frames.ACK:
            return
        for name, value in frames.read_settings(payload):
            if name == frames.MAX_CONCURRENT_STREAMS:
                self._most_streams = value
            else:
                self._outbox.allow(name, value)
        self.is_greeted = True
        self._outbox.acknowledge()

    def _on_push(self, payload: bytes, flags: int, stream_id: int) -> None:
        del payload, flags
        raise ProtocolError(f"a push on stream {stream_id}, which our settings forbid")

    def _on_ping(self, payload: bytes, flags: int, stream_id: int) -> None:
        if stream_id or len(payload) != 8:  # noqa: PLR2004 (by definition)
            raise ProtocolError("a malformed ping")
        if not flags & frames.ACK:
            self._outbox.reply(frames.frame(frames.PING, frames.ACK, 0, payload))

    def _on_goaway(self, payload: bytes, flags: int, stream_id: int) -> None:
        del flags
        if stream_id or len(payload) < 8:  # noqa: PLR2004 (two numbers)
            raise ProtocolError("a malformed goodbye")
        self.is_closing = True
        last_id = frames.number(payload[:4]) & _LAST_STREAM_ID
        for each in [each for each in self._keys if each > last_id]:
            self.refused.append(self._keys[each])
            self._close(each)

    def _on_window_update(self, payload: bytes, flags: int, stream_id: int) -> None:
        del flags
        more = frames.number(payload) & frames.LARGEST_WINDOW
        if not stream_id or self._is_open(stream_id):
            self._outbox.widen(stream_id, more)


# How often a request that was turned away is sent again. A busy server counts a stream for a while
# after its client has seen the end of it, and then turns the next one away several times.
_MOST_MOVES = 20
_SECOND_NS = 1_000_000_000
_POLL_S = 0.05


class _PooledConnection:
    """One of the connections that are kept up: what it is now, and when to try again.

    Attributes:
        link: the socket, None after it was lost.
        connection: what is said over it.
        retry_ns: not before this time may it be made anew.
    """

    __slots__ = ("connection", "link", "retry_ns")

    def __init__(self, connection: _Http2Connection) -> None:
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
    """

    replicas = None

    def __init__(self, load: Load, payloads: Sequence[Payload]) -> None:
        host, port = load.address
        self.notes: dict[int, str] = {}
        self.judges = Judges(payloads, is_rest=False)
        self._most_bytes = load.options.max_answer_bytes
        self.sends_at_once = False
        self._where = f"{host}:{port}"
        self._address: tuple[int, Any] = resolve(host, port)
        self._requests = [_request(self._where, payload, load.timeout_s) for payload in payloads]
        self._readiness = Readiness()
        self._lines = [_PooledConnection(self._connection()) for _ in range(load.connections)]
        self._draining: set[_PooledConnection] = set()
        self._waiting: deque[int] = deque()
        self._moves: Counter[int] = Counter()
        self._finished: list[Finished] = []

    def open(self, timeout_s: float) -> None:
        """Connect and exchange settings; see `Pool.open`."""
        end_ns = time.monotonic_ns() + round(timeout_s * _SECOND_NS)
        self._reconnect(time.monotonic_ns())
        while not all(line.connection.is_greeted for line in self._lines):
            if time.monotonic_ns() > end_ns or any(line.link is None for line in self._lines):
                raise ServerUnreachable(
                    f"{self._where} does not speak gRPC (HTTP/2 in plain text)",
                    remedy="check that this is a model server's gRPC port, usually 8500; for its "
                    "REST port write http://",
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
            timeout_s = min(timeout_s, max(0, min(retries_ns) - time.monotonic_ns()) / _SECOND_NS)
        for link, events in self._readiness.wait(timeout_s):
            self._serve(link.owner, link, events)
        if retries_ns:
            self._reconnect(time.monotonic_ns())
        if self._waiting:
            self._deal()
        self.flush()
        found, self._finished = self._finished, []
        return found

    def fileno(self) -> int:
        """Return the file that can be read when `wait` has something to do."""
        return self._readiness.fileno()

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

    def _all(self) -> list[_PooledConnection]:
        return [*self._lines, *self._draining] if self._draining else self._lines

    def _serve(self, line: _PooledConnection, link: Link, events: int) -> None:
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

    def _read(self, line: _PooledConnection, link: Link) -> None:
        data = link.read()
        if data is None:
            return
        connection = line.connection
        now_ns = time.monotonic_ns()
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
                self.notes.setdefault(samples.UNAVAILABLE, "the server refuses requests")
                self._finished.append((key, samples.UNAVAILABLE, now_ns, now_ns, 0))
            else:
                self._waiting.appendleft(key)
        refused.clear()

    def _replace(self, line: _PooledConnection) -> None:
        """Leave a connection to its last answers, and put another in its place."""
        if line in self._draining:
            if not line.connection.in_flight:
                self._lose(line, CONNECTION_LOST)
            return
        self._lines[self._lines.index(line)] = _PooledConnection(self._connection())
        if line.connection.in_flight:
            self._draining.add(line)
        elif line.link is not None:
            self.flush()
            line.link.close()
            line.link = None
        self._reconnect(time.monotonic_ns())

    def _lose(self, line: _PooledConnection, status: int) -> None:
        """End what was on a connection that is no more."""
        now_ns = time.monotonic_ns()
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

    def _connection(self) -> _Http2Connection:
        return _Http2Connection(self.judges, self._most_bytes)

    def _say_goodbye(self, link: Link) -> None:
        with contextlib.suppress(OSError):  # it is lost anyway
            link.write([goaway(PROTOCOL_ERROR)])


def _in_flight(connection: _Http2Connection) -> int:
    return connection.in_flight


def _request(authority: str, payload: Payload, timeout_s: float) -> _Request:
    """Return a payload with the headers of gRPC (its PROTOCOL-HTTP2.md)."""
    headers = (
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        (b"user-agent", b"tfkit-perf"),
        (b"grpc-timeout", b"%dm" % min(99_999_999, max(1, round(timeout_s * 1000)))),
        *payload.headers,
    )
    return _Request(frames.encoded(authority, payload.path, headers), payload.body)
