"""Which requests are answered on the spot, and that all get their turn."""

import asyncio
import math
import os
import sys
import threading
import time
from functools import partial

import numpy as np
import pytest

from tests.unit.embedded.flows import flowing
from tfserve_kit.embedded import front as front_module
from tfserve_kit.embedded import running
from tfserve_kit.embedded.batching import Task, Waiting
from tfserve_kit.embedded.front import EventLoop
from tfserve_kit.embedded.kinds import (
    LONG_S,
    MEASUREMENTS,
    MOST_BYTES_ON_THE_SPOT,
    SHORT_S,
    CallKind,
    belongs_on_the_spot,
    computes_for_long,
)
from tfserve_kit.embedded.lanes import Lanes, processors
from tfserve_kit.embedded.running import CallKinds, Runner, Work
from tfserve_kit.embedded.status import Code, ServingError

SHORT = CallKind(calls=MEASUREMENTS, least_s=SHORT_S)
PATIENCE_S = 10.0


@pytest.mark.parametrize(
    ("kind", "size_bytes", "now_s", "on_the_spot"),
    [
        (None, 10, 0.0, False),
        (CallKind(), 10, 0.0, False),
        (SHORT, 10, 0.0, True),
        (SHORT, MOST_BYTES_ON_THE_SPOT, 0.0, True),
        (SHORT, MOST_BYTES_ON_THE_SPOT + 1, 0.0, False),
        (CallKind(calls=MEASUREMENTS - 1, least_s=SHORT_S), 10, 0.0, False),
        (CallKind(calls=1000, least_s=SHORT_S * 1.01), 10, 0.0, False),
        (CallKind(calls=1000, least_s=SHORT_S, long_until_s=5.0), 10, 4.9, False),
        (CallKind(calls=1000, least_s=SHORT_S, long_until_s=5.0), 10, 5.0, True),
    ],
)
def test_place_of_a_call(kind, size_bytes, now_s, on_the_spot):
    assert belongs_on_the_spot(kind, size_bytes, now_s) is on_the_spot


@pytest.mark.parametrize(
    ("calls", "needs_one"),
    [
        ([], False),
        ([(LONG_S, LONG_S)], True),
        ([(LONG_S * 0.99, LONG_S * 0.99)], False),
        ([(60.0, 0.001)], False),  # it only waits
        ([(1.0, 1.0)] + [(0.001, 0.001)] * 40, False),  # the first call compiles
        ([(0.001, 0.001), (1.0, 1.0)], True),
        ([(0.001, 0.001), (LONG_S, LONG_S)], False),
    ],
)
def test_who_needs_a_processor(calls, needs_one):
    kind = CallKind()
    for wall_s, processor_s in calls:
        kind.note(wall_s, processor_s, 0.0, on_the_spot=False)
    assert computes_for_long(kind) is needs_one
    assert not computes_for_long(None)


def test_others_in_between_do_not_make_a_short_call_long():
    kind = CallKind()
    for took_s in (0.1, SHORT_S / 2, 0.1, 0.1, 0.1):
        kind.note(took_s, 0.0, 0.0, on_the_spot=False)
    assert belongs_on_the_spot(kind, 10, 0.0)


@pytest.mark.parametrize(
    ("took", "calls"),
    [
        ((1.0, 0.0), 1),
        ((11 * SHORT_S, 11 * SHORT_S), 1),
        ((3 * SHORT_S, 3 * SHORT_S), 4),
        ((10 * SHORT_S, SHORT_S / 10), 4),
        ((2.5 * SHORT_S, SHORT_S), 9),
    ],
)
def test_call_that_turns_out_long_goes_back_to_the_threads_for_longer_each_time(took, calls):
    kind, now_s, pauses = CallKind(), 0.0, []
    for _ in range(13):
        for _ in range(MEASUREMENTS):
            kind.note(SHORT_S / 2, 0.0, now_s, on_the_spot=False)
        assert belongs_on_the_spot(kind, 10, now_s)
        for _ in range(calls):
            kind.note(*took, now_s, on_the_spot=True)
        assert not belongs_on_the_spot(kind, 10, now_s)
        pauses.append(kind.long_until_s - now_s)
        now_s = kind.long_until_s
        assert not belongs_on_the_spot(kind, 10, now_s)  # it has to prove itself again
    assert pauses == [*(2.0**n for n in range(-5, 6)), 60, 60]


def test_short_call_that_others_interrupt_now_and_then_stays():
    kind = CallKind(calls=MEASUREMENTS, least_s=SHORT_S)
    for number in range(3000):
        took_s = 100 * SHORT_S if number % 10 == 0 else SHORT_S / 4
        kind.note(took_s, SHORT_S / 4, 0.0, on_the_spot=True)
        assert belongs_on_the_spot(kind, 10, 0.0)


LONG = 3 * SHORT_S


@pytest.mark.parametrize(
    ("long_at_s", "stays"),
    [
        ([0.01, 0.011, 0.012], True),  # only just here
        ([0.01, 0.011, 0.012, 0.013], False),
        ([1.0, 1.01, 1.02, 1.03, 1.04, 1.05, 1.06], True),  # a busy moment
        ([1.0, 1.01, 1.02, 1.03, 1.04, 1.05, 1.06, 1.07], False),
        ([100.0, *(100.01 + n / 100 for n in range(7))], False),  # no more is saved up
        ([0.07 * n for n in range(1, 1000)], True),
        ([0.05 * n for n in range(2, 1000)], False),
    ],
)
def test_long_calls_are_forgiven_while_they_take_little_of_the_time(long_at_s, stays):
    kind, short = CallKind(calls=MEASUREMENTS, least_s=SHORT_S), SHORT_S / 8
    for at_s in long_at_s:
        for _ in range(20):
            kind.note(short, short, at_s, on_the_spot=True)
        kind.note(LONG, LONG, at_s, on_the_spot=True)
    assert belongs_on_the_spot(kind, 10, at_s) is stays


def test_time_in_threads_saves_nothing_up_for_long_calls():
    kind = CallKind(calls=MEASUREMENTS, least_s=SHORT_S)
    kind.note(SHORT_S, SHORT_S, 100.0, on_the_spot=False)
    for _ in range(3):  # of what is done once
        kind.note(LONG, LONG, 100.01, on_the_spot=True)
        assert belongs_on_the_spot(kind, 10, 100.01)
    kind.note(LONG, LONG, 100.01, on_the_spot=True)
    assert not belongs_on_the_spot(kind, 10, 100.01)


@pytest.mark.parametrize("each_s", [0.00002, 0.00005, SHORT_S])
def test_first_rows_of_calls_are_no_long_calls(runner, each_s, monkeypatch):
    monkeypatch.setattr(runner, "_own_s", lambda _, wall_s: (wall_s, wall_s))
    kind = CallKind()
    for _ in range(MEASUREMENTS):
        kind.note(3 * each_s, each_s, 0.0, on_the_spot=False)
    for _ in range(20):
        runner.note_here(kind, 32 * each_s, 32)
        assert kind.long_until_s == -math.inf
    assert kind.mean_s == pytest.approx(each_s, rel=0.05)


@pytest.mark.parametrize(
    ("kind", "most"),
    [
        (CallKind(least_s=0.0001), 5),
        (CallKind(least_s=0.01), 1),
        (CallKind(least_s=0.01, mean_s=0.0001), 5),
        (CallKind(least_s=0.0001, mean_s=0.000001), 32),
        (CallKind(least_s=0.0001, mean_s=0.01), 1),
    ],
)
def test_row_takes_half_a_millisecond_by_what_is_known(kind, most):
    assert kind.most_in_row == most


def test_very_long_call_is_not_forgiven():
    kind = CallKind(calls=5000, least_s=SHORT_S)
    for took_s, at_s, stays in ((0.0075, 10.0, True), (0.0085, 20.0, False)):
        kind.note(took_s, took_s, at_s, on_the_spot=True)
        assert belongs_on_the_spot(kind, 10, at_s) is stays


def test_row_of_calls_that_all_take_longer_has_no_long_one(runner, monkeypatch):
    monkeypatch.setattr(runner, "_own_s", lambda _, wall_s: (wall_s, wall_s))
    kind = CallKind(calls=MEASUREMENTS, least_s=SHORT_S, mean_s=0.000015)
    runner.note_here(kind, 32 * 0.00004, 32)
    assert kind.mean_s < 0.00003
    assert belongs_on_the_spot(kind, 10, 0.0)


def test_kind_that_was_short_for_long_is_trusted_again():
    kind = CallKind(calls=MEASUREMENTS, least_s=SHORT_S, pause_s=60.0)
    for _ in range(1100):
        kind.note(SHORT_S, 0.0, 0.0, on_the_spot=True)
    assert kind.pause_s < 0.1


def test_calls_in_threads_earn_no_trust():
    kind = CallKind(calls=MEASUREMENTS, least_s=SHORT_S, pause_s=60.0)
    for _ in range(1100):
        kind.note(SHORT_S, 0.0, 0.0, on_the_spot=False)
    kind.note(SHORT_S, 0.0, 0.0, on_the_spot=True)
    assert kind.pause_s == 60.0


def test_kinds_are_forgotten_when_there_are_too_many(monkeypatch):
    monkeypatch.setattr(running, "_MOST_KINDS", 4)
    kinds = CallKinds()
    for name in range(5):
        work = Job(None, [])
        work.kind = name
        work.wall_s = 0.1
        kinds.note(work, 0.0)
    assert [kinds.find(name) is not None for name in range(5)] == [False, False, True, True, True]
    assert kinds.find(3).least_s == 0.1
    assert kinds.find(3).long_until_s == -math.inf


@pytest.fixture
def front():
    front = EventLoop()
    yield front
    front.stop()


@pytest.fixture
def loop(front):
    return front.loop


@pytest.fixture
def runner(front):
    runner = Runner(front, Lanes(2), "test")
    yield runner
    runner.end()


class Job(Work):
    """Runs a flow, and writes down what came of it and in which thread."""

    def __init__(self, flow, told):
        super().__init__("kind")
        self._made, self.told = flow, told

    def begin(self):
        return self._made()

    def failed(self, error):
        return error

    def is_usual(self, result):
        return not isinstance(result, ServingError | None)

    def done(self, result):
        self.told.append((result, threading.current_thread()))


def test_steps_of_several_take_turns(runner, loop):
    done = []

    def of(name, times):
        left = [times]

        def step():
            done.append(name)
            left[0] -= 1
            if name == "a" and left[0] == 2:
                runner.step(of("b", 2))
            return left[0] > 0

        return step

    runner.step(of("a", 3))
    until(loop, lambda: len(done) == 5)  # the rest comes later where the time of a turn is up
    assert done == ["a", "b", "a", "b", "a"]


def test_steps_that_may_wait_are_done_together_once_all_has_been_read(runner, loop):
    seen = []

    async def main():
        for name in "ab":
            loop.call_soon(seen.append, f"read {name}")
            loop.call_soon(runner.step_soon, lambda name=name: seen.append(name))
        while len(seen) < 4:
            await asyncio.sleep(0)

    loop.run_until_complete(asyncio.wait_for(main(), PATIENCE_S))
    assert seen == ["read a", "read b", "a", "b"]


def test_many_steps_let_the_loop_look_at_its_connections(runner, loop):
    seen = []

    def step():
        time.sleep(0.001)
        seen.append("step")
        return len(seen) < 20

    async def main():
        loop.call_soon(seen.append, "connection")
        runner.step(step)
        while seen.count("step") < 18:
            await asyncio.sleep(0)

    loop.run_until_complete(asyncio.wait_for(main(), PATIENCE_S))
    assert 1 <= seen.index("connection") < 10


@pytest.mark.parametrize("is_busy", [False, True])
def test_loop_stays_awake_after_its_work_unless_threads_compute(runner, front, loop, is_busy):
    awake, told, may_end = [], [], threading.Event()
    front.stay_awake = lambda: awake.append(True)

    async def working():
        assert may_end.wait(PATIENCE_S)

    if is_busy:
        runner.do_later(Job(working, told), runner.lanes.predictions, "group")
    runner.step(lambda: False)
    assert bool(awake) is not is_busy
    may_end.set()
    until(loop, lambda: len(told) == is_busy)
    until(loop, lambda: not runner._threads[runner.lanes.predictions].are_busy)
    runner.step(lambda: False)
    assert awake


def test_step_that_raises_harms_no_other(runner, caplog):
    seen = []
    runner.step(lambda: 1 / 0)
    runner.step(lambda: seen.append(1))
    assert seen == [1]
    assert "a request failed" in caplog.text


def test_work_is_done_in_threads_as_turns_come_and_told_in_the_loop(runner, loop):
    told, working, most = [], [0], [0]
    lock = threading.Lock()

    @flowing
    def work():
        with lock:
            working[0] += 1
            most[0] = max(most[0], working[0])
        time.sleep(0.01)
        with lock:
            working[0] -= 1
        return threading.current_thread().name

    async def main():
        for _ in range(10):
            runner.do_later(Job(work, told), runner.lanes.predictions, "group")
        while len(told) < 10:
            await asyncio.sleep(0.005)

    loop.run_until_complete(asyncio.wait_for(main(), PATIENCE_S))
    assert most[0] == 2
    assert {name for name, _ in told} == {"test_predict"}
    assert {thread for _, thread in told} == {threading.current_thread()}


def test_lack_of_threads_is_told_and_costs_no_turn(runner, loop, monkeypatch):
    told = []

    def none(self):
        raise RuntimeError("can't start new thread")

    async def main():
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", none)
            runner.do_later(Job(flowing(list), told), runner.lanes.predictions, "group")
        while not told:
            await asyncio.sleep(0.005)

    loop.run_until_complete(asyncio.wait_for(main(), PATIENCE_S))
    ((error, _),) = told
    assert error.code is Code.UNAVAILABLE
    assert runner.lanes.predictions._taken == 0


# Work that waits for others


class Others(Waiting):
    """What work waits for, until it is said to have ended."""

    def __init__(self, size_bytes=8):
        super().__init__(threading.Lock())
        self.left = 1
        task = Task({}, 1, 0.0, math.inf, self)
        self.tasks.append(task)
        task.end([np.zeros(size_bytes, np.uint8)])

    def end(self):
        with self._lock:
            told = self.note_ended()
        if told:
            post, each = told
            post([each])


def waiting_for(*others, seen):
    """A flow that waits for others, and writes down in which threads it goes on."""

    async def flow():
        for each in others:
            seen.append(threading.current_thread().name)
            await each
        seen.append(threading.current_thread().name)
        return "done"

    return flow


def until(loop, condition):
    async def wait():
        while not condition():
            await asyncio.sleep(0.002)

    loop.run_until_complete(asyncio.wait_for(wait(), PATIENCE_S))


HERE = threading.current_thread().name


def test_work_on_the_spot_goes_on_there_when_others_have_ended(runner, loop):
    told, seen, first, second = [], [], Others(), Others()
    job = Job(waiting_for(first, second, seen=seen), told)
    runner.do_here(job, runner.lanes.predictions)
    assert (seen, job.has_ended) == ([HERE], False)
    ending = threading.Thread(target=first.end)
    ending.start()
    until(loop, lambda: len(seen) == 2)
    second.end()
    until(loop, lambda: told)
    ending.join()
    assert seen == [HERE] * 3
    assert told == [("done", threading.current_thread())]
    assert job.has_ended


def test_work_in_a_thread_keeps_neither_it_nor_its_turn_while_it_waits(runner, loop):
    told, seen, count = [], [], 20
    others = [Others() for _ in range(count)]
    lane = runner.lanes.predictions
    for each in others:
        runner.do_later(Job(waiting_for(each, seen=seen), told), lane, "group")
    until(loop, lambda: len(seen) == count)
    until(loop, lambda: not lane._taken)  # the last thread gives its turn back after that
    for each in others:
        each.end()
    until(loop, lambda: len(told) == count)
    assert set(seen) == {"test_predict"}
    assert {thread for _, thread in told} == {threading.current_thread()}


def test_what_others_bring_goes_to_a_thread_if_it_is_large(runner, loop):
    told, seen = [], []
    others = Others(MOST_BYTES_ON_THE_SPOT + 1)
    runner.do_here(Job(waiting_for(others, seen=seen), told), runner.lanes.predictions)
    others.end()
    until(loop, lambda: told)
    assert seen == [HERE, "test_predict"]


def test_others_that_have_ended_already_are_not_waited_for(runner):
    told, seen, others = [], [], Others()
    others.end()
    runner.do_here(Job(waiting_for(others, seen=seen), told), runner.lanes.predictions)
    assert (seen, len(told)) == ([HERE] * 2, 1)


def test_time_in_which_work_waits_is_not_counted(runner, loop):
    told, others = [], Others()

    async def flow():
        busy(0.02)
        await others
        busy(0.02)
        return "done"

    job, begun_s = Job(flow, told), time.perf_counter()
    runner.step(lambda: runner.do_here(job, runner.lanes.predictions))
    time.sleep(0.2)
    others.end()
    until(loop, lambda: told)
    # Less where others have the processor between two looks, never more.
    assert 0 < job.wall_s <= time.perf_counter() - begun_s - 0.2
    assert runner.kinds.find("kind") is not None


def test_work_that_fails_after_it_has_waited_is_told_so(runner, loop, caplog):
    told, others = [], Others()
    others.tasks[0].end(error=ServingError(Code.OUT_OF_RANGE, "thirteen"))
    runner.do_here(Job(waiting_for(others, seen=[]), told), runner.lanes.predictions)
    others.end()
    until(loop, lambda: told)
    assert told[0][0].message == "thirteen"
    assert runner.kinds.find("kind") is None


@pytest.mark.parametrize(("others_s", "is_sent_away"), [(0.0, True), (60.0, False)])
def test_call_is_not_sent_away_because_the_system_let_others_run(
    runner, front, monkeypatch, others_s, is_sent_away
):
    monkeypatch.setattr(front, "kept_waiting_s", lambda: others_s)
    job = measured(runner, lambda: time.sleep(0.07) or "done")
    assert (job.wall_s > 0.05) is is_sent_away
    assert (runner.kinds.find("kind").long_until_s > 0) is is_sent_away


@pytest.mark.parametrize("told", [None, "", "12", "nonsense here 1"])
def test_system_that_does_not_say_how_long_others_ran_kept_nobody_waiting(
    front, tmp_path, monkeypatch, told
):
    file = tmp_path / "schedstat"
    monkeypatch.setattr(front_module, "_SCHEDULED", str(file))
    if told is not None:
        file.write_text(told)
    assert front.kept_waiting_s() == 0.0


def test_system_says_how_long_others_ran_since_it_was_last_asked(front, tmp_path, monkeypatch):
    file = tmp_path / "schedstat"
    monkeypatch.setattr(front_module, "_SCHEDULED", str(file))
    found = []
    for waited_ns in (5_000_000_000, 5_250_000_000, 5_250_000_000):
        file.write_text(f"77 {waited_ns} 3\n")
        found.append(front.kept_waiting_s())
    assert found == [0.0, 0.25, 0.0]


def test_several_that_are_told_together_wake_the_loop_once(front):
    told, woken = [], []
    loop = front.loop
    front.loop = type("Loop", (), {"call_soon_threadsafe": lambda _, call: woken.append(call)})()
    for _ in range(2):
        front.post(partial(told.append, number) for number in range(3))
    front.loop = loop
    assert len(woken) == 1
    woken[0]()
    assert told == [0, 1, 2] * 2


def test_what_is_posted_to_a_loop_that_has_ended_is_let_go():
    front, others, given_back = EventLoop(), Others(), []

    async def flow():
        try:
            await others
        finally:
            given_back.append(True)

    runner = Runner(front, Lanes(1), "test")
    front.start()
    runner.do_here(Job(flow, []), runner.lanes.predictions)
    front.stop()
    others.end()
    assert given_back == [True]
    runner.end()


# How long work takes


def measured(runner, *calls):
    """Do these as work on the spot, one after the other; return the last one."""
    jobs = [Job(flowing(call), []) for call in calls]

    def step():
        for job in jobs:
            runner.do_here(job, runner.lanes.predictions)
        return False

    runner.step(step)
    return jobs[-1]


def busy(processor_s):
    end_s = time.thread_time() + processor_s
    while time.thread_time() < end_s:
        pass


def test_work_is_timed_and_how_much_of_it_its_thread_was_busy(runner):
    job = measured(runner, partial(time.sleep, 0.05))
    assert job.wall_s >= 0.05
    assert 0 <= job.processor_s < 0.05


@pytest.mark.parametrize("others_s", [(), (0.02,), (0.02, 0.0002, 0.0002)])
def test_processor_time_of_long_work_is_told_from_that_before_it(runner, others_s):
    def long():
        busy(0.005)
        time.sleep(0.05)

    calls = [*(partial(busy, each_s) for each_s in others_s), long]
    # Where others have the processor between two calls, less is found.
    assert 0.002 <= max(measured(runner, *calls).processor_s for _ in range(3)) <= 0.02


def test_work_that_has_waited_is_timed_by_what_it_computes(runner, loop):
    told, others = [], Others()

    async def flow():
        await others
        busy(0.01)
        time.sleep(0.05)  # for the interpreter, as it would in any thread
        return "done"

    job = Job(flow, told)
    runner.do_here(job, runner.lanes.predictions)
    time.sleep(0.05)
    others.end()
    until(loop, lambda: told)
    assert 0.005 <= job.wall_s <= 0.04
    assert job.processor_s == 0.0


def test_processor_time_of_short_work_is_asked_for_once_for_all(runner, monkeypatch):
    asked, thread_time = [], time.thread_time
    monkeypatch.setattr(time, "thread_time", lambda: asked.append(None) or thread_time())
    assert measured(runner, *[int] * 5).wall_s < SHORT_S
    assert len(asked) == 1


# Work that computes for long


class Many:
    """Work that notes how much of it is done at once, by kind."""

    def __init__(self, runner, loop):
        self._runner, self._loop = runner, loop
        self._lock = threading.Lock()
        self.now, self.most, self.told = {}, {}, []

    def ask(self, kind, *, worked_s, times, took_s=0.02):
        self._runner.kinds._kinds[kind] = CallKind(worked_s=worked_s)
        for number in range(times):
            job = Job(flowing(partial(self._work, kind, took_s)), self.told)
            job.kind = kind
            self._runner.do_later(job, self._runner.lanes.predictions, (kind, number))

    def _work(self, kind, took_s):
        with self._lock:
            now = self.now[kind] = self.now.get(kind, 0) + 1
            self.most[kind] = max(self.most.get(kind, 0), now)
        time.sleep(took_s)
        with self._lock:
            self.now[kind] -= 1

    def wait(self, count):
        until(self._loop, lambda: len(self.told) == count)


@pytest.fixture
def many(front, loop):
    runner = Runner(front, Lanes(8, processors(2)), "test")
    yield Many(runner, loop)
    runner.end()


def test_of_what_computes_for_long_no_more_is_done_at_once_than_there_are_processors(many):
    many.ask("long", worked_s=LONG_S, times=12)
    many.wait(12)
    assert many.most == {"long": 2}


def test_what_does_not_compute_for_long_needs_no_processor(many):
    many.ask("long", worked_s=LONG_S, times=4, took_s=0.2)
    many.ask("other", worked_s=LONG_S / 2, times=4)
    many.wait(8)
    assert many.most["other"] > 2


def test_no_kind_waits_for_another_to_end(many):
    many.ask("slow", worked_s=1.0, times=6, took_s=PATIENCE_S)
    many.ask("long", worked_s=LONG_S, times=4)
    many.wait(4)
    assert many.now == {"slow": 2, "long": 0}


def test_processors_are_shared_by_all_who_are_given_them(front, loop):
    shared = processors(2)
    runners = [Runner(front, Lanes(8, shared), "test") for _ in range(2)]
    both = [Many(runner, loop) for runner in runners]
    for many in both:
        many.ask("long", worked_s=LONG_S, times=4, took_s=0.05)
    until(loop, lambda: shared._taken == 2)
    assert shared.waiting == 6
    for many in both:
        many.wait(4)
    until(loop, lambda: not shared._parties)
    for runner in runners:
        runner.end()


def test_work_that_fails_or_finds_no_thread_gives_its_processor_back(many, loop, monkeypatch):
    runner, told = many._runner, []
    runner.kinds._kinds["kind"] = CallKind(worked_s=1.0)

    def none(self):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", none)
        runner.do_later(Job(flowing(list), told), runner.lanes.predictions, "group")
    runner.do_later(Job(flowing(lambda: 1 / 0), told), runner.lanes.predictions, "group")
    until(loop, lambda: len(told) == 2)
    assert [getattr(result, "code", None) for result, _ in told] == [Code.UNAVAILABLE, None]
    until(loop, lambda: not runner.lanes.predictions._parties)
    assert not runner.lanes.long._parties


def test_work_that_waits_for_its_batch_holds_no_processor(many, loop):
    runner, told, seen, others = many._runner, [], [], Others()
    runner.kinds._kinds["kind"] = CallKind(worked_s=1.0)
    job = Job(waiting_for(others, seen=seen), told)
    runner.do_later(job, runner.lanes.predictions, "group")
    until(loop, lambda: seen and not runner.lanes.long._taken)
    others.end()
    until(loop, lambda: told)


@pytest.mark.parametrize("took_s", [0.0, 2 * LONG_S])
def test_work_in_threads_is_known_by_how_long_it_computes(runner, loop, took_s):
    told = []

    def work():
        time.sleep(0.05)
        busy(took_s)
        return "done"

    runner.do_later(Job(flowing(work), told), runner.lanes.predictions, "group")
    until(loop, lambda: told)
    assert computes_for_long(runner.kinds.find("kind")) is (took_s > 0)


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own")
@pytest.mark.parametrize(("lane", "is_lower"), [("predictions", True), ("others", False)])
def test_threads_that_compute_give_way_to_the_loop(runner, loop, lane, is_lower):
    told = []

    def priority():
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    runner.do_later(Job(flowing(priority), told), getattr(runner.lanes, lane), "group")
    until(loop, lambda: told)
    assert (told[0][0] > priority()) is is_lower


@pytest.mark.parametrize(
    ("wall_s", "calls", "is_long"),
    [
        (32 * 0.00002, 32, False),  # all as usual
        (31 * 0.00002 + 0.1, 32, True),  # one kept the loop
        (0.1, 1, True),
        (40 * 0.0004, 40, False),  # all have become longer, and are short still
    ],
)
def test_what_a_row_of_calls_takes_longer_than_usual_counts_for_one(
    runner, wall_s, calls, is_long, monkeypatch
):
    monkeypatch.setattr(runner, "_own_s", lambda _, wall_s: (wall_s, 0.0))
    kind = CallKind(calls=MEASUREMENTS, least_s=SHORT_S, mean_s=0.00002)
    runner.note_here(kind, wall_s, calls)
    assert (kind.long_until_s > 0) is is_long
    assert is_long or kind.calls == MEASUREMENTS + calls
