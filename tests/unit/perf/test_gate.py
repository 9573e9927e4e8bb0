"""A difference is called one only where luck does not explain it; gates say what they held."""

import numpy as np
import pytest

from tests.unit.perf.runs import queued, run_of, sample
from tfserve_kit.errors import UsageError
from tfserve_kit.perf import gate
from tfserve_kit.perf.gate import compare
from tfserve_kit.perf.stats import summarize


def steady(seed, service_s=0.003, **more):
    options = {"rate": 100, "count": 3000, "warmup_s": 0.0} | more
    return queued(seed=seed, service_s=service_s, **options)


def outcomes(before, after):
    return {each.name: each.outcome for each in compare(before, after).differences}


def test_a_server_that_became_slower_is_worse_and_the_other_way_round_better():
    quick, slow = steady(1), steady(2, service_s=0.005)
    assert outcomes(quick, slow)["p50"] == outcomes(quick, slow)["p99"] == "worse"
    assert outcomes(slow, quick)["p50"] == outcomes(slow, quick)["p99"] == "better"


def test_a_higher_rate_is_better():
    few, many = steady(1, rate=50), steady(2, rate=100)
    assert outcomes(few, many)["rate"] == "better"
    assert outcomes(many, few)["rate"] == "worse"


def test_a_run_equals_itself():
    run = steady(1, count=20_000)
    found = {each.name: each for each in compare(run, run).differences}
    assert found["p50"].change == 0
    assert found["p50"].low < 0 < found["p50"].high
    assert outcomes(run, run)["rate"] == "equal"


def test_two_runs_of_the_same_server_seldom_differ():
    found = [outcomes(steady(seed), steady(seed + 1000))["p50"] for seed in range(12)]
    assert sum(each in {"better", "worse"} for each in found) <= 3


def test_runs_too_short_to_tell_are_unclear():
    first, second = (
        run_of([sample(i, i, i, i + ms, free_ms=i) for i in range(30)]) for ms in (1, 9)
    )
    (p50, *_) = compare(first, second).differences
    assert (p50.change, p50.low, p50.outcome) == (pytest.approx(8.0), None, "unclear")


def test_quantiles_that_one_run_is_too_short_for_are_left_out():
    names = outcomes(steady(1), steady(2, count=400))
    assert "p95" in names
    assert "p99" not in names


def test_what_differs_besides_is_told():
    before = steady(1, batch=1, url="grpc://a:1")
    after = steady(2, batch=8, url="grpc://b:1")
    notes = compare(before, after).notes
    assert "setting batch differs: 1, 8" in notes
    assert not any("url" in note for note in notes)


def test_an_invalid_run_is_told():
    late = steady(2)
    late.samples["sent_ns"] += 10_000_000
    late.samples["done_ns"] += 10_000_000
    assert any("second run is INVALID" in note for note in compare(steady(1), late).notes)


def test_the_draws_agree_with_the_values_themselves():
    found = {each.name: each for each in compare(steady(1), steady(2)).differences}
    for each in found.values():
        assert each.low < each.change + 0.05
        assert each.high > each.change - 0.05
    assert np.isfinite([each.change for each in found.values()]).all()


class TestGates:
    @pytest.mark.parametrize(("text", "name", "below", "limit", "is_change"), [
        ("p99<50ms", "p99", True, 0.05, False),
        ("p99.9<1.5s", "p99.9", True, 1.5, False),
        ("mean<800us", "mean", True, 0.0008, False),
        ("rate>1000", "rate", False, 1000, False),
        ("errors<0.1%", "errors", True, 0.001, False),
        ("p99<+5%", "p99", True, 0.05, True),
        (" rate > -3% ", "rate", False, -0.03, True),
    ])  # fmt: skip
    def test_say_what_they_mean(self, text, name, below, limit, is_change):
        found = gate.parse(text)
        assert (found.name, found.below, found.is_change) == (name, below, is_change)
        assert found.limit == pytest.approx(limit)

    @pytest.mark.parametrize("text", [
        "", "p99", "p99<", "p99<=5ms", "p99<50", "p99<5%", "rate>10ms", "errors<3", "errors<+1%",
        "p99<+5ms", "speed>3", "p99<50ms rate>3", "p99<nan",
    ])  # fmt: skip
    def test_that_mean_nothing_are_refused_with_examples(self, text):
        with pytest.raises(UsageError) as refused:
            gate.parse(text)
        assert "%" in refused.value.remedy

    @pytest.mark.parametrize(("text", "passed"), [
        ("p50<11ms", True), ("p50<9ms", False), ("rate>90", True), ("rate>110", False),
        ("errors<1%", True), ("max<10.1ms", True), ("mean<1ms", False),
    ])  # fmt: skip
    def test_pass_on_the_right_side_of_their_limit(self, text, passed):
        run = run_of([sample(i, i * 10, i * 10, i * 10 + 10, free_ms=i * 10) for i in range(100)])
        verdict = gate.judge(gate.parse(text), summarize(run))
        assert verdict.passed is passed
        assert str(verdict).startswith("passed" if passed else "FAILED")

    def test_of_a_change_hold_one_run_against_the_other(self):
        before, after = summarize(steady(1)), summarize(steady(2, service_s=0.005))
        assert not gate.judge(gate.parse("p99<+5%"), after, before).passed
        assert gate.judge(gate.parse("p99<+5%"), before, after).passed
        assert gate.judge(gate.parse("rate>-5%"), after, before).passed

    def test_of_a_change_need_two_runs(self):
        with pytest.raises(UsageError, match="compares two runs"):
            gate.judge(gate.parse("p99<+5%"), summarize(steady(1)))

    def test_fail_where_the_value_is_unknown(self):
        verdict = gate.judge(gate.parse("p99<1s"), summarize(steady(1, count=100)))
        assert not verdict.passed
        assert "too few" in str(verdict)

    def test_fail_an_invalid_run_whatever_its_numbers(self):
        run = steady(1)
        run.samples["sent_ns"] += 10_000_000
        run.samples["done_ns"] += 10_000_000
        verdict = gate.judge(gate.parse("p50<10s"), summarize(run))
        assert not verdict.passed
        assert "INVALID" in str(verdict)

    def test_of_a_quantile_that_no_run_has_are_refused(self):
        with pytest.raises(UsageError, match="p42"):
            gate.judge(gate.parse("p42<1s"), summarize(steady(1)))


def test_limit_is_refused_as_it_was_typed():
    with pytest.raises(UsageError, match="'p99=50' needs another unit: us, ms or s"):
        gate.parse_slo("p99=50")
