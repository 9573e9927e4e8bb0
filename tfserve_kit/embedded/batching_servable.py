"""A servable whose requests run in batches; wraps another one by composition.

Source: tensorflow_serving/batching/batching_session.cc (running, timeouts, texts) and
batching_util.h (metrics).

One deviation, on purpose: where a batch of several requests fails, each of them is run again alone,
so that only those that are bad themselves fail.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import chain
from typing import Any

import numpy as np

from tfserve_kit.embedded import batch_arrays, claims
from tfserve_kit.embedded.batch_arrays import Arrays, Feeds
from tfserve_kit.embedded.batching import BatchOptions, BatchScheduler, Task
from tfserve_kit.embedded.call import Call
from tfserve_kit.embedded.ledger import Account
from tfserve_kit.embedded.limits import UNCOUNTED_BYTES
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

    @property
    def signatures(self) -> Mapping[str, Any]:
        """SignatureDef messages by name."""
        return self._servable.signatures

    def run(self, feeds: Feeds, fetches: Sequence[str], *, call: Call | None = None) -> Arrays:
        """Compute `fetches` from `feeds` in a batch; see `Servable.run`.

        What is no whole signature (some of its outputs only) runs by itself, as in the official
        server. What has waited in the queue until its timeout does not run, unless others of its
        batch may still wait.
        """
        queue = self._queues.get((frozenset(feeds), frozenset(fetches)))
        if queue is None or not feeds:
            return self._servable.run(feeds, fetches, call=call)
        size = batch_arrays.rows(feeds)
        for _ in feeds:
            self._metrics.observe(INPUT_BATCH_SIZE, size)
        if size > self._options.max_batch_size:
            raise invalid(
                f"Task size {size} is larger than maximum input batch size "
                f"{self._options.max_batch_size}"
            )
        timeout_s = call.timeout_s if call else None
        if timeout_s is not None and timeout_s <= 0:
            raise _expired()
        limit_s = math.inf if timeout_s is None else timeout_s
        account = call.account if call else None
        tasks = self._scheduler.schedule(queue, feeds, size, limit_s, account)
        return _outcome(tasks, fetches, account)

    def close(self) -> None:
        """Remove the queues, then free the wrapped servable."""
        for queue in self._queues.values():
            self._scheduler.remove(queue)
        self._servable.close()

    def _process(self, fetches: Sequence[str], tasks: Sequence[Task], now_s: float) -> None:
        for task in tasks:
            self._metrics.observe(QUEUING_LATENCY, (now_s - task.queued_s) * 1e6, _NO_POOL)
        if all(task.deadline_s <= now_s for task in tasks):
            for task in tasks:
                task.end(error=_expired())
        else:
            self._run(fetches, tasks)

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
            merged = batch_arrays.merge(
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
        return batch_arrays.split(outputs, sizes, padding)


def _expired() -> ServingError:
    text = "Run() timeout exceeded while waiting in batching queue"
    return ServingError(Code.RESOURCE_EXHAUSTED, text)


def _charge(charged: ExitStack, tasks: Sequence[Task], costs: Sequence[int]) -> None:
    """Take from each request's account its part of a batch; `charged` gives it back."""
    for task, cost in zip(tasks, costs, strict=True):
        if cost > UNCOUNTED_BYTES and task.account is not None:
            task.account.take(cost, "its part of a batch")
            charged.callback(task.account.give, cost)


def _outcome(tasks: Sequence[Task], fetches: Sequence[str], account: Account | None) -> Arrays:
    """Wait for all pieces of a request; return its outputs or raise the first error."""
    for task in tasks:
        task.ended.wait()
    for task in tasks:
        if task.error is not None:
            raise task.error
    if account is not None and len(tasks) > 1:
        parts_bytes = claims.of_arrays(chain.from_iterable(task.outputs for task in tasks))
        account.take(parts_bytes, "the outputs of its parts")
    order = {name: index for index, name in enumerate(sorted(set(fetches)))}
    parts = [[task.outputs[order[name]] for task in tasks] for name in fetches]
    return [part[0] if len(part) == 1 else np.concatenate(part) for part in parts]


def _names(definition: Any) -> tuple[frozenset[str], frozenset[str]]:
    """Return the tensors that a signature feeds and fetches."""
    return (
        frozenset(info.name for info in definition.inputs.values()),
        frozenset(info.name for info in definition.outputs.values()),
    )
