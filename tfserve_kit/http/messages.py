"""HTTP/1.1 as pure functions: requests to bytes, bytes to responses; no input or output here.

As much of RFC 9112 as one needs to talk to a model server and the proxies before it. Anything that
could make two readers see two different responses is refused, not guessed at.
"""

import re
import zlib
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import urlsplit

from tfserve_kit.version import VERSION

_MOST_HEAD_BYTES = 1 << 16
_START = b"HTTP/1."
_SETTINGS = bytes((4, 0, 0, 0, 0, 0))  # kind, flags and stream of HTTP/2's first frame (RFC 9113)
_TLS_ALERT = b"\x15\x03"
_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-5]\d\d)(?: ([^\r\n]*))?")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n\0]*?)[ \t]*")
_DIGITS = re.compile(rb"\d{1,18}")
_CHUNK_SIZE = re.compile(rb"([0-9a-fA-F]{1,15})[ \t]*(?:;[^\r\n]*)?")
_PORTS = {"http": 80, "https": 443}
# Beyond the first, a body may be so many times as large as what came: zeros compress like that.
_FREE_BYTES, _MOST_TIMES = 1 << 26, 256
# zlib's way to say: with gzip's header.
_GZIP_WINDOW = 31


class HttpRequest(NamedTuple):
    """An HTTP request: verb, path from `/v1` on, body, headers of this request alone."""

    verb: str
    path: str
    body: bytes | None = None
    headers: tuple[tuple[str, str], ...] = ()


class Malformed(ValueError):
    """What came is not an HTTP answer."""


class Cut(ConnectionError):
    """The connection ended before the whole answer was there.

    Attributes:
        has_begun: whether a byte of it had come.
    """

    def __init__(self, *, has_begun: bool) -> None:
        super().__init__("in the middle of the answer" if has_begun else "without an answer")
        self.has_begun = has_begun


class TooLarge(Exception):
    """An answer is larger than the client accepts.

    Args:
        most: how many bytes that would have been.
    """

    def __init__(self, most: int) -> None:
        super().__init__(f"the answer has more than {most:,} bytes (max_answer_bytes)")


@dataclass(frozen=True, slots=True)
class Response:
    """An answer: status, reason, body as it was meant, and whether the connection stays of use."""

    status: int
    reason: str
    body: bytes
    stays_open: bool


class Endpoint:
    """Where requests go, and how they are written.

    Args:
        url: `http://host:port` or `https://host:port`, with a path if a proxy wants one.
        headers: sent with every request.
        gzip: compress what is sent, and ask for compressed responses.
        server_name: name that the certificate must have; that of the URL if None.
    """

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str],
        *,
        gzip: bool = False,
        server_name: str | None = None,
    ) -> None:
        parts = urlsplit(url)
        self.host = parts.hostname or ""
        self.port = parts.port or _PORTS[parts.scheme]
        self.server_name = server_name or self.host
        self._prefix = parts.path.rstrip("/")
        self._gzip = gzip
        basic = {"Host": parts.netloc, "Accept-Encoding": "gzip" if gzip else "identity"}
        basic["User-Agent"] = user_agent()
        of_body = {"Content-Type": "application/json"}
        of_body |= {"Content-Encoding": "gzip"} if gzip else {}
        self._bare = merged_headers(basic, headers)
        self._full = merged_headers(basic | of_body, headers)
        self._bare_lines, self._full_lines = _lines(self._bare), _lines(self._full)

    def written(self, request: HttpRequest) -> bytes:
        """Return a request as bytes."""
        start = f"{request.verb} {self._prefix}{request.path} HTTP/1.1\r\n".encode()
        body = request.body
        head = self._bare_lines if body is None else self._full_lines
        if request.headers:
            named = self._bare if body is None else self._full
            head = _lines(merged_headers(named, dict(request.headers)))
        if body is None:
            return start + head + b"\r\n"
        if self._gzip:
            body = _compressed(body)
        return b"%b%bContent-Length: %d\r\n\r\n%b" % (start, head, len(body), body)


def user_agent() -> str:
    """Return how tfkit names itself to servers: `tfkit/VERSION (tfserve-kit)`."""
    return f"tfkit/{VERSION} (tfserve-kit)"


def merged_headers(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, str]:
    """Return headers of which the later win, whatever the case of their names."""
    won = {name.lower() for name in after}
    return {name: value for name, value in before.items() if name.lower() not in won} | dict(after)


def _compressed(body: bytes) -> bytes:
    import gzip  # few ask for it

    return gzip.compress(body, 1)  # level 1 is quick and makes numbers half as long


def _lines(headers: Mapping[str, str]) -> bytes:
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode("latin-1")


def read_response(most: int) -> Generator[None, bytes, Response]:
    """Read one answer: yields when it wants bytes, takes what came, b"" at the connection's end.

    Args:
        most: bytes that the body may have.

    Raises:
        Malformed: it is not an HTTP answer.
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
            raise Malformed(f"unsupported transfer encoding {coding!r}")
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
    raise Malformed(f"{bytes(start[:60])!r} is not HTTP")


def _head(head: bytes) -> tuple[bytes, int, str, dict[bytes, bytes]]:
    first, *lines = head.split(b"\r\n")
    if not (found := _STATUS.fullmatch(first)):
        raise Malformed(f"{first[:60]!r} is not an HTTP status line")
    headers: dict[bytes, bytes] = {}
    for line in lines:
        if not (pair := _HEADER.fullmatch(line)):
            raise Malformed(f"{line[:60]!r} is not a header")
        name, value = pair[1].lower(), pair[2]
        if headers.setdefault(name, value) != value and name == b"content-length":
            raise Malformed("two different content lengths")
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
        raise Malformed(f"an invalid content length: {length[:60]!r}")
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
            raise Malformed(f"an invalid chunk size: {line[:60]!r}")
        size = int(found[1], 16)
        if size == 0:
            break
        if len(body) + size > most:
            raise TooLarge(most)
        while len(buffer) < size + 2:
            yield from _more(buffer)
        if buffer[size : size + 2] != b"\r\n":
            raise Malformed("a chunk whose size is not the one it says")
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


def inflated(body: bytes, encoding: str, most: int) -> bytes:
    """Return a body as it was meant.

    Args:
        body: as it came.
        encoding: value of Content-Encoding.
        most: how many bytes it may have.

    Raises:
        ValueError: it is compressed in another way, damaged or cut off.
        TooLarge: it is larger, or suspiciously much larger than what came.
    """
    if encoding.lower() in {"", "identity"}:
        return body
    if encoding.lower() != "gzip":
        raise ValueError(f"the answer is compressed as {encoding!r}")
    most = min(most, max(_FREE_BYTES, _MOST_TIMES * len(body)))
    unpacking = zlib.decompressobj(_GZIP_WINDOW)
    try:
        found = unpacking.decompress(body, most + 1)
    except zlib.error as error:
        raise ValueError(f"the compressed answer is damaged: {error}") from error
    if len(found) > most:
        raise TooLarge(most)
    if not unpacking.eof:
        raise ValueError("the compressed answer is cut off")
    return found
