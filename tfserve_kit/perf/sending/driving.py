"""The loop: sends what is due, notes what comes back, gives up what takes too long.

Schedules are state machines without a clock of their own; connections fit `pools.Pool`.

Times are kept in columns of 64-bit integers, which take a request's worth of memory each, and
become samples at the end. Nothing here waits busily for long: the loop sleeps until 150 us before
a request is due and looks at its connections without pause for the rest, because a thread that
is woken comes up to 100 us late. Who wants to look on gets a `Snapshot` about twice a second, in
another thread, so that a terminal that takes nothing more holds up no request.
"""

import threading
import time
from array import array
from bisect import bisect_right
from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from tfserve_kit.perf import samples, stats
from tfserve_kit.perf.load import Closed, Open
from tfserve_kit.perf.samples import CANCELLED_AT_END, OK, SAMPLE, Samples
from tfserve_kit.perf.sending.pools import Pool
from tfserve_kit.progress import Progress


class Snapshot(NamedTuple):
    """A run at a moment; times in nanoseconds since its start.

    Attributes:
        at_ns: the moment.
        end_ns: when no more requests will be due; None where that is not known.
        ended: requests that have ended.
        total: how many requests there will be; None where that is not known.
        failed: requests that have failed.
        in_flight: requests under way.
        late_ns: how long a request at most waited to be sent, since the last snapshot; None in a
            closed loop.
        latencies_ns: of successes since the last snapshot.
    """

    at_ns: int
    end_ns: int | None
    ended: int
    total: int | None
    failed: int
    in_flight: int
    late_ns: int | None
    latencies_ns: "array[int]"

    def rate_since(self, before: "Snapshot | None") -> float | None:
        """Return how many requests ended per second since another one; None for none before."""
        if before is None or self.at_ns <= before.at_ns:
            return None
        return (self.ended - before.ended) / ((self.at_ns - before.at_ns) / 1e9)

    def quantile_s(self, q: float) -> float | None:
        """Return a quantile of the latencies in seconds; None if there are none."""
        if not self.latencies_ns:
            return None
        at = stats.rank(len(self.latencies_ns), q)
        return float(np.partition(np.array(self.latencies_ns, np.int64), at)[at]) / 1e9


@runtime_checkable
class SnapshotListener(Progress, Protocol):
    """A progress that wants to know more than how many requests have ended."""

    def snapshot(self, seen: Snapshot) -> None:
        """Look at the run; called in a thread of its own, about twice a second."""


_SECOND_NS = 1_000_000_000


class _ClosedFeed:
    """A slot that becomes free is a request that is due; times are nanoseconds since the start.

    Attributes:
        total: how many requests there will be; None where that is not known.
        end_ns: when no more requests will be due; None where that is not known.
    """

    def __init__(self, schedule: Closed) -> None:
        self.total = schedule.requests
        self._slots_ns = [0] * schedule.concurrency
        self._left = schedule.requests
        self.end_ns = (
            None if schedule.duration_s is None else round(schedule.duration_s * _SECOND_NS)
        )

    def take(self, now_ns: int) -> list[tuple[int, int]]:
        """Hand out the free slots."""
        slots_ns = self._slots_ns
        if not slots_ns or self.is_over(now_ns):
            return []
        if self._left is not None:
            slots_ns = slots_ns[: self._left]
            self._left -= len(slots_ns)
        self._slots_ns = []
        return [(slot_ns, slot_ns) for slot_ns in slots_ns]

    def freed(self, done_ns: int) -> None:
        """Make a slot free."""
        self._slots_ns.append(done_ns)

    def wake_ns(self) -> int | None:
        """Return None: only answers make room."""
        return None

    def is_over(self, now_ns: int) -> bool:
        """Say whether the time is up or all requests were handed out."""
        return self._left == 0 or (self.end_ns is not None and now_ns >= self.end_ns)

    def waiting(self, now_ns: int) -> list[int]:
        """Return none: what is due is sent."""
        del now_ns
        return []

    def late_ns(self, now_ns: int) -> int | None:
        """Return None: nobody waits."""
        del now_ns
        return None


class _OpenFeed:
    """Requests are due when the schedule says so; `max_in_flight` may make them late."""

    def __init__(self, schedule: Open) -> None:
        self.total: int | None = len(schedule.due_ns)
        self._due_ns: list[int] = schedule.due_ns.tolist()
        self.end_ns: int | None = self._due_ns[-1] if self._due_ns else 0
        self._next = 0
        self._room = schedule.max_in_flight
        self._free_since_ns = 0

    def take(self, now_ns: int) -> list[tuple[int, int]]:
        """Hand out what is due, as far as there is room."""
        first = self._next
        if not self._room or first == len(self._due_ns) or self._due_ns[first] > now_ns:
            return []
        last = min(bisect_right(self._due_ns, now_ns, first), first + self._room)
        self._next = last
        self._room -= last - first
        since_ns = self._free_since_ns
        return [(due_ns, max(due_ns, since_ns)) for due_ns in self._due_ns[first:last]]

    def freed(self, done_ns: int) -> None:
        """Make room for one."""
        if not self._room:
            self._free_since_ns = done_ns
        self._room += 1

    def wake_ns(self) -> int | None:
        """Return when the next request is due; None if it has no room, or there is none."""
        if not self._room or self._next == len(self._due_ns):
            return None
        return self._due_ns[self._next]

    def is_over(self, now_ns: int) -> bool:
        """Say whether all requests were handed out."""
        del now_ns
        return self._next == len(self._due_ns)

    def waiting(self, now_ns: int) -> list[int]:
        """Return what was due and found no room."""
        return self._due_ns[self._next : bisect_right(self._due_ns, now_ns, self._next)]

    def late_ns(self, now_ns: int) -> int | None:
        """Return how long the first of these has waited."""
        if self._next == len(self._due_ns):
            return 0
        return max(0, now_ns - self._due_ns[self._next])


def feed(schedule: Closed | Open) -> _ClosedFeed | _OpenFeed:
    """Return a schedule at its beginning."""
    return _ClosedFeed(schedule) if isinstance(schedule, Closed) else _OpenFeed(schedule)


_SPIN_NS = 150_000
_MOST_PAUSE_NS = 50_000_000  # how soon a stop is noticed
_TELL_NS = 500_000_000
_UNDONE = -1


class Driver:
    """One run of one process.

    Args:
        pool: what to send with, open.
        feed: what to send when.
        sizes: length of each payload's body, in bytes.
        timeout_s: how long one answer may take.
        grace_s: how long answers are waited for after a stop.
    """

    def __init__(
        self,
        pool: Pool,
        feed: _ClosedFeed | _OpenFeed,
        sizes: list[int],
        timeout_s: float,
        grace_s: float,
    ) -> None:
        self._pool, self._feed, self._sizes = pool, feed, sizes
        self._timeout_ns, self._grace_ns = round(timeout_s * 1e9), round(grace_s * 1e9)
        self._due, self._free, self._sent = array("q"), array("q"), array("q")
        self._first, self._done = array("q"), array("q")
        self._status, self._received = array("h"), array("q")
        self._in_flight = 0
        self._oldest = 0  # no earlier request is in flight
        self._failed, self._late_ns, self._latencies = 0, 0, array("q")  # see `snapshot`

    def run(
        self,
        start_ns: int,
        stop: threading.Event,
        tell: Callable[[int, int], None],
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> Samples:
        """Send everything and return a sample of each request, in the order they were sent.

        Args:
            start_ns: when the run begins, on the clock.
            stop: once set, nothing more is sent; answers are waited for a while.
            tell: called now and then with the number of requests that ended, and the time.
            clock: monotonic, in nanoseconds.
        """
        end_ns, tell_ns = None, 0
        while (left_ns := start_ns - clock()) > 0:
            self._pool.wait(left_ns / _SECOND_NS)
        while True:
            now_ns = clock() - start_ns
            if end_ns is None:
                if stop.is_set():
                    end_ns = now_ns + self._grace_ns
                    self._give_up_waiting(now_ns)
                else:
                    self._send(now_ns, start_ns, clock)
            if now_ns > tell_ns:
                tell(len(self._due) - self._in_flight, now_ns)
                tell_ns = now_ns + _TELL_NS
            is_over = end_ns is not None or self._feed.is_over(now_ns)
            if is_over and (not self._in_flight or now_ns > (end_ns or now_ns)):
                break
            self._receive(self._pause_ns(now_ns, end_ns), start_ns)
            self._expire(clock() - start_ns)
        self._cancel(clock() - start_ns)
        return self._samples()

    def snapshot(self, now_ns: int) -> Snapshot:
        """Return how the run stands; for `tell`, in the same thread."""
        latencies, self._latencies = self._latencies, array("q")
        late_ns = self._feed.late_ns(now_ns)
        if late_ns is not None:
            late_ns, self._late_ns = max(late_ns, self._late_ns), 0
        return Snapshot(
            now_ns,
            self._feed.end_ns,
            len(self._due) - self._in_flight,
            self._feed.total,
            self._failed,
            self._in_flight,
            late_ns,
            latencies,
        )

    def _send(self, now_ns: int, start_ns: int, clock: Callable[[], int]) -> None:
        """Send what is due."""
        taken = self._feed.take(now_ns)
        if not taken:
            return
        first, count = len(self._due), len(taken)
        for due_ns, free_ns in taken:
            self._due.append(due_ns)
            self._free.append(free_ns)
        zeros = bytes(8 * count)
        self._first.frombytes(zeros)
        self._done.frombytes(zeros)
        self._received.frombytes(zeros)
        self._status.extend([_UNDONE] * count)
        self._in_flight += count
        if self._pool.sends_at_once:
            for key in range(first, first + count):
                self._sent.append(clock() - start_ns)
                self._pool.start((key,))
        else:
            self._pool.start(range(first, first + count))
            self._sent.extend([clock() - start_ns] * count)
        self._pool.flush()
        for key in (first, -1):
            self._late_ns = max(self._late_ns, self._sent[key] - self._due[key])

    def _pause_ns(self, now_ns: int, end_ns: int | None) -> int:
        """Return how long there is nothing to do unless an answer comes."""
        until_ns = now_ns + _MOST_PAUSE_NS
        if self._oldest < len(self._sent):
            until_ns = min(until_ns, self._sent[self._oldest] + self._timeout_ns)
        if end_ns is not None:
            return max(0, min(until_ns, end_ns) - now_ns)
        wake_ns = self._feed.wake_ns()
        if wake_ns is not None:
            until_ns = min(until_ns, wake_ns - _SPIN_NS)
        return max(0, until_ns - now_ns)

    def _receive(self, pause_ns: int, start_ns: int) -> None:
        status_of = self._status
        for key, status, first_ns, done_ns, received in self._pool.wait(pause_ns / _SECOND_NS):
            if status_of[key] != _UNDONE:
                continue  # it came too late
            self._first[key] = first_ns - start_ns
            self._done[key] = done_ns - start_ns
            self._received[key] = received
            status_of[key] = status
            if status == OK:
                self._latencies.append(done_ns - start_ns - self._due[key])
            else:
                self._failed += 1
            self._in_flight -= 1
            self._feed.freed(done_ns - start_ns)

    def _expire(self, now_ns: int) -> None:
        """Give up requests whose time is over; they are in the order they were sent."""
        at, last, status_of = self._oldest, len(self._sent), self._status
        while at < last and status_of[at] != _UNDONE:
            at += 1
        self._oldest = at
        if at == last or now_ns < self._sent[at] + self._timeout_ns:
            return
        late = set()
        while at < last and now_ns >= self._sent[at] + self._timeout_ns:
            if status_of[at] == _UNDONE:
                late.add(at)
            at += 1
        self._end(late, samples.DEADLINE_EXCEEDED, now_ns)

    def _give_up_waiting(self, now_ns: int) -> None:
        """Note the requests that were due before the stop and found no room."""
        for due_ns in self._feed.waiting(now_ns):
            self._due.append(due_ns)
            for column in (self._free, self._sent, self._first, self._done):
                column.append(now_ns)
            self._received.append(0)
            self._status.append(CANCELLED_AT_END)

    def _cancel(self, now_ns: int) -> None:
        """Give up what is still in flight."""
        left = range(self._oldest, len(self._status))
        self._end({at for at in left if self._status[at] == _UNDONE}, CANCELLED_AT_END, now_ns)

    def _end(self, keys: set[int], status: int, now_ns: int) -> None:
        if not keys:
            return
        self._pool.cancel(keys)
        for key in keys:
            self._first[key] = self._done[key] = now_ns
            self._status[key] = status
            self._feed.freed(now_ns)
        self._in_flight -= len(keys)
        self._failed += len(keys) * (status != CANCELLED_AT_END)

    def _samples(self) -> Samples:
        found = np.zeros(len(self._due), SAMPLE)
        found["sequence"] = np.arange(len(found))
        columns: dict[str, array[int]] = {
            "due_ns": self._due,
            "free_ns": self._free,
            "sent_ns": self._sent,
            "first_byte_ns": self._first,
            "done_ns": self._done,
            "received_bytes": self._received,
        }
        for name, column in columns.items():
            found[name] = _as_numpy(column)
        found["status"] = np.frombuffer(self._status, np.int16) if len(found) else 0
        if (replicas := self._pool.replicas) is not None:
            found["replica"] = -1  # of those that were due, and never sent
            found["replica"][: len(replicas)] = np.frombuffer(replicas, np.int16)
        sizes = np.array(self._sizes, np.int64)
        found["sent_bytes"] = sizes[found["sequence"] % len(sizes)]
        return found


def _as_numpy(column: "array[int]") -> NDArray[np.int64]:
    return np.frombuffer(column, np.int64) if len(column) else np.zeros(0, np.int64)
