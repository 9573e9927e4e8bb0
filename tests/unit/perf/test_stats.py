"""Numbers from samples are exact, and a run that says nothing says so."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.perf.runs import MS, queued, run_of, sample
from tfserve_kit.perf import stats
from tfserve_kit.perf.samples import SAMPLE, Run
from tfserve_kit.perf.stats import QUANTILES, quantile, series, summarize


def even(count, latency_ms=1.0, *, gap_ms=1.0, **settings):
    return run_of(
        [sample(i, i * gap_ms, i * gap_ms, i * gap_ms + latency_ms, free_ms=i * gap_ms)
         for i in range(count)], **settings)  # fmt: skip


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


class TestIntervals:
    @pytest.mark.parametrize("q", QUANTILES)
    def test_needs_as_many_values_as_make_one_possible_and_no_more(self, q):
        assert stats.interval_ranks(stats.values_needed(q), q) is not None
        assert stats.interval_ranks(stats.values_needed(q) - 1, q) is None

    @pytest.mark.parametrize(("count", "q"), [(20, 0.5), (100, 0.75), (528, 0.99), (3000, 0.95)])
    def test_both_ends_are_as_near_as_the_binomial_allows(self, count, q):
        low, high = stats.interval_ranks(count, q)
        logs = [
            math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
            + k * math.log(q) + (count - k) * math.log(1 - q) for k in range(count + 1)
        ]  # fmt: skip
        weights = [math.exp(each) for each in logs]
        tail = (1 - stats.CONFIDENCE) / 2
        assert sum(weights[: low + 1]) <= tail < sum(weights[: low + 2])
        assert sum(weights[high + 1 :]) <= tail < sum(weights[high:])

    def test_large_counts_overflow_nothing(self):
        low, high = stats.interval_ranks(50_000_000, 0.999)
        assert low < 49_950_000 < high
        assert high - low < 2_000

    @pytest.mark.parametrize(("draw", "true"), [
        (lambda source, n: source.exponential(1.0, n), lambda q: -math.log(1 - q)),
        (lambda source, n: source.uniform(0, 1, n), lambda q: q),
        (lambda source, n: source.pareto(1.5, n), lambda q: (1 - q) ** (-1 / 1.5) - 1),
    ])  # fmt: skip
    @pytest.mark.parametrize("q", [0.5, 0.9, 0.99, 0.999])
    def test_hold_the_true_quantile_in_nearly_every_run(self, draw, true, q):
        hits = 0
        for seed in range(100):
            values = np.sort(draw(np.random.default_rng(seed), 6000))
            low, high = stats.interval_ranks(6000, q)
            hits += values[low] <= true(q) <= values[high]
        assert hits >= 95


class TestLatency:
    def test_counts_from_due_and_service_from_sent(self):
        summary = summarize(run_of([sample(i, 0, 5, 7, free_ms=5) for i in range(10)]))
        assert summary.latency.value_s("p50") == pytest.approx(0.007)
        assert summary.service.value_s("p50") == pytest.approx(0.002)

    def test_has_mean_quantiles_and_maximum_that_are_exact(self):
        run = run_of([sample(i, i, i, i + 1 + i / 1000, free_ms=i) for i in range(1000)])
        found = summarize(run).latency
        assert found.count == 1000
        assert found.mean_s == pytest.approx(1.4995e-3)
        assert found.value_s("p90") == pytest.approx(1.899e-3)
        assert found.value_s("p99") == pytest.approx(1.989e-3)
        assert found.max_s == pytest.approx(1.999e-3)

    def test_says_nothing_of_a_quantile_that_too_few_requests_show(self):
        found = {each.name: each for each in summarize(even(400)).latency.quantiles}
        assert found["p95"].value_s is not None
        assert found["p99"].value_s is None and found["p99"].low_s is None
        assert found["p99"].needs == 528

    def test_lies_within_its_interval(self):
        for each in summarize(queued(count=6000, warmup_s=0.0)).latency.quantiles:
            if each.value_s is not None:
                assert each.low_s <= each.value_s <= each.high_s

    def test_of_failed_requests_is_left_out(self):
        run = [sample(i, i, i, i + 1, free_ms=i) for i in range(8)]
        run += [sample(8, 8, 8, 900, free_ms=8, status=4)] * 2
        summary = summarize(run_of(run))
        assert summary.requests == 10
        assert summary.errors == {"DEADLINE_EXCEEDED": 2}
        assert summary.error_share == 0.2
        assert summary.latency.max_s == pytest.approx(0.001)

    def test_of_requests_without_answer_is_longer_than_every_other(self):
        run = [sample(i, i, i, i + 1, free_ms=i) for i in range(990)]
        run += [sample(i, i, i, i + 0.1, free_ms=i, status=100) for i in range(990, 1000)]
        found = summarize(run_of(run)).latency
        assert found.unfinished == 10
        assert found.value_s("p99") == pytest.approx(0.001)
        assert {each.name: each.high_s for each in found.quantiles}["p99"] is None
        more = [*run, sample(1000, 999, 999, 999, status=100)]
        assert summarize(run_of(more)).latency.value_s("p99") is None

    def test_follows_theory_in_a_queue(self):
        """M/M/1: time in the system is exponential with mean 1 / (service rate - arrival rate)."""
        found = summarize(queued(rate=100, service_s=0.005, count=60_000, warmup_s=0.0)).latency
        assert found.mean_s == pytest.approx(0.010, rel=0.05)
        assert found.value_s("p99") == pytest.approx(0.010 * math.log(100), rel=0.08)

    def test_of_a_stall_is_counted_against_everybody_who_was_due_meanwhile(self):
        quiet = summarize(queued(rate=100, service_s=0.001, count=2000, warmup_s=0.0))
        stalled = summarize(
            queued(rate=100, service_s=0.001, count=2000, warmup_s=0.0, stall=(1000, 1.0))
        )
        assert quiet.latency.value_s("p99") < 0.02
        assert 0.4 < stalled.latency.value_s("p99") < 1.1

    def test_to_the_first_byte_is_shown_only_where_it_is_known(self):
        known = [sample(i, i, i, i + 3, free_ms=i, first_ms=i + 2) for i in range(10)]
        assert summarize(run_of(known)).first_byte.value_s("p50") == pytest.approx(0.002)
        assert summarize(even(10)).first_byte is None


class TestRates:
    def test_tell_offered_from_achieved(self):
        run = [sample(i, i * 10, i * 10, i * 20 + 20, free_ms=i * 10) for i in range(101)]
        summary = summarize(run_of(run))
        assert summary.offered_rate == pytest.approx(100)
        assert summary.achieved_rate == pytest.approx(50, rel=0.03)

    def test_a_long_way_of_each_answer_lowers_no_rate(self):
        summary = summarize(even(101, 500, gap_ms=10))
        assert summary.achieved_rate == pytest.approx(100, rel=0.02)

    def test_of_one_burst_is_answers_by_the_time_they_took(self):
        summary = summarize(run_of([sample(i, 0, 0, 10 + i) for i in range(10)]))
        assert summary.offered_rate is None
        assert summary.achieved_rate == pytest.approx(10 / 0.019, rel=0.01)

    def test_of_bytes_count_what_was_answered(self):
        summary = summarize(even(1000))
        assert summary.received_bytes_per_s == pytest.approx(200 * summary.achieved_rate)
        assert summary.sent_bytes_per_s == pytest.approx(100 * summary.achieved_rate)


class TestValidity:
    def test_a_request_that_waited_for_a_busy_sender_is_late_but_the_generator_is_not_at_fault(
        self,
    ):
        summary = summarize(run_of([sample(i, 0, 50, 51, free_ms=50) for i in range(10)]))
        assert summary.lag_p99_s == 0
        assert not summary.invalid
        assert "less than the offered rate" in " ".join(summary.notes)

    def test_a_generator_that_was_free_and_still_late_makes_the_run_invalid(self):
        run = [sample(i, i, i + 5, i + 6, free_ms=i) for i in range(100)]
        summary = summarize(run_of(run))
        assert summary.lag_p99_s == pytest.approx(0.005)
        assert "5.0 ms late" in summary.invalid
        assert "--processes" in summary.remedy

    @pytest.mark.parametrize(("lag_ms", "service_ms", "invalid"), [
        (0.9, 1, False), (1.1, 1, True), (1.1, 20, False), (3, 20, True),
    ])  # fmt: skip
    def test_lag_counts_as_a_fault_above_a_millisecond_and_a_tenth_of_the_median(
        self, lag_ms, service_ms, invalid
    ):
        run = [sample(i, i, i + lag_ms, i + lag_ms + service_ms, free_ms=i) for i in range(10)]
        assert bool(summarize(run_of(run)).invalid) is invalid

    def test_one_late_request_of_a_thousand_makes_no_run_invalid(self):
        run = even(1000)
        run.samples["sent_ns"][500] += 50 * MS
        run.samples["done_ns"][500] += 50 * MS
        summary = summarize(run)
        assert summary.lag_max_s == pytest.approx(0.05)
        assert not summary.invalid

    def test_a_run_in_which_nothing_succeeded_says_so(self):
        summary = summarize(run_of([sample(0, 0, 0, 1, status=14)]))
        assert summary.invalid == "no request succeeded"
        assert summary.offered_rate is None
        assert summary.errors == {"UNAVAILABLE": 1}

    def test_a_closed_loop_says_that_it_is_coordinated(self):
        assert "coordinated" in " ".join(summarize(even(10, loop="closed")).notes)
        assert "coordinated" not in " ".join(summarize(even(10, loop="open")).notes)

    @pytest.mark.parametrize(("url", "shared"), [
        ("grpc://localhost:8500", True), ("http://127.0.0.1:8501", True),
        ("grpc://models.example:8500", False),
    ])  # fmt: skip
    def test_a_server_on_the_same_machine_is_told(self, url, shared):
        notes = " ".join(summarize(even(10, url=url)).notes)
        assert ("shared one machine" in notes) is shared


class TestSteadyState:
    def test_a_declared_warm_up_is_reported_apart(self):
        slow = [sample(i, i, i, i + 100, free_ms=i) for i in range(100)]
        rest = [sample(i, i, i, i + 1, free_ms=i) for i in range(100, 1000)]
        summary = summarize(run_of(slow + rest, warmup_s=0.1))
        assert summary.requests == 900
        assert summary.latency.max_s == pytest.approx(0.001)
        assert summary.warmup.count == 100
        assert summary.warmup.max_s == pytest.approx(0.1)
        assert "0.1 s" in summary.steady.how

    def test_a_slow_start_is_found(self):
        run = queued(rate=200, service_s=0.0005, count=4000, slow_start=400)
        summary = summarize(run)
        ends = run.samples["due_ns"][400]
        assert 0.8 * ends < summary.steady.start_ns < 1.5 * ends
        assert "detected" in summary.steady.how

    @pytest.mark.parametrize("seed", range(10))
    def test_little_is_cut_from_a_run_that_was_steady_all_the_time(self, seed):
        run = queued(rate=100, service_s=0.001, count=4000, seed=seed)
        assert summarize(run).steady.start_ns < 0.2 * run.samples["due_ns"][-1]

    def test_a_stall_late_in_the_run_is_no_end_of_a_warm_up(self):
        run = queued(rate=200, service_s=0.001, count=4000, stall=(3500, 0.2))
        summary = summarize(run)
        assert summary.steady.start_ns < 0.2 * run.samples["due_ns"][-1]
        assert summary.latency.max_s > 0.19

    def test_a_server_that_gets_slower_to_the_end_is_told(self):
        run = queued(rate=300, service_s=0.005, count=2000)
        summary = summarize(run)
        assert summary.steady.start_ns == 0
        assert not summary.steady.found
        assert "measure for longer" in " ".join(summary.notes)

    def test_a_handful_of_requests_is_taken_whole(self):
        run = even(20)
        summary = summarize(Run(run.samples, {}))
        assert summary.requests == 20
        assert "too few" in summary.steady.how


def test_poisoned_requests_are_counted_nowhere_else():
    run = even(1000, poison_every=100)
    run.samples["status"][99::100] = 3
    summary = summarize(run)
    assert summary.requests == 990
    assert summary.errors == {}
    assert summary.poisoned == {"INVALID_ARGUMENT": 10}


def test_series_puts_latency_where_a_request_was_due_and_answers_where_they_came():
    run = run_of(
        [sample(0, 50, 50, 250), sample(1, 60, 60, 70), sample(2, 120, 120, 130, status=8)]
    )
    first, second, third = series(run.samples, 0.1)
    assert (first.due, first.answered, first.failed) == (2, 1, 0)
    assert (second.due, second.answered, second.failed) == (1, 0, 1)
    assert (third.due, third.answered, third.failed) == (0, 1, 0)
    assert (first.p50_s, first.max_s) == (pytest.approx(0.01), pytest.approx(0.2))
    assert second.p50_s is None


def test_series_counts_every_request_once():
    run = queued(count=3000)
    found = series(run.samples, 0.1)
    assert sum(each.due for each in found) == sum(each.answered for each in found) == 3000


def test_a_million_requests_are_summarized_whole():
    samples = np.zeros(1_000_000, SAMPLE)
    samples["due_ns"] = samples["free_ns"] = samples["sent_ns"] = np.arange(1_000_000) * 10_000
    samples["done_ns"] = samples["due_ns"] + 1_000 + np.arange(1_000_000)
    found = summarize(Run(samples, {"warmup_s": 0.0})).latency
    assert found.count == 1_000_000
    assert found.value_s("p99.99") == pytest.approx((1_000 + 999_899) / 1e9)
