"""Batching: queues in which requests wait for others, and the threads that run full batches.

Source: tensorflow/core/kernels/batching_util/shared_batch_scheduler.h (queues, splitting, threads,
texts). One scheduler serves all models; each signature of each version has a queue of its own, see
`batching_servable`.
"""

import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tfserve_kit.clock import Clock, SystemClock
from tfserve_kit.embedded import batch_arrays
from tfserve_kit.embedded.batch_arrays import Arrays, Feeds
from tfserve_kit.embedded.ledger import Account
from tfserve_kit.embedded.status import Code, ServingError, invalid


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """BatchingParameters with the official defaults filled in; sizes count rows."""

    max_batch_size: int = 1000
    batch_timeout_s: float = 0.0
    max_enqueued_batches: int = 10
    allowed_batch_sizes: tuple[int, ...] = ()
    pad_variable_length_inputs: bool = False
    enable_large_batch_splitting: bool = False
    max_execution_batch_size: int = 1000

    def padded(self, size: int) -> int:
        """Return the size a batch of `size` rows is padded to: the first allowed one that fits."""
        return next((allowed for allowed in self.allowed_batch_sizes if allowed >= size), size)

    @property
    def execution_limit(self) -> int:
        """The most rows that run at once."""
        split = self.enable_large_batch_splitting
        return self.max_execution_batch_size if split else self.max_batch_size


def batch_options(message: Any, defaults: BatchOptions = BatchOptions()) -> BatchOptions:
    """Return the options that a BatchingParameters message sets.

    Raises:
        ServingError: values that the scheduler cannot work with.
    """
    largest = _size(message, "max_batch_size", defaults.max_batch_size)
    timeout_micros = message.batch_timeout_micros.value
    split = message.enable_large_batch_splitting.value
    enqueued = _size(message, "max_enqueued_batches", defaults.max_enqueued_batches)
    options = BatchOptions(
        max_batch_size=largest,
        batch_timeout_s=timeout_micros / 1e6,
        max_enqueued_batches=enqueued if split else max(1, enqueued),
        allowed_batch_sizes=tuple(message.allowed_batch_sizes),
        pad_variable_length_inputs=message.pad_variable_length_inputs,
        enable_large_batch_splitting=split,
        max_execution_batch_size=_size(message, "max_execution_batch_size", largest),
    )
    sizes = options.allowed_batch_sizes
    if sizes and sizes[-1] != largest:
        raise invalid(
            "Last entry in allowed_batch_sizes must match max_batch_size; "
            f"last entry was {sizes[-1]}; expected {largest}"
        )
    if timeout_micros < 0 or not 0 < options.execution_limit <= largest:
        raise invalid(
            f"max_batch_size {largest}, batch_timeout_micros {timeout_micros} and "
            f"max_execution_batch_size {options.max_execution_batch_size} cannot work"
        )
    if not options.max_enqueued_batches:
        raise invalid("max_enqueued_batches must be positive; was 0")
    return options


def _size(message: Any, name: str, default: int) -> int:
    """Return a number as the official server takes it: without a sign, so -1 is very large."""
    return int(getattr(message, name).value) % 2**64 if message.HasField(name) else default


@dataclass(slots=True, eq=False)
class Task:
    """One request, or one piece of a split one, on its way through a queue.

    Attributes:
        feeds: value per tensor name.
        size: how many rows they have.
        queued_s: when it came into the queue, by the scheduler's clock.
        deadline_s: when nobody waits for it any more.
        account: charged with its part of a batch; None for none.
        ended: set once it has its outputs or its error.
    """

    feeds: Feeds
    size: int
    queued_s: float
    deadline_s: float
    account: Account | None = None
    ended: threading.Event = field(default_factory=threading.Event)
    outputs: Arrays = ()
    error: ServingError | None = None

    def end(self, outputs: Arrays = (), error: ServingError | None = None) -> None:
        """Hand over the outcome."""
        self.outputs, self.error = outputs, error
        self.ended.set()


# Runs the tasks of a batch and ends each of them; the number is when they left the queue.
Process = Callable[[Sequence[Task], float], None]


@dataclass(slots=True, eq=False)
class _Batch:
    """Tasks that will run together; `due_s` is when it runs even if it is not full."""

    due_s: float
    tasks: list[Task] = field(default_factory=list)
    size: int = 0


@dataclass(slots=True, eq=False)
class Queue:
    """The batches of one signature that wait; the last one is still open."""

    options: BatchOptions
    process: Process
    batches: deque[_Batch] = field(default_factory=deque)

    @property
    def open_size(self) -> int:
        """Rows in the open batch."""
        return self.batches[-1].size if self.batches else 0

    def check_room(self, size: int) -> None:
        """Raise UNAVAILABLE where a request of `size` rows finds the queue full."""
        options, limit = self.options, self.options.execution_limit
        waiting = max(1, len(self.batches))  # upstream's open batch is always there
        if options.enable_large_batch_splitting:
            capacity = (options.max_enqueued_batches - waiting + 1) * limit - self.open_size
            if size > capacity:
                raise _full(
                    f"task size is {size} but scheduling capacity is only {capacity} "
                    f"(num_enqueued_batches={waiting}, "
                    f"max_enqueued_batches={options.max_enqueued_batches}, "
                    f"open_batch_size={self.open_size}, max_execution_batch_size={limit})"
                )
        elif self.open_size + size > limit and waiting >= options.max_enqueued_batches:
            raise _full(
                f"currently {waiting} batches enqueued and max_enqueued_batches is "
                f"{options.max_enqueued_batches}"
            )

    def piece_sizes(self, size: int) -> list[int]:
        """Return what a request is split into: what the open batch still takes comes first."""
        limit = self.options.execution_limit
        room = limit - self.open_size
        if size <= room or not self.options.enable_large_batch_splitting:
            return [size]
        whole, rest = divmod(size - room, limit)
        return [each for each in (room, *[limit] * whole, rest) if each]

    def put(self, task: Task) -> None:
        """Add a task to the open batch, or to a new one if it does not fit."""
        batches, limit = self.batches, self.options.execution_limit
        if not batches or batches[-1].size + task.size > limit:
            if batches:
                batches[-1].due_s = -math.inf
            batches.append(_Batch(task.queued_s + self.options.batch_timeout_s))
        batches[-1].tasks.append(task)
        batches[-1].size += task.size
        if batches[-1].size >= limit:
            batches[-1].due_s = -math.inf


def _full(detail: str) -> ServingError:
    text = "The batch scheduling queue to which this task was submitted is full; "
    return ServingError(Code.UNAVAILABLE, text + detail)


class BatchScheduler:
    """Runs batches from any number of queues on a fixed number of threads. Thread-safe.

    Args:
        threads: how many batches run at once.
        name: name of the threads.
        clock: what timeouts are measured with.
    """

    def __init__(self, threads: int, name: str, *, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._queues: deque[Queue] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}_{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def add(self, options: BatchOptions, process: Process) -> Queue:
        """Add a queue whose batches are run by `process`, which must not raise."""
        queue = Queue(options, process)
        with self._changed:
            self._queues.append(queue)
        return queue

    def remove(self, queue: Queue) -> None:
        """Remove a queue that no request uses any more."""
        with self._changed:
            self._queues.remove(queue)

    def schedule(
        self,
        queue: Queue,
        feeds: Feeds,
        size: int,
        timeout_s: float = math.inf,
        account: Account | None = None,
    ) -> list[Task]:
        """Put a request into a queue, in pieces if it is to be split; all of them or none.

        Args:
            queue: where it waits.
            feeds: value per tensor name.
            size: how many rows they have.
            timeout_s: how long somebody waits for it, in seconds.
            account: charged with its part of a batch; None for none.

        Raises:
            ServingError: UNAVAILABLE, the queue is full.
        """
        with self._changed:
            queue.check_room(size)
            sizes, now_s = queue.piece_sizes(size), self._clock.now_s()
            tasks = [
                Task(piece, rows, now_s, now_s + timeout_s, account)
                for piece, rows in zip(batch_arrays.pieces(feeds, sizes), sizes, strict=True)
            ]
            for task in tasks:
                queue.put(task)
            self._changed.notify()
        return tasks

    def stop(self) -> None:
        """Run what waits, then end the threads."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (found := self._next()) is not None:
            queue, batch, now_s = found
            queue.process(batch.tasks, now_s)

    def _next(self) -> tuple[Queue, _Batch, float] | None:
        """Wait for a batch that is due, taking the queues in turn; None at the end."""
        with self._changed:
            while True:
                now_s, soonest_s = self._clock.now_s(), math.inf
                for _ in range(len(self._queues)):
                    queue = self._queues[0]
                    self._queues.rotate(-1)
                    if not queue.batches:
                        continue
                    due_s = queue.batches[0].due_s
                    if due_s <= now_s or self._stopping:
                        batch = queue.batches.popleft()
                        if any(each.batches for each in self._queues):
                            self._changed.notify()  # another thread looks after the rest
                        return queue, batch, now_s
                    soonest_s = min(due_s, soonest_s)
                if self._stopping:
                    return None
                self._changed.wait(min(soonest_s - now_s, threading.TIMEOUT_MAX))
