"""The frames of HTTP/2 (RFC 9113) and their header blocks (HPACK, RFC 7541), as bytes.

Header blocks are written to be reused, and read as rarely as possible.
"""

import struct
from collections.abc import Iterable
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

import hpack

from tfserve_kit.perf import samples

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


_LAST_CODE = 16
MOST_BLOCK_BYTES = 1 << 16
_MOST_KNOWN = 64
# Static table: `:method: POST`, `:scheme: http`, and the names that have an index there.
_POST, _HTTP = b"\x83", b"\x86"
_INDEX = {b":authority": 1, b":path": 4, b"content-type": 31, b"user-agent": 58}
# "The table has size 0 from now on": then no later change of its size concerns us.
NO_TABLE = b"\x20"


class Meta(NamedTuple):
    """What matters in a block of headers.

    Attributes:
        http_status: `:status`; None in trailers.
        grpc_status: None if there is none yet.
        grpc_message: as text, empty if there is none.
    """

    http_status: int | None
    grpc_status: int | None
    grpc_message: str


def encoded(authority: str, path: str, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the header block of a POST request over plain text.

    It neither reads nor changes the table of the connection: it is the same for every request.
    """
    pairs = [(b":authority", authority.encode()), (b":path", path.encode()), *headers]
    return _POST + _HTTP + b"".join(_literal(name, value) for name, value in pairs)


def _literal(name: bytes, value: bytes) -> bytes:
    """Return a header as "literal without indexing", without Huffman coding."""
    index = _INDEX.get(name)
    start = b"\x00" + _text(name) if index is None else _integer(index, 4)
    return start + _text(value)


def _text(value: bytes) -> bytes:
    return _integer(len(value), 7) + value


def _integer(value: int, bits: int) -> bytes:
    most = (1 << bits) - 1
    if value < most:
        return bytes((value,))
    value -= most
    found = bytearray((most,))
    while value > 0x7F:  # noqa: PLR2004 (seven bits a byte)
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


class Reader:
    """Reads the header blocks of one connection, each of which may depend on those before it.

    Answers to the same request mostly have the same blocks. A block that does not change the
    table means the same as long as no other one changes it, and is decoded only once.

    Attributes:
        known: what blocks mean that were read and can be told by their bytes.
    """

    def __init__(self) -> None:
        self._decoder = hpack.Decoder(max_header_list_size=MOST_BLOCK_BYTES)
        self.known: dict[bytes, Meta] = {}

    def read(self, block: bytes) -> Meta:
        """Return what a whole block says.

        Raises:
            ProtocolError: it cannot be decoded.
        """
        found = self.known.get(block)
        if found is not None:
            return found
        try:
            pairs = self._decoder.decode(block, raw=True)
        except (hpack.HPACKError, ValueError, IndexError, OverflowError) as error:
            raise ProtocolError(f"headers that cannot be decoded: {error}") from error
        found = _meta(pairs)
        if not leaves_table(block):
            self.known.clear()
        elif len(self.known) < _MOST_KNOWN:
            self.known[block] = found
        return found


def leaves_table(block: bytes) -> bool:
    """Say whether a well-formed block leaves the decoder's table as it was."""
    at = 0
    while at < len(block):
        first = block[at]
        if first & 0x80:  # an entry of the table
            _, at = _read_integer(block, at, 7)
        elif first & 0x60:  # a literal that is added to the table, or a new size of it
            return False
        else:
            index, at = _read_integer(block, at, 4)
            for _ in range(1 if index else 2):
                length, at = _read_integer(block, at, 7)
                at += length
    return True


def _read_integer(block: bytes, at: int, bits: int) -> tuple[int, int]:
    most = (1 << bits) - 1
    value = block[at] & most
    at += 1
    shift = 0
    while value >= most:
        byte = block[at]
        at += 1
        value += (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:  # noqa: PLR2004 (the top bit says that more follows)
            break
    return value, at


def _meta(pairs: Iterable[tuple[bytes, bytes]]) -> Meta:
    values = {bytes(name): bytes(value) for name, value in pairs}
    message = unquote_to_bytes(values.get(b"grpc-message", b"")).decode("utf-8", "replace")
    return Meta(_http_status(values.get(b":status")), _code(values.get(b"grpc-status")), message)


def _http_status(text: bytes | None) -> int | None:
    if text is None:
        return None
    if not (text.isdigit() and len(text) == 3):  # noqa: PLR2004 (all statuses of HTTP)
        raise ProtocolError(f"an HTTP status of {text[:20]!r}")
    return int(text)


def _code(text: bytes | None) -> int | None:
    """Return a gRPC status; one that nobody knows is UNKNOWN."""
    if text is None:
        return None
    known = text.isdigit() and len(text) <= 2 and int(text) <= _LAST_CODE  # noqa: PLR2004
    return int(text) if known else samples.UNKNOWN
