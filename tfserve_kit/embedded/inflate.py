"""Compressed bodies and messages, inflated a piece at a time, so that none can become too large."""

import threading
import zlib
from contextlib import ExitStack
from io import BytesIO

from tfserve_kit.embedded.ledger import Account, Sent
from tfserve_kit.embedded.limits import MOST_INFLATED_BYTES
from tfserve_kit.embedded.status import Code, ServingError

GZIP = zlib.MAX_WBITS | 16
GZIP_OR_ZLIB = zlib.MAX_WBITS | 32
_SENT_BYTES = 1 << 16  # what is left over of a piece is copied: pieces are small
_INFLATED_BYTES = 1 << 20
# Whoever has become so large goes on alone: several at once would take all processors from others.
_LARGE_BYTES = 4 << 20
_large = threading.Lock()


def inflated(
    data: Sent, account: Account, *, wbits: int = GZIP, most_bytes: int | None = None
) -> bytes | None:
    """Return what was compressed; None where that is damaged or cut.

    Args:
        data: what was sent.
        account: what it becomes is taken from it.
        wbits: format, as for `zlib.decompressobj`.
        most_bytes: how large it may become; as large as a REST body if left out.

    Raises:
        ServingError: RESOURCE_EXHAUSTED, it becomes larger than that or than the account allows.
    """
    most_bytes = MOST_INFLATED_BYTES if most_bytes is None else most_bytes
    inflater, whole = zlib.decompressobj(wbits), BytesIO()
    try:
        with ExitStack() as alone:
            for at in range(0, len(data), _SENT_BYTES):
                rest = data[at : at + _SENT_BYTES]
                while rest and not inflater.eof:
                    piece = inflater.decompress(rest, _INFLATED_BYTES)
                    rest = inflater.unconsumed_tail
                    before_bytes = whole.tell()
                    if before_bytes + len(piece) > most_bytes:
                        text = f"Inflated, the request is larger than {most_bytes} bytes"
                        raise ServingError(Code.RESOURCE_EXHAUSTED, text)
                    account.take(len(piece), "the inflated request")
                    if before_bytes < _LARGE_BYTES <= before_bytes + len(piece):
                        alone.enter_context(_large)
                    whole.write(piece)
    except zlib.error:
        return None
    return whole.getvalue() if inflater.eof else None
