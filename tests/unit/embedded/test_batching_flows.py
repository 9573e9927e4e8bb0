"""Many requests of a batched model at once, at random times: each gets one answer, and no thread.

They come as flows into an event loop; clients leave, deadlines pass and versions are unloaded
meanwhile.
"""

import asyncio
import random
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfserve_kit import protos
from tfserve_kit.embedded.batching import BatchingServable, BatchOptions, BatchScheduler
from tfserve_kit.embedded.front import EventLoop
from tfserve_kit.embedded.handlers import Handlers, ModelRef
from tfserve_kit.embedded.lanes import Lanes
from tfserve_kit.embedded.ledger import Call, Ledger
from tfserve_kit.embedded.manager import Lease
from tfserve_kit.embedded.metrics import Metrics
from tfserve_kit.embedded.running import Runner, Work
from tfserve_kit.embedded.status import Code, ServingError

PATIENCE_S = 30.0
EXPECTED = {Code.UNAVAILABLE, Code.CANCELLED, Code.RESOURCE_EXHAUSTED, Code.OUT_OF_RANGE}
SIGNATURE = protos.from_text(
    "SignatureDef",
    """
    inputs { key: "x" value { name: "x:0" dtype: DT_INT64 } }
    outputs { key: "y" value { name: "y:0" dtype: DT_INT64 } }
    """,
)


class Doubler:
    """Has y = 2 x, slowly now and then; refuses rows of 13.

    Attributes:
        rows: all that it was given.
        closed: whether it was closed; nothing may run from then on.
    """

    def __init__(self, chance=None):
        self.signatures = {"serving_default": SIGNATURE}
        self.chance, self.rows, self.closed = chance or random.Random(0), [], False

    def run(self, feeds, fetches, *, call=None):
        assert not self.closed
        if self.chance.random() < 0.3:
            time.sleep(0.002)
        assert not self.closed
        (x,) = feeds.values()
        self.rows += x.tolist()
        if 13 in x:
            raise ServingError(Code.OUT_OF_RANGE, "thirteen")
        return [2 * x]

    def close(self):
        self.closed = True


class Lender:
    """Lends one version after another; an old one is closed when nobody has it any more."""

    def __init__(self, load):
        self._load, self._lock = load, threading.Lock()
        self.loaded, self._current, self._out = [], None, {}
        self.swap()

    def swap(self):
        with self._lock:
            old, self._current = self._current, self._load()
            self.loaded.append(self._current)
            self._out[self._current] = 0
            self._close_if_idle(old)

    def lease(self, model, version=None, label=None):
        with self._lock:
            servable = self._current
            self._out[servable] += 1
            return Lease(model, 1, servable, lambda: self._give_back(servable))

    def _give_back(self, servable):
        with self._lock:
            self._out[servable] -= 1
            self._close_if_idle(servable)

    def _close_if_idle(self, servable):
        if servable and servable is not self._current and not self._out[servable]:
            servable.close()

    @property
    def out(self):
        return sum(self._out.values())


class Asked(Work):
    """One request of a client that may leave, or wait for so long only."""

    def __init__(self, handlers, ledger, rows, timeout_s, answers):
        super().__init__(("m", len(rows)))
        self._handlers, self._rows, self._answers = handlers, rows, answers
        self.account, self.timeout_s = ledger.account("c"), timeout_s
        self.client = SimpleNamespace(has_left=False)

    def begin(self):
        client = self.client
        call = Call.within(self.timeout_s, self.account, lambda: client.has_left)
        inputs = {"x": np.int64(self._rows)}
        return self._handlers.predict(ModelRef("m"), "", inputs, call=call)

    def failed(self, error):
        assert error is not None
        return error

    def is_usual(self, result):
        return not isinstance(result, ServingError)

    def done(self, result):
        assert threading.current_thread().name == "front"
        self.account.close()
        if isinstance(result, ServingError):
            assert result.code in EXPECTED, result.message
        else:
            assert result.outputs["y"].tolist() == [2 * x for x in self._rows]
        self._answers.append((self, result))


class Place:
    """An event loop with a batched model, and what it counts.

    Attributes:
        answers: (request, result) of each answer.
        woken: how often the loop was woken from other threads.
        most_threads: how many threads there were at once.
    """

    def __init__(self, options, *, threads=2, chance=None):
        self.scheduler = BatchScheduler(threads, "batch")
        self.metrics, self.ledger = Metrics(), Ledger(1 << 30)
        self.doublers = []

        def load():
            self.doublers.append(Doubler(chance))
            return BatchingServable(self.doublers[-1], self.scheduler, options, self.metrics)

        self.lender = Lender(load)
        self.handlers = Handlers(self.lender, self.metrics)
        self.front = EventLoop()
        self.front.start()
        self.runner = Runner(self.front, Lanes(2), "test")
        self.answers, self.asked = [], []

    def ask(self, rows, *, timeout_s=None, here=True):
        """Have a request made in the loop."""
        work = Asked(self.handlers, self.ledger, rows, timeout_s, self.answers)
        self.asked.append(work)
        lane = self.runner.lanes.predictions
        if here:
            self.front.post([lambda: self.runner.do_here(work, lane)])
        else:
            self.front.post([lambda: self.runner.do_later(work, lane, "group")])
        return work

    def wait(self):
        """Wait until all are answered, and a little longer: no answer may come twice."""
        end_s = time.monotonic() + PATIENCE_S
        while len(self.answers) < len(self.asked):
            assert time.monotonic() < end_s, f"{len(self.answers)} of {len(self.asked)} answered"
            time.sleep(0.002)
        self.front.do(asyncio.sleep(0.005))
        assert {id(work) for work, _ in self.answers} == set(map(id, self.asked))
        assert len(self.answers) == len(self.asked)
        assert (self.lender.out, self.ledger.held_bytes) == (0, 0)

    def close(self):
        self.runner.end()
        self.front.stop()
        self.scheduler.stop()


@pytest.fixture
def placed():
    places = []

    def make(*arguments, **options):
        places.append(Place(*arguments, **options))
        return places[-1]

    yield make
    for place in places:
        place.close()


def codes(place):
    return [getattr(result, "code", Code.OK) for _, result in place.answers]


def test_a_thousand_that_wait_take_no_thread_and_wake_the_loop_once(placed, monkeypatch):
    place = placed(BatchOptions(max_batch_size=1000, batch_timeout_s=60.0), threads=1)
    before = threading.active_count()
    for number in range(999):
        place.ask([number + 100])
    place.front.do(asyncio.sleep(0))
    assert threading.active_count() == before
    assert place.answers == []
    woken, wake = [], place.front.loop.call_soon_threadsafe
    place.ask([7])  # fills the batch
    counting = type("Loop", (), {"__getattr__": lambda _, name: getattr(loop, name)})()
    loop = place.front.loop
    counting.call_soon_threadsafe = lambda call: woken.append(call) or wake(call)
    place.front.loop = counting
    place.wait()
    place.front.loop = loop
    assert codes(place) == [Code.OK] * 1000
    assert len(woken) <= 2  # by this thread for the last request, and by the batch
    assert len(place.doublers[0].rows) == 1000
    assert threading.active_count() == before


def test_request_whose_client_has_left_does_not_run(placed):
    place = placed(BatchOptions(max_batch_size=3, batch_timeout_s=60.0))
    gone, first = place.ask([1]), place.ask([2])
    place.front.do(asyncio.sleep(0))
    gone.client.has_left = True
    last = place.ask([3])
    place.wait()
    assert place.doublers[0].rows == [2, 3]
    outcome = dict(place.answers)
    assert outcome[gone].code is Code.CANCELLED
    assert outcome[first].outputs["y"].tolist() == [4]
    assert outcome[last].outputs["y"].tolist() == [6]


def test_batch_that_all_clients_have_left_does_not_run(placed):
    place = placed(BatchOptions(max_batch_size=2, batch_timeout_s=60.0))
    first = place.ask([1])
    first.client.has_left = True
    place.ask([2]).client.has_left = True
    place.wait()
    assert codes(place) == [Code.CANCELLED] * 2
    assert place.doublers[0].rows == []


def test_requests_that_wait_are_counted_unless_they_are_small(placed):
    place = placed(BatchOptions(max_batch_size=3000, batch_timeout_s=60.0))
    place.ask([1] * 9)
    place.front.do(asyncio.sleep(0))
    assert place.ledger.held_bytes == 0
    for _ in range(3):
        place.ask([1] * 800)
    place.front.do(asyncio.sleep(0))
    assert place.ledger.held_bytes == 3 * 800 * 8
    place.ask([1] * (3000 - 9 - 3 * 800))
    place.wait()
    assert place.ledger.held_bytes == 0


def test_version_is_not_unloaded_while_a_request_of_it_waits(placed):
    place = placed(BatchOptions(max_batch_size=2, batch_timeout_s=60.0))
    place.ask([1])
    place.front.do(asyncio.sleep(0))
    place.lender.swap()
    assert not place.doublers[0].closed
    queue = next(iter(place.lender.loaded[0]._queues.values()))
    with place.scheduler._changed:
        queue.batches[0].due_s = 0.0
        place.scheduler._changed.notify_all()
    place.wait()
    assert codes(place) == [Code.OK]
    assert place.doublers[0].closed


REQUESTS = st.lists(
    st.tuples(
        st.lists(st.sampled_from([1, 2, 3, 13]), min_size=1, max_size=5),
        st.sampled_from([None, None, 0.0, 0.001, 5.0]),  # how long somebody waits
        st.booleans(),  # begins in the loop
        st.sampled_from(["", "", "", "leaves", "swap", "pause"]),
    ),
    max_size=40,
)
OPTIONS = st.builds(
    BatchOptions,
    max_batch_size=st.integers(1, 6),
    batch_timeout_s=st.sampled_from([0.0, 0.0005, 0.003]),
    max_enqueued_batches=st.integers(1, 20),
    enable_large_batch_splitting=st.booleans(),
    max_execution_batch_size=st.just(1),
)


@settings(max_examples=60, deadline=None)
@given(requests=REQUESTS, options=OPTIONS, threads=st.integers(1, 3), seed=st.integers(0, 99))
def test_every_request_gets_one_answer_whatever_happens_meanwhile(requests, options, threads, seed):
    before = threading.active_count()
    place = Place(options, threads=threads, chance=random.Random(seed))
    EXPECTED.add(Code.INVALID_ARGUMENT)  # larger than a batch
    try:
        for rows, timeout_s, here, event in requests:
            work = place.ask(rows, timeout_s=timeout_s, here=here)
            if event == "leaves":
                work.client.has_left = True
            elif event == "swap":
                place.lender.swap()
            elif event == "pause":
                time.sleep(0.001)
        place.wait()
        old = [each for each in place.doublers[:-1] if not each.closed]
        assert old == []
    finally:
        EXPECTED.discard(Code.INVALID_ARGUMENT)
        place.close()
    end_s = time.monotonic() + PATIENCE_S
    while threading.active_count() > before:
        assert time.monotonic() < end_s
        time.sleep(0.002)


def test_thousands_of_requests_from_several_threads_are_all_answered(placed):
    place = placed(BatchOptions(max_batch_size=16, max_enqueued_batches=4), threads=3)
    chance = random.Random(7)
    times = [chance.choice([None, 0.002, 1.0]) for _ in range(3000)]

    def client(numbers):
        for number in numbers:
            work = place.ask([number % 12 + 1], timeout_s=times[number], here=number % 3 > 0)
            if number % 17 == 0:
                work.client.has_left = True
            if number % 500 == 0:
                place.lender.swap()
            if number % 20 == 0:
                time.sleep(0.001)

    clients = [threading.Thread(target=client, args=(range(n, 3000, 3),)) for n in range(3)]
    for each in clients:
        each.start()
    for each in clients:
        each.join()
    place.wait()
    found = codes(place)
    assert found.count(Code.OK) > 100
    assert all(each.closed for each in place.doublers[:-1])


def test_requests_that_wait_when_the_loop_ends_give_back_what_they_held():
    place = Place(BatchOptions(max_batch_size=1000, batch_timeout_s=60.0))
    for number in range(10):
        place.ask([number + 1])
    place.front.do(asyncio.sleep(0))
    assert place.lender.out == 10
    place.asked.clear()
    place.close()  # the scheduler runs what waits; nobody is there to be told
    assert place.doublers[0].rows == list(range(1, 11))
    assert place.lender.out == 0
    assert place.answers == []
