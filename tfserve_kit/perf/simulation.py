"""A fleet of equal replicas, simulated request by request: how long requests would take.

A replica works on `slots` requests at a time, first come first served. Time is in seconds. Nothing
here knows where the numbers come from; see `capacity`.
"""

import math
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush, heapreplace
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from tfserve_kit.perf.stats import rank

Floats = NDArray[np.float64]
Policy = Literal["least-loaded", "round-robin"]

# A simulation that has not settled by then is given up: seconds, not minutes, on one processor.
_MOST_REQUESTS = 3_000_000  # simulated one by one
_MOST_STEPS = 150_000  # simulated for many replicas at once
_FEWEST_STEPS = 20
_CELLS = 12_000_000  # of latencies kept at once
_BLOCKS = 10  # in each half
_TAIL = 20  # requests slower than the quantile in each block
_WARMUP = 0.25
# How many times longer than queues take to forget their beginning, and than a request takes.
_LONG, _LONGER, _SHORT = 40, 760, 20
_SLOWEST = 5
_LEAST_SPREAD = 0.05
_SLOWER = 0.02
_ALIKE = 0.3
# Half the interval as a share: small enough, and where the limit lies within it.
_PRECISE, _SURE = 0.1, 0.005
_T = 3.250  # Student's t for a two-sided interval of 99 % from ten values
_SIGMAS = 3


@dataclass(frozen=True, slots=True, eq=False)
class SimulatedReplica:
    """What one replica does with a request.

    Attributes:
        service_s: times from which one is drawn for each request, float64 [times], in seconds.
        slots: how many requests it works on at a time.
        hold: for which share of its service time a request keeps its slot.
    """

    service_s: Floats
    slots: int
    hold: float = 1.0

    @property
    def full_rate(self) -> float:
        """Requests per second that keep all slots busy."""
        return self.slots / (self.hold * float(self.service_s.mean()))


@dataclass(frozen=True, slots=True, eq=False)
class Arrivals:
    """When requests come.

    Attributes:
        rate: requests per second.
        gaps: recorded times between requests, one on average, float64 [gaps]; None for Poisson.
    """

    rate: float
    gaps: Floats | None = None

    @property
    def variation(self) -> float:
        """Variance of the gaps by the square of their mean."""
        return 1.0 if self.gaps is None else float(self.gaps.var() / self.gaps.mean() ** 2)

    def stream(self, source: np.random.Generator) -> Callable[[int], Floats]:
        """Return what returns the next so many times, rising, float64 [requests]."""
        last, at = 0.0, 0
        if self.gaps is not None:
            at = int(source.integers(len(self.gaps)))

        def following(count: int) -> Floats:
            nonlocal last, at
            if self.gaps is None:
                gaps = source.exponential(1.0, count)
            else:
                gaps = np.take(self.gaps, np.arange(at, at + count), mode="wrap")
                at += count
            times: Floats = last + np.cumsum(gaps / self.rate)
            last = float(times[-1])
            return times

        return following

    def every(self, nth: int, width: int, source: np.random.Generator) -> Callable[[int], Floats]:
        """Return what returns the next times at `width` replicas that get every n-th request.

        Each is one of a fleet of its own, so they are independent: float64 [requests, width].
        """
        last = np.zeros(width)
        gaps, rate = self.gaps, self.rate
        total = np.zeros(1) if gaps is None else np.concatenate([[0.0], np.cumsum(gaps)])
        at = source.integers(len(total), size=width)
        sent = 0

        def following(count: int) -> Floats:
            nonlocal last, sent
            if gaps is None:
                times = last + np.cumsum(source.gamma(nth, 1 / rate, (count, width)), axis=0)
                last = times[-1]
                return times
            places = at + nth * np.arange(sent + 1, sent + count + 1)[:, None]
            sent += count
            turns, rest = np.divmod(places, len(gaps))
            found: Floats = (turns * total[-1] + total[rest] - total[at]) / rate
            return found

        return following


@dataclass(frozen=True, slots=True, eq=False)
class SimulatedFleet:
    """Replicas in service, and who gets a request.

    Attributes:
        replica: what each of them does.
        count: how many are in service.
        policy: `least-loaded` chooses one with the fewest requests in flight, `round-robin` each in
            its turn.
    """

    replica: SimulatedReplica
    count: int
    policy: Policy

    @property
    def is_one_queue(self) -> bool:
        """Whether a replica's state decides who gets a request; else each has its own arrivals."""
        return self.policy == "least-loaded" and self.count > 1

    def load(self, rate: float) -> float:
        """Return which share of the slots a rate keeps busy; 1 and more is too much."""
        return rate / (self.count * self.replica.full_rate)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a simulation found; times in seconds.

    Attributes:
        load: share of the slots that is busy.
        requests: how many were simulated.
        p50_s: median; None where it was not simulated.
        value_s: the quantile that was asked for; None where it was not simulated.
        low_s: lower end of its 99 % interval.
        high_s: upper end.
        trouble: why the figures cannot be relied on; empty if they can.
    """

    load: float
    requests: int = 0
    p50_s: float | None = None
    value_s: float | None = None
    low_s: float | None = None
    high_s: float | None = None
    trouble: str = ""

    def keeps(self, limit_s: float) -> bool:
        """Say whether the whole interval lies below a limit."""
        return not self.trouble and self.high_s is not None and self.high_s < limit_s


class _Queues(Protocol):
    """A simulation under way."""

    def run(self, more: int) -> None:
        """Simulate so many further requests."""

    def seen(self) -> Floats:
        """Return latencies of both halves after the warm-up, float64 [2, blocks, requests]."""


def simulate(
    fleet: SimulatedFleet, arrivals: Arrivals, q: float, *, limit_s: float = math.inf, seed: int = 0
) -> Outcome:
    """Return how long requests take, once that no longer changes.

    The simulation begins without requests and is prolonged until its queues had the time to forget
    that, its second half is no slower than the first, what follows each other in it differs as if
    by chance, and the interval is narrow and does not hold the limit. It ends early where the
    quantile is too high already: it would only rise.

    Args:
        fleet: the replicas.
        arrivals: when requests come.
        q: which quantile: 0.99 for p99.
        limit_s: what the quantile is compared with.
        seed: of everything that is drawn.
    """
    load = fleet.load(arrivals.rate)
    if load >= 1:
        return Outcome(load, trouble="more requests come than are answered: the queue grows")
    length, enough = _length(fleet, arrivals), 2 * _BLOCKS * math.ceil(_TAIL / (1 - q))
    most = _MOST_REQUESTS
    source = np.random.default_rng([seed, fleet.count])
    queues: _Queues
    if fleet.is_one_queue:
        queues = _LeastLoaded(fleet, arrivals, source)
    else:
        width = _BLOCKS * min(50, max(4, _CELLS // (4 * _BLOCKS * length)))
        queues = _RoundRobin(fleet, arrivals, width, source)
        enough, most = math.ceil(enough / width), min(_MOST_STEPS, _CELLS // width)
    if length > most:
        return Outcome(load, trouble="so near to full load that no simulation settles")
    length = min(max(length, enough, _FEWEST_STEPS), most)
    done, goal = 0, min(length, max(2 * enough, _FEWEST_STEPS))
    while True:
        queues.run(goal - done)
        done = goal
        outcome, is_long = _judged(load, queues.seen(), q)
        low_s, high_s = outcome.low_s or 0.0, outcome.high_s or 0.0
        spread = (high_s - low_s) / (low_s + high_s)
        is_clear = spread <= (_SURE if low_s <= limit_s <= high_s else _PRECISE)
        if low_s > limit_s or (is_clear and is_long and done >= length and not outcome.trouble):
            return outcome
        if done >= most:
            return outcome
        goal = min(2 * done, most)


def _length(fleet: SimulatedFleet, arrivals: Arrivals) -> int:
    """Return how many requests, of all or of each replica in its turn, are simulated at least.

    Queues forget their beginning within some 2 (ca2 + cs2) / (1 - load)2 requests, where ca2 and
    cs2 are the squared variations of arrivals and service, and not before what is in flight is
    answered. Where requests go round, each replica has a queue, and arrivals of its own.
    """
    replica, is_one_queue, load = fleet.replica, fleet.is_one_queue, fleet.load(arrivals.rate)
    service = float(replica.service_s.var() / replica.service_s.mean() ** 2)
    spread = arrivals.variation / (1 if is_one_queue else fleet.count) + service
    forgets = 2 * max(spread, _LEAST_SPREAD) / (1 - load) ** 2
    in_flight = replica.slots * (fleet.count if is_one_queue else 1)
    # Slow requests come in clusters that last longer than that. They matter where the wait of the
    # slowest, some 5 / (slots (1 - load)) service times, matters beside the service itself. Where
    # replicas stand side by side, it is their number that makes up for it.
    weight = min(1.0, _SLOWEST / (in_flight * (1 - load))) if is_one_queue else 0.0
    return math.ceil((_LONG + _LONGER * weight) * forgets + _SHORT * in_flight)


def _judged(load: float, halves: Floats, q: float) -> tuple[Outcome, bool]:
    """Return what latencies come to, and whether blocks are so long that they forget each other."""
    place = rank(halves.shape[2], q)
    first, second = np.partition(halves, place, axis=2)[:, :, place]
    everything = np.sort(halves, axis=None)
    value_s = float(everything[rank(len(everything), q)])
    half_s = _T * _error((first + second) / 2)
    slower_s = float((second - first).mean())
    grows = slower_s > max(_SIGMAS * _error(second - first), _SLOWER * float(first.mean()))
    outcome = Outcome(
        load,
        len(everything),
        p50_s=float(everything[rank(len(everything), 0.5)]),
        value_s=value_s,
        low_s=max(0.0, value_s - half_s),
        high_s=value_s + half_s,
        trouble="the second half is slower than the first: the queue grows" if grows else "",
    )
    blocks = np.concatenate([first, second])
    return outcome, not blocks.std() or np.corrcoef(blocks[:-1], blocks[1:])[0, 1] < _ALIKE


def _error(values: Floats) -> float:
    """Return the standard error of the mean."""
    return float(values.std(ddof=1)) / math.sqrt(len(values))


def _skipped(count: int, parts: int) -> int:
    """Return how many of so many requests are the warm-up, so that the rest makes equal parts."""
    return count - int(count * (1 - _WARMUP)) // parts * parts


class _RoundRobin:
    """Replicas side by side, each with every n-th request: steps of all of them at once."""

    def __init__(
        self, fleet: SimulatedFleet, arrivals: Arrivals, width: int, source: np.random.Generator
    ) -> None:
        self._replica, self._width, self._source = fleet.replica, width, source
        self._following = arrivals.every(fleet.count, width, source)
        self._free = np.zeros((width, fleet.replica.slots))
        self._found: list[Floats] = []

    def run(self, more: int) -> None:
        """Simulate so many further requests of each replica."""
        service = self._source.choice(self._replica.service_s, (more, self._width))
        came, held = self._following(more), service * self._replica.hold
        free, at = self._free, np.arange(self._width)
        started = np.empty_like(came)
        for step in range(more):
            slot = free.argmin(axis=1)
            start = np.maximum(free[at, slot], came[step], out=started[step])
            free[at, slot] = start + held[step]
        self._found.append(started - came + service)

    def seen(self) -> Floats:
        """Return both halves; a block has some of the replicas."""
        found = np.concatenate(self._found)
        self._found = [found]
        skipped = _skipped(len(found), 2)
        halves = found[skipped:].reshape(2, (len(found) - skipped) // 2, _BLOCKS, -1)
        return halves.swapaxes(1, 2).reshape(2, _BLOCKS, -1)


_ID_BITS = 20  # a moment and the number of a replica are one integer: those compare quickly
_AT_ONCE = 50_000
_SECOND_NS = 1e9


class _LeastLoaded:
    """All replicas, request by request; among those with the fewest the one that waits longest."""

    def __init__(
        self, fleet: SimulatedFleet, arrivals: Arrivals, source: np.random.Generator
    ) -> None:
        self._replica, self._source = fleet.replica, source
        self._following = arrivals.stream(source)
        self._free = [[0] * fleet.replica.slots for _ in range(fleet.count)]
        self._in_flight = [0] * fleet.count
        self._least = 0
        # Replicas by how many requests they have, in the order in which they came to have so many.
        # A place in line is a running number and the replica's; all but its last one are void.
        self._lines: defaultdict[int, deque[int]] = defaultdict(deque)
        self._places = list(range(fleet.count))
        self._lines[0].extend(self._places)
        self._answers: list[int] = []
        self._found: list[Floats] = []

    def run(self, more: int) -> None:
        """Simulate so many further requests."""
        while more:
            count = min(more, _AT_ONCE)
            service = self._source.choice(self._replica.service_s, count)
            came = np.rint(self._following(count) * _SECOND_NS).astype(np.int64)
            work = np.rint(service * _SECOND_NS).astype(np.int64)
            held = np.rint(service * (self._replica.hold * _SECOND_NS)).astype(np.int64)
            started = self._served(came.tolist(), work.tolist(), held.tolist())
            self._found.append((np.array(started, np.int64) - came + work) / _SECOND_NS)
            more -= count

    def _served(self, came: list[int], work: list[int], held: list[int]) -> list[int]:
        """Return when each request is begun."""
        free, in_flight, lines, answers = self._free, self._in_flight, self._lines, self._answers
        least, started, number = self._least, [], (1 << _ID_BITS) - 1
        places, place = self._places, max(self._places) & ~number
        for now, works, holds in zip(came, work, held, strict=True):
            until = (now + 1) << _ID_BITS
            while answers and answers[0] < until:
                which = heappop(answers) & number
                left = in_flight[which] = in_flight[which] - 1
                place += 1 << _ID_BITS
                places[which] = place | which
                lines[left].append(places[which])
                least = min(left, least)
            line = lines[least]
            while True:
                while not line:
                    least += 1
                    line = lines[least]
                last = line.popleft()
                which = last & number
                if places[which] == last:
                    break
            in_flight[which] = least + 1
            place += 1 << _ID_BITS
            places[which] = place | which
            lines[least + 1].append(places[which])
            slots = free[which]
            start = max(slots[0], now)
            heapreplace(slots, start + holds)
            heappush(answers, ((start + works) << _ID_BITS) | which)
            started.append(start)
        self._least = least
        return started

    def seen(self) -> Floats:
        """Return both halves; a block has requests that follow each other."""
        found = np.concatenate(self._found)
        self._found = [found]
        skipped = _skipped(len(found), 2 * _BLOCKS)
        return found[skipped:].reshape(2, _BLOCKS, -1)


def replay(replica: SimulatedReplica, due_s: Floats) -> Floats:
    """Return latencies at one replica of requests due at some times, float64 [requests]."""
    source = np.random.default_rng(0)
    service = source.choice(replica.service_s, len(due_s))
    free, found = [0.0] * replica.slots, np.empty(len(due_s))
    for at, (due, works) in enumerate(zip(due_s.tolist(), service.tolist(), strict=True)):
        start = max(due, free[0])
        heapreplace(free, start + replica.hold * works)
        found[at] = start - due + works
    return found


def closed_loop(replica: SimulatedReplica, concurrency: int, count: int) -> Floats:
    """Return latencies at one replica that always has so many requests, float64 [count]."""
    source = np.random.default_rng(0)
    free, ready, found = [0.0] * replica.slots, [0.0] * concurrency, np.empty(count)
    for at, works in enumerate(source.choice(replica.service_s, count).tolist()):
        due = ready[0]
        start = max(due, free[0])
        heapreplace(free, start + replica.hold * works)
        heapreplace(ready, start + works)
        found[at] = start - due + works
    return found
