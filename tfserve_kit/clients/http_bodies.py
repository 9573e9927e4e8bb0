"""Headers and bodies of HTTP: compression, and the limit of size."""

import gzip
import zlib

from tfserve_kit.clients.options import Options, for_http, merged_headers
from tfserve_kit.identity import user_agent

# Beyond the first, an answer may be so many times as large as what came: zeros compress like that.
_FREE_BYTES, _MOST_TIMES = 1 << 26, 256
# zlib's way to say: with gzip's header.
_GZIP_WINDOW = 31


class TooLarge(Exception):
    """An answer is larger than the client accepts.

    Args:
        most: how many bytes that would have been.
    """

    def __init__(self, most: int) -> None:
        super().__init__(f"the answer has more than {most:,} bytes (max_answer_bytes)")


def request_headers(host: str, options: Options, *, has_body: bool) -> dict[str, str]:
    """Return the headers of a request, but for its length.

    Raises:
        UsageError: one of the options' headers cannot be sent.
    """
    headers = {"Host": host, "Accept-Encoding": "gzip" if options.gzip else "identity"}
    headers["User-Agent"] = user_agent()
    if has_body:
        headers["Content-Type"] = "application/json"
        headers |= {"Content-Encoding": "gzip"} if options.gzip else {}
    return merged_headers(headers, for_http(options.headers))


def compressed(body: bytes | None, options: Options) -> bytes | None:
    """Return a body as it is sent; level 1 is quick and makes numbers half as long."""
    return gzip.compress(body, 1) if body is not None and options.gzip else body


def inflated(body: bytes, encoding: str, most: int) -> bytes:
    """Return a body as it was meant.

    Args:
        body: as it came.
        encoding: value of Content-Encoding.
        most: how many bytes it may have.

    Raises:
        ValueError: it is compressed in another way, damaged or cut off.
        TooLarge: it is larger, or suspiciously much larger than what came.
    """
    if encoding.lower() in {"", "identity"}:
        return body
    if encoding.lower() != "gzip":
        raise ValueError(f"the answer is compressed as {encoding!r}")
    most = min(most, max(_FREE_BYTES, _MOST_TIMES * len(body)))
    unpacking = zlib.decompressobj(_GZIP_WINDOW)
    try:
        found = unpacking.decompress(body, most + 1)
    except zlib.error as error:
        raise ValueError(f"the compressed answer is damaged: {error}") from error
    if len(found) > most:
        raise TooLarge(most)
    if not unpacking.eof:
        raise ValueError("the compressed answer is cut off")
    return found
