"""What goes out on an HTTP/2 connection: requests as far as flow control lets them, and replies."""

import struct

from tfserve_kit.perf.sending import frames, header_blocks
from tfserve_kit.perf.sending.frames import ProtocolError

Buffer = bytes | memoryview

# A server that makes us answer, and does not read the answers, is cut off.
_MOST_REPLIES = 10_000
# Before each gRPC message: whether it is compressed, and its length.
PREFIX = struct.Struct(">BI")


class Request:
    """A request whose bytes are the same on each stream, but for the stream's id.

    Args:
        block: its header block, see `header_blocks.encoded`.
        body: the serialized message.
    """

    __slots__ = ("block", "message", "pieces", "window_bytes")

    def __init__(self, block: bytes, body: bytes) -> None:
        self.block = block
        self.message = PREFIX.pack(0, len(body)) + body
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


class Outbox:
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

    def start(self, stream_id: int, request: Request) -> None:
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
            block = header_blocks.NO_TABLE + block
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
