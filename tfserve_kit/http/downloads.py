"""Downloads: bounded in bytes and in time, and from https to nothing weaker.

Each runs in a thread of its own, which is left behind when the time is up: nothing interrupts the
resolution of a name, and a server that sends a byte now and then keeps every read within its limit.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Empty, Queue
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urljoin, urlsplit

from tfserve_kit import safe_text
from tfserve_kit.http.messages import user_agent

if TYPE_CHECKING:
    import requests

_CHUNK_BYTES = 1 << 18
_CHUNKS_AHEAD = 8
_COMPLETE = (200, 203)  # 206 is a part


class DownloadError(Exception):
    """Why a download failed, in words that hold no secret of its address.

    Attributes:
        kind: what failed, for the caller's advice.
        status: of an answer that refuses, 0 without.
    """

    Kind = Literal["status", "size", "time", "silence", "network"]

    def __init__(self, kind: Kind, text: str, status: int = 0) -> None:
        super().__init__(text)
        self.kind, self.status = kind, status


@dataclass(frozen=True, slots=True)
class _Download:
    """An answer whose body is on its way.

    Attributes:
        size_bytes: as announced, 0 if it was not.
        is_encrypted: whether it came over https all the way, redirects included.
        chunks: the body, once; raises DownloadError.
    """

    size_bytes: int
    is_encrypted: bool
    chunks: Iterator[bytes]


@contextmanager
def opened(
    url: str,
    ends_s: float,
    most_bytes: int,
    *,
    most_redirects: int,
    timeouts_s: tuple[float, float] | None = None,
    is_decoded: bool = True,
) -> Iterator[_Download]:
    """Ask a URL, in a `with` block that reads what it gives.

    Args:
        url: http or https; its user and password are for its own site alone.
        ends_s: the moment of `time.monotonic` at which all of it must be there.
        most_bytes: how long the body may be.
        most_redirects: how many are followed; none from https to http.
        timeouts_s: the longest to wait for a connection, and between two pieces; None for no other
            limit than the end.
        is_decoded: whether a body that is compressed on its way is unpacked.

    Raises:
        DownloadError: it cannot be read, or not in time, or is longer.
    """

    def receive() -> None:
        try:
            headers = {} if is_decoded else {"Accept-Encoding": "identity"}
            with _asked(url, ends_s, most_redirects, timeouts_s, headers) as (response, is_safe):
                size = response.headers.get("Content-Length") or ""
                arriving.put((int(size) if size.isdecimal() else 0, is_safe))
                for chunk in _pieces(response, is_decoded=is_decoded):
                    if is_left.is_set():
                        return
                    arriving.put(chunk)
        except Exception as error:  # noqa: BLE001 (whatever a site makes the libraries stumble over)
            arriving.put(_translated(error))
        else:
            arriving.put(b"")

    arriving: Queue[Any] = Queue(_CHUNKS_AHEAD)
    is_left = threading.Event()
    threading.Thread(target=receive, daemon=True).start()
    try:
        size_bytes, is_encrypted = _taken(arriving, ends_s)
        _require_size(size_bytes, most_bytes)
        yield _Download(size_bytes, is_encrypted, _bounded(arriving, ends_s, most_bytes))
    finally:
        is_left.set()
        while not arriving.empty():  # else the thread would wait for room
            arriving.get_nowait()


def _taken(arriving: "Queue[Any]", ends_s: float) -> Any:
    left_s = ends_s - time.monotonic()
    try:
        found = arriving.get(timeout=left_s) if left_s > 0 else None
    except Empty:
        found = None
    if found is None:
        raise DownloadError("time", "it did not come in time")
    if isinstance(found, DownloadError):
        raise found
    return found


def _bounded(arriving: "Queue[Any]", ends_s: float, most_bytes: int) -> Iterator[bytes]:
    size_bytes = 0
    while chunk := _taken(arriving, ends_s):
        size_bytes += len(chunk)
        _require_size(size_bytes, most_bytes)
        yield chunk


def _require_size(size_bytes: int, most_bytes: int) -> None:
    if size_bytes > most_bytes:
        raise DownloadError("size", f"it is larger than {most_bytes:,} bytes")


def _pieces(response: "requests.Response", *, is_decoded: bool) -> Iterator[bytes]:
    raw = response.raw
    read = getattr(raw, "read1", raw.read)  # urllib3 1 has no read1, and fills the piece
    while chunk := read(_CHUNK_BYTES, decode_content=is_decoded):
        yield chunk
    size = response.headers.get("Content-Length") or ""
    if size.isdecimal() and raw.tell() != int(size):
        raise DownloadError(
            "network", f"the connection broke: {raw.tell():,} of {int(size):,} bytes came"
        )


@contextmanager
def _asked(
    url: str,
    ends_s: float,
    most_redirects: int,
    timeouts_s: tuple[float, float] | None,
    headers: dict[str, str],
) -> Iterator[tuple["requests.Response", bool]]:
    """Give the answer that redirects lead to, and whether all of them were encrypted."""
    import requests
    from requests.utils import get_auth_from_url

    place, auth, is_encrypted = url, get_auth_from_url(url), True
    headers |= {"User-Agent": user_agent()}
    with requests.Session() as session:
        location_of = session.get_redirect_target
        # Else it would read the whole body of what redirects, however long that is.
        session.get_redirect_target = lambda resp: None  # type: ignore[method-assign] # noqa: ARG005
        for _ in range(most_redirects):
            left_s = max(0.001, ends_s - time.monotonic())
            is_encrypted &= _scheme(place) == "https"
            is_there = any(auth) and not session.should_strip_auth(url, place)  # type: ignore[no-untyped-call]
            with session.get(
                place,
                stream=True,
                allow_redirects=False,
                timeout=timeouts_s or (left_s, left_s),
                headers=headers,
                auth=auth if is_there else None,
            ) as response:
                if (location := location_of(response)) is None:
                    _require_success(response)
                    yield response, is_encrypted
                    return
                place = _next(place, location)
    raise DownloadError("network", f"it redirects more than {most_redirects} times")


def _scheme(url: str) -> str:
    return urlsplit(url).scheme.lower()


def _next(place: str, location: str) -> str:
    """Return where a redirect leads.

    Raises:
        DownloadError: to something that is not a web address, or from https to http.
    """
    target = urljoin(place, location)
    if _scheme(target) not in {"http", "https"}:
        text = f"it redirects to {_scheme(target)[:20]}:, which is not a web address"
        raise DownloadError("network", text)
    if _scheme(place) == "https" != _scheme(target):
        shown = safe_text.redacted_url(target)
        text = f"it redirects from https to {shown}, which is not encrypted: anybody may change it"
        raise DownloadError("network", text)
    return target


def _require_success(response: "requests.Response") -> None:
    if (status := response.status_code) not in _COMPLETE:
        text = f"{status} {safe_text.redacted(response.reason or '')}".rstrip()
        raise DownloadError("status", text, status)


def _translated(error: Exception) -> DownloadError:
    """Return an error in own words: a library's may hold the address, with its secrets."""
    import requests
    import urllib3

    if isinstance(error, DownloadError):
        return error
    table = (
        (requests.exceptions.SSLError, "its certificate cannot be trusted"),
        (requests.exceptions.ProxyError, "the proxy cannot be reached"),
        ((requests.Timeout, urllib3.exceptions.TimeoutError), "no answer within the timeout"),
        (requests.exceptions.InvalidURL, "the address is malformed"),
        (requests.ConnectionError, "the server cannot be reached"),
        (urllib3.exceptions.ProtocolError, "the connection broke"),
    )
    text = next((text for kind, text in table if isinstance(error, kind)), type(error).__name__)
    return DownloadError("silence" if "timeout" in text else "network", text)
