"""Stored requests: reading the file, and replaying what is in it."""

import struct

import pytest

from tfserve_kit import protos
from tfserve_kit.embedded import loader
from tfserve_kit.embedded.ledger import Ledger
from tfserve_kit.embedded.status import Code, ServingError
from tfserve_kit.tfrecord import masked_crc

LOGS = {
    "predict_log": "Predict",
    "classify_log": "Classify",
    "regress_log": "Regress",
    "multi_inference_log": "MultiInference",
}


def record(data):
    length = struct.pack("<Q", len(data))
    return length + masked_crc(length) + data + masked_crc(data)


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
    count = loader.replay_warmup(
        file,
        lambda method, message, call: sent.append((method, message)),
        passes=passes,
        ledger=Ledger(1 << 30),
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
    assert list(loader.warmup_records(file)) == datas


def error_of(read):
    """Return the message of the error that reading ends with, empty for none."""
    try:
        read()
    except ServingError as error:
        hint = ". Please verify your warmup data is in TFRecord format."
        return error.message.removesuffix(hint) if error.code is Code.DATA_LOSS else str(error)
    return ""


@pytest.mark.tensorflow
def test_damage_is_reported_as_the_server_reports_it(written):
    from tensorflow.python.framework import errors
    from tensorflow.python.lib.io import tf_record

    def said(file):
        reader = tf_record.tf_record_iterator(str(file))
        try:
            return len(list(reader)), ""
        except errors.DataLossError as error:
            return None, error.message

    whole = record(b"seven..") + record(b"second")
    files = [whole[:kept] for kept in range(len(whole))]
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1
        files.append(bytes(damaged))
    for content in files:
        file = written(content)
        count, message = said(file)
        assert error_of(lambda file=file: list(loader.warmup_records(file))) == message, content
        if not message:
            assert len(list(loader.warmup_records(file))) == count


def test_record_that_claims_to_be_enormous_is_not_read(written):
    length = struct.pack("<Q", 2**63)
    assert "truncated" in refusal(written(length + masked_crc(length) + b"x")).message


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

    def send(method, message, call):
        sent.append(message.model_spec.signature_name)
        if sent[-1] == "bad":
            raise ServingError(Code.OUT_OF_RANGE, "no")

    file = written(b"".join(record(log(signature=name)) for name in ("good", "bad", "good")))
    with pytest.raises(ServingError, match="no"):
        loader.replay_warmup(file, send, passes=1, ledger=Ledger(1 << 20))
    assert sent == ["good", "bad"]


def test_each_pass_of_a_record_has_what_one_request_may_and_more_is_refused_by_its_number(written):
    ledger, held = Ledger(1 << 20), []

    def send(method, message, call):
        held.append(call.account.held_bytes)
        call.account.take(700_000 if message.model_spec.signature_name == "a" else 900_000, "y")

    file = written(record(log(signature="a")) * 3 + record(log(signature="b")))
    with pytest.raises(ServingError) as caught:
        loader.replay_warmup(file, send, passes=2, ledger=ledger)
    assert caught.value.code is Code.RESOURCE_EXHAUSTED
    assert caught.value.message.startswith(
        f"Warmup record 4 of {file}: The request is too large: with 900000 bytes for y"
    )
    assert (len(held), len(set(held)), ledger.held_bytes) == (7, 1, 0)


def test_record_beyond_what_could_be_sent_is_refused_before_it_is_read(tmp_path):
    length = 1 << 40
    head = struct.pack("<Q", length)
    file = tmp_path / "requests"
    with file.open("wb") as stream:
        stream.write(head + masked_crc(head))
        stream.truncate(length + 100)  # takes no room on disk
    error = refusal(file)
    assert error.code is Code.INVALID_ARGUMENT
    assert f"has {length} bytes" in error.message


@pytest.mark.parametrize("fine", [True, False])
def test_thousand_records_are_the_most_there_may_be(written, fine):
    file = written(record(log()) * (1000 if fine else 1001))
    if fine:
        assert replay(file)[0] == 1000
        return
    error = refusal(file)
    assert error.code is Code.INVALID_ARGUMENT
    assert error.message == f"Number of warmup records exceeds the maximum (1000) at {file}"
