"""HTTP as a push needs it: no redirect weakens the way, and one deadline holds for the whole.

The timeouts of requests count from piece to piece, so a server that drips would never meet one.
Here a timer hangs up on it, whatever it does: while it sends headers, too.
"""

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urljoin

import requests
from requests.adapters import HTTPAdapter

from tfserve_kit import safe_text
from tfserve_kit.errors import PushRefused


class DeadlineMissed(requests.Timeout):
    """It took longer than it might as a whole."""


class _Sockets:
    """Every socket of a session, to hang up on all of them at once; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self.is_cut = False

    def add(self, made: socket.socket) -> None:
        """Remember a socket; TLS takes over its descriptor, so another one is kept."""
        with self._lock:
            self._open.append(made.dup())
            if self.is_cut:
                self._hang_up()

    def cut(self) -> None:
        """Hang up; whoever waits on a socket sees it end."""
        with self._lock:
            self.is_cut = True
            self._hang_up()

    def close(self) -> None:
        """Give the descriptors back."""
        with self._lock:
            while self._open:
                self._open.pop().close()

    def _hang_up(self) -> None:
        for each in self._open:
            with contextlib.suppress(OSError):  # the other side was quicker
                each.shutdown(socket.SHUT_RDWR)


class _Adapter(HTTPAdapter):
    """Makes connections whose sockets are known."""

    def __init__(self, sockets: _Sockets) -> None:
        self._sockets = sockets
        super().__init__()

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        """Make the pools of direct connections."""
        super().init_poolmanager(*arguments, **options)
        self._watch(self.poolmanager)

    def proxy_manager_for(self, *arguments: Any, **options: Any) -> Any:
        """Make the pools of connections through a proxy."""
        manager = super().proxy_manager_for(*arguments, **options)
        self._watch(manager)
        return manager

    def _watch(self, manager: Any) -> None:
        manager.pool_classes_by_scheme = {
            scheme: type("Pool", (pool,), {"ConnectionCls": self._watched(pool.ConnectionCls)})
            for scheme, pool in manager.pool_classes_by_scheme.items()
        }

    def _watched(self, kind: Any) -> type:
        sockets = self._sockets

        class Watched(kind):  # type: ignore[misc]
            def _new_conn(self) -> socket.socket:
                made: socket.socket = super()._new_conn()
                sockets.add(made)
                return made

        return Watched


class _Session(requests.Session):
    """Follows redirects, but none from https to http."""

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        """Return where an answer leads, None where it is the last one."""
        target = super().get_redirect_target(resp)
        if target is not None:
            resp._content = b""  # noqa: SLF001 (else all of its body, however much, is read first)
            resp.close()
        if target is not None and resp.url.lower().startswith("https:"):
            there = urljoin(resp.url, target)
            if there.lower().startswith("http:"):
                here, there = safe_text.redacted_url(resp.url), safe_text.redacted_url(there)
                raise PushRefused(
                    f"{here} redirects to {there}, which is not encrypted: anybody on the way "
                    "could change the model",
                    remedy="give the https address of the file itself",
                )
        return target


@contextlib.contextmanager
def session(deadline_s: float) -> Iterator[requests.Session]:
    """Give a session that ends after a time, counted from here.

    Args:
        deadline_s: how long all of it may take, in seconds.

    Raises:
        DeadlineMissed: it took longer.
    """
    sockets = _Sockets()
    timer = threading.Timer(deadline_s, sockets.cut)
    timer.daemon = True
    with _Session() as made:
        for scheme in ("http://", "https://"):
            made.mount(scheme, _Adapter(sockets))
        timer.start()
        try:
            yield made
        except Exception:
            if not sockets.is_cut:
                raise
        finally:
            timer.cancel()
            sockets.close()
    if sockets.is_cut:  # also where a cut looked like the end
        raise DeadlineMissed(f"not all of it came within {deadline_s:g} s")
