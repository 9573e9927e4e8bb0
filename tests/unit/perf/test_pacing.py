"""Due times are what was asked for."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfserve_kit.perf import pacing


def test_constant_spaces_requests_evenly_and_starts_at_once():
    assert list(pacing.constant(4, 1.0)) == [0.0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize(("rate", "duration_s", "count"), [(10, 2, 20), (0.5, 2, 1), (3, 0.1, 0)])
def test_constant_sends_rate_times_duration(rate, duration_s, count):
    assert len(list(pacing.constant(rate, duration_s))) == count


@given(st.floats(1, 1000), st.integers(0, 2**32))
def test_poisson_rises_and_ends_with_the_duration(rate, seed):
    due = list(itertools.islice(pacing.poisson(rate, 5.0, seed), 2000))
    assert due == sorted(due)
    assert all(0 < each < 5.0 for each in due)


def test_poisson_has_the_rate_asked_for_and_the_spread_of_exponential_gaps():
    due = list(pacing.poisson(1000, 100.0, seed=1))
    gaps = [later - earlier for earlier, later in itertools.pairwise(due)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert mean == pytest.approx(1e-3, rel=0.02)
    assert deviation == pytest.approx(mean, rel=0.02)


def test_poisson_with_the_same_seed_repeats_and_with_another_differs():
    first, again, other = (list(pacing.poisson(50, 2, seed)) for seed in (7, 7, 8))
    assert first == again != other
