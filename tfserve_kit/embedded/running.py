"""Who does the work of a request: the event loop's thread at once, or a thread of its lane.

A hand-over to another thread and back costs as much as a small model takes, so what is measured to
be short is done on the spot. Whatever else there is keeps the loop waiting for one call at most:
what turns out to be longer than it was goes to the threads, and has to prove itself there again.

Work that waits for others, such as those of its batch, keeps neither waiting: it goes on when they
have ended.

What has proved to compute for long needs a processor of its own as well as a thread.
"""

import logging
import math
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Any

from tfserve_kit.embedded.batching import Flow, Waiting
from tfserve_kit.embedded.front import EventLoop
from tfserve_kit.embedded.kinds import (
    MOST_BYTES_ON_THE_SPOT,
    TOO_LONG_S,
    CallKind,
    computes_for_long,
)
from tfserve_kit.embedded.lanes import Group, Lane, Lanes, Turn, give_way
from tfserve_kit.embedded.status import Code, ServingError

_log = logging.getLogger(__name__)

# Calls in a row may all take so many times as long as in the mean, such as after a pause in which
# the processor's caches have got cold: that is no long one among them.
_TIMES_USUAL = 3
_MOST_KINDS = 4096
# How long the loop works on requests before it looks at its connections again.
_SLICE_S = 0.002


class Work(ABC):
    """The work of one request: a flow that goes on wherever it best does. A protocol says which.

    Attributes:
        kind: what kind of calls it is of, see `CallKinds`.
        wall_s: how long it has taken, without the time in which it waited for others, or could
            have gone on if the system had let it.
        processor_s: how much of that its thread was at work; on the spot it is told only where it
            can make a difference.
        turn: its place among the others, if it asked for one.
        has_ended: it is done, or was refused.
        has_waited: others did some of it, such as the threads that run batches.
        lane: whose threads do what is not done on the spot.
        is_on_the_spot: whether the loop does it.
        result: what came of it.
    """

    wall_s = processor_s = 0.0
    turn: Turn | None = None
    has_ended = has_waited = False
    lane: Lane
    is_on_the_spot = False
    result: Any = None
    _flow: Flow[Any] | None = None

    def __init__(self, kind: Hashable) -> None:
        self.kind = kind

    # What a protocol says

    @abstractmethod
    def begin(self) -> Flow[Any]:
        """Return what is to be done; called in any thread.

        Raises:
            ServingError: it is not to be done.
        """

    @abstractmethod
    def failed(self, error: ServingError | None) -> Any:
        """Return the result for an error; None for one that should not be."""

    @abstractmethod
    def is_usual(self, result: Any) -> bool:
        """Say whether others of its kind will take as long, by its result."""

    @abstractmethod
    def done(self, result: Any) -> None:
        """Take the result, in the event loop."""

    # What the runner does

    def proceed(self) -> Waiting | None:
        """Go on until others have to end, and return them; None when it is done."""
        try:
            if self._flow is None:
                self._flow = self.begin()
            return self._flow.send(None)
        except StopIteration as ended:
            self.result = ended.value
        except ServingError as error:
            self.result = self.failed(error)
        except Exception:  # noqa: BLE001 (whoever asks must get an answer)
            _log.exception("a request failed")
            self.result = self.failed(None)
        return None


class CallKinds:
    """What is known of calls, by kind: method, model, signature and magnitude."""

    def __init__(self) -> None:
        self._kinds: dict[Hashable, CallKind] = {}

    def find(self, name: Hashable) -> CallKind | None:
        """Return what is known of a kind, None for nothing."""
        return self._kinds.get(name)

    def note(self, work: "Work", now_s: float) -> None:
        """Take a call into account that was made; of too many kinds the oldest are forgotten."""
        name = work.kind
        kind = self._kinds.get(name)
        if kind is None:
            if len(self._kinds) >= _MOST_KINDS:
                for old in list(self._kinds)[: _MOST_KINDS // 2]:
                    del self._kinds[old]
            kind = self._kinds[name] = CallKind()
        kind.waits = work.has_waited
        kind.note(work.wall_s, work.processor_s, now_s, on_the_spot=work.is_on_the_spot)


_NO_THREAD = ServingError(Code.UNAVAILABLE, "No thread can be started; repeat the request later")


class _Threads:
    """Threads that make calls, as many as are needed and no more than are allowed.

    They give way to others, such as the event loop's, if their calls compute.

    A ThreadPoolExecutor makes a future with a lock of its own for each call; nobody asks for them.
    """

    def __init__(self, most: int, name: str, *, compute: bool) -> None:
        self._most, self._name, self._compute = most, name, compute
        self._jobs: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._spare = 0  # threads without a job, less jobs without a thread

    @property
    def are_busy(self) -> bool:
        """Whether one of them has something to do."""
        return self._spare < self._threads

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
        if self._compute:
            give_way()
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
        front: the event loop.
        lanes: how many requests are worked on in threads at once.
        name: what the threads are called.

    Attributes:
        lanes: the same.
        kinds: what is known of calls.
    """

    def __init__(self, front: EventLoop, lanes: Lanes, name: str) -> None:
        self.lanes = lanes
        self.kinds = CallKinds()
        self._front = front
        self._post = front.post  # the same for all: those of a batch are posted together
        self._threads = {
            lane: _Threads(lane.most_turns, f"{name}_{what}", compute=lane is lanes.predictions)
            for what, lane in (
                ("predict", lanes.predictions),
                ("reload", lanes.reloads),
                ("other", lanes.others),
            )
        }
        self._steps: deque[Callable[[], bool]] = deque()
        self._is_stepping = False
        self._looked_s = self._worked_s = 0.0

    # On the spot

    def step(self, step: Callable[[], bool]) -> None:
        """Have a step done now, and again as long as it says there is more; others get in between.

        It is called after a while where many others are to be done.
        """
        self._steps.append(step)
        if not self._is_stepping:
            self._is_stepping = True
            self._proceed()

    def step_soon(self, step: Callable[[], bool]) -> None:
        """Have a step done as by `step`, once all that has arrived is read.

        Those of many connections are then done in a row, and what the processor has at hand for
        them is not displaced by reading in between.
        """
        self._steps.append(step)
        if not self._is_stepping:
            self._is_stepping = True
            self._front.loop.call_soon(self._proceed)

    def _proceed(self) -> None:
        end_s, steps = time.perf_counter() + _SLICE_S, self._steps
        self._look()
        self._front.lookout.note_work(self._looked_s)
        while steps:
            step = steps.popleft()
            try:
                if step():
                    steps.append(step)
            except Exception:  # noqa: BLE001 (the others must be served)
                _log.exception("a request failed")
            if steps and time.perf_counter() > end_s:
                self._front.loop.call_soon(self._proceed)
                return
        self._is_stepping = False
        if not self._threads[self.lanes.predictions].are_busy:  # which may want the processor
            self._front.stay_awake()

    def _look(self) -> None:
        """Ask how long the loop's thread has been at work.

        That costs ten times as much as the time of day, so it is asked once before a number of
        calls, and again only after one that was long.
        """
        self._looked_s = time.perf_counter()
        self._worked_s = time.thread_time()

    def _worked_since(self, began_s: float) -> float:
        """Return how much of the time since then the loop's thread was at work, and look again."""
        before_s, others_s = self._worked_s, began_s - self._looked_s
        self._look()
        return max(0.0, self._worked_s - before_s - others_s)

    def note_here(self, kind: CallKind, wall_s: float, calls: int = 1) -> None:
        """Take into account how long some calls of a kind took together, made here just now.

        What they took longer than usual counts for one of them, but for what may befall all. Until
        it is known what is usual, all of them took the same.
        """
        usual_s = (calls - 1) * min(_TIMES_USUAL * (kind.mean_s or math.inf), wall_s / calls)
        longest_s, worked_s = wall_s - usual_s, 0.0
        if longest_s > TOO_LONG_S:
            wall_s, worked_s = self._own_s(time.perf_counter() - wall_s, wall_s)
            longest_s, worked_s = max(0.0, wall_s - usual_s), max(0.0, worked_s - usual_s)
        kind.calls += calls - 1
        kind.note(longest_s, worked_s, time.monotonic(), on_the_spot=True)

    def _own_s(self, began_s: float, wall_s: float) -> tuple[float, float]:
        """Return how much of a long time since then others did not cause, and was work."""
        worked_s = self._worked_since(began_s)
        return max(0.0, wall_s - self._front.kept_waiting_s()), worked_s

    def do_here(self, work: Work, lane: Lane) -> None:
        """Do work on the spot, or as much as can be done before others have to end.

        Args:
            work: what is to be done.
            lane: whose threads do the rest, should that take long.
        """
        work.lane, work.is_on_the_spot = lane, True
        self._go_on(work)

    def _go_on(self, work: Work) -> bool:
        if self._is_done(work):
            self._end(work)
        return False

    def _is_done(self, work: Work) -> bool:
        """Go on with work in this thread; say whether it is done, or waits to be gone on with."""
        while True:
            began_s = time.perf_counter()
            waiting = work.proceed()
            wall_s = time.perf_counter() - began_s
            work.has_waited = work.has_waited or waiting is not None
            if wall_s > TOO_LONG_S and work.is_on_the_spot:
                wall_s, worked_s = self._own_s(began_s, wall_s)
                if work.has_waited:
                    # The model runs elsewhere: what is done here is short, and only computes.
                    wall_s = min(wall_s, worked_s)
                else:
                    work.processor_s += worked_s
            work.wall_s += wall_s
            if waiting is None:
                return True
            if waiting.tell(self._post, partial(self._resume, work, waiting)):
                return False

    def _resume(self, work: Work, waiting: Waiting) -> None:
        """Go on, as others have ended: here, if it is no longer than it began and brings little."""
        if work.is_on_the_spot and waiting.size_bytes <= MOST_BYTES_ON_THE_SPOT:
            self.step_soon(partial(self._go_on, work))  # those of a batch together
            return
        work.is_on_the_spot = False
        self._submit(work)

    def _end(self, work: Work) -> None:
        result, work.has_ended = work.result, True
        if work.is_usual(result):
            self.kinds.note(work, time.monotonic())
        work.done(result)

    # In threads

    def do_later(self, work: Work, lane: Lane, group: Group) -> None:
        """Have work done in a thread, when its turn has come.

        Args:
            work: what is to be done.
            lane: whose threads.
            group: whom it counts for.
        """
        work.lane = lane
        try:
            work.turn = lane.enter(group, partial(self._begin, work))
        except ServingError as error:
            self._refuse(work, error)

    def _begin(self, work: Work, turn: Turn) -> None:
        """Begin with work whose turn has come, once it has a processor if it needs one."""
        if computes_for_long(self.kinds.find(work.kind)):
            self.lanes.long.enter(work.kind, partial(self._submit, work, turn))
        else:
            self._submit(work, turn)

    def _submit(self, work: Work, *turns: Turn) -> None:
        """Have a thread go on with work; what has had its turn and waited needs none."""
        try:
            self._threads[work.lane].submit(partial(self._work, work, turns))
        except RuntimeError:
            _end_all(turns)
            self._post((partial(self._refuse, work, _NO_THREAD),))

    def _work(self, work: Work, turns: Sequence[Turn]) -> None:
        before_s = time.thread_time()
        is_done = self._is_done(work)
        work.processor_s += time.thread_time() - before_s
        _end_all(turns)  # here, not in the loop: the next one need not wait for that
        if is_done:
            self._post((partial(self._end, work),))

    def _refuse(self, work: Work, error: ServingError) -> None:
        work.has_ended = True
        work.done(work.failed(error))

    def end(self) -> None:
        """Let the threads end; nothing is begun any more."""
        for threads in self._threads.values():
            threads.end()


def _end_all(turns: Sequence[Turn]) -> None:
    for turn in turns:
        turn.end()
