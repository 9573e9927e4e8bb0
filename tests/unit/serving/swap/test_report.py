"""From answers to the verdict."""

import json
import math

import pytest

from tfserve_kit.serving.swap.report import Course, Event, Phase, judge
from tfserve_kit.serving.swap.traffic import Answer

# The push began at 10 s and was done at 12 s.
COURSE = Course("m", old=1, new=2, rate=50.0, push_s=10.0, pushed_s=12.0)


def answer(sent_s, version, received_s=None, **more):
    return Answer(sent_s, sent_s + 0.1 if received_s is None else received_s, version, **more)


def lost(sent_s, error="ServerUnreachable"):
    return Answer(sent_s, sent_s + 0.1, 0, error=error, message=f"{error}: nobody there")


GOOD = [answer(9, 1), answer(11, 1), answer(13, 2), answer(14, 2)]


def test_swap_that_nobody_noticed_passes():
    report = judge(COURSE, GOOD)
    assert report.passed
    assert report.problems() == []
    assert (report.sent, report.answers, report.lost) == (4, {1: 2, 2: 2}, {})
    assert report.serve_s == pytest.approx(1.1)


def test_first_answer_before_the_push_returned_took_no_time():
    assert judge(COURSE, [answer(9, 1), answer(11, 2)]).serve_s == 0.0


def test_lost_requests_are_counted_by_kind_with_an_example():
    report = judge(COURSE, [*GOOD, lost(10), lost(12), lost(12, "DeadlineExceeded")])
    assert report.lost == {"DeadlineExceeded": 1, "ServerUnreachable": 2}
    assert "2 of 7 requests were lost: ServerUnreachable: nobody there" in report.problems()
    assert not report.passed


def test_request_on_its_way_at_the_swap_may_be_answered_by_the_old_version():
    late = answer(12.9, 1, received_s=13.5)  # sent before the first new answer came in at 13.1
    assert judge(COURSE, [*GOOD, late]).passed


def test_old_answer_to_a_request_sent_after_a_new_one_is_stale():
    report = judge(COURSE, [*GOOD, answer(13.2, 1)])
    assert report.stale == 1
    assert "requests sent after version 2 had answered" in report.problems()[0]


def test_old_answers_after_a_roll_back_are_not_stale():
    course = Course("m", 1, 2, 50.0, 10.0, 12.0, rolled_back_s=15.0, rolled_back=(2,))
    assert judge(course, [*GOOD, answer(14.95, 1, received_s=15.1), answer(16, 1)]).stale == 0
    assert judge(course, [*GOOD, answer(14, 1)]).stale == 1


def test_answer_of_a_third_version_is_a_stray():
    report = judge(COURSE, [*GOOD, answer(13, 7), answer(13, 0)])
    assert report.strays == {0: 1, 7: 1}
    assert "1 answers came from version 7" in report.problems()


def test_answer_unlike_its_versions_own_is_wrong():
    report = judge(COURSE, [*GOOD, answer(15, 2, is_right=False), answer(9, 1, is_right=False)])
    assert report.wrong == {1: 1, 2: 1}
    assert len(report.problems()) == 2


def test_version_that_never_served_is_a_problem_and_has_no_time():
    course = Course("m", 1, 2, 50.0, 10.0, 12.0, failure="version 2 failed to load")
    report = judge(course, [answer(9, 1), answer(15, 1)])
    assert report.problems() == ["version 2 failed to load"]
    assert report.serve_s is None
    assert report.as_text().startswith("Failed: 'm' from version 1 to 2\n")


def test_no_answer_at_all_is_a_problem():
    assert "no request was answered at all" in judge(COURSE, []).problems()


def test_roll_back_is_told():
    course = Course("m", 1, 2, 50.0, 10.0, 12.0, failure="bad", rolled_back=(2,))
    assert "version 1 serves again" in judge(course, GOOD).as_text()
    failed = Course("m", 1, 2, 50.0, 10.0, 12.0, failure="bad", roll_back_failure="no 1")
    assert "the roll-back failed: no 1" in judge(failed, GOOD).problems()
    assert "serves again" not in judge(failed, GOOD).as_text()


def test_latencies_belong_to_the_phase_in_which_their_request_was_due():
    latencies = [(9.0, 1.0), (9.9, 3.0), (10.0, 5.0), (13.0, 7.0), (13.1, 9.0), (20.0, 11.0)]
    phases = judge(COURSE, GOOD, latencies).phases
    assert phases["before"] == Phase(2, 1.0, 3.0, 3.0)
    assert phases["during"] == Phase(2, 5.0, 7.0, 7.0)
    assert phases["after"] == Phase(2, 9.0, 11.0, 11.0)


def test_without_a_new_answer_everything_after_the_push_began_is_during():
    phases = judge(COURSE, GOOD[:2], [(9.0, 1.0), (11.0, 2.0), (99.0, 3.0)]).phases
    assert (phases["during"].requests, phases["after"].requests) == (2, 0)
    assert math.isnan(phases["after"].p50_s)


def test_data_is_json_without_nan():
    course = Course("m", 1, 2, 50.0, 10.0, 12.0, events=(Event(-2.0, "push began"),))
    data = judge(course, GOOD, [(9.0, 0.5)]).as_data()
    assert json.loads(json.dumps(data, allow_nan=False))["phases"]["during"]["p50_s"] is None
    assert data["passed"] is True
    assert data["events"] == ({"at_s": -2.0, "what": "push began"},)


def test_text_shows_counts_latencies_and_the_time_line():
    course = Course("m", 1, 2, 50.0, 10.0, 12.0, events=(Event(-2.0, "push began"),))
    text = judge(course, GOOD, [(9.0, 0.0123)]).as_text()
    assert "Passed: 'm' from version 1 to 2, served 1.10 s after the push" in text
    assert "4 requests at 50/s: 0 lost, 0 answers amiss" in text
    assert "answers: 2 by version 1, 2 by version 2" in text
    assert "before               1      12.3      12.3      12.3" in text
    assert "   -2.00 s  push began" in text
