"""Numbers from samples are exact, and a run that says nothing says so."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfserve_kit.perf.samples import Sample
from tfserve_kit.perf.stats import quantile, summarize

MS = 1_000_000


def sample(sequence, due_ms, sent_ms, done_ms, *, free_ms=0.0, status="OK"):
    times = (round(ms * MS) for ms in (due_ms, free_ms, sent_ms, done_ms))
    return Sample(sequence, *times, status)


@pytest.mark.parametrize(
    ("q", "expected"), [(0.01, 1), (0.5, 50), (0.9, 90), (0.99, 99), (0.991, 100), (1.0, 100)]
)
def test_quantile_is_the_smallest_value_that_covers_the_share(q, expected):
    assert quantile(range(1, 101), q) == expected


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.001, 1))
def test_quantile_covers_its_share_and_no_smaller_value_does(values, q):
    values.sort()
    found = quantile(values, q)
    covered = sum(value <= found for value in values)
    below = sum(value < found for value in values)
    assert covered >= q * len(values) - 1e-9 > below - 1


def test_latency_counts_from_due_and_service_from_sent():
    summary = summarize([sample(0, due_ms=0, sent_ms=5, done_ms=7, free_ms=5)])
    assert summary.latency_s["p50"] == pytest.approx(0.007)
    assert summary.service_s["p50"] == pytest.approx(0.002)


def test_a_request_that_waited_for_a_busy_sender_is_late_but_the_harness_is_not_at_fault():
    summary = summarize([sample(0, due_ms=0, sent_ms=50, done_ms=51, free_ms=50)])
    assert summary.lag_p99_s == 0
    assert not summary.invalid


def test_a_sender_that_was_free_and_still_late_makes_the_run_invalid():
    summary = summarize([sample(i, i, i + 5, i + 6, free_ms=i) for i in range(100)])
    assert summary.lag_p99_s == pytest.approx(0.005)
    assert "5.0 ms late" in summary.invalid


@pytest.mark.parametrize(("lag_ms", "service_ms", "invalid"), [
    (0.9, 1, False), (1.1, 1, True), (1.1, 20, False), (3, 20, True),
])  # fmt: skip
def test_lag_counts_as_a_fault_above_a_millisecond_and_a_tenth_of_the_median(
    lag_ms, service_ms, invalid
):
    run = [sample(i, i, i + lag_ms, i + lag_ms + service_ms, free_ms=i) for i in range(10)]
    assert bool(summarize(run).invalid) is invalid


def test_errors_are_counted_by_kind_and_keep_out_of_the_latencies():
    run = [sample(i, i, i, i + 1, free_ms=i) for i in range(8)]
    run += [sample(8, 8, 8, 900, free_ms=8, status="DeadlineExceeded")] * 2
    summary = summarize(run)
    assert summary.requests == 10
    assert summary.errors == {"DeadlineExceeded": 2}
    assert summary.latency_s["max"] == pytest.approx(0.001)


def test_rates_tell_offered_from_achieved():
    run = [sample(i, i * 10, i * 10, i * 10 + 500, free_ms=i * 10) for i in range(101)]
    summary = summarize(run)
    assert summary.offered_rate == pytest.approx(100)
    assert summary.achieved_rate == pytest.approx(101 / 1.5)


def test_a_run_in_which_nothing_succeeded_says_so():
    summary = summarize([sample(0, 0, 0, 1, status="ServerUnreachable")])
    assert summary.invalid == "no request succeeded"
    assert math.isnan(summary.offered_rate)
