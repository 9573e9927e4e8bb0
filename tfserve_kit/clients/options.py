"""How a client behaves, decided once when it is made."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

from tfserve_kit.clients.headers import Headers
from tfserve_kit.errors import UsageError

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
            "retries": self.retries < 0,
            "retry_share": not 0 <= self.retry_share <= 1,
            "hedge_after_s": self.hedge_after_s is not None and self.hedge_after_s <= 0,
            "max_answer_bytes": not 0 < self.max_answer_bytes <= _MOST_BYTES,
        }
        for name in (name for name, is_wrong in wrong.items() if is_wrong):
            raise UsageError(f"{name} cannot be {getattr(self, name)}")
        if bool(self.cert_file) != bool(self.key_file):
            raise UsageError("cert_file and key_file belong together", remedy="give both")
        if self.hedge_after_s is not None and not self.idempotent:
            raise UsageError("hedge_after_s sends requests twice, which idempotent=False forbids")

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
        raise UsageError(f"cannot read {file}: {error}") from error
