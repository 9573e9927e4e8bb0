"""How a client behaves, decided once when it is made, and the headers that callers add.

Values of headers may be secret, so no error shows one.

Source: RFC 9110, section 5; https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
(Custom-Metadata).
"""

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

from tfserve_kit.errors import UsageError, file_error

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
        raise UsageError(f"header {name!r} is not text", remedy="give names and values as text")


def _decoded(name: str, value: str) -> bytes:
    try:
        return base64.b64decode(value + "=" * (-len(value) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise UsageError(
            f"the value of header {name!r} is not valid base64, which names ending in -bin require",
            remedy="encode it as base64, or choose another name",
        ) from None


def _unfit(name: str) -> UsageError:
    return UsageError(
        f"header {name!r} cannot be sent: its name or its value is not valid",
        remedy="names are letters, digits and - _ .; values are one line of ASCII (for bytes "
        "use a name ending in -bin, over gRPC)",
    )


def _reserved(name: str) -> UsageError:
    return UsageError(
        f"header {name!r} is set by the protocol itself", remedy="leave it out, or rename it"
    )


DEFAULT_TIMEOUT_S = 30.0
_GIB = 1 << 30
# gRPC counts the bytes of a message in 32 bits.
_MOST_BYTES = 2 * _GIB - 1


class OptionNames(TypedDict, total=False):
    """The options of `connect` and `connect_async` by name; `Options` tells what they mean."""

    check: bool
    retries: int
    retry_share: float
    idempotent: bool
    hedge_after_s: float | None
    gzip: bool
    max_answer_bytes: int
    headers: Headers
    ca_file: str | Path | None
    cert_file: str | Path | None
    key_file: str | Path | None
    server_name: str | None


@dataclass(frozen=True, slots=True)
class Options:
    """How a client behaves.

    Attributes:
        check: read a model's signatures once, convert the inputs to the types they name where
            nothing is lost, and refuse what cannot fit before it is sent.
        retries: how often one request is repeated at most, when the server is unreachable or full.
        retry_share: repeated and hedged requests per request that is made, on average over the
            life of the client, after the first few; keeps a crowd of clients from making an
            overload worse.
        idempotent: whether computing a request twice does no harm; if not, it is repeated only
            where it is certain that the server did not begin.
        hedge_after_s: send a request a second time where there is no answer after so many seconds;
            the first answer counts. None never does.
        gzip: compress what is sent, and ask for compressed answers.
        max_answer_bytes: size of the largest answer that is accepted.
        headers: sent with every request: HTTP headers, or gRPC metadata, for which names become
            lower case; a name that ends in `-bin` has bytes, or base64 text, as its value.
        ca_file: PEM file of the authorities that the server's certificate is checked with; those
            of the system if None.
        cert_file: PEM file with the client's own certificate, where the server asks for one.
        key_file: PEM file with its key.
        server_name: name that the server's certificate must have; that of the URL if None.

    Raises:
        UsageError: a value is out of its range.
    """

    check: bool = True
    retries: int = 2
    retry_share: float = 0.1
    idempotent: bool = True
    hedge_after_s: float | None = None
    gzip: bool = False
    max_answer_bytes: int = _GIB
    headers: Headers = field(default_factory=dict, repr=False)  # may hold secrets
    ca_file: str | Path | None = None
    cert_file: str | Path | None = None
    key_file: str | Path | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        wrong = {
            "retries": (self.retries < 0, "0 or more"),
            "retry_share": (not 0 <= self.retry_share <= 1, "a share from 0 to 1"),
            "hedge_after_s": (
                self.hedge_after_s is not None and not self.hedge_after_s > 0,  # nor NaN
                "seconds above 0, or None",
            ),
            "max_answer_bytes": (
                not 0 < self.max_answer_bytes <= _MOST_BYTES,
                f"from 1 to {_MOST_BYTES:,} bytes",
            ),
        }
        for name, (is_wrong, allowed) in wrong.items():
            if is_wrong:
                raise UsageError(
                    f"{name} cannot be {getattr(self, name)}", remedy=f"give {allowed}"
                )
        if bool(self.cert_file) != bool(self.key_file):
            raise UsageError("cert_file and key_file belong together", remedy="give both")
        if self.hedge_after_s is not None and not self.idempotent:
            raise UsageError(
                "hedge_after_s sends requests twice, which idempotent=False forbids",
                remedy="leave one of them out",
            )

    @property
    def has_tls_files(self) -> bool:
        """Whether anything is said that only TLS knows."""
        return any((self.ca_file, self.cert_file, self.key_file, self.server_name))


def read_pem(file: str | Path | None) -> bytes | None:
    """Return the content of a PEM file, None for none.

    Raises:
        UsageError: it cannot be read.
    """
    if file is None:
        return None
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise file_error(UsageError, "read", file, error) from error
