"""The search as a whole, on simulated servers."""

import pytest

from tests.unit.tuning.simulated import Bed, small_batches_are_best
from tfserve_kit.errors import ServerFailed, UsageError
from tfserve_kit.perf import gate
from tfserve_kit.tuning import Effort, HighestRate, LowestLatency, Space, tune
from tfserve_kit.tuning.tune import DEFAULT

GOAL = HighestRate(gate.parse("p95<50ms"))
SPACE = Space(cpus=4, rows=1, protocol="grpc", patience_s=0.05)


@pytest.fixture
def effort(tmp_path):
    """Make an effort that is kept in the test's folder."""

    def make(trials=12, rounds=6, **options):
        return Effort(tmp_path / "tuned", trials, rounds, **options)

    return make


def test_best_settings_are_found_and_proved(effort):
    bed = Bed(small_batches_are_best)
    tuned = tune(bed, GOAL, SPACE, effort())
    assert tuned.winner.candidate.batching.max_batch_size <= 8
    assert tuned.is_better and tuned.proof.gain == pytest.approx(2, rel=0.3)
    assert len(tuned.proof.pairs) == 6
    assert len(tuned.tried) == 12 and len({str(each.candidate) for each in tuned.tried}) == 12
    assert tuned.tried[DEFAULT].candidate.batching_set() == {}
    assert tuned.tried[1].candidate.batching is None
    assert bed.running == set()


def test_settings_that_no_server_starts_with_are_named_and_passed_over(effort):
    def fussy(candidate):
        if candidate.batching and candidate.batching.num_batch_threads == 1:
            raise ServerFailed("one thread is too few")
        return 0.005

    tuned = tune(Bed(fussy), GOAL, SPACE, effort(trials=4))
    assert [each.failure for each in tuned.tried[:3]] == ["", "", "one thread is too few"]
    assert tuned.tried[2].value("maximize") is None and len(tuned.tried) == 4


def test_server_that_does_not_start_with_its_defaults_is_an_error(effort):
    def broken(candidate):
        raise ServerFailed("no such model")

    with pytest.raises(ServerFailed, match="no such model"):
        tune(Bed(broken), GOAL, SPACE, effort())


def test_who_is_measured_first_alternates_from_round_to_round_of_the_proof(effort):
    bed = Bed(small_batches_are_best)
    tuned = tune(bed, LowestLatency(100, "p95"), SPACE, effort(rounds=4))
    order = [name.removeprefix("tune-") for name in bed.measured if name != "tune"]
    assert order == ["default", "best", "best", "default"] * 2
    assert all(before > after for before, after in tuned.proof.pairs)


def test_lowest_latency_has_the_same_winner(effort):
    tuned = tune(Bed(small_batches_are_best), LowestLatency(100, "p95"), SPACE, effort())
    assert tuned.winner.candidate.batching.max_batch_size <= 8
    assert tuned.is_better


def test_the_best_few_are_tried_twice_and_count_with_the_worse_value(effort):
    tuned = tune(Bed(small_batches_are_best), GOAL, SPACE, effort())
    twice = [each for each in tuned.tried if len(each.scores) == 2]
    assert len(twice) == 3 and tuned.winner in twice
    for each in twice:
        assert each.value("maximize") == min(score.value for score in each.scores)


def test_where_all_settings_are_alike_nothing_is_proved_to_be_better(effort):
    tuned = tune(Bed(lambda candidate: 0.003), GOAL, SPACE, effort(trials=5))
    assert not tuned.is_better


def test_where_nothing_keeps_the_limit_there_is_no_winner(effort):
    tuned = tune(Bed(lambda candidate: 1.0), GOAL, SPACE, effort(trials=3))
    assert tuned.winner is None and tuned.proof is None


def test_a_default_that_keeps_nothing_is_beaten_by_what_keeps_something(effort):
    def service_s(candidate):
        return 0.005 if candidate.batching is None else 1.0

    tuned = tune(Bed(service_s), GOAL, SPACE, effort(trials=2))
    assert tuned.winner.candidate.batching is None
    assert tuned.is_better and [before for before, _ in tuned.proof.pairs] == [0.0] * 6


class TestInterrupted:
    def after(self, count):
        """Return a service time that Ctrl-C ends after so many servers."""
        left = iter(range(count))

        def service_s(candidate):
            if next(left, None) is None:
                raise KeyboardInterrupt
            return small_batches_are_best(candidate)

        return service_s

    def test_search_tells_what_it_found_and_goes_on_later(self, effort):
        first = tune(Bed(self.after(5)), GOAL, SPACE, effort())
        assert first.is_interrupted and first.winner is not None and len(first.tried) == 5
        bed = Bed(small_batches_are_best)
        second = tune(bed, GOAL, SPACE, effort())
        assert [e.candidate for e in second.tried[:5]] == [e.candidate for e in first.tried]
        assert len(second.tried) == 12
        assert len(bed.started) <= 7 + 3 + 2
        assert second.is_better

    def test_proof_goes_on_where_it_was(self, effort):
        tune(Bed(small_batches_are_best), GOAL, SPACE, effort(rounds=4))
        bed = Bed(small_batches_are_best)
        tuned = tune(bed, GOAL, SPACE, effort(rounds=6))
        assert len(bed.started) == 2 and len(tuned.proof.pairs) == 6

    def test_finished_search_starts_nothing(self, effort):
        first = tune(Bed(small_batches_are_best), GOAL, SPACE, effort())
        bed = Bed(small_batches_are_best)
        assert tune(bed, GOAL, SPACE, effort()) == first
        assert bed.started == []


@pytest.mark.parametrize("change", [{"about": {"batch": 2}}, {"goal": LowestLatency(9)}])
def test_another_search_in_the_same_folder_is_refused(effort, change):
    about = {"about": {"batch": 1}}
    tune(Bed(lambda candidate: 1.0), GOAL, SPACE, effort(trials=1, **about))
    goal = change.pop("goal", GOAL)
    with pytest.raises(UsageError, match=r"holds a search with another (batch|goal)"):
        tune(Bed(small_batches_are_best), goal, SPACE, effort(**about | change))


def test_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot keep a search in"):
        tune(Bed(small_batches_are_best), GOAL, SPACE, Effort(tmp_path / "file" / "tuned"))


def test_luck_does_not_win(effort):
    quick = iter([0.001])

    def service_s(candidate):
        return next(quick, 0.02) if candidate.batching is None else 0.004

    tuned = tune(Bed(service_s), GOAL, SPACE, effort(trials=2))
    assert tuned.winner.number == DEFAULT
    lucky = tuned.tried[1]
    assert lucky.scores[0].value > 700 and lucky.value("maximize") is None
