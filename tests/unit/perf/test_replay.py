"""Recorded requests are read in the order they came, and what is damaged is named."""

import json

import numpy as np
import pytest

from tfserve_kit import savedmodel
from tfserve_kit.errors import InvalidRequest, UsageError
from tfserve_kit.perf import replay
from tfserve_kit.perf.workload import Workload
from tfserve_kit.savedmodel import DEFAULT_SIGNATURE, tfrecord, warmup


@pytest.fixture
def signatures(models):
    return savedmodel.read_signatures(models / "half_plus_two" / "1")


@pytest.fixture
def log(tmp_path):
    def write(*lines):
        file = tmp_path / "log.jsonl"
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        file.write_text("\n".join(texts) + "\n")
        return file

    return write


def test_lines_are_requests_with_times(log, signatures):
    file = log(
        {"at": 1700000000.5, "instances": [1, 2]},
        "",
        {"at": 1700000001, "inputs": {"x": [3]}, "signature_name": DEFAULT_SIGNATURE},
    )
    first, second = replay.read(file, signatures)
    assert (first.at_s, second.at_s) == (1700000000.5, 1700000001.0)
    assert first.inputs["x"].tolist() == [1, 2]
    assert first.inputs["x"].dtype == np.float32
    assert second.inputs["x"].tolist() == [3]
    assert second.signature == DEFAULT_SIGNATURE


def test_requests_are_put_in_the_order_they_came(log, signatures):
    lines = [{"at": at, "instances": [n]} for n, at in enumerate([5, 3, 4, 3])]
    found = replay.read(log(*lines), signatures)
    assert [each.inputs["x"].tolist() for each in found] == [[1], [3], [2], [0]]


def test_a_line_that_names_no_signature_calls_the_one_that_was_asked_for(models, log):
    signatures = savedmodel.read_signatures(models / "multi_io" / "1")
    with pytest.raises(UsageError, match="no signature 'other'"):
        replay.read(log({"at": 0, "instances": [1]}), signatures, "other")


@pytest.mark.parametrize(("line", "why"), [
    ("{", "line 2 is no JSON"),
    ({"instances": [1]}, "line 2 has no time"),
    ({"at": "now", "instances": [1]}, "line 2 has no time"),
    ({"at": True, "instances": [1]}, "line 2 has no time"),
    ('{"at": NaN, "instances": [1]}', "line 2 has no time"),
    ("[1]", "line 2 has no time"),
    ({"at": 1}, "line 2 is no request: it needs one of the keys"),
    ({"at": 1, "instances": [1], "inputs": [1]}, "line 2 is no request"),
    ({"at": 1, "inputs": {"y": [1]}}, "line 2: signature .* has no input 'y'"),
    ({"at": 1, "instances": ["a"]}, "line 2"),
    ({"at": 1, "instances": [1], "signature_name": 5}, "line 2: signature_name is 5"),
])  # fmt: skip
def test_a_line_that_cannot_be_sent_is_named(log, signatures, line, why):
    with pytest.raises(InvalidRequest, match=why):
        replay.read(log({"at": 0, "instances": [0]}, line), signatures)


def test_records_are_requests_without_times(tmp_path, signatures):
    file = tmp_path / "requests"
    rows = {"x": np.float32([1, 2, 3])}
    records = list(warmup.build(rows, signatures[DEFAULT_SIGNATURE], model="old", sizes=[1, 3]))
    tfrecord.write(file, records)
    found = replay.read(file, signatures)
    assert [len(each.inputs["x"]) for each in found] == [1, 3]
    assert {each.at_s for each in found} == {None}
    assert {each.signature for each in found} <= {"", DEFAULT_SIGNATURE}


def test_a_record_that_does_not_fit_is_named(tmp_path, signatures):
    tfrecord.write(tmp_path / "requests", [b"\xff"])
    with pytest.raises(InvalidRequest, match="record 1 is no PredictionLog"):
        replay.read(tmp_path / "requests", signatures)


def test_a_record_of_another_kind_is_named(tmp_path, models):
    signatures = savedmodel.read_signatures(models / "legacy" / "1")
    from tfserve_kit import protos

    log = protos.PredictionLog()
    name = next(
        each.name for each in signatures.values() if set(each.outputs) & {"classes", "scores"}
    )
    log.classify_log.request.model_spec.signature_name = name
    log.classify_log.request.input.example_list.examples.add()
    tfrecord.write(tmp_path / "requests", [log.SerializeToString()])
    with pytest.raises(InvalidRequest, match="record 1 is a classify_log"):
        replay.read(tmp_path / "requests", signatures)


@pytest.mark.parametrize("content", [b"", b"\n\n", b"no log at all, but long enough"])
def test_what_is_no_log_is_refused(tmp_path, signatures, content):
    (tmp_path / "log").write_bytes(content)
    with pytest.raises((UsageError, InvalidRequest)):
        replay.read(tmp_path / "log", signatures)


def test_a_missing_log_is_refused(tmp_path, signatures):
    with pytest.raises(UsageError, match="cannot read"):
        replay.read(tmp_path / "gone", signatures)


class TestWorkload:
    due_ns = np.array([0, 5, 9], np.int64)

    def test_recorded_times_take_the_place_of_a_rate(self):
        work = Workload("grpc://h:1", "grpc", due_ns=self.due_ns, max_in_flight=7)
        schedule = work.load().schedule
        assert schedule.due_ns.tolist() == [0, 5, 9]
        assert schedule.max_in_flight == 7
        assert work.name == "replay"
        settings = work.settings()
        assert settings["loop"] == "open"
        assert not settings.keys() & {"due_ns", "arrivals", "concurrency", "rate"}
        json.dumps(settings)

    def test_no_more_than_asked_for_are_sent(self):
        work = Workload("grpc://h:1", "grpc", due_ns=self.due_ns, requests=2)
        assert len(work.load().schedule.due_ns) == 2
