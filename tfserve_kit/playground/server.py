"""The page over HTTP, for one person on this machine; the standard library's server is enough.

A page of another origin must not use it: requests must name a host that is meant (no name that was
made to lead here), and those that do something must come from the page itself, with the token that
is in it. The page loads nothing from elsewhere, and nothing in it is markup but what is in the
files beside this one.
"""

import contextlib
import hmac
import ipaddress
import re
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any, NamedTuple, Self
from urllib.parse import parse_qs, urlsplit

from tfserve_kit import strict_json
from tfserve_kit.clients import Target
from tfserve_kit.clock import Clock, SystemClock
from tfserve_kit.errors import (
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    RequestError,
    ServerOverloaded,
    TfkitError,
    UsageError,
)
from tfserve_kit.playground.session import PlaygroundSession, of_error

MAX_BODY_BYTES = 32 << 20
MAX_PER_SECOND, MAX_BURST = 20.0, 40.0  # requests that do something
_MAX_CONNECTIONS = 32
_PATIENCE_S, _BODY_S = 10.0, 60.0  # of each read, and for a whole body
_CHUNK_BYTES = 1 << 16
_MOST_TOP = 1000

_FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/script.js": ("script.js", "text/javascript; charset=utf-8"),
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}
_STATUS: tuple[tuple[type[TfkitError], HTTPStatus], ...] = (
    (ModelNotFound, HTTPStatus.NOT_FOUND),
    (InvalidRequest, HTTPStatus.BAD_REQUEST),
    (DeadlineExceeded, HTTPStatus.GATEWAY_TIMEOUT),
    (ServerOverloaded, HTTPStatus.SERVICE_UNAVAILABLE),
    (RequestError, HTTPStatus.BAD_GATEWAY),
    (UsageError, HTTPStatus.BAD_REQUEST),
)


class _PageReply(NamedTuple):
    """What is sent back."""

    status: HTTPStatus
    kind: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


class _Ask(NamedTuple):
    """What came in: verb, path with query, headers by lower-case name, and what reads the body."""

    verb: str
    target: str
    headers: dict[str, str]
    read: Callable[[], bytes]


class _Refused(Exception):
    """A request is not answered; with the status and what the page should say."""

    def __init__(self, status: HTTPStatus, message: str, remedy: str, wait_s: float = 0) -> None:
        super().__init__(message)
        self.status, self.wait_s = status, wait_s
        self.said = {"kind": "Refused", "message": message, "remedy": remedy}


class _Page:
    """Answers the requests of the page; knows no sockets. Thread-safe.

    Args:
        session: asks the model server.
        host: where the page is served; requests for other names are refused.
        clock: what time is measured with.

    Attributes:
        token: what the page's own requests carry.
    """

    def __init__(self, session: PlaygroundSession, host: str, clock: Clock | None = None) -> None:
        self._session, self._host = session, host.lower()
        self._clock = clock or SystemClock()
        self._guard = threading.Lock()
        self._tokens, self._filled_s = MAX_BURST, self._clock.now_s()
        self.token = secrets.token_urlsafe(32)

    def answer(self, ask: _Ask) -> _PageReply:
        """Return what to send back; never raises what is expected to go wrong."""
        try:
            self._require_host(ask.headers)
            parts = urlsplit(ask.target)
            if ask.verb in {"GET", "HEAD"} and parts.path in _FILES:
                return self._file(parts.path)
            return _json(HTTPStatus.OK, self._done(ask, parts.path, parse_qs(parts.query)))
        except _Refused as refused:
            more = (("Retry-After", f"{refused.wait_s:.3f}"),) if refused.wait_s else ()
            return _json(refused.status, {"error": refused.said}, more)
        except TfkitError as error:
            status = next(
                (each for kind, each in _STATUS if isinstance(error, kind)),
                HTTPStatus.INTERNAL_SERVER_ERROR,
            )
            return _json(status, {"error": of_error(error)})

    def _file(self, path: str) -> _PageReply:
        name, kind = _FILES[path]
        text = (files("tfserve_kit.playground") / name).read_text("utf-8")
        filled = text.replace("{token}", self.token).replace("{bytes}", str(MAX_BODY_BYTES))
        return _PageReply(HTTPStatus.OK, kind, filled.encode() if path == "/" else text.encode())

    def _done(self, ask: _Ask, path: str, query: dict[str, list[str]]) -> Any:
        """Return the data of an answer."""
        asked = _Query(query)
        reading: dict[str, Callable[[], Any]] = {
            "/api/overview": self._session.overview,
            "/api/describe": lambda: self._session.describe(asked.chosen()[0]),
        }
        doing: dict[str, Callable[[bytes], Any]] = {
            "/api/picture": lambda data: self._session.picture(
                *asked.chosen(), data, asked.text("name", "picture")
            ),
            "/api/values": lambda data: self._session.values(
                *asked.chosen(), data.decode("utf-8", "replace"), asked.text("form", "json")
            ),
            "/api/body": lambda data: {
                "body": self._session.body(
                    asked.chosen()[0], data, asked.text("name", "picture")
                ).decode()
            },
        }
        verb = "GET" if path in reading else "POST"
        if path not in reading and path not in doing:
            raise _Refused(HTTPStatus.NOT_FOUND, f"there is no {path!r:.80}", "open the page at /")
        if ask.verb != verb:
            text = f"{path} takes {verb}, not {ask.verb:.20}"
            raise _Refused(HTTPStatus.METHOD_NOT_ALLOWED, text, "use the page")
        if ask.headers.get("sec-fetch-site", "same-origin") not in {"same-origin", "none"}:
            raise _Refused(HTTPStatus.FORBIDDEN, "another page asked this", "open the page itself")
        if path in reading:
            return reading[path]()
        self._require_own(ask.headers)
        self._require_turn()
        return doing[path](ask.read())

    def _require_host(self, headers: dict[str, str]) -> None:
        """Refuse a name that somebody made to lead to this address (DNS rebinding)."""
        given = headers.get("host", "")
        try:
            host = (urlsplit(f"//{given}").hostname or "").lower()
        except ValueError:
            host = ""
        if host and (host in {self._host, "localhost"} or self._is_fine(host)):
            return
        raise _Refused(
            HTTPStatus.MISDIRECTED_REQUEST,
            f"this page is not served as {given!r:.80}",
            f"open it by its address, or start it with --host {host}" if host else "name the host",
        )

    def _is_fine(self, host: str) -> bool:
        """Say whether a host is an address: no attacker's page is at one that leads here."""
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return False
        return address.is_loopback or not is_loopback(self._host)

    def _require_own(self, headers: dict[str, str]) -> None:
        """Refuse what another page sends (CSRF): it knows no token, and cannot hide its origin."""
        origin = f"http://{headers.get('host', '')}"
        token = headers.get("x-tfkit-token", "")
        is_own = hmac.compare_digest(token.encode(), self.token.encode())
        if not is_own or headers.get("origin") != origin:
            raise _Refused(
                HTTPStatus.FORBIDDEN,
                "the request does not come from this page, or from before it was started anew",
                "reload the page",
            )

    def _require_turn(self) -> None:
        """Refuse more requests than one person makes."""
        with self._guard:
            now_s = self._clock.now_s()
            more = (now_s - self._filled_s) * MAX_PER_SECOND
            self._tokens, self._filled_s = min(MAX_BURST, self._tokens + more), now_s
            if self._tokens >= 1:
                self._tokens -= 1
                return
            wait_s = (1 - self._tokens) / MAX_PER_SECOND
        text = f"more than {MAX_PER_SECOND:g} requests a second"
        remedy = "wait a moment; `tfkit perf` measures what a server can take"
        raise _Refused(HTTPStatus.TOO_MANY_REQUESTS, text, remedy, wait_s)


class _Query:
    """The parameters of a request."""

    def __init__(self, given: dict[str, list[str]]) -> None:
        self._given = given

    def text(self, name: str, default: str = "") -> str:
        return self._given.get(name, [default])[-1]

    def number(self, name: str, most: int) -> int | None:
        text = self.text(name)
        if not text:
            return None
        if not re.fullmatch(r"\d{1,19}", text, re.ASCII) or int(text) > most:
            raise UsageError(f"{name} cannot be {text!r:.40}", remedy=f"give 0 to {most}")
        return int(text)

    def chosen(self) -> tuple[Target, int]:
        """Return what was chosen on the page, and how many classes to show."""
        version, label = self.number("version", 2**63 - 1), self.text("label") or None
        if version is not None and label:
            raise UsageError("a version and a label were chosen", remedy="choose one of them")
        target = Target(self.text("model"), version, label, self.text("signature"))
        return target, self.number("top", _MOST_TOP) or 5


def _json(status: HTTPStatus, data: Any, headers: tuple[tuple[str, str], ...] = ()) -> _PageReply:
    body = strict_json.dumps(data).encode()
    return _PageReply(status, "application/json", body, headers)


def is_loopback(host: str) -> bool:
    """Say whether only this machine reaches a host."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host.lower() == "localhost"


class Playground:
    """The page on a port, during a `with` block.

    Args:
        session: asks the model server; closed at the end.
        host: name or address to listen at.
        port: 0 for any that is free.

    Raises:
        UsageError: that port cannot be had.
    """

    def __init__(self, session: PlaygroundSession, host: str, port: int) -> None:
        self._session = session
        handler = partial(_Handler, _Page(session, host))
        try:
            family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            self._server = _Server((host, port), handler, family)
        except OSError as error:
            raise UsageError(
                f"the page cannot be served at {host}:{port}: {error.strerror or error}",
                remedy="choose another --port, or 0 for any that is free",
            ) from error
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._server.server_address[1]}/"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def wait(self) -> None:
        """Serve until KeyboardInterrupt."""
        while self._thread.is_alive():
            self._thread.join(1.0)

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._session.close()


class _Server(ThreadingHTTPServer):
    """A thread for each connection, of which there are not too many."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], handler: Any, family: int) -> None:
        self.address_family = family
        self._free = threading.BoundedSemaphore(_MAX_CONNECTIONS)
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Begin a thread when there is room for one."""
        if not self._free.acquire(timeout=_PATIENCE_S):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, and make room."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say what went wrong, unless whoever asked has gone."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """Reads one request and writes one answer."""

    timeout = _PATIENCE_S
    server_version, sys_version = "tfkit", ""

    def __init__(self, page: _Page, *args: Any) -> None:
        self._page = page
        super().__init__(*args)

    def _answer(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        ask = _Ask(self.command, self.path, headers, self._body)
        try:
            reply = self._page.answer(ask)
        except Exception:
            said = {
                "kind": "Error",
                "message": "the page failed; its terminal says where",
                "remedy": "report it as a fault of tfkit",
            }
            self._send(_json(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": said}))
            raise
        self._send(reply)

    do_GET = do_HEAD = do_POST = _answer  # noqa: N815 (the names that the library calls)

    def _send(self, reply: _PageReply) -> None:
        self.send_response(reply.status)
        self.send_header("Content-Type", reply.kind)
        self.send_header("Content-Length", str(len(reply.body)))
        for name, value in (*_HEADERS.items(), *reply.headers):
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)

    def _body(self) -> bytes:
        """Read the body, up to the limit and not forever."""
        length = self.headers.get("content-length", "")
        if not re.fullmatch(r"\d{1,19}", length, re.ASCII) or "transfer-encoding" in self.headers:
            raise _Refused(HTTPStatus.LENGTH_REQUIRED, "the size is not said", "use the page")
        left, until_s = int(length), time.monotonic() + _BODY_S
        if left > MAX_BODY_BYTES:
            text = f"{left:,} bytes are more than the {MAX_BODY_BYTES:,} that the page takes"
            remedy = "make the picture smaller, or use `tfkit predict`"
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, text, remedy)
        found = bytearray()
        while left:
            piece = self.rfile.read1(min(left, _CHUNK_BYTES))
            if not piece or time.monotonic() > until_s:
                text = "the whole of it did not come"
                raise _Refused(HTTPStatus.REQUEST_TIMEOUT, text, "try again")
            found += piece
            left -= len(piece)
        return bytes(found)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the library's name)
        """Keep the terminal for what matters."""
