"""Waiting, with a server that says what a test wants and a clock that only jumps."""

import pytest

from tfserve_kit.clients import Target, VersionStatus
from tfserve_kit.errors import (
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    ServerFailed,
    ServerFault,
    ServerUnreachable,
)
from tfserve_kit.serving import swap
from tfserve_kit.serving.waiting import _readiness, ask


class FakeClock:
    """A clock that moves when somebody sleeps."""

    def __init__(self):
        self.now = 0.0

    def now_s(self):
        return self.now

    def sleep(self, duration_s):
        self.now += duration_s


class Story:
    """A server whose status list changes with the time: (from second, list or error)."""

    url = "grpc://fake:8500"

    def __init__(self, clock, *chapters):
        self._clock, self._chapters = clock, chapters

    def status(self, target, *, timeout_s):
        assert target == Target("m")
        said = [says for since_s, says in self._chapters if since_s <= self._clock.now][-1]
        if isinstance(said, Exception):
            raise said
        return [VersionStatus(*each) for each in said]


class Notes:
    """A progress that keeps what it is told."""

    def __init__(self):
        self.notes = []

    def step(self, text):
        self.notes.append(text)

    def note(self, text):
        self.notes.append(text)

    def advance(self, done, total):
        pass


def wait(*chapters, timeout_s=10.0, **options):
    clock = FakeClock()
    return swap.wait(Story(clock, *chapters), "m", 2, timeout_s=timeout_s, clock=clock, **options)


OLD = (1, "AVAILABLE")


def test_version_is_awaited_and_its_times_are_told():
    found = wait((0, [OLD]), (2, [(2, "LOADING"), OLD]), (5, [(2, "AVAILABLE"), OLD]))
    assert found.version == 2
    assert found.known_s == pytest.approx(2, abs=0.1)
    assert found.available_s == pytest.approx(5, abs=0.1)


def test_states_are_told_once_each():
    notes = Notes()
    wait((0, [OLD]), (2, [(2, "LOADING"), OLD]), (5, [(2, "AVAILABLE")]), progress=notes)
    assert notes.notes == ["waiting for version 2 of 'm'", "version 2 LOADING",
                           "version 2 AVAILABLE"]  # fmt: skip


def test_load_that_failed_for_good_ends_the_wait_with_the_servers_words():
    with pytest.raises(ServerFailed, match=r"version 2 of 'm' failed to load at .*: checksum"):
        wait((0, [OLD]), (3, [(2, "END", "checksum"), OLD]), (4, [(2, "AVAILABLE")]))


def test_load_that_is_tried_again_is_waited_for():
    found = wait((0, [(2, "LOADING", "busy"), OLD]), (6, [(2, "AVAILABLE"), OLD]))
    assert found.available_s == pytest.approx(6, abs=0.1)


def test_end_without_error_is_of_an_earlier_life_of_the_number():
    found = wait((0, [(2, "END"), OLD]), (4, [(2, "AVAILABLE"), OLD]))
    assert found.available_s == pytest.approx(4, abs=0.1)


@pytest.mark.parametrize(
    "silence", [ServerUnreachable("gone"), ModelNotFound("none"), ModelNotFound("restarting")]
)
def test_server_that_is_away_for_a_while_is_waited_for(silence):
    assert wait((0, silence), (3, [(2, "AVAILABLE")])).available_s == pytest.approx(3, abs=0.1)


def test_error_that_waiting_does_not_mend_goes_up():
    with pytest.raises(ServerFault):
        wait((0, ServerFault("broken")))


@pytest.mark.parametrize(
    ("said", "message", "remedy"),
    [
        ([OLD, (0, "END")], "the server says: 1 AVAILABLE, 0 END", "policy may be pinned"),
        ([(2, "LOADING", "busy"), OLD], r"2 LOADING \(busy\)", "load_retry_interval_micros"),
        ([(2, "END"), (3, "AVAILABLE")], "2 END, 3 AVAILABLE", "a higher one is there"),
        ([], "does not know the model", "reads this base path"),
        (ServerUnreachable("gone"), "the server does not answer", "tfkit status"),
    ],
)
def test_version_that_does_not_come_is_an_error_that_says_what_the_server_said(
    said, message, remedy
):
    with pytest.raises(ServerFailed, match=f"was not AVAILABLE after 10 s.*{message}") as caught:
        wait((0, said))
    assert remedy in caught.value.remedy


# Until it is gone


def wait_gone(*chapters):
    clock = FakeClock()
    swap.wait_gone(Story(clock, *chapters), "m", 2, timeout_s=10, clock=clock)
    return clock.now


@pytest.mark.parametrize("state", ["UNLOADING", "END"])
def test_version_that_is_let_go_is_gone(state):
    assert wait_gone((0, [(2, "AVAILABLE")]), (4, [(2, state), OLD])) == pytest.approx(4, abs=0.1)


def test_version_that_is_not_known_is_gone():
    assert wait_gone((0, [OLD])) == 0


def test_silence_does_not_say_that_a_version_is_gone():
    assert wait_gone((0, ServerUnreachable("x")), (3, [OLD])) == pytest.approx(3, abs=0.1)


def test_version_that_stays_is_an_error():
    with pytest.raises(ServerFailed, match="was not unloaded within 10 s: 2 AVAILABLE"):
        wait_gone((0, [(2, "AVAILABLE")]))


READY, NOT_YET, FAILED = True, None, False


def status(version, state, error=""):
    return VersionStatus(version, state, error)


@pytest.mark.parametrize(
    ("statuses", "versions", "expected"),
    [
        ([], (), NOT_YET),
        ([status(1, "START")], (), NOT_YET),
        ([status(1, "LOADING")], (), NOT_YET),
        ([status(1, "UNLOADING")], (), NOT_YET),
        ([status(1, "AVAILABLE")], (), READY),
        ([status(1, "END")], (), NOT_YET),
        ([status(1, "END", "bad")], (), FAILED),
        ([status(2, "END", "bad"), status(1, "AVAILABLE")], (), READY),
        ([status(2, "END", "bad"), status(1, "LOADING")], (), NOT_YET),
        ([status(2, "END", "bad"), status(1, "END")], (), NOT_YET),
        ([status(2, "END", "bad"), status(1, "END", "bad")], (), FAILED),
        ([status(2, "LOADING", "bad")], (), NOT_YET),
        ([status(2, "LOADING"), status(1, "AVAILABLE")], (2,), NOT_YET),
        ([status(2, "LOADING"), status(1, "AVAILABLE")], (1,), READY),
        ([status(2, "AVAILABLE"), status(1, "END", "bad")], (1,), FAILED),
        ([status(2, "AVAILABLE")], (3,), NOT_YET),
        ([status(0, "AVAILABLE")], (0,), READY),
        ([status(1, "AVAILABLE")], (0,), NOT_YET),
        ([status(2, "AVAILABLE"), status(1, "AVAILABLE")], (1, 2), READY),
        ([status(2, "AVAILABLE"), status(1, "LOADING")], (1, 2), NOT_YET),
        ([status(2, "END", "bad"), status(1, "LOADING")], (1, 2), FAILED),
    ],
)
def test_readiness_of_the_statuses_is(statuses, versions, expected):
    assert _readiness(statuses, versions) is expected


class OneAnswerClient:
    """Answers `status` with a list, or raises."""

    def __init__(self, answer):
        self._answer, self.asked = answer, None

    def status(self, target, *, timeout_s):
        self.asked = (target, timeout_s)
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ([status(1, "LOADING")], [status(1, "LOADING")]),
        ([], []),
        (ServerUnreachable("x"), None),
        (DeadlineExceeded("x"), None),
        (ModelNotFound("x"), []),
    ],
)
def test_ask_tells_no_answer_from_an_empty_one(answer, expected):
    client = OneAnswerClient(answer)
    assert ask(client, "m", timeout_s=3) == expected
    assert client.asked == (Target("m"), 3)


@pytest.mark.parametrize("error", [InvalidRequest("x"), ServerFault("x")])
def test_ask_lets_errors_pass_that_waiting_does_not_mend(error):
    with pytest.raises(type(error)):
        ask(OneAnswerClient(error), "m")


def wait_each(found=None, **stories):
    clock = FakeClock()
    clients = {name: Story(clock, *chapters) for name, chapters in stories.items()}
    return swap.wait_each(clients, "m", 2, timeout_s=10.0, clock=clock, found=found)


NEW = (2, "AVAILABLE")


def test_version_is_awaited_on_every_replica_and_each_time_is_told():
    found = wait_each(b=[(0, [OLD]), (3, [NEW])], a=[(0, [OLD]), (1, [NEW])])
    assert list(found) == ["b", "a"]
    assert found["b"].available_s == pytest.approx(3, abs=0.1)
    assert found["a"].available_s == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    ("says", "message"),
    [
        ([OLD], "on replica b was not AVAILABLE after 10 s"),
        ([(2, "END", "checksum"), OLD], "on replica b: checksum"),
        (ServerUnreachable("away"), "the server does not answer"),
    ],
)
def test_replica_that_does_not_have_the_version_is_named_and_the_others_are_known(says, message):
    found = {}
    with pytest.raises(ServerFailed, match=message):
        wait_each(found, b=[(0, says)], a=[(0, [OLD]), (2, [NEW])])
    assert list(found) == ["a"]
