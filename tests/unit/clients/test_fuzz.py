"""Whatever bytes come, reading them ends in an answer or in one of the errors that are named."""

import contextlib
import json

import numpy as np
from google.protobuf.message import DecodeError
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tfserve_kit import protos
from tfserve_kit.clients.grpc import GrpcProtocol
from tfserve_kit.clients.protocol import Loss, Lost, Reply
from tfserve_kit.clients.rest import RestProtocol
from tfserve_kit.clients.results import Target
from tfserve_kit.errors import InvalidRequest, ServerFault
from tfserve_kit.http.messages import Cut, Malformed, TooLarge, read_response
from tfserve_kit.savedmodel import Signature, TensorSpec
from tfserve_kit.tensors import dtypes, predict_response

TARGET = Target("m")
FLOAT = TensorSpec("x:0", dtypes.by_name("float"), None)
SIGNATURE = Signature("serving_default", {"x": FLOAT}, {"y": FLOAT}, "")
SOME = settings(max_examples=150, deadline=None)

HEADS = st.sampled_from(
    [b"HTTP/1.1 200 OK\r\n", b"HTTP/1.0 503\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 "]
)
LINES = st.sampled_from(
    [b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"Content-Encoding: gzip\r\n",
     b"\r\n", b"3\r\nabc\r\n", b"0\r\n\r\n", b"\x1f\x8b\x08", b"Connection: close\r\n"]
)  # fmt: skip
ANSWERS = st.tuples(HEADS, st.lists(LINES | st.binary(max_size=20), max_size=8)).map(
    lambda parts: parts[0] + b"".join(parts[1])
)


def read(text, size):
    reader = read_response(50)
    next(reader)
    try:
        for at in range(0, len(text), size):
            reader.send(text[at : at + size])
        for _ in range(5):
            reader.send(b"")
    except StopIteration as end:
        return end.value
    except (Malformed, Cut, TooLarge, ValueError) as error:
        return type(error)
    raise AssertionError("it wants more after the end")


@SOME
@given(ANSWERS | st.binary(max_size=200), st.integers(1, 30))
def test_http_is_read_or_refused_and_the_same_in_all_pieces(text, size):
    found = read(text, size)
    whole = read(text, len(text) or 1)
    if isinstance(found, type):
        assert found is whole
    else:  # only what comes in one piece with it tells of bytes beyond the answer
        assert (found.status, found.body) == (whole.status, whole.body)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from(["outputs", "predictions", "results", "model_spec", "metadata", "version",
                         "signature_def", "model_version_status", "error", "y", "b64"]),
        inner, max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


@SOME
@given(JSON)
def test_json_of_any_kind_is_an_answer_or_a_fault(document):
    wire, body = RestProtocol("http://h"), json.dumps(document).encode()
    calls = [
        (wire.predict(TARGET, {"x": [1.0]}, (), SIGNATURE), {"outputs", "predictions"}),
        (wire.classify(TARGET, []), {"results"}),
        (wire.regress(TARGET, []), {"results"}),
        (wire.metadata(TARGET), {"metadata"}),
        (wire.status(TARGET), {"model_version_status"}),
    ]
    keys = set(document) if isinstance(document, dict) else set()
    for call, holds in calls:
        answer = read_or_none(call, body)
        assert answer is None or keys & holds
    error = wire.error(Reply(False, body, "400", "Bad Request"), TARGET, 1.0)
    assert isinstance(error, InvalidRequest)
    if isinstance(document, dict) and isinstance(document.get("error"), str):
        assert document["error"].strip() in error.message


def read_or_none(call, body):
    """Return what a body says, None where it is refused with the reason."""
    try:
        return call.read(body)
    except ServerFault as fault:
        refusal = fault.message
    assert "sent an unreadable answer: " in refusal
    return None


def test_documents_that_answer_are_read():
    wire = RestProtocol("http://h")
    call = wire.predict(TARGET, {"x": [1.0]}, (), SIGNATURE)
    for body in (b'{"outputs": [1.5]}', b'{"predictions": [1.5]}', b'{"outputs": {"y": [1.5]}}'):
        outputs, version = call.read(body)
        assert (outputs["y"].tolist(), version) == ([1.5], None)
    assert wire.classify(TARGET, []).read(b'{"results": []}').classes == ()
    assert wire.status(TARGET).read(b'{"model_version_status": []}') == []


STATES = {0, 10, 20, 30, 40, 50}  # of versions; others can be sent, and are refused
GOOD = predict_response({"y": np.float32([1, 2, 3]), "s": np.array([b"a"], object)}, b"")


@SOME
@given(st.binary(max_size=60) | st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)))
@example((4, 16))
def test_protobuf_of_any_kind_is_an_answer_or_a_fault(change):
    body = change if isinstance(change, bytes) else bytearray(GOOD)
    if isinstance(body, bytearray):
        body[change[0]] = change[1]
    wire = GrpcProtocol("grpc://h:1")
    calls = [
        (wire.predict(TARGET, {"x": [1.0]}, (), None), protos.PredictResponse),
        (wire.classify(TARGET, []), protos.ClassificationResponse),
        (wire.regress(TARGET, []), protos.RegressionResponse),
        (wire.multi_inference(TARGET, {"a": "classify"}, []), protos.MultiInferenceResponse),
        (wire.metadata(TARGET), protos.GetModelMetadataResponse),
        (wire.status(TARGET), protos.GetModelStatusResponse),
    ]
    for call, kind in calls:
        answer = read_or_none(call, bytes(body))
        assert answer is None or parses(kind, bytes(body))
        if kind is protos.GetModelStatusResponse and parses(kind, bytes(body)):
            states = [each.state for each in kind.FromString(bytes(body)).model_version_status]
            assert (answer is not None) is set(states).issubset(STATES)


def parses(kind, body):
    with contextlib.suppress(DecodeError):
        kind.FromString(body)
        return True
    return False


def test_unchanged_answer_is_read():
    call = GrpcProtocol("grpc://h:1").predict(TARGET, {"x": [1.0]}, (), None)
    outputs, version = call.read(GOOD)
    assert (outputs["y"].tolist(), outputs["s"].tolist(), version) == ([1, 2, 3], [b"a"], 0)


def test_outcome_of_another_protocol_is_a_fault_too():
    error = GrpcProtocol("grpc://h:1").error(Lost(Loss.BROKEN, "why"), TARGET, 1.0)
    assert isinstance(error, ServerFault)
