"""HTTP/2 and gRPC on a real port, rule by rule: what is sent, and what must come back.

A row names the section of RFC 9113, of RFC 7541 (`hpack`) or of gRPC's PROTOCOL-HTTP2.md (`grpc`)
that it is about. The client writes frames itself, so that it can break every rule; hpack, another
implementation, reads the server's headers. After each row that is no breach of the connection a
further call on the same connection is answered.
"""

import gzip
import re
import socket
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.torture.attackers import frame
from tests.unit.embedded.flows import flowing
from tfserve_kit.embedded import http2
from tfserve_kit.embedded.grpc_surface import GrpcAnswer
from tfserve_kit.embedded.grpc_transport import GrpcServer, Ports
from tfserve_kit.embedded.http2 import Http2, Http2Limits
from tfserve_kit.embedded.lanes import Lanes
from tfserve_kit.embedded.ledger import Ledger
from tfserve_kit.embedded.status import Code

PATIENCE_S = 10.0
PROBE = 100_001
MAGIC = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
(
    DATA,
    HEADERS,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    PUSH_PROMISE,
    PING,
    GOAWAY,
    WINDOW_UPDATE,
    CONTINUATION,
) = range(10)
UNKNOWN = 0x16
ACK = END_STREAM = 0x1
END_HEADERS, PADDED, PRIORITIZED = 0x4, 0x8, 0x20
(
    NO_ERROR,
    PROTOCOL_ERROR,
    INTERNAL_ERROR,
    FLOW_CONTROL_ERROR,
    SETTINGS_TIMEOUT,
    STREAM_CLOSED,
    FRAME_SIZE_ERROR,
    REFUSED_STREAM,
    CANCEL,
    COMPRESSION_ERROR,
    CONNECT_ERROR,
    ENHANCE_YOUR_CALM,
) = range(12)
TABLE_SIZE, ENABLE_PUSH, MOST_STREAMS, WINDOW_SIZE, FRAME_SIZE, HEADER_SIZE = range(1, 7)
MOST_FRAME_BYTES = 1 << 14
MOST_WINDOW = (1 << 31) - 1


# What a client writes


def literal(name, value, kind=0x00):
    """A header field that leaves no trace in the table, unless `kind` is 0x40."""
    return bytes([kind]) + text(name) + text(value)


def text(content):
    return number(len(content), 7) + content


def number(value, bits, first=0):
    """An integer with a prefix of so many bits (RFC 7541, 5.1)."""
    most = (1 << bits) - 1
    if value < most:
        return bytes([first | value])
    found, value = [first | most], value - most
    while value >= 128:
        found.append(value % 128 + 128)
        value //= 128
    return bytes([*found, value])


USUAL = {
    b":method": b"POST",
    b":scheme": b"http",
    b":path": b"/a.B/C",
    b":authority": b"a",
    b"content-type": b"application/grpc",
    b"te": b"trailers",
}


def block(*more, without=(), before=(), **changed):
    """The usual headers of a call as a block, some of them changed, left out or added."""
    usual = dict(USUAL)
    for name, value in changed.items():
        spelled = name.replace("_", "-").encode()
        usual[b":" + spelled if b":" + spelled in USUAL else spelled] = value
    kept = [each for each in usual.items() if each[0] not in without]
    return b"".join(literal(*each) for each in (*before, *kept, *more))


def opened(content=None, *, stream=1, flags=END_HEADERS):
    return frame(HEADERS, flags, stream, block() if content is None else content)


def message(content=b"x", flag=0):
    return bytes([flag]) + len(content).to_bytes(4, "big") + content


def data(content=None, *, stream=1, flags=END_STREAM):
    return frame(DATA, flags, stream, message() if content is None else content)


def call(*more, stream=1, content=None, **changed):
    """A whole call."""
    return opened(block(*more, **changed), stream=stream) + data(content, stream=stream)


def settings(*pairs):
    payload = b"".join(name.to_bytes(2, "big") + value.to_bytes(4, "big") for name, value in pairs)
    return frame(SETTINGS, 0, 0, payload)


def windows(increment, stream=0):
    return frame(WINDOW_UPDATE, 0, stream, increment.to_bytes(4, "big"))


def reset(code=CANCEL, stream=1):
    return frame(RST_STREAM, 0, stream, code.to_bytes(4, "big"))


# What a server says


@dataclass
class Heard:
    """What came back: frames as (kind, flags, stream, payload), headers and bodies by stream."""

    frames: list = field(default_factory=list)
    headers: dict = field(default_factory=dict)
    bodies: dict = field(default_factory=dict)
    ended: set = field(default_factory=set)
    is_closed: bool = False

    def payloads(self, kind, stream=0):
        return [each[3] for each in self.frames if (each[0], each[2]) == (kind, stream)]

    def codes(self, kind, stream=0):
        """The error codes in these frames: RST_STREAM or GOAWAY."""
        at = 4 if kind == GOAWAY else 0
        return [int.from_bytes(each[at : at + 4], "big") for each in self.payloads(kind, stream)]


class Peer:
    """A client that writes what it is given, and remembers what it hears."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
        self.heard, self.decoder, self._left = Heard(), hpack.Decoder(), b""

    def send(self, content):
        try:
            self.socket.sendall(content)
        except ConnectionError:
            self.heard.is_closed = True

    def listen(self, until):
        """Read until something is so, or the connection has ended."""
        end_s = time.monotonic() + PATIENCE_S
        while not until(self.heard) and not self.heard.is_closed:
            assert time.monotonic() < end_s, self.heard
            try:
                arrived = self.socket.recv(1 << 16)
            except ConnectionError:
                arrived = b""
            self.heard.is_closed = not arrived
            self._left += arrived
            self._take()

    def _take(self):
        while len(self._left) >= 9:
            size = int.from_bytes(self._left[:3], "big")
            if len(self._left) < 9 + size:
                return
            head, payload = self._left[:9], self._left[9 : 9 + size]
            self._left = self._left[9 + size :]
            self._note(head[3], head[4], int.from_bytes(head[5:9], "big"), payload)

    def _note(self, kind, flags, stream, payload):
        heard = self.heard
        heard.frames.append((kind, flags, stream, payload))
        if kind == HEADERS:
            assert flags & END_HEADERS
            heard.headers.setdefault(stream, []).extend(self.decoder.decode(payload, raw=True))
        elif kind == DATA:
            heard.bodies[stream] = heard.bodies.get(stream, b"") + payload
        elif kind == SETTINGS and not flags & ACK:
            self.send(frame(SETTINGS, ACK, 0))
        if kind in {DATA, HEADERS} and flags & END_STREAM:
            heard.ended.add(stream)


# What a row expects. A breach of the connection is answered with GOAWAY, and the end.


@dataclass(frozen=True)
class Expected:
    """What must be heard.

    Attributes:
        holds: whether it has been.
        ends: whether the connection has to end with it.
        stays: whether it must hold after a further call too.
    """

    holds: Callable[[Heard], object]
    ends: bool = False
    stays: bool = False


def goaway(*codes):
    """A connection error with one of these codes."""
    return Expected(lambda heard: set(heard.codes(GOAWAY)) & set(codes), ends=True)


def rst(*codes, stream=1):
    """A stream error with one of these codes; the connection goes on."""
    return Expected(
        lambda heard: (
            set(heard.codes(RST_STREAM, stream)) & set(codes) and not heard.bodies.get(stream)
        )
    )


def answered(body=b"/a.B/C x", *, stream=1):
    """The call on a stream succeeds with this body."""

    def holds(heard):
        told = dict(heard.headers.get(stream, ()))
        return (
            stream in heard.ended
            and (told[b":status"], told[b"content-type"]) == (b"200", b"application/grpc")
            and told.get(b"grpc-status") == b"0"
            and heard.bodies.get(stream) == message(body)
        )

    return Expected(holds)


def failed(code, details=b"", *, stream=1):
    """The call on a stream fails, with headers alone: Trailers-Only."""

    def holds(heard):
        told = dict(heard.headers.get(stream, ()))
        return (
            stream in heard.ended
            and stream not in heard.bodies
            and list(told)[:2] == [b":status", b"content-type"]
            and told[b":status"] == b"200"
            and told[b"grpc-status"] == b"%d" % code
            and re.fullmatch(details or b".*", told[b"grpc-message"])
            and len([each for each in heard.frames if each[:3:2] == (HEADERS, stream)]) == 1
        )

    return Expected(holds)


def http(status, *, stream=1):
    """The request on a stream is refused in terms of HTTP."""
    return Expected(
        lambda heard: (
            stream in heard.ended and dict(heard.headers[stream])[b":status"] == b"%d" % status
        )
    )


def pong(payload):
    return Expected(lambda heard: (PING, ACK, 0, payload) in heard.frames)


def acknowledged(times):
    """So many SETTINGS are acknowledged, with those of the preface."""
    return Expected(
        lambda heard: [each[:3] for each in heard.frames].count((SETTINGS, ACK, 0)) == times
    )


def unmoved():
    """Nothing but a further call's answer: what was sent is ignored."""
    return Expected(
        lambda heard: not {each[0] for each in heard.frames} & {RST_STREAM, GOAWAY}, stays=True
    )


def until(expected):
    """Go on with the row once this is heard."""
    return expected.holds


def sized(size, stream=1):
    """So much of an answer has come, and no more does before a ping is answered."""
    return Expected(lambda heard: len(heard.bodies.get(stream, b"")) == size)


def granted(size, stream=1):
    """So much may be sent on a stream, by its window and the connection's."""

    def holds(heard):
        first = {0: (1 << 16) - 1, stream: 1 << 21}  # the latter by the server's settings
        opened = (
            first[each]
            + sum(int.from_bytes(by, "big") for by in heard.payloads(WINDOW_UPDATE, each))
            for each in (0, stream)
        )
        return min(opened) >= size

    return Expected(holds)


def begun(stream=1):
    return Expected(lambda heard: stream in heard.headers)


STUCK = [settings((WINDOW_SIZE, 0)), call(), until(begun())]  # half closed, and not answered yet
GONE = [call(), until(answered())]
OPEN = [opened()]


# fmt: off
FRAMES = [
    ("4.1", "unknown type", [frame(UNKNOWN, 0, 0, b"x" * 8), frame(UNKNOWN, 255, 9, b"")],
     unmoved()),
    ("4.1", "undefined flags", [frame(PING, 0xFE, 0, b"12345678")], pong(b"12345678")),
    ("4.1", "reserved bit", [frame(PING, 0, 1 << 31, b"12345678")], pong(b"12345678")),
    ("4.1", "reserved bit of a stream", [opened(), data(stream=1 | 1 << 31)], answered()),
    ("4.2", "largest frame",
     [opened(), data(message(b"x" * (MOST_FRAME_BYTES - 5)))],
     answered(b"/a.B/C " + b"x" * (MOST_FRAME_BYTES - 5))),
    ("4.2", "DATA too large", [opened(), data(bytes(MOST_FRAME_BYTES + 1))],
     goaway(FRAME_SIZE_ERROR)),
    ("4.2", "HEADERS too large", [opened(bytes(MOST_FRAME_BYTES + 1))], goaway(FRAME_SIZE_ERROR)),
    ("4.2", "unknown type too large", [frame(UNKNOWN, 0, 0, bytes(MOST_FRAME_BYTES + 1))],
     goaway(FRAME_SIZE_ERROR)),
    ("4.2", "answer in frames that the client allows",
     [call(content=message(b"large")), windows(1 << 20), windows(1 << 20, 1)],
     Expected(lambda heard: 1 in heard.ended
              and max(map(len, heard.payloads(DATA, 1))) <= MOST_FRAME_BYTES)),
    ("4.3", "block that cannot be decoded", [opened(b"\x40")], goaway(COMPRESSION_ERROR)),
    ("4.3", "PRIORITY within a block",
     [opened(flags=0), frame(PRIORITY, 0, 1, bytes(5)), frame(CONTINUATION, END_HEADERS, 1)],
     goaway(PROTOCOL_ERROR)),
    ("4.3", "HEADERS of another stream within a block", [opened(flags=0), opened(stream=3)],
     goaway(PROTOCOL_ERROR)),
    ("5.5", "unknown type within a block", [opened(flags=0), frame(UNKNOWN, 0, 0)],
     goaway(PROTOCOL_ERROR)),
    ("6.1", "DATA on stream 0", [frame(DATA, 0, 0, b"x")], goaway(PROTOCOL_ERROR)),
    ("6.1", "padded DATA",
     [opened(), frame(DATA, PADDED | END_STREAM, 1, b"\4" + message() + bytes(4))], answered()),
    ("6.1", "DATA of padding alone",
     [opened(), frame(DATA, PADDED, 1, b"\xff" + bytes(255)), data()], answered()),
    ("6.1", "padding as long as the frame",
     [opened(), frame(DATA, PADDED, 1, b"\4" + bytes(4 - 1))],
     goaway(PROTOCOL_ERROR)),
    ("6.1", "padded DATA without a length", [opened(), frame(DATA, PADDED, 1)],
     goaway(PROTOCOL_ERROR, FRAME_SIZE_ERROR)),
    ("6.2", "HEADERS on stream 0", [opened(stream=0)], goaway(PROTOCOL_ERROR)),
    ("6.2", "padded HEADERS",
     [opened(b"\2" + block() + b"\0\0", flags=END_HEADERS | PADDED), data()], answered()),
    ("6.2", "HEADERS with a priority",
     [opened(b"\0\0\0\0\xff" + block(), flags=END_HEADERS | PRIORITIZED), data()], answered()),
    ("6.2", "HEADERS with padding and a priority",
     [opened(b"\1\0\0\0\0\xff" + block() + b"\0", flags=END_HEADERS | PRIORITIZED | PADDED),
      data()], answered()),
    ("6.2", "padding longer than HEADERS", [opened(b"\xff" + block()[:20],
     flags=END_HEADERS | PADDED)],
     goaway(PROTOCOL_ERROR)),
    ("6.2", "HEADERS too short for their priority",
     [opened(b"abc", flags=END_HEADERS | PRIORITIZED)],
     goaway(FRAME_SIZE_ERROR, PROTOCOL_ERROR)),
    ("6.3", "PRIORITY of another size", [opened(), frame(PRIORITY, 0, 1, bytes(4))],
     goaway(FRAME_SIZE_ERROR)),
    ("6.3", "PRIORITY in any state",
     [frame(PRIORITY, 0, 1, b"\0\0\0\3\x10"), call(), until(answered()),
      frame(PRIORITY, 0, 1, b"\0\0\0\3\x10")], unmoved()),
    ("6.4", "RST_STREAM on stream 0", [reset(stream=0)], goaway(PROTOCOL_ERROR)),
    ("6.4", "RST_STREAM on an idle stream", [reset()], goaway(PROTOCOL_ERROR)),
    ("6.4", "RST_STREAM of another size", [opened(), frame(RST_STREAM, 0, 1, bytes(3))],
     goaway(FRAME_SIZE_ERROR)),
    ("6.5", "SETTINGS on a stream", [frame(SETTINGS, 0, 1)], goaway(PROTOCOL_ERROR)),
    ("6.5", "SETTINGS of another size", [frame(SETTINGS, 0, 0, bytes(5))],
     goaway(FRAME_SIZE_ERROR)),
    ("6.5", "acknowledgement with a payload", [frame(SETTINGS, ACK, 0, bytes(6))],
     goaway(FRAME_SIZE_ERROR)),
    ("6.5.2", "ENABLE_PUSH of 2", [settings((ENABLE_PUSH, 2))], goaway(PROTOCOL_ERROR)),
    ("6.5.2", "INITIAL_WINDOW_SIZE of 2^31", [settings((WINDOW_SIZE, 1 << 31))],
     goaway(FLOW_CONTROL_ERROR)),
    ("6.5.2", "MAX_FRAME_SIZE too small", [settings((FRAME_SIZE, MOST_FRAME_BYTES - 1))],
     goaway(PROTOCOL_ERROR)),
    ("6.5.2", "MAX_FRAME_SIZE too large", [settings((FRAME_SIZE, 1 << 24))],
     goaway(PROTOCOL_ERROR)),
    ("6.5.2", "unknown setting", [settings((0x99, 1))], acknowledged(2)),
    ("6.5.2", "no stream may be pushed", [settings((MOST_STREAMS, 0)), call()], answered()),
    ("6.5.3", "each SETTINGS is acknowledged", [settings() * 3], acknowledged(4)),
    ("6.5.3", "the last of several values counts",
     [settings((WINDOW_SIZE, 100), (WINDOW_SIZE, 1)), call(), until(sized(1)),
      frame(PING, 0, 0, b"12345678"), until(pong(b"12345678"))], sized(1)),
    ("6.5.3", "acknowledgement of nothing", [frame(SETTINGS, ACK, 0)] * 2, goaway(PROTOCOL_ERROR)),
    ("6.6", "PUSH_PROMISE", [opened(), frame(PUSH_PROMISE, END_HEADERS, 1, b"\0\0\0\2" + block())],
     goaway(PROTOCOL_ERROR)),
    ("6.7", "PING", [frame(PING, 0, 0, b"\0\1\2\3\4\5\6\7")], pong(b"\0\1\2\3\4\5\6\7")),
    ("6.7", "answer to no PING", [frame(PING, ACK, 0, b"12345678")], unmoved()),
    ("6.7", "PING on a stream", [frame(PING, 0, 1, b"12345678")], goaway(PROTOCOL_ERROR)),
    ("6.7", "PING of another size", [frame(PING, 0, 0, b"1234567")], goaway(FRAME_SIZE_ERROR)),
    ("6.8", "GOAWAY on a stream", [frame(GOAWAY, 0, 1, bytes(8))], goaway(PROTOCOL_ERROR)),
    ("6.8", "GOAWAY too short", [frame(GOAWAY, 0, 0, bytes(7))], goaway(FRAME_SIZE_ERROR)),
    ("6.8", "calls before a GOAWAY are answered", [call() + frame(GOAWAY, 0, 0, bytes(8))],
     Expected(answered().holds, ends=True)),
    ("6.10", "blocks in pieces",
     [opened(block()[:9], flags=0), frame(CONTINUATION, 0, 1, block()[9:20]),
      frame(CONTINUATION, END_HEADERS, 1, block()[20:]), data()], answered()),
    ("6.10", "empty CONTINUATION",
     [opened(b"", flags=0), frame(CONTINUATION, 0, 1), frame(CONTINUATION, END_HEADERS, 1, block()),
      data()], answered()),
    ("6.10", "CONTINUATION after the end of a block",
     [opened(), frame(CONTINUATION, END_HEADERS, 1, literal(b"a", b"b"))], goaway(PROTOCOL_ERROR)),
    ("6.10", "CONTINUATION of another stream",
     [opened(flags=0), frame(CONTINUATION, END_HEADERS, 3)], goaway(PROTOCOL_ERROR)),
    ("6.10", "CONTINUATION on stream 0", [opened(flags=0), frame(CONTINUATION, END_HEADERS, 0)],
     goaway(PROTOCOL_ERROR)),
    ("6.10", "CONTINUATION of DATA", [opened(), data(flags=0), frame(CONTINUATION, END_HEADERS, 1)],
     goaway(PROTOCOL_ERROR)),
    ("7", "unknown code in RST_STREAM", [opened(), reset(0xFFFF)], unmoved()),
    ("7", "unknown code in GOAWAY", [call() + frame(GOAWAY, 0, 0, bytes(4) + b"\0\0\xff\xff")],
     Expected(answered().holds, ends=True)),
]
STREAMS = [
    ("5.1", "DATA on an idle stream", [data()], goaway(PROTOCOL_ERROR)),
    ("5.1", "WINDOW_UPDATE on an idle stream", [windows(1, 1)], goaway(PROTOCOL_ERROR)),
    ("5.1", "CONTINUATION on an idle stream", [frame(CONTINUATION, END_HEADERS, 1)],
     goaway(PROTOCOL_ERROR)),
    ("5.1", "DATA when half closed", [*STUCK, data()], goaway(STREAM_CLOSED)),
    ("5.1", "HEADERS when half closed", [*STUCK, opened(flags=END_HEADERS | END_STREAM)],
     goaway(STREAM_CLOSED)),
    ("5.1", "CONTINUATION when half closed", [*STUCK, frame(CONTINUATION, END_HEADERS, 1)],
     goaway(PROTOCOL_ERROR)),
    ("5.1", "WINDOW_UPDATE when half closed", [*STUCK, windows(100, 1)], answered()),
    ("5.1", "PRIORITY when half closed", [*STUCK, frame(PRIORITY, 0, 1, bytes(5)), windows(100, 1)],
     answered()),
    ("5.1", "DATA after its RST_STREAM", [opened(), reset(), data()], unmoved()),
    ("5.1", "HEADERS after its RST_STREAM", [opened(), reset(), opened()], unmoved()),
    ("5.1", "any frame when closed",
     [*GONE, windows(1, 1), reset(), frame(PRIORITY, 0, 1, bytes(5)), data(), opened()], unmoved()),
    ("5.1.1", "even number", [opened(stream=2)], goaway(PROTOCOL_ERROR)),
    ("5.1.1", "number smaller than before", [call(stream=5), until(answered(stream=5)),
     opened(stream=3)], unmoved()),
    ("5.1.1", "numbers left out", [call(stream=1), call(stream=77)], answered(stream=77)),
    ("5.1.2", "more streams than there may be",
     [until(acknowledged(1)), b"".join(opened(stream=stream) for stream in range(1, 2 * 1026, 2))],
     Expected(lambda heard: REFUSED_STREAM in heard.codes(RST_STREAM, 2049)
              or PROTOCOL_ERROR in heard.codes(GOAWAY), ends=True)),
    ("5.1.2", "as many streams as there may be",
     [b"".join(opened(stream=stream) for stream in range(1, 2 * 1023, 2)), call(stream=2047)],
     answered(stream=2047)),
    ("5.1.2", "streams that have ended do not count",
     [b"".join(call(stream=stream) for stream in range(1, 3001, 2))], answered(stream=2999)),
    ("5.3", "stream that depends on itself",
     [opened(b"\0\0\0\1\xff" + block(), flags=END_HEADERS | PRIORITIZED)], goaway(PROTOCOL_ERROR)),
    ("5.4", "error of one stream leaves the others alone",
     [opened(), opened(block((b"A", b"b")), stream=3), data()], answered()),
]
WINDOWS = [
    ("6.9", "WINDOW_UPDATE of 0 for the connection", [windows(0)], goaway(PROTOCOL_ERROR)),
    ("6.9", "WINDOW_UPDATE of 0 for a stream", [*OPEN, windows(0, 1)], goaway(PROTOCOL_ERROR)),
    ("6.9", "WINDOW_UPDATE of another size", [frame(WINDOW_UPDATE, 0, 0, bytes(3))],
     goaway(FRAME_SIZE_ERROR)),
    ("6.9", "reserved bit of an increment", [*STUCK, windows(1 << 31 | 100, 1)], answered()),
    ("6.9.1", "overflow of the connection's window", [windows(MOST_WINDOW)],
     goaway(FLOW_CONTROL_ERROR)),
    ("6.9.1", "overflow in two steps", [windows(MOST_WINDOW - 65535), windows(1)],
     goaway(FLOW_CONTROL_ERROR)),
    ("6.9.1", "largest window of the connection", [windows(MOST_WINDOW - 65535), call()],
     answered()),
    ("6.9.1", "overflow of a stream's window", [*OPEN, windows(MOST_WINDOW, 1)],
     goaway(FLOW_CONTROL_ERROR)),
    ("6.9.1", "largest window of a stream", [*STUCK, windows(MOST_WINDOW, 1)], answered()),
    ("6.9.1", "window of nothing", [*STUCK, frame(PING, 0, 0, b"12345678"),
     until(pong(b"12345678"))], sized(0)),
    ("6.9.1", "window of one byte", [*STUCK, windows(1, 1), until(sized(1)),
     frame(PING, 0, 0, b"12345678"), until(pong(b"12345678"))], sized(1)),
    ("6.9.1", "byte by byte", [*STUCK, *[windows(1, 1)] * 13], answered()),
    ("6.9.1", "window of the connection holds for all streams",
     [*(call(stream=s, content=message(b"x" * 16_000)) for s in (1, 3, 5, 7, 9)),
      until(Expected(lambda heard: sum(map(len, heard.bodies.values())) == 65535)),
      frame(PING, 0, 0, b"12345678"), until(pong(b"12345678")),
      lambda heard: sum(map(len, heard.bodies.values())) == 65535, windows(1 << 20)],
     Expected(lambda heard: {1, 3, 5, 7, 9} <= heard.ended)),
    ("6.9.2", "larger window for streams that have begun", [*STUCK, settings((WINDOW_SIZE, 100))],
     answered()),
    ("6.9.2", "window that becomes negative",
     [settings((WINDOW_SIZE, 10)), call(), until(sized(10)), settings((WINDOW_SIZE, 0)),
      windows(10, 1), frame(PING, 0, 0, b"12345678"), until(pong(b"12345678"))], sized(10)),
    ("6.9.2", "window that was negative",
     [settings((WINDOW_SIZE, 10)), call(), until(sized(10)), settings((WINDOW_SIZE, 0)),
      windows(13, 1)], answered()),
    ("6.9.2", "overflow by a setting",
     [*STUCK[:1], call(content=message(b"large")), until(begun()), windows(MOST_WINDOW, 1),
      until(sized(65535)), settings((WINDOW_SIZE, MOST_WINDOW))], goaway(FLOW_CONTROL_ERROR)),
    ("6.9", "windows of the server are opened again",
     [until(acknowledged(1)), opened(), data(b"\0" + (9 << 20).to_bytes(4, "big"), flags=0),
      *(step for count in range(9 * 64)
        for step in (until(granted(5 + (count + 1 << 14))), data(bytes(1 << 14), flags=0))),
      data(b"")], answered(b"9437184")),
]
REQUESTS = [
    ("8.1", "HEADERS twice, the second without an end", [opened() * 2], rst(PROTOCOL_ERROR)),
    ("8.1", "trailers", [opened(), data(flags=0), opened(literal(b"a", b"b"),
     flags=END_HEADERS | END_STREAM)], answered()),
    ("8.1", "pseudo-header among the trailers", [opened(), data(message()[:3], flags=0),
     opened(literal(b":path", b"/"), flags=END_HEADERS | END_STREAM)], rst(PROTOCOL_ERROR)),
    ("8.1.1", "content-length", [call((b"content-length", b"6"))], answered()),
    ("8.1.1", "content-length, body in pieces",
     [opened(block((b"content-length", b"6"))), data(message()[:2], flags=0), data(message()[2:])],
     answered()),
    ("8.1.1", "content-length too large", [call((b"content-length", b"7"))], rst(PROTOCOL_ERROR)),
    ("8.1.1", "content-length too small", [call((b"content-length", b"5"))], rst(PROTOCOL_ERROR)),
    ("8.1.1", "content-length without a body",
     [opened(block((b"content-length", b"1")), flags=END_HEADERS | END_STREAM)],
     rst(PROTOCOL_ERROR)),
    ("8.1.1", "content-length twice", [call(*[(b"content-length", b"6")] * 2)],
     rst(PROTOCOL_ERROR)),
    ("8.1.1", "content-length that is no number", [call((b"content-length", b"x"))],
     rst(PROTOCOL_ERROR)),
    ("8.2.1", "upper-case name", [call((b"Abc", b"x"))], rst(PROTOCOL_ERROR)),
    ("8.2.1", "empty name", [call((b"", b"x"))], rst(PROTOCOL_ERROR)),
    *(("8.2.1", f"name with {name}", [call((b"a" + name + b"b", b"x"))], rst(PROTOCOL_ERROR))
      for name in (b" ", b":", b"\0", b"\x7f", b"\x80", b"\r", b"\n", b"\t")),
    *(("8.2.1", f"value with {value}", [call((b"abc", b"a" + value + b"b"))], rst(PROTOCOL_ERROR))
      for value in (b"\0", b"\r", b"\n")),
    *(("8.2.1", f"value {value}", [call((b"abc", value))], rst(PROTOCOL_ERROR))
      for value in (b" x", b"x ", b"\tx", b"x\t")),
    ("8.2.1", "empty value", [call((b"abc", b""))], answered()),
    ("8.2.1", "value beyond ASCII", [call((b"abc", b"\xc3\xa9"))], answered()),
    *(("8.2.2", name.decode(), [call((name, b"x"))], rst(PROTOCOL_ERROR))
      for name in (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding",
                   b"upgrade")),
    ("8.2.2", "te that is not trailers", [call((b"te", b"gzip"))], rst(PROTOCOL_ERROR)),
    ("8.2.3", "cookie in pieces", [call((b"cookie", b"a=b"), (b"cookie", b"c=d"))], answered()),
    ("8.3", "unknown pseudo-header", [opened(block(before=[(b":test", b"x")]))],
     rst(PROTOCOL_ERROR)),
    ("8.3", "pseudo-header of answers", [opened(block(before=[(b":status", b"200")]))],
     rst(PROTOCOL_ERROR)),
    ("8.3", "pseudo-header behind a header", [opened(block(before=[(b"abc", b"x")]))],
     rst(PROTOCOL_ERROR)),
    *(("8.3.1", f"{name.decode()} twice", [opened(block(before=[(name, USUAL[name])]))],
       rst(PROTOCOL_ERROR)) for name in (b":method", b":scheme", b":path", b":authority")),
    *(("8.3.1", f"no {name.decode()}", [opened(block(without=[name]))], rst(PROTOCOL_ERROR))
      for name in (b":method", b":scheme", b":path")),
    ("8.3.1", "no :authority",
     [opened(block((b"host", b"a"), without=[b":authority"])), data()], answered()),
    ("8.3.1", "empty :path", [call(path=b"")], rst(PROTOCOL_ERROR)),
    ("8.3.1", ":path without a slash", [call(path=b"a")], rst(PROTOCOL_ERROR)),
    ("8.3.1", ":scheme of another protocol", [call(scheme=b"ftp")], answered()),
    ("8.3.1", ":path with a space", [call(path=b"/a b")], rst(PROTOCOL_ERROR)),
    ("8.5", "CONNECT with a path", [call(method=b"CONNECT")], rst(PROTOCOL_ERROR)),
    ("8.5", "CONNECT", [opened(block(without=[b":scheme", b":path"], method=b"CONNECT"))],
     http(405)),
    ("10.5.1", "more headers than there may be", [opened(block(*[(b"a", b"b")] * 300))],
     goaway(ENHANCE_YOUR_CALM)),
    ("10.5.1", "headers of 16 KiB",
     [opened(block((b"abc", b"x" * 8000)), flags=0)
      + frame(CONTINUATION, END_HEADERS, 1, literal(b"abd", b"x" * 7500)) + data()], answered()),
    ("10.5.1", "headers over 16 KiB",
     [opened(block((b"abc", b"x" * 8000)), flags=0)
      + frame(CONTINUATION, END_HEADERS, 1, literal(b"abd", b"x" * 8500))],
     goaway(ENHANCE_YOUR_CALM)),
]
INDEXED = literal(b"abc", b"x", 0x40)  # becomes entry 62
HUFFMAN_X = b"\x81\xf3"  # `x` is 1111001, then padding
HPACK = [
    ("2.3.3", "index beyond the tables", [opened(block() + b"\xbe")], goaway(COMPRESSION_ERROR)),
    ("6.1", "index 0", [opened(block() + b"\x80")], goaway(COMPRESSION_ERROR)),
    ("2.3.2", "entry of the dynamic table", [opened(block() + INDEXED), data(),
     opened(block() + b"\xbe", stream=3), data(stream=3)], answered(stream=3)),
    ("2.3.2", "entry used by the block that adds it", [opened(block() + INDEXED + b"\xbe"), data()],
     answered()),
    ("4.3", "entry that the table has no room for",
     [opened(block() + literal(b"abc", b"x" * 4100, 0x40)), data(),
      opened(block() + b"\xbe", stream=3)], goaway(COMPRESSION_ERROR)),
    ("4.4", "entry that has been evicted",
     [opened(block() + INDEXED + literal(b"b", b"y" * 4030, 0x40)), data(),
      opened(block() + b"\xbf", stream=3)], goaway(COMPRESSION_ERROR)),
    ("4.2", "size update behind a header", [opened(block() + b"\x20")], goaway(COMPRESSION_ERROR)),
    ("4.2", "size update before the headers", [opened(b"\x20" + block()), data()], answered()),
    ("4.2", "size update empties the table",
     [opened(block() + INDEXED), data(), opened(b"\x20\x3f\xe1\x1f" + block() + b"\xbe", stream=3)],
     goaway(COMPRESSION_ERROR)),
    ("4.2", "two size updates", [opened(b"\x20\x3f\xe1\x1f" + block()), data()], answered()),
    ("6.3", "size update beyond the setting", [opened(number(4097, 5, 0x20) + block())],
     goaway(COMPRESSION_ERROR)),
    ("5.1", "integer without end", [opened(block() + b"\xff" + b"\xff" * 20)],
     goaway(COMPRESSION_ERROR)),
    ("5.1", "integer that overflows",
     [opened(block() + b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f\x7f")],
     goaway(COMPRESSION_ERROR)),
    ("5.2", "text longer than the block", [opened(block() + b"\0\x05abc")],
     goaway(COMPRESSION_ERROR)),
    ("5.2", "length without end", [opened(block() + b"\0\x7f\xff\xff\xff\xff\xff\xff\x7f")],
     goaway(COMPRESSION_ERROR)),
    ("5.2", "Huffman code", [opened(block() + b"\0" + HUFFMAN_X + HUFFMAN_X), data()], answered()),
    ("5.2", "padding of more than 7 bits", [opened(block() + b"\0\x82\xf3\xff" + HUFFMAN_X)],
     goaway(COMPRESSION_ERROR)),
    ("5.2", "padding that is not EOS", [opened(block() + b"\0\x81\xf2" + HUFFMAN_X)],
     goaway(COMPRESSION_ERROR)),
    ("5.2", "EOS in a text", [opened(block() + b"\0\x84\xff\xff\xff\xff" + HUFFMAN_X)],
     goaway(COMPRESSION_ERROR)),
    ("6.2.1", "name by its index", [opened(block() + INDEXED + b"\x7e\1z"), data()],
     answered()),
    ("6.2.2", "not indexed: next index is unknown",
     [opened(block() + literal(b"a", b"b") + b"\xbe")],
     goaway(COMPRESSION_ERROR)),
    ("6.2.3", "never indexed", [opened(block() + literal(b"a", b"b", 0x10)), data()], answered()),
    ("6.2.3", "name by an index beyond the tables", [opened(block() + b"\x1f\x7f\1z")],
     goaway(COMPRESSION_ERROR)),
    ("4.2", "answers keep to a table of nothing",
     [settings((TABLE_SIZE, 0)), until(acknowledged(2)), call(), call(stream=3),
      until(answered()), until(answered(stream=3))],
     Expected(lambda heard: not any(each[3][0] & 0x40 and each[3][0] < 0x80 for each in heard.frames
                                    if each[0] == HEADERS and each[2] < PROBE))),
]

ENCODED = {b"gzip": gzip.compress(b"x"), b"deflate": zlib.compress(b"x")}
GRPC = [
    ("method", "GET", [call(method=b"GET")], http(405)),
    ("content-type", "with a format", [call(content_type=b"application/grpc+proto")], answered()),
    ("content-type", "with a parameter", [call(content_type=b"application/grpc;a=b")], answered()),
    ("content-type", "of JSON", [call(content_type=b"application/json")], http(415)),
    ("content-type", "none", [opened(block(without=[b"content-type"])), data()], http(415)),
    ("te", "none", [opened(block(without=[b"te"])), data()], answered()),
    ("path", "as it is", [call(path=b"/x/y")], answered(b"/x/y x")),
    ("path", "too long", [call(path=b"/" + b"x" * 2000)], failed(Code.UNIMPLEMENTED)),
    *(("grpc-timeout", timeout.decode(), [call(grpc_timeout=timeout)], answered())
      for timeout in (b"1H", b"1M", b"10S", b"99999999S", b"10000m", b"10000000u", b"99999999n")),
    *(("grpc-timeout", repr(timeout), [call(grpc_timeout=timeout)], failed(Code.INTERNAL))
      for timeout in (b"", b"S", b"1", b"-1S", b"+1S", b"1.5S", b"123456789S", b"1s", b"1 S")),
    ("grpc-timeout", "that passes", [call(grpc_timeout=b"50m", content=message(b"slow"))],
     failed(Code.DEADLINE_EXCEEDED)),
    ("grpc-timeout", "that has passed", [call(grpc_timeout=b"0S")], failed(Code.DEADLINE_EXCEEDED)),
    ("Custom-Metadata", "text", [call((b"a", b"b"), (b"a", b"c,d"))], answered()),
    ("Custom-Metadata", "binary", [call((b"a-bin", b"AAH/"), (b"b-bin", b"AA,AQ=="))], answered()),
    ("Custom-Metadata", "binary that is not base64", [call((b"a-bin", b"%"))], answered()),
    ("Custom-Metadata", "reserved", [call((b"grpc-unknown", b"x"))], answered()),
    ("User-Agent", "any", [call((b"user-agent", b"grpc-c++/1.60 (linux)"))], answered()),
    ("Message", "empty", [call(content=message(b""))], answered(b"/a.B/C ")),
    ("Message", "in pieces",
     [opened(), *(data(bytes([byte]), flags=0) for byte in message()[:-1]), data(message()[-1:])],
     answered()),
    ("Message", "end in a frame of its own", [opened(), data(flags=0), data(b"")], answered()),
    ("Message", "none", [opened(flags=END_HEADERS | END_STREAM)], failed(Code.UNIMPLEMENTED)),
    ("Message", "none, and an empty frame", [opened(), data(b"")], failed(Code.UNIMPLEMENTED)),
    ("Message", "prefix that is cut", [opened(), data(b"\0\0")], failed(Code.INTERNAL)),
    ("Message", "cut", [opened(), data(message()[:-1])], failed(Code.INTERNAL)),
    ("Message", "cut by trailers", [opened(), data(message()[:-1], flags=0),
     opened(literal(b"a", b"b"), flags=END_HEADERS | END_STREAM)], failed(Code.INTERNAL)),
    ("Message", "larger than there may be",
     [opened(), data(b"\0\xff\xff\xff\xff", flags=0)], failed(Code.RESOURCE_EXHAUSTED)),
    ("Compressed-Flag", "of 2", [call(content=message(flag=2))], failed(Code.INTERNAL)),
    ("Compressed-Flag", "without an encoding", [call(content=message(flag=1))],
     failed(Code.INTERNAL)),
    ("Compressed-Flag", "with identity",
     [call(grpc_encoding=b"identity", content=message(flag=1))], failed(Code.INTERNAL)),
    *(("Compressed-Flag", name.decode(),
       [call(grpc_encoding=name, content=message(packed, 1))], answered())
      for name, packed in ENCODED.items()),
    *(("Compressed-Flag", f"{name.decode()}, but not this message", [call(grpc_encoding=name)],
       answered()) for name in ENCODED),
    ("Compressed-Flag", "damaged", [call(grpc_encoding=b"gzip", content=message(b"x", 1))],
     failed(Code.INTERNAL)),
    ("Message-Encoding", "unknown", [call(grpc_encoding=b"br", content=message(flag=1))],
     failed(Code.UNIMPLEMENTED)),
    ("Message-Encoding", "unknown, but not used", [call(grpc_encoding=b"br")], answered()),
    ("Message-Accept-Encoding", "told with every answer", [call()],
     Expected(lambda heard: (b"grpc-accept-encoding", b"identity, deflate, gzip")
              in heard.headers.get(1, ()))),
    ("Responses", "headers, message, trailers", [call(), until(answered())],
     Expected(lambda heard: [each[:2] for each in heard.frames if each[2] == 1]
              == [(HEADERS, END_HEADERS), (DATA, 0), (HEADERS, END_HEADERS | END_STREAM)])),
    ("Trailers-Only", "an error",
     [call(content=message(b"fail no"))], failed(Code.INVALID_ARGUMENT, b"no")),
    ("Status-Message", "percent-encoded", [call(content=message("fail é\n%41 ~".encode()))],
     failed(Code.INVALID_ARGUMENT, b"%C3%A9%0A%2541 ~")),
    ("Errors", "one that still sends is told to stop",
     [opened(), data(message(flag=2), flags=0), until(failed(Code.INTERNAL))], rst(NO_ERROR)),
    *(("Errors", f"call that is reset with {code}",
       [call(content=message(b"slow")), reset(code), call(stream=3)],
       Expected(lambda heard: answered(stream=3).holds(heard) and 1 not in heard.headers))
      for code in (NO_ERROR, INTERNAL_ERROR, REFUSED_STREAM, CANCEL, ENHANCE_YOUR_CALM)),
    ("Connection", "calls beside each other",
     [opened(), opened(stream=3), data(message()[:3], flags=0), data(stream=3),
      until(answered(stream=3)), data(message()[3:])], answered()),
]
# fmt: on
PREFACES = [
    ("another one", MAGIC[:-1] + b"x" + settings(), ()),
    ("HTTP/1.1", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", ()),
    ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(60), ()),
    ("no SETTINGS", MAGIC + frame(PING, 0, 0, b"12345678"), (PROTOCOL_ERROR,)),
    ("acknowledgement first", MAGIC + frame(SETTINGS, ACK, 0), (PROTOCOL_ERROR,)),
]


class Surface:
    """Answers with path and message; of a large one with its size."""

    def __call__(self, path, request, call):
        request = bytes(request)
        if request.startswith(b"fail "):
            return GrpcAnswer(Code.INVALID_ARGUMENT, request.decode()[5:])
        if request == b"slow":
            time.sleep(0.3)
        if request == b"large":
            return GrpcAnswer(body=bytes(1_000_000))
        if len(request) > 1_000_000:
            return GrpcAnswer(body=b"%d" % len(request))
        return GrpcAnswer(body=path.encode() + b" " + request)


@pytest.fixture(scope="module")
def port():
    ledger = Ledger(1 << 30)
    server = GrpcServer(flowing(Surface()), Lanes(4), ledger, Ports("127.0.0.1:0"))
    server.start()
    yield server.port
    server.stop(PATIENCE_S)
    assert ledger.held_bytes == 0


@pytest.fixture
def peer(port):
    peer = Peer(port)
    with peer.socket:
        yield peer


def rows():
    groups = {"rfc9113": (*FRAMES, *STREAMS, *WINDOWS, *REQUESTS), "rfc7541": HPACK, "grpc": GRPC}
    for group, table in groups.items():
        for section, what, sent, expected in table:
            yield pytest.param(sent, expected, id=f"{group} {section}: {what}")


@pytest.mark.parametrize(("sent", "expected"), list(rows()))
def test_what_is_sent_is_answered_as_the_standard_says(peer, sent, expected):
    peer.send(MAGIC + settings())
    for step in sent:
        if callable(step):
            peer.listen(step)
            assert step(peer.heard)
        else:
            peer.send(step)
    peer.listen(expected.holds)
    assert expected.holds(peer.heard)
    if expected.ends:
        peer.listen(lambda heard: False)  # to the end
        return
    answers = answered(stream=PROBE).holds
    peer.send(settings((WINDOW_SIZE, 1 << 16)) + call(stream=PROBE))
    peer.listen(answers)
    assert answers(peer.heard)
    assert not expected.stays or expected.holds(peer.heard)
    assert not peer.heard.is_closed and not peer.heard.codes(GOAWAY)


@pytest.mark.parametrize(("what", "sent", "codes"), PREFACES, ids=[each[0] for each in PREFACES])
def test_other_preface_ends_the_connection(peer, what, sent, codes):
    peer.send(sent)
    peer.listen(lambda heard: False)
    assert set(peer.heard.codes(GOAWAY)) >= set(codes)
    assert not peer.heard.headers


def test_preface_may_come_byte_by_byte_and_is_answered_with_settings(peer):
    for byte in MAGIC + settings():
        peer.send(bytes([byte]))
    peer.send(call())
    peer.listen(answered().holds)
    assert peer.heard.frames[0][:3] == (SETTINGS, 0, 0)


# A session that is let go while nothing happens, and made again


def talked(pieces, most_bytes):
    """Return what a server noticed and sent, by piece, and how often its session was let go."""
    server, said, rests = Http2(Http2Limits()), [], 0
    for piece in pieces:
        try:
            noticed = [repr(event) for event in server.receive(piece)]
        except http2.Http2Error as error:
            noticed = [str(error)]
        sent = b""
        while data := _taken(server, most_bytes):
            sent += data
            noticed += [repr(event) for event in server.events()]
        noticed += [repr(event) for event in server.events()]
        rests += server._session is None
        said.append((noticed, sent))
    return said, rests


def _taken(server, most_bytes):
    try:
        return server.take(most_bytes)
    except http2.Http2Error:
        return b""


IDLE_FRAMES = [
    settings(),
    settings((WINDOW_SIZE, 10), (TABLE_SIZE, 0)),
    frame(SETTINGS, ACK, 0),
    frame(PING, 0, 0, b"12345678"),
    frame(PING, ACK, 0, b"12345678"),
    windows(1 << 20),
    frame(PRIORITY, 0, 3, b"\0\0\0\0\1"),
    frame(UNKNOWN, 0, 0, b"x" * 100),
    frame(GOAWAY, 0, 0, bytes(8)),
    frame(PING, 0, 1, b"12345678"),
    opened(block((b"A", b"b"))),
    call(),
    opened(block() + INDEXED, stream=3),
    opened(block() + b"\xbe", stream=5),
]


@given(
    st.lists(st.sampled_from(IDLE_FRAMES), max_size=12),
    st.lists(st.integers(1, 60)),
    st.sampled_from([5, 1 << 16]),
)
def test_session_that_was_let_go_says_the_same_as_one_that_was_kept(frames, sizes, most_bytes):
    content, pieces = MAGIC + settings() + b"".join(frames), []
    for size in sizes:
        pieces.append(content[:size])
        content = content[size:]
    pieces = [piece for piece in (*pieces, content) if piece]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(http2, "_MOST_HEARD_BYTES", -1)
        kept, rests = talked(pieces, most_bytes)
        assert rests == 0
    assert talked(pieces, most_bytes)[0] == kept


def test_session_is_let_go_until_there_is_a_call():
    greeting, ping = MAGIC + settings() + frame(SETTINGS, ACK, 0), frame(PING, 0, 0, bytes(8))
    assert talked([greeting, ping, ping], 1 << 16)[1] == 3
    assert talked([greeting, call(), ping], 1 << 16)[1] == 1
    assert talked([greeting, *[ping] * 100], 1 << 16)[1] < 40


def test_server_may_ping_and_end_a_connection_whose_session_was_let_go():
    server = Http2(Http2Limits())
    server.receive(MAGIC + settings() + frame(SETTINGS, ACK, 0))

    def sent():
        data = server.take(1 << 16)
        server.events()
        return data

    sent()
    server.ping(b"12345678")
    assert sent() == frame(PING, 0, 0, b"12345678")
    (event,) = server.receive(frame(PING, ACK, 0, b"12345678"))
    assert event.opaque_data == b"12345678"
    sent()
    assert server._session is None
    server.announce_end()
    assert sent()[3] == GOAWAY
    server.end_after_streams()
    assert sent()[3] == GOAWAY
