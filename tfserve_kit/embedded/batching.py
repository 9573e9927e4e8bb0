"""Batching: requests wait for others in queues, and full batches run.

Bottom to top: arrays of several requests to one batch and back; the `BatchScheduler`, one for all
models; and the `BatchingServable` around each version, with a queue for each signature. Whoever
asks need not keep a thread waiting: a `Waiting` is awaited, and those of a batch are told at once.
What comes in together and makes up a short batch is run in the event loop's thread, and waits for
none.

Source: tensorflow/core/kernels/batching_util/shared_batch_scheduler.h (queues, splitting, threads,
texts), tensorflow_serving/batching/batching_session.cc and batching_util.cc (checks, timeouts,
metrics). One deviation, on purpose: where a batch of several requests fails, each of them is run
again alone, so that only those that are bad themselves fail.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import accumulate, chain, pairwise
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tfserve_kit.clock import Clock, SystemClock
from tfserve_kit.embedded import ledger
from tfserve_kit.embedded.kinds import FAR_TOO_LONG_S, CallKind, belongs_on_the_spot
from tfserve_kit.embedded.lanes import give_way
from tfserve_kit.embedded.ledger import Account, Call
from tfserve_kit.embedded.limits import MOST_CALLABLES, MOST_FILLED_BYTES, UNCOUNTED_BYTES
from tfserve_kit.embedded.metrics import (
    INPUT_BATCH_SIZE,
    PADDING_SIZE,
    PROCESSED_BATCH_SIZE,
    QUEUING_LATENCY,
    WRAPPED_RUN_COUNT,
    Metrics,
)
from tfserve_kit.embedded.servable import Servable
from tfserve_kit.embedded.status import Code, ServingError, invalid

Arrays = Sequence[NDArray[Any]]
Feeds = Mapping[str, NDArray[Any]]
Result = TypeVar("Result")


def row_count(feeds: Feeds) -> int:
    """Return the batch size that all inputs share.

    Raises:
        ServingError: an input has no first axis, or they differ, or there is no row at all (the
            official server never answers such a request, and its queue is stuck from then on).
    """
    shapes = [array.shape for array in feeds.values()]
    if () in shapes:
        raise invalid("Batching Run() input tensors must have at least one dimension")
    sizes = {shape[0] for shape in shapes}
    if len(sizes) != 1:
        raise invalid("Batching Run() input tensors must have equal 0th-dimension size")
    size: int = sizes.pop()
    if not size:
        raise invalid("Batching Run() input tensors must have at least one row")
    return size


def _size_bytes(feeds: Feeds) -> int:
    return sum(array.nbytes for array in feeds.values())


def cut_feeds(feeds: Feeds, sizes: Sequence[int]) -> list[Feeds]:
    """Return the feeds cut along the first axis into pieces of these sizes."""
    if len(sizes) == 1:
        return [feeds]
    cut = {name: _cut(array, sizes) for name, array in feeds.items()}
    return [{name: parts[i] for name, parts in cut.items()} for i in range(len(sizes))]


def merge_costs(parts: Sequence[Feeds], padding: int) -> list[int]:
    """Return how many bytes each request takes of a merged batch; the last one bears the padding.

    Args:
        parts: feeds of each request, with the same names.
        padding: how many rows are added.
    """
    found = [0] * len(parts)
    for name in parts[0]:
        arrays = [part[name] for part in parts]
        rows = {array.shape[1:] for array in arrays}
        if len(set(map(len, rows))) > 1:
            continue  # they are not merged
        row_size = math.prod(map(max, zip(*rows, strict=True)))
        for index, array in enumerate(arrays):
            found[index] += (
                array.nbytes if len(rows) == 1 else _filled_bytes(array, len(array) * row_size)
            )
        if padding:
            first = arrays[-1][:1]
            texts = ledger.text_bytes(first) if first.dtype.char == "O" else 0
            found[-1] += padding * (_filled_bytes(first, row_size) + texts)
    return found


def _filled_bytes(array: NDArray[Any], size: int) -> int:
    """Return what an array takes that is filled up to `size` elements with its first one."""
    text = len(array.flat[0]) if array.size and array.dtype.char == "O" else 0
    return size * array.itemsize + (size - array.size) * text


def merge_feeds(
    parts: Sequence[Feeds],
    padding: int,
    *,
    equal_lengths: bool,
    charge: Callable[[Sequence[int]], object] = bool,
) -> Feeds:
    """Return the feeds of several requests as those of one.

    Args:
        parts: feeds of each request, with the same names.
        padding: how many rows to add; each is the first one of the last request.
        equal_lengths: fill up the other axes to the longest of them.
        charge: told the `costs` of each request before anything is made; may raise.

    Raises:
        ServingError: the inputs of the requests differ in shape, or far more would be filled in
            than was sent: one long row makes all others as long.
    """
    if len(parts) == 1 and not padding:
        return parts[0]
    each = merge_costs(parts, padding)
    filled_bytes = sum(each) - sum(array.nbytes for part in parts for array in part.values())
    if filled_bytes > MOST_FILLED_BYTES:
        raise ServingError(
            Code.RESOURCE_EXHAUSTED,
            f"Padding the batch would take {filled_bytes} bytes; {MOST_FILLED_BYTES} at most are "
            "filled in",
        )
    charge(each)
    return {
        name: _merged(name, [part[name] for part in parts], padding, equal_lengths=equal_lengths)
        for name in parts[0]
    }


def split_outputs(outputs: Arrays, sizes: Sequence[int], padding: int) -> list[Arrays]:
    """Return the rows of each request, without the padding.

    Raises:
        ServingError: an output has no row for each row of the input.
    """
    for output in outputs:
        if output.ndim == 0:
            raise ServingError(Code.FAILED_PRECONDITION, "Batched output tensor has 0 dimensions")
        if len(output) != sum(sizes) + padding:
            raise ServingError(
                Code.FAILED_PRECONDITION,
                "Batched output tensor's 0th dimension does not equal the sum of the 0th "
                "dimension sizes of the input tensors",
            )
    return list(zip(*(_cut(output, sizes) for output in outputs), strict=True))


def _cut(array: NDArray[Any], sizes: Sequence[int]) -> list[NDArray[Any]]:
    return [array[start:end] for start, end in pairwise(accumulate(sizes, initial=0))]


def _merged(
    name: str, arrays: list[NDArray[Any]], padding: int, *, equal_lengths: bool
) -> NDArray[Any]:
    if len({array.shape[1:] for array in arrays}) > 1:
        if not equal_lengths:
            raise ServingError(
                Code.FAILED_PRECONDITION,
                f"Tensors with name '{name}' from different tasks have different shapes and "
                "padding is turned off.Set pad_variable_length_inputs to true, or ensure that "
                "all tensors with the same namehave equal dimensions starting with the first dim.",
            )
        return _equally_long(name, arrays, padding)
    if padding:
        last = arrays[-1][:1]
        arrays = [*arrays, np.broadcast_to(last, (padding, *last.shape[1:]))]
    return np.concatenate(arrays)


def _equally_long(name: str, arrays: list[NDArray[Any]], padding: int) -> NDArray[Any]:
    """Merge with every axis as long as the longest, filled up with each array's first element."""
    if len({array.ndim for array in arrays}) > 1:
        raise invalid(f"Ranks of tensors with name '{name}' from different tasks differ")
    longest = map(max, zip(*(array.shape[1:] for array in arrays), strict=True))
    merged = np.empty((sum(map(len, arrays)) + padding, *longest), arrays[0].dtype)
    start = 0
    for array in arrays:
        mine = merged[start : start + len(array)]
        mine[...] = array.flat[0] if array.size else _nothing(array)
        mine[(slice(None), *map(slice, array.shape[1:]))] = array
        start += len(array)
    merged[start:] = mine[:1]
    return merged


def _nothing(array: NDArray[Any]) -> Any:
    return b"" if array.dtype.char == "O" else np.zeros((), array.dtype)[()]


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


# Has all of these called, soon, in the thread of whoever waits.
Post = Callable[[Iterable[Callable[[], object]]], object]


class Waiting:
    """A request in the batcher, in one piece or several; awaited by a flow for its outputs.

    Args:
        lock: guards what batch threads and whoever waits both change.
        call: how long somebody waits, and whose account is charged; None for ever and nobody's.

    Attributes:
        tasks: its pieces.
        left: how many of them have not ended.
    """

    __slots__ = ("_lock", "_told", "call", "left", "order", "tasks")

    def __init__(self, lock: threading.Lock, call: Call | None = None) -> None:
        self._lock = lock
        self._told: tuple[Post, Callable[[], object]] | None = None
        self.call = call
        self.tasks: list[Task] = []
        self.left = 0
        self.order: Sequence[int] | None = None  # of the outputs; as they are if None

    def __await__(self) -> Generator["Waiting", None, Arrays]:
        yield self
        return self.result()

    def tell(self, post: Post, told: Callable[[], object]) -> bool:
        """Have somebody told when all pieces have ended; False where they have already.

        Args:
            post: given `told`, together with those of others of the batch.
            told: has the flow go on.
        """
        with self._lock:
            if self.left:
                self._told = post, told
                return True
        return False

    def note_ended(self) -> tuple[Post, Callable[[], object]] | None:
        """Note that a piece has ended; return who is to be told, if any. The lock is held."""
        self.left -= 1
        if self.left:
            return None
        told, self._told = self._told, None  # nobody is held by what has ended
        return told

    def wait(self) -> "Waiting":
        """Keep the thread until all pieces have ended; return itself."""
        ended = threading.Event()
        if self.tell(_call_all, ended.set):
            ended.wait()
        return self

    def result(self) -> Arrays:
        """Return the outputs once all pieces have ended.

        Raises:
            ServingError: one of them failed, or there is no room to put them together.
        """
        tasks = self.tasks
        for task in tasks:
            if task.error is not None:
                raise task.error
        outputs = self._together() if len(tasks) > 1 else tasks[0].outputs
        return _ordered(outputs, self.order)

    def _together(self) -> Arrays:
        parts = [task.outputs for task in self.tasks]
        if self.call is not None:
            parts_bytes = ledger.cost_of_arrays(chain.from_iterable(parts))
            self.call.account.take(parts_bytes, "the outputs of its parts")
        return [np.concatenate(pieces) for pieces in zip(*parts, strict=True)]

    @property
    def size_bytes(self) -> int:
        """What the outputs take, once all pieces have ended."""
        return sum(array.nbytes for task in self.tasks for array in task.outputs)


def _ordered(outputs: Arrays, order: Sequence[int] | None) -> Arrays:
    return outputs if order is None else [outputs[index] for index in order]


# What runs until it waits for others, and is sent None when they have ended.
Flow = Coroutine[Waiting, None, Result]


def completed(flow: Flow[Result]) -> Result:
    """Return a flow's result; keeps the thread while it waits."""
    try:
        while True:
            flow.send(None).wait()
    except StopIteration as ended:
        result: Result = ended.value
        return result


def _call_all(told: Iterable[Callable[[], object]]) -> None:
    for each in told:
        each()


@dataclass(slots=True, eq=False)
class Task:
    """One request, or one piece of a split one, on its way through a queue.

    Attributes:
        feeds: value per tensor name.
        size: how many rows they have.
        queued_s: when it came into the queue, by the scheduler's clock.
        deadline_s: when nobody waits for it any more.
        request: what it is a piece of.
    """

    feeds: Feeds
    size: int
    queued_s: float
    deadline_s: float
    request: Waiting
    outputs: Arrays = ()
    error: ServingError | None = None

    def end(self, outputs: Arrays = (), error: ServingError | None = None) -> None:
        """Note the outcome; whoever waits is told when all of the batch has one."""
        self.outputs, self.error = outputs, error

    def is_wanted(self) -> bool:
        """Say whether the client is still there."""
        call = self.request.call
        return call is None or not call.is_cancelled()


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
    kinds: dict[int, CallKind] = field(default_factory=dict)  # by their magnitude

    def due_at_once(self, size: int, requests: int) -> int:
        """Return how many of some requests of `size` rows are a batch that need not wait.

        None where only some of them would be, and one would have to be split.
        """
        options, limit = self.options, self.options.execution_limit
        fitting = limit // size
        if requests > fitting and options.enable_large_batch_splitting and limit % size:
            return 0
        is_due = not options.batch_timeout_s or requests > fitting or requests * size == limit
        return min(requests, fitting) if is_due else 0

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

    def put(self, task: Task) -> bool:
        """Add a task to the open batch, or to a new one if it does not fit.

        Returns:
            Whether a batch is due earlier than before, or has become one.
        """
        batches, limit = self.batches, self.options.execution_limit
        is_new = not batches or batches[-1].size + task.size > limit
        if is_new:
            if batches:
                batches[-1].due_s = -math.inf
            batches.append(_Batch(task.queued_s + self.options.batch_timeout_s))
        batch = batches[-1]
        batch.tasks.append(task)
        batch.size += task.size
        if batch.size >= limit:
            batch.due_s = -math.inf
            return True
        return is_new


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
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._stopping = False
        self._running = 0  # batches, in these threads and in others
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

    def schedule(self, queue: Queue, feeds: Feeds, size: int, call: Call | None = None) -> Waiting:
        """Put a request into a queue, in pieces if it is to be split; all of them or none.

        Args:
            queue: where it waits.
            feeds: value per tensor name.
            size: how many rows they have.
            call: how long somebody waits, and whose account is charged; None for ever and nobody's.

        Raises:
            ServingError: UNAVAILABLE, the queue is full, or nothing runs any more.
        """
        timeout_s = call.timeout_s if call else None
        with self._lock:
            if self._stopping:
                raise ServingError(Code.UNAVAILABLE, "The batch scheduler has been stopped")
            queue.check_room(size)
            sizes, now_s = queue.piece_sizes(size), self._clock.now_s()
            deadline_s = math.inf if timeout_s is None else now_s + timeout_s
            waiting = Waiting(self._lock, call)
            waiting.tasks = [
                Task(piece, rows, now_s, deadline_s, waiting)
                for piece, rows in zip(cut_feeds(feeds, sizes), sizes, strict=True)
            ]
            waiting.left = len(sizes)
            # A thread that is woken for nothing takes the interpreter away from the loop.
            if max(map(queue.put, waiting.tasks)):
                self._changed.notify()
        return waiting

    def run_here(
        self, queue: Queue, parts: Sequence[Feeds], size: int, accounts: Iterable[Account]
    ) -> Sequence["Task"]:
        """Run some requests as a batch that is due, in this thread: the event loop's.

        To hand them to another thread and back takes longer than a small model does. So batches
        that are measured to be short run here, as long as nothing of the queue waits and no more
        run at once than may.

        Args:
            queue: where they would wait.
            parts: value per tensor name of each.
            size: how many rows each has.
            accounts: one for each.

        Returns:
            What has become of them; nothing where they have to be scheduled.
        """
        size_bytes = len(parts) * _size_bytes(parts[0])
        kind, now_s = queue.kinds.get(size_bytes.bit_length()), self._clock.now_s()
        if kind is None or not belongs_on_the_spot(kind, size_bytes, time.monotonic()):
            return ()
        tasks = [
            Task(feeds, size, now_s, math.inf, Waiting(self._lock, Call(account)))
            for feeds, account in zip(parts, accounts, strict=True)
        ]
        with self._lock:
            if queue.batches or not self._may_run(now_s):
                return ()
            self._running += 1
        try:
            wall_s, worked_s = self._timed(queue, tasks, now_s)
            # That it waited, perhaps for a processor, is looked at by whoever asks, too.
            took_s = wall_s if wall_s > FAR_TOO_LONG_S else worked_s
            kind.note(took_s, worked_s, time.monotonic(), on_the_spot=True)
        finally:
            with self._lock:
                self._running -= 1
                if any(each.batches for each in self._queues):
                    self._changed.notify()  # a thread may have had to wait for this
        return tasks

    def _may_run(self, now_s: float) -> bool:
        """Say whether another thread may run a batch: no other is due that waits for its turn."""
        if self._stopping or self._running >= len(self._threads):
            return False
        return not any(each.batches and each.batches[0].due_s <= now_s for each in self._queues)

    def stop(self) -> None:
        """Run what waits, then end the threads."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        give_way()
        while (found := self._next()) is not None:
            queue, batch, now_s = found
            took = self._timed(queue, batch.tasks, now_s)
            self._end(queue, batch.tasks, took)
            del found, queue, batch  # they hold requests

    def _timed(self, queue: Queue, tasks: Sequence[Task], now_s: float) -> tuple[float, float]:
        """Run a batch; return how long it took, and how much of that this thread was at work."""
        began_s, worked_s = time.perf_counter(), time.thread_time()
        try:
            queue.process(tasks, now_s)
        except Exception as error:  # noqa: BLE001 (the thread must live, every caller must hear)
            for task in tasks:
                task.end(error=ServingError(Code.INTERNAL, f"{type(error).__name__}: {error}"))
        return time.perf_counter() - began_s, time.thread_time() - worked_s

    def _end(self, queue: Queue, tasks: Sequence[Task], took: tuple[float, float]) -> None:
        """Tell all whose request has ended with this batch, and everybody only once."""
        told: dict[Post, list[Callable[[], object]]] = {}
        magnitude = sum(_size_bytes(task.feeds) for task in tasks).bit_length()
        with self._lock:
            self._running -= 1
            if not any(task.error for task in tasks):
                kind = queue.kinds.setdefault(magnitude, CallKind())
                kind.note(*took, time.monotonic(), on_the_spot=False)
            for task in tasks:
                if somebody := task.request.note_ended():
                    post, each = somebody
                    told.setdefault(post, []).append(each)
        for post, all_of_them in told.items():
            post(all_of_them)

    def _next(self) -> tuple[Queue, _Batch, float] | None:
        """Wait for a batch that is due, taking the queues in turn; None at the end."""
        with self._changed:
            while True:
                now_s, soonest_s = self._clock.now_s(), math.inf
                is_free = self._stopping or self._running < len(self._threads)
                for _ in range(len(self._queues) if is_free else 0):
                    queue = self._queues[0]
                    self._queues.rotate(-1)
                    if not queue.batches:
                        continue
                    due_s = queue.batches[0].due_s
                    if due_s <= now_s or self._stopping:
                        batch = queue.batches.popleft()
                        self._running += 1
                        if any(each.batches for each in self._queues):
                            self._changed.notify()  # another thread looks after the rest
                        return queue, batch, now_s
                    soonest_s = min(due_s, soonest_s)
                if self._stopping:
                    return None
                self._changed.wait(min(soonest_s - now_s, threading.TIMEOUT_MAX))


# Far more requests can wait for a batch than run at once, so those that are not counted elsewhere
# count here from this size on.
_SMALL_BYTES = 4096
# The official server leaves the thread pool's name empty (CreateBatchingSession).
_NO_POOL = ("",)


class BatchingServable:
    """A servable whose signatures run in batches; implements `Servable`.

    Args:
        servable: what runs the batches.
        scheduler: says when.
        options: how large they become.
        metrics: told of requests, batches and runs.
    """

    def __init__(
        self,
        servable: Servable,
        scheduler: BatchScheduler,
        options: BatchOptions,
        metrics: Metrics,
    ) -> None:
        self._servable = servable
        self._scheduler = scheduler
        self._options = options
        self._metrics = metrics
        self._queues = {}
        for feeds, fetches in set(map(_names, servable.signatures.values())):
            process = partial(self._process, sorted(fetches))
            self._queues[feeds, fetches] = scheduler.add(options, process)
        # Clients choose outputs and their order.
        self._place = lru_cache(MOST_CALLABLES)(self._new_place)

    @property
    def signatures(self) -> Mapping[str, Any]:
        """SignatureDef messages by name."""
        return self._servable.signatures

    def run(self, feeds: Feeds, fetches: Sequence[str], *, call: Call | None = None) -> Arrays:
        """Compute `fetches` from `feeds` in a batch; see `Servable.run`."""
        found = self.begin(feeds, fetches, call)
        return found.wait().result() if isinstance(found, Waiting) else found

    def begin(
        self, feeds: Feeds, fetches: Sequence[str], call: Call | None = None
    ) -> Arrays | Waiting:
        """Have `fetches` computed from `feeds` in a batch; arguments and errors as of `run`.

        What is no whole signature (some of its outputs only) runs by itself, at once, as in the
        official server. What has waited in the queue until its timeout does not run, unless others
        of its batch may still wait.
        """
        queue, order = self._place(tuple(feeds), tuple(fetches))
        if queue is None:
            return self._servable.run(feeds, fetches, call=call)
        size = row_count(feeds)
        for _ in feeds:
            self._metrics.observe(INPUT_BATCH_SIZE, size)
        if size > self._options.max_batch_size:
            raise invalid(
                f"Task size {size} is larger than maximum input batch size "
                f"{self._options.max_batch_size}"
            )
        if call and call.deadline_s is not None and not call.timeout_s:
            raise _expired()
        if call and not call.account.held_bytes:
            waiting_bytes = _size_bytes(feeds)
            if _SMALL_BYTES < waiting_bytes <= UNCOUNTED_BYTES:
                call.account.take(waiting_bytes, "the request while it waits")
        waiting = self._scheduler.schedule(queue, feeds, size, call)
        waiting.order = order
        return waiting

    def run_here(
        self, parts: Sequence[Feeds], fetches: Sequence[str], accounts: Sequence[Account]
    ) -> Sequence[Arrays | ServingError]:
        """Compute the same of some requests as one batch, in this thread: the event loop's.

        Args:
            parts: value per tensor name of each, all of the same types and shapes.
            fetches: as of `run`.
            accounts: one for each.

        Returns:
            What `run` would return or raise for the first ones, as many as are a batch; nothing
            where they have to wait for others, or for a thread.
        """
        queue, order = self._place(tuple(parts[0]), tuple(fetches))
        if queue is None or _size_bytes(parts[0]) > UNCOUNTED_BYTES:
            return ()
        try:
            size = row_count(parts[0])
        except ServingError:  # it is refused where it is scheduled
            return ()
        count = queue.due_at_once(size, len(parts))
        tasks = (
            self._scheduler.run_here(queue, parts[:count], size, accounts[:count]) if count else ()
        )
        if tasks:
            self._metrics.observe(INPUT_BATCH_SIZE, size, (), count * len(parts[0]))
        return [task.error or _ordered(task.outputs, order) for task in tasks]

    def _new_place(
        self, feeds: tuple[str, ...], fetches: tuple[str, ...]
    ) -> tuple[Queue | None, tuple[int, ...] | None]:
        """Return a request's queue, and which of its outputs are wanted, if not all in order."""
        queue = self._queues.get((frozenset(feeds), frozenset(fetches))) if feeds else None
        computed = sorted(set(fetches))
        in_order = computed == list(fetches)
        return queue, None if in_order else tuple(map(computed.index, fetches))

    def close(self) -> None:
        """Remove the queues, then free the wrapped servable."""
        for queue in self._queues.values():
            self._scheduler.remove(queue)
        self._servable.close()

    def _process(self, fetches: Sequence[str], tasks: Sequence[Task], now_s: float) -> None:
        for task in tasks:
            self._metrics.observe(QUEUING_LATENCY, (now_s - task.queued_s) * 1e6, _NO_POOL)
        wanted = [task for task in tasks if task.is_wanted()]
        for task in tasks if len(wanted) < len(tasks) else ():
            task.end(error=_cancelled())
        if all(task.deadline_s <= now_s for task in wanted):
            for task in wanted:
                task.end(error=_expired())
        else:
            self._run(fetches, wanted)

    def _run(self, fetches: Sequence[str], tasks: Sequence[Task]) -> None:
        """Run tasks as one batch and end each of them."""
        try:
            results = self._results(fetches, tasks)
        except ServingError as error:
            if len(tasks) == 1:
                tasks[0].end(error=error)
                return
            for task in tasks:  # find out which of them is at fault
                self._run(fetches, [task])
        except Exception as error:  # noqa: BLE001 (the thread must live, every caller must hear)
            for task in tasks:
                task.end(error=ServingError(Code.INTERNAL, f"{type(error).__name__}: {error}"))
        else:
            for task, outputs in zip(tasks, results, strict=True):
                task.end(outputs)

    def _results(self, fetches: Sequence[str], tasks: Sequence[Task]) -> list[Arrays]:
        """Run tasks as one batch and return each one's rows."""
        options, sizes = self._options, [task.size for task in tasks]
        padded = options.padded(sum(sizes))
        padding = padded - sum(sizes)
        self._metrics.observe(PADDING_SIZE, padding, (str(padded),))
        self._metrics.observe(PROCESSED_BATCH_SIZE, padded)
        parts = [task.feeds for task in tasks]
        with ExitStack() as charged:
            merged = merge_feeds(
                parts,
                padding,
                equal_lengths=options.pad_variable_length_inputs,
                charge=partial(_charge, charged, tasks),
            )
            try:
                outputs = self._servable.run(merged, fetches)
            finally:
                self._metrics.add(WRAPPED_RUN_COUNT)
                del merged
        return split_outputs(outputs, sizes, padding)


def _cancelled() -> ServingError:
    return ServingError(Code.CANCELLED, "The client has cancelled the request")


def _expired() -> ServingError:
    text = "Run() timeout exceeded while waiting in batching queue"
    return ServingError(Code.RESOURCE_EXHAUSTED, text)


def _charge(charged: ExitStack, tasks: Sequence[Task], costs: Sequence[int]) -> None:
    """Take from each request's account its part of a batch; `charged` gives it back."""
    if max(costs) <= UNCOUNTED_BYTES:
        return
    for task, cost in zip(tasks, costs, strict=True):
        call = task.request.call
        if cost > UNCOUNTED_BYTES and call is not None:
            call.account.take(cost, "its part of a batch")
            charged.callback(call.account.give, cost)


def _names(definition: Any) -> tuple[frozenset[str], frozenset[str]]:
    """Return the tensors that a signature feeds and fetches."""
    return (
        frozenset(info.name for info in definition.inputs.values()),
        frozenset(info.name for info in definition.outputs.values()),
    )
