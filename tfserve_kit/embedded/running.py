"""Who does the work of a request: the event loop's thread at once, or a thread of its lane.

A hand-over to another thread and back costs as much as a small model takes, so what is measured to
be short is done on the spot. Whatever else there is keeps the loop waiting for one call at most:
what turns out to be longer than it was goes to the threads, and has to prove itself there again.
"""

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from tfserve_kit.embedded.lanes import Group, Lane, Lanes, Turn

_log = logging.getLogger(__name__)

# What is done on the spot: as short as this, by so many measurements; larger ones are never.
SHORT_S = 0.0004
MEASUREMENTS = 5
MOST_BYTES_ON_THE_SPOT = 1 << 17
# What sends a kind of calls back to the threads: a mean on the spot; one call that takes so much of
# the processor; or one that keeps the loop for so long. On a busy machine it may have been kept by
# others itself, so no call counts for more than a few short ones in the mean.
_TOO_LONG_S = 2 * SHORT_S
_FAR_TOO_LONG_S = 125 * SHORT_S
_MOST_COUNTED_S = 4 * SHORT_S
_WEIGHT = 1 / 8
# How long it stays there: the first time, and at most.
_FIRST_PAUSE_S = 1.0
_MOST_PAUSE_S = 60.0
_CALLS_OF_A_SHORT_KIND = 1000  # after which the next time is the first time again
_MOST_KINDS = 4096
# How long the loop works on requests before it looks at its connections again.
_SLICE_S = 0.002


@dataclass(slots=True)
class Kind:
    """How long the calls of one kind have taken.

    Attributes:
        calls: how many were measured since they were last found too long.
        least_s: the shortest of those in threads, where others get in between.
        mean_s: a moving mean of those on the spot.
        waits: they wait for something else than the processor, such as others of a batch.
        long_until_s: when they may be tried on the spot again.
        pause_s: how long they have to stay away the next time.
    """

    calls: int = 0
    least_s: float = math.inf
    mean_s: float = 0.0
    waits: bool = False
    long_until_s: float = -math.inf
    pause_s: float = _FIRST_PAUSE_S

    def note(self, took: "Took", now_s: float, *, on_the_spot: bool) -> None:
        """Take a measurement into account."""
        self.calls += 1
        if not on_the_spot:
            self.least_s = min(self.least_s, took.wall_s)
            return
        self.mean_s += (min(took.wall_s, _MOST_COUNTED_S) - self.mean_s) * _WEIGHT
        is_long = took.processor_s > _TOO_LONG_S or took.wall_s > _FAR_TOO_LONG_S
        if is_long or self.mean_s > _TOO_LONG_S:
            self.calls, self.least_s, self.mean_s = 0, math.inf, 0.0
            self.long_until_s = now_s + self.pause_s
            self.pause_s = min(2 * self.pause_s, _MOST_PAUSE_S)
        elif self.calls > _CALLS_OF_A_SHORT_KIND:
            self.pause_s = _FIRST_PAUSE_S


class Took:
    """How long a call has taken; begins with it.

    Attributes:
        wall_s: from its beginning to its end.
        processor_s: how much of that its thread was at work.
    """

    __slots__ = ("processor_s", "wall_s")

    def __init__(self, wall_s: float | None = None, processor_s: float = 0.0) -> None:
        self.wall_s = -time.perf_counter() if wall_s is None else wall_s
        self.processor_s = -time.thread_time() if wall_s is None else processor_s

    def end(self) -> "Took":
        """Note that the call has ended, in the thread in which it began."""
        self.wall_s += time.perf_counter()
        self.processor_s += time.thread_time()
        return self


def belongs_on_the_spot(kind: Kind | None, size_bytes: int, now_s: float) -> bool:
    """Say whether a call is made in the event loop's thread.

    Args:
        kind: what is known of others like it; None for nothing.
        size_bytes: size of its message.
        now_s: the time now.
    """
    if kind is None or kind.waits or size_bytes > MOST_BYTES_ON_THE_SPOT:
        return False
    is_known = kind.calls >= MEASUREMENTS and now_s >= kind.long_until_s
    return is_known and kind.least_s <= SHORT_S


class Kinds:
    """What is known of calls, by kind: method, model, signature and magnitude."""

    def __init__(self) -> None:
        self._kinds: dict[Hashable, Kind] = {}

    def find(self, name: Hashable) -> Kind | None:
        """Return what is known of a kind, None for nothing."""
        return self._kinds.get(name)

    def note(
        self, name: Hashable, took: Took, now_s: float, *, on_the_spot: bool, waits: bool
    ) -> None:
        """Take a measurement into account; of too many kinds the oldest are forgotten."""
        kind = self._kinds.get(name)
        if kind is None:
            if len(self._kinds) >= _MOST_KINDS:
                for old in list(self._kinds)[: _MOST_KINDS // 2]:
                    del self._kinds[old]
            kind = self._kinds[name] = Kind()
        kind.waits = kind.waits or waits
        kind.note(took, now_s, on_the_spot=on_the_spot)


class _Threads:
    """Threads that make calls, as many as are needed and no more than are allowed.

    A ThreadPoolExecutor makes a future with a lock of its own for each call; nobody asks for them.
    """

    def __init__(self, most: int, name: str) -> None:
        self._most, self._name = most, name
        self._jobs: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._spare = 0  # threads without a job, less jobs without a thread

    def submit(self, job: Callable[[], object]) -> None:
        """Have a job done.

        Raises:
            RuntimeError: there is no thread, and none to be had.
        """
        with self._lock:
            self._spare -= 1
            is_short = self._spare < 0 and self._threads < self._most
            if is_short:
                self._add()
        self._jobs.put(job)

    def _add(self) -> None:
        try:
            threading.Thread(target=self._work, name=self._name, daemon=True).start()
        except (RuntimeError, MemoryError):  # the system has no more: it waits for another
            if not self._threads:
                self._spare += 1
                raise RuntimeError("no thread can be started") from None
            return
        self._threads += 1
        self._spare += 1

    def end(self) -> None:
        """Let the threads end when they have done what they have begun; nothing else is begun."""
        with suppress(Exception):
            while True:
                self._jobs.get_nowait()
        with self._lock:
            for _ in range(self._threads):
                self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except Exception:  # noqa: BLE001 (the thread must live)
                _log.exception("a request failed")
            del job  # it holds the request
            with self._lock:
                self._spare += 1


class Runner:
    """Does the work of one protocol's requests. Lives in the event loop.

    Args:
        loop: the event loop.
        lanes: how many requests are worked on in threads at once.
        name: what the threads are called.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, lanes: Lanes, name: str) -> None:
        self.lanes = lanes
        self.kinds = Kinds()
        self._loop = loop
        self._threads = {
            lane: _Threads(lane.most_turns, f"{name}_{what}")
            for what, lane in (
                ("predict", lanes.predictions),
                ("reload", lanes.reloads),
                ("other", lanes.others),
            )
        }
        self._done: deque[tuple[Callable[[Any], object], Any]] = deque()
        self._is_woken = False
        self._steps: deque[Callable[[], bool]] = deque()
        self._is_stepping = False

    # On the spot

    def step(self, step: Callable[[], bool]) -> None:
        """Have a step done now, and again as long as it says there is more; others get in between.

        It is called after a while where many others are to be done.
        """
        self._steps.append(step)
        if not self._is_stepping:
            self._is_stepping = True
            self._proceed()

    def _proceed(self) -> None:
        end_s, steps = time.perf_counter() + _SLICE_S, self._steps
        while steps:
            step = steps.popleft()
            try:
                if step():
                    steps.append(step)
            except Exception:  # noqa: BLE001 (the others must be served)
                _log.exception("a request failed")
            if steps and time.perf_counter() > end_s:
                self._loop.call_soon(self._proceed)
                return
        self._is_stepping = False

    # In threads

    def run(
        self,
        lane: Lane,
        group: Group,
        work: Callable[[], Any],
        done: Callable[[Any], object],
        refuse: Callable[[], object],
    ) -> Turn:
        """Have work done in a thread, when its turn has come.

        Args:
            lane: whose threads.
            group: whom it counts for.
            work: called in the thread; must not raise.
            done: told in the event loop what it returned.
            refuse: called in the event loop where there is no thread to be had.

        Raises:
            ServingError: too many others wait.
        """

        def job(turn: Turn) -> None:
            result = work()
            turn.end()  # here, not in the loop: the next one need not wait for that
            self._tell(done, result)

        def begin(turn: Turn) -> None:
            try:
                self._threads[lane].submit(lambda: job(turn))
            except RuntimeError:
                self._tell(give_up, turn)

        def give_up(turn: Turn) -> None:
            turn.end()
            refuse()

        return lane.enter(group, begin)

    def _tell(self, told: Callable[[Any], object], result: Any) -> None:
        self._done.append((told, result))
        if not self._is_woken:
            self._is_woken = True
            with suppress(RuntimeError):  # the server has stopped meanwhile
                self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._is_woken = False
        done = self._done
        while done:
            told, result = done.popleft()
            try:
                told(result)
            except Exception:  # noqa: BLE001 (the others must be told)
                _log.exception("an answer was lost")

    def end(self) -> None:
        """Let the threads end; nothing is begun any more."""
        for threads in self._threads.values():
            threads.end()
