"""When a call is sent again, how long it waits, and when it gives up."""

import math
import threading

import pytest

from tests.unit.clients.scripts import FakeClock, Run, attempts, failed, lost
from tfserve_kit.clients.protocol import Exchange, GrpcRequest, Loss, Reply, _RetryBudget
from tfserve_kit.clients.results import Target
from tfserve_kit.errors import (
    DeadlineExceeded,
    InvalidRequest,
    RequestError,
    ServerFault,
    ServerOverloaded,
    ServerUnreachable,
)

CALL = Exchange(GrpcRequest("Predict", b""), lambda body: body.decode(), Target("m"))
GOOD = Reply(True, b"good")
QUEUE = "The batch scheduling queue to which this task was submitted is full"


@pytest.fixture
def clock():
    return FakeClock()


def run(clock, outcomes, call=CALL, timeout_s=30.0, takes_s=0.0, **options):
    made = attempts(clock, **options)
    return Run(made.call(call, made.deadline(timeout_s)), outcomes, clock, takes_s)


def refused(clock, outcomes, **options):
    """Return the error, and how many of the outcomes were used."""
    left = iter(outcomes)
    with pytest.raises(RequestError) as caught:
        run(clock, lambda request: next(left), **options)
    return caught.value, len(outcomes) - len(list(left))


def test_first_answer_is_returned(clock):
    done = run(clock, [GOOD])
    assert (done.result, done.slept_s) == ("good", [])
    assert done.sent[0].timeout_s == 30


@pytest.mark.parametrize("timeout_s", [math.inf, 1e300])
def test_time_without_end_is_what_every_transport_takes(clock, timeout_s):
    sent = run(clock, [GOOD], timeout_s=timeout_s).sent[0].timeout_s
    assert 1e7 < sent < threading.TIMEOUT_MAX / 10


@pytest.mark.parametrize("timeout_s", [math.nan, None, "3"])
def test_time_that_is_no_number_is_refused(clock, timeout_s):
    with pytest.raises(InvalidRequest, match=f"timeout_s cannot be {timeout_s!r}") as caught:
        run(clock, [GOOD], timeout_s=timeout_s)
    assert "give seconds" in caught.value.remedy


@pytest.mark.parametrize(
    "outcome",
    [failed("UNAVAILABLE", "refused"), failed("UNAVAILABLE", QUEUE), failed("RESOURCE_EXHAUSTED")],
)
def test_server_that_is_away_or_full_is_asked_again_after_growing_pauses(clock, outcome):
    done = run(clock, [outcome, outcome, outcome, GOOD], retries=3)
    assert done.result == "good"
    assert done.slept_s == [0.1, 0.2, 0.4]
    assert done.sent[-1].timeout_s == pytest.approx(30 - 0.7)


def test_pauses_are_drawn_from_zero_up_to_the_longest_one(clock):
    outcomes = [failed("UNAVAILABLE")] * 2 + [GOOD]
    assert run(clock, outcomes, chance=0.25).slept_s == [0.025, 0.05]


def test_pauses_grow_no_further_than_some_seconds(clock):
    outcomes = [failed("UNAVAILABLE")] * 9 + [GOOD]
    assert run(clock, outcomes, retries=9).slept_s[-2:] == [5, 5]


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        ("INVALID_ARGUMENT", InvalidRequest),
        ("FAILED_PRECONDITION", InvalidRequest),
        ("DEADLINE_EXCEEDED", DeadlineExceeded),
        ("INTERNAL", ServerFault),
        ("CANCELLED", ServerFault),
    ],
)
def test_what_would_fail_again_or_may_have_been_done_is_not_repeated(clock, status, kind):
    error, used = refused(clock, [failed(status), GOOD])
    assert (type(error), used) == (kind, 1)


def test_message_that_is_too_large_is_not_repeated(clock):
    text = "CLIENT: Received message larger than max (5 vs. 4)"
    error, used = refused(clock, [failed("RESOURCE_EXHAUSTED", text), GOOD])
    assert (type(error), used) == (InvalidRequest, 1)


def test_error_after_the_last_attempt_has_the_reason_behind_it(clock):
    cause = OSError("why")
    with pytest.raises(ServerUnreachable) as caught:
        run(clock, [failed("UNAVAILABLE", "gone", cause)] * 3)
    assert caught.value.__cause__ is cause


def test_number_of_attempts_is_bounded(clock):
    for retries in (0, 1, 2):
        assert refused(clock, [failed("UNAVAILABLE")] * 9, retries=retries)[1] == retries + 1


def test_probe_is_sent_once_and_not_hedged(clock):
    probe = CALL._replace(is_probe=True)
    assert refused(clock, [failed("UNAVAILABLE")] * 2, call=probe)[1] == 1
    assert run(clock, [GOOD], call=probe, hedge_after_s=1).sent[0].hedge_after_s is None


def test_deadline_is_for_all_attempts_together(clock):
    done = run(clock, [failed("UNAVAILABLE")] * 2 + [GOOD], timeout_s=1.0, takes_s=0.2)
    assert [each.timeout_s for each in done.sent] == pytest.approx([1.0, 0.7, 0.3])
    assert clock.time_s == pytest.approx(100.9)


def test_pause_that_ends_after_the_deadline_is_not_begun(clock):
    error, used = refused(clock, [failed("UNAVAILABLE"), GOOD], timeout_s=0.1)
    assert (type(error), used) == (ServerUnreachable, 1)
    assert clock.time_s == 100.0


def test_operation_whose_time_is_up_sends_nothing_more(clock):
    made = attempts(clock)
    deadline = made.deadline(2.0)
    clock.time_s += 2
    with pytest.raises(DeadlineExceeded, match="no answer within 2 s"):
        Run(made.call(CALL, deadline), [GOOD], clock)


@pytest.mark.parametrize(("how", "used"), [(Loss.UNSENT, 2), (Loss.BROKEN, 1)])
def test_request_that_must_not_run_twice_is_repeated_only_if_it_was_not_sent(clock, how, used):
    outcomes = [lost(how), failed("400")]
    assert refused(clock, outcomes, wire="rest", idempotent=False)[1] == used


def test_refusal_of_a_full_server_is_repeated_even_then(clock):
    outcomes = [failed("RESOURCE_EXHAUSTED"), GOOD]
    assert run(clock, outcomes, idempotent=False).result == "good"
    error, used = refused(clock, [failed("UNAVAILABLE"), GOOD], idempotent=False)
    assert (type(error), used) == (ServerUnreachable, 1)


def test_repeated_requests_are_a_small_part_of_all(clock):
    made = attempts(clock, retries=5, retry_share=0.1)

    def full(request):
        sent.append(request)
        return failed("RESOURCE_EXHAUSTED")

    sent = []
    for _ in range(1000):
        with pytest.raises(ServerOverloaded):
            Run(made.call(CALL, made.deadline(30)), full, clock)
    assert 1100 <= len(sent) <= 1000 + 100 + 10 + 1


def test_without_a_share_nothing_is_repeated(clock):
    assert refused(clock, [failed("UNAVAILABLE"), GOOD], retry_share=0)[1] == 1


def test_hedge_is_allowed_as_long_as_there_are_tokens(clock):
    made = attempts(clock, hedge_after_s=0.5, retry_share=0.1)
    send = Run(made.call(CALL, made.deadline(30)), [GOOD], clock).sent[0]
    assert send.hedge_after_s == 0.5
    assert [send.may_hedge() for _ in range(12)] == [True] * 10 + [False] * 2


def test_bucket_holds_a_number_of_tokens_and_no_more():
    budget = _RetryBudget(share=0.5, most=2)
    for _ in range(9):
        budget.earn()
    assert [budget.spend() for _ in range(3)] == [True, True, False]
    budget.earn()
    assert budget.spend() is False
    budget.earn()
    assert budget.spend() is True
