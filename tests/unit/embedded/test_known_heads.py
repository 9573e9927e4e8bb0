"""Heads of requests that are known: they are read as the parser reads them."""

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tfserve_kit.embedded.http_request import KnownHeads, RequestReader
from tfserve_kit.embedded.ledger import Ledger
from tfserve_kit.embedded.limits import MOST_PIPELINED


class Listener:
    """Keeps what a reader tells."""

    def __init__(self, heads):
        self.ledger = Ledger(1 << 30)
        self.told = []
        self.requests = []
        self.most = MOST_PIPELINED
        self.reader = RequestReader(self.ledger, "client", self, heads)

    def arrived(self, data):
        if self.reader.open:
            self.reader.feed(data)
            if self.reader.unread:
                self.reader.parse()

    def take(self, request):
        self.requests.append(request)
        held_bytes = request.account.held_bytes
        self.told.append(("request", request.head, request.body, held_bytes))

    def has_room(self):
        return len(self.requests) < self.most

    def refuse(self, status):
        self.told.append(("refused", status))
        self.reader.stop()

    def encourage(self):
        self.told.append(("go on",))


def heard(pieces, heads=None):
    """What a connection makes of what arrives; every head is parsed unless some are known."""
    listener = Listener(heads or KnownHeads())
    for data in pieces:
        if heads is None:
            listener.reader._heads = KnownHeads()
        listener.arrived(data)
    for request in listener.requests:
        request.account.close()
    left = listener.reader.begun, listener.reader.body_bytes, listener.ledger.held_bytes
    return listener.told, left if listener.reader.open else None


def post(*headers, body=b"", start=b"POST /v1/models/m:predict HTTP/1.1"):
    return b"\r\n".join([start, b"Host: x", *headers, b"", b""]) + body


PLAIN = post(b"Content-Length: 5", body=b"12345")
OTHER = post(b"Content-Length: 5", body=b"67890")


def knowing(*requests):
    heads = KnownHeads()
    for request in requests:
        heard([request], heads)
    return heads


starts = st.sampled_from(
    [b"POST /v1/models/m:predict HTTP/1.1", b"POST /v1/m:predict HTTP/1.0", b"GET / HTTP/1.1",
     b"OPTIONS /v1/models HTTP/1.1", b"HEAD / HTTP/1.1", b"CONNECT x:1 HTTP/1.1",
     b"\r\nPOST / HTTP/1.1", b"POST / HTTP/1.1\r\nX: \xff", b"what", b""]
)  # fmt: skip
lines = st.lists(
    st.sampled_from(
        [b"Connection: close", b"Connection: keep-alive", b"Content-Encoding: gzip",
         b"Origin: http://y", b"Expect: 100-continue", b"Transfer-Encoding: chunked",
         b"Content-Length: 5",
         b"content-length: 3", b"Connection: upgrade\r\nUpgrade: h2c", b"X: " + b"y" * 2000, b"bad"]
    ),
    max_size=4,
)  # fmt: skip
bodies = st.sampled_from(
    [b"", b"12345", b"123", b"5\r\n12345\r\n0\r\n\r\n", b"0\r\n\r\n", b"1\r\n\r\n5", PLAIN]
)
requests = st.builds(
    lambda start, headers, body: post(*headers, body=body, start=start), starts, lines, bodies
)


@given(st.lists(st.sampled_from([PLAIN, OTHER]) | requests, max_size=4), st.data())
@example([b"\r\n\r\n", PLAIN, PLAIN[:9], PLAIN[9:]], None)
def test_a_known_head_is_read_as_the_parser_reads_it(sent, data):
    heads = knowing(*sent, *(b"".join(pair) for pair in pairwise(sent)))
    pieces = list(sent)
    if data and pieces:  # they need not arrive as they were sent
        whole = b"".join(pieces)
        at = data.draw(st.integers(0, len(whole)))
        pieces = data.draw(st.sampled_from([pieces, [whole], [whole[:at], whole[at:]]]))
    pieces = [piece for piece in pieces if piece]
    assert heard(pieces, heads) == heard(pieces)


def test_a_repeated_head_is_not_parsed():
    listener = Listener(knowing(PLAIN))
    listener.reader._parser = None
    listener.arrived(OTHER)
    assert [request.body for request in listener.requests] == [b"67890"]


@pytest.mark.parametrize(
    "request_bytes",
    [
        post(b"Content-Length: 5", b"Expect: 100-continue", body=b"12345"),
        post(b"Content-Length: 5", b"Connection: close", body=b"12345"),
        post(b"Transfer-Encoding: chunked", body=b"1\r\n5\r\n0\r\n\r\n"),
        post(b"Origin: http://x", start=b"OPTIONS / HTTP/1.1"),
        post(b"X: " + b"y" * 2000, b"Content-Length: 5", body=b"12345"),
        PLAIN + PLAIN,
    ],
)
def test_a_head_that_says_more_is_parsed_each_time(request_bytes):
    heads = knowing(request_bytes)
    assert heads.find(request_bytes) is None


def test_a_head_whose_body_has_yet_to_come_is_parsed():
    heads = knowing(PLAIN)
    assert heads.find(PLAIN[:-1]) is None
    assert heads.find(PLAIN + b"P") is None


def test_while_there_is_no_room_a_known_request_stays_unread():
    listener = Listener(knowing(PLAIN))
    listener.most = 0
    listener.arrived(PLAIN)
    assert listener.requests == []
    assert bytes(listener.reader.unread) == PLAIN
    assert listener.ledger.held_bytes == len(PLAIN)


def test_a_known_request_that_is_too_large_for_the_ledger_is_refused():
    heads = knowing(PLAIN)
    listener = Listener(heads)
    listener.reader._ledger = Ledger(1000)
    listener.arrived(PLAIN)
    assert listener.told == [("refused", 413)]


def test_of_too_many_heads_some_are_forgotten():
    many = [post(b"Content-Length: 5", b"X: %d" % n, body=b"12345") for n in range(1000)]
    heads = knowing(*many)
    assert sum(heads.find(each) is not None for each in many) <= 256
    assert heads.find(many[-1]) is not None
