"""What a flow is told of HTTP responses, and of those that never came."""

import pytest

from tfserve_kit.clients.http_transport import HttpTransport, _lost, _outcome
from tfserve_kit.clients.options import Options
from tfserve_kit.clients.protocol import Loss
from tfserve_kit.errors import UsageError
from tfserve_kit.http.messages import Cut, Malformed, Response, TooLarge


@pytest.mark.parametrize(("status", "ok"), [(200, True), (201, False), (404, False), (503, False)])
def test_only_200_is_an_answer(status, ok):
    outcome = _outcome(Response(status, "", b"{}", stays_open=True))
    assert (outcome.ok, outcome.status, outcome.body, outcome.text) == (ok, str(status), b"{}", "")


@pytest.mark.parametrize("headers", [{"a b": "c"}, {"a": "b\r\nc: d"}, {"": "x"}, {"a": "\0"}])
def test_header_that_would_be_another_request_is_refused(headers):
    with pytest.raises(UsageError):
        HttpTransport("http://h", Options(headers=headers))


@pytest.mark.parametrize(
    ("error", "how"),
    [
        (TimeoutError(), Loss.LATE),
        (TooLarge(5), Loss.TOO_LARGE),
        (Malformed("x"), Loss.GARBLED),
        (ConnectionResetError(), Loss.BROKEN),
        (Cut(has_begun=True), Loss.BROKEN),
    ],
)
def test_failure_says_how_the_answer_was_lost(error, how):
    found = _lost(error, Loss.BROKEN)
    assert (found.how, found.cause, found.ok) == (how, error, False)
    assert found.text
