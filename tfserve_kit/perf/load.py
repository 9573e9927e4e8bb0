"""Where to send, when, and over what: plain values, without a clock."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from tfserve_kit.clients import addresses
from tfserve_kit.clients.options import Options
from tfserve_kit.errors import UsageError

if TYPE_CHECKING:
    from tfserve_kit.perf.sending.judging import Expected


@dataclass(slots=True)
class Tally:
    """What is known of the answers of a run beside their samples.

    Attributes:
        checked: answers that were held against what was expected.
        decoded: those of them that were decoded in full.
        versions: right answers by the version that gave them, over gRPC.
        without_rows: outputs whose number of rows could not be checked.
    """

    checked: int = 0
    decoded: int = 0
    versions: Counter[int] = field(default_factory=Counter)
    without_rows: set[str] = field(default_factory=set)

    def add(self, other: "Tally") -> None:
        """Add what another process counted."""
        self.checked += other.checked
        self.decoded += other.decoded
        self.versions.update(other.versions)
        self.without_rows |= other.without_rows


Protocol = Literal["grpc", "rest"]
Sender = Literal["own", "grpcio"]

_SCHEMES: dict[str, Protocol] = {"grpc": "grpc", "grpcs": "grpc", "http": "rest", "https": "rest"}
_PORTS = {"http": 80, "https": 443}


def protocol_of(url: str) -> Protocol:
    """Return what is spoken at an address."""
    return "grpc" if url.startswith("grpc") else "rest"


class Payload(NamedTuple):
    """One request, ready to send.

    Attributes:
        path: of the URL: a gRPC method's, or one of the REST API.
        headers: names in lower case and values, besides those that the protocol itself needs.
        body: the serialized message, or the JSON text.
        expects: what an answer must hold; None if it is not looked into.
    """

    path: str
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    expects: "Expected | None" = None


@dataclass(frozen=True, slots=True)
class Closed:
    """Keep a number of requests in flight: send the next one when an answer is there.

    Attributes:
        concurrency: requests in flight.
        duration_s: how long new requests are sent, in seconds; None for no end.
        requests: how many are sent; None for any number. One of the two must be given.
    """

    concurrency: int
    duration_s: float | None = None
    requests: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Open:
    """Send at given times, whatever the server does.

    Attributes:
        due_ns: int64 [requests], nanoseconds since the start of the run, rising.
        max_in_flight: requests in flight at most; one that is due beyond it waits, and is late.
        name: a few words to tell the run from others.
        about: what the times were made of, as a run keeps it.
    """

    due_ns: NDArray[np.int64]
    max_in_flight: int = 1000
    name: str = "replay"
    about: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def at_rate(
        cls,
        rate: float,
        duration_s: float = 10.0,
        *,
        end_rate: float | None = None,
        arrivals: "Arrivals" = "constant",
        is_overload: bool = False,
        max_in_flight: int = 1000,
    ) -> Self:
        """Return a schedule of requests that are due at a rate.

        Args:
            rate: requests per second.
            duration_s: how long to send.
            end_rate: the rate at the end, where it changes evenly.
            arrivals: how requests are spaced.
            is_overload: whether the rate is doubled in the middle third.
            max_in_flight: requests in flight, at most.

        Raises:
            UsageError: no request would ever be due.
        """
        stretches = (
            steps([rate, 2 * rate, rate], duration_s / 3)
            if is_overload
            else ramp(rate, end_rate or rate, duration_s)
        )
        due = due_ns(stretches, arrivals)
        if not len(due):
            raise UsageError("no request was due", remedy="raise --rate or --duration")
        name = f"{rate:g}/s" + ("" if end_rate is None else f" to {end_rate:g}/s")
        about = {
            "duration_s": duration_s,
            "rate": rate,
            "end_rate": end_rate,
            "arrivals": arrivals,
            "is_overload": is_overload,
        }
        return cls(due, max_in_flight, name, about)

    def first(self, count: int | None) -> Self:
        """Return only so many of the requests; all of them for None."""
        if count is None:
            return self
        about = {**self.about, "requests": count}
        return replace(self, due_ns=self.due_ns[:count], about=about)


@dataclass(frozen=True, slots=True)
class Load:
    """A run: what server gets requests, when, and over what.

    Attributes:
        url: `grpc://host:port`, `grpcs://host:port`, `http://host:port` or `https://host:port`;
            of a fleet, several with commas between.
        protocol: `grpc` or `rest`; must fit the URL.
        schedule: when to send.
        connections: over how many connections gRPC requests to each server are spread; over REST,
            where a connection carries one request at a time, how many are open before the start.
        processes: how many processes send.
        timeout_s: how long one answer may take, in seconds from when the request was sent.
        sender: `own` is quick; `grpcio` sends gRPC the way Python programs usually do, for a
            comparison. Over TLS it is always grpcio that sends gRPC.
        grace_s: how long answers are waited for after the run was stopped, in seconds.
        options: TLS files, size of the largest answer; the rest of it is for clients.
        tally: filled by the run: what was counted of the answers' contents.
    """

    url: str
    protocol: Protocol
    schedule: Closed | Open = Closed(8, 10.0)
    connections: int = 1
    processes: int = 1
    timeout_s: float = 30.0
    sender: Sender = "own"
    grace_s: float = 2.0
    options: Options = field(default_factory=Options, compare=False, repr=False)
    tally: Tally = field(default_factory=Tally, compare=False, repr=False)

    @property
    def name(self) -> str:
        """A few words to tell it from others."""
        if isinstance(self.schedule, Closed):
            return f"concurrency {self.schedule.concurrency}"
        return self.schedule.name

    @property
    def duration_s(self) -> float:
        """How long requests are sent, as far as that is known; 0 if it is not."""
        if isinstance(self.schedule, Closed):
            return self.schedule.duration_s or 0.0
        last_s = float(self.schedule.due_ns[-1]) / 1e9 if len(self.schedule.due_ns) else 0.0
        return float(self.schedule.about.get("duration_s", last_s))

    @property
    def is_secure(self) -> bool:
        """Whether the connections use TLS."""
        return urlsplit(self.url).scheme in {"grpcs", "https"}

    @property
    def uses_grpcio(self) -> bool:
        """Whether grpcio sends the requests."""
        return self.protocol == "grpc" and (self.is_secure or self.sender == "grpcio")

    @property
    def most_in_flight(self) -> int:
        """How many requests can be in flight."""
        if isinstance(self.schedule, Closed):
            return self.schedule.concurrency
        return self.schedule.max_in_flight

    @property
    def urls(self) -> tuple[str, ...]:
        """The address of each server."""
        return tuple(each.url for each in addresses.read(self.url).members)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port, of one server."""
        parts = urlsplit(self.url)
        return parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 0)

    @property
    def prefix(self) -> str:
        """The path before each request's own, where a proxy wants one."""
        return urlsplit(self.url).path.rstrip("/") if self.protocol == "rest" else ""

    def settings(self) -> dict[str, Any]:
        """Return all of it as a run keeps it, without files and secrets of whoever sends."""
        schedule = self.schedule
        is_closed = isinstance(schedule, Closed)
        when = (
            asdict(schedule)
            if isinstance(schedule, Closed)
            else {"duration_s": self.duration_s, **schedule.about}
            | {"max_in_flight": schedule.max_in_flight}
        )
        found = {
            "loop": "closed" if is_closed else "open",
            "url": self.url,
            "protocol": self.protocol,
            "is_overload": False,
            **when,
            "connections": self.connections,
            "processes": self.processes,
            "timeout_s": self.timeout_s,
            "sender": "grpcio" if self.uses_grpcio else self.sender,
        }
        return {key: value for key, value in found.items() if value is not None}


def check(load: Load, payloads: Sequence[Payload]) -> None:
    """Refuse what cannot be run.

    Raises:
        UsageError: a value is out of its range, or the URL does not fit the protocol.
    """
    for url in load.urls:
        _check_url(replace(load, url=url))
    if not payloads:
        raise UsageError("there is nothing to send", remedy="give at least one payload")
    schedule = load.schedule
    in_flight = load.most_in_flight
    counts = {
        "connections": load.connections,
        "processes": load.processes,
        "concurrency": in_flight,
    }
    for name in (name for name, count in counts.items() if count < 1):
        raise UsageError(
            f"{name} is {counts[name]}, which must be at least 1", remedy="give 1 or more"
        )
    if not load.timeout_s > 0:
        raise UsageError(
            f"timeout_s is {load.timeout_s:g}, which must be above 0", remedy="give seconds above 0"
        )
    if isinstance(schedule, Closed) and schedule.duration_s is None and schedule.requests is None:
        raise UsageError("the run would never end", remedy="give duration_s or requests")
    if isinstance(schedule, Open) and (np.diff(schedule.due_ns) < 0).any():
        raise UsageError("the due times are not in ascending order", remedy="sort them")


def _check_url(load: Load) -> None:
    try:
        parts = urlsplit(load.url)
        fits = _SCHEMES.get(parts.scheme) == load.protocol and load.address[0]
        port = load.address[1]
    except ValueError:
        fits, port = "", 0
    if not fits or not port:
        raise UsageError(
            f"{load.url!r} is not an address for {load.protocol}",
            remedy="write grpc://host:port or http://host:port",
        )


def shares(load: Load) -> list[Load]:
    """Return the part of a load that each process takes; together they are the whole.

    Requests are dealt out in turn, so that each process sends a thinner copy of the whole. There
    are no more processes than requests in flight.
    """
    schedule = load.schedule
    in_flight = load.most_in_flight
    count = min(load.processes, in_flight)
    parts: list[Load] = []
    for worker in range(count):
        part: Closed | Open
        if isinstance(schedule, Open):
            due = schedule.due_ns[worker::count]
            part = replace(schedule, due_ns=due, max_in_flight=_share(in_flight, worker, count))
        else:
            requests = schedule.requests
            part = Closed(
                _share(in_flight, worker, count),
                schedule.duration_s,
                None if requests is None else _share(requests, worker, count),
            )
        connections = max(1, _share(load.connections, worker, count))
        parts.append(replace(load, schedule=part, connections=connections, processes=1))
    return parts


def dealt(payloads: Sequence[Payload], worker: int, count: int) -> list[Payload]:
    """Return the payloads of one of several processes, so that request n of all has the n-th.

    A process's k-th request is number `k * count + worker` of the whole; see `shares`. What it gets
    is as long as it takes to begin anew.
    """
    turns = len(payloads) // math.gcd(len(payloads), count)
    return [payloads[(turn * count + worker) % len(payloads)] for turn in range(turns)]


def _share(whole: int, worker: int, count: int) -> int:
    return whole // count + (worker < whole % count)


Arrivals = Literal["constant", "poisson"]

_SECOND_NS = 1e9
_TINY = 1e-12
_ROUNDING = 1e-9  # 0.1 s at 30/s are 3 requests, not one more


@dataclass(frozen=True, slots=True)
class Stretch:
    """A stretch of time in which the rate changes evenly.

    Attributes:
        duration_s: how long it is, in seconds.
        first_rate: requests per second at its beginning.
        last_rate: requests per second at its end.
    """

    duration_s: float
    first_rate: float
    last_rate: float

    @property
    def requests(self) -> float:
        """How many requests are due in it, on average; no whole number."""
        return self.duration_s * (self.first_rate + self.last_rate) / 2


def ramp(first_rate: float, last_rate: float, duration_s: float) -> list[Stretch]:
    """Return a rate that rises or falls evenly; rates in requests per second."""
    return [Stretch(duration_s, first_rate, last_rate)]


def steps(rates: Iterable[float], duration_s: float) -> list[Stretch]:
    """Return rates, one after the other, each for so many seconds; 0 is a pause."""
    return [Stretch(duration_s, rate, rate) for rate in rates]


def due_ns(
    stretches: Sequence[Stretch], arrivals: Arrivals = "constant", seed: int = 0
) -> NDArray[np.int64]:
    """Return when requests are due.

    Request number n is due when n requests should have come: where the rates so far add up to n.
    Random arrivals put random numbers, one apart on average, in the place of 0, 1, 2 and so on.

    Args:
        stretches: rates over time, one after the other.
        arrivals: `constant` begins at once and spaces requests evenly; `poisson` as independent
            users would.
        seed: of `poisson`; the same seed gives the same times.

    Returns:
        int64 [requests], nanoseconds since the start, rising, before the end of the last stretch.

    Raises:
        UsageError: a duration or rate is negative, or no number.
    """
    rows = [(each.duration_s, each.first_rate, each.last_rate) for each in stretches]
    table = np.array(rows, np.float64).reshape(-1, 3)
    if not np.isfinite(table).all() or (table < 0).any():
        raise UsageError(
            f"{list(stretches)} has an invalid rate or duration",
            remedy="give rates and seconds above 0",
        )
    ends = np.cumsum([each.requests for each in stretches])
    if not len(ends):
        return np.zeros(0, np.int64)
    places = _places(float(ends[-1]), arrivals, seed)
    at = np.minimum(np.searchsorted(ends, places, side="right"), len(ends) - 1)
    duration_s, first, last = table[at].T
    count = places - (ends - [each.requests for each in stretches])[at]
    growth = (last - first) / np.maximum(duration_s, _TINY)
    # The root of first * t + growth / 2 * t ** 2 = count that is exact for a growth of 0, too.
    root = np.sqrt(np.maximum(first * first + 2 * growth * count, 0))
    within_s = 2 * count / np.maximum(first + root, _TINY)
    starts_s = np.cumsum(table[:, 0]) - table[:, 0]
    due_s: NDArray[np.float64] = starts_s[at] + np.minimum(within_s, duration_s)
    return np.rint(due_s * _SECOND_NS).astype(np.int64)


def replay_ns(due_s: Iterable[float], speed: float = 1.0) -> NDArray[np.int64]:
    """Return recorded due times as a schedule that begins at once.

    Args:
        due_s: times in seconds, in any order, by any clock.
        speed: 2 sends twice as fast as it was recorded.

    Returns:
        As `due_ns`.

    Raises:
        UsageError: a time is not a number, or the speed is not above 0.
    """
    times_s = np.sort(np.fromiter(due_s, np.float64))
    if not speed > 0 or not np.isfinite(times_s).all():
        raise UsageError(
            f"cannot replay such times at speed {speed:g}",
            remedy="give a --speed above 0, such as 1 or 2",
        )
    first_s = times_s[0] if len(times_s) else 0.0
    return np.rint((times_s - first_s) / speed * _SECOND_NS).astype(np.int64)


def _places(total: float, arrivals: Arrivals, seed: int) -> NDArray[np.float64]:
    """Return the numbers of the requests that are due within `total` of them, rising."""
    if arrivals == "constant":
        return np.arange(math.ceil(total - _ROUNDING), dtype=np.float64)
    source = np.random.default_rng(seed)
    found, last = [np.zeros(0)], 0.0
    while last < total:
        found.append(last + np.cumsum(source.exponential(size=round(total - last) + 100)))
        last = float(found[-1][-1])
    places = np.concatenate(found)
    return places[places < total]
