"""Which replica is next, and which are left out: rules over outcomes and time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.clients.scripts import FakeClock
from tfserve_kit.clients.rotation import (
    FIRST_PAUSE_S,
    LONGEST_PAUSE_S,
    PROBE_S,
    QUIET_S,
    Rotation,
)

URLS = ("a", "b", "c")


def rotation(clock, urls=URLS):
    return Rotation(urls, clock, chance=lambda: 0.0)


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def replicas(clock):
    return rotation(clock)


def use(replicas, is_alive, tried=()):
    """Send a request, have it end; return the replica."""
    taken = replicas.take(tried)
    replicas.gave(taken, is_alive=is_alive)
    return taken


def down(replicas, url):
    """Have a replica fail."""
    for each in [replicas.take() for _ in replicas.replicas]:
        replicas.gave(each, is_alive=each.url != url)


def named(found):
    return [each.url for each in found]


def test_replicas_take_turns_where_none_is_busier(replicas):
    assert sorted(named(use(replicas, True) for _ in range(6))) == sorted(URLS * 2)


def test_requests_that_alternate_with_others_are_spread_all_the_same(clock):
    replicas = Rotation("ab", clock)
    every_second = [use(replicas, True) for _ in range(400)][::2]
    assert 60 < named(every_second).count("a") < 140


def test_one_with_the_fewest_outstanding_requests_is_next(replicas):
    busy = [replicas.take() for _ in range(6)]
    replicas.gave(busy[4], is_alive=True)
    assert replicas.take() is busy[4]


def test_one_that_fails_is_left_out_and_asked_after_a_pause(replicas, clock):
    down(replicas, "b")
    assert "b" not in named(use(replicas, True) for _ in range(20))
    assert replicas.to_ask() == []
    clock.sleep(FIRST_PAUSE_S)
    assert named(replicas.to_ask()) == ["b"]
    assert replicas.to_ask() == []  # the answer to the first is on its way


def test_one_that_answers_a_probe_takes_requests_again(replicas, clock):
    down(replicas, "b")
    clock.sleep(FIRST_PAUSE_S)
    (asked,) = replicas.to_ask()
    assert not replicas.told(asked, is_alive=True, asked_s=clock.now_s())
    assert "b" in named(use(replicas, True) for _ in range(3))


def test_pauses_grow_until_a_request_is_answered(replicas, clock):
    pauses_s = []
    for _ in range(5):  # it answers probes, and nothing else
        down(replicas, "b")
        began_s = clock.now_s()
        while not (asked := replicas.to_ask()):
            clock.sleep(0.05)
        pauses_s.append(clock.now_s() - began_s)
        replicas.told(asked[0], is_alive=True, asked_s=clock.now_s())
    assert pauses_s == pytest.approx([0.2, 0.4, 0.8, LONGEST_PAUSE_S, LONGEST_PAUSE_S], abs=0.051)
    for _ in range(3):
        use(replicas, True)
    down(replicas, "b")
    clock.sleep(FIRST_PAUSE_S)
    assert named(replicas.to_ask()) == ["b"]


def test_many_requests_that_fail_at_once_are_one_failure(replicas, clock):
    taken = [replicas.take() for _ in range(30)]
    for each in taken:
        replicas.gave(each, is_alive=each.url != "b")
    clock.sleep(FIRST_PAUSE_S)
    assert named(replicas.to_ask()) == ["b"]


def test_one_that_owes_answers_and_is_silent_is_asked_and_left_out(replicas, clock):
    silent = replicas.take()
    clock.sleep(QUIET_S)
    assert replicas.to_ask() == [silent]
    asked_s = clock.now_s()
    clock.sleep(PROBE_S)
    assert replicas.told(silent, is_alive=False, asked_s=asked_s)
    assert silent.is_out


def test_last_one_is_waited_for_however_silent_it_is(replicas, clock):
    silent = [replicas.take() for _ in URLS]
    clock.sleep(QUIET_S)
    replicas.to_ask()
    asked_s = clock.now_s()
    clock.sleep(PROBE_S)
    told = [replicas.told(each, is_alive=False, asked_s=asked_s) for each in silent]
    assert told == [True, True, False]
    assert [each.is_out for each in silent] == told
    clock.sleep(FIRST_PAUSE_S)
    replicas.to_ask()
    replicas.told(silent[0], is_alive=True, asked_s=clock.now_s())  # then the last is no more
    assert replicas.told(silent[2], is_alive=False, asked_s=clock.now_s())


def test_slow_one_that_answers_the_probe_stays(replicas, clock):
    slow = replicas.take()
    clock.sleep(QUIET_S)
    replicas.to_ask()
    assert not replicas.told(slow, is_alive=True, asked_s=clock.now_s())
    assert not slow.is_out and replicas.to_ask() == []


def test_answer_that_comes_during_the_probe_counts(replicas, clock):
    slow, _, _, again = (replicas.take() for _ in range(4))
    assert slow is again
    clock.sleep(QUIET_S)
    replicas.to_ask()
    asked_s = clock.now_s()
    clock.sleep(0.1)
    replicas.gave(slow, is_alive=True)
    assert not replicas.told(slow, is_alive=False, asked_s=asked_s)


def test_short_deadlines_do_not_hide_a_silent_one(replicas, clock):
    """Each caller stops waiting before the replica is asked."""
    silent = use(replicas, None)
    for _ in range(3):
        clock.sleep(QUIET_S / 2)
        while replicas.take() is not silent:
            pass
        replicas.gave(silent, is_alive=None)
    assert silent in replicas.to_ask()


def test_idle_replicas_are_left_in_peace(replicas, clock):
    for _ in range(3):
        use(replicas, True)
    clock.sleep(1000)
    assert replicas.to_ask() == []


def test_another_one_is_taken_for_a_request_that_failed(replicas):
    first = use(replicas, False)
    second = use(replicas, False, [first])
    third = use(replicas, False, [first, second])
    assert sorted(named([first, second, third])) == sorted(URLS)
    assert replicas.take([first, second, third]).is_out  # rather than none at all


def test_full_one_is_asked_again_rather_than_one_left_out(replicas):
    down(replicas, "b")
    full = [use(replicas, True), use(replicas, True)]
    assert not replicas.take(full).is_out


def test_replicas_that_stay_keep_what_is_known_of_them(replicas):
    down(replicas, "b")
    gone = replicas.update(["b", "c", "d"])
    assert named(gone) == ["a"] and named(replicas.replicas) == ["b", "c", "d"]
    assert [each.is_out for each in replicas.replicas] == [True, False, False]


ACTIONS = st.lists(
    st.one_of(
        st.just("take"),
        st.tuples(st.just("gave"), st.integers(0, 50), st.sampled_from([True, False, None])),
        st.tuples(st.just("sleep"), st.floats(0, 2)),
        st.just("ask"),
        st.tuples(st.just("told"), st.integers(0, 50), st.booleans()),
        st.tuples(st.just("update"), st.sets(st.sampled_from("abcdef"), min_size=1)),
    ),
    max_size=60,
)


@given(ACTIONS)
def test_whatever_happens_the_books_are_right(actions):
    clock = FakeClock()
    replicas = rotation(clock)
    owed, asked = [], []
    for action, *given_ in (each if isinstance(each, tuple) else (each,) for each in actions):
        if action == "take":
            taken = replicas.take()
            owed.append(taken)
            in_rotation = [each for each in replicas.replicas if not each.is_out]
            assert taken in (in_rotation or replicas.replicas)
            assert taken.outstanding - 1 == min(
                each.outstanding - (each is taken) for each in in_rotation or replicas.replicas
            )
        elif action == "gave" and owed:
            replicas.gave(owed.pop(given_[0] % len(owed)), is_alive=given_[1])
        elif action == "sleep":
            clock.sleep(given_[0])
        elif action == "ask":
            found = replicas.to_ask()
            assert not {id(each) for each in found} & {id(each) for each, _ in asked}
            asked += [(each, clock.now_s()) for each in found]
        elif action == "told" and asked:
            replica, asked_s = asked.pop(given_[0] % len(asked))
            was_out = replica.is_out
            is_news = replicas.told(replica, is_alive=given_[1], asked_s=asked_s)
            assert is_news == (replica.is_out and not was_out)
            assert not (given_[1] and replica.is_out)
        elif action == "update":
            replicas.update(sorted(given_[0]))
        for each in replicas.replicas:
            assert each.outstanding == owed.count(each)
    # However long it was away, a replica is asked again within the longest pause.
    out = [each for each in replicas.replicas if each.is_out and not each.asked]
    clock.sleep(LONGEST_PAUSE_S)
    assert set(out) <= set(replicas.to_ask())
