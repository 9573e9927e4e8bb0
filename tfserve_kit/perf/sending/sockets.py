"""Non-blocking connections, and waiting for them with the precision that pacing needs."""

import contextlib
import errno
import os
import select
import selectors
import socket
import ssl
from collections.abc import Sequence
from typing import Any

from tfserve_kit.errors import ServerUnreachable

Buffer = bytes | memoryview
READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE

# A little at a time lets new requests go out while other answers still wait here; whoever fills it
# gets more.
_LEAST_READ_BYTES, _MOST_READ_BYTES = 1 << 11, 1 << 16
_MOST_PIECES = 512  # of one system call; Linux takes 1,024
# epoll counts in milliseconds and rounds up; what is left after it is waited for with select.
_COARSE_S = 0.004
_SELECTABLE = 1024
_PROBE_S = 5.0
_UNDER_WAY = {0, errno.EINPROGRESS, errno.EWOULDBLOCK}


class Readiness:
    """Waits until something can be read or written."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._is_precise = self.fileno() < _SELECTABLE

    def fileno(self) -> int:
        """Return the file that can be read when something is ready."""
        number: int = getattr(self._selector, "fileno", lambda: _SELECTABLE)()
        return number

    def watch(self, link: "Link", events: int) -> None:
        """Tell about a connection from now on."""
        self._selector.register(link.socket, events, link)

    def change(self, link: "Link", events: int) -> None:
        """Tell about other events of a connection."""
        self._selector.modify(link.socket, events, link)

    def forget(self, link: "Link") -> None:
        """Tell no more about a connection."""
        self._selector.unregister(link.socket)

    def wait(self, timeout_s: float) -> list[tuple["Link", int]]:
        """Return what is ready, at the latest after a time: 0.1 ms late at most, if there is a CPU.

        Below 4 ms it is select that waits, on the selector itself: it counts in microseconds.
        """
        if timeout_s > _COARSE_S or not self._is_precise:
            ready = self._selector.select(max(0.0, timeout_s - _COARSE_S / 2))
        elif timeout_s > 0:
            select.select((self._selector,), (), (), timeout_s)
            ready = self._selector.select(0)
        else:
            ready = self._selector.select(0)
        return [(key.data, events) for key, events in ready]

    def close(self) -> None:
        """Forget everything."""
        self._selector.close()


class Link:
    """One connection over TCP, with or without TLS; made at once, usable when `is_open`.

    Args:
        readiness: tells when the connection is ready; the link's events come from there.
        address: family and address, as from `resolve`.
        tls: how to secure it, and the name of the server; None for plain text.
        owner: whatever the link is for.

    Raises:
        OSError: nobody answers there, or no file is left to this process.
    """

    def __init__(
        self,
        readiness: Readiness,
        address: tuple[int, Any],
        tls: tuple[ssl.SSLContext, str] | None,
        owner: Any,
    ) -> None:
        self.owner = owner
        self.is_open = False
        self._readiness = readiness
        self._backlog: list[Buffer] = []
        self._read_bytes = _LEAST_READ_BYTES
        family, where = address
        plain = socket.socket(family, socket.SOCK_STREAM)
        plain.setblocking(False)
        if family != socket.AF_UNIX:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if (error := plain.connect_ex(where)) not in _UNDER_WAY:
            plain.close()
            raise OSError(error, os.strerror(error))
        self.socket: socket.socket = plain
        self._tls = tls
        self._events = READ | WRITE
        readiness.watch(self, self._events)

    def finish_opening(self) -> bool:
        """Go on opening, when the socket is ready; say whether that is done.

        Raises:
            OSError: nobody answers, or not securely.
        """
        if error := self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(error, os.strerror(error))
        if self._tls is not None and not self._shake_hands(*self._tls):
            return False
        self.is_open = True
        self.push()
        return True

    def _shake_hands(self, context: ssl.SSLContext, name: str) -> bool:
        if not isinstance(self.socket, ssl.SSLSocket):
            self._readiness.forget(self)
            self.socket = context.wrap_socket(
                self.socket, server_hostname=name, do_handshake_on_connect=False
            )
            self._readiness.watch(self, self._events)
        try:
            self.socket.do_handshake()
        except ssl.SSLWantReadError:
            self._want(READ)
            return False
        except ssl.SSLWantWriteError:
            self._want(READ | WRITE)
            return False
        return True

    @property
    def is_idle(self) -> bool:
        """Whether all that was to be sent is on its way."""
        return not self._backlog

    def write(self, pieces: Sequence[Buffer]) -> None:
        """Send bytes, now as far as the socket takes them and later the rest.

        Raises:
            OSError: the connection is broken.
        """
        self._backlog += pieces
        if self.is_open:
            self.push()

    def push(self) -> None:
        """Send what is left, as far as the socket takes it.

        Raises:
            OSError: the connection is broken.
        """
        while self._backlog:
            try:
                sent = self._send()
            except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
                break
            self._forget(sent)
        self._want(READ | WRITE if self._backlog else READ)

    def _send(self) -> int:
        if self._tls is not None:
            return self.socket.send(self._backlog[0])
        return self.socket.sendmsg(self._backlog[:_MOST_PIECES])

    def _forget(self, sent: int) -> None:
        """Take bytes off the front of what is left."""
        count = 0
        for piece in self._backlog:
            if sent < len(piece):
                break
            sent -= len(piece)
            count += 1
        del self._backlog[:count]
        if sent:
            self._backlog[0] = memoryview(self._backlog[0])[sent:]

    def read(self) -> bytes | None:
        """Return what came: b"" if the connection has ended, None if nothing did.

        Raises:
            OSError: the connection is broken.
        """
        try:
            data = self.socket.recv(self._read_bytes)
            while self._tls is not None and self.socket.pending():  # type: ignore[attr-defined]
                data += self.socket.recv(_MOST_READ_BYTES)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return None
        if len(data) < self._read_bytes:
            self._read_bytes = _LEAST_READ_BYTES
        else:
            self._read_bytes = min(4 * self._read_bytes, _MOST_READ_BYTES)
        return data

    def close(self) -> None:
        """Close it."""
        with contextlib.suppress(KeyError, ValueError):
            self._readiness.forget(self)
        with contextlib.suppress(OSError):
            self.socket.close()

    def _want(self, events: int) -> None:
        if events != self._events:
            self._events = events
            self._readiness.change(self, events)


def resolve(host: str, port: int) -> tuple[int, Any]:
    """Return family and address of the first place a host name stands for that can be reached.

    Raises:
        ServerUnreachable: there is none.
    """
    failure: OSError | None = None
    try:
        for family, kind, *_, where in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            with socket.socket(family, kind) as probe:
                probe.settimeout(_PROBE_S)
                try:
                    probe.connect(where)
                except OSError as error:
                    failure = error
                else:
                    return family, where
    except OSError as error:
        failure = error
    raise ServerUnreachable(
        f"no model server answers at {host}:{port}: {failure}",
        remedy="start one with `tfkit serve`, or give its address with --url",
    ) from failure
