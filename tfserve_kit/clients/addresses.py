"""The address of a model server: what people write and paste, and what answers there.

A URL of the REST API says more than where the server is: `http://host:8501/v1/models/m/versions/3`
names a model and a version as well. What cannot be an address is refused with the form that can.
"""

import re
import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn
from urllib.parse import SplitResult, unquote, urlsplit

from tfserve_kit import safe_text
from tfserve_kit.errors import UsageError, did_you_mean

GRPC_PORT, REST_PORT = 8500, 8501
_SCHEMES = ("grpc", "grpcs", "http", "https")
_EXAMPLES = f"write grpc://localhost:{GRPC_PORT} or http://localhost:{REST_PORT}"
# Source: tensorflow/serving's docs, api_rest.md.
_API = re.compile(
    r"(?P<prefix>.*?)/v1(?:/models(?:/(?P<model>[^/:]+)"
    r"(?:/versions/(?P<version>\d{1,19})|/labels/(?P<label>[^/:]+))?"
    r"(?P<tail>/metadata|:predict|:classify|:regress)?)?)?",
    re.ASCII,
)
_METRICS = "/monitoring/prometheus/metrics"
_MOST_SHOWN = 200


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is, and what a URL of its REST API said besides.

    Attributes:
        url: `grpc://host:port`, `http://host:port/prefix` and so on, or `unix:/path`.
        model: name of the model; empty if the URL named none.
        version: its version, if the URL named one.
        label: its label, if the URL named one.
        is_pasted: whether the URL said more than where the server is.
    """

    url: str
    model: str = ""
    version: int | None = None
    label: str | None = None
    is_pasted: bool = False

    @property
    def scheme(self) -> str:
        """Its scheme, in lower case."""
        return self.url.partition(":")[0].lower()

    @property
    def is_rest(self) -> bool:
        """Whether it speaks REST rather than gRPC."""
        return self.scheme in {"http", "https"}

    @property
    def is_secure(self) -> bool:
        """Whether it uses TLS."""
        return self.scheme in {"grpcs", "https"}

    def __str__(self) -> str:
        named = [f"model {self.model!r}"] if self.model else []
        named += [f"version {self.version}"] if self.version is not None else []
        named += [f"label {self.label!r}"] if self.label else []
        return ", ".join([f"{'REST' if self.is_rest else 'gRPC'} at {self.url}", *named])


def read(text: str) -> Address:
    """Return the address that a text stands for.

    Raises:
        UsageError: it is none; the remedy names the form that is meant, as far as that can be told.
    """
    scheme, separator, rest = text.partition("://")
    if text.lower().startswith("unix:"):
        return _socket(text)
    if any(sign.isspace() or not sign.isprintable() for sign in text):
        _refuse(text, "it contains spaces or control characters")
    if not separator:
        _refuse_bare(text)
    if scheme.lower() not in _SCHEMES:
        host = rest.partition("/")[0]
        near = did_you_mean(scheme.lower(), _SCHEMES)
        _refuse(text, f"the protocol {scheme}:// is not supported ({near})", _both(host))
    parts = _split(text, scheme.lower(), rest)
    return _rest(text, parts) if parts.scheme in {"http", "https"} else _grpc(text, parts)


def server(text: str) -> Address:
    """Return the address of a server alone.

    Raises:
        UsageError: it is no address, or says which model is meant besides.
    """
    address = read(text)
    if address.is_pasted:
        _refuse(text, "it names more than the server", f"write {address.url}")
    return address


def _split(text: str, scheme: str, rest: str) -> SplitResult:
    """Split an address; refuse what makes no host and port."""
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" in authority:
        _refuse(
            text,
            "it must not contain a user and password",
            "send them as a header: --header NAME=env:VARIABLE",
        )
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port  # the port raises if it is none
    except ValueError:
        host, port, parts = None, None, urlsplit("")
    if authority.count(":") > 1 and not authority.startswith("["):
        address, _, last = authority.rpartition(":")
        _refuse(text, "an IPv6 address needs brackets", f"write {scheme}://[{address}]:{last}")
    if not host or authority.endswith(":") or port == 0:
        _refuse(text, "")
    if "?" in rest or "#" in rest:
        _refuse(
            text,
            "a query or fragment is not allowed",
            "write " + re.split("[?#]", text, maxsplit=1)[0],
        )
    return parts


def _grpc(text: str, parts: SplitResult) -> Address:
    where = f"{parts.scheme}://{parts.netloc}"
    if parts.port is None and parts.scheme == "grpc":
        _refuse(text, "gRPC has no default port", f"write {where}:{GRPC_PORT}")
    if parts.path.strip("/"):
        found = _API.fullmatch(parts.path.rstrip("/"))
        model = (
            f", and give the model: {unquote(found['model'])}" if found and found["model"] else ""
        )
        _refuse(
            text, "gRPC has no paths", f"write {where}{model}; paths are for REST, which is http://"
        )
    return Address(where)


def _rest(text: str, parts: SplitResult) -> Address:
    path = parts.path.rstrip("/")
    where = f"{text.partition('://')[0]}://{parts.netloc}"
    if path.endswith(_METRICS):
        return Address(where + path.removesuffix(_METRICS), is_pasted=True)
    found = _API.fullmatch(path)
    if found is None:
        if "/v1/models/" in f"{path}/":
            prefix = path.partition("/v1/models")[0]
            forms = "/v1/models/NAME[/versions/N | /labels/LABEL][/metadata | :predict]"
            _refuse(
                text,
                "it looks like a path of the REST API, but is not one",
                f"write {where}{prefix}{forms}",
            )
        return Address(where + path)
    version = found["version"]
    return Address(
        where + found["prefix"],
        unquote(found["model"] or ""),
        None if version is None else int(version),
        unquote(found["label"]) if found["label"] else None,
        is_pasted=True,
    )


def _socket(text: str) -> Address:
    parts = urlsplit(text)
    if not parts.path.startswith("/") or parts.netloc:
        _refuse(text, "")
    return Address(f"unix:{parts.path}")


def _refuse_bare(text: str) -> NoReturn:
    """Refuse an address without a scheme; its port may tell which one is meant."""
    place = text.removeprefix("//")
    port = place.partition("/")[0].rpartition(":")[2]
    usual = {str(GRPC_PORT): "gRPC", str(REST_PORT): "REST"}.get(port)
    if not text or text.partition(":")[0].lower() in _SCHEMES:
        _refuse(text, "")
    if usual is None:
        _refuse(text, "it does not say which protocol", _both(place))
    scheme = "grpc" if usual == "gRPC" and "/" not in place else "http"
    why = f"it does not say which protocol (port {port} is usually {usual})"
    _refuse(text, why, f"write {scheme}://{place}")


def _both(place: str) -> str:
    is_whole = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[\w.-]+):\d+(/.*)?", place, re.ASCII)
    return f"write grpc://{place} for gRPC, or http://{place} for REST" if is_whole else ""


def _refuse(text: str, why: str, remedy: str = "") -> NoReturn:
    shown = safe_text.redacted_url(text) if "://" in text else text
    told = shown if len(shown) <= _MOST_SHOWN else shown[:_MOST_SHOWN] + "..."
    raise UsageError(
        f"{told!r} is not the address of a model server{f': {why}' if why else ''}",
        remedy=remedy or _EXAMPLES,
    )


# How HTTP/2 begins (RFC 9113, section 3.4), with an empty SETTINGS frame. A web server refuses it.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_SETTINGS = bytes((4, 0, 0, 0, 0, 0))
_PATIENCE_S = 1.0
_NAMES = {
    "grpc": "a gRPC server",
    "grpcs": "a gRPC server with TLS",
    "http": "an HTTP server",
    "https": "an HTTP server with TLS",
}


def other_protocol(address: Address) -> tuple[str, str] | None:
    """Return what answers at an address instead of what it says, and the right address.

    Args:
        address: one that a client could not talk to.
    """
    place = address.url.partition("://")[2].partition("/")[0]
    host, _, port = place.rpartition(":")
    if not host or not port.isdigit():
        return None
    spoken = None
    with suppress(OSError, ValueError):
        spoken = _spoken(host.strip("[]"), int(port))
    if spoken is None or spoken == address.scheme:
        return None
    return f"{_NAMES[spoken]} answers there", f"write {spoken}://{place}"


def _spoken(host: str, port: int) -> str | None:
    """Return the scheme of what listens; None where that cannot be told."""
    data = _answer(host, port)
    if data.startswith((b"HTTP/", b"<")):
        return "http"
    if data[3:9] == _SETTINGS:
        return "grpc"
    import ssl

    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing is told to it
    context.set_alpn_protocols(["h2", "http/1.1"])
    with (
        socket.create_connection((host, port), _PATIENCE_S) as plain,
        context.wrap_socket(plain, server_hostname=host) as secured,
    ):
        return "grpcs" if secured.selected_alpn_protocol() == "h2" else "https"


def _answer(host: str, port: int) -> bytes:
    """Return what a server says to the beginning of HTTP/2, nothing if it hangs up."""
    with socket.create_connection((host, port), _PATIENCE_S) as connection, suppress(OSError):
        connection.sendall(_PREFACE)
        return connection.recv(64)
    return b""
