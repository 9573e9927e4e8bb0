"""Waiting, with a clock that only moves when somebody sleeps."""

import pytest

from tfserve_kit.clock import SystemClock, wait_until


class FakeClock:
    def __init__(self, now_s=100.0):
        self.now, self.slept = now_s, []

    def now_s(self):
        return self.now

    def sleep(self, duration_s):
        self.slept.append(duration_s)
        self.now += duration_s


def asked_at(clock, answers):
    """Return a probe that gives `answers` one by one, then None, and the moments it was called."""
    moments, left = [], list(answers)

    def probe():
        moments.append(clock.now - 100.0)
        return left.pop(0) if left else None

    return probe, moments


def wait(answers, timeout_s, interval_s=4.0):
    clock = FakeClock()
    probe, moments = asked_at(clock, answers)
    return wait_until(probe, timeout_s=timeout_s, interval_s=interval_s, clock=clock), moments


def test_answer_at_once_is_returned_without_sleeping():
    assert wait(["ready"], timeout_s=9) == ("ready", [0])


@pytest.mark.parametrize("answer", [0, "", False, []])
def test_falsy_answer_is_an_answer(answer):
    assert wait([None, answer, "later"], timeout_s=99) == (answer, [0, 4])


@pytest.mark.parametrize(
    ("timeout_s", "moments"),
    [(0, [0]), (-1, [0]), (3, [0, 4]), (4, [0, 4]), (5, [0, 4, 8]), (8, [0, 4, 8])],
)
def test_none_is_returned_when_time_is_up_after_asking_a_last_time(timeout_s, moments):
    assert wait([], timeout_s) == (None, moments)


def test_last_answer_counts_even_if_it_comes_after_the_timeout():
    assert wait([None, "just"], timeout_s=1) == ("just", [0, 4])


def test_exception_of_the_probe_passes_through():
    def probe():
        raise LookupError("gone")

    with pytest.raises(LookupError, match="gone"):
        wait_until(probe, timeout_s=1, interval_s=1, clock=FakeClock())


def test_system_clock_never_goes_back():
    clock = SystemClock()
    before = clock.now_s()
    clock.sleep(0)
    assert clock.now_s() >= before
