"""HTTP/1.1 over real sockets, with a surface that is made up."""

import gzip
import socket
import threading
from contextlib import contextmanager

import pytest

from tfserve_kit.clock import SystemClock, wait_until
from tfserve_kit.embedded.http_transport import HttpTransport
from tfserve_kit.embedded.rest_surface import Reply, page
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

    def __call__(self, method, target, body):
        self.asked.append(target)
        if target.startswith("/wait"):
            self.entered.set()
            assert self.go.wait(PATIENCE_S)
        if target == "/page":
            return page(404)
        return Reply(200, b" ".join([method.encode(), target.encode("latin-1"), body]), TEXT)


class LargeSurface(EchoSurface):
    """Answers with far more bytes than a socket holds."""

    def __call__(self, method, target, body):
        super().__call__(method, target, body)
        return Reply(200, b"x" * 20_000_000, TEXT)


@pytest.fixture
def surface():
    surface = EchoSurface()
    yield surface
    surface.go.set()


@pytest.fixture
def server(surface):
    transport = HttpTransport(surface, "127.0.0.1", 0, threads=2)
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
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"hello there\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
    ids=["tls", "text", "version", "length", "header", "chunk"],
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
    transport = HttpTransport(surface, "127.0.0.1", 0, threads=2, timeout_s=0.05)
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
    monkeypatch.setattr("tfserve_kit.embedded.http_transport._MOST_INFLATED_BYTES", 64)
    wire.send(request("/z", sent, method="POST", headers=[f"Content-Encoding: {encoding}"]))
    assert wire.body() == b"POST /z " + received


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
    server = HttpTransport(surface, "127.0.0.1", 0, threads=2)
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
    server = HttpTransport(surface, "127.0.0.1", 0, threads=1)
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
    server = HttpTransport(surface, "127.0.0.1", 0, threads=1)
    server.start()
    with connected(server) as wire:
        wire.send(request("/wait"))
        assert surface.entered.wait(PATIENCE_S)
        thread = stopping(server, 0.1)
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def test_stop_does_not_wait_longer_than_its_grace(surface):
    server = HttpTransport(surface, "127.0.0.1", 0, threads=2)
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
    server = HttpTransport(surface, "127.0.0.1", 0, threads=1)
    server.start()
    with connected(server) as first, connected(server) as second:
        first.send(request("/wait"))
        assert surface.entered.wait(PATIENCE_S)
        second.send(request("/queued"))
        server.stop(0.05)
        assert second.is_closed()
    surface.go.set()
    assert surface.asked == ["/wait"]
    assert caplog.records == []


def test_stop_before_start_frees_the_port(surface):
    server = HttpTransport(surface, "127.0.0.1", 0, threads=1)
    server.stop(0)
    assert frees_its_port(server)


def test_port_in_use_is_refused_by_address(surface):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServingError) as caught:
            HttpTransport(surface, "127.0.0.1", port, threads=1)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert caught.value.message == f"cannot listen for REST on 127.0.0.1:{port}"
