"""Who gets a turn, with begins that only note it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfserve_kit.embedded.lanes import Lane
from tfserve_kit.embedded.status import Code, ServingError

PATIENCE_S = 10.0


class Bench:
    """A lane and the turns asked for, by name: the first letter is the group."""

    def __init__(self, turns, most_waiting=100):
        self.lane = Lane(turns, most_waiting)
        self.begun, self.turns = [], {}

    def enter(self, *names):
        for name in names:
            self.turns[name] = self.lane.enter(
                name[0], lambda _, name=name: self.begun.append(name)
            )

    def end(self, *names):
        for name in names:
            self.turns[name].end()


def test_turns_come_in_order_within_a_group():
    bench = Bench(2)
    bench.enter("a1", "a2", "a3", "a4")
    assert bench.begun == ["a1", "a2"]
    bench.end("a2", "a1")
    assert bench.begun == ["a1", "a2", "a3", "a4"]


def test_one_turn_is_never_two():
    bench = Bench(1)
    bench.enter("a1", "b1", "c1")
    assert bench.begun == ["a1"]
    bench.end("a1")
    assert bench.begun == ["a1", "b1"]


def test_newcomer_begins_although_another_group_has_all_turns():
    bench = Bench(8)
    bench.enter(*(f"a{number}" for number in range(50)))
    assert len(bench.begun) == 8
    bench.enter("b1", "b2")
    assert bench.begun[8:] == ["b1", "b2"]


def test_turn_that_ends_goes_to_the_group_with_the_fewest():
    bench = Bench(2)
    bench.enter("a1", "a2", "a3", "a4", "b1", "b2", "b3")
    assert bench.begun == ["a1", "a2", "b1"]
    bench.end("b1")
    assert bench.begun[-1] == "b2"
    bench.end("a1")  # both have one now, so it is enough that two are taken
    assert bench.begun[-1] == "b2"
    bench.end("a2", "b2")
    assert bench.begun[-2:] == ["a3", "b3"]


def test_turn_nobody_waits_for_any_more_is_skipped():
    bench = Bench(1)
    bench.enter("a1", "a2", "a3")
    bench.end("a2", "a1")
    assert bench.begun == ["a1", "a3"]


def test_turn_ended_twice_counts_once():
    bench = Bench(1)
    bench.enter("a1", "a2", "a3")
    bench.end("a1", "a1")
    assert bench.begun == ["a1", "a2"]


def test_group_with_the_most_waiting_is_refused_and_others_may_wait():
    bench = Bench(1, most_waiting=10)
    bench.enter("z")
    with pytest.raises(ServingError) as caught:
        bench.enter(*(f"a{number}" for number in range(20)))
    assert caught.value.code is Code.UNAVAILABLE
    assert len(bench.turns) == 1 + 8
    bench.enter("b1")
    with pytest.raises(ServingError):
        bench.enter("c1")  # nothing is left at all
    bench.end(*bench.turns)
    assert bench.lane._parties == {}


@given(
    st.integers(1, 6),
    st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.integers(0, 30)), max_size=60),
)
def test_any_order_of_entering_and_ending_keeps_the_bounds_and_loses_nobody(turns, steps):
    lane, begun, asked = Lane(turns, most_waiting=40), [], []
    for group, is_entering, index in steps:
        if is_entering:
            name = f"{group}{len(asked)}"
            try:
                asked.append((name, lane.enter(group, lambda _, name=name: begun.append(name))))
            except ServingError:
                continue
        elif asked:
            asked[index % len(asked)][1].end()
        assert lane._taken <= turns + turns // 2
        assert lane._taken >= min(turns, lane._taken + lane.waiting)
    for _ in range(2):
        for _, turn in asked:
            turn.end()
    assert lane._taken == lane.waiting == 0
    assert not lane._parties
    assert len(begun) == len(set(begun))
