"""Requests that wait for others: queues, splitting, padding, timeouts and metrics.

What tensorflow's own scheduler does with the same requests is in
tests/contract/test_batching_oracle.py.
"""

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest

from tfserve_kit import protos
from tfserve_kit.embedded.batching import (
    BatchingServable,
    BatchOptions,
    BatchScheduler,
    batch_options,
    cut_feeds,
    merge_costs,
    merge_feeds,
    row_count,
    split_outputs,
)
from tfserve_kit.embedded.ledger import Call, Ledger
from tfserve_kit.embedded.metrics import Metrics
from tfserve_kit.embedded.status import Code, ServingError

PATIENCE_S = 30.0


class HandClock:
    """Stands still until it is set."""

    def __init__(self):
        self.now = 100.0

    def now_s(self):
        return self.now

    def sleep(self, duration_s):
        raise AssertionError


class HeldScheduler(BatchScheduler):
    """A scheduler of one thread that can be held up.

    Attributes:
        queued: released by every request that has come into a queue.
    """

    def __init__(self, clock=None):
        self.queued = threading.Semaphore(0)
        super().__init__(1, "held", clock=clock)

    def schedule(self, *arguments):
        waiting = super().schedule(*arguments)
        self.queued.release()
        return waiting

    @contextmanager
    def held(self):
        entered, let_go = threading.Event(), threading.Event()

        def hold(tasks, now_s):
            entered.set()
            assert let_go.wait(PATIENCE_S)
            end(tasks, now_s)

        queue = self.add(BatchOptions(), hold)
        waiting = super().schedule(queue, {}, 1)
        assert entered.wait(PATIENCE_S)
        try:
            yield
        finally:
            let_go.set()
            wait_for([waiting])
            self.remove(queue)


def end(tasks, now_s):
    for task in tasks:
        task.end()


class Recorder:
    """Runs batches by writing down the sizes of their tasks, and when they left the queue."""

    def __init__(self):
        self.batches, self.times = [], []

    def __call__(self, tasks, now_s):
        self.batches.append([task.size for task in tasks])
        self.times.append(now_s)
        end(tasks, now_s)


@pytest.fixture
def clock():
    return HandClock()


@pytest.fixture
def scheduler(clock):
    made = HeldScheduler(clock)
    yield made
    made.stop()


def rows(*values):
    return {"x": np.int64(values)}


def wait_for(requests):
    for waiting in requests:
        ended = threading.Event()
        if waiting.tell(lambda told: [each() for each in told], ended.set):
            assert ended.wait(PATIENCE_S)


def ran(scheduler, options, sizes):
    """Return the batches that requests of these sizes run in, all of them queued first."""
    recorder = Recorder()
    queue, tasks = scheduler.add(options, recorder), []
    with scheduler.held():
        tasks.extend(scheduler.schedule(queue, rows(*range(size)), size) for size in sizes)
    wait_for(tasks)
    return recorder.batches


def refusal(function, *arguments, **options):
    with pytest.raises(ServingError) as caught:
        function(*arguments, **options)
    return caught.value.code, caught.value.message


# Options


def parameters(text):
    return protos.from_text("BatchingParameters", text)


def test_options_left_out_are_the_official_defaults():
    assert batch_options(parameters("")) == BatchOptions(
        max_batch_size=1000,
        batch_timeout_s=0,
        max_enqueued_batches=10,
        allowed_batch_sizes=(),
        pad_variable_length_inputs=False,
        enable_large_batch_splitting=False,
        max_execution_batch_size=1000,
    )


def test_options_are_taken_over_with_seconds():
    text = """
    max_batch_size { value: 8 } batch_timeout_micros { value: 1500000 }
    max_enqueued_batches { value: 3 } allowed_batch_sizes: 2 allowed_batch_sizes: 8
    pad_variable_length_inputs: true enable_large_batch_splitting { value: true }
    max_execution_batch_size { value: 4 }
    """
    assert batch_options(parameters(text)) == BatchOptions(8, 1.5, 3, (2, 8), True, True, 4)


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("max_batch_size { value: 8 }", BatchOptions(8, max_execution_batch_size=8)),
        ("max_batch_size { value: 1 }", BatchOptions(1, max_execution_batch_size=1)),
        ("max_batch_size { value: -1 }",
         BatchOptions(2**64 - 1, max_execution_batch_size=2**64 - 1)),
        ("max_enqueued_batches { value: 0 }", BatchOptions(max_enqueued_batches=1)),
        ("max_enqueued_batches { value: -1 }", BatchOptions(max_enqueued_batches=2**64 - 1)),
        ("max_batch_size { value: 4 } max_execution_batch_size { value: 5 }",
         BatchOptions(4, max_execution_batch_size=5)),
    ],
)  # fmt: skip
def test_odd_options_mean_what_they_mean_to_the_official_server(text, options):
    assert batch_options(parameters(text)) == options


SPLITTING = "enable_large_batch_splitting { value: true }"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_batch_size { value: 4 } allowed_batch_sizes: 4 allowed_batch_sizes: 2",
         "Last entry in allowed_batch_sizes must match max_batch_size; last entry was 2; "
         "expected 4"),
        ("max_batch_size { value: 0 }",
         "max_batch_size 0, batch_timeout_micros 0 and max_execution_batch_size 0 cannot work"),
        ("batch_timeout_micros { value: -1 }",
         "max_batch_size 1000, batch_timeout_micros -1 and max_execution_batch_size 1000 "
         "cannot work"),
        (f"{SPLITTING} max_batch_size {{ value: 4 }} max_execution_batch_size {{ value: 5 }}",
         "max_batch_size 4, batch_timeout_micros 0 and max_execution_batch_size 5 cannot work"),
        (f"{SPLITTING} max_execution_batch_size {{ value: 0 }}",
         "max_batch_size 1000, batch_timeout_micros 0 and max_execution_batch_size 0 cannot work"),
        (f"{SPLITTING} max_enqueued_batches {{ value: 0 }}",
         "max_enqueued_batches must be positive; was 0"),
    ],
)  # fmt: skip
def test_options_that_cannot_work_are_refused(text, message):
    assert refusal(batch_options, parameters(text)) == (Code.INVALID_ARGUMENT, message)


def test_execution_size_may_be_the_largest_size():
    text = f"{SPLITTING} max_batch_size {{ value: 4 }} max_execution_batch_size {{ value: 4 }}"
    assert batch_options(parameters(text)).execution_limit == 4


@pytest.mark.parametrize(
    ("allowed", "size", "padded"),
    [
        ((), 3, 3),
        ((2, 4, 8), 1, 2),
        ((2, 4, 8), 2, 2),
        ((2, 4, 8), 3, 4),
        ((2, 4, 8), 9, 9),
        ((8, 2, 4), 1, 8),  # the first that fits, not the least
    ],
)
def test_batch_is_padded_to_the_first_allowed_size_that_fits(allowed, size, padded):
    assert BatchOptions(allowed_batch_sizes=allowed).padded(size) == padded


# Queues


@pytest.mark.parametrize(
    ("sizes", "batches"),
    [
        ([1], [[1]]),
        ([4], [[4]]),
        ([1, 1, 2], [[1, 1, 2]]),
        ([1, 1, 2, 1], [[1, 1, 2], [1]]),
        ([3, 2, 1], [[3], [2, 1]]),  # the closed batch is not filled up afterwards
        ([4, 4], [[4], [4]]),
    ],
)
def test_requests_share_a_batch_as_long_as_they_fit(scheduler, sizes, batches):
    assert ran(scheduler, BatchOptions(max_batch_size=4), sizes) == batches


def split(limit, largest=100, enqueued=10):
    return BatchOptions(
        max_batch_size=largest,
        max_enqueued_batches=enqueued,
        enable_large_batch_splitting=True,
        max_execution_batch_size=limit,
    )


@pytest.mark.parametrize(
    ("sizes", "batches"),
    [
        ([4], [[4]]),
        ([5], [[4], [1]]),
        ([12], [[4], [4], [4]]),
        ([3, 1], [[3, 1]]),
        ([3, 2], [[3, 1], [1]]),
        ([1, 10], [[1, 3], [4], [3]]),
        ([4, 5, 3], [[4], [4], [1, 3]]),
    ],
)
def test_large_request_is_split_and_fills_the_open_batch_first(scheduler, sizes, batches):
    assert ran(scheduler, split(4), sizes) == batches


def test_pieces_have_their_rows_in_order(scheduler):
    seen = []

    def note(tasks, now_s):
        seen.append([task.feeds["x"].tolist() for task in tasks])
        end(tasks, now_s)

    queue = scheduler.add(split(4), note)
    with scheduler.held():
        tasks = [scheduler.schedule(queue, rows(1), 1)]
        tasks.append(scheduler.schedule(queue, rows(2, 3, 4, 5, 6), 5))
    wait_for(tasks)
    assert seen == [[[1], [2, 3, 4]], [[5, 6]]]


FULL = "The batch scheduling queue to which this task was submitted is full; "


@pytest.mark.parametrize(
    ("enqueued", "sizes", "next_size", "text"),
    [
        (1, [1], 3, None),
        (1, [1], 4, "currently 1 batches enqueued and max_enqueued_batches is 1"),
        (1, [4], 1, "currently 1 batches enqueued and max_enqueued_batches is 1"),
        (2, [4], 4, None),
        (2, [4, 3], 1, None),
        (2, [4, 3], 2, "currently 2 batches enqueued and max_enqueued_batches is 2"),
    ],
)
def test_request_that_needs_one_batch_too_many_is_refused(
    scheduler, enqueued, sizes, next_size, text
):
    options = BatchOptions(max_batch_size=4, max_enqueued_batches=enqueued)
    assert_last_is_refused(scheduler, options, sizes, next_size, text)


@pytest.mark.parametrize(
    ("sizes", "next_size", "capacity", "counts"),
    [
        ([], 8, 8, None),
        ([], 9, 8, (1, 0)),
        ([1], 7, 7, None),
        ([1], 8, 7, (1, 1)),
        ([4], 5, 4, (1, 4)),
        ([5], 3, 3, None),
        ([5], 4, 3, (2, 1)),
    ],
)
def test_request_beyond_the_capacity_is_refused_where_it_could_be_split(
    scheduler, sizes, next_size, capacity, counts
):
    text = counts and (
        f"task size is {next_size} but scheduling capacity is only {capacity} "
        f"(num_enqueued_batches={counts[0]}, max_enqueued_batches=2, "
        f"open_batch_size={counts[1]}, max_execution_batch_size=4)"
    )
    assert_last_is_refused(scheduler, split(4, enqueued=2), sizes, next_size, text)


def assert_last_is_refused(scheduler, options, sizes, next_size, text):
    recorder = Recorder()
    queue, tasks = scheduler.add(options, recorder), []
    with scheduler.held():
        tasks.extend(scheduler.schedule(queue, rows(*range(size)), size) for size in sizes)
        if text is None:
            tasks.append(scheduler.schedule(queue, rows(*range(next_size)), next_size))
        else:
            found = refusal(scheduler.schedule, queue, rows(*range(next_size)), next_size)
            assert found == (Code.UNAVAILABLE, FULL + text)
    wait_for(tasks)
    # Nothing of what was refused has run.
    assert sum(map(sum, recorder.batches)) == sum(sizes) + (0 if text else next_size)


def test_batch_that_is_not_full_waits_for_its_timeout(scheduler, clock):
    recorder = Recorder()
    slow = scheduler.add(BatchOptions(max_batch_size=4, batch_timeout_s=5.0), recorder)
    quick = scheduler.add(BatchOptions(), end)

    def look():  # the thread has looked at every queue once the second one is done
        for _ in range(2):
            wait_for([scheduler.schedule(quick, {}, 1)])

    first = scheduler.schedule(slow, rows(1), 1)
    clock.now += 4.5
    second = scheduler.schedule(slow, rows(2), 1)
    look()
    assert recorder.batches == []
    clock.now += 0.5  # five seconds after the first
    look()
    wait_for([first, second])
    assert recorder.batches == [[1, 1]]
    assert recorder.times == [105.0]


@pytest.mark.parametrize("sizes", [[4], [2, 2], [3, 2, 2]])
def test_full_batch_does_not_wait(scheduler, sizes):
    options = BatchOptions(max_batch_size=4, batch_timeout_s=3600.0)
    assert sum(map(sum, ran(scheduler, options, sizes))) == sum(sizes)


def test_timeout_of_centuries_is_none(scheduler):
    recorder = Recorder()
    queue = scheduler.add(BatchOptions(max_batch_size=2, batch_timeout_s=9e12), recorder)
    tasks = [scheduler.schedule(queue, rows(1), 1) for _ in range(2)]
    wait_for(tasks)
    assert recorder.batches == [[1, 1]]


def test_queues_take_turns(scheduler):
    order, tasks = [], []

    def note(name):
        return lambda batch, now_s: (order.append(name), end(batch, now_s))

    options = BatchOptions(max_batch_size=1)
    queues = [scheduler.add(options, note(name)) for name in "abc"]
    with scheduler.held():
        asked = [*queues, queues[0], queues[0], queues[1]]
        tasks.extend(scheduler.schedule(queue, rows(1), 1) for queue in asked)
    wait_for(tasks)
    assert sorted(order[:3]) == ["a", "b", "c"]
    assert sorted(order[3:]) == ["a", "a", "b"]


def test_idle_threads_share_what_waits():
    both = threading.Barrier(2)

    def meet(tasks, now_s):
        both.wait(PATIENCE_S)
        end(tasks, now_s)

    scheduler = BatchScheduler(2, "pair")
    wait_for([scheduler.schedule(scheduler.add(split(1), meet), rows(1, 2), 2)])
    scheduler.stop()


def test_stop_runs_what_waits_and_ends_the_threads(clock):
    scheduler, recorder = HeldScheduler(clock), Recorder()
    options = BatchOptions(max_batch_size=2, batch_timeout_s=3600.0)
    queue = scheduler.add(options, recorder)
    tasks = [
        scheduler.schedule(queue, rows(1), 1),
        scheduler.schedule(queue, rows(1, 2), 2),
        scheduler.schedule(queue, rows(1), 1),
    ]
    scheduler.stop()
    wait_for(tasks)
    assert recorder.batches == [[1], [2], [1]]
    assert not [each for each in threading.enumerate() if each.name == "held_0"]


# Arrays


@pytest.mark.parametrize(
    ("feeds", "text"),
    [
        ({"x": np.int64(1)}, "Batching Run() input tensors must have at least one dimension"),
        ({"x": np.int64([1]), "y": np.int64(1)},
         "Batching Run() input tensors must have at least one dimension"),
        ({"x": np.int64([1]), "y": np.int64([1, 2])},
         "Batching Run() input tensors must have equal 0th-dimension size"),
        ({"x": np.int64([])}, "Batching Run() input tensors must have at least one row"),
    ],
)  # fmt: skip
def test_inputs_that_have_no_batch_size_are_refused(feeds, text):
    assert refusal(row_count, feeds) == (Code.INVALID_ARGUMENT, text)


def test_padding_repeats_the_first_row_of_the_last_request():
    merged = merge_feeds([rows(1, 2), rows(3, 4)], 2, equal_lengths=False)
    assert merged["x"].tolist() == [1, 2, 3, 4, 3, 3]


def test_lone_request_without_padding_is_not_copied():
    feeds = rows(1, 2)
    assert merge_feeds([feeds], 0, equal_lengths=True)["x"] is feeds["x"]
    assert cut_feeds(feeds, [2]) == [feeds]


def test_inputs_of_other_shapes_are_refused_unless_they_may_be_filled_up():
    parts = [{"x": np.int64([[1, 2]])}, {"x": np.int64([[3, 4, 5], [6, 7, 8]])}]
    code, text = refusal(merge_feeds, parts, 0, equal_lengths=False)
    assert code is Code.FAILED_PRECONDITION
    assert text.startswith("Tensors with name 'x' from different tasks have different shapes")
    merged = merge_feeds(parts, 0, equal_lengths=True)
    assert merged["x"].tolist() == [[1, 2, 1], [3, 4, 5], [6, 7, 8]]


def test_every_axis_is_filled_up_also_of_strings_and_of_nothing():
    one = np.array([[[b"a", b"b"]]], object)
    parts = [{"x": one}, {"x": np.full((1, 3, 1), b"c", object)}]
    merged = merge_feeds(parts, 1, equal_lengths=True)["x"]
    assert merged.shape == (3, 3, 2)
    assert merged[0].tolist() == [[b"a", b"b"], [b"a", b"a"], [b"a", b"a"]]
    empty = [{"x": np.zeros((1, 0), np.int64)}, {"x": np.int64([[7]])}]
    assert merge_feeds(empty, 0, equal_lengths=True)["x"].tolist() == [[0], [7]]


def test_inputs_of_other_ranks_are_refused():
    parts = [{"x": np.int64([[1]])}, {"x": np.int64([1])}]
    code, _ = refusal(merge_feeds, parts, 0, equal_lengths=True)
    assert code is Code.INVALID_ARGUMENT


def test_outputs_are_cut_to_the_rows_of_each_request():
    outputs = [np.arange(5), np.arange(10).reshape(5, 2)]
    (first, second) = split_outputs(outputs, [1, 3], 1)
    assert [each.tolist() for each in first] == [[0], [[0, 1]]]
    assert [each.tolist() for each in second] == [[1, 2, 3], [[2, 3], [4, 5], [6, 7]]]


@pytest.mark.parametrize(
    ("output", "text"),
    [
        (np.int64(3), "Batched output tensor has 0 dimensions"),
        (np.arange(3), "Batched output tensor's 0th dimension does not equal the sum of the 0th "
         "dimension sizes of the input tensors"),
        (np.arange(5), "Batched output tensor's 0th dimension does not equal the sum of the 0th "
         "dimension sizes of the input tensors"),
    ],
)  # fmt: skip
def test_outputs_without_a_row_for_each_row_are_refused(output, text):
    found = refusal(split_outputs, [np.arange(4), output], [1, 2], 1)
    assert found == (Code.FAILED_PRECONDITION, text)


# The servable


class Calculator:
    """Has y = 10 x and z = -x; refuses rows of 13, and breaks on 666.

    Attributes:
        runs: (x, fetches) of every run.
        timeouts: what each was told of time.
        closed: whether it was closed.
    """

    def __init__(self):
        both = protos.from_text(
            "SignatureDef",
            """
            inputs { key: "x" value { name: "x" } }
            outputs { key: "y" value { name: "y" } } outputs { key: "z" value { name: "z" } }
            """,
        )
        self.signatures = {"serving_default": both, "twin": both}
        self.runs, self.timeouts, self.closed = [], [], False

    def run(self, feeds, fetches, *, call=None):
        x = feeds["x"]
        self.runs.append((x.tolist(), list(fetches)))
        self.timeouts.append(call and call.deadline_s)
        if 13 in x:
            raise ServingError(Code.OUT_OF_RANGE, "thirteen")
        if 666 in x:
            raise ZeroDivisionError("by zero")
        values = {"y": 10 * x, "z": -x}
        return [values[name] for name in fetches]

    def close(self):
        self.closed = True


@pytest.fixture
def calculator():
    return Calculator()


@pytest.fixture
def metrics():
    return Metrics()


def call_within(timeout_s):
    return Call.within(timeout_s, Ledger(1).account("c"))


def batching(calculator, scheduler, metrics, **options):
    return BatchingServable(calculator, scheduler, BatchOptions(**options), metrics)


def together(servable, scheduler, requests, meanwhile=lambda: None, timeouts=()):
    """Return what each request got, all of them queued before the first runs."""

    def ask(x, timeout_s):
        try:
            y, z = servable.run(rows(*x), ["y", "z"], call=call_within(timeout_s))
        except ServingError as error:
            return error.code, error.message
        assert z.tolist() == [-value for value in x]
        return y.tolist()

    with ThreadPoolExecutor(len(requests)) as pool:
        with scheduler.held():
            futures = []
            for x, timeout_s in zip(requests, timeouts or [None] * len(requests), strict=True):
                futures.append(pool.submit(ask, x, timeout_s))
                assert scheduler.queued.acquire(timeout=PATIENCE_S)
            meanwhile()
        return [future.result(PATIENCE_S) for future in futures]


def values(metrics):
    """Return the counts and sums on the page: (name, labels) -> value."""
    found = {}
    for line in metrics.page().splitlines():
        if not line.startswith("#") and "_bucket{" not in line:
            key, _, value = line.rpartition(" ")
            found[key.removeprefix(":tensorflow:serving:batching_session:")] = int(value)
    return found


def test_requests_run_as_one_and_each_gets_its_own_rows(scheduler, calculator, metrics):
    servable = batching(calculator, scheduler, metrics)
    assert together(servable, scheduler, [[1], [2, 3], [4]]) == [[10], [20, 30], [40]]
    assert calculator.runs == [([1, 2, 3, 4], ["y", "z"])]


@pytest.mark.parametrize("fetches", [["z", "y"], ["y", "z"], ["y", "z", "y"]])
def test_outputs_come_in_the_order_they_were_asked_for(scheduler, calculator, metrics, fetches):
    found = batching(calculator, scheduler, metrics).run(rows(1, 2), fetches)
    expected = {"y": [10, 20], "z": [-1, -2]}
    assert [each.tolist() for each in found] == [expected[name] for name in fetches]


def test_split_request_is_put_together_again(scheduler, calculator, metrics):
    servable = batching(
        calculator, scheduler, metrics,
        max_batch_size=9, enable_large_batch_splitting=True, max_execution_batch_size=2,
    )  # fmt: skip
    assert together(servable, scheduler, [[1], [2, 3, 4, 5]]) == [[10], [20, 30, 40, 50]]
    assert [x for x, _ in calculator.runs] == [[1, 2], [3, 4], [5]]


def test_error_of_one_piece_is_that_of_the_request(scheduler, calculator, metrics):
    servable = batching(
        calculator, scheduler, metrics,
        enable_large_batch_splitting=True, max_execution_batch_size=2,
    )  # fmt: skip
    found = together(servable, scheduler, [[1, 2, 3, 13], [4]])
    assert found == [(Code.OUT_OF_RANGE, "thirteen"), [40]]


def test_only_bad_requests_of_a_batch_fail(scheduler, calculator, metrics):
    servable = batching(calculator, scheduler, metrics)
    found = together(servable, scheduler, [[1], [13], [2, 3]])
    assert found == [[10], (Code.OUT_OF_RANGE, "thirteen"), [20, 30]]
    assert [x for x, _ in calculator.runs] == [[1, 13, 2, 3], [1], [13], [2, 3]]
    assert values(metrics)["wrapped_run_count{}"] == 4
    assert values(metrics)['queuing_latency_count{thread_pool_name=""}'] == 3


def test_bad_request_that_is_alone_runs_once(scheduler, calculator, metrics):
    servable = batching(calculator, scheduler, metrics)
    assert together(servable, scheduler, [[13]]) == [(Code.OUT_OF_RANGE, "thirteen")]
    assert len(calculator.runs) == 1


def test_unexpected_error_is_an_internal_one_and_the_thread_lives(scheduler, calculator, metrics):
    servable = batching(calculator, scheduler, metrics)
    broken = (Code.INTERNAL, "ZeroDivisionError: by zero")
    assert together(servable, scheduler, [[666], [1]]) == [broken, broken]
    assert together(servable, scheduler, [[2]]) == [[20]]


@pytest.mark.parametrize("fetches", [["y"], ["z"]])
def test_part_of_a_signature_runs_by_itself(scheduler, calculator, metrics, fetches):
    servable = batching(calculator, scheduler, metrics, max_batch_size=1)
    servable.run(rows(1, 2), fetches, call=Call(Ledger(1).account("c"), 7.0))
    assert calculator.runs == [([1, 2], fetches)]
    assert calculator.timeouts == [7.0]
    assert values(metrics) == {}


def test_request_larger_than_a_batch_is_refused(scheduler, calculator, metrics):
    servable = batching(calculator, scheduler, metrics, max_batch_size=2)
    assert together(servable, scheduler, [[1, 2]]) == [[10, 20]]
    assert refusal(servable.run, rows(1, 2, 3), ["y", "z"]) == (
        Code.INVALID_ARGUMENT,
        "Task size 3 is larger than maximum input batch size 2",
    )


def test_close_removes_the_queues_and_frees_the_servable(scheduler, calculator, metrics):
    servable = batching(calculator, scheduler, metrics)
    assert len(scheduler._queues) == 1  # of two signatures with the same tensors
    servable.close()
    assert not scheduler._queues
    assert calculator.closed


def test_signatures_are_those_of_the_servable(scheduler, calculator, metrics):
    assert batching(calculator, scheduler, metrics).signatures is calculator.signatures


def test_long_row_does_not_make_the_others_as_long_without_a_limit(
    scheduler, calculator, metrics, monkeypatch
):
    monkeypatch.setattr("tfserve_kit.embedded.batching.MOST_FILLED_BYTES", 10_000)
    arrays = [np.zeros((1, size), np.float32) for size in (1, 1, 2_000)]
    with pytest.raises(ServingError, match="Padding the batch would take 15992 bytes"):
        merge_feeds([{"x": array} for array in arrays], 0, equal_lengths=True)
    with pytest.raises(ServingError, match="Padding the batch would take 72000 bytes"):
        merge_feeds([{"x": arrays[2]}], 9, equal_lengths=False)
    assert len(merge_feeds([{"x": arrays[0]}], 9, equal_lengths=False)["x"]) == 10


def asked_with(servable, scheduler, requests):
    """Return what each (values, account) got, all queued before the first runs."""

    def ask(x, account):
        try:
            return servable.run({"x": x}, ["y", "z"], call=Call(account))[0].shape
        except ServingError as error:
            return error.code

    with ThreadPoolExecutor(len(requests)) as pool:
        with scheduler.held():
            futures = []
            for x, account in requests:
                futures.append(pool.submit(ask, x, account))
                assert scheduler.queued.acquire(timeout=PATIENCE_S)
        return [future.result(PATIENCE_S) for future in futures]


class Scales(Calculator):
    """Notes what an account holds while a batch runs."""

    def __init__(self, ledger):
        super().__init__()
        self.ledger, self.held = ledger, []

    def run(self, feeds, fetches, *, call=None):
        self.held.append((len(feeds["x"]), self.ledger.held_bytes))
        return super().run(feeds, fetches, call=call)


def test_each_request_is_charged_its_part_of_a_batch_until_that_has_run(scheduler, metrics):
    ledger = Ledger(1 << 30)
    scales = Scales(ledger)
    servable = batching(scales, scheduler, metrics, pad_variable_length_inputs=True)
    short, long = np.ones((2, 10), np.float32), np.ones((3, 50_000), np.float32)
    requests = [(short, ledger.account("a")), (long, ledger.account("b"))]
    assert asked_with(servable, scheduler, requests) == [(2, 50_000), (3, 50_000)]
    assert scales.held == [(5, 5 * 50_000 * 4)]
    assert ledger.held_bytes == 0


def test_request_without_room_for_its_part_runs_alone_and_the_others_too(scheduler, metrics):
    ledger, tight = Ledger(1 << 30), Ledger(200_000)
    scales = Scales(ledger)
    servable = batching(scales, scheduler, metrics, pad_variable_length_inputs=True)
    short, long = np.ones((2, 10), np.float32), np.ones((3, 50_000), np.float32)
    requests = [(long, ledger.account("a")), (short, tight.account("b"))]
    assert asked_with(servable, scheduler, requests) == [(3, 50_000), (2, 10)]
    assert scales.held == [(3, 0), (2, 0)]
    assert (ledger.held_bytes, tight.held_bytes) == (0, 0)


def test_padding_is_charged_to_the_request_whose_row_it_repeats(scheduler, metrics):
    ledger = Ledger(1 << 30)
    scales = Scales(ledger)
    sizes = {"max_batch_size": 8, "allowed_batch_sizes": (8,)}
    servable = batching(scales, scheduler, metrics, **sizes)
    rows_ = np.ones((1, 50_000), np.float32)
    assert asked_with(servable, scheduler, [(rows_, ledger.account("a"))]) == [(1, 50_000)]
    assert scales.held == [(8, 8 * 50_000 * 4)]
    tight = Ledger(1_000_000).account("b")
    assert asked_with(servable, scheduler, [(rows_, tight)]) == [Code.RESOURCE_EXHAUSTED]


def test_outputs_of_pieces_are_charged_before_they_are_put_together(scheduler, calculator, metrics):
    options = {"max_execution_batch_size": 2, "enable_large_batch_splitting": True}
    servable = batching(calculator, scheduler, metrics, **options)
    account, tight = Ledger(1 << 30).account("a"), Ledger(1_000_000).account("b")
    x = np.ones((4, 50_000), np.float32)
    assert asked_with(servable, scheduler, [(x, account)]) == [(4, 50_000)]
    assert account.held_bytes == 2 * x.nbytes  # y and z
    assert asked_with(servable, scheduler, [(x, tight)]) == [Code.RESOURCE_EXHAUSTED]


def test_long_string_that_would_fill_up_others_counts_each_time():
    parts = [{"x": np.array([[b"s" * 10_000]], object)}, {"x": np.full((1, 1000), b"", object)}]
    first, second = merge_costs(parts, 2)
    assert first == 1000 * 8 + 999 * 10_000
    assert second == 3 * 1000 * 8
    assert merge_costs(parts[:1], 5) == [6 * 8 + 5 * 10_000]
    merged = merge_feeds([{"x": np.zeros((1, 0), object)}, parts[0]], 0, equal_lengths=True)
    assert merged["x"].tolist() == [[b""], [b"s" * 10_000]]


# Timeouts

EXPIRED = (Code.RESOURCE_EXHAUSTED, "Run() timeout exceeded while waiting in batching queue")


@pytest.mark.parametrize(
    ("timeouts", "waited_s", "runs"),
    [
        ([5.0], 4.5, True),
        ([5.0], 5.0, False),
        ([5.0], 6.0, False),
        ([None], 1e9, True),
        ([5.0, 2.0], 4.0, True),  # one may still wait: the whole batch runs
        ([2.0, 5.0], 4.0, True),
        ([2.0, None], 4.0, True),
        ([2.0, 5.0], 5.0, False),
    ],
)
def test_batch_nobody_waits_for_does_not_run(
    scheduler, calculator, metrics, clock, timeouts, waited_s, runs
):
    servable = batching(calculator, scheduler, metrics)

    def wait():
        clock.now += waited_s

    requests = [[number] for number in range(len(timeouts))]
    found = together(servable, scheduler, requests, wait, timeouts)
    assert found == ([[10 * x] for (x,) in requests] if runs else [EXPIRED] * len(requests))
    assert len(calculator.runs) == runs
    assert values(metrics).get("wrapped_run_count{}", 0) == runs


@pytest.mark.parametrize("timeout_s", [0.0, -1.0])
def test_request_that_comes_too_late_does_not_enter_the_queue(
    scheduler, calculator, metrics, timeout_s
):
    servable = batching(calculator, scheduler, metrics)
    assert refusal(servable.run, rows(1), ["y", "z"], call=call_within(timeout_s)) == EXPIRED
    assert calculator.runs == []
    assert list(values(metrics)) == ["input_batch_size_sum{}", "input_batch_size_count{}"]


# Metrics


def test_metrics_tell_sizes_padding_waiting_and_runs(scheduler, calculator, metrics, clock):
    servable = batching(
        calculator, scheduler, metrics, max_batch_size=8, allowed_batch_sizes=(4, 8)
    )

    def wait():
        clock.now += 0.25

    together(servable, scheduler, [[1], [2, 3]], wait)
    assert calculator.runs == [([1, 2, 3, 2], ["y", "z"])]
    assert values(metrics) == {
        "input_batch_size_sum{}": 3,
        "input_batch_size_count{}": 2,
        'padding_size_sum{execution_batch_size="4"}': 1,
        'padding_size_count{execution_batch_size="4"}': 1,
        "processed_batch_size_sum{}": 4,
        "processed_batch_size_count{}": 1,
        'queuing_latency_sum{thread_pool_name=""}': 500_000,
        'queuing_latency_count{thread_pool_name=""}': 2,
        "wrapped_run_count{}": 1,
    }


def test_task_without_timeout_never_expires(scheduler):
    queue = scheduler.add(BatchOptions(), end)
    (task,) = scheduler.schedule(queue, rows(1), 1).tasks
    assert task.deadline_s == math.inf
    (task,) = scheduler.schedule(queue, rows(1), 1, call_within(5.0)).tasks
    assert (task.queued_s, task.deadline_s) == (100.0, pytest.approx(105.0, abs=0.1))
