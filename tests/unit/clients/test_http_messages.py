"""HTTP answers in all the pieces they may come in, and requests as they are written."""

import gzip

import pytest

from tfserve_kit.clients.http_bodies import TooLarge, inflated
from tfserve_kit.clients.http_messages import Cut, Endpoint, Malformed, lost, reading
from tfserve_kit.clients.options import Options
from tfserve_kit.clients.protocol import HttpRequest, Loss
from tfserve_kit.errors import UsageError

MOST = 1000


def read(pieces, most=MOST):
    """Return the answer in these pieces; the connection ends after them."""
    reader = reading(most)
    next(reader)
    try:
        for piece in [*pieces, b"", b""]:
            reader.send(piece)
    except StopIteration as end:
        return end.value
    raise AssertionError("it wants more after the end")


PLAIN = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX: y\r\n\r\nhello"
CHUNKED = (
    b"HTTP/1.1 200 OK\r\ntransfer-ENCODING:  Chunked \r\n\r\n"
    b"2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\nTrailer: z\r\n\r\n"
)
UNTIL_END = b"HTTP/1.1 200 OK\r\n\r\nhello"
ZIPPED = gzip.compress(b"hello")
GZIP = (
    b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(ZIPPED)
) + ZIPPED
CONTINUED = b"HTTP/1.1 100 Continue\r\n\r\n" + PLAIN
OLD = b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello"
CLOSING = PLAIN.replace(b"X: y", b"Connection: Close")


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
@pytest.mark.parametrize(
    ("text", "stays_open"),
    [(PLAIN, True), (CHUNKED, True), (UNTIL_END, False), (GZIP, True), (CONTINUED, True),
     (OLD, False), (CLOSING, False)],
)  # fmt: skip
def test_answer_is_read_in_whatever_pieces_it_comes(text, stays_open, size):
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    answer = read(pieces)
    assert (answer.status, answer.reason, answer.body) == (200, "OK", b"hello")
    assert answer.stays_open is stays_open


@pytest.mark.parametrize("text", [PLAIN, CHUNKED, GZIP, OLD])
def test_answer_that_is_cut_anywhere_is_no_answer(text):
    for length in range(1, len(text)):
        with pytest.raises(Cut) as caught:
            read([text[:length]])
        assert caught.value.has_begun
    with pytest.raises(Cut) as caught:
        read([])
    assert not caught.value.has_begun


def test_bytes_beyond_the_answer_end_the_connection():
    answer = read([PLAIN + b"HTTP/1.1 200 OK"])
    assert (answer.body, answer.stays_open) == (b"hello", False)


@pytest.mark.parametrize(("status", "ok"), [(200, True), (201, False), (404, False), (503, False)])
def test_only_200_is_an_answer(status, ok):
    text = b"HTTP/1.1 %d\r\nContent-Length: 2\r\n\r\n{}" % status
    outcome = read([text]).outcome()
    assert (outcome.ok, outcome.status, outcome.body, outcome.text) == (ok, str(status), b"{}", "")


@pytest.mark.parametrize("status", [204, 304])
def test_answers_without_a_body_have_none(status):
    assert read([b"HTTP/1.1 %d No\r\n\r\n" % status]).body == b""


@pytest.mark.parametrize(
    "text",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 099 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nname : x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: y\r\n folded\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 4\r\n\r\nhello",
        CHUNKED.replace(b"\r\n\r\n", b"\r\nContent-Length: 5\r\n\r\n", 1),
        CHUNKED.replace(b"Chunked", b"gzip, chunked"),
        CHUNKED.replace(b"2\r\nhe", b"-2\r\nhe"),
        CHUNKED.replace(b"2\r\nhe", b"0x2\r\nhe"),
        CHUNKED.replace(b"2\r\nhe", b"1\r\nhe"),
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000,
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000,
    ],
)
def test_what_two_readers_might_read_differently_is_refused(text):
    with pytest.raises(Malformed):
        read([text[at : at + 5000] for at in range(0, len(text), 5000)])


@pytest.mark.parametrize(
    "text",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 1001,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3e9\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3e8\r\n"
        + b"x" * 1000
        + b"\r\n1\r\n",
    ],
)
def test_answer_may_have_so_many_bytes_and_no_more(text):
    with pytest.raises(TooLarge, match="more than 1,000 bytes"):
        read([text])


def test_compressed_answer_is_measured_as_it_was_meant():
    assert inflated(gzip.compress(b"x" * 1000), "gzip", 1000) == b"x" * 1000
    with pytest.raises(TooLarge):
        inflated(gzip.compress(b"x" * 1001), "GZIP", 1000)


@pytest.mark.parametrize(
    ("url", "line", "host"),
    [
        ("http://h:1", b"GET /v1 HTTP/1.1", b"Host: h:1"),
        ("http://h/a/b/", b"GET /a/b/v1 HTTP/1.1", b"Host: h"),
        ("https://[::1]:5", b"GET /v1 HTTP/1.1", b"Host: [::1]:5"),
    ],
)
def test_request_names_path_and_host(url, line, host):
    lines = Endpoint(url, Options()).written(HttpRequest("GET", "/v1")).split(b"\r\n")
    assert lines[0] == line
    assert host in lines
    assert lines[-2:] == [b"", b""]


@pytest.mark.parametrize(
    ("url", "place"),
    [("http://h", ("h", 80)), ("https://h", ("h", 443)), ("http://[::1]:5", ("::1", 5))],
)
def test_endpoint_knows_where_to_connect(url, place):
    endpoint = Endpoint(url, Options())
    assert (endpoint.host, endpoint.port) == place


def test_request_with_a_body_tells_its_length_and_may_be_compressed():
    request = HttpRequest("POST", "/v1", b"{}" * 100)
    head, body = Endpoint("http://h", Options()).written(request).split(b"\r\n\r\n")
    assert body == request.body
    assert b"\r\nContent-Length: 200" in head
    head, body = Endpoint("http://h", Options(gzip=True)).written(request).split(b"\r\n\r\n", 1)
    assert gzip.decompress(body) == request.body
    assert b"\r\nContent-Encoding: gzip\r\n" in head


@pytest.mark.parametrize("headers", [{"a b": "c"}, {"a": "b\r\nc: d"}, {"": "x"}, {"a": "\0"}])
def test_header_that_would_be_another_request_is_refused(headers):
    with pytest.raises(UsageError):
        Endpoint("http://h", Options(headers=headers))


@pytest.mark.parametrize(
    ("error", "how"),
    [
        (TimeoutError(), Loss.LATE),
        (TooLarge(5), Loss.TOO_LARGE),
        (Malformed("x"), Loss.GARBLED),
        (ConnectionResetError(), Loss.BROKEN),
        (Cut(has_begun=True), Loss.BROKEN),
    ],
)
def test_failure_says_how_the_answer_was_lost(error, how):
    found = lost(error, Loss.BROKEN)
    assert (found.how, found.cause, found.ok) == (how, error, False)
    assert found.text
