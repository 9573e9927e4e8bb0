"""What is asked of a run, and the load that it becomes: pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfserve_kit.clients.options import Options
from tfserve_kit.errors import UsageError
from tfserve_kit.perf import load
from tfserve_kit.perf.load import Arrivals, Closed, Load, Open, Payload, Protocol, Sender, Stretch

POISON_EVERY = 100


@dataclass(frozen=True, slots=True)
class Workload:
    """One run as it was asked for.

    Attributes:
        url: the server.
        protocol: `grpc` or `rest`.
        duration_s: how long to send; with `requests`, at most so long.
        requests: how many to send; None for as many as the time allows.
        concurrency: requests in flight, where no rate is given.
        rate: requests per second, whatever the server does; None for as fast as it answers.
        end_rate: the rate at the end, where it changes evenly.
        arrivals: how requests with a rate are spaced.
        is_overload: whether the rate is doubled in the middle third.
        max_in_flight: with a rate: requests in flight, at most.
        connections: see `Load`.
        processes: see `Load`.
        timeout_s: see `Load`.
        sender: see `Load`.
        due_ns: int64 [requests], when recorded requests are due, in nanoseconds since the start,
            rising; with a rate, that is but what they were made of.
        options: TLS files; see `Load`.
    """

    url: str
    protocol: Protocol
    duration_s: float = 10.0
    requests: int | None = None
    concurrency: int = 8
    rate: float | None = None
    end_rate: float | None = None
    arrivals: Arrivals = "constant"
    is_overload: bool = False
    max_in_flight: int = 1000
    connections: int = 1
    processes: int = 1
    timeout_s: float = 30.0
    sender: Sender = "own"
    due_ns: NDArray[np.int64] | None = field(default=None, compare=False, repr=False)
    options: Options = field(default_factory=Options, compare=False, repr=False)

    @property
    def name(self) -> str:
        """A few words to tell it from others."""
        if self.due_ns is not None:
            return "replay"
        if self.rate is None:
            return f"concurrency {self.concurrency}"
        ramp = "" if self.end_rate is None else f" to {self.end_rate:g}/s"
        return f"{self.rate:g}/s{ramp}"

    def load(self) -> Load:
        """Return what is sent.

        Raises:
            UsageError: no request would ever be due.
        """
        schedule: Closed | Open = Closed(self.concurrency, self.duration_s, self.requests)
        due = self.due_ns
        if due is None and self.rate is not None:
            due = load.due_ns(self._stretches(self.rate), self.arrivals)
        if due is not None:
            due = due[: self.requests]
            if not len(due):
                raise UsageError("no request was due", remedy="raise --rate or --duration")
            schedule = Open(due, self.max_in_flight)
        return Load(
            self.url,
            self.protocol,
            schedule,
            connections=self.connections,
            processes=self.processes,
            timeout_s=self.timeout_s,
            sender=self.sender,
            options=self.options,
        )

    def settings(self) -> dict[str, Any]:
        """Return all of it, as a run keeps it."""
        is_open = self.rate is not None or self.due_ns is not None
        moot = {"concurrency"} if is_open else {"arrivals", "max_in_flight"}
        moot |= {"options"}  # files and secrets of whoever sends
        moot |= {"due_ns"} if self.rate is not None else {"due_ns", "arrivals"}
        asked = {each.name: getattr(self, each.name) for each in fields(self)}
        known = {key: value for key, value in asked.items() if value is not None}
        return {"loop": "open" if is_open else "closed"} | {
            key: value for key, value in known.items() if key not in moot
        }

    def _stretches(self, rate: float) -> list[Stretch]:
        if self.is_overload:
            return load.steps([rate, 2 * rate, rate], self.duration_s / 3)
        return load.ramp(rate, self.end_rate or rate, self.duration_s)


def poisoned(payloads: Sequence[Payload]) -> list[Payload]:
    """Return payloads of which every `POISON_EVERY`-th is no request that a server can read."""
    turns = range(math.lcm(POISON_EVERY, len(payloads)))
    return [
        payloads[i % len(payloads)]._replace(body=b"\xff\xff not a request \xff")
        if i % POISON_EVERY == POISON_EVERY - 1
        else payloads[i % len(payloads)]
        for i in turns
    ]
