"""Who gets a turn, with begins that only note it."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfserve_kit.embedded import limits
from tfserve_kit.embedded.lanes import Lane, give_way, processors
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


@pytest.mark.parametrize(
    ("count", "entering", "begun"),
    [
        (2, "aaa", "aa"),
        (2, "aab", "aab"),  # nobody waits for another group
        (4, "aaaaabbb", "aaaabb"),
        (2, "aabb", "aab"),
        (2, "abab", "ab"),
        (2, "aabcd", "aabcd"),
        (1, "aab", "ab"),
        (3, "aaaaab", "aaab"),
    ],
)
def test_processors_are_shared_and_each_group_has_one(count, entering, begun):
    lane, found = processors(count), []
    for group in entering:
        lane.enter(group, lambda turn: found.append(turn.group))
    assert "".join(found) == begun


def test_processor_that_becomes_free_goes_to_the_group_with_the_fewest():
    lane, found = processors(2), []
    turns = [lane.enter(group, lambda turn: found.append(turn.group)) for group in "aaaabb"]
    assert found == ["a", "a", "b"]
    turns[0].end()
    assert found == ["a", "a", "b"]  # as many as there are processors
    turns[1].end()
    assert found == ["a", "a", "b", "a"]


def test_any_number_may_wait_for_a_processor():
    lane = processors(1)
    for _ in range(3 * limits.MOST_WAITING):
        lane.enter("a", lambda _: None)
    assert lane.waiting == 3 * limits.MOST_WAITING - 1


@given(st.integers(1, 4), st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=60))
def test_processors_are_never_idle_while_somebody_waits(count, steps):
    lane, held = processors(count), []
    for group, is_entering in steps:
        if is_entering:
            lane.enter(group, held.append)
        elif held:
            held.pop(0).end()
        groups = {turn.group for turn in held}
        assert len(held) <= count + 2 * -(-count // 2)  # and equal shares of the two others
        assert len(held) >= min(count, len(held) + lane.waiting)
        assert set(lane._parties) == groups


@pytest.mark.parametrize(
    ("quota", "found"),
    [
        (None, 4),
        ("max 100000", 4),
        ("200000 100000", 2),
        ("150000 100000", 2),
        ("1000 100000", 1),
        ("900000 100000", 4),
        ("nonsense", 4),
        ("", 4),
    ],
)
@pytest.mark.parametrize("given", [0, -1])
def test_processors_are_those_of_the_process_and_of_its_container(
    tmp_path, monkeypatch, quota, found, given
):
    monkeypatch.setattr(limits.os, "sched_getaffinity", lambda _: {0, 1, 2, 5}, raising=False)
    monkeypatch.setattr(limits, "_PROCESSORS", tmp_path / "cpu.max")
    if quota is not None:
        (tmp_path / "cpu.max").write_text(quota)
    begun = []
    lane = processors(given)
    for _ in range(9):
        lane.enter("a", begun.append)
    assert len(begun) == found


def niceness():
    return os.getpriority(os.PRIO_PROCESS, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own")
def test_thread_that_is_started_by_one_that_has_given_way_gives_way_no_further():
    def started():
        with ThreadPoolExecutor(1, initializer=give_way) as inner:
            return niceness(), inner.submit(niceness).result()

    with ThreadPoolExecutor(1, initializer=give_way) as outer:
        mine, others = outer.submit(started).result()
    assert mine == others == min(niceness() + 5, 19)
