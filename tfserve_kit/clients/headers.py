"""Headers that callers add: what can be sent, as HTTP headers and as gRPC metadata.

Values may be secret, so no error says one.

Source: RFC 9110, section 5; https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
(Custom-Metadata).
"""

import base64
import binascii
import re
from collections.abc import Mapping

from tfserve_kit.errors import UsageError

Headers = Mapping[str, str | bytes]
"""Value by name; in any case of letters over HTTP, in lower case over gRPC whatever is written."""

_HTTP_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HTTP_VALUE = re.compile(r"[\t\x20-\x7e\xa0-\xff]*")  # no line of its own can be smuggled in
_GRPC_NAME = re.compile(r"[0-9a-z_.-]+")
_GRPC_VALUE = re.compile(r"[\x20-\x7e]*")
_BINARY = "-bin"
# What says where a message ends, and what the protocols write themselves.
_FRAMING = frozenset(
    {"connection", "content-length", "expect", "te", "trailer", "transfer-encoding", "upgrade"}
)
_GRPCS_OWN = frozenset({"content-type", "host", "user-agent"}) | _FRAMING


def for_http(headers: Headers) -> dict[str, str]:
    """Return headers as HTTP sends them; binary values become base64.

    Raises:
        UsageError: one of them cannot be sent.
    """
    found = {}
    for name, value in headers.items():
        _require_text(name, value)
        text = base64.b64encode(value).decode() if isinstance(value, bytes) else value
        if not _HTTP_NAME.fullmatch(name) or not _HTTP_VALUE.fullmatch(text):
            raise _unfit(name)
        if name.lower() in _FRAMING:
            raise _reserved(name)
        found[name] = text
    return found


def for_grpc(headers: Headers) -> tuple[tuple[str, str | bytes], ...]:
    """Return headers as metadata, with names in lower case.

    Names that end in `-bin` have bytes as their values; text there is taken for base64.

    Raises:
        UsageError: one of them cannot be sent.
    """
    return tuple(_metadatum(name, value) for name, value in headers.items())


def merged(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, str]:
    """Return headers of which the later win, whatever the case of their names."""
    won = {name.lower() for name in after}
    return {name: value for name, value in before.items() if name.lower() not in won} | dict(after)


def _metadatum(given: str, value: str | bytes) -> tuple[str, str | bytes]:
    _require_text(given, value)
    name = given.lower()
    if name in _GRPCS_OWN or name.startswith("grpc-"):
        raise _reserved(given)
    if not _GRPC_NAME.fullmatch(name):
        raise _unfit(given)
    if name.endswith(_BINARY):
        return name, value if isinstance(value, bytes) else _decoded(given, value)
    if isinstance(value, bytes) or not _GRPC_VALUE.fullmatch(value) or value != value.strip(" "):
        raise _unfit(given)
    return name, value


def _require_text(name: object, value: object) -> None:
    if not isinstance(name, str) or not isinstance(value, str | bytes):
        raise UsageError(f"header {name!r} is no text", remedy="give names and values as text")


def _decoded(name: str, value: str) -> bytes:
    try:
        return base64.b64decode(value + "=" * (-len(value) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise UsageError(
            f"the value of header {name!r} is no base64, as names that end in -bin want it",
            remedy="encode it, or choose another name",
        ) from None


def _unfit(name: str) -> UsageError:
    return UsageError(
        f"{name!r} cannot be sent as a header, or its value cannot",
        remedy="names are letters, digits and - _ .; values are ASCII in one line (bytes: use a "
        "name that ends in -bin, with gRPC)",
    )


def _reserved(name: str) -> UsageError:
    return UsageError(
        f"header {name!r} belongs to the protocol itself", remedy="leave it out, or rename it"
    )
