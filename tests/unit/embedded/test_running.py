"""Which requests are answered on the spot, and that all get their turn."""

import asyncio
import math
import threading
import time

import pytest

from tfserve_kit.embedded import running
from tfserve_kit.embedded.lanes import Lanes
from tfserve_kit.embedded.running import (
    MEASUREMENTS,
    MOST_BYTES_ON_THE_SPOT,
    SHORT_S,
    Kind,
    Kinds,
    Runner,
    Took,
    belongs_on_the_spot,
)

SHORT = Kind(calls=MEASUREMENTS, least_s=SHORT_S)
PATIENCE_S = 10.0


@pytest.mark.parametrize(
    ("kind", "size_bytes", "now_s", "on_the_spot"),
    [
        (None, 10, 0.0, False),
        (Kind(), 10, 0.0, False),
        (SHORT, 10, 0.0, True),
        (SHORT, MOST_BYTES_ON_THE_SPOT, 0.0, True),
        (SHORT, MOST_BYTES_ON_THE_SPOT + 1, 0.0, False),
        (Kind(calls=MEASUREMENTS - 1, least_s=SHORT_S), 10, 0.0, False),
        (Kind(calls=1000, least_s=SHORT_S * 1.01), 10, 0.0, False),
        (Kind(calls=1000, least_s=SHORT_S, waits=True), 10, 0.0, False),
        (Kind(calls=1000, least_s=SHORT_S, long_until_s=5.0), 10, 4.9, False),
        (Kind(calls=1000, least_s=SHORT_S, long_until_s=5.0), 10, 5.0, True),
    ],
)
def test_place_of_a_call(kind, size_bytes, now_s, on_the_spot):
    assert belongs_on_the_spot(kind, size_bytes, now_s) is on_the_spot


def test_others_in_between_do_not_make_a_short_call_long():
    kind = Kind()
    for took_s in (0.1, SHORT_S / 2, 0.1, 0.1, 0.1):
        kind.note(Took(took_s), 0.0, on_the_spot=False)
    assert belongs_on_the_spot(kind, 10, 0.0)


@pytest.mark.parametrize(
    ("took", "calls"),
    [
        (Took(1.0), 1),
        (Took(3 * SHORT_S, 3 * SHORT_S), 1),
        (Took(10 * SHORT_S, SHORT_S / 10), 6),
        (Took(2.5 * SHORT_S, SHORT_S), 13),
    ],
)
def test_call_that_turns_out_long_goes_back_to_the_threads_for_longer_each_time(took, calls):
    kind, now_s, pauses = Kind(), 0.0, []
    for _ in range(8):
        for _ in range(MEASUREMENTS):
            kind.note(Took(SHORT_S / 2), now_s, on_the_spot=False)
        assert belongs_on_the_spot(kind, 10, now_s)
        for _ in range(calls):
            kind.note(took, now_s, on_the_spot=True)
        assert not belongs_on_the_spot(kind, 10, now_s)
        pauses.append(kind.long_until_s - now_s)
        now_s = kind.long_until_s
        assert not belongs_on_the_spot(kind, 10, now_s)  # it has to prove itself again
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]


def test_short_call_that_others_interrupt_now_and_then_stays():
    kind = Kind(calls=MEASUREMENTS, least_s=SHORT_S)
    for number in range(3000):
        took_s = 100 * SHORT_S if number % 10 == 0 else SHORT_S / 4
        kind.note(Took(took_s, SHORT_S / 4), 0.0, on_the_spot=True)
        assert belongs_on_the_spot(kind, 10, 0.0)


def test_kind_that_was_short_for_long_is_trusted_again():
    kind = Kind(calls=MEASUREMENTS, least_s=SHORT_S, pause_s=60.0)
    for _ in range(1100):
        kind.note(Took(SHORT_S), 0.0, on_the_spot=True)
    assert kind.pause_s == 1.0


def test_time_of_a_call_is_measured_and_what_of_it_its_thread_was_at_work():
    took = Took()
    time.sleep(0.05)
    took.end()
    assert took.wall_s >= 0.05
    assert 0 <= took.processor_s < 0.05


def test_kinds_are_forgotten_when_there_are_too_many(monkeypatch):
    monkeypatch.setattr(running, "_MOST_KINDS", 4)
    kinds = Kinds()
    for name in range(5):
        kinds.note(name, Took(0.1), 0.0, on_the_spot=False, waits=name == 4)
    assert [kinds.find(name) is not None for name in range(5)] == [False, False, True, True, True]
    assert kinds.find(4).waits
    assert kinds.find(3).least_s == 0.1
    assert kinds.find(3).long_until_s == -math.inf


@pytest.fixture
def loop():
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture
def runner(loop):
    runner = Runner(loop, Lanes(2), "test")
    yield runner
    runner.end()


def test_steps_of_several_take_turns(runner):
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
    assert done == ["a", "b", "a", "b", "a"]


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


def test_step_that_raises_harms_no_other(runner, caplog):
    seen = []
    runner.step(lambda: 1 / 0)
    runner.step(lambda: seen.append(1))
    assert seen == [1]
    assert "a request failed" in caplog.text


def test_work_is_done_in_threads_as_turns_come_and_told_in_the_loop(runner, loop):
    told, working, most = [], [0], [0]
    lock = threading.Lock()

    def work():
        with lock:
            working[0] += 1
            most[0] = max(most[0], working[0])
        time.sleep(0.01)
        with lock:
            working[0] -= 1
        return threading.current_thread().name

    async def main():
        lane = runner.lanes.predictions
        for _ in range(10):
            runner.run(
                lane,
                "group",
                work,
                lambda name: told.append((name, threading.current_thread())),
                list,
            )
        while len(told) < 10:
            await asyncio.sleep(0.005)

    loop.run_until_complete(asyncio.wait_for(main(), PATIENCE_S))
    assert most[0] == 2
    assert {name for name, _ in told} == {"test_predict"}
    assert {thread for _, thread in told} == {threading.current_thread()}


def test_lack_of_threads_is_told_and_costs_no_turn(runner, loop, monkeypatch):
    refused = []

    def none(self):
        raise RuntimeError("can't start new thread")

    async def main():
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", none)
            runner.run(runner.lanes.predictions, "group", list, list, lambda: refused.append(1))
        while not refused:
            await asyncio.sleep(0.005)

    loop.run_until_complete(asyncio.wait_for(main(), PATIENCE_S))
    assert runner.lanes.predictions._taken == 0
