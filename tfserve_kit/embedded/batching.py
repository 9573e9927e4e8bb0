"""Batching: requests wait a moment and run together; wraps a servable by composition.

Source: tensorflow_serving/batching/batching_session.cc (merging, padding, splitting, texts) and
tensorflow/core/kernels/batching_util/shared_batch_scheduler.h (queues, threads, texts). One
scheduler serves all models; each signature of each version has a queue of its own.

One deviation, on purpose: where a batch of several requests fails, each of them is run again alone,
so that only those that are bad themselves fail.
"""

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfserve_kit.clock import Clock, SystemClock
from tfserve_kit.embedded.servable import Servable
from tfserve_kit.embedded.status import Code, ServingError, invalid

Arrays = Sequence[NDArray[Any]]
Run = Callable[[Mapping[str, NDArray[Any]]], Arrays]


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
        """Return the size a batch of `size` rows is padded to."""
        fitting = [allowed for allowed in self.allowed_batch_sizes if allowed >= size]
        return min(fitting) if fitting else size

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
    largest = _value(message, "max_batch_size", defaults.max_batch_size)
    timeout_micros = _value(message, "batch_timeout_micros", 0)
    options = BatchOptions(
        max_batch_size=largest,
        batch_timeout_s=timeout_micros / 1e6,
        max_enqueued_batches=_value(message, "max_enqueued_batches", defaults.max_enqueued_batches),
        allowed_batch_sizes=tuple(message.allowed_batch_sizes),
        pad_variable_length_inputs=message.pad_variable_length_inputs,
        enable_large_batch_splitting=message.enable_large_batch_splitting.value,
        max_execution_batch_size=_value(message, "max_execution_batch_size", largest),
    )
    sizes = options.allowed_batch_sizes
    if sizes and sizes[-1] != largest:
        raise invalid(
            "Last entry in allowed_batch_sizes must match max_batch_size; "
            f"last entry was {sizes[-1]}; expected {largest}"
        )
    if largest == 0 or timeout_micros < 0 or options.max_execution_batch_size > largest > 0:
        raise invalid(
            f"max_batch_size {largest}, batch_timeout_micros {timeout_micros} and "
            f"max_execution_batch_size {options.max_execution_batch_size} cannot work"
        )
    return options


def _value(message: Any, name: str, default: int) -> int:
    return int(getattr(message, name).value) if message.HasField(name) else default


@dataclass(slots=True, eq=False)
class _Task:
    """One request, or one piece of a split one, on its way through a queue."""

    feeds: Mapping[str, NDArray[Any]]
    size: int
    ended: threading.Event = field(default_factory=threading.Event)
    outputs: Arrays = ()
    error: ServingError | None = None

    def end(self, outputs: Arrays = (), error: ServingError | None = None) -> None:
        self.outputs, self.error = outputs, error
        self.ended.set()


@dataclass(slots=True, eq=False)
class _Batch:
    """Tasks that will run together; `due_s` is when it runs even if it is not full."""

    due_s: float
    tasks: list[_Task] = field(default_factory=list)
    size: int = 0


@dataclass(slots=True, eq=False)
class Queue:
    """The batches of one signature that wait; the last one is still open."""

    options: BatchOptions
    run: Run
    batches: deque[_Batch] = field(default_factory=deque)


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

    def add(self, options: BatchOptions, run: Run) -> Queue:
        """Add a queue whose batches are computed by `run`."""
        queue = Queue(options, run)
        with self._changed:
            self._queues.append(queue)
        return queue

    def remove(self, queue: Queue) -> None:
        """Remove a queue that no request uses any more."""
        with self._changed:
            self._queues.remove(queue)

    def schedule(self, queue: Queue, tasks: Sequence[_Task]) -> None:
        """Put the pieces of one request into a queue, all or none.

        Raises:
            ServingError: UNAVAILABLE, the queue is full.
        """
        options = queue.options
        with self._changed:
            if self._needed(queue, tasks) > options.max_enqueued_batches:
                raise ServingError(
                    Code.UNAVAILABLE,
                    "The batch scheduling queue to which this task was submitted is full; "
                    f"currently {len(queue.batches)} batches enqueued and max_enqueued_batches is "
                    f"{options.max_enqueued_batches}",
                )
            for task in tasks:
                self._enqueue(queue, task)
            self._changed.notify()

    def stop(self) -> None:
        """Run what waits, then end the threads."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    @staticmethod
    def _needed(queue: Queue, tasks: Sequence[_Task]) -> int:
        """Return how many batches would wait with these tasks in the queue."""
        count = len(queue.batches)
        size = queue.batches[-1].size if count else 0
        for task in tasks:
            if not count or size + task.size > queue.options.execution_limit:
                count, size = count + 1, 0
            size += task.size
        return count

    def _enqueue(self, queue: Queue, task: _Task) -> None:
        batches, limit = queue.batches, queue.options.execution_limit
        if not batches or batches[-1].size + task.size > limit:
            if batches:
                batches[-1].due_s = 0.0
            batches.append(_Batch(self._clock.now_s() + queue.options.batch_timeout_s))
        batches[-1].tasks.append(task)
        batches[-1].size += task.size
        if batches[-1].size >= limit:
            batches[-1].due_s = 0.0

    def _work(self) -> None:
        while (found := self._next()) is not None:
            _process(*found)

    def _next(self) -> tuple[Queue, _Batch] | None:
        """Wait for a batch that is due, taking the queues in turn; None at the end."""
        with self._changed:
            while True:
                now_s, soonest_s = self._clock.now_s(), None
                for _ in range(len(self._queues)):
                    queue = self._queues[0]
                    self._queues.rotate(-1)
                    if not queue.batches:
                        continue
                    due_s = queue.batches[0].due_s
                    if due_s <= now_s or self._stopping:
                        return queue, queue.batches.popleft()
                    soonest_s = due_s if soonest_s is None else min(due_s, soonest_s)
                if self._stopping:
                    return None
                self._changed.wait(None if soonest_s is None else soonest_s - now_s)


def _process(queue: Queue, batch: _Batch) -> None:
    try:
        results = _run_merged(queue, batch.tasks)
    except ServingError as error:
        if len(batch.tasks) == 1:
            batch.tasks[0].end(error=error)
            return
        for task in batch.tasks:  # find out which of them is at fault
            _process(queue, _Batch(0.0, [task], task.size))
    except Exception as error:  # noqa: BLE001 (the thread must live, every caller must hear)
        for task in batch.tasks:
            task.end(error=ServingError(Code.INTERNAL, f"{type(error).__name__}: {error}"))
    else:
        for task, outputs in zip(batch.tasks, results, strict=True):
            task.end(outputs)


def _run_merged(queue: Queue, tasks: Sequence[_Task]) -> list[Arrays]:
    """Run tasks as one batch and return each one's rows."""
    size = sum(task.size for task in tasks)
    padding = queue.options.padded(size) - size
    merged = {
        name: _merged(name, [task.feeds[name] for task in tasks], padding, queue.options)
        for name in tasks[0].feeds
    }
    outputs = queue.run(merged)
    for output in outputs:
        if output.ndim == 0:
            raise ServingError(Code.FAILED_PRECONDITION, "Batched output tensor has 0 dimensions")
        if len(output) != size + padding:
            raise ServingError(
                Code.FAILED_PRECONDITION,
                "Batched output tensor's 0th dimension does not equal the sum of the 0th "
                "dimension sizes of the input tensors",
            )
    bounds = np.cumsum([task.size for task in tasks])
    starts = [0, *bounds[:-1]]
    return [
        [output[start:end] for output in outputs] for start, end in zip(starts, bounds, strict=True)
    ]


def _merged(
    name: str, arrays: list[NDArray[Any]], padding: int, options: BatchOptions
) -> NDArray[Any]:
    """Concatenate one input of several tasks; padding repeats the first row."""
    shapes = {array.shape[1:] for array in arrays}
    if len(shapes) > 1:
        if not options.pad_variable_length_inputs:
            raise ServingError(
                Code.FAILED_PRECONDITION,
                f"Tensors with name '{name}' from different tasks have different shapes and "
                "padding is turned off. Set pad_variable_length_inputs to true, or ensure that "
                "all tensors with the same name have equal dimensions starting with the first dim.",
            )
        arrays = _same_length(name, arrays)
    if padding:
        arrays = [*arrays, np.repeat(arrays[0][:1], padding, axis=0)]
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _same_length(name: str, arrays: list[NDArray[Any]]) -> list[NDArray[Any]]:
    """Pad every axis but the first to the longest, with each array's own first element."""
    if len({array.ndim for array in arrays}) > 1:
        raise invalid(f"Ranks of tensors with name '{name}' from different tasks differ")
    longest = np.max([array.shape[1:] for array in arrays], axis=0)
    padded = []
    for array in arrays:
        widths = [(0, 0), *((0, int(d)) for d in longest - np.array(array.shape[1:]))]
        filler = array.flat[0] if array.size else np.zeros((), array.dtype)[()]
        padded.append(np.pad(array, widths, constant_values=filler))
    return padded


class BatchingServable:
    """A servable whose signatures run in batches; implements `Servable`."""

    def __init__(
        self, servable: Servable, scheduler: BatchScheduler, options: BatchOptions
    ) -> None:
        self._servable = servable
        self._scheduler = scheduler
        self._options = options
        self._queues = {
            _key(definition): scheduler.add(options, self._runner(definition))
            for definition in servable.signatures.values()
        }

    @property
    def signatures(self) -> Mapping[str, Any]:
        """SignatureDef messages by name."""
        return self._servable.signatures

    def run(self, feeds: Mapping[str, NDArray[Any]], fetches: Sequence[str]) -> Arrays:
        """Compute `fetches` from `feeds` in a batch; see `Servable.run`.

        What is no whole signature (some of its outputs only) runs by itself, as in the official
        server.
        """
        queue = self._queues.get((frozenset(feeds), frozenset(fetches)))
        if queue is None or not feeds:
            return self._servable.run(feeds, fetches)
        size = _rows(feeds)
        if size > self._options.max_batch_size:
            raise invalid(
                f"Task size {size} is larger than maximum input batch size "
                f"{self._options.max_batch_size}"
            )
        tasks = self._split(feeds, size)
        self._scheduler.schedule(queue, tasks)
        for task in tasks:
            task.ended.wait()
        for task in tasks:
            if task.error is not None:
                raise task.error
        order = {name: index for index, name in enumerate(sorted(set(fetches)))}
        parts = [[task.outputs[order[name]] for task in tasks] for name in fetches]
        return [part[0] if len(part) == 1 else np.concatenate(part) for part in parts]

    def close(self) -> None:
        """Remove the queues, then free the wrapped servable."""
        for queue in self._queues.values():
            self._scheduler.remove(queue)
        self._servable.close()

    def _runner(self, definition: Any) -> Run:
        fetches = sorted({info.name for info in definition.outputs.values()})
        return lambda feeds: self._servable.run(feeds, fetches)

    def _split(self, feeds: Mapping[str, NDArray[Any]], size: int) -> list[_Task]:
        limit = self._options.execution_limit
        if size <= limit:
            return [_Task(feeds, size)]
        starts = range(0, size, limit)
        return [
            _Task({n: a[start : start + limit] for n, a in feeds.items()}, min(limit, size - start))
            for start in starts
        ]


def _key(definition: Any) -> tuple[frozenset[str], frozenset[str]]:
    return (
        frozenset(info.name for info in definition.inputs.values()),
        frozenset(info.name for info in definition.outputs.values()),
    )


def _rows(feeds: Mapping[str, NDArray[Any]]) -> int:
    """Return the batch size that all inputs share.

    Raises:
        ServingError: an input has no first axis, or they differ, or there is no row at all (the
            official server never answers such a request, and its queue is stuck from then on).
    """
    if any(array.ndim == 0 for array in feeds.values()):
        raise invalid("Batching Run() input tensors must have at least one dimension")
    sizes = {len(array) for array in feeds.values()}
    if len(sizes) != 1:
        raise invalid("Batching Run() input tensors must have equal 0th-dimension size")
    (size,) = sizes
    if not size:
        raise invalid("Batching Run() input tensors must have at least one row")
    return size
