"""The proof of a swap: a server that misbehaves as a test wants, in little real time; verdicts."""

import itertools
import json
import math
import shutil
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

from tfserve_kit.clients import Metadata, Prediction, Target, VersionStatus
from tfserve_kit.clock import SystemClock
from tfserve_kit.errors import ModelNotFound, PushRefused, ServerFault, ServerOverloaded, UsageError
from tfserve_kit.repository import list_versions, versions
from tfserve_kit.savedmodel import Signature, TensorSpec
from tfserve_kit.serving import swap
from tfserve_kit.serving.swap import SwapReport, _Answer, _judge, same
from tfserve_kit.tensors import dtypes

QUICK = swap.Traffic(rate=400, settle_s=0.05, swap_timeout_s=0.5, timeout_s=0.2)
X = TensorSpec("x:0", dtypes.by_number(1), (None, 2))
SIGNATURES = {"serving_default": Signature("serving_default", {"x": X}, {"y": X}, "")}


class Server:
    """A model server in memory; `act(number of request, version)` may change an answer."""

    url = "grpc://fake:8500"

    def __init__(self, base_path, act=lambda number, version: (version, version * 1.0)):
        self.base_path, self.act = base_path, act
        self.loads = True
        self.asked = []  # the targets, inputs and threads of predict
        self._requests = itertools.count()

    def push(self):
        shutil.copytree(self.base_path / "1", self.base_path / "2")
        return 2

    def metadata(self, target):
        return Metadata(1, SIGNATURES)

    def status(self, target, *, timeout_s=1.0):
        numbers = [version.number for version in list_versions(self.base_path)]
        served = numbers[-1] if self.loads else 1
        statuses = [VersionStatus(served, "AVAILABLE")] if numbers else []
        if not self.loads and 2 in numbers:
            statuses.append(VersionStatus(2, "END", "checksum"))
        return statuses

    def predict(self, target, inputs, *, timeout_s=1.0):
        number = next(self._requests)
        self.asked.append((target, inputs, threading.current_thread()))
        (served,) = [each.version for each in self.status(target) if each.state == "AVAILABLE"]
        version, value = self.act(number, served if target.version is None else target.version)
        return Prediction({"y": np.float32([value])}, version, 0.0)


@pytest.fixture
def base_path(tmp_path, models):
    shutil.copytree(models / "half_plus_two" / "1", tmp_path / "m" / "1")
    return tmp_path / "m"


def verify(server, push=None, traffic=QUICK, **options):
    return swap.verify(server, "m", push or server.push, traffic=traffic, **options)


def test_swap_that_nobody_notices_passes(base_path):
    server = Server(base_path)
    report = verify(server)
    assert report.passed, report.problems()
    assert (report.old, report.new) == (1, 2)
    assert report.answers[1] > 5 and report.answers[2] > 5
    assert sum(report.answers.values()) == report.sent
    counted = sum(phase["requests"] for phase in report.phases.values())
    assert counted == report.sent - 1  # the last is asked for by number
    assert [what for _, what in report.events] == [
        "traffic began",
        "push began",
        "version 2 pushed",
        "version 2 AVAILABLE",
        "version 2 answered",
    ]
    assert report.rolled_back == ()


def test_all_requests_carry_the_same_input_of_the_signature(base_path):
    server = Server(base_path)
    verify(server)
    drawn = [inputs["x"] for _, inputs, _ in server.asked]
    assert drawn[0].shape == (1, 2)
    assert all(np.array_equal(each, drawn[0]) for each in drawn)


def test_given_inputs_are_sent(base_path):
    server = Server(base_path)
    verify(server, traffic=swap.Traffic(rate=400, settle_s=0.01, inputs={"x": np.float32([7])}))
    assert all(inputs == {"x": 7} for _, inputs, _ in server.asked)


def test_version_that_does_not_load_is_a_problem_of_the_report(base_path):
    server = Server(base_path)
    server.loads = False
    report = verify(server)
    assert "version 2 of 'm' failed to load" in report.failure
    assert report.lost == {} and set(report.answers) == {1}
    assert report.rolled_back == ()
    assert (base_path / "2").is_dir()


def test_version_that_does_not_load_is_rolled_back(base_path):
    server = Server(base_path)
    server.loads = False
    report = verify(server, roll_back_in=base_path)
    assert report.rolled_back == (2,)
    assert not report.passed and not report.roll_back_failure
    assert versions.retired(base_path) == [2]
    assert "version 1 serves again" in report.as_text()


def test_lost_requests_are_found_and_roll_back(base_path):
    def act(number, version):
        if version == 2 and number % 4 == 0:
            raise ServerFault("broke")
        return version, float(version)

    server = Server(base_path, act)
    report = verify(server, roll_back_in=base_path)
    assert report.lost["ServerFault"] > 0
    assert report.rolled_back == (2,)
    assert report.answers[1] > 0


def test_wrong_answers_of_the_new_version_are_found(base_path):
    report = verify(Server(base_path, lambda n, v: (v, v + (n % 5 == 0) * (v == 2) * 1e-3)))
    assert report.wrong[2] > 0 and 1 not in report.wrong


def test_wrong_answers_of_the_old_version_are_found(base_path):
    report = verify(Server(base_path, lambda n, v: (v, v + (n > 5) * (v == 1))))
    assert report.wrong[1] > 0 and 2 not in report.wrong


@pytest.mark.parametrize(
    "array",
    [np.float64([2]), np.float32([[2]]), np.float32([2, 2]), np.float32([])],
    ids=["dtype", "rank", "rows", "no rows"],
)
def test_answers_that_are_not_of_their_signature_are_lost_requests(base_path, array):
    y = TensorSpec("y:0", dtypes.by_number(1), (None,))
    honest = {"serving_default": Signature("serving_default", {"x": X}, {"y": y}, "")}

    class Liar(Server):
        def metadata(self, target):
            return Metadata(1, honest)

        def predict(self, target, inputs, *, timeout_s=1.0):
            answer = super().predict(target, inputs, timeout_s=timeout_s)
            return replace(answer, outputs={"y": array}) if answer.version == 2 else answer

    report = verify(Liar(base_path))
    assert not report.passed
    assert "ServerFault" in report.lost
    assert "output 'y' is" in report.examples["ServerFault"]


def test_version_that_changed_its_mind_since_its_first_answer_is_found(base_path):
    first = itertools.count()

    def act(number, version):
        return version, 2.5 if version == 2 and not next(first) else float(version)

    assert verify(Server(base_path, act)).wrong[2] > 0


def test_old_version_that_answers_on_is_found(base_path):
    seen = itertools.count()

    def act(number, version):
        return (1, 1.0) if version == 2 and next(seen) % 3 == 1 else (version, float(version))

    assert verify(Server(base_path, act)).stale > 0


def test_third_version_that_answers_is_found(base_path):
    report = verify(Server(base_path, lambda n, v: (v if n < 5 else 9, 1.0)))
    assert report.strays[9] > 0
    assert "does not answer requests" in report.failure


def test_number_below_the_served_one_is_a_problem_and_only_it_is_retired(tmp_path, models):
    for number in (1, 5):
        shutil.copytree(models / "half_plus_two" / "1", tmp_path / "m" / str(number))
    server = Server(tmp_path / "m")
    report = verify(server, roll_back_in=tmp_path / "m")
    assert "version 2 is below version 5" in report.failure
    assert report.rolled_back == (2,)
    assert [version.number for version in list_versions(tmp_path / "m")] == [1, 5]


def test_old_version_that_cannot_be_gone_back_to_is_told(base_path):
    server = Server(base_path)
    server.loads = False

    def push():
        server.push()
        (base_path / "1" / "saved_model.pb").unlink()
        return 2

    report = verify(server, push, roll_back_in=base_path)
    assert "version 1 is not a complete SavedModel" in report.roll_back_failure
    assert (base_path / "2").is_dir()


def test_push_that_is_refused_goes_up_and_ends_the_traffic(base_path):
    def refuse():
        raise PushRefused("no")

    server = Server(base_path)
    with pytest.raises(PushRefused):
        verify(server, refuse)
    assert not [thread for *_, thread in server.asked if thread is not threading.current_thread()
                and thread.is_alive()]  # fmt: skip


# What is refused before anything is pushed


def refused(server, **options):
    with pytest.raises(UsageError) as caught:
        verify(server, lambda: pytest.fail("pushed"), **options)
    return str(caught.value)


def test_model_that_is_not_served_is_refused(base_path):
    def act(number, version):
        raise ModelNotFound("none")

    assert "serves no version of 'm'" in refused(Server(base_path, act))


def test_answers_that_do_not_say_their_version_are_refused(base_path):
    assert "grpc://HOST:PORT" in refused(Server(base_path, lambda n, v: (None, 1.0)))


def test_model_that_answers_differently_each_time_is_refused(base_path):
    text = refused(Server(base_path, lambda number, version: (version, number)))
    assert "differently each time" in text


def test_signature_that_is_not_there_is_refused(base_path):
    text = refused(Server(base_path), traffic=swap.Traffic(signature="servin_default"))
    assert "did you mean serving_default?" in text


# Equal answers


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        (np.float32([1.0]), np.float32([1.000001]), True),
        (np.float32([1.0]), np.float32([1.001]), False),
        (np.float32([np.nan]), np.float32([np.nan]), True),
        (np.float32([1.0]), np.float64([1.0]), False),
        (np.float32([1.0]), np.float32([[1.0]]), False),
        (np.float16([1.0]), np.float16([1.001]), True),
        (np.float16([1.0]), np.float16([1.1]), False),
        (np.array([1], ml_dtypes.bfloat16), np.array([1.008], ml_dtypes.bfloat16), True),
        (np.array([1], ml_dtypes.bfloat16), np.array([2], ml_dtypes.bfloat16), False),
        (np.complex64([1 + 1j]), np.complex64([1 + 1.1j]), False),
        (np.int64([2**53]), np.int64([2**53 + 1]), False),
        (np.array([b"a"], object), np.array([b"a"], object), True),
        (np.array([b"a"], object), np.array([b"b"], object), False),
        (np.array([True]), np.array([False]), False),
    ],
)
def test_outputs_are_the_same_but_for_rounding(one, other, equal):
    assert same({"y": one}, {"y": other}) is equal


def test_replica_that_has_not_the_version_is_a_failure_and_the_push_is_taken_back(base_path):
    good, lacking = Server(base_path), Server(base_path)
    lacking.loads = False
    each = {"a": good, "b": lacking}
    report = verify(good, roll_back_in=base_path, each=each)
    assert "on replica b" in report.failure
    assert report.replicas["a"] is not None and report.replicas["b"] is None
    assert (report.rolled_back, report.lost, report.wrong) == ((2,), {}, {})


def test_every_replica_is_asked_for_the_new_version_by_number(base_path):
    good, other = Server(base_path), Server(base_path, lambda n, version: (version, -1.0))
    report = verify(good, each={"a": good, "b": other})
    assert report.wrong == {2: 1}
    assert [target.version for target, _, _ in other.asked] == [2]


def test_other_outputs_are_not_the_same():
    assert not same({"y": np.float32([1])}, {"z": np.float32([1])})


# The push began at 10 s and was done at 12 s.
COURSE = SwapReport("m", old=1, new=2, rate=50.0, push_s=10.0, pushed_s=12.0)


def answer(sent_s, version, received_s=None, **more):
    return _Answer(sent_s, sent_s + 0.1 if received_s is None else received_s, version, **more)


def lost(sent_s, error="ServerUnreachable"):
    return _Answer(sent_s, sent_s + 0.1, 0, error=error, message=f"{error}: nobody there")


GOOD = [answer(9, 1), answer(11, 1), answer(13, 2), answer(14, 2)]


def test_swap_that_nobody_noticed_passes():
    report = _judge(COURSE, GOOD)
    assert report.passed
    assert report.problems() == []
    assert (report.sent, report.answers, report.lost) == (4, {1: 2, 2: 2}, {})
    assert report.serve_s == pytest.approx(1.1)


def test_first_answer_before_the_push_returned_took_no_time():
    assert _judge(COURSE, [answer(9, 1), answer(11, 2)]).serve_s == 0.0


def test_lost_requests_are_counted_by_kind_with_an_example():
    report = _judge(COURSE, [*GOOD, lost(10), lost(12), lost(12, "DeadlineExceeded")])
    assert report.lost == {"DeadlineExceeded": 1, "ServerUnreachable": 2}
    assert "2 of 7 requests were lost: ServerUnreachable: nobody there" in report.problems()
    assert not report.passed


def test_request_on_its_way_at_the_swap_may_be_answered_by_the_old_version():
    late = answer(12.9, 1, received_s=13.5)  # sent before the first new answer came in at 13.1
    assert _judge(COURSE, [*GOOD, late]).passed


def test_old_answer_to_a_request_sent_after_a_new_one_is_stale():
    report = _judge(COURSE, [*GOOD, answer(13.2, 1)])
    assert report.stale == 1
    assert "requests sent after version 2 had answered" in report.problems()[0]


def test_old_answer_is_stale_only_once_all_replicas_have_the_new_version():
    def stale(**took_s):
        course = replace(COURSE, replicas=took_s)
        return _judge(course, [*GOOD, answer(13.2, 1), answer(13.6, 1)]).stale

    assert stale(a=0.5, b=1.4) == 1
    assert stale(a=0.5, b=0.6) == 2
    assert stale(a=0.5, b=None) == 0


def test_report_says_when_each_replica_had_the_version():
    report = _judge(replace(COURSE, replicas={"a": 0.5, "b": None}), GOOD)
    assert "version 2 on 2 replicas: a after 0.50 s, b never" in report.as_text()


def test_request_sent_in_the_moment_of_the_first_new_answer_may_be_answered_by_the_old_version():
    (first,) = {each.received_s for each in GOOD if each.sent_s == 13}
    assert _judge(COURSE, [*GOOD, answer(first, 1)]).stale == 0
    assert _judge(COURSE, [*GOOD, answer(math.nextafter(first, 14), 1)]).stale == 1


def test_old_answer_in_the_moment_of_the_roll_back_is_not_stale():
    course = SwapReport("m", 1, 2, 50.0, 10.0, 12.0, rolled_back_s=15.0, rolled_back=(2,))
    assert _judge(course, [*GOOD, answer(14, 1, received_s=15.0)]).stale == 0
    assert _judge(course, [*GOOD, answer(14, 1, received_s=math.nextafter(15.0, 0))]).stale == 1


def test_old_answers_after_a_roll_back_are_not_stale():
    course = SwapReport("m", 1, 2, 50.0, 10.0, 12.0, rolled_back_s=15.0, rolled_back=(2,))
    assert _judge(course, [*GOOD, answer(14.95, 1, received_s=15.1), answer(16, 1)]).stale == 0
    assert _judge(course, [*GOOD, answer(14, 1)]).stale == 1


def test_answer_of_a_third_version_is_none_of_the_new_one():
    assert _judge(COURSE, [answer(9, 1), answer(13, 3)]).serve_s is None


def test_answer_of_a_third_version_is_a_stray():
    report = _judge(COURSE, [*GOOD, answer(13, 7), answer(13, 0)])
    assert report.strays == {0: 1, 7: 1}
    assert "1 answers came from version 7" in report.problems()


def test_answer_unlike_its_versions_own_is_wrong():
    report = _judge(COURSE, [*GOOD, answer(15, 2, is_right=False), answer(9, 1, is_right=False)])
    assert report.wrong == {1: 1, 2: 1}
    assert len(report.problems()) == 2


def test_version_that_never_served_is_a_problem_and_has_no_time():
    course = SwapReport("m", 1, 2, 50.0, 10.0, 12.0, failure="version 2 failed to load")
    report = _judge(course, [answer(9, 1), answer(15, 1)])
    assert report.problems() == ["version 2 failed to load"]
    assert report.serve_s is None
    assert report.as_text().startswith("Failed: 'm' from version 1 to 2\n")


def test_no_answer_at_all_is_a_problem():
    assert "no request was answered at all" in _judge(COURSE, []).problems()


def test_roll_back_is_told():
    course = SwapReport("m", 1, 2, 50.0, 10.0, 12.0, failure="bad", rolled_back=(2,))
    assert "version 1 serves again" in _judge(course, GOOD).as_text()
    failed = SwapReport("m", 1, 2, 50.0, 10.0, 12.0, failure="bad", roll_back_failure="no 1")
    assert "the roll-back failed: no 1" in _judge(failed, GOOD).problems()
    assert "serves again" not in _judge(failed, GOOD).as_text()


def test_latencies_belong_to_the_phase_in_which_their_request_was_due():
    latencies = [(9.0, 1.0), (9.9, 3.0), (10.0, 5.0), (13.0, 7.0), (13.1, 9.0), (20.0, 11.0)]
    phases = _judge(COURSE, GOOD, latencies).phases
    assert list(phases["before"].values()) == [2, 1.0, 3.0, 3.0]
    assert list(phases["during"].values()) == [2, 5.0, 7.0, 7.0]
    assert list(phases["after"].values()) == [2, 9.0, 11.0, 11.0]


def test_without_a_new_answer_everything_after_the_push_began_is_during():
    phases = _judge(COURSE, GOOD[:2], [(9.0, 1.0), (11.0, 2.0), (99.0, 3.0)]).phases
    assert (phases["during"]["requests"], phases["after"]["requests"]) == (2, 0)
    assert math.isnan(phases["after"]["p50_s"])


def test_data_is_json_without_nan():
    course = SwapReport("m", 1, 2, 50.0, 10.0, 12.0, events=((-2.0, "push began"),))
    data = _judge(course, GOOD, [(9.0, 0.5)]).as_data()
    assert json.loads(json.dumps(data, allow_nan=False))["phases"]["during"]["p50_s"] is None
    assert data["passed"] is True
    assert data["events"] == ({"at_s": -2.0, "what": "push began"},)


def test_text_shows_counts_latencies_and_the_time_line():
    course = SwapReport("m", 1, 2, 50.0, 10.0, 12.0, events=((-2.0, "push began"),))
    text = _judge(course, GOOD, [(9.0, 0.0123)]).as_text()
    assert "Passed: 'm' from version 1 to 2, served 1.10 s after the push" in text
    assert "4 requests at 50/s: 0 lost, 0 wrong answers" in text
    assert "answers: 2 by version 1, 2 by version 2" in text
    assert "before               1      12.3      12.3      12.3" in text
    assert "   -2.00 s  push began" in text


class TestStream:
    """Requests go out when they are due, and every one is accounted for."""

    @staticmethod
    def stream(predict, rate=100.0):
        server = SimpleNamespace(predict=predict, metadata=lambda target: Metadata(1, SIGNATURES))
        traffic = replace(QUICK, rate=rate)
        inputs = {"x": np.zeros((1, 2), np.float32)}
        return swap._Stream(
            server, Target("m"), inputs, traffic, references={}, clock=SystemClock()
        )

    @staticmethod
    def right(*_, **__):
        return Prediction({"y": np.zeros((1, 2), np.float32)}, 1, 0.0)

    def test_each_due_request_is_sent_once_and_never_early(self):
        with self.stream(self.right) as stream:
            began_s = time.monotonic()
            time.sleep(0.1)
        answers, latencies = stream.answers(), sorted(stream.latencies())
        assert 5 <= len(answers) == len(latencies)
        first_s = latencies[0][0]
        assert first_s <= began_s
        for number, (due_s, latency_s) in enumerate(latencies):
            assert due_s == pytest.approx(first_s + number / 100)
            assert latency_s >= 0
        sent_s = sorted(each.sent_s for each in answers)
        assert all(sent >= due - 1e-3 for sent, (due, _) in zip(sent_s, latencies, strict=True))

    def test_a_stall_counts_against_every_request_that_was_due_meanwhile(self):
        stalled = threading.Event()

        def predict(*_, **__):
            stalled.wait()
            return self.right()

        with self.stream(predict, rate=4.0) as stream:  # two senders
            time.sleep(0.6)
            stalled.set()
            assert stream.await_answer(1, 5)
            time.sleep(0.1)
        latencies = sorted(stream.latencies())
        begun_s = latencies[0][0]
        assert [due_s for due_s, _ in latencies[:3]] == pytest.approx(
            [begun_s, begun_s + 0.25, begun_s + 0.5]
        )
        assert latencies[0][1] > 0.55  # due at 0 ms
        assert latencies[1][1] > 0.3  # due at 250 ms
        assert latencies[2][1] > 0.05  # due at 500 ms, sent only when the stall was over

    def test_a_request_that_fails_is_an_answer_with_the_name_of_the_error(self):
        def predict(*_, **__):
            raise ServerOverloaded("full")

        with self.stream(predict, rate=1.0) as stream:
            assert stream.await_answer(0, 5)
        (answer,) = stream.answers()
        assert (answer.error, answer.message) == ("ServerOverloaded", "full")
        assert not stream.latencies()
