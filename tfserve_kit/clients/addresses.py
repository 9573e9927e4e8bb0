"""The address of a model server: what people write and paste, and what answers there.

A URL of the REST API says more than where the server is: `http://host:8501/v1/models/m/versions/3`
names a model and a version as well. What cannot be an address is refused with the form that can.
"""

import re
import socket
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import NoReturn
from urllib.parse import SplitResult, unquote, urlsplit

from tfserve_kit import safe_text
from tfserve_kit.errors import ServerUnreachable, UsageError, did_you_mean

GRPC_PORT, REST_PORT = 8500, 8501
_SCHEMES = ("grpc", "grpcs", "http", "https")
_NAME = "dns"
# Between the addresses of a fleet.
_BETWEEN = re.compile(r"\s*,\s*(?=[A-Za-z][A-Za-z+]*:)")
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
    """Where a server or a fleet is, and what a URL of its REST API said besides.

    Attributes:
        url: `grpc://host:port`, `http://host:port/prefix` and so on, or `unix:/path`; of a fleet,
            several with commas between, or a name to be resolved: `dns:///host:port` for gRPC,
            `dns+SCHEME://host:port` for each scheme.
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
        """Its scheme, in lower case; of a name, that of the addresses behind it."""
        scheme = self.url.partition(":")[0].lower()
        return "grpc" if scheme == _NAME else scheme.removeprefix(f"{_NAME}+")

    @property
    def is_name(self) -> bool:
        """Whether it is a name whose addresses are so many servers."""
        return self.url.partition(":")[0].lower().partition("+")[0] == _NAME

    @property
    def host(self) -> str:
        """Host name or address; empty for a socket."""
        place = self.url.partition("://")[2].lstrip("/")
        return urlsplit(f"//{place}").hostname or "" if place else ""

    @property
    def members(self) -> tuple["Address", ...]:
        """The addresses of a fleet; itself alone if it is one server's."""
        if _BETWEEN.search(self.url) is None:
            return (self,)
        return tuple(replace(self, url=url) for url in _BETWEEN.split(self.url))

    @property
    def is_fleet(self) -> bool:
        """Whether it may stand for several servers."""
        return self.is_name or len(self.members) > 1

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
    """Return the address that a text stands for, or several with commas between.

    Raises:
        UsageError: it is none; the remedy names the form that is meant, as far as that can be told.
    """
    if _BETWEEN.search(text) is None:
        return _one(text)
    found = list(dict.fromkeys(map(_one, _BETWEEN.split(text.strip()))))
    if len({(each.is_rest, each.is_secure) for each in found}) > 1:
        _refuse(text, "its addresses differ in protocol", "give all with the same scheme")
    if len({(each.model, each.version, each.label) for each in found}) > 1:
        _refuse(text, "its addresses name different models", "give the servers alone, and --model")
    return replace(found[0], url=",".join(dict.fromkeys(each.url for each in found)))


def _one(text: str) -> Address:
    if text.lower().startswith((f"{_NAME}:", f"{_NAME}+")):
        return _named(text)
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


def _named(text: str) -> Address:
    """Return the address that a name has to be resolved for."""
    scheme, _, rest = text.partition("://")
    plain = scheme.partition("+")[2] or "grpc"
    authority, slash, name = rest.partition("/")
    if scheme.lower() == _NAME and authority and slash and name:
        asked = authority.rpartition("@")[2]
        why = f"names are resolved by the system, which cannot be told to ask {asked}"
        remedy = f"write {_NAME}:///{name}, and name that server in /etc/resolv.conf"
        _refuse(text, why, f"{remedy}; for a container, `docker run --dns`")
    if plain not in _SCHEMES or (scheme.lower() == _NAME and not rest.startswith("/")):
        forms = f"{_NAME}:///host:{GRPC_PORT} or {_NAME}+http://host:{REST_PORT}"
        _refuse(text, "a name to be resolved is written otherwise", f"write {forms}")
    found = _one(f"{plain}://{rest.lstrip('/')}")
    if scheme.lower() == _NAME:
        return replace(found, url=f"{_NAME}:///{found.url.partition('://')[2]}")
    return replace(found, url=f"{_NAME}+{found.url}")


def resolved(address: Address) -> list[str]:
    """Return the URLs of the servers behind a name, sorted; asks the system's resolver, and waits.

    Raises:
        OSError: the name cannot be resolved.
    """
    parts = urlsplit(f"{address.scheme}://{address.url.partition('://')[2].lstrip('/')}")
    port = parts.port or (443 if address.is_secure else 80)
    found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    hosts = {str(place[0]) for *_, place in found}
    hosts = {f"[{host}]" if ":" in host else host for host in hosts}
    return sorted(f"{parts.scheme}://{host}:{port}{parts.path}" for host in hosts)


def servers(address: Address) -> list[str]:
    """Return the URL of each server of a fleet, with the names resolved as of now.

    Raises:
        ServerUnreachable: a name cannot be resolved.
    """
    found: list[str] = []
    for each in address.members:
        try:
            found += resolved(each) if each.is_name else [each.url]
        except OSError as error:
            raise ServerUnreachable(
                f"no model server is known at {each.url}: {error}",
                remedy="check the name, or give addresses",
            ) from error
    return list(dict.fromkeys(found))


def server(text: str) -> Address:
    """Return the address of a server or fleet alone.

    Raises:
        UsageError: it is not an address, or says which model is meant besides.
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
    "grpc": "gRPC",
    "grpcs": "gRPC with TLS",
    "http": "HTTP",
    "https": "HTTP with TLS",
}


def other_protocol(address: Address) -> tuple[str, str] | None:
    """Return what answers at an address instead of what it says, and the right address.

    Args:
        address: one that a client could not talk to.
    """
    place = address.url.partition("://")[2].partition("/")[0]
    host, _, port = place.rpartition(":")
    if address.is_fleet or not host or not port.isdigit():
        return None
    spoken = None
    with suppress(OSError, ValueError):
        spoken = _spoken(host.strip("[]"), int(port))
    if spoken is None or spoken == address.scheme:
        return None
    what = f"that port speaks {_NAMES[spoken]}, not {_NAMES[address.scheme]}"
    return what, f"write {spoken}://{place}"


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
