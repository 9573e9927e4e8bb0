"""Large JSON, read and written in other processes: as it would be here, whatever happens there."""

import json
import os
import signal
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tfserve_kit import protos
from tfserve_kit.embedded import json_process, json_writer
from tfserve_kit.embedded.json_process import (
    JsonProcess,
    LargeJson,
    packed,
    receive,
    send,
    unpacked,
)
from tfserve_kit.embedded.json_reader import PredictBody
from tfserve_kit.embedded.lanes import give_way
from tfserve_kit.embedded.ledger import BudgetExceeded, Call, Ledger
from tfserve_kit.embedded.status import Code, ServingError, invalid
from tfserve_kit.tensors import dtypes

ROWS = b'{"instances": [' + b",".join([b'{"x": 1.5, "s": "a"}'] * 20_000) + b"]}"


def info_of(**types):
    signature = protos.SignatureDef()
    for alias, dtype in types.items():
        signature.inputs[alias].dtype = dtypes.by_name(dtype).number

    def info(name):
        if name != "serving_default":
            raise invalid(f"no {name}")
        return signature.inputs

    return info


TWO = info_of(x="float", s="string")


def call():
    return Call.unbounded()


def outcome(read):
    """Return what a reader makes of a request, or says about it."""
    try:
        body = read()
    except ServingError as error:
        return type(error), error.code, error.message
    inputs = {
        alias: (array.dtype, array.shape, array.tolist()) for alias, array in body.inputs.items()
    }
    return body.signature, body.row_format, repr(inputs)


class Elsewhere:
    """Reads and writes everything elsewhere, however small."""

    def __init__(self):
        self._large = LargeJson()
        self.stop = self._large.stop

    def __getattr__(self, name):
        def do(*arguments, **named):
            with pytest.MonkeyPatch.context() as patch:
                for each in ("LARGE_BYTES", "LARGE_BULK_BYTES", "LARGE_ANSWER_BYTES"):
                    patch.setattr(json_process, each, 0)
                return getattr(self._large, name)(*arguments, **named)

        return do


@pytest.fixture(scope="module")
def elsewhere():
    elsewhere = Elsewhere()
    elsewhere.examples(b'{"examples": [{}]}', call())  # so that its beginning is behind it
    yield elsewhere
    elsewhere.stop()


@pytest.fixture
def process():
    process = JsonProcess()
    yield process
    process.stop()


def account_of(size_bytes):
    return Call(Ledger(size_bytes).account("a"))


def ask(process, info, *, of=None, body=ROWS):
    """Have a request read, with something done when the process asks for the inputs."""

    def inputs(name):
        info()
        return {alias: (each.dtype, each.name) for alias, each in TWO(name).items()}

    of = of or call()
    answers = {"take": of.account.take, "give": of.account.give, "info": inputs}
    return process.run(of, answers, "predict", np.frombuffer(body, np.uint8))


def nothing():
    pass


STRINGS = arrays.arrays(object, arrays.array_shapes(min_dims=0, min_side=0), elements=st.binary())
NUMBERS = arrays.arrays(
    st.sampled_from(["f4", "f8", "i1", "i8", "u8", "?"]),
    arrays.array_shapes(min_dims=0, min_side=0),
)


@given(sent=st.dictionaries(st.text(), STRINGS | NUMBERS, max_size=3))
def test_arrays_arrive_as_they_were_sent(sent):
    here, there = socket.socketpair()
    with here, there:
        send(here, packed(sent))
        got = unpacked(receive(there))
    assert list(got) == list(sent)
    for name, array in got.items():
        assert array.dtype == sent[name].dtype
        assert array.shape == sent[name].shape
        assert array.tobytes() == sent[name].tobytes() or array.tolist() == sent[name].tolist()


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.just({"b64": "YQ=="})
    | st.just({"b64": "?"})
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from("xsy"), inner, max_size=2)
        | st.fixed_dictionaries({"x": inner, "s": inner})
    ),
    max_leaves=8,
)
DOCUMENTS = st.dictionaries(
    st.sampled_from(["instances", "inputs", "signature_name"]), VALUES, max_size=2
)


@settings(deadline=None)
@given(document=DOCUMENTS | VALUES, infos=st.sampled_from([TWO, info_of(x="float"), info_of()]))
def test_request_read_elsewhere_is_read_the_same_or_refused_in_the_same_words(
    document, infos, elsewhere
):
    body = json.dumps(document).encode("utf-8", "surrogatepass")
    expected = outcome(lambda: PredictBody(body, infos, call().account))
    assert outcome(lambda: elsewhere.predict_body(body, infos, call())) == expected


@pytest.mark.parametrize(
    "body",
    [
        ROWS,
        b'{"instances": [' + b",".join([b"1.5"] * 10_000) + b"]}",
        b"[" * 300,
        b'{"inputs": ',
        b'{"signature_name": "other", "instances": [1]}',
        b'{"inputs": {"x": 1, "s": "\xff"}}',
        b'{"inputs": {"x": 1, "s": "\\ud800"}}',
        bytes(100_000),
    ],
)
def test_odd_request_gets_the_same_answer_elsewhere(body, elsewhere):
    expected = outcome(lambda: PredictBody(body, TWO, call().account))
    assert outcome(lambda: elsewhere.predict_body(body, TWO, call())) == expected


@pytest.mark.parametrize("row_format", [True, False])
@pytest.mark.parametrize(
    "outputs",
    [
        {"y": np.array([[1.1, np.nan], [1e-40, np.inf]], np.float32)},
        {"y": np.array(2.5)},
        {"b": np.array([True, False]), "a_bytes": np.array([b"\xff", b""], object)},
        {"b": np.zeros(2), "a": np.zeros(3)},
        {"y": np.zeros(2, np.complex64)},
    ],
)
def test_answer_written_elsewhere_is_the_same(outputs, row_format, elsewhere):
    def printed(write):
        try:
            return write()
        except ServingError as error:
            return error.code, error.message

    expected = printed(lambda: json_writer.predictions(outputs, row_format=row_format))
    got = printed(lambda: elsewhere.predictions(outputs, 0, call(), row_format=row_format))
    assert got == expected


def test_examples_are_read_the_same_elsewhere(elsewhere):
    body = b'{"signature_name": "a", "examples": [{"x": 1, "s": ["b", "c"]}, {"x": 2.5}]}'
    name, rows = LargeJson().examples(body, call())
    got_name, got = elsewhere.examples(body, call())
    assert (got_name, got.tolist()) == (name, rows.tolist())
    with pytest.raises(ServingError, match="is an empty array"):
        elsewhere.examples(b'{"examples": []}', call())


def test_too_large_a_request_is_refused_by_its_account_and_the_process_goes_on(process):
    with pytest.raises(BudgetExceeded) as caught:
        ask(process, nothing, of=account_of(1 << 20))
    assert not caught.value.is_passing
    pid = process.pid
    assert ask(process, nothing)[0] == "serving_default"
    assert process.pid == pid


def test_what_is_read_is_taken_from_the_account(process):
    one, other = account_of(1 << 30), account_of(1 << 30)
    ask(process, nothing, of=one)
    PredictBody(ROWS, TWO, other.account)
    assert one.account.held_bytes == other.account.held_bytes > len(ROWS)


def test_process_that_dies_fails_its_request_only(process):
    with pytest.raises(ServingError) as caught:
        ask(process, lambda: os.kill(process.pid, signal.SIGKILL))
    assert caught.value.code is Code.UNAVAILABLE
    assert ask(process, nothing)[0] == "serving_default"
    os.kill(process.pid, signal.SIGKILL)  # while nobody needs it
    while process._process.poll() is None:
        time.sleep(0.01)
    assert ask(process, nothing)[0] == "serving_default"


def test_fault_of_the_server_itself_leaves_no_half_done_task(process):
    with pytest.raises(ZeroDivisionError):
        ask(process, lambda: 1 // 0)
    assert ask(process, nothing)[0] == "serving_default"


def test_one_that_waits_for_its_turn_waits_no_longer_than_its_client(process):
    has_begun, may_end = threading.Event(), threading.Event()

    def hold():
        has_begun.set()
        may_end.wait(30)

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask, process, hold)
        assert has_begun.wait(30)
        with pytest.raises(ServingError) as caught:
            ask(process, nothing, of=Call.within(0.05, call().account))
        assert caught.value.code is Code.DEADLINE_EXCEEDED
        may_end.set()
        assert first.result()[0] == "serving_default"
    with pytest.raises(ServingError) as caught:
        ask(process, nothing, of=Call.within(None, call().account, lambda: True))
    assert caught.value.code is Code.CANCELLED
    assert ask(process, nothing)[0] == "serving_default"


def test_process_that_hangs_is_ended_when_nobody_waits_any_more(process):
    ask(process, nothing)
    hung = process.pid
    with pytest.raises(ServingError) as caught:
        ask(process, lambda: os.kill(hung, signal.SIGSTOP), of=Call.within(0.5, call().account))
    assert caught.value.code is Code.DEADLINE_EXCEEDED
    assert ask(process, nothing)[0] == "serving_default"
    assert process.pid != hung


@pytest.mark.parametrize("command", [[sys.executable, "-c", ""], ["/nowhere"]])
def test_where_no_process_can_be_started_large_json_is_read_here(command):
    large = LargeJson()
    large._reader = JsonProcess(command)
    expected = outcome(lambda: PredictBody(ROWS, TWO, call().account))
    assert outcome(lambda: large.predict_body(ROWS, TWO, call())) == expected
    assert outcome(lambda: large.predict_body(ROWS, TWO, call())) == expected


def test_stopped_process_is_gone_and_does_not_come_back():
    large = LargeJson()
    large.predict_body(ROWS, TWO, call())
    pid = large._reader.pid
    large.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert large.predict_body(ROWS, TWO, call()).row_format
    assert large._reader.pid is None


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own")
@pytest.mark.parametrize("initializer", [None, give_way])
def test_process_has_a_lower_priority_whichever_thread_has_started_it(initializer):
    large = LargeJson()
    with ThreadPoolExecutor(1, initializer=initializer) as thread:
        thread.submit(large.predict_body, ROWS, TWO, call()).result()
        found = os.getpriority(os.PRIO_PROCESS, large._reader.pid)
    large.stop()
    assert found == min(os.getpriority(os.PRIO_PROCESS, 0) + 5, 19)


def test_small_requests_start_no_process():
    large = LargeJson()
    large.predict_body(b'{"inputs": {"x": 1, "s": "a"}}', TWO, call())
    large.predictions({"y": np.zeros(10)}, 640, call(), row_format=True)
    assert large._reader.pid is large._writer.pid is None
