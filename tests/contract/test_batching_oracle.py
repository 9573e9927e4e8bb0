"""Requests are batched as by tensorflow's own scheduler, which is the official server's.

The oracle is the wheel's batch function: its kernel puts requests into the queues of
tensorflow/core/kernels/batching_util/shared_batch_scheduler.h. Both sides have one batch thread,
and their first batch holds it up until every other request is in the queue or refused.
"""

import os
import threading
import warnings
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfserve_kit import protos
from tfserve_kit.embedded.batching import BatchingServable, BatchOptions, BatchScheduler
from tfserve_kit.embedded.metrics import Metrics
from tfserve_kit.embedded.status import Code, ServingError

pytestmark = pytest.mark.tensorflow

PATIENCE_S = 30.0
NEVER_S = 2000.0  # in microseconds it must fit an int32


class Model:
    """Computes y = x; its first batch waits until it is let go.

    Attributes:
        batches: what came, in order.
        entered: set once the first batch is there.
        let_go: lets it go.
    """

    signatures = {
        "serving_default": protos.from_text(
            "SignatureDef",
            'inputs { key: "x" value { name: "x:0" } } outputs { key: "y" value { name: "y:0" } }',
        )
    }

    def __init__(self):
        self.batches, self.entered, self.let_go = [], threading.Event(), threading.Event()

    def compute(self, x):
        self.batches.append(x.tolist())
        if len(self.batches) == 1:
            self.entered.set()
            assert self.let_go.wait(PATIENCE_S)
        return x

    def run(self, feeds, fetches, *, call=None):
        return [self.compute(feeds["x:0"])]


class Official:
    """The batch function of the wheel around a model."""

    def __init__(self, tf, options, model):
        from tensorflow.core.protobuf import config_pb2

        self._queued, self._error = {}, tf.errors.OpError
        batched = tf.nondifferentiable_batch_function(
            num_batch_threads=1,
            max_batch_size=options.max_batch_size,
            batch_timeout_micros=int(options.batch_timeout_s * 1e6),
            allowed_batch_sizes=list(options.allowed_batch_sizes) or None,
            max_enqueued_batches=options.max_enqueued_batches,
            enable_large_batch_splitting=options.enable_large_batch_splitting,
        )
        with tf.Graph().as_default() as graph:
            key = tf.compat.v1.placeholder(tf.int64, [])
            rows = tf.compat.v1.placeholder(tf.int64, [None])
            first = tf.identity(rows)
            y = batched(lambda x: tf.numpy_function(model.compute, [x], tf.int64))(first)
            # All kernels run in the caller's thread, one after the other. The batch function's is
            # done with once the request is in the queue: then this one runs.
            with tf.control_dependencies([first]):
                told = tf.numpy_function(self._tell, [key], tf.int64)
        self._session = tf.compat.v1.Session(graph=graph)
        callable_options = config_pb2.CallableOptions(
            feed=[rows.name, key.name],
            fetch=[y.name, told.name],
            run_options=config_pb2.RunOptions(inter_op_thread_pool=-1),
        )
        self._call = self._session._make_callable_from_options(callable_options)

    def _tell(self, key):
        self._queued[int(key)]()
        return key

    def ask(self, rows, queued):
        self._queued[rows[0]] = queued
        try:
            return self._call(np.int64(rows), np.int64(rows[0]))[0].tolist()
        except self._error as error:
            return Code(error.error_code), error.message.partition("\n\t [[")[0]

    def close(self):
        self._session.close()


class Ours:
    """Our own batching around a model."""

    def __init__(self, options, model):
        self._scheduler = TellingScheduler(1, "batch")
        self._servable = BatchingServable(model, self._scheduler, options, Metrics())

    def ask(self, rows, queued):
        self._scheduler.thread.queued = queued
        try:
            return self._servable.run({"x:0": np.int64(rows)}, ["y:0"])[0].tolist()
        except ServingError as error:
            return error.code, error.message

    def close(self):
        self._scheduler.stop()


class TellingScheduler(BatchScheduler):
    """Calls `thread.queued` of the thread whose request has come into the queue."""

    thread = threading.local()

    def schedule(self, *arguments):
        waiting = super().schedule(*arguments)
        self.thread.queued()
        return waiting


def outcome(make, options, sizes):
    """Return the batches that ran and what each request got, for requests of these sizes.

    A batch is (its rows, how many rows it had with padding); an answer is rows or (code, text).
    """
    model = Model()
    side, answers, threads = make(options, model), {}, []
    bounds = np.cumsum([1, *sizes]).tolist()
    for number, (start, end) in enumerate(pairwise(bounds)):
        settled = threading.Event()

        def ask(number=number, rows=tuple(range(start, end)), settled=settled):
            answers[number] = side.ask(rows, settled.set)
            settled.set()

        threads.append(threading.Thread(target=ask, daemon=True))
        threads[-1].start()
        assert settled.wait(PATIENCE_S)
        if number == 0:
            assert model.entered.wait(PATIENCE_S)
    model.let_go.set()
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    side.close()
    batches = [(list(dict.fromkeys(batch)), len(batch)) for batch in model.batches]
    return batches, [answers[number] for number in range(len(sizes))]


@pytest.fixture(scope="module")
def official():
    """Make the official side."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tf = pytest.importorskip("tensorflow")
    return lambda options, model: Official(tf, options, model)


OPTIONS = {
    "plain": BatchOptions(max_batch_size=4),
    "two": BatchOptions(max_batch_size=4, max_enqueued_batches=2),
    "one": BatchOptions(max_batch_size=4, max_enqueued_batches=1),
    "padded": BatchOptions(max_batch_size=8, allowed_batch_sizes=(2, 4, 8)),
    "full-only": BatchOptions(max_batch_size=4, batch_timeout_s=NEVER_S),
    "split": BatchOptions(
        max_batch_size=10,
        max_enqueued_batches=3,
        allowed_batch_sizes=(2, 4),
        enable_large_batch_splitting=True,
        max_execution_batch_size=4,
    ),
    "split-equal": BatchOptions(
        max_batch_size=4,
        max_enqueued_batches=2,
        enable_large_batch_splitting=True,
        max_execution_batch_size=4,
    ),
}


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("plain", [1, 1, 1, 1, 1, 1]),
        ("plain", [1, 3, 1, 4, 4]),
        ("plain", [1, 2, 3, 2, 1, 1]),
        ("plain", [4, 4, 1, 3]),
        ("plain", [1, 5]),
        ("plain", [1, 4, 5, 1]),
        ("two", [1, 4, 4, 4, 1]),
        ("two", [1, 3, 2, 3, 2, 1]),
        ("two", [1, 3, 3, 1, 1]),
        ("one", [1, 1, 4, 3, 1]),
        ("one", [4, 4, 1]),
        ("padded", [1, 1]),
        ("padded", [1, 3, 8, 2]),
        ("padded", [5, 2, 7]),
        ("padded", [1, 2, 1, 4, 2, 9]),
        ("full-only", [4, 1, 4]),
        ("full-only", [4, 2, 2, 3, 1]),
        ("full-only", [4, 3, 2, 2]),
        ("split", [1, 1, 10]),
        ("split", [4, 10, 2]),
        ("split", [1, 2, 3, 4]),
        ("split", [1, 3, 9, 1]),
        ("split", [1, 10, 3]),
        ("split", [1, 10, 2, 1]),
        ("split", [1, 4, 4, 4, 1]),
        ("split", [1, 11]),
        ("split-equal", [1, 3, 4, 2]),
        ("split-equal", [1, 3, 3, 3]),
        ("split-equal", [2, 5]),
    ],
)
def test_batches_and_refusals_are_those_of_the_official_scheduler(official, name, sizes):
    schedule = OPTIONS[name], sizes
    assert outcome(Ours, *schedule) == outcome(official, *schedule)


@st.composite
def schedules(draw):
    """Options, and sizes of requests of which some are too large or one too many."""
    split = draw(st.booleans())
    limit = draw(st.integers(1, 6))
    allowed = draw(st.sets(st.integers(1, limit))) | {limit} if draw(st.booleans()) else ()
    largest = limit + (draw(st.integers(0, 8)) if split and allowed else 0)
    options = BatchOptions(
        max_batch_size=largest,
        max_enqueued_batches=draw(st.integers(1, 4)),
        allowed_batch_sizes=tuple(sorted(allowed)),
        enable_large_batch_splitting=split,
        max_execution_batch_size=limit,
    )
    # The first request is to fill no more than the batch that holds up the others.
    first = draw(st.integers(1, limit))
    return options, [first, *draw(st.lists(st.integers(1, largest + 1), max_size=8))]


@settings(max_examples=40, deadline=None)
@given(schedule=schedules())
def test_any_schedule_runs_in_the_batches_of_the_official_scheduler(official, schedule):
    assert outcome(Ours, *schedule) == outcome(official, *schedule)


def test_the_oracle_sees_what_it_is_asked_about(official):
    batches, answers = outcome(official, OPTIONS["split"], [1, 2, 11, 4, 9])
    assert batches == [([1], 2), ([2, 3, 15, 16], 4), ([17, 18], 2)]
    assert answers[0] == [1]
    assert answers[2][0] is Code.INVALID_ARGUMENT
    assert answers[4][0] is Code.UNAVAILABLE
