"""Whatever a server sends, a client ends in time, in bounded memory, with an error that says so."""

import gzip
import json
import time
import tracemalloc

import numpy as np
import pytest

from tests.contract import lying_servers
from tests.contract.lying_servers import (
    ANSWER,
    GRPC_LIES,
    HTTP_ABOUT,
    HTTP_LIES,
    Liar,
    http,
    says,
)
from tfserve_kit import errors

MODEL, INPUTS = "half_plus_two", {"x": np.float32([1])}
MOST_BYTES = 1_000_000


@pytest.fixture
def liar():
    """Run HTTP servers that lie; makes one."""
    made = []

    def make(lie, **about):
        made.append(Liar(lie, **about))
        return made[-1]

    yield make
    for each in made:
        each.close()


def outcome(client, timeout_s):
    with pytest.raises(errors.RequestError) as caught:
        client.predict(MODEL, INPUTS, timeout_s=timeout_s)
    assert client.url in caught.value.message
    return caught.type.__name__


@pytest.mark.parametrize("lie", HTTP_LIES)
def test_lie_over_http_is_a_typed_error_within_the_deadline(liar, twin, lie):
    tell, expected = HTTP_LIES[lie]
    is_late = expected == "DeadlineExceeded"
    server, timeout_s = liar(tell), 1.0 if is_late else 20.0
    with twin(server.url, retries=0, gzip=True, max_answer_bytes=MOST_BYTES) as client:
        client.metadata(MODEL)
        started_s = time.monotonic()
        assert outcome(client, timeout_s) == expected
        assert time.monotonic() - started_s < timeout_s + 5


def test_what_cannot_be_read_is_quoted_by_its_beginning(liar, twin):
    version = {"version": "9" * 100_000, "state": "AVAILABLE"}
    about = http(json.dumps({"model_version_status": [version]}).encode())
    with (
        twin(liar(says(b""), about=about).url, retries=0) as client,
        pytest.raises(errors.ServerFault, match=r"unreadable answer.*9999") as caught,
    ):
        client.status(MODEL)
    assert len(caught.value.message) < 5_000


@pytest.mark.parametrize("lie", GRPC_LIES)
def test_lie_over_grpc_is_a_typed_error_within_the_deadline(twin, lie):
    what, expected = GRPC_LIES[lie]
    with (
        lying_servers.grpc_liar(what) as url,
        twin(url, retries=0, max_answer_bytes=MOST_BYTES) as client,
    ):
        assert outcome(client, 1.0 if expected == "DeadlineExceeded" else 20.0) == expected


@pytest.mark.parametrize("lie", [lie for lie in GRPC_LIES if lie.startswith("claims")])
def test_claim_of_a_small_answer_takes_no_memory(twin, lie):
    with lying_servers.grpc_liar(GRPC_LIES[lie][0]) as url, twin(url, retries=0) as client:
        client.metadata(MODEL)
        tracemalloc.start()
        try:
            outcome(client, 20.0)
            assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("about", HTTP_ABOUT)
def test_lie_about_the_server_itself_is_a_fault_within_the_deadline(liar, twin, about):
    server = liar(says(http(ANSWER)), about=HTTP_ABOUT[about])
    with twin(server.url, retries=0) as client:
        started_s = time.monotonic()
        for ask in (client.metadata, client.status):
            with pytest.raises(errors.ServerFault) as caught:
                ask(MODEL, timeout_s=20.0)
            assert server.url in caught.value.message
            assert len(caught.value.message) < 5000
        assert time.monotonic() - started_s < 20


def test_small_answer_that_unpacks_to_very_much_is_refused_below_the_limit(liar, twin):
    server = liar(says(http(gzip.compress(b" " * 100_000_000), Content_Encoding="gzip")))
    with twin(server.url, retries=0, gzip=True) as client:
        client.metadata(MODEL)
        assert outcome(client, 20.0) == "InvalidRequest"


@pytest.mark.parametrize("text", ["x" * 5_000_000, "Task size 9 is larger than maximum batch size "
                                  + "9" * 10_000])  # fmt: skip
def test_error_text_of_any_length_is_told_in_short(liar, twin, text):
    body = json.dumps({"error": text}).encode()
    server = liar(says(http(body, "400 Bad Request")))
    with twin(server.url, retries=0) as client, pytest.raises(errors.InvalidRequest) as caught:
        client.predict(MODEL, INPUTS)
    assert len(str(caught.value)) < 5000


@pytest.mark.parametrize("lie", ["flood", "bomb", "huge length"])
def test_immense_answer_takes_no_memory(liar, twin, lie):
    server = liar(HTTP_LIES[lie][0])
    with twin(server.url, retries=0, gzip=True, max_answer_bytes=MOST_BYTES) as client:
        client.metadata(MODEL)
        tracemalloc.start()
        try:
            outcome(client, 20.0)
            assert tracemalloc.get_traced_memory()[1] < 12 * MOST_BYTES
        finally:
            tracemalloc.stop()


def test_connection_that_the_server_closed_meanwhile_is_not_noticed(liar, twin):
    closed = says(http(ANSWER), then_close=True)  # without saying so in a header
    server = liar(closed)
    with twin(server.url) as client:
        for _ in range(5):
            assert client.predict(MODEL, INPUTS).outputs["y"].tolist() == [1.5]
            time.sleep(0.01)  # until the end of the connection is there
    assert server.connections >= 5
    assert len(server.requests) == 5


def test_connection_is_used_again(liar, twin):
    server = liar(says(http(ANSWER)))
    with twin(server.url) as client:
        for _ in range(5):
            client.predict(MODEL, INPUTS)
    assert server.connections == 1


def test_answer_that_nobody_asked_for_is_not_taken_for_the_next_one(liar, twin):
    server = liar(says(http(b'{"outputs": [1]}') + http(b'{"outputs": [666]}')))
    with twin(server.url) as client:
        for _ in range(3):
            assert client.predict(MODEL, INPUTS).outputs["y"].tolist() == [1]
            time.sleep(0.01)


def lies_first(times, lie):
    """Return a lie that becomes the truth after some requests."""

    def tell(liar, connection):
        if len(liar.requests) <= times:
            return lie(liar, connection)
        return says(http(ANSWER))(liar, connection)

    return tell


FULL = says(http(b'{"error": "full"}', "503 Service Unavailable"))


@pytest.mark.parametrize("lie", [FULL, says(b"", then_close=True)])
def test_full_or_broken_server_is_asked_again(liar, twin, lie):
    server = liar(lies_first(2, lie))
    with twin(server.url, retries=2) as client:
        assert client.predict(MODEL, INPUTS).outputs["y"].tolist() == [1.5]


def test_request_that_must_not_be_repeated_is_not_after_a_broken_connection(liar, twin):
    server = liar(lies_first(1, says(b"", then_close=True)))
    with twin(server.url, idempotent=False) as client, pytest.raises(errors.ServerUnreachable):
        client.predict(MODEL, INPUTS)
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", ["400 Bad Request", "404 Not Found", "500 Oops", "504 Late"])
def test_other_errors_are_not_repeated(liar, twin, status):
    server = liar(lies_first(1, says(http(b'{"error": "no"}', status))))
    with twin(server.url) as client, pytest.raises(errors.RequestError, match="no"):
        client.predict(MODEL, INPUTS)
    assert len(server.requests) == 1


def test_slow_answer_is_overtaken_by_a_second_request(liar, twin):
    def slow_at_first(liar, connection):
        if len(liar.requests) == 1:
            liar.wait(20)
            return "close"
        return says(http(ANSWER))(liar, connection)

    server = liar(slow_at_first)
    with twin(server.url, hedge_after_s=0.05) as client:
        started_s = time.monotonic()
        assert client.predict(MODEL, INPUTS).outputs["y"].tolist() == [1.5]
        assert time.monotonic() - started_s < 15
    assert len(server.requests) == 2


def test_headers_and_compression_are_those_asked_for(liar, twin):
    server = liar(says(http(gzip.compress(ANSWER), Content_Encoding="gzip")))
    with twin(server.url, gzip=True, headers={"X-Team": "a"}) as client:
        assert client.predict(MODEL, INPUTS).outputs["y"].tolist() == [1.5]
    sent = json.loads(gzip.decompress(server.requests[0]))
    assert sent == {"signature_name": "serving_default", "inputs": {"x": [1.0]}}
