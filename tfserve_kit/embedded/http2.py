"""HTTP/2 as a server speaks it, without sockets; the only module that knows `ngh2`.

`ngh2` binds libnghttp2, which frames, compresses headers, keeps windows and judges what peers send.
Its limits are set here, on purpose; what a client may do beyond them is for `grpc_protocol`.
"""

import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ngh2
from ngh2 import (
    ConnectionClosed,
    DataReceived,
    ErrorCode,
    PingAcknowledged,
    PingReceived,
    RequestReceived,
    SettingsReceived,
    StreamClosed,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)

from tfserve_kit.embedded.limits import MOST_METADATA_BYTES, MOST_STREAMS

__all__ = [
    "ConnectionClosed",
    "DataReceived",
    "ErrorCode",
    "Http2",
    "Http2Error",
    "Http2Limits",
    "PingAcknowledged",
    "PingReceived",
    "RequestReceived",
    "SettingsReceived",
    "StreamClosed",
    "StreamReset",
    "TrailersReceived",
    "WindowUpdated",
]

Headers = Sequence[tuple[bytes, bytes]]

# Streams that a client takes back: so many at once, and so many each second.
_MOST_RESETS = (10_000, 1_000)
# What a peer does that makes no sense, such as updates of windows that are closed: likewise.
_MOST_GLITCHES = (10_000, 330)
_MOST_HEADERS = 256
_MOST_CONTINUATIONS = 8
_MOST_SETTINGS = 32
# Acknowledgements that wait for a client that does not read.
_MOST_WAITING_ACKS = 1000
# What may be on its way to us: for one stream, and for all streams of a connection.
_STREAM_WINDOW_BYTES = 1 << 21
_CONNECTION_WINDOW_BYTES = 1 << 22
# What a peer without streams may have said while its session is let go.
_MOST_HEARD_BYTES = 512
# The GOAWAY for who goes beyond a limit: the library is silent then. Any stream may have been
# worked on (RFC 9113, 6.8).
_CALM_DOWN = struct.pack(">xHBBIII", 8, 7, 0, 0, (1 << 31) - 1, ErrorCode.ENHANCE_YOUR_CALM)


class Http2Error(Exception):
    """The peer broke the protocol or went too far; the connection is of no use any more."""


@dataclass(frozen=True, slots=True)
class Http2Limits:
    """What a peer may do.

    Attributes:
        most_streams: requests at the same time.
        most_header_bytes: size of a request's headers, as RFC 9113, 6.5.2 counts it.
    """

    most_streams: int = MOST_STREAMS
    most_header_bytes: int = MOST_METADATA_BYTES


class Http2:
    """The server's end of one connection: bytes in, events out; frames in, bytes out.

    A session of the library takes 10 KB. So it is let go while a peer that has begun no stream is
    silent: all it knows it has from the few bytes that were heard, and they are read once more.

    Args:
        limits: what the peer may do.
        is_greeted: it has been sent the beginning, which is the same for all that may do as much.
    """

    __slots__ = ("_heard", "_last_words", "_limits", "_session")

    def __init__(self, limits: Http2Limits, *, is_greeted: bool = False) -> None:
        self._limits = limits
        self._last_words = b""
        self._heard: bytes | None = b""  # None once it takes more than that to make the session
        self._session: ngh2.Connection | None = None if is_greeted else _session(limits)

    @property
    def _connection(self) -> ngh2.Connection:
        """The session, made where there is none yet, or none any more."""
        if self._session is None:
            self._session = _session(self._limits)
            self._session.receive_data(self._heard or b"")
            self._session.data_to_send()  # has been sent
            self._session.events()
        return self._session

    def _remember(self, data: bytes | bytearray | memoryview, events: list[Any]) -> None:
        heard = (self._heard or b"") + bytes(data[: _MOST_HEARD_BYTES + 1])
        is_used = any(type(event) is RequestReceived for event in events)
        self._heard = None if is_used or len(heard) > _MOST_HEARD_BYTES else heard

    @property
    def _acting(self) -> ngh2.Connection:
        """The session, for what the peer's bytes alone do not explain: it is kept from now on."""
        connection, self._heard = self._connection, None
        return connection

    def receive(self, data: bytes | bytearray | memoryview) -> list[Any]:
        """Take up bytes from the peer; return what they mean, and what was noticed before.

        Raises:
            Http2Error: hang up.
        """
        session = self._session or self._connection
        try:
            session.receive_data(data)
        except (ngh2.NGH2Error, MemoryError) as error:
            self._heard = None
            if isinstance(error, ngh2.DenialOfServiceError):
                self._last_words = _CALM_DOWN
            raise Http2Error(str(error)) from error
        events = session.events()
        if self._heard is not None:
            self._remember(data, events)
        return events

    def take(self, most_bytes: int) -> bytes:
        """Return bytes for the peer, as many as are wanted or there are now.

        Raises:
            Http2Error: hang up.
        """
        if self._session is None:
            return b""
        try:
            return self._session.data_to_send(most_bytes)
        except (ngh2.NGH2Error, MemoryError) as error:
            if self._last_words:
                last_words, self._last_words = self._last_words, b""
                return last_words
            raise Http2Error(str(error)) from error

    def events(self) -> list[Any]:
        """Return what was noticed while bytes were taken."""
        if self._session is None:
            return []
        events = self._session.events()
        if self._heard is not None and not self._session.want_write:
            self._session = None
        return events

    def respond(self, stream: int, headers: Headers, body: Sequence[bytes], end: Headers) -> None:
        """Answer with headers, body and trailers.

        Raises:
            Http2Error: the stream has ended meanwhile.
        """
        connection = self._session or self._connection
        try:  # not in three steps: every call comes by here
            connection.send_response(stream, headers)
            for piece in body:
                connection.send_data(stream, piece)
            connection.send_trailers(stream, end)
        except ngh2.NGH2Error as error:
            raise Http2Error(str(error)) from error

    def begin(self, stream: int, headers: Headers) -> None:
        """Answer with headers; a body follows, by and by. Raises as `respond`."""
        _checked(self._connection.send_response, stream, headers)

    def proceed(self, stream: int, body: bytes) -> None:
        """Go on with the body of an answer. Raises as `respond`."""
        _checked(self._connection.send_data, stream, body)

    def end(self, stream: int, trailers: Headers) -> None:
        """End an answer that has begun. Raises as `respond`."""
        _checked(self._connection.send_trailers, stream, trailers)

    def respond_at_once(self, stream: int, headers: Headers) -> None:
        """Answer with headers alone. Raises as `respond`."""
        _checked(self._connection.send_response, stream, headers, end_stream=True)

    def reset(self, stream: int, code: ErrorCode) -> None:
        """End a stream at once; nothing where the connection has ended."""
        with suppress(ngh2.NGH2Error):
            self._connection.reset_stream(stream, code)

    def ping(self, content: bytes) -> None:
        """Ask for a sign of life; nothing where the connection has ended."""
        with suppress(ngh2.NGH2Error):
            self._connection.ping(content)

    def announce_end(self) -> None:
        """Ask the peer to begin no more streams; those on their way are still served."""
        with suppress(ngh2.NGH2Error):
            self._acting.send_shutdown_notice()

    def end_after_streams(self) -> None:
        """Begin no stream after those that are known; then the connection ends."""
        with suppress(ngh2.NGH2Error):
            self._acting.send_goaway()

    def end_at_once(self, code: ErrorCode, text: bytes = b"") -> None:
        """Tell the peer why, and end; what is left to be sent is the last."""
        with suppress(ngh2.NGH2Error):
            if text:
                self._acting.send_goaway(code, debug_data=text)
            self._acting.terminate_connection(code)

    def unsent_bytes(self, stream: int | None = None) -> int:
        """Return how much of an answer, or of all, has not been taken."""
        return 0 if self._session is None else self._session.queued_body_size(stream)


def _session(limits: Http2Limits) -> ngh2.Connection:
    config = ngh2.Configuration(
        max_outbound_ack=_MOST_WAITING_ACKS,
        max_settings=_MOST_SETTINGS,
        stream_reset_rate_limit=_MOST_RESETS,
        max_continuations=_MOST_CONTINUATIONS,
        glitch_rate_limit=_MOST_GLITCHES,
        max_inbound_header_list_size=limits.most_header_bytes,
        max_inbound_header_count=_MOST_HEADERS,
    )
    session = ngh2.Connection(ngh2.Role.SERVER, config)
    setting = ngh2.Setting
    session.initiate_connection(
        {
            setting.MAX_CONCURRENT_STREAMS: limits.most_streams,
            setting.INITIAL_WINDOW_SIZE: _STREAM_WINDOW_BYTES,
            setting.MAX_HEADER_LIST_SIZE: limits.most_header_bytes,
        }
    )
    session.set_local_window_size(_CONNECTION_WINDOW_BYTES)
    return session


def _checked(send: Callable[..., object], *what: object, **how: object) -> None:
    try:
        send(*what, **how)
    except ngh2.NGH2Error as error:
        raise Http2Error(str(error)) from error
