"""Simulated queues against what queueing theory says of them."""

import math

import numpy as np
import pytest

from tfserve_kit.perf import simulation
from tfserve_kit.perf.simulation import Arrivals, SimulatedFleet, SimulatedReplica, simulate

MEAN_S = 0.01
# An exponential distribution by its quantiles, with the right mean.
EXPONENTIAL = -np.log1p(-(np.arange(20_000) + 0.5) / 20_000) * MEAN_S
CONSTANT = np.array([MEAN_S])


def erlang_c(servers, load):
    """Return the probability that a request waits in M/M/c."""
    busy = servers * load
    terms = [busy**k / math.factorial(k) for k in range(servers)]
    last = busy**servers / math.factorial(servers) / (1 - load)
    return last / (sum(terms) + last)


def mmc_quantile_s(servers, load, q):
    """Return a quantile of wait and service together in M/M/c, by bisection."""
    mu, waits = 1 / MEAN_S, erlang_c(servers, load)
    theta = servers * mu * (1 - load)

    def slower(t):
        if math.isclose(theta, mu):
            return math.exp(-mu * t) * (1 + waits * mu * t)
        both = (theta * math.exp(-mu * t) - mu * math.exp(-theta * t)) / (theta - mu)
        return (1 - waits) * math.exp(-mu * t) + waits * both

    low, high = 0.0, 100 * MEAN_S / (1 - load)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if slower(middle) > 1 - q else (low, middle)
    return low


def latencies_s(fleet, load, seed=1, steps=20_000):
    """Return latencies of a fleet at a load, after a warm-up, in the two ways there are."""
    rate = load * fleet.count * fleet.replica.full_rate
    source = np.random.default_rng(seed)
    if fleet.is_one_queue:
        queues = simulation._LeastLoaded(fleet, Arrivals(rate), source)
    else:
        queues = simulation._RoundRobin(fleet, Arrivals(rate), 200, source)
    queues.run(steps)
    return queues.seen()


class TestAgainstTheory:
    @pytest.mark.parametrize("load", [0.5, 0.9])
    def test_one_slot_with_exponential_service_waits_as_in_mm1(self, load):
        found = latencies_s(
            SimulatedFleet(SimulatedReplica(EXPONENTIAL, 1), 1, "round-robin"), load
        )
        assert found.mean() == pytest.approx(MEAN_S / (1 - load), rel=0.05)
        assert np.quantile(found, 0.99) == pytest.approx(
            MEAN_S / (1 - load) * math.log(100), rel=0.08
        )

    @pytest.mark.parametrize("load", [0.5, 0.9])
    def test_one_slot_with_constant_service_waits_as_in_md1(self, load):
        found = (
            latencies_s(SimulatedFleet(SimulatedReplica(CONSTANT, 1), 1, "round-robin"), load)
            - MEAN_S
        )
        assert found.mean() == pytest.approx(load * MEAN_S / (2 * (1 - load)), rel=0.05)
        assert (found > 1e-9).mean() == pytest.approx(load, rel=0.02)

    @pytest.mark.parametrize(("slots", "load"), [(2, 0.8), (4, 0.9), (16, 0.9)])
    def test_slots_wait_as_erlang_c_says(self, slots, load):
        found = latencies_s(
            SimulatedFleet(SimulatedReplica(EXPONENTIAL, slots), 1, "round-robin"),
            load,
            steps=20_000,
        )
        waits_s = erlang_c(slots, load) * MEAN_S / (slots * (1 - load))
        assert found.mean() - MEAN_S == pytest.approx(waits_s, rel=0.08)
        assert np.quantile(found, 0.99) == pytest.approx(
            mmc_quantile_s(slots, load, 0.99), rel=0.06
        )

    def test_two_single_replicas_least_loaded_are_between_one_queue_and_two(self):
        load = 0.8
        found = latencies_s(
            SimulatedFleet(SimulatedReplica(EXPONENTIAL, 1), 2, "least-loaded"), load, steps=200_000
        ).mean()
        one_queue_s = MEAN_S + erlang_c(2, load) * MEAN_S / (2 * (1 - load))
        assert one_queue_s * 0.99 < found < MEAN_S / (1 - load) * 0.8

    def test_with_service_times_that_vary_least_loaded_waits_less_than_round_robin(self):
        replica = SimulatedReplica(EXPONENTIAL, 2)
        by_load, in_turn = (
            latencies_s(SimulatedFleet(replica, 4, policy), 0.9, steps=steps)
            for policy, steps in (("least-loaded", 200_000), ("round-robin", 10_000))
        )
        assert np.quantile(by_load, 0.99) < 0.8 * np.quantile(in_turn, 0.99)

    def test_with_constant_service_least_loaded_is_round_robin(self):
        replica = SimulatedReplica(CONSTANT, 4)
        by_load, in_turn = (
            latencies_s(SimulatedFleet(replica, 6, policy), 0.8, steps=steps)
            for policy, steps in (("least-loaded", 200_000), ("round-robin", 10_000))
        )
        assert np.quantile(by_load, 0.99) == pytest.approx(np.quantile(in_turn, 0.99), rel=0.05)

    def test_many_replicas_with_an_idle_one_always_at_hand_never_wait(self):
        found = latencies_s(
            SimulatedFleet(SimulatedReplica(CONSTANT, 2), 50, "least-loaded"), 0.5, steps=50_000
        )
        assert found.max() == pytest.approx(MEAN_S)

    def test_a_slot_held_for_longer_than_the_answer_takes_delays_only_others(self):
        found = latencies_s(
            SimulatedFleet(SimulatedReplica(CONSTANT, 1, hold=2.0), 1, "round-robin"), 0.8
        )
        held_s = 2 * MEAN_S
        assert found.mean() - MEAN_S == pytest.approx(0.8 * held_s / (2 * 0.2), rel=0.06)

    def test_closed_loop_of_one_more_than_there_are_slots_is_full(self):
        found = simulation.closed_loop(SimulatedReplica(CONSTANT, 4), 5, 10_000)
        assert 5 / found[1000:].mean() == pytest.approx(4 / MEAN_S, rel=0.01)

    def test_replay_of_due_times_waits_in_line(self):
        found = simulation.replay(SimulatedReplica(CONSTANT, 1), np.array([0.0, 0.0, 0.005, 1.0]))
        assert found == pytest.approx([0.01, 0.02, 0.025, 0.01])


class TestSimulate:
    @pytest.mark.parametrize("load", [0.6, 0.9])
    def test_interval_near_full_load_holds_what_theory_says(self, load):
        fleet = SimulatedFleet(SimulatedReplica(EXPONENTIAL, 4), 1, "round-robin")
        found = simulate(fleet, Arrivals(load * fleet.replica.full_rate), 0.99, seed=2)
        expected_s = mmc_quantile_s(4, load, 0.99)
        assert not found.trouble
        assert found.value_s == pytest.approx(expected_s, rel=0.12)
        assert found.low_s * 0.97 < expected_s < found.high_s * 1.03

    def test_more_than_full_is_not_simulated(self):
        fleet = SimulatedFleet(SimulatedReplica(CONSTANT, 1), 2, "least-loaded")
        found = simulate(fleet, Arrivals(200.0), 0.99)
        assert "grows" in found.trouble
        assert not found.keeps(math.inf)

    def test_too_near_to_full_is_not_kept(self):
        fleet = SimulatedFleet(SimulatedReplica(EXPONENTIAL, 1), 2, "least-loaded")
        found = simulate(fleet, Arrivals(199.9), 0.99, limit_s=1e9)
        assert "near to full" in found.trouble
        assert not found.keeps(1e9)

    def test_second_half_that_is_slower_says_that_the_queue_grows(self):
        rising = np.linspace(1.0, 2.0, 2 * 10 * 100).reshape(2, 10, 100)
        outcome, is_long = simulation._judged(0.9, rising, 0.99)
        assert "grows" in outcome.trouble
        assert not is_long
        even = np.random.default_rng(0).exponential(1.0, (2, 10, 1000))
        outcome, is_long = simulation._judged(0.9, even, 0.99)
        assert not outcome.trouble
        assert is_long

    def test_lasts_the_longer_the_nearer_it_is_to_full_load(self):
        fleet = SimulatedFleet(SimulatedReplica(EXPONENTIAL, 4), 3, "least-loaded")
        short, long = (
            simulation._length(fleet, Arrivals(load * 3 * fleet.replica.full_rate))
            for load in (0.5, 0.95)
        )
        assert long > 100 * short

    def test_ends_early_where_the_limit_is_surely_broken(self):
        fleet = SimulatedFleet(SimulatedReplica(EXPONENTIAL, 1), 3, "least-loaded")
        long = simulate(fleet, Arrivals(240.0), 0.9)
        short = simulate(fleet, Arrivals(240.0), 0.9, limit_s=MEAN_S)
        assert short.requests < long.requests / 4
        assert not short.keeps(MEAN_S)

    def test_same_seed_gives_the_same_and_another_one_not(self):
        fleet = SimulatedFleet(SimulatedReplica(EXPONENTIAL, 2), 3, "least-loaded")
        first, again, other = (simulate(fleet, Arrivals(300.0), 0.9, seed=n) for n in (1, 1, 2))
        assert first == again
        assert first != other

    @pytest.mark.parametrize("policy", ["least-loaded", "round-robin"])
    def test_recorded_arrivals_without_bursts_wait_less_than_poisson(self, policy):
        fleet = SimulatedFleet(SimulatedReplica(CONSTANT, 1), 2, policy)
        even = simulate(fleet, Arrivals(160.0, np.ones(1000)), 0.9)
        poisson = simulate(fleet, Arrivals(160.0), 0.9)
        assert even.value_s == pytest.approx(MEAN_S, rel=0.01)
        assert poisson.low_s > even.high_s


@pytest.mark.parametrize("gaps", [None, np.random.default_rng(3).exponential(1.0, 5000)])
def test_every_nth_request_comes_at_an_nth_of_the_rate(gaps):
    arrivals = Arrivals(1000.0, None if gaps is None else gaps / gaps.mean())
    following = arrivals.every(10, 50, np.random.default_rng(0))
    times = np.concatenate([following(500), following(500)])
    assert (np.diff(times, axis=0) > 0).all()
    assert np.diff(times, axis=0).mean() == pytest.approx(0.01, rel=0.03)
