"""HTTP/1.1 as pure functions: requests to bytes, bytes to answers; no input or output here.

As much of RFC 9112 as one needs to talk to a model server and the proxies before it. Anything that
could make two readers see two different answers is refused, not guessed at.
"""

import re
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import urlsplit

from tfserve_kit.clients.http_bodies import TooLarge, compressed, inflated, request_headers
from tfserve_kit.clients.options import Options, merged_headers
from tfserve_kit.clients.protocol import HttpRequest, Loss, Lost, Outcome, Reply

_MOST_HEAD_BYTES = 1 << 16
_START = b"HTTP/1."
_SETTINGS = bytes((4, 0, 0, 0, 0, 0))  # kind, flags and stream of HTTP/2's first frame (RFC 9113)
_TLS_ALERT = b"\x15\x03"
_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-5]\d\d)(?: ([^\r\n]*))?")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n\0]*?)[ \t]*")
_DIGITS = re.compile(rb"\d{1,18}")
_CHUNK_SIZE = re.compile(rb"([0-9a-fA-F]{1,15})[ \t]*(?:;[^\r\n]*)?")
_PORTS = {"http": 80, "https": 443}


class Malformed(ValueError):
    """What came is no HTTP answer."""


class Cut(ConnectionError):
    """The connection ended before the whole answer was there.

    Attributes:
        has_begun: whether a byte of it had come.
    """

    def __init__(self, *, has_begun: bool) -> None:
        super().__init__("in the middle of the answer" if has_begun else "without an answer")
        self.has_begun = has_begun


@dataclass(frozen=True, slots=True)
class Response:
    """An answer: status, reason, body as it was meant, and whether the connection stays of use."""

    status: int
    reason: str
    body: bytes
    stays_open: bool

    def outcome(self) -> Outcome:
        """Return what a flow is told."""
        return Reply(self.status == HTTPStatus.OK, self.body, str(self.status), self.reason)


class Endpoint:
    """Where requests go, and how they are written.

    Args:
        url: `http://host:port` or `https://host:port`, with a path if a proxy wants one.
        options: headers, compression.
    """

    def __init__(self, url: str, options: Options) -> None:
        parts = urlsplit(url)
        self.host = parts.hostname or ""
        self.port = parts.port or _PORTS[parts.scheme]
        self.server_name = options.server_name or self.host
        self._prefix = parts.path.rstrip("/")
        self._options = options
        self._named = {
            has_body: request_headers(parts.netloc, options, has_body=has_body)
            for has_body in (False, True)
        }
        self._heads = {has_body: _lines(named) for has_body, named in self._named.items()}

    def written(self, request: HttpRequest) -> bytes:
        """Return a request as bytes."""
        start = f"{request.verb} {self._prefix}{request.path} HTTP/1.1\r\n".encode()
        body = compressed(request.body, self._options)
        head = self._heads[body is not None]
        if request.headers:
            head = _lines(merged_headers(self._named[body is not None], dict(request.headers)))
        if body is None:
            return start + head + b"\r\n"
        return b"%b%bContent-Length: %d\r\n\r\n%b" % (start, head, len(body), body)


def _lines(headers: Mapping[str, str]) -> bytes:
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode("latin-1")


def reading(most: int) -> Generator[None, bytes, Response]:
    """Read one answer: yields when it wants bytes, takes what came, b"" at the connection's end.

    Args:
        most: bytes that the body may have.

    Raises:
        Malformed: it is no HTTP answer.
        Cut: the connection ended early.
        TooLarge: the body is larger.
    """
    buffer = bytearray()
    while len(buffer) < len(_START):
        if not (data := (yield)):
            raise Cut(has_begun=bool(buffer))
        buffer += data
    _require_http(buffer)
    while True:
        head = yield from _until(buffer, b"\r\n\r\n")
        version, status, reason, headers = _head(head)
        if status >= HTTPStatus.OK:
            break  # those before it only announce the answer
    stays_open = b"close" not in headers.get(b"connection", b"").lower() and version == b"1"
    if status in {HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED}:
        body = b""
    elif (coding := headers.get(b"transfer-encoding")) is not None:
        if coding.lower() != b"chunked" or b"content-length" in headers:
            raise Malformed(f"transfer encoding {coding!r}")
        body = yield from _chunks(buffer, most)
    elif (length := headers.get(b"content-length")) is not None:
        body = yield from _measured(buffer, length, most)
    else:
        body, stays_open = (yield from _rest(buffer, most)), False
    encoding = headers.get(b"content-encoding", b"").decode("latin-1")
    # Bytes beyond the answer would be taken for the next one.
    return Response(status, reason, inflated(body, encoding, most), stays_open and not buffer)


def _require_http(start: bytearray) -> None:
    if start.startswith(_START):
        return
    if start[3 : len(_START)] == _SETTINGS[: len(_START) - 3]:  # so much is there at least
        raise Malformed("it speaks HTTP/2")
    if start.startswith(_TLS_ALERT):
        raise Malformed("it speaks TLS")
    raise Malformed(f"{bytes(start[:60])!r} is no HTTP")


def _head(head: bytes) -> tuple[bytes, int, str, dict[bytes, bytes]]:
    first, *lines = head.split(b"\r\n")
    if not (found := _STATUS.fullmatch(first)):
        raise Malformed(f"{first[:60]!r} is no status line of HTTP")
    headers: dict[bytes, bytes] = {}
    for line in lines:
        if not (pair := _HEADER.fullmatch(line)):
            raise Malformed(f"{line[:60]!r} is no header")
        name, value = pair[1].lower(), pair[2]
        if headers.setdefault(name, value) != value and name == b"content-length":
            raise Malformed("two different lengths")
    return found[1], int(found[2]), (found[3] or b"").decode("latin-1"), headers


def _more(buffer: bytearray) -> Generator[None, bytes, None]:
    if not (data := (yield)):
        raise Cut(has_begun=True)
    buffer += data


def _until(buffer: bytearray, end: bytes) -> Generator[None, bytes, bytes]:
    """Take what stands before `end` off the buffer, and `end` with it."""
    start = 0
    while (at := buffer.find(end, start)) < 0:
        if len(buffer) > _MOST_HEAD_BYTES:
            raise Malformed(f"a head of more than {_MOST_HEAD_BYTES} bytes")
        start = max(0, len(buffer) - len(end))
        yield from _more(buffer)
    found = bytes(buffer[:at])
    del buffer[: at + len(end)]
    return found


def _measured(buffer: bytearray, length: bytes, most: int) -> Generator[None, bytes, bytes]:
    if not _DIGITS.fullmatch(length):
        raise Malformed(f"a length of {length[:60]!r}")
    size = int(length)
    if size > most:
        raise TooLarge(most)
    while len(buffer) < size:
        yield from _more(buffer)
    body = bytes(memoryview(buffer)[:size])
    del buffer[:size]
    return body


def _chunks(buffer: bytearray, most: int) -> Generator[None, bytes, bytes]:
    body = bytearray()
    while True:
        line = yield from _until(buffer, b"\r\n")
        if not (found := _CHUNK_SIZE.fullmatch(line)):
            raise Malformed(f"a chunk of size {line[:60]!r}")
        size = int(found[1], 16)
        if size == 0:
            break
        if len(body) + size > most:
            raise TooLarge(most)
        while len(buffer) < size + 2:
            yield from _more(buffer)
        if buffer[size : size + 2] != b"\r\n":
            raise Malformed("a chunk of another size than it says")
        body += memoryview(buffer)[:size]
        del buffer[: size + 2]
    while (yield from _until(buffer, b"\r\n")):
        pass  # trailers
    return bytes(body)


def _rest(buffer: bytearray, most: int) -> Generator[None, bytes, bytes]:
    data = b""
    while True:
        buffer += data
        if len(buffer) > most:
            raise TooLarge(most)
        if not (data := (yield)):
            break
    body = bytes(buffer)
    buffer.clear()
    return body


def lost(error: Exception, how: Loss) -> Lost:
    """Return what a flow is told of a failure; `how` is what a broken connection means."""
    if isinstance(error, TimeoutError):
        how = Loss.LATE
    elif isinstance(error, TooLarge):
        how = Loss.TOO_LARGE
    elif isinstance(error, ValueError) and not isinstance(
        error, OSError
    ):  # a bad certificate is both
        how = Loss.GARBLED
    return Lost(how, str(error) or type(error).__name__, error)
