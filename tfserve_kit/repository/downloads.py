"""Models from the web: one file, streamed to disk."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfserve_kit import safe_text
from tfserve_kit.errors import PushRefused
from tfserve_kit.http.messages import user_agent
from tfserve_kit.progress import Progress
from tfserve_kit.repository.disk import require_room
from tfserve_kit.repository.intake import CHUNK_BYTES, Limits
from tfserve_kit.repository.locate import scheme

if TYPE_CHECKING:
    import requests

_TIMEOUT_S = (10.0, 60.0)  # to connect; between two pieces of the answer
_REMEDIES = {
    401: "give credentials (USER:PASSWORD@ before the host), or a signed URL",
    403: "give credentials (USER:PASSWORD@ before the host), or a signed URL that has not expired",
    404: "check the address",
}


def download(
    url: str, target: Path, limits: Limits, *, progress: Progress, timeout_s: float | None = None
) -> bool:
    """Store what a URL gives; redirects are followed, but none from https to http.

    Args:
        url: http or https.
        target: the file to make.
        limits: of which the size and the time of a download hold here.
        progress: told the bytes received.
        timeout_s: how long to wait for a connection and for each piece; None for 10 s and 60 s.

    Returns:
        Whether it came encrypted all the way, redirects included.

    Raises:
        PushRefused: the server cannot be reached, refuses, sends too much, or breaks off.
        OSError: the file system refuses.
    """
    import requests
    import urllib3

    from tfserve_kit.repository import web_session

    shown = safe_text.redacted_url(url)
    timeout = _TIMEOUT_S if timeout_s is None else (timeout_s, timeout_s)
    timeout = (min(timeout[0], limits.max_download_s), min(timeout[1], limits.max_download_s))
    # Archives are wanted as they are, not unpacked on the way.
    headers = {"Accept-Encoding": "identity", "User-Agent": user_agent()}
    try:
        with (
            web_session.session(limits.max_download_s) as session,
            session.get(url, stream=True, timeout=timeout, headers=headers) as response,
        ):
            _require_success(response, shown)
            _store(response, target, limits, shown, progress)
            return all(scheme(each.url) == "https" for each in [*response.history, response])
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        # Its text and its causes hold the URL, with whatever is secret in it.
        raise PushRefused(
            f"cannot download {shown}: {_reason(error)}",
            remedy="check the address and the network, then push again",
        ) from None


def _require_success(response: "requests.Response", shown: str) -> None:
    if response.status_code != 200:  # noqa: PLR2004 (nor is 206 a whole file)
        reason = f" {response.reason}" if response.reason else ""
        raise PushRefused(
            f"cannot download {shown}: HTTP status {response.status_code}{reason}",
            remedy=_REMEDIES.get(
                response.status_code, "try again later, or ask who runs the server"
            ),
        )


def _store(
    response: "requests.Response", target: Path, limits: Limits, shown: str, progress: Progress
) -> None:
    announced = response.headers.get("Content-Length", "")
    total = int(announced) if announced.isdecimal() else None
    done = 0
    _require_size(total or 0, limits, shown)
    require_room(target.parent, total or 0)
    with target.open("xb") as file:
        while chunk := response.raw.read(CHUNK_BYTES, decode_content=False):
            done += len(chunk)
            _require_size(done, limits, shown)
            file.write(chunk)
            progress.advance(done, max(done, total or 0))
    if total is not None and done != total:
        raise PushRefused(
            f"cannot download {shown}: {done:,} of {total:,} bytes came", remedy="push again"
        )


def _require_size(size_bytes: int, limits: Limits, shown: str) -> None:
    if size_bytes > limits.max_size_bytes:
        raise PushRefused(
            f"{shown} is larger than {limits.max_size_bytes:,} bytes",
            remedy="allow more with --max-size, if that is right",
        )


def _reason(error: Any) -> str:
    """Say in own words what kept a request from its answer."""
    import requests
    import urllib3

    from tfserve_kit.repository.web_session import DeadlineMissed

    table = (
        (DeadlineMissed, f"{error}: allow more with --download-timeout, if that is right"),
        (requests.exceptions.SSLError, "its certificate cannot be trusted"),
        (requests.exceptions.ProxyError, "the proxy cannot be reached"),
        ((requests.Timeout, urllib3.exceptions.TimeoutError), "no answer within the timeout"),
        (requests.TooManyRedirects, "it redirects forever"),
        (requests.exceptions.InvalidSchema, "it redirects to something that is not a web address"),
        (requests.exceptions.InvalidURL, "the address is malformed"),
        (requests.ConnectionError, "the server cannot be reached"),
        (urllib3.exceptions.ProtocolError, "the connection broke"),
    )
    return next((text for kind, text in table if isinstance(error, kind)), type(error).__name__)
