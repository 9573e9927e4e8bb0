"""How a run stands while it goes on, for whoever wants to look.

The thread that sends hands over what it has counted anyway, about twice a second; all else happens
in another thread, so that a terminal that takes nothing more holds up no request.
"""

import threading
from array import array
from collections.abc import Callable, Iterable
from queue import SimpleQueue
from typing import NamedTuple, Protocol, Self, runtime_checkable

import numpy as np

from tfserve_kit.perf import stats
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


class SnapshotThread:
    """Passes snapshots on in a thread of its own, during a `with` block."""

    def __init__(self, tell: Callable[[Snapshot], object]) -> None:
        self._tell = tell
        self._queue: SimpleQueue[Snapshot | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def put(self, seen: Snapshot) -> None:
        """Take a snapshot; never waits."""
        self._queue.put(seen)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (seen := self._queue.get()) is not None:
            self._tell(seen)


class SnapshotMerger:
    """Puts the snapshots of several workers together, one of each.

    Args:
        count: number of workers.
        tell: takes what they make together.
    """

    def __init__(self, count: int, tell: Callable[[Snapshot], object]) -> None:
        self._count, self._tell = count, tell
        self._last: dict[int, Snapshot] = {}
        self._new: dict[int, Snapshot] = {}

    def take(self, worker: int, seen: Snapshot) -> None:
        """Take a worker's snapshot; one that has ended before the others is not waited for."""
        if worker in self._new:
            self._tell_all()
        self._new[worker] = seen
        if len(self._new) == self._count:
            self._tell_all()

    def _tell_all(self) -> None:
        self._last |= self._new
        all_ns = array("q")
        for each in self._new.values():
            all_ns.extend(each.latencies_ns)
        seen = self._last.values()
        self._tell(
            Snapshot(
                max(each.at_ns for each in seen),
                _if_all(max, [each.end_ns for each in seen]),
                sum(each.ended for each in seen),
                _if_all(sum, [each.total for each in seen]),
                sum(each.failed for each in seen),
                sum(each.in_flight for each in seen),
                _if_all(max, [each.late_ns for each in self._new.values()]),
                all_ns,
            )
        )
        self._new = {}


def _if_all(combine: Callable[[Iterable[int]], int], values: list[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return combine(known) if len(known) == len(values) else None
