"""What a status list says about readiness."""

import pytest

from tfserve_kit.clients import Target, VersionStatus
from tfserve_kit.errors import (
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    ServerFault,
    ServerUnreachable,
)
from tfserve_kit.serving.readiness import Readiness, ask, readiness

READY, NOT_YET, FAILED = Readiness.READY, Readiness.NOT_YET, Readiness.FAILED


def status(version, state, error=""):
    return VersionStatus(version, state, error)


@pytest.mark.parametrize(
    ("statuses", "version", "expected"),
    [
        ([], None, NOT_YET),
        ([status(1, "START")], None, NOT_YET),
        ([status(1, "LOADING")], None, NOT_YET),
        ([status(1, "UNLOADING")], None, NOT_YET),
        ([status(1, "AVAILABLE")], None, READY),
        ([status(1, "END")], None, NOT_YET),
        ([status(1, "END", "bad")], None, FAILED),
        ([status(2, "END", "bad"), status(1, "AVAILABLE")], None, READY),
        ([status(2, "END", "bad"), status(1, "LOADING")], None, NOT_YET),
        ([status(2, "END", "bad"), status(1, "END")], None, NOT_YET),
        ([status(2, "END", "bad"), status(1, "END", "bad")], None, FAILED),
        ([status(2, "LOADING", "bad")], None, NOT_YET),
        ([status(2, "LOADING"), status(1, "AVAILABLE")], 2, NOT_YET),
        ([status(2, "LOADING"), status(1, "AVAILABLE")], 1, READY),
        ([status(2, "AVAILABLE"), status(1, "END", "bad")], 1, FAILED),
        ([status(2, "AVAILABLE")], 3, NOT_YET),
        ([status(0, "AVAILABLE")], 0, READY),
        ([status(1, "AVAILABLE")], 0, NOT_YET),
    ],
)
def test_readiness_of_the_statuses_is(statuses, version, expected):
    assert readiness(statuses, version) is expected


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
