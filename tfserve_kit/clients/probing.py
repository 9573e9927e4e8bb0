"""What speaks at an address where no answer was understood: tried out, once, for people."""

import socket
import ssl
from contextlib import suppress

from tfserve_kit.clients.addresses import Address

# How HTTP/2 begins (RFC 9113, section 3.4), with an empty SETTINGS frame. A web server refuses it.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_SETTINGS = bytes((4, 0, 0, 0, 0, 0))
_PATIENCE_S = 1.0
_NAMES = {
    "grpc": "a gRPC server",
    "grpcs": "a gRPC server with TLS",
    "http": "a web server, as REST has it,",
    "https": "a web server with TLS",
}


def another(address: Address) -> tuple[str, str] | None:
    """Return what answers at an address instead of what it says, and the right address.

    Args:
        address: one that a client could not talk to.
    """
    place = address.url.partition("://")[2].partition("/")[0]
    host, _, port = place.rpartition(":")
    if not host or not port.isdigit():
        return None
    spoken = None
    with suppress(OSError, ValueError):
        spoken = _spoken(host.strip("[]"), int(port))
    if spoken is None or spoken == address.scheme:
        return None
    return f"{_NAMES[spoken]} answers there", f"write {spoken}://{place}"


def _spoken(host: str, port: int) -> str | None:
    """Return the scheme of what listens; None where that cannot be told."""
    data = _answer(host, port)
    if data.startswith((b"HTTP/", b"<")):
        return "http"
    if data[3:9] == _SETTINGS:
        return "grpc"
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing is told to it
    context.set_alpn_protocols(["h2", "http/1.1"])
    with (
        socket.create_connection((host, port), _PATIENCE_S) as plain,
        context.wrap_socket(plain, server_hostname=host) as secured,
    ):
        return "grpcs" if secured.selected_alpn_protocol() == "h2" else "https"


def _answer(host: str, port: int) -> bytes:
    """Return what a server says to the beginning of HTTP/2, nothing if it hangs up."""
    with socket.create_connection((host, port), _PATIENCE_S) as connection, suppress(OSError):
        connection.sendall(_PREFACE)
        return connection.recv(64)
    return b""
