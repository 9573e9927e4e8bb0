"""Pictures from the web: one time for all of them, sizes bounded, and never from a weaker place.

A download runs in a thread of its own, which is left behind when time is up: a server that sends a
byte now and then keeps every single read within its limit.
"""

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from tfserve_kit import safe_text
from tfserve_kit.errors import InvalidRequest
from tfserve_kit.http.messages import user_agent

if TYPE_CHECKING:
    import requests

_MOST_REDIRECTS = 10
_CHUNK_BYTES = 1 << 16
_REMEDIES = {
    401: "the site wants a log-in: download the picture by hand, and give the file",
    403: "the site refuses programs, or this address: download the picture by hand, and give the "
    "file",
    404: "check the address",
    429: "the site has had too many requests: wait, or download the picture by hand",
}


class Patience:
    """The time that downloads have together; it passes while one is under way. Thread-safe.

    Args:
        timeout_s: how much there is, in seconds.
    """

    def __init__(self, timeout_s: float) -> None:
        self._left_s, self._since_s, self._under_way = timeout_s, 0.0, 0
        self._lock = threading.Lock()

    @contextmanager
    def passing(self) -> Iterator[float]:
        """Let time pass in a `with` block, which gets the moment of `time.monotonic` it is up."""
        with self._lock:
            if not self._under_way:
                self._since_s = time.monotonic()
            self._under_way += 1
            ends_s = self._since_s + self._left_s
        try:
            yield ends_s
        finally:
            with self._lock:
                self._under_way -= 1
                if not self._under_way:
                    self._left_s -= time.monotonic() - self._since_s


def download(url: str, patience: Patience, most: int) -> bytes:
    """Return what a URL gives; redirects are followed, but from https to nothing weaker.

    Args:
        url: http or https.
        patience: the time there is.
        most: bytes that it may have.

    Raises:
        InvalidRequest: it cannot be read, or not in time, or is larger.
    """
    answers: SimpleQueue[bytes | InvalidRequest] = SimpleQueue()
    with patience.passing() as ends_s:
        if (left_s := ends_s - time.monotonic()) <= 0:
            raise _too_slow(url)
        work = threading.Thread(
            target=lambda: answers.put(_outcome(url, ends_s, most)), daemon=True
        )
        work.start()
        try:
            found = answers.get(timeout=left_s)
        except Empty:
            raise _too_slow(url) from None
    if isinstance(found, InvalidRequest):
        raise found
    return found


def too_large(name: str, most: int) -> InvalidRequest:
    """Return what is said of a picture of too many bytes."""
    return InvalidRequest(f"{name} has more than {most:,} bytes", remedy="make it smaller")


def _outcome(url: str, ends_s: float, most: int) -> bytes | InvalidRequest:
    import requests

    try:
        with requests.Session() as session:
            # Else it would read the whole body of what redirects, however long that is.
            loose: Any = session
            loose.get_redirect_target = lambda _: None
            return _followed(session, url, ends_s, most)
    except InvalidRequest as error:
        return error
    except requests.Timeout:
        return _too_slow(url)
    except Exception as error:  # noqa: BLE001 (whatever a site makes the libraries below stumble over)
        return _unreadable(url, safe_text.redacted(str(error) or type(error).__name__, url))


def _followed(session: "requests.Session", url: str, ends_s: float, most: int) -> bytes:
    place, auth = url, _auth(url)
    for _ in range(_MOST_REDIRECTS):
        with session.get(
            place,
            stream=True,
            allow_redirects=False,
            timeout=max(0.001, ends_s - time.monotonic()),
            headers={"User-Agent": user_agent()},
            auth=auth if _origin(place) == _origin(url) else None,
        ) as response:
            if response.is_redirect:  # of which nothing is read
                place = _next(url, place, response.headers["location"])
                continue
            if not response.ok:
                raise _refused(url, response.status_code, response.reason)
            if int(response.headers.get("Content-Length") or 0) > most:
                raise too_large(safe_text.redacted_url(url), most)
            return body(response.iter_content(_CHUNK_BYTES), url, ends_s, most)
    raise _unreadable(url, f"it redirects more than {_MOST_REDIRECTS} times")


def _auth(url: str) -> Any:
    """Return user and password of a URL, None without."""
    from requests.utils import get_auth_from_url

    found = get_auth_from_url(url)
    return found if any(found) else None


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme.lower(), parts.hostname, parts.port


def _next(url: str, place: str, location: str) -> str:
    """Return where a redirect leads.

    Raises:
        InvalidRequest: to something that is not a web address, or from https to http.
    """
    target = urljoin(place, location)
    scheme = urlsplit(target).scheme.lower()
    if scheme not in {"http", "https"}:
        raise _unreadable(url, f"it redirects to {scheme[:20]}:, which is not a web address")
    if scheme == "http" and urlsplit(place).scheme.lower() == "https":
        raise _unreadable(url, "it redirects from https to http, where anybody may change it")
    return target


def body(chunks: Iterable[bytes], url: str, ends_s: float, most: int) -> bytes:
    """Return a body that comes in pieces.

    Raises:
        InvalidRequest: it does not come in time, or is larger than `most` bytes.
    """
    data = bytearray()
    for chunk in chunks:
        data += chunk
        if len(data) > most:
            raise too_large(safe_text.redacted_url(url), most)
        if time.monotonic() > ends_s:
            raise _too_slow(url)
    return bytes(data)


def _unreadable(url: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"cannot read {safe_text.redacted_url(url)}: {why}")


def _too_slow(url: str) -> InvalidRequest:
    text = f"cannot read {safe_text.redacted_url(url)} in time"
    return InvalidRequest(text, remedy="raise --timeout, which is for all downloads together")


def _refused(url: str, status: int, reason: str) -> InvalidRequest:
    why = safe_text.redacted(f"{status} {reason or ''}".rstrip(), url)
    return InvalidRequest(
        f"cannot read {safe_text.redacted_url(url)}: {why}", remedy=_REMEDIES.get(status, "")
    )
