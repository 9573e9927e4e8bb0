"""HTTP answers in all the pieces they may come in, and requests as they are written."""

import gzip

import pytest

from tfserve_kit.http.messages import (
    Cut,
    Endpoint,
    HttpRequest,
    Malformed,
    TooLarge,
    inflated,
    merged_headers,
    read_response,
)

MOST = 1000


def read(pieces, most=MOST):
    """Return the answer in these pieces; the connection ends after them."""
    reader = read_response(most)
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


@pytest.mark.parametrize(
    "text",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"x" * 1000,
        b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 1000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3e8\r\n"
        + b"x" * 1000
        + b"\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3e7\r\n"
        + b"x" * 999
        + b"\r\n1\r\nx\r\n0\r\n\r\n",
    ],
)
def test_answer_of_exactly_the_limit_is_read(text):
    assert read([text]).body == b"x" * 1000


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
    lines = Endpoint(url, {}).written(HttpRequest("GET", "/v1")).split(b"\r\n")
    assert lines[0] == line
    assert host in lines
    assert lines[-2:] == [b"", b""]


@pytest.mark.parametrize(
    ("url", "place"),
    [("http://h", ("h", 80)), ("https://h", ("h", 443)), ("http://[::1]:5", ("::1", 5))],
)
def test_endpoint_knows_where_to_connect(url, place):
    endpoint = Endpoint(url, {})
    assert (endpoint.host, endpoint.port) == place


def test_request_with_a_body_tells_its_length_and_may_be_compressed():
    request = HttpRequest("POST", "/v1", b"{}" * 100)
    head, body = Endpoint("http://h", {}).written(request).split(b"\r\n\r\n")
    assert body == request.body
    assert b"\r\nContent-Length: 200" in head
    head, body = Endpoint("http://h", {}, gzip=True).written(request).split(b"\r\n\r\n", 1)
    assert gzip.decompress(body) == request.body
    assert b"\r\nContent-Encoding: gzip\r\n" in head


def test_later_headers_win_whatever_the_case_of_their_names():
    assert merged_headers({"Host": "a", "X": "1"}, {"host": "b"}) == {"X": "1", "host": "b"}
