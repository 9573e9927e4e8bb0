"""How a server is reached: whom a client trusts, how it names itself, what it sends along.

A server that tfkit started is reached as its deployment says (`[client]`, and the certificate in
its `ssl_config_file`); any other as the command line, the environment or tfkit.toml say.

What all replicas of a server do is known only from all of them, so each is reached by itself. A
fleet's servers have addresses. Replicas behind a gateway of ours have one between them; there a
header says which one is asked, and the answer says who gave it (templates/haproxy.cfg.j2).
"""

import json
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tfserve_kit import clients, strict_json
from tfserve_kit.clients import Target, addresses
from tfserve_kit.clients.options import OptionNames
from tfserve_kit.clock import Clock, SystemClock, wait_until
from tfserve_kit.engines import Endpoints, FleetHandle, Phase, Replica, RunningServer, registry
from tfserve_kit.engines.records import deployed
from tfserve_kit.errors import ServerFailed, UsageError

if TYPE_CHECKING:
    from tfserve_kit.deployment.spec import ClientSection, Spec

ENVIRONMENT, FILE = "env:", "file:"
_TRUSTED, _TLS = "trusted.pem", "tls.json"
_TLS_KEYS = ("ca_file", "cert", "key", "server_name")
_REPLICA = "tfkit-replica"  # the header
_ASK_S = 5.0
# How long the gateway may take to notice that a replica is in service, and between looks.
_SETTLE_S, _LOOK_S = 10.0, 0.5


@dataclass(frozen=True, slots=True)
class Access:
    """What is known of how to reach a server; a value.

    Attributes:
        ca_file: PEM file of the authorities that are trusted.
        cert: PEM file with the client's own certificate.
        key: PEM file with its key.
        server_name: name that the server's certificate must have.
        headers: value by name; `env:NAME` and `file:PATH` stand for what is there.
        is_firm: whether TLS was asked for in so many words, so that it is an error where the
            address has none.
    """

    ca_file: str | None = None
    cert: str | None = None
    key: str | None = None
    server_name: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    is_firm: bool = False

    @classmethod
    def of(cls, client: "ClientSection") -> Self:
        """Return what the section `[client]` of a deployment says."""
        return cls(**client.model_dump())

    def over(self, other: Self) -> Self:
        """Return both, of which this one wins; certificate and key go together."""
        known = {each.name: getattr(self, each.name) for each in fields(self)}
        chosen = {key: value for key, value in known.items() if value}
        if self.cert or self.key:
            chosen |= {"cert": self.cert, "key": self.key}
        return replace(other, **chosen | {"headers": {**other.headers, **self.headers}})

    def section(self) -> dict[str, Any]:
        """Return what is set, as the section `[client]` has it."""
        known = {key: getattr(self, key) for key in _TLS_KEYS}
        set_ones = {key: value for key, value in known.items() if value}
        return set_ones | ({"headers": dict(self.headers)} if self.headers else {})

    def options(self, url: str) -> OptionNames:
        """Return the options of a client for an address.

        Raises:
            UsageError: what a header's value stands for cannot be read.
        """
        found: OptionNames = {}
        if self.headers:
            found["headers"] = {name: _value(name, text) for name, text in self.headers.items()}
        if self.is_firm or addresses.read(url).is_secure:
            found |= {
                "ca_file": self.ca_file,
                "cert_file": self.cert,
                "key_file": self.key,
                "server_name": self.server_name,
            }
        return found

    def connect(self, url: str, **more: Any) -> clients.Client:
        """Return a client for an address; see `clients.connect`."""
        return clients.connect(url, **self.options(url), **more)


NOTHING = Access()


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model of a server, and how it is reached.

    Attributes:
        url: the server's address.
        model: name of the model.
        base_path: folder of the model's versions; None if it is not known, or on no disk here.
        access: how the server is reached.
        version: the version that a pasted URL named.
        label: the label that it named.
    """

    url: str
    model: str
    base_path: Path | None = None
    access: Access = NOTHING
    version: int | None = None
    label: str | None = None

    def connect(self, **more: Any) -> clients.Client:
        """Return a client of the server; see `Options` for what more there is."""
        return self.access.connect(self.url, **more)

    def target(
        self, version: int | None = None, label: str | None = None, signature: str = ""
    ) -> Target:
        """Return the model, with the version or label of the options, or else of the URL.

        Raises:
            UsageError: two of them contradict each other.
        """
        if version is not None and label is not None:
            raise UsageError("give --version or --label, not both")
        if version is None and label is None:
            return Target(self.model, self.version, self.label, signature)
        asked = (version, label)
        if (self.version, self.label) not in {(None, None), asked}:
            raise UsageError(
                f"the URL names {_named(self.version, self.label)}, the options name "
                f"{_named(version, label)}",
                remedy="leave one of them out",
            )
        return Target(self.model, version, label, signature)

    def require_no_version(self) -> None:
        """Refuse a URL that names a version, for a command that asks for none."""
        if self.version is not None or self.label is not None:
            raise UsageError(
                f"the URL names {_named(self.version, self.label)}, and this command asks the "
                "version in service",
                remedy=f"give --url {self.url} --model {self.model}",
            )


def _named(version: int | None, label: str | None) -> str:
    return f"label {label!r}" if label else f"version {version}"


def connect(server: RunningServer, given: Access = NOTHING, **more: Any) -> clients.Client:
    """Return a gRPC client for a server that tfkit started.

    Args:
        server: a running one, or a handle of it.
        given: wins over what is known of it.
        more: further options; see `Options`.
    """
    return given.over(of_server(server.home)).connect(server.endpoints.grpc, **more)


def of_server(home: Path) -> Access:
    """Return how a server that tfkit started is reached; reads no more than it must.

    Args:
        home: folder of its record and its deployment.
    """
    return _client_section(home).over(_tls(home))


def trusted(spec: "Spec") -> dict[str, str]:
    """Return files for a server's folder that say what its certificate is: whom to trust.

    The file that it was started with may be another one by the time somebody connects.

    Raises:
        SpecError: that file cannot be used.
    """
    from tfserve_kit.deployment import tls

    if (found := tls.of_deployment(spec)) is None:
        return {}
    certificate, name = found
    return {_TRUSTED: certificate, _TLS: strict_json.dumps({"server_name": name})}


def reached_by(spec: "Spec", given: Access) -> "Spec":
    """Return a deployment whose `[client]` says what is given, and else what it said."""
    changed = spec.client.model_dump() | given.over(Access.of(spec.client)).section()
    return spec.model_copy(update={"client": spec.client.model_validate(changed)})


def of_file(file: Path) -> Access:
    """Return what the section `[client]` of a deployment file says; nothing without such a file.

    Raises:
        SpecError: the section is wrong.
    """
    try:
        if b"[client" not in file.read_bytes():
            return NOTHING
    except OSError:
        return NOTHING
    from tfserve_kit.deployment.spec import load_client  # slow, and most files have no such section

    return Access.of(load_client(file))


def at(server: Endpoints, address: addresses.Address) -> bool:
    """Say whether an address, or one of a fleet's, is one of a server's; `localhost` is here."""
    both = map(addresses.read, (server.grpc, server.rest))
    own = {(each.scheme, _place(each)) for found in both for each in found.members}
    return any((each.scheme, _place(each)) in own for each in address.members)


def replica_at(server: Endpoints, address: addresses.Address) -> Endpoints:
    """Return the endpoints of the replica at an address; of all where it is at none."""
    grpc, rest = (addresses.read(url).members for url in (server.grpc, server.rest))
    each = (Endpoints(one.url, other.url) for one, other in zip(grpc, rest, strict=True))
    return next((found for found in each if at(found, address)), server)


def server_at(address: addresses.Address) -> RunningServer | None:
    """Return the server at an address, of a fleet the first; None if tfkit runs none there."""
    return next((each for each in registry.running() if at(each.endpoints, address)), None)


def _place(address: addresses.Address) -> str:
    place = address.url.partition("://")[2].lower()
    host, _, port = place.rpartition(":")
    return f"127.0.0.1:{port}" if host == "localhost" else place


def each_replica(to: ServedModel, *, clock: Clock | None = None) -> dict[str, ServedModel]:
    """Return a model on each replica of its server, by the replica's name.

    A server that is alone is its own replica, and named by its address. Replicas behind what tfkit
    does not run cannot be told from that.

    Args:
        to: the model.
        clock: what waiting for the gateway measures with.

    Raises:
        ServerFailed: a replica does not run, or is not in service.
        ServerUnreachable: a name of a fleet cannot be resolved.
    """
    address = addresses.read(to.url)
    if address.is_fleet:
        return {url: replace(to, url=url) for url in addresses.servers(address)}
    server = server_at(address)
    if server is None or not isinstance(server, FleetHandle):
        return {to.url: to}
    return {
        each.name: replace(to, url=url, access=pin.over(to.access))
        for each, url, pin in _reached(server, to, clock or SystemClock())
    }


@contextmanager
def connect_each(
    to: ServedModel, *, clock: Clock | None = None, **options: Any
) -> Iterator[dict[str, clients.Client]]:
    """Give a client of each replica, by its name; arguments and errors of `each_replica`.

    Args:
        to: the model.
        clock: as there.
        options: of the clients.
    """
    with ExitStack() as stack:
        found = each_replica(to, clock=clock).items()
        yield {name: stack.enter_context(each.connect(**options)) for name, each in found}


def _reached(
    server: RunningServer, to: ServedModel, clock: Clock
) -> Iterator[tuple[Replica, str, Access]]:
    """Yield each replica of a fleet, its address, and what takes requests to it alone."""
    replicas = registry.find(server.server_name).replicas()
    for each in replicas:
        if each.state.phase is not Phase.RUNNING:
            raise _unasked(each, server, f"is {each.state.phase.value} {each.reason}".rstrip())
    behind = {each.address for each in replicas if each.endpoints is None}
    names = _at_gateway(server, to, behind, clock) if behind else {}
    for each in replicas:
        if each.endpoints is not None:
            yield each, each.endpoints.grpc, NOTHING
        elif each.address in names:
            yield each, server.endpoints.grpc, Access(headers={_REPLICA: names[each.address]})
        else:
            raise _unasked(each, server, "is not in service at the gateway")


def _at_gateway(
    server: RunningServer, to: ServedModel, wanted: Collection[str], clock: Clock
) -> dict[str, str]:
    """Return by address what the gateway calls the replicas that are in service."""
    # Many commands import this module, and few need these.
    from tfserve_kit.clients.grpc import GrpcProtocol
    from tfserve_kit.clients.grpc_channel import GrpcTransport
    from tfserve_kit.engines import services

    url = server.endpoints.grpc
    request: Any = GrpcProtocol(url).status(Target(to.model)).request
    found: dict[str, str] = {}

    def look() -> bool | None:
        for slot in range(1, 1 + services.slots(len(wanted))):
            asked = request._replace(headers=((_REPLICA, f"replica{slot}"),))
            name = str(transport.answer_headers(asked, _ASK_S).get(_REPLICA, ""))
            found[name.partition("/")[2]] = name
            if found.keys() >= set(wanted):
                return True
        return None

    with closing(GrpcTransport(url, clients.Options(**to.access.options(url)))) as transport:
        wait_until(look, timeout_s=_SETTLE_S, interval_s=_LOOK_S, clock=clock)
    return found


def _unasked(replica: Replica, server: RunningServer, why: str) -> ServerFailed:
    name = server.server_name
    return ServerFailed(
        f"replica {replica.name} of server {name!r} {why}, so it cannot be asked",
        remedy=f"`tfkit status` shows the replicas; `tfkit restart {name}` replaces them, and the "
        "gateway if it is of an older tfkit",
    )


def _client_section(home: Path) -> Access:
    try:
        return Access(**deployed(home, "client"))
    except TypeError:
        return NOTHING


def _tls(home: Path) -> Access:
    try:
        known = json.loads((home / _TLS).read_text("utf-8"))
        return Access(ca_file=str(home / _TRUSTED), server_name=known["server_name"])
    except (OSError, ValueError, TypeError, KeyError):
        return NOTHING


def _value(name: str, text: str) -> str:
    """Return what a header's value stands for; no error tells it."""
    if text.startswith(ENVIRONMENT):
        variable = text.removeprefix(ENVIRONMENT)
        if variable not in os.environ:
            raise UsageError(
                f"header {name!r} takes its value from {variable}, which is not set",
                remedy=f"set {variable}, or name another variable",
            )
        return os.environ[variable]
    if text.startswith(FILE):
        file = Path(text.removeprefix(FILE)).expanduser()
        try:
            return file.read_text("utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not text"
            raise UsageError(
                f"header {name!r} takes its value from {file}, which cannot be read: {reason}",
                remedy="give the path of a readable text file: NAME=file:PATH",
            ) from None
    return text
