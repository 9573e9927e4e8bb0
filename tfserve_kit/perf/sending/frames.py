"""The frames of HTTP/2, from numbers to bytes (RFC 9113)."""

import struct
from typing import Final

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA: Final = 0
HEADERS: Final = 1
RST_STREAM: Final = 3
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9

END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
PRIORITY: Final = 0x20

# Settings
MAX_CONCURRENT_STREAMS: Final = 3
INITIAL_WINDOW_SIZE: Final = 4
MAX_FRAME_SIZE: Final = 5
ENABLE_PUSH: Final = 2

# Error codes
NO_ERROR: Final = 0
PROTOCOL_ERROR: Final = 1
REFUSED_STREAM: Final = 7
CANCEL: Final = 8

HEADER_BYTES = 9
SMALLEST_MAX_FRAME = 16_384
LARGEST_MAX_FRAME = (1 << 24) - 1
LARGEST_WINDOW = (1 << 31) - 1
DEFAULT_WINDOW = 65_535

_START = struct.Struct(">BHBB")  # length (24 bits), type, flags; the stream's id follows
_NUMBER = struct.Struct(">I")
_SETTING = struct.Struct(">HI")


class ProtocolError(Exception):
    """The server does not speak the protocol."""


def start(length: int, kind: int, flags: int) -> bytes:
    """Return the first five bytes of a frame; the stream's id and the payload follow."""
    return _START.pack(length >> 16, length & 0xFFFF, kind, flags)


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """Return a whole frame."""
    return start(len(payload), kind, flags) + _NUMBER.pack(stream_id) + payload


def settings(values: dict[int, int]) -> bytes:
    """Return a SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(*item) for item in values.items()))


def read_settings(payload: bytes) -> list[tuple[int, int]]:
    """Return the settings of a frame, in order.

    Raises:
        ProtocolError: its length is none of a list of settings.
    """
    if len(payload) % _SETTING.size:
        raise ProtocolError(f"a SETTINGS frame of {len(payload)} bytes")
    return list(_SETTING.iter_unpack(payload))


def window_update(stream_id: int, bytes_more: int) -> bytes:
    """Return a frame that lets the other side send more."""
    return frame(WINDOW_UPDATE, 0, stream_id, _NUMBER.pack(bytes_more))


def reset(stream_id: int, code: int) -> bytes:
    """Return a frame that ends a stream at once."""
    return frame(RST_STREAM, 0, stream_id, _NUMBER.pack(code))


def goaway(code: int) -> bytes:
    """Return a frame that ends a connection; none of the other side's streams was handled."""
    return frame(GOAWAY, 0, 0, _NUMBER.pack(0) + _NUMBER.pack(code))


def number(payload: bytes) -> int:
    """Return the 32-bit number that a frame consists of.

    Raises:
        ProtocolError: it has another length.
    """
    if len(payload) != _NUMBER.size:
        raise ProtocolError(f"a frame of {len(payload)} bytes where four belong")
    value: int = _NUMBER.unpack(payload)[0]
    return value


def unpadded(payload: bytes, flags: int) -> bytes:
    """Return the payload of a DATA or HEADERS frame without padding and priority.

    Raises:
        ProtocolError: there is more padding than frame.
    """
    if flags & PADDED:
        if not payload or payload[0] >= len(payload):
            raise ProtocolError("more padding than frame")
        payload = payload[1 : len(payload) - payload[0]]
    if flags & PRIORITY:
        if len(payload) < 5:  # noqa: PLR2004 (the stream it depends on, and a weight)
            raise ProtocolError("a frame too short for its priority")
        payload = payload[5:]
    return payload
