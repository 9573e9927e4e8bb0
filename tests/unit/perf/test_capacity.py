"""How many replicas: what runs say of one, what they cannot say, and the search."""

from dataclasses import replace
from heapq import heapreplace

import numpy as np
import pytest

from tfserve_kit.errors import UsageError
from tfserve_kit.perf import capacity, gate, report_html
from tfserve_kit.perf.capacity import Need
from tfserve_kit.perf.samples import SAMPLE, Mark, Run
from tfserve_kit.perf.stats import NamedRun, summarize

LIMIT = gate.parse_slo("p99=50ms")
SLOTS, SERVICE_S, WIRE_S = 4, 0.020, 0.001


def named(name, due_s, done_s, **settings):
    samples = np.zeros(len(due_s), SAMPLE)
    samples["sequence"] = np.arange(len(due_s))
    for column, values in (("due_ns", due_s), ("sent_ns", due_s), ("done_ns", done_s)):
        samples[column] = np.round(np.array(values) * 1e9)
    samples["first_byte_ns"] = samples["done_ns"]
    run = Run(samples, {"model": "m", "warmup_s": 0.0, **settings})
    return NamedRun(name, run, summarize(run))


def closed(concurrency, count=2000, name=None, **settings):
    """Return a run against a server of four slots, each request of 20 ms and 1 ms on the wire."""
    free, ready = [0.0] * SLOTS, [0.0] * concurrency
    due, done = [], []
    for _ in range(count):
        due.append(ready[0])
        end = max(ready[0], free[0]) + SERVICE_S
        heapreplace(free, end)
        heapreplace(ready, end + WIRE_S)
        done.append(end + WIRE_S)
    settings = {"loop": "closed", "concurrency": concurrency, **settings}
    return named(name or f"c{concurrency}", due, done, **settings)


def opened(rate, count=4000, **settings):
    due = np.cumsum(np.random.default_rng(1).exponential(1 / rate, count))
    free, done = [0.0] * SLOTS, []
    for at in due:
        end = max(at, free[0]) + SERVICE_S
        heapreplace(free, end)
        done.append(end + WIRE_S)
    return named(f"r{rate}", due, done, loop="open", arrivals="poisson", **settings)


def batching(run):
    seen = {"difference": {"batches": {"count": 10, "mean_rows": 2.0}}}
    return replace(run, run=replace(run.run, server=seen))


class TestProfile:
    def test_slots_and_what_holds_them_come_out_of_light_and_full_runs(self):
        found = capacity.profile([closed(16), closed(1)], LIMIT)
        assert found.replica.slots == SLOTS
        assert found.replica.service_s.mean() == pytest.approx(SERVICE_S + WIRE_S)
        assert found.replica.full_rate == pytest.approx(SLOTS / SERVICE_S, rel=0.01)
        assert found.replica.hold == pytest.approx(SERVICE_S / (SERVICE_S + WIRE_S), rel=0.01)
        assert found.is_full
        assert all(check.miss < 0.05 for check in found.checks)

    def test_open_run_shows_the_service_time_by_requests_that_found_the_server_idle(self):
        found = capacity.profile([opened(40.0)], LIMIT)
        assert found.replica.service_s.max() == pytest.approx(SERVICE_S + WIRE_S)
        assert not found.is_full
        assert any("No run showed the replica full" in text for text in found.assumptions)

    def test_light_run_with_several_in_flight_counts_if_more_load_is_no_slower(self):
        found = capacity.profile([closed(2), closed(4), closed(16)], LIMIT)
        assert found.replica.slots == SLOTS
        assert found.replica.service_s.mean() == pytest.approx(SERVICE_S + WIRE_S, rel=0.01)

    def test_single_full_closed_loop_cannot_tell(self):
        with pytest.raises(UsageError, match="do not show the service time") as error:
            capacity.profile([closed(16)], LIMIT)
        assert "--concurrency 1" in error.value.remedy

    def test_too_few_requests_for_the_quantile_cannot_tell(self):
        with pytest.raises(UsageError, match=r"p99\.9 needs 5,296"):
            capacity.profile([closed(1)], gate.parse_slo("p99.9=50ms"))

    def test_model_that_misses_its_runs_says_so(self):
        slow = closed(4)
        samples = slow.run.samples.copy()
        samples["done_ns"][::2] += 30_000_000  # as if two at a time were slower
        run = replace(slow.run, samples=samples)
        found = capacity.profile([closed(1), NamedRun("slow", run, summarize(run))], LIMIT)
        assert any(text.startswith("WARNING: the model misses slow") for text in found.assumptions)


class TestRefusals:
    def test_failed_requests(self):
        run = closed(1).run
        run.samples["status"][:20] = 14
        with pytest.raises(UsageError, match="20 failed or unanswered requests of 2,000"):
            capacity.profile([NamedRun("bad", run, summarize(run))], LIMIT)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"url": "grpc://a:1,grpc://b:1"}, "sent to a fleet"),
            ({"end_rate": 50.0}, "changed its load"),
            ({"is_overload": True}, "changed its load"),
        ],
    )
    def test_runs_of_something_else(self, settings, message):
        with pytest.raises(UsageError, match=message):
            capacity.profile([closed(1, **settings)], LIMIT)

    def test_disturbed_run(self):
        run = closed(1)
        run = replace(run, run=replace(run.run, marks=(Mark(1, "restart"),)))
        with pytest.raises(UsageError, match="disturbed"):
            capacity.profile([run], LIMIT)

    def test_runs_of_different_models(self):
        with pytest.raises(UsageError, match="model is 'm' and 'other'"):
            capacity.profile([closed(1), closed(16, model="other")], LIMIT)

    def test_batching_whose_effect_no_run_shows(self):
        with pytest.raises(UsageError, match="made batches"):
            capacity.profile([batching(closed(1)), batching(closed(16))], LIMIT)

    def test_batching_that_three_runs_show_to_do_nothing(self):
        runs = [batching(each) for each in (closed(1), closed(4), closed(16))]
        assert capacity.profile(runs, LIMIT).replica.slots == SLOTS

    def test_recorded_arrivals_of_a_closed_loop(self):
        need = Need(500.0, LIMIT, arrivals="recorded")
        with pytest.raises(UsageError, match="in a closed loop the server decides"):
            capacity.plan([closed(1)], need)


class TestPlan:
    def test_fewest_replicas_keep_the_limit_and_one_fewer_does_not(self):
        runs = [closed(1), closed(16)]
        found = capacity.plan(runs, Need(1000.0, gate.parse_slo("p99=35ms")))
        for policy in capacity.POLICIES:
            alone, dead, rollout = (each for each in found.answers if each.policy == policy)
            assert alone.kept
            assert alone.outcome.high_s < 0.035
            assert (dead.replicas, rollout.replicas) == (alone.replicas + 1, alone.replicas + 1)
            fewer = capacity.plan(runs, found.need, policies=[policy], replicas=alone.replicas - 1)
            assert not fewer.answers[0].kept
        assert found.kept

    def test_rollout_where_new_ones_start_first_takes_no_more(self):
        need = Need(300.0, LIMIT, unavailable=0)
        alone, _, rollout = capacity.plan([closed(1)], need, policies=["round-robin"]).answers
        assert rollout.replicas == alone.replicas

    def test_limit_below_the_service_time_is_never_kept(self):
        need = Need(100.0, gate.parse_slo("p99=15ms"))
        found = capacity.plan([closed(1)], need)
        assert not found.kept
        assert all("a request alone takes longer" in each.outcome.trouble for each in found.answers)
        assert [each.replicas for each in found.answers] == [None] * 6

    def test_one_replica_that_is_dead_serves_nobody(self):
        found = capacity.plan([closed(1)], Need(5.0, LIMIT), replicas=1, policies=["round-robin"])
        assert [each.kept for each in found.answers] == [True, False, False]
        assert found.answers[1].outcome.trouble == "no replica is in service"

    def test_same_seed_gives_the_same_data(self):
        need = Need(400.0, LIMIT, arrivals="recorded", seed=5)
        first, again = (capacity.as_data(capacity.plan([opened(40.0)], need)) for _ in range(2))
        assert first == again

    def test_page_shows_the_answer_and_needs_nothing_from_outside(self):
        need = Need(300.0, LIMIT)
        found = capacity.plan([closed(1), closed(16)], need, policies=["round-robin"], curves=True)
        page = report_html.capacity_page(found)
        assert capacity.conclusions(found)[0].replace("<", "&lt;") in page
        assert "<svg" in page
        assert not {"http://", "https://", "<script"} & set(page.split('"'))
        assert len(found.curves["round-robin"]) > 3
