"""What candidates amount to, on simulated queues."""

import math

import pytest

from tests.unit.tuning.simulated import Running
from tfserve_kit.perf import gate
from tfserve_kit.tuning import HighestRate, LowestLatency
from tfserve_kit.tuning.goals import Point, Proof, Score, front

GOAL = HighestRate(gate.parse("p95<50ms"))


def score(goal, service_s, best=None):
    rates = []
    running = Running(service_s, rates)
    return goal.score(running.measure, best, best or running.start_rate), rates


def test_highest_rate_is_what_a_queue_can_bear():
    """An M/M/1 queue's p95 is ln(20) / (1 / service - rate): 50 ms at 440 per second."""
    found, _ = score(GOAL, 0.002)
    assert found.value == pytest.approx(440, rel=0.08)
    assert not found.beaten


def test_a_candidate_far_below_the_best_is_given_up_after_two_runs():
    found, rates = score(GOAL, 0.01, best=400)
    assert found.beaten and len(rates) == 2
    assert found.value < 400 / 2


def test_a_candidate_near_the_best_is_measured_to_the_end():
    found, rates = score(GOAL, 0.0022, best=440)
    assert not found.beaten and len(rates) > 2
    assert found.value == pytest.approx(395, rel=0.1)


def test_settings_that_keep_nothing_have_no_value():
    found, _ = score(GOAL, 1.0)
    assert found.value is None and not found.beaten


def test_lowest_latency_is_that_of_the_queue_and_needs_two_runs():
    found, rates = score(LowestLatency(100, "p95"), 0.002)
    assert found.value == pytest.approx(math.log(20) / 400, rel=0.15)
    assert rates == [100, 100]


def test_twice_the_lowest_latency_is_given_up_after_a_run():
    found, rates = score(LowestLatency(100, "p95"), 0.005, best=0.0075)
    assert found.beaten and rates == [100]


def test_a_rate_that_cannot_be_had_has_no_latency():
    found, _ = score(LowestLatency(1000, "p95"), 0.005)
    assert found.value is None


@pytest.mark.parametrize(
    ("goal", "before", "after"), [(GOAL, 100, 150), (LowestLatency(9), 0.3, 0.2)]
)
def test_gain_is_above_one_where_the_second_is_better(goal, before, after):
    assert goal.gain(before, after) == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("goal", "worst", "good"), [(GOAL, 0.0, 9), (LowestLatency(9), math.inf, 1)]
)
def test_anything_is_better_than_nothing(goal, worst, good):
    assert goal.gain(worst, good) == math.inf
    assert goal.gain(good, worst) == 0
    assert goal.gain(worst, worst) == 1


def test_scores_are_kept_whole():
    found, _ = score(GOAL, 0.002)
    assert Score.from_data(found.as_data()) == found


class TestFront:
    def test_holds_the_runs_that_no_other_beats(self):
        points = {
            0: (Point(10, 0.1, True), Point(30, 0.5, True)),
            1: (Point(20, 0.2, True), Point(15, 0.3, True)),
        }
        assert front(points) == [
            (0, Point(10, 0.1, True)), (1, Point(20, 0.2, True)), (0, Point(30, 0.5, True))
        ]  # fmt: skip

    def test_leaves_out_what_did_not_hold(self):
        assert front({0: (Point(10, 0.1, False), Point(1, None, True))}) == []


class TestProof:
    def test_six_gains_are_better(self):
        proof = Proof.of([(100, 110 + i) for i in range(6)], GOAL.gain)
        assert (proof.outcome, proof.low, proof.high) == ("better", 1.1, 1.15)
        assert proof.gain == pytest.approx(1.125)

    def test_six_losses_are_worse(self):
        assert Proof.of([(100, 90)] * 6, GOAL.gain).outcome == "worse"

    def test_one_loss_in_six_is_unclear(self):
        assert Proof.of([(100, 150)] * 5 + [(100, 99)], GOAL.gain).outcome == "unclear"

    @pytest.mark.parametrize("other", [150, 90])
    def test_an_interval_that_ends_where_nothing_changes_is_unclear(self, other):
        proof = Proof.of([(100, 100)] + [(100, other)] * 5, GOAL.gain)
        assert 1.0 in {proof.low, proof.high}
        assert proof.outcome == "unclear"

    def test_five_rounds_prove_nothing(self):
        proof = Proof.of([(100, 150)] * 5, GOAL.gain)
        assert (proof.outcome, proof.low) == ("unclear", None)
