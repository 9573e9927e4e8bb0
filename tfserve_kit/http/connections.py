"""Connections that stay open, blocking; no read or write outlasts the deadline. TLS for HTTP."""

import contextlib
import select
import socket
import ssl
import time
from pathlib import Path

from tfserve_kit.errors import UsageError
from tfserve_kit.http.messages import Endpoint, Response, read_response

_READ_BYTES = 1 << 18


class Connection:
    """One connection, for one request after another."""

    def __init__(self, endpoint: Endpoint, tls: ssl.SSLContext | None, end_s: float) -> None:
        self._socket = _connected(endpoint, end_s)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is not None:
            plain = self._socket
            try:
                plain.settimeout(_left_s(end_s))
                self._socket = tls.wrap_socket(plain, server_hostname=endpoint.server_name)
            except BaseException:
                plain.close()
                raise
        self._poll = select.poll()  # select.select cannot take files beyond the thousandth
        self._poll.register(self._socket, select.POLLIN)

    def exchange(self, data: bytes, end_s: float, most: int) -> Response:
        """Send a request and return the answer, of at most `most` bytes."""
        left = memoryview(data)
        while left:
            self._socket.settimeout(_left_s(end_s))
            left = left[self._socket.send(left) :]
        reader = read_response(most)
        next(reader)
        try:
            while True:
                self._socket.settimeout(_left_s(end_s))
                reader.send(self._socket.recv(_READ_BYTES))
        except StopIteration as end:
            response: Response = end.value
            return response

    def is_quiet(self) -> bool:
        """Say whether the server has neither closed the connection nor sent what nobody asked."""
        pending = self._socket.pending() if isinstance(self._socket, ssl.SSLSocket) else 0
        return not pending and not self._poll.poll(0)

    def break_off(self) -> None:
        """End it under whoever waits for an answer in another thread."""
        with contextlib.suppress(OSError):  # of the socket itself: TLS would wait for the other end
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def close(self) -> None:
        """Close it."""
        with contextlib.suppress(OSError):
            self._socket.close()


def _connected(endpoint: Endpoint, end_s: float) -> socket.socket:
    """Connect to the first address of a host that answers, all of them within the time."""
    failure: OSError = ConnectionError(f"{endpoint.host} has no address")
    for *_, address in socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM):
        try:
            return socket.create_connection((str(address[0]), endpoint.port), _left_s(end_s))
        except OSError as error:
            failure = error
    raise failure


def _left_s(end_s: float) -> float:
    left_s = end_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError("the time is up")
    return left_s


def tls_context(
    ca_file: str | Path | None, cert_file: str | Path | None, key_file: str | Path | None
) -> ssl.SSLContext:
    """Return what connections are secured with.

    Args:
        ca_file: PEM file of the authorities that the server is checked with; the system's if None.
        cert_file: PEM file with the client's own certificate, where the server asks for one.
        key_file: PEM file with its key.

    Raises:
        UsageError: a file cannot be read, or holds no certificate or key.
    """
    try:
        context = ssl.create_default_context(cafile=ca_file)
        # A certificate that is named itself is trusted, whoever signed it; so does gRPC.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        if cert_file:
            context.load_cert_chain(cert_file, key_file)
    except OSError as error:  # ssl.SSLError is one
        files = [str(file) for file in (ca_file, cert_file, key_file) if file]
        raise UsageError(
            f"cannot use the TLS files {', '.join(files)}: {error}",
            remedy="give readable PEM files",
        ) from error
    return context
