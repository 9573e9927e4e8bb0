"""HTTP/1.1 on a real port, rule by rule: what is sent, and what must come back.

A row names the section of RFC 9112, or of RFC 9110 (`semantics`), that it is about. A refusal ends
the connection; after each other row it answers a further request, unless it says that it ends.
"""

import pytest

from tests.unit.embedded.test_http_transport import PATIENCE_S, EchoSurface, connected, serving
from tfserve_kit.embedded.rest_surface import page

HOST = b"Host: h\r\n"
GET = b"GET /a HTTP/1.1\r\n" + HOST + b"\r\n"
POST = b"POST /p HTTP/1.1\r\n" + HOST
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
CONTINUE = "HTTP/1.1 100 Continue"
STAYS, ENDS, SAYS_SO = "stays", "ends", "stays, and says so"


def get(line=b"GET /a HTTP/1.1", *headers, host=HOST):
    return line + b"\r\n" + host + b"".join(each + b"\r\n" for each in headers) + b"\r\n"


def post(*headers, body=b"x"):
    return POST + b"".join(each + b"\r\n" for each in headers) + b"\r\n" + body


# fmt: off
ANSWERED = [
    ("2.2", "empty lines before a request", b"\r\n\r\n" + GET, b"GET /a ", STAYS),
    ("2.3", "HTTP/1.0", get(b"GET /a HTTP/1.0"), b"GET /a ", ENDS),
    ("3", "several spaces", get(b"GET  /a HTTP/1.1"), b"GET /a ", STAYS),
    ("3.2", "no Host: the official server needs none", get(host=b""), b"GET /a ", STAYS),
    ("3.2.1", "origin form with a query", get(b"GET /a?b=c HTTP/1.1"), b"GET /a?b=c ", STAYS),
    ("3.2.2", "absolute form", get(b"GET http://h/a HTTP/1.1"), b"GET http://h/a ", STAYS),
    ("3.2.4", "asterisk form", get(b"OPTIONS * HTTP/1.1"), b"OPTIONS * ", STAYS),
    ("5.1", "spaces around a value", get(b"GET /a HTTP/1.1", b"A: \t b \t "), b"GET /a ", STAYS),
    ("5.1", "empty value", get(b"GET /a HTTP/1.1", b"A:"), b"GET /a ", STAYS),
    ("5.5", "value beyond ASCII", get(b"GET /a HTTP/1.1", b"A: \xc3\xa9"), b"GET /a ", STAYS),
    ("6.1", "chunked, in any case",
     post(b"Transfer-Encoding: Chunked", body=b"1\r\nx\r\n0\r\n\r\n"),
     b"POST /p x", STAYS),
    ("6.1", "chunked in HTTP/1.0",
     b"POST /p HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
     b"POST /p x", ENDS),
    ("6.2", "Content-Length with zeros", post(b"Content-Length: 01"), b"POST /p x", STAYS),
    ("6.2", "body of GET", get(b"GET /a HTTP/1.1", b"Content-Length: 1") + b"x",
     b"GET /a x", STAYS),
    ("6.3", "neither length nor chunks", post(body=b""), b"POST /p ", STAYS),
    ("7.1", "chunks", CHUNKED + b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n", b"POST /p abc", STAYS),
    ("7.1", "sizes in hexadecimal", CHUNKED + b"A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n",
     b"POST /p 01234567890123456789", STAYS),
    ("7.1", "sizes with zeros", CHUNKED + b"0001\r\nx\r\n000\r\n\r\n", b"POST /p x", STAYS),
    ("7.1.1", "extensions", CHUNKED + b'1;a;b=c;d="e;f"\r\nx\r\n0;g\r\n\r\n', b"POST /p x", STAYS),
    ("7.1.2", "trailers", CHUNKED + b"1\r\nx\r\n0\r\nA: b\r\nC: d\r\n\r\n", b"POST /p x", STAYS),
    ("9.3", "HTTP/1.0 that keeps the connection",
     get(b"GET /a HTTP/1.0", b"Connection: keep-alive"), b"GET /a ", SAYS_SO),
    ("9.3", "HTTP/1.1 that keeps the connection",
     get(b"GET /a HTTP/1.1", b"Connection: keep-alive"), b"GET /a ", STAYS),
    ("9.6", "close", get(b"GET /a HTTP/1.1", b"Connection: close"), b"GET /a ", ENDS),
    ("9.6", "close among others", get(b"GET /a HTTP/1.1", b"Connection: x, CLOSE"),
     b"GET /a ", ENDS),
    ("semantics 7.8", "offer of h2c", get(b"GET /a HTTP/1.1", *UPGRADE.split(b"\r\n")[:-1]),
     b"GET /a ", STAYS),
    ("semantics 7.8", "offer of a WebSocket",
     get(b"GET /a HTTP/1.1", b"Connection: Upgrade", b"Upgrade: websocket"), b"GET /a ", STAYS),
    ("semantics 7.8", "offer with a chunked body",
     CHUNKED[:-2] + UPGRADE + b"\r\n1\r\nx\r\n0\r\n\r\n", b"POST /p x", STAYS),
    ("semantics 9.3.8", "TRACE is a method like others", get(b"TRACE /a HTTP/1.1"),
     b"TRACE /a ", STAYS),
    ("semantics 10.1.1", "expectation with its body",
     post(b"Expect: 100-continue", b"Content-Length: 1"), b"POST /p x", STAYS),
    ("semantics 10.1.1", "expectation without a body",
     post(b"Expect: 100-continue", b"Content-Length: 0", body=b""), b"POST /p ", STAYS),
    ("semantics 10.1.1", "expectation in HTTP/1.0",
     b"POST /p HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nx", b"POST /p x", ENDS),
]
REFUSED = [
    ("2.2", "lines that end in LF", GET.replace(b"\r\n", b"\n"), 400),
    ("2.2", "lines that end in CR", GET.replace(b"\r\n", b"\r"), 400),
    ("2.2", "space before the first header", b"GET /a HTTP/1.1\r\n A: b\r\n\r\n", 400),
    ("2.3", "version missing", b"GET /a\r\n\r\n", 400),
    *(("2.3", version.decode(), get(b"GET /a " + version), 400)
      for version in (b"HTTP/0.9", b"HTTP/1.2", b"HTTP/2.0", b"HTTP/9.9", b"http/1.1", b"HTTP/1.1 ",
                      b"HTTP/1", b"HTTPS/1.1", b"HTTP/11")),
    ("3.1", "lower-case method", get(b"get /a HTTP/1.1"), 400),
    ("3.1", "unknown method", get(b"FOO /a HTTP/1.1"), 400),
    ("3.2", "target without a slash", get(b"GET a HTTP/1.1"), 400),
    ("3.2", "target beyond ASCII", get(b"GET /\xc3\xa9 HTTP/1.1"), 400),
    ("3.2.3", "authority form", get(b"CONNECT h:80 HTTP/1.1"), 400),
    ("5.1", "space before a colon", get(host=b"Host : h\r\n"), 400),
    ("5.2", "folded header", get(b"GET /a HTTP/1.1", b"A: b\r\n c"), 400),
    ("5.1", "empty name", get(b"GET /a HTTP/1.1", b": b"), 400),
    ("5.1", "line without a colon", get(b"GET /a HTTP/1.1", b"A b"), 400),
    *(("5.5", f"value with {byte}", get(b"GET /a HTTP/1.1", b"A: b" + byte + b"c"), 400)
      for byte in (b"\0", b"\1", b"\r", b"\x7f")),
    *(("6.1", coding.decode(),
       post(b"Transfer-Encoding: " + coding, body=b"1\r\nx\r\n0\r\n\r\n"), status)
      for coding, status in ((b"gzip, chunked", 501), (b"chunked, chunked", 400),
                             (b"chunked, gzip", 400),
                             (b"gzip", 501), (b"identity", 501), (b"xchunked", 501))),
    ("6.1", "chunked twice", post(*[b"Transfer-Encoding: chunked"] * 2, body=b"0\r\n\r\n"), 400),
    *(("6.1", "length and chunks", post(*headers, body=b"0\r\n\r\n"), 400)
      for headers in ((b"Content-Length: 5", b"Transfer-Encoding: chunked"),
                      (b"Transfer-Encoding: chunked", b"Content-Length: 5"))),
    *(("6.2", f"Content-Length of {length}", post(b"Content-Length: " + length), 400)
      for length in (b"1, 1", b"+1", b"-1", b"0x1", b"1a", b"", b"1 1", b"1.0", b"9" * 30)),
    *(("7.1", f"size of {size}", CHUNKED + size + b"\r\nx\r\n0\r\n\r\n", 400)
      for size in (b"", b"-1", b"0x1", b"1 ", b" 1", b"g", b"f" * 20, b"1\n")),
    ("7.1", "chunk longer than its size", CHUNKED + b"1\r\nxx\r\n0\r\n\r\n", 400),
    ("7.1", "lines of chunks that end in LF", CHUNKED + b"1\nx\n0\n\n", 400),
    ("7.1.2", "length among the trailers", CHUNKED +
     b"1\r\nx\r\n0\r\nContent-Length: 5\r\n\r\n", 400),
]
# fmt: on


@pytest.fixture(scope="module")
def server():
    transport = serving(EchoSurface(), threads=2)
    transport.start()
    yield transport
    transport.stop(PATIENCE_S)
    assert transport._shared.ledger.held_bytes == 0


def named(rows):
    return [pytest.param(*row[2:], id=f"{row[0]}: {row[1]}") for row in rows]


@pytest.mark.parametrize(("sent", "expected", "connection"), named(ANSWERED))
def test_request_is_answered(server, sent, expected, connection):
    with connected(server) as wire:
        wire.send(sent)
        status, headers, body = wire.answer()
        assert (status, body) == ("HTTP/1.1 200 OK", expected)
        told = {STAYS: None, ENDS: "close", SAYS_SO: "keep-alive"}[connection]
        assert headers.get("connection") == told
        if connection == ENDS:
            assert wire.is_closed()
            return
        wire.send(GET)
        assert wire.body() == b"GET /a "


@pytest.mark.parametrize(("sent", "status"), named(REFUSED))
def test_request_is_refused_and_the_connection_ends(server, sent, status):
    with connected(server) as wire:
        wire.send(sent + GET)
        told, headers, body = wire.answer()
        assert int(told.split()[1]) == status
        assert (headers["connection"], body) == ("close", page(status).body)
        assert wire.is_closed()


@pytest.mark.parametrize("size", [1, 7])
def test_requests_are_the_same_however_their_bytes_are_cut(server, size):
    kept = [(sent, body) for _, _, sent, body, connection in ANSWERED if connection != ENDS]
    content = b"".join(sent for sent, _ in kept)
    with connected(server) as wire:
        for at in range(0, len(content), size):
            wire.send(content[at : at + size])
        bodies = []
        while len(bodies) < len(kept):
            status, _, body = wire.answer()
            if status != CONTINUE:  # where the body was still to come
                bodies.append(body)
    assert bodies == [body for _, body in kept]


def test_expectation_behind_another_request_is_met_after_its_answer():
    surface = EchoSurface()
    transport = serving(surface, threads=1)
    transport.start()
    with connected(transport) as wire:
        wire.send(
            get(b"GET /wait HTTP/1.1")
            + post(b"Expect: 100-continue", b"Content-Length: 1", body=b"")
        )
        assert surface.entered.wait(PATIENCE_S)
        surface.go.set()
        assert wire.body() == b"GET /wait "
        assert wire.answer()[0] == CONTINUE
        wire.send(b"x")
        assert wire.body() == b"POST /p x"
    transport.stop(PATIENCE_S)
