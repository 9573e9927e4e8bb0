"""gRPC over HTTP/2 as a state machine: bytes in, answers and bytes out; no socket, no clock.

Of RFC 9113 what a client needs that sends unary calls. Answers are thrown away when they have been
judged; nothing a server sends makes it keep more of one than the limit, or raise anything but
`ProtocolError`.
"""

import struct
from collections.abc import Callable

from tfserve_kit.perf import statuses
from tfserve_kit.perf.samples import UNREADABLE_ANSWER
from tfserve_kit.perf.sending import frames, header_blocks
from tfserve_kit.perf.sending.frames import ProtocolError
from tfserve_kit.perf.sending.http2_outbox import PREFIX, Buffer, Outbox, Request
from tfserve_kit.perf.sending.http2_streams import (
    HTTP_OK,
    Block,
    Stream,
    status_without_trailers,
    stream_status,
)
from tfserve_kit.perf.sending.judging import Judges

# How much a server may send before we must say that it may go on.
_STREAM_WINDOW = 1 << 24
_CONNECTION_WINDOW = 1 << 30
_LAST_STREAM_ID = (1 << 31) - 1
_START = struct.Struct(">BHBBI")
_DATA_START = struct.Struct(">BHHIBI")  # with type and flags as one number, and a message's prefix
_LAST_HEADERS = frames.END_HEADERS | frames.END_STREAM
_GOOD_HEAD = header_blocks.Meta(HTTP_OK, None, "")
_GOOD_END = header_blocks.Meta(None, statuses.OK, "")


_Handler = Callable[[bytes, int, int], None]  # payload, flags, stream's id

# key, status of a sample, when the first byte came, when the last one did, length of the message
# without its prefix; a plain tuple, for tens of thousands are made in a second.
Answer = tuple[int, int, int, int, int]


class Connection:
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
        self._outbox = Outbox(frames.PREFACE + frames.settings(settings) + wide)
        self._keys: dict[int, int] = {}  # of all open streams
        self._begun: dict[int, Stream] = {}  # those of them whose answers have begun
        self._next_id = 1
        self._most_streams = frames.LARGEST_WINDOW
        self._unread = 0
        self._rest = b""
        self._block: Block | None = None
        self._reader = header_blocks.Reader()
        self._now_ns = 0
        self._answers: list[Answer] = []
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

    def start(self, key: int, request: Request) -> None:
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

    def receive(self, data: bytes, now_ns: int) -> list[Answer]:
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
        is_message = not kind_and_flags and other == stream_id and length == size + PREFIX.size
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
        now_ns, status = self._now_ns, statuses.OK
        if self._judge is not None:
            status = self._judged(key, data[last - size : last])
        self._answers.append((key, status, now_ns, now_ns, size))
        return stop

    def _judged(self, key: int, message: bytes) -> int:
        """Return the status of an answer that gRPC calls good."""
        status = self._judge(key, message) if self._judge else statuses.OK
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
        size = max(0, stream.received - PREFIX.size) if stream else 0
        if status == statuses.OK and self._judge is not None and stream:
            status = self._judged(key, bytes(memoryview(stream.body)[PREFIX.size :]))
        self._answers.append((key, status, first_ns, now_ns, size))
        if status:
            self.messages.setdefault(status, message)

    def _malformed(self, stream_id: int, why: str) -> None:
        """Report an answer that cannot be understood, while the connection can."""
        self._outbox.forget(stream_id)
        self._end(stream_id, UNREADABLE_ANSWER, why)
        self._outbox.reply(frames.reset(stream_id, frames.PROTOCOL_ERROR))

    def _is_open(self, stream_id: int) -> bool:
        """Say whether a stream is open; frames on their way to one that was are no fault."""
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
            stream.prefix += payload[: PREFIX.size]
            if len(stream.prefix) >= PREFIX.size:
                stream.expected = PREFIX.unpack_from(stream.prefix)[1] + PREFIX.size
        stream.received += len(payload)
        if self._judge is not None and (fault := stream.keep(payload, self._most)):
            self._malformed(stream_id, fault)
            return
        if flags & frames.END_STREAM:
            self._end(stream_id, status_without_trailers(stream), "an answer without a status")

    def _keep_open(self, stream_id: int, stream: Stream, size: int) -> None:
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
            self._block = Block(stream_id, flags & frames.END_STREAM, payload)

    def _on_continuation(self, payload: bytes, flags: int, stream_id: int) -> None:
        block = self._block
        if block is None or block.stream_id != stream_id:
            raise ProtocolError("a continuation of nothing")
        block.parts += payload
        block.count += 1
        if max(len(block.parts), block.count << 10) > header_blocks.MOST_BLOCK_BYTES:
            raise ProtocolError(f"more than {header_blocks.MOST_BLOCK_BYTES} bytes of headers")
        if flags & frames.END_HEADERS:
            self._block = None
            self._on_block(bytes(block.parts), stream_id, block.end_stream)

    def _on_block(self, block: bytes, stream_id: int, end_stream: int) -> None:
        meta = self._reader.read(block)  # in any case: later blocks depend on it
        if not self._is_open(stream_id):
            return
        stream = self._begun.get(stream_id)
        if stream is None:
            stream = self._begun[stream_id] = Stream(self._now_ns)
        if meta.http_status is not None and not stream.http_status:
            if meta.http_status < HTTP_OK and not end_stream:
                return  # it only announces the answer
            stream.http_status = meta.http_status
        elif not stream.http_status or not end_stream:
            self._malformed(stream_id, "an answer without a status, or with two")
            return
        if end_stream:
            self._end(stream_id, stream_status(stream, meta), meta.grpc_message)

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
            self._end(stream_id, statuses.of_reset(code), f"reset with HTTP/2's code {code}")

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
