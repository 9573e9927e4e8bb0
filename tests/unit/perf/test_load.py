"""Due times are what was asked for."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfserve_kit.errors import UsageError
from tfserve_kit.perf import load
from tfserve_kit.perf.load import Stretch


def seconds(due_ns):
    return [round(each / 1e9, 6) for each in due_ns]


def test_a_constant_rate_spaces_requests_evenly_and_starts_at_once():
    assert seconds(load.due_ns(load.ramp(4, 4, 1.0))) == [0.0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize(
    ("rate", "duration_s", "count"),
    [(10, 2, 20), (0.5, 2, 1), (3, 0.1, 1), (100, 0.07, 7)],  # 100 * 0.07 is above 7 in floats
)
def test_a_constant_rate_sends_rate_times_duration(rate, duration_s, count):
    assert len(load.due_ns(load.ramp(rate, rate, duration_s))) == count


@pytest.mark.parametrize(("stretches", "due_s"), [
    ([], []),
    ([Stretch(1, 4, 4)], [0, 0.25, 0.5, 0.75]),
    ([Stretch(0.1, 30, 30)], [0, 0.033333, 0.066667]),
    ([Stretch(1, 0, 0)], []),
    (load.ramp(0, 4, 2), [0, 1, 1.414214, 1.732051]),
    (load.ramp(4, 0, 2), [0, 0.267949, 0.585786, 1]),
    (load.steps([2, 4], 1), [0, 0.5, 1, 1.25, 1.5, 1.75]),
    (load.steps([2, 0, 2], 1), [0, 0.5, 2, 2.5]),
    (load.steps([1.5, 1.5], 1), [0, 0.666667, 1.333333]),
    ([Stretch(0, 5, 5), Stretch(1, 2, 2)], [0, 0.5]),
])  # fmt: skip
def test_request_n_is_due_when_the_rates_add_up_to_n(stretches, due_s):
    assert seconds(load.due_ns(stretches)) == due_s


STRETCHES = st.lists(
    st.builds(Stretch, st.just(0.0) | st.floats(1e-3, 20), st.floats(0, 200), st.floats(0, 200)),
    max_size=5,
)


@given(STRETCHES, st.sampled_from(["constant", "poisson"]), st.integers(0, 2**32))
def test_due_times_rise_and_end_before_the_last_stretch_does(stretches, arrivals, seed):
    due = load.due_ns(stretches, arrivals, seed)
    assert (np.diff(due) >= 0).all()
    assert len(due) == 0 or 0 <= due[0] <= due[-1] <= sum(s.duration_s for s in stretches) * 1e9 + 1


@given(STRETCHES)
def test_between_any_two_requests_the_rate_adds_up_to_one(stretches):
    def due_until(time_s):
        count = 0.0
        for each in stretches:
            part_s = min(time_s, each.duration_s)
            growth = (each.last_rate - each.first_rate) / each.duration_s if part_s else 0
            count += each.first_rate * part_s + growth * part_s**2 / 2
            time_s -= part_s
        return count

    for number, due in itertools.islice(enumerate(load.due_ns(stretches)), 50):
        assert due_until(due / 1e9) == pytest.approx(number, abs=1e-5)


def test_poisson_has_the_rate_of_each_moment():
    due = load.due_ns(load.ramp(0, 20_000, 10), "poisson", seed=3)
    first_half, second_half = (due < 5e9).sum(), (due >= 5e9).sum()
    assert first_half == pytest.approx(25_000, rel=0.05)
    assert second_half == pytest.approx(75_000, rel=0.05)
    gaps = np.diff(load.due_ns(load.steps([1000], 100), "poisson", seed=1)) / 1e9
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.02)


def test_poisson_with_the_same_seed_repeats_and_with_another_differs():
    first, again, other = (load.due_ns([Stretch(2, 50, 50)], "poisson", seed) for seed in (7, 7, 8))
    assert first.tolist() == again.tolist() != other.tolist()


@pytest.mark.parametrize(
    "wrong", [(-1, 1, 1), (1, -1, 1), (1, 1, float("nan")), (1, float("inf"), 1)]
)
def test_rates_that_are_none_are_refused(wrong):
    with pytest.raises(UsageError):
        load.due_ns([Stretch(*wrong)])


def test_a_recording_is_replayed_from_its_first_request_at_any_speed():
    assert seconds(load.replay_ns([12.0, 10.0, 10.5])) == [0, 0.5, 2]
    assert seconds(load.replay_ns([12.0, 10.0, 10.5], speed=2)) == [0, 0.25, 1]
    assert len(load.replay_ns([])) == 0


@pytest.mark.parametrize(("times", "speed"), [([0.0], 0), ([0.0], -1), ([float("nan")], 1)])
def test_a_recording_that_is_none_is_refused(times, speed):
    with pytest.raises(UsageError):
        load.replay_ns(times, speed)
