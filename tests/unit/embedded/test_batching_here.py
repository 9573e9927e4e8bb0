"""Batches that the event loop's thread runs itself: the same as in a thread of the scheduler."""

import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.embedded.test_batching import (
    PATIENCE_S,
    Calculator,
    HandClock,
    rows,
    values,
    wait_for,
)
from tests.unit.embedded.test_grpc_surface import Adding, Repeating, adding
from tests.unit.embedded.test_grpc_transport import PREDICT, answers_at_once, echoing, raw
from tfserve_kit.embedded.batching import BatchingServable, BatchOptions, BatchScheduler
from tfserve_kit.embedded.kinds import MEASUREMENTS, CallKind
from tfserve_kit.embedded.ledger import Ledger
from tfserve_kit.embedded.manager import Lease
from tfserve_kit.embedded.metrics import Metrics
from tfserve_kit.embedded.status import Code, ServingError

BOTH = ["y", "z"]


class Place:
    """A batched calculator, its batches known to be short whatever this machine does meanwhile.

    Attributes:
        is_known: unless this is unset.
    """

    def __init__(self, *, threads=1, **options):
        self.scheduler, self.is_known = BatchScheduler(threads, "batch", clock=HandClock()), True
        self.calculator, self.metrics, self.ledger = Calculator(), Metrics(), Ledger(1 << 30)
        options = BatchOptions(**options)
        self.servable = BatchingServable(self.calculator, self.scheduler, options, self.metrics)
        (self.queue,) = self.servable._queues.values()

    def trust(self, least_s=1e-5):
        """Let batches of all magnitudes have taken so long in threads."""
        for magnitude in range(22):
            self.queue.kinds[magnitude] = CallKind(calls=MEASUREMENTS, least_s=least_s)

    def here(self, requests, fetches=BOTH):
        """Return what each request got that was run here: its outputs, or an error's code."""
        accounts = [self.ledger.account("c") for _ in requests]
        if self.is_known:
            self.trust()
        found = self.servable.run_here([rows(*x) for x in requests], fetches, accounts)
        assert self.ledger.held_bytes == 0
        return [
            each.code if isinstance(each, ServingError) else [value.tolist() for value in each]
            for each in found
        ]

    @contextmanager
    def busy(self):
        """Keep a thread at a batch of another queue."""
        entered, let_go = threading.Event(), threading.Event()

        def hold(tasks, now_s):
            entered.set()
            assert let_go.wait(PATIENCE_S)
            for task in tasks:
                task.end()

        waiting = self.scheduler.schedule(self.scheduler.add(BatchOptions(), hold), {}, 1)
        assert entered.wait(PATIENCE_S)
        yield
        let_go.set()
        wait_for([waiting])


@pytest.fixture
def placed():
    places = []

    def make(**options):
        places.append(Place(**options))
        return places[-1]

    yield make
    for place in places:
        place.scheduler.stop()


def test_requests_run_as_one_in_this_thread_and_each_gets_its_own_rows(placed):
    place = placed(max_batch_size=8, allowed_batch_sizes=(4, 8))
    assert place.here([[1], [2], [3]]) == [[[10], [-1]], [[20], [-2]], [[30], [-3]]]
    assert place.calculator.runs == [([1, 2, 3, 3], BOTH)]
    assert values(place.metrics) == {
        "input_batch_size_sum{}": 3,
        "input_batch_size_count{}": 3,
        'padding_size_sum{execution_batch_size="4"}': 1,
        'padding_size_count{execution_batch_size="4"}': 1,
        "processed_batch_size_sum{}": 4,
        "processed_batch_size_count{}": 1,
        'queuing_latency_sum{thread_pool_name=""}': 0,
        'queuing_latency_count{thread_pool_name=""}': 3,
        "wrapped_run_count{}": 1,
    }


@pytest.mark.parametrize("fetches", [["z", "y"], ["y", "z", "y"]])
def test_outputs_come_in_the_order_they_were_asked_for(placed, fetches):
    expected = {"y": [10], "z": [-1]}
    assert placed().here([[1], [2]], fetches)[0] == [expected[name] for name in fetches]


def test_only_bad_requests_of_a_batch_fail_and_each_is_run_once_more(placed):
    place = placed()
    found = place.here([[1], [13], [2]])
    assert found == [[[10], [-1]], Code.OUT_OF_RANGE, [[20], [-2]]]
    assert [x for x, _ in place.calculator.runs] == [[1, 13, 2], [1], [13], [2]]
    assert place.here([[1], [666]]) == [Code.INTERNAL] * 2


@pytest.mark.parametrize(
    ("options", "size", "requests", "count"),
    [
        ({"max_batch_size": 4}, 1, 3, 3),
        ({"max_batch_size": 4}, 1, 4, 4),
        ({"max_batch_size": 4}, 1, 9, 4),
        ({"max_batch_size": 5}, 2, 9, 2),
        ({"max_batch_size": 4}, 5, 9, 0),
        ({"max_batch_size": 4}, 3, 9, 1),
        ({"max_batch_size": 4}, 1, 1, 1),
        ({"max_batch_size": 4, "batch_timeout_s": 9}, 1, 3, 0),
        ({"max_batch_size": 4, "batch_timeout_s": 9}, 2, 2, 2),
        ({"max_batch_size": 5, "batch_timeout_s": 9}, 2, 2, 0),  # one more may fit
        ({"max_batch_size": 5, "batch_timeout_s": 9}, 2, 3, 2),
    ],
)
def test_as_many_run_as_are_a_batch_that_need_not_wait(placed, options, size, requests, count):
    place = placed(**options)
    assert len(place.here([[7] * size] * requests)) == count
    assert [len(x) for x, _ in place.calculator.runs] == [size * count] * bool(count)


@pytest.mark.parametrize(("size", "count"), [(1, 4), (2, 2), (3, 0), (5, 0)])
def test_what_would_be_split_is_not_run_here(placed, size, count):
    place = placed(max_batch_size=9, enable_large_batch_splitting=True, max_execution_batch_size=4)
    assert len(place.here([[7] * size] * 5)) == count


def test_part_of_a_signature_and_odd_requests_are_not_run_here(placed):
    place = placed()
    assert place.here([[1], [2]], ["y"]) == []
    assert place.here([[], []]) == []
    accounts = [place.ledger.account("c")] * 2
    assert not place.servable.run_here([{"x": np.int64(1)}] * 2, BOTH, accounts)
    assert not place.servable.run_here([{}] * 2, BOTH, accounts)
    assert not place.servable.run_here([{"x": np.ones((1, 20_000))}] * 2, BOTH, accounts)
    assert place.calculator.runs == []
    assert values(place.metrics) == {}


def compute_for_long():
    begun_s = time.thread_time()
    while time.thread_time() - begun_s < 0.02:
        pass


@pytest.mark.parametrize("take_long", [compute_for_long, lambda: time.sleep(0.1)])
def test_batches_run_here_once_they_were_short_in_threads_until_they_are_long(placed, take_long):
    place = placed()
    place.is_known = False
    for _ in range(MEASUREMENTS):
        assert place.here([[1], [2]]) == []
        place.servable.run(rows(1, 2), BOTH)
    (kind,) = place.queue.kinds.values()
    kind.least_s = min(kind.least_s, 1e-4)  # however busy this machine is
    assert len(place.here([[1], [2]])) == 2
    run = place.calculator.run

    def run_long(*arguments):
        take_long()
        return run(*arguments)

    place.calculator.run = run_long
    assert len(place.here([[1], [2]])) == 2  # one batch holds up the loop
    assert place.here([[1], [2]]) == []


def test_long_batches_and_those_that_failed_are_no_reason_to_run_others_here(placed):
    place = placed()
    place.is_known = False
    place.trust(least_s=0.01)
    assert place.here([[1], [2]]) == []
    place.queue.kinds.clear()
    for _ in range(MEASUREMENTS):
        with pytest.raises(ServingError):
            place.servable.run(rows(13), BOTH)
    assert place.queue.kinds == {}


def test_nothing_overtakes_what_waits_and_no_more_run_at_once_than_may(placed):
    place = placed(batch_timeout_s=9.0, max_batch_size=4)
    first = place.servable.begin(rows(1), BOTH)
    assert place.here([[2]] * 4) == []
    rest = place.servable.begin(rows(1, 1, 1), BOTH)
    wait_for([first, rest])
    assert len(place.here([[2]] * 4)) == 4
    with place.busy():
        assert place.here([[2]] * 4) == []
    assert len(place.here([[2]] * 4)) == 4
    place.scheduler.stop()
    assert place.here([[2]] * 4) == []


def test_batch_of_another_model_that_is_due_comes_first(placed):
    place = placed(threads=2)
    other = place.scheduler.add(BatchOptions(batch_timeout_s=9.0), lambda *_: None)
    with place.busy():
        assert len(place.here([[2]] * 2)) == 2  # a thread is free
        place.scheduler.schedule(other, rows(1), 1)
        assert len(place.here([[2]] * 2)) == 2  # it is not due
        other.batches[0].due_s = 0.0
        assert place.here([[2]] * 2) == []


def test_threads_wait_while_a_batch_runs_here_and_go_on_after_it(placed):
    place, waiting = placed(), []
    run = place.calculator.run

    def run_slowly(feeds, fetches):
        if threading.current_thread() is threading.main_thread():
            waiting.append(place.servable.begin(rows(5), BOTH))
            time.sleep(0.05)
            assert place.queue.batches  # the only thread is not to run it yet
        return run(feeds, fetches)

    place.calculator.run = run_slowly
    assert len(place.here([[1], [2]])) == 2
    wait_for(waiting)
    assert [value.tolist() for value in waiting[0].result()] == [[50], [-5]]


def test_scheduler_ends_while_a_batch_runs_here(placed):
    place = placed()
    run = place.calculator.run

    def stop_meanwhile(feeds, fetches):
        place.scheduler.stop()
        return run(feeds, fetches)

    place.calculator.run = stop_meanwhile
    assert len(place.here([[1], [2]])) == 2


@settings(max_examples=100, deadline=None)
@given(
    requests=st.lists(st.lists(st.integers(0, 14), min_size=2, max_size=2), min_size=2, max_size=9),
    padded=st.booleans(),
    most=st.integers(2, 8),
)
def test_each_request_gets_what_it_would_get_alone(requests, padded, most):
    sizes = {"allowed_batch_sizes": (most,)} if padded else {}
    place = Place(max_batch_size=most, **sizes)
    try:
        for each, found in zip(requests, place.here(requests), strict=False):
            expected = [[10 * value for value in each], [-value for value in each]]
            assert found == (Code.OUT_OF_RANGE if 13 in each else expected)
    finally:
        place.scheduler.stop()


@pytest.mark.parametrize("threads", [1, 2])
def test_thousands_from_several_threads_never_run_more_at_once_than_may(threads):
    place = Place(threads=threads, max_batch_size=8, max_enqueued_batches=10_000)
    running, most, lock, here = [0], [0], threading.Lock(), [0]
    run = place.calculator.run

    def count(feeds, fetches):
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0)
        found = run(feeds, fetches)
        with lock:
            running[0] -= 1
        return found

    place.calculator.run = count

    def others():
        for number in range(500):
            y, _ = place.servable.run(rows(number + 1000), BOTH)
            assert y.tolist() == [10 * number + 10_000]

    clients = [threading.Thread(target=others) for _ in range(4)]
    for each in clients:
        each.start()
    while any(each.is_alive() for each in clients) or not here[0]:
        place.trust()
        accounts = [place.ledger.account("c")] * 3
        found = place.servable.run_here([rows(1), rows(2), rows(3)], BOTH, accounts)
        here[0] += bool(found)
        assert [each[0].tolist() for each in found] == [[10], [20], [30]][: len(found)]
        time.sleep(0.0002)
    assert 1 <= most[0] <= threads
    place.scheduler.stop()
    assert place.scheduler._running == 0


# Over gRPC


@pytest.fixture
def repeating():
    place, scheduler = Repeating(), BatchScheduler(1, "batch")
    servable = BatchingServable(Adding(), scheduler, BatchOptions(max_batch_size=4), place.metrics)
    place.manager.lent = Lease("m", 4, servable, place.manager._give_back)
    place.servable = servable
    yield place
    scheduler.stop()


def asked_in_row(place, asked):
    accounts = [place.ledger.account("c") for _ in asked]
    answers = place.surface.repeat(list(zip(asked, accounts, strict=True)))
    assert place.manager.out == place.ledger.held_bytes == 0
    return answers


def test_alike_calls_of_a_batched_model_are_answered_as_if_each_were_alone(repeating):
    asked = [adding([number], [1]) for number in range(6)]
    alone = [repeating.surface.answer(PREDICT, content) for content in asked]
    assert not asked_in_row(repeating, asked)  # it is not yet known that they are short
    (queue,) = repeating.servable._queues.values()
    queue.kinds[(4 * 8).bit_length()] = CallKind(calls=MEASUREMENTS, least_s=0.0)
    assert asked_in_row(repeating, asked) == alone[:4]  # one batch
    repeating.servable._servable.faulty = 0
    codes = [answer.code for answer in asked_in_row(repeating, asked)]
    assert codes == [Code.ABORTED, Code.OK, Code.OK, Code.OK]
    page = repeating.metrics.page()
    assert 'request_count{model_name="m",status="ABORTED"} 1' in page
    assert 'request_count{model_name="m",status="OK"} 13' in page


def test_calls_that_have_to_wait_for_others_are_tried_as_a_row_once_for_all():
    rows_ = []

    def repeat(asked):
        rows_.append(len(asked))
        return ()

    with echoing(repeat=repeat) as server:
        messages = [b"%04d" % number for number in range(20)]
        kinds = server._shared.runner.kinds
        kinds.find = lambda name: CallKind(calls=MEASUREMENTS, least_s=0.0, waits=True)
        for _ in range(2):
            rows_.clear()
            found = answers_at_once(server, messages)
            assert found == [(message, b"0") for message in messages]
            assert rows_ == [20]
        rows_.clear()
        assert answers_at_once(server, [b"lone"]) == [(b"lone", b"0")]
        assert rows_ == [1]
        with raw(server) as other:  # with whose call it may be put together
            assert other.recv(1)
            assert answers_at_once(server, [b"lone"]) == [(b"lone", b"0")]
        assert rows_ == [1]
