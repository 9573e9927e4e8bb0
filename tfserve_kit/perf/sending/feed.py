"""Which requests to send now: schedules as state machines, without a clock of their own."""

from bisect import bisect_right
from typing import Protocol

from tfserve_kit.perf.sending.load import Closed, Open

_SECOND_NS = 1_000_000_000


class Feed(Protocol):
    """Hands out the requests of a schedule; times are nanoseconds since the start of the run."""

    total: int | None  # how many requests there will be, where that is known
    end_ns: int | None  # when no more requests will be due, where that is known

    def take(self, now_ns: int) -> list[tuple[int, int]]:
        """Return the requests to send now: when each was due, and when it could first be sent."""

    def freed(self, done_ns: int) -> None:
        """Take note that a request is no longer in flight."""

    def wake_ns(self) -> int | None:
        """Return when the next request is due; None if that depends on answers."""

    def is_over(self, now_ns: int) -> bool:
        """Say whether no request will come any more."""

    def waiting(self, now_ns: int) -> list[int]:
        """Return the due times of requests that should have been sent and were not."""

    def late_ns(self, now_ns: int) -> int | None:
        """Return how long the first of these has waited, 0 without any; None if none ever will."""


class ClosedFeed:
    """A slot that becomes free is a request that is due."""

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


class OpenFeed:
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


def feed(schedule: Closed | Open) -> Feed:
    """Return a schedule at its beginning."""
    return ClosedFeed(schedule) if isinstance(schedule, Closed) else OpenFeed(schedule)
