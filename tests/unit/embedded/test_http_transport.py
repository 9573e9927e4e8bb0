"""HTTP/1.1 over real sockets, with a surface that is made up."""

import asyncio
import errno
import gzip
import http.client
import resource
import socket
import struct
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from types import SimpleNamespace

import pytest

from tests.unit.embedded.flows import flowing
from tfserve_kit.clock import SystemClock, wait_until
from tfserve_kit.embedded.front import allow_many_connections
from tfserve_kit.embedded.http_request import RequestHead, RestRequest
from tfserve_kit.embedded.http_transport import HttpServer, RestOptions, _Row
from tfserve_kit.embedded.kinds import CallKind
from tfserve_kit.embedded.ledger import Ledger
from tfserve_kit.embedded.rest_surface import RestAnswer, page
from tfserve_kit.embedded.status import Code, ServingError

PATIENCE_S = 10.0
TEXT = {"Content-Type": "text/plain"}


class EchoSurface:
    """Answers `METHOD target body`; `/wait...` targets wait until `go` is set.

    Attributes:
        entered: set when a `/wait...` request has arrived.
        go: lets the waiting requests answer.
    """

    def __init__(self):
        self.entered, self.go = threading.Event(), threading.Event()
        self.asked = []

    def __call__(self, method, target, body, call):
        self.asked.append(target)
        if target.startswith("/wait"):
            self.entered.set()
            assert self.go.wait(PATIENCE_S)
        if target == "/page":
            return page(404)
        return RestAnswer(200, b" ".join([method.encode(), target.encode("latin-1"), body]), TEXT)


class LargeSurface(EchoSurface):
    """Answers with far more bytes than a socket holds."""

    def __call__(self, method, target, body, call):
        super().__call__(method, target, body, call)
        return RestAnswer(200, b"x" * 20_000_000, TEXT)


def serving(surface, threads, *, port=0, ledger=None, **more):
    """A transport on the loopback address, not started."""
    options = RestOptions(threads, **more)
    return HttpServer(flowing(surface), ledger or Ledger(1 << 32), ("127.0.0.1", port), options)


def serving_brisk_clients(surface, threads, patience_s):
    """A transport that gives its clients little time; answers have as much as they need."""
    transport = serving(surface, threads, timeout_s=patience_s, patience_s=patience_s)
    transport._shared.timeout_s = PATIENCE_S
    return transport


@pytest.fixture
def surface():
    surface = EchoSurface()
    yield surface
    surface.go.set()


@pytest.fixture
def server(surface):
    transport = serving(surface, threads=2)
    transport.start()
    yield transport
    surface.go.set()
    transport.stop(PATIENCE_S)


class Wire:
    """A raw client connection that reads one answer at a time."""

    def __init__(self, connection):
        self._socket = connection
        self._stream = connection.makefile("rb")

    def send(self, data):
        self._socket.sendall(data)

    def answer(self, *, headless=False):
        """Read one answer: status line, headers by lower-case name, body."""
        status = self._stream.readline().decode("latin-1").rstrip("\r\n")
        headers = {}
        while line := self._stream.readline().rstrip(b"\r\n"):
            name, _, value = line.decode("latin-1").partition(": ")
            headers[name.lower()] = value
        size = 0 if headless else int(headers.get("content-length", 0))
        return status, headers, self._stream.read(size)

    def body(self):
        status, _, body = self.answer()
        assert status == "HTTP/1.1 200 OK"
        return body

    def vanish(self):
        """Have the connection reset when it is closed, as if the client's machine were gone."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def is_closed(self):
        return self._stream.read(1) == b""


@contextmanager
def connected(server):
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE_S) as connection:
        wire = Wire(connection)
        with wire._stream:
            yield wire


@pytest.fixture
def wire(server):
    with connected(server) as wire:
        yield wire


def eventually(condition):
    return wait_until(
        lambda: condition() or None, timeout_s=PATIENCE_S, interval_s=0.005, clock=SystemClock()
    )


def request(target, body=b"", *, method="GET", version="1.1", headers=()):
    lines = [f"{method} {target} HTTP/{version}", "Host: h", *headers]
    if body or method == "POST":
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def test_request_reaches_the_surface_and_its_answer_comes_back(wire):
    wire.send(request("/a%20b?c=1", b"body", method="POST"))
    status, headers, body = wire.answer()
    assert status == "HTTP/1.1 200 OK"
    assert body == b"POST /a%20b?c=1 body"
    assert headers["content-type"] == "text/plain"
    assert headers["content-length"] == str(len(body))
    assert headers["date"].endswith(" GMT")
    assert "connection" not in headers


def test_connection_is_kept_for_further_requests(wire):
    for target in ("/1", "/2", "/3"):
        wire.send(request(target))
        assert wire.body() == b"GET %s " % target.encode()


@pytest.mark.parametrize(
    "sent",
    [
        request("/a", headers=["Connection: close"]),
        request("/a", version="1.0"),
    ],
    ids=["asked-for", "http-1.0"],
)
def test_connection_is_closed_where_the_client_wants_it(wire, sent):
    wire.send(sent)
    status, headers, body = wire.answer()
    assert (status, body) == ("HTTP/1.1 200 OK", b"GET /a ")
    assert headers["connection"] == "close"
    assert wire.is_closed()


def test_connection_is_closed_where_the_reply_wants_it(wire):
    wire.send(request("/page"))
    status, headers, body = wire.answer()
    assert (status, headers["connection"]) == ("HTTP/1.1 404 Not Found", "close")
    assert body == page(404).body
    assert wire.is_closed()


def test_pipelined_requests_are_answered_in_their_order(wire, surface):
    wire.send(request("/wait") + request("/2") + request("/3", b"x", method="POST"))
    assert surface.entered.wait(PATIENCE_S)
    assert surface.asked == ["/wait"]
    surface.go.set()
    assert [wire.body() for _ in range(3)] == [b"GET /wait ", b"GET /2 ", b"POST /3 x"]


def test_request_that_arrives_byte_by_byte_is_whole(wire):
    for byte in request("/slow", b"body", method="POST"):
        wire.send(bytes([byte]))
    assert wire.body() == b"POST /slow body"


def test_chunked_body_is_put_together(wire):
    wire.send(b"POST /c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
    wire.send(b"3\r\nabc\r\n")
    wire.send(b"2;note=x\r\nde\r\n0\r\n\r\n")
    assert wire.body() == b"POST /c abcde"


def test_large_body_and_large_answer_pass(wire):
    body = bytes(range(256)) * 20_000
    wire.send(request("/big", body, method="POST"))
    assert wire.body() == b"POST /big " + body


def test_client_that_expects_it_is_told_to_continue(wire):
    head = request("/e", b"1234", method="POST", headers=["Expect: 100-continue"])[:-4]
    wire.send(head)
    assert wire.answer()[0] == "HTTP/1.1 100 Continue"
    wire.send(b"1234")
    assert wire.body() == b"POST /e 1234"


def test_client_that_expects_nothing_is_not_told_to_continue(wire):
    wire.send(request("/e", b"1234", method="POST", headers=["Expect: something"]))
    assert wire.body() == b"POST /e 1234"


def test_head_is_answered_with_the_length_but_without_the_body(wire):
    wire.send(request("/h", method="HEAD") + request("/after"))
    _, headers, body = wire.answer(headless=True)
    assert (headers["content-length"], body) == (str(len(b"HEAD /h ")), b"")
    assert wire.body() == b"GET /after "


def test_unknown_method_reaches_the_surface(wire):
    wire.send(request("/o", method="OPTIONS"))
    assert wire.body() == b"OPTIONS /o "


@pytest.mark.parametrize(
    ("method", "headers", "origin"),
    [
        ("OPTIONS", ["oRIGIN: http://a", "Origin: http://b"], "http://a"),
        ("OPTIONS", ["Origin:"], None),
        ("GET", ["Origin: http://a"], None),
    ],
)
def test_surface_is_told_the_first_origin_of_options_alone(method, headers, origin):
    told = []

    def surface(method, target, body, call, **more):
        told.append(more)
        return RestAnswer(200)

    transport = serving(surface, threads=1)
    transport.start()
    with socket.create_connection(("127.0.0.1", transport.port)) as client:
        client.sendall(request("/v1/models/m", method=method, headers=headers))
        client.recv(1000)
    transport.stop(1)
    assert told == [{"origin": origin} if origin else {}]


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"hello there\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + b"f" * 17 + b"\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
    ids=[
        "tls",
        "text",
        "version",
        "length",
        "header",
        "chunk",
        "chunk-overflow",
        "length-negative",
        "length-overflow",
        "length-twice",
        "length-and-chunks",
        "nul",
        "http2",
    ],
)
def test_garbage_is_refused_and_closes_only_its_own_connection(server, garbage):
    with connected(server) as good, connected(server) as bad:
        bad.send(garbage)
        status, headers, body = bad.answer()
        assert status == "HTTP/1.1 400 Bad Request"
        assert (headers["connection"], body) == ("close", page(400).body)
        assert bad.is_closed()
        good.send(request("/fine"))
        assert good.body() == b"GET /fine "


def test_garbage_behind_a_request_waits_for_the_answer_to_it(wire, surface):
    wire.send(request("/wait") + b"\x00garbage\r\n\r\n")
    assert surface.entered.wait(PATIENCE_S)
    surface.go.set()
    assert wire.body() == b"GET /wait "
    assert wire.answer()[0] == "HTTP/1.1 400 Bad Request"
    assert wire.is_closed()


def test_request_behind_the_one_that_closes_is_not_answered(wire, surface):
    wire.send(request("/last", headers=["Connection: close"]) + request("/after"))
    assert wire.body() == b"GET /last "
    assert wire.is_closed()
    assert surface.asked == ["/last"]


def test_request_behind_a_reply_that_closes_is_not_answered(wire, surface):
    wire.send(request("/page") + request("/after"))
    assert wire.answer()[0] == "HTTP/1.1 404 Not Found"
    assert wire.is_closed()
    assert surface.asked == ["/page"]


def test_offer_to_upgrade_is_ignored_as_http_allows(wire):
    headers = ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"]
    wire.send(request("/u", b"body", method="POST", headers=headers))
    assert wire.body() == b"POST /u body"
    wire.send(request("/next"))
    assert wire.body() == b"GET /next "


def test_request_pipelined_behind_an_offer_to_upgrade_is_answered(wire):
    upgrade = request("/u", headers=["Connection: Upgrade", "Upgrade: h2c"])
    wire.send(upgrade + request("/next"))
    assert [wire.body(), wire.body()] == [b"GET /u ", b"GET /next "]


def test_tunnel_is_refused(wire):
    wire.send(b"CONNECT h:80 HTTP/1.1\r\nHost: h\r\n\r\n")
    assert wire.answer()[0] == "HTTP/1.1 400 Bad Request"
    assert wire.is_closed()


def test_slow_answer_on_one_connection_does_not_hold_up_another(server, surface):
    with connected(server) as slow, connected(server) as quick:
        slow.send(request("/wait"))
        assert surface.entered.wait(PATIENCE_S)
        quick.send(request("/quick"))
        assert quick.body() == b"GET /quick "
        surface.go.set()
        assert slow.body() == b"GET /wait "


def test_client_that_leaves_before_its_answer_harms_nobody(server, surface):
    with connected(server) as gone:
        gone.send(request("/wait"))
        assert surface.entered.wait(PATIENCE_S)
    surface.go.set()
    with connected(server) as other:
        other.send(request("/here"))
        assert other.body() == b"GET /here "


# Time and encodings


@pytest.fixture
def impatient(surface):
    """A server that gives answers a twentieth of a second."""
    transport = serving(surface, threads=2, timeout_s=0.05)
    transport.start()
    yield transport
    surface.go.set()
    transport.stop(PATIENCE_S)


def test_answer_that_takes_too_long_is_an_error_and_the_connection_goes_on(impatient, surface):
    with connected(impatient) as wire:
        wire.send(request("/wait") + request("/next"))
        status, headers, body = wire.answer()
        assert status == "HTTP/1.1 504 Gateway Timeout"
        assert body == b'{\n    "error": "Timed out waiting for notification"\n}'
        assert "connection" not in headers
        assert wire.body() == b"GET /next "
        surface.go.set()  # the late answer must not get between the others
        wire.send(request("/last"))
        assert wire.body() == b"GET /last "


@pytest.mark.parametrize(
    ("encoding", "sent", "received"),
    [
        ("gzip", gzip.compress(b"plain"), b"plain"),
        ("gzip", gzip.compress(b""), b""),
        ("gzip", b"plain", b""),
        ("gzip", gzip.compress(b"plain")[:-1], b""),
        ("gzip", gzip.compress(b"x" * 65), b""),
        ("gzip", gzip.compress(b"x" * 64), b"x" * 64),
        ("GZIP", b"plain", b"plain"),
        ("identity", b"plain", b"plain"),
    ],
    ids=["whole", "empty", "no-gzip", "cut", "too-large", "largest", "upper-case", "identity"],
)
def test_body_in_gzip_is_inflated(wire, monkeypatch, encoding, sent, received):
    monkeypatch.setattr("tfserve_kit.embedded.inflate.MOST_INFLATED_BYTES", 64)
    wire.send(request("/z", sent, method="POST", headers=[f"Content-Encoding: {encoding}"]))
    assert wire.body() == b"POST /z " + received


# Clients that go too far


LENGTH = "POST / HTTP/1.1\r\nContent-Length: {}\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"


def limited(monkeypatch, **limits):
    for name, value in limits.items():
        monkeypatch.setattr(f"tfserve_kit.embedded.{name}", value)


def is_refused(wire, status):
    line, headers, body = wire.answer()
    closes = headers["connection"] == "close" and wire.is_closed()
    return line.split()[1] == str(status) and body == page(status).body and closes


@pytest.mark.parametrize("length", [2**31, 10**18])
def test_claim_of_too_large_a_body_is_refused_without_waiting_for_it(wire, length):
    wire.send(LENGTH.format(length).encode())
    assert is_refused(wire, 413)


def test_client_that_expects_it_is_not_told_to_continue_too_large_a_body(wire):
    wire.send(LENGTH.format(2**31).encode()[:-2] + b"Expect: 100-continue\r\n\r\n")
    assert is_refused(wire, 413)


def test_refusal_reaches_a_client_that_goes_on_sending(wire):
    wire.send(LENGTH.format(2**31).encode())
    for _ in range(100):
        wire.send(b"x" * 100_000)
    assert is_refused(wire, 413)


def test_body_in_chunks_that_grows_too_large_is_refused(wire, monkeypatch):
    limited(monkeypatch, **{"http_request.MOST_BODY_BYTES": 10})
    wire.send(CHUNKED + b"a\r\n0123456789\r\n")
    wire.send(b"1\r\n0\r\n")
    assert is_refused(wire, 413)


@pytest.mark.parametrize(
    ("start", "rest"),
    [
        (b"GET /", b"x"),
        (b"GET / HTTP/1.1\r\nA: ", b"x"),
        (b"GET / HTTP/1.1\r\n", b"x"),
        (b"GET / HTTP/1.1\r\n", b"a: b\r\n"),
        (CHUNKED + b"1;", b"x"),
        (CHUNKED + b"1\r\nx\r\n0\r\nA: ", b"x"),
        (CHUNKED + b"1\r\nx\r\n0\r\n", b"a: b\r\n"),
        (CHUNKED, b"0"),
        (b"", b"\r\n"),
    ],
    ids=["target", "value", "name", "headers", "chunk-extension", "trailer", "trailers",
         "chunk-size", "blank-lines"],
)  # fmt: skip
def test_endless_head_is_refused(wire, start, rest):
    wire.send(start)
    with suppress(OSError):  # it may hang up while this still sends
        for _ in range(100):
            wire.send(rest * (5000 // len(rest)))
    status = wire.answer()[0].split()[1]
    assert status == "431" or (status, rest) == ("400", b"0")
    assert wire.is_closed()


def test_head_of_many_headers_counts_for_more_than_its_bytes(wire):
    wire.send(b"GET / HTTP/1.1\r\n" + b"a:\r\n" * 3000 + b"\r\n")
    assert is_refused(wire, 431)


def test_head_that_is_too_long_and_offers_to_upgrade_is_refused(wire):
    offer = ["Connection: Upgrade", "Upgrade: h2c"]
    wire.send(request("/u", headers=[*(["a:"] * 3000), *offer]) + request("/next"))
    assert is_refused(wire, 431)


def test_long_head_within_the_limit_is_read(wire):
    wire.send(request("/" + "x" * 30_000, headers=["A: " + "y" * 30_000]))
    assert wire.body() == b"GET /%s " % (b"x" * 30_000)
    wire.send(request("/next", headers=["A: " + "y" * 60_000]))
    assert wire.body() == b"GET /next "


def test_bodies_that_are_too_large_together_are_refused_until_there_is_room(surface):
    server = serving(surface, threads=2, ledger=Ledger(22_000))
    server.start()
    with connected(server) as first, connected(server) as second, connected(server) as third:
        first.send(request("/wait", b"x" * 10_000, method="POST"))
        assert surface.entered.wait(PATIENCE_S)
        second.send(request("/", b"x" * 10_000, method="POST"))
        assert is_refused(second, 503)
        surface.go.set()
        assert len(first.body()) > 10_000
        for _ in range(10):  # what was refused or answered is not counted for ever
            third.send(request("/", b"x" * 15_000, method="POST"))
            assert len(third.body()) > 15_000
    server.stop(PATIENCE_S)


def test_answers_that_are_not_taken_count_as_well():
    server = serving(LargeSurface(), threads=1, ledger=Ledger(27_000_000))
    server.start()
    with connected(server) as lazy, connected(server) as other, connected(server) as later:
        lazy.send(request("/"))
        assert eventually(lambda: server._shared.ledger.held_bytes > 100_000)
        other.send(request("/"))
        assert is_refused(other, 503)
        assert len(lazy.body()) == 20_000_000
        assert eventually(lambda: server._shared.ledger.held_bytes == 0)
        later.send(request("/"))
        assert len(later.body()) == 20_000_000
    server.stop(PATIENCE_S)


def test_nothing_is_held_for_clients_that_have_gone(server, surface):
    shared = server._shared
    with connected(server) as busy, connected(server) as gone, connected(server) as half:
        busy.send(request("/wait", b"x", method="POST"))
        assert surface.entered.wait(PATIENCE_S)
        gone.send(request("/wait", b"x" * 100, method="POST") + request("/never") * 5)
        half.send(LENGTH.format(1000).encode() + b"x" * 999)
        assert eventually(lambda: shared.ledger.held_bytes > 1000)
        for wire in (busy, gone, half):
            wire.vanish()
    assert eventually(lambda: not shared.connections)
    surface.go.set()
    assert eventually(lambda: shared.ledger.held_bytes == 0)
    assert "/never" not in surface.asked


def test_request_whose_client_has_gone_before_its_turn_is_not_answered(surface):
    server = serving(surface, threads=1)
    server.start()
    with connected(server) as busy:
        busy.send(request("/wait", method="POST"))
        assert surface.entered.wait(PATIENCE_S)
        with connected(server) as gone:
            gone.send(request("/gone", method="POST"))
            assert eventually(lambda: server._shared.ledger.held_bytes > 2000)
            gone.vanish()
        assert eventually(lambda: len(server._shared.connections) == 1)
        surface.go.set()
        assert busy.body() == b"POST /wait "
        busy.send(request("/after", method="POST"))
        assert busy.body() == b"POST /after "
    server.stop(PATIENCE_S)
    assert surface.asked == ["/wait", "/after"]


def test_thousands_of_pipelined_requests_are_left_unread_until_their_turn(server, surface):
    sent = request("/wait") + request("/") * 50_000
    with connected(server) as wire:
        sender = threading.Thread(target=wire.send, args=(sent,))
        sender.start()
        assert surface.entered.wait(PATIENCE_S)
        (connection,) = server._shared.connections
        assert eventually(lambda: not connection._transport.is_reading())
        # A piece may hold many short ones; what is not parsed yet is at most one read.
        assert len(connection._waiting) < 2000
        surface.go.set()
        assert wire.body() == b"GET /wait "
        for _ in range(500):
            assert wire.body() == b"GET / "
    sender.join(PATIENCE_S)
    assert not sender.is_alive()


def send_until_stuck(wire, sent):
    wire._socket.settimeout(0.2)
    with suppress(TimeoutError):
        while True:  # the system's buffers are finite, and so is the server's
            wire.send(sent)
    wire._socket.settimeout(PATIENCE_S)


def test_client_that_reads_no_answers_is_not_asked_for_more(server):
    with connected(server) as wire:
        send_until_stuck(wire, request("/" + "x" * 50_000))
        (connection,) = server._shared.connections
        assert connection._transport.get_write_buffer_size() < 200_000
        assert server._shared.ledger.held_bytes < 600_000  # what is not parsed counts as well
        for _ in range(20):
            assert len(wire.body()) > 50_000


def test_offers_to_upgrade_by_the_thousand_are_declined_one_by_one(wire):
    upgrade = request("/u", headers=["Connection: Upgrade", "Upgrade: h2c"])
    sender = threading.Thread(target=wire.send, args=(upgrade * 5000,))
    sender.start()
    for _ in range(5000):
        assert wire.body() == b"GET /u "
    sender.join(PATIENCE_S)


@pytest.fixture
def brisk(surface):
    """A server that gives clients a third of a second."""
    transport = serving_brisk_clients(surface, threads=2, patience_s=0.3)
    transport.start()
    yield transport
    surface.go.set()
    transport.stop(PATIENCE_S)


@pytest.mark.parametrize(
    "sent",
    [
        b"G",
        b"GET / HTTP/1.1\r\nA: b\r\n",
        LENGTH.format(2**31 - 1).encode(),
        LENGTH.format(10).encode() + b"x",
        CHUNKED + b"1\r\nx\r\n",
        request("/before") + b"GET",
    ],
    ids=["first-byte", "headers", "claim", "body", "chunks", "second"],
)
def test_request_that_is_never_completed_is_refused_in_time(brisk, sent):
    with connected(brisk) as wire:
        wire.send(sent)
        if b"before" in sent:
            assert wire.body() == b"GET /before "
        assert is_refused(wire, 408)


def test_request_that_drips_is_refused_in_time(brisk):
    with connected(brisk) as wire:
        wire.send(LENGTH.format(10**6).encode())
        with suppress(OSError):
            for _ in range(100):
                wire.send(b"x")
                time.sleep(0.01)
        assert is_refused(wire, 408)


def test_body_that_gets_on_may_take_longer(surface, monkeypatch):
    limited(monkeypatch, **{"http_transport.STEADY_BYTES": 1})
    server = serving_brisk_clients(surface, threads=2, patience_s=1)
    server.start()
    with connected(server) as wire:
        wire.send(LENGTH.format(60).encode())
        for _ in range(60):
            wire.send(b"x")
            time.sleep(0.025)
        assert wire.body() == b"POST / " + b"x" * 60
    server.stop(PATIENCE_S)


def test_connection_may_idle_longer_than_a_request_may_take(brisk):
    with connected(brisk) as wire:
        for _ in range(2):
            time.sleep(0.5)
            wire.send(request("/idle"))
            assert wire.body() == b"GET /idle "


def test_request_behind_a_slow_one_does_not_run_out_of_time(surface):
    server = serving_brisk_clients(surface, threads=1, patience_s=0.1)
    server.start()
    with connected(server) as wire:
        wire.send(request("/wait") + request("/") * 16 + b"GET /last HTTP/1.1\r\n")
        assert surface.entered.wait(PATIENCE_S)
        time.sleep(0.4)
        wire.send(b"\r\n")
        surface.go.set()
        bodies = [wire.body() for _ in range(18)]
        assert bodies[-1] == b"GET /last "
    server.stop(PATIENCE_S)


def test_client_that_takes_nothing_of_its_answer_is_hung_up_on():
    surface = LargeSurface()
    server = serving_brisk_clients(surface, threads=1, patience_s=0.1)
    server.start()
    with connected(server) as wire:
        wire.send(request("/"))
        assert eventually(lambda: surface.asked)
        assert eventually(lambda: not server._shared.connections)
    server.stop(PATIENCE_S)


def test_client_that_takes_its_answer_slowly_gets_all_of_it():
    server = serving_brisk_clients(LargeSurface(), threads=1, patience_s=1)
    server.start()
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE_S) as client:
        client.sendall(request("/", version="1.0"))
        got = 0
        while data := client.recv(1_000_000):
            got += len(data)
            time.sleep(0.05)
    assert got > 20_000_000
    server.stop(PATIENCE_S)


def test_connections_beyond_the_limit_wait_for_room(surface, monkeypatch):
    monkeypatch.setattr("tfserve_kit.embedded.front.most_connections", lambda: 2)
    server = serving(surface, threads=1)
    server.start()
    with connected(server) as first, connected(server):
        first.send(request("/1"))
        assert first.body() == b"GET /1 "
        with connected(server) as third:
            third.send(request("/3"))
            third._socket.settimeout(0.2)
            with pytest.raises(TimeoutError):
                third.body()
        with connected(server) as fourth:
            first._socket.shutdown(socket.SHUT_RDWR)
            fourth.send(request("/4"))
            assert fourth.body() == b"GET /4 "
    server.stop(PATIENCE_S)


def test_lack_of_descriptors_is_got_over(surface):
    server = serving(surface, threads=1)
    accept, failures = server._loop.sock_accept, [OSError(errno.EMFILE, "none left")] * 2

    async def lacking(listener):
        if failures:
            raise failures.pop()
        return await accept(listener)

    server._loop.sock_accept = lacking
    server.start()
    with connected(server) as wire:
        wire.send(request("/"))
        assert wire.body() == b"GET / "
    server.stop(PATIENCE_S)


def test_limit_of_descriptors_is_raised_as_far_as_it_goes():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[0] - 1, before[1]))
    try:
        allow_many_connections()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


# The end


def stopping(server, grace_s):
    thread = threading.Thread(target=server.stop, args=(grace_s,))
    thread.start()
    return thread


def frees_its_port(server):
    """Wait until the server listens no more: another one could."""

    def probe():
        try:
            return socket.create_server(("127.0.0.1", server.port)).close() or True
        except OSError:
            return None

    return wait_until(probe, timeout_s=PATIENCE_S, interval_s=0.005, clock=SystemClock())


def test_stop_lets_the_answer_in_flight_out_and_refuses_new_connections(surface):
    server = serving(surface, threads=2)
    server.start()
    with connected(server) as wire, connected(server) as idle:
        wire.send(request("/wait"))
        assert surface.entered.wait(PATIENCE_S)
        thread = stopping(server, PATIENCE_S)
        assert frees_its_port(server)
        surface.go.set()
        assert wire.body() == b"GET /wait "
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
        assert wire.is_closed()
        assert idle.is_closed()


def test_stop_lets_a_large_answer_out_whole():
    surface = LargeSurface()
    server = serving(surface, threads=1)
    server.start()
    with connected(server) as wire:
        wire.send(request("/wait"))
        assert surface.entered.wait(PATIENCE_S)
        thread = stopping(server, PATIENCE_S)
        assert frees_its_port(server)
        surface.go.set()
        assert len(wire.body()) == 20_000_000
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def test_stop_leaves_a_client_that_does_not_read_behind():
    surface = LargeSurface()
    surface.go.set()
    server = serving(surface, threads=1)
    server.start()
    with connected(server) as wire:
        wire.send(request("/wait"))
        assert surface.entered.wait(PATIENCE_S)
        thread = stopping(server, 0.1)
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def test_stop_does_not_wait_longer_than_its_grace(surface):
    server = serving(surface, threads=2)
    server.start()
    with connected(server) as wire:
        wire.send(request("/wait") + request("/never"))
        assert surface.entered.wait(PATIENCE_S)
        thread = stopping(server, 0.05)
        assert wire.is_closed()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    surface.go.set()
    assert surface.asked == ["/wait"]


def test_request_whose_turn_never_came_ends_with_the_server_and_without_a_word(surface, caplog):
    server = serving(surface, threads=1)
    server.start()
    with connected(server) as first, connected(server) as second:
        first.send(request("/wait", method="POST"))
        assert surface.entered.wait(PATIENCE_S)
        second.send(request("/queued", method="POST"))
        server.stop(0.05)
        assert second.is_closed()
    surface.go.set()
    assert surface.asked == ["/wait"]
    assert caplog.records == []


def test_stop_before_start_frees_the_port(surface):
    server = serving(surface, threads=1)
    server.stop(0)
    assert frees_its_port(server)


def test_port_in_use_is_refused_by_address(surface):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServingError) as caught:
            serving(surface, port=port, threads=1)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert caught.value.message == f"cannot listen for REST on 127.0.0.1:{port}"


# Clients that send no more, and wait


@pytest.mark.parametrize("count", [1, 3, 40])
def test_client_that_closes_its_half_gets_all_its_answers(wire, surface, count):
    wire.send(request("/wait", method="POST") + request("/", method="POST") * (count - 1))
    wire._socket.shutdown(socket.SHUT_WR)
    assert surface.entered.wait(PATIENCE_S)
    surface.go.set()
    assert wire.body() == b"POST /wait "
    for _ in range(count - 1):
        assert wire.body() == b"POST / "
    assert wire.is_closed()


def test_last_answer_to_a_client_that_closed_its_half_says_so(wire, server, surface):
    wire.send(request("/wait") + request("/"))
    wire._socket.shutdown(socket.SHUT_WR)
    assert eventually(lambda: any(each._has_ended for each in server._shared.connections))
    surface.go.set()
    assert "connection" not in wire.answer()[1]
    assert wire.answer()[1]["connection"] == "close"


@pytest.mark.parametrize("sent", [b"", b"GET / HT", LENGTH.format(100).encode() + b"x"])
def test_client_that_closes_its_half_within_a_request_is_hung_up_on(wire, server, sent):
    wire.send(sent)
    wire._socket.shutdown(socket.SHUT_WR)
    assert wire.is_closed()
    assert eventually(lambda: not server._shared.connections)
    assert server._shared.ledger.held_bytes == 0


# What is held is given back


class BrokenSurface(EchoSurface):
    """Raises, as it never should."""

    def __call__(self, method, target, body, call):
        call.account.take(1000, "something")
        raise {"/memory": MemoryError, "/value": ValueError}[target]("\ud800")


@pytest.mark.parametrize("target", ["/memory", "/value"])
def test_surface_that_raises_is_an_error_for_its_client_and_holds_nothing(target):
    server = serving(BrokenSurface(), threads=1)
    server.start()
    for _ in range(3):
        with connected(server) as wire:
            wire.send(request(target, b"x" * 1000, method="POST"))
            assert wire.answer()[0] == "HTTP/1.1 500 Internal Server Error"
    assert eventually(lambda: server._shared.ledger.held_bytes == 0)
    assert server._shared.lanes.predictions._taken == 0
    server.stop(PATIENCE_S)


def test_body_that_inflates_to_more_than_there_is_room_for_is_refused(surface):
    server = serving(surface, threads=1, ledger=Ledger(4_000_000))
    server.start()
    bomb = gzip.compress(bytes(20_000_000))
    with connected(server) as wire:
        wire.send(request("/z", bomb, method="POST", headers=["Content-Encoding: gzip"]))
        assert is_refused(wire, 503)
    assert eventually(lambda: server._shared.ledger.held_bytes == 0)
    assert surface.asked == []
    server.stop(PATIENCE_S)


def test_every_way_a_request_can_end_gives_everything_back(server, surface):
    ends = [
        request("/", b"x" * 10_000, method="POST"),
        request("/", b"x" * 10_000, method="POST")[:-1],
        request("/", gzip.compress(b"x"), method="POST", headers=["Content-Encoding: gzip"]),
        LENGTH.format(2**31).encode(),
        b"GET / HTTP/1.1\r\nA: " + b"x" * 60_000,
        b"GET / HTTP/1.1\r\nA: " + b"x" * 70_000,
        request("/u", headers=["Connection: Upgrade", "Upgrade: h2c"]) * 3,
        request("/page") + request("/never"),
        CHUNKED + b"5\r\nhello\r\nnonsense",
        b"nonsense",
        request("/") * 100,
    ]
    for sent in ends:
        for leave in (Wire.vanish, lambda wire: wire._socket.shutdown(socket.SHUT_WR), id):
            with connected(server) as wire:
                wire.send(sent)
                leave(wire)
    assert eventually(lambda: not server._shared.connections)
    assert eventually(lambda: server._shared.ledger.held_bytes == 0)
    assert server._shared.lanes.predictions._taken == server._shared.lanes.others._taken == 0


def test_status_is_told_while_every_prediction_computes(server, surface):
    with ExitStack() as stack:
        for _ in range(6):
            busy = stack.enter_context(connected(server))
            busy.send(request("/wait", method="POST"))
        assert surface.entered.wait(PATIENCE_S)
        other = stack.enter_context(connected(server))
        for _ in range(5):
            other.send(request("/status"))
            assert other.body() == b"GET /status "
        surface.go.set()


# Nothing is lost at the end


def test_stop_answers_who_has_connected_but_was_not_accepted_yet(surface, monkeypatch):
    server = serving(surface, threads=2)
    accept = server._loop.sock_accept

    async def slow(listener):
        await asyncio.sleep(PATIENCE_S)
        return await accept(listener)

    monkeypatch.setattr(server._loop, "sock_accept", slow)
    server.start()
    with ExitStack() as stack:
        wires = [stack.enter_context(connected(server)) for _ in range(20)]
        for wire in wires:
            wire.send(request("/"))
        thread = stopping(server, PATIENCE_S)
        for wire in wires:
            _, headers, body = wire.answer()
            assert body == b"GET / "
            assert headers["connection"] == "close"
    thread.join(PATIENCE_S)
    assert not thread.is_alive()


def test_stop_waits_for_the_rest_of_a_request_that_has_begun(surface):
    server = serving(surface, threads=2)
    server.start()
    sent = request("/", b"x" * 100, method="POST")
    with connected(server) as wire:
        wire.send(sent[:-50])
        assert eventually(lambda: server._shared.ledger.held_bytes)
        thread = stopping(server, PATIENCE_S)
        assert frees_its_port(server)
        time.sleep(0.3)
        wire.send(sent[-50:])
        _, headers, body = wire.answer()
        assert body == b"POST / " + b"x" * 100
        assert headers["connection"] == "close"
    thread.join(PATIENCE_S)
    assert not thread.is_alive()


def test_stop_loses_no_request_of_clients_that_connect_anew_or_stay(surface):
    lost, answered, stop = [], [], threading.Event()

    def client(port, stays):
        connection = None
        while not stop.is_set():
            if connection is None:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
                try:
                    connection.connect()
                except OSError:  # refused: nothing is lost
                    return
            try:
                connection.request("POST", "/x", b"body")
                answered.append(connection.getresponse().read())
            except (OSError, http.client.HTTPException) as error:
                lost.append(error)
                return
            if not stays or connection.sock is None:
                connection.close()
                connection = None

    for _ in range(5):
        stop.clear()
        server = serving(surface, threads=2)
        server.start()
        threads = [threading.Thread(target=client, args=(server.port, n % 2)) for n in range(6)]
        for thread in threads:
            thread.start()
        wanted = len(answered) + 100
        assert eventually(lambda wanted=wanted: len(answered) > wanted)
        server.stop(PATIENCE_S)
        stop.set()
        for thread in threads:
            thread.join(PATIENCE_S)
    assert not lost


def test_short_requests_take_the_short_cut_once_known_and_others_the_usual_way(surface):
    asked = []

    def at_once(target, requests):
        asked.extend((target, body) for body, _ in requests)
        return [RestAnswer(200, b"at once", TEXT) if body == b"x" else None for body, _ in requests]

    ledger = Ledger(1 << 32)
    address = ("127.0.0.1", 0)
    transport = HttpServer(flowing(surface), ledger, address, at_once=at_once)
    transport.start()
    try:
        with connected(transport) as wire:

            def answer(body, method="POST"):
                wire.send(request("/p", body, method=method))
                return wire.body()

            assert answer(b"x") == b"POST /p x"
            eventually(lambda: answer(b"x") == b"at once")
            assert answer(b"y") == b"POST /p y"
            assert answer(b"x", "GET") == b"GET /p x"
            many = request("/p", b"x", method="POST") * 1000
            wire.send(many)
            assert {wire.body() for _ in range(1000)} <= {b"at once", b"POST /p x"}
        assert set(asked) == {("/p", b"x"), ("/p", b"y")}
        eventually(lambda: not ledger.held_bytes)
    finally:
        transport.stop(PATIENCE_S)


class Told:
    """A connection that keeps what it is told."""

    def __init__(self, log, fails=False):
        self.log, self.fails = log, fails

    def take_reply(self, request, reply):
        self.log.append(("sent", reply.body))
        if self.fails:
            raise RuntimeError("it has gone")

    def ask_here(self, request):
        self.log.append(("the usual way", request.body))


@pytest.fixture
def row():
    """Short requests over a runner that does a step when it is told to."""
    log, steps = [], []

    def at_once(target, requests):
        log.append(("asked", [body for body, _ in requests]))
        return [None if body == b"odd" else RestAnswer(200, body.upper()) for body, _ in requests]

    runner = SimpleNamespace(step_soon=steps.append, note_here=lambda *_: None)
    found = _Row(SimpleNamespace(runner=runner, at_once=at_once))
    found.log, found.steps = log, steps
    return found


def short(body):
    return RestRequest(RequestHead("POST", "/p"), body, Ledger(1).account("c"))


def test_all_of_a_row_are_answered_before_the_first_answer_is_sent(row, caplog):
    kind = CallKind(least_s=1e-4)
    for body in (b"a", b"odd", b"b"):
        row.add(Told(row.log, fails=body == b"a"), short(body), kind)
    (step,) = row.steps
    assert step() is False
    assert row.log == [
        ("asked", [b"a", b"odd", b"b"]), ("sent", b"A"), ("the usual way", b"odd"), ("sent", b"B"),
    ]  # fmt: skip
    assert "it has gone" in caplog.text


def test_a_row_is_of_one_kind_and_as_long_as_its_calls_are_short(row):
    kinds = CallKind(mean_s=2e-4, least_s=1e-4), CallKind(least_s=1e-4)
    for body in (b"1", b"2", b"3", b"4", b"5"):
        row.add(Told(row.log), short(body), kinds[body == b"2"])
    (step,) = row.steps
    assert [step(), step(), step()] == [True, True, False]
    asked = [bodies for what, bodies in row.log if what == "asked"]
    assert asked == [[b"1", b"3"], [b"2"], [b"4", b"5"]]  # of 0.2 ms each two fill half a ms
    row.add(Told(row.log), short(b"6"), kinds[0])
    assert len(row.steps) == 2


def test_many_that_are_tiny_are_several_rows(row):
    kind = CallKind(least_s=1e-4, mean_s=1e-6)
    for _ in range(100):
        row.add(Told(row.log), short(b"x"), kind)
    (step,) = row.steps
    while step():
        pass
    sizes = [len(bodies) for what, bodies in row.log if what == "asked"]
    assert (sum(sizes), max(sizes)) == (100, 32)


def test_calls_that_wait_for_others_go_the_usual_way(row):
    row.add(Told(row.log), short(b"x"), CallKind(waits=True))
    row.steps[0]()
    assert row.log == [("the usual way", b"x")]
