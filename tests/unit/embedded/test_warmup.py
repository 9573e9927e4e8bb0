"""Stored requests: reading the file, and replaying what is in it."""

import struct

import pytest

from tfserve_kit import protos
from tfserve_kit.embedded import warmup
from tfserve_kit.embedded.status import Code, ServingError

LOGS = {
    "predict_log": "Predict",
    "classify_log": "Classify",
    "regress_log": "Regress",
    "multi_inference_log": "MultiInference",
}


def record(data):
    return struct.pack("<QI", len(data), 0) + data + b"crc."


def log(kind="predict_log", signature="s"):
    message = protos.PredictionLog()
    request = getattr(message, kind).request
    spec = request.tasks.add().model_spec if kind == "multi_inference_log" else request.model_spec
    spec.signature_name = signature
    return message.SerializeToString()


@pytest.fixture
def written(tmp_path):
    """Write a warm-up file of these bytes."""

    def write(content):
        file = tmp_path / "requests"
        file.write_bytes(content)
        return file

    return write


def replay(file, passes=1):
    sent = []
    count = warmup.replay(
        file, lambda method, message: sent.append((method, message)), passes=passes
    )
    return count, sent


def refusal(file):
    with pytest.raises(ServingError) as caught:
        replay(file)
    return caught.value


# Records


@pytest.mark.parametrize("datas", [[], [b"one"], [b"one", b"", b"three" * 1000]])
def test_records_are_read_one_after_the_other(written, datas):
    file = written(b"".join(map(record, datas)))
    assert list(warmup.records(file)) == datas


@pytest.mark.parametrize(
    ("kept", "offset"),
    [
        (-1, 23 + 12),  # within the checksum at the end
        (-4, 23 + 12),  # before it
        (-5, 23 + 12),  # within the data
        (23 + 12, 23 + 12),  # before the data
        (23 + 11, 23),  # within the head
        (24, 23),
    ],
)
def test_truncated_file_is_a_loss_of_data_at_its_offset(written, kept, offset):
    whole = record(b"seven..") + record(b"second")
    assert len(record(b"seven..")) == 23
    found = []
    with pytest.raises(ServingError) as caught:
        found.extend(warmup.records(written(whole[:kept])))
    assert caught.value.code is Code.DATA_LOSS
    assert caught.value.message == (
        f"truncated record at {offset}. Please verify your warmup data is in TFRecord format."
    )


def test_record_that_claims_to_be_enormous_is_not_read(written):
    assert refusal(written(struct.pack("<QI", 2**63, 0) + b"x")).code is Code.DATA_LOSS


# Replay


@pytest.mark.parametrize(("kind", "method"), LOGS.items())
def test_each_kind_of_log_is_sent_by_its_method(written, kind, method):
    count, sent = replay(written(record(log(kind))))
    assert count == 1
    ((sent_method, message),) = sent
    assert sent_method == method
    assert message.DESCRIPTOR.name == protos.METHODS[method].request


def test_requests_are_sent_in_order_each_as_often_as_asked(written):
    file = written(record(log(signature="a")) + record(log(signature="b")))
    count, sent = replay(file, passes=3)
    assert count == 2
    assert [message.model_spec.signature_name for _, message in sent] == [*"aaabbb"]


def test_empty_file_sends_nothing(written):
    assert replay(written(b"")) == (0, [])


def test_record_that_is_no_log_is_refused(written):
    error = refusal(written(record(b"\xff\xff")))
    assert error.code is Code.INVALID_ARGUMENT
    assert error.message.startswith("Failed to parse warmup record: \ufffd\ufffd from /")


@pytest.mark.parametrize(
    ("message", "name"),
    [
        (protos.PredictionLog(), "LOG_TYPE_NOT_SET"),
        (protos.from_text("PredictionLog", "session_run_log {}"), "session_run_log"),
    ],
)
def test_log_of_another_kind_is_not_implemented(written, message, name):
    error = refusal(written(record(message.SerializeToString())))
    assert error.code is Code.UNIMPLEMENTED
    assert error.message == f"Unsupported log_type for warmup: {name}"


def test_failing_request_ends_the_replay(written):
    sent = []

    def send(method, message):
        sent.append(message.model_spec.signature_name)
        if sent[-1] == "bad":
            raise ServingError(Code.OUT_OF_RANGE, "no")

    file = written(b"".join(record(log(signature=name)) for name in ("good", "bad", "good")))
    with pytest.raises(ServingError, match="no"):
        warmup.replay(file, send, passes=1)
    assert sent == ["good", "bad"]


@pytest.mark.parametrize("fine", [True, False])
def test_thousand_records_are_the_most_there_may_be(written, fine):
    file = written(record(log()) * (1000 if fine else 1001))
    if fine:
        assert replay(file)[0] == 1000
        return
    error = refusal(file)
    assert error.code is Code.INVALID_ARGUMENT
    assert error.message == f"Number of warmup records exceeds the maximum (1000) at {file}"
