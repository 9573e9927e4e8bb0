"""The trial of a version: what a server's answers, and its end, make of the push."""

import contextlib
import json

import pytest

from tests.unit.serving.made import Server
from tfserve_kit import savedmodel
from tfserve_kit.clients import Metadata, Prediction
from tfserve_kit.engines import Phase
from tfserve_kit.engines.base import Availability
from tfserve_kit.errors import (
    DeadlineExceeded,
    EngineUnavailable,
    InvalidRequest,
    PushRefused,
    ServerFailed,
    ServerOverloaded,
    ServerUnreachable,
)
from tfserve_kit.serving import smoke


class Trial(Server):
    """Answers as a test wants: `act(signature)` may raise."""

    def __init__(self, home, spec, version_dir):
        super().__init__(home, spec)
        self.version_dir, self.asked, self.act = version_dir, [], lambda signature: None

    def metadata(self, target, *, timeout_s=1.0):
        return Metadata(1, savedmodel.read_signatures(self.version_dir))

    def predict(self, target, inputs, *, timeout_s=1.0):
        self.asked.append((target.signature, inputs))
        self.act(target.signature)
        return Prediction({}, 1, 0.0)

    def classify(self, target, examples, *, timeout_s=1.0):
        self.predict(target, examples)

    regress = classify


@pytest.fixture
def tried(tmp_path, base_path, deployed, monkeypatch):
    """Try version 1 on a server in memory that `act` changes."""

    def act(change=lambda signature: None, **options):
        server = Trial(tmp_path / "servers" / "web", deployed(), base_path / "1")
        server.act, act.server = change, server
        serving = contextlib.nullcontext(server)
        monkeypatch.setattr(smoke, "_serving", lambda *_: serving)
        monkeypatch.setattr(smoke, "_cannot_be_tried", lambda *_: None)
        monkeypatch.setattr(smoke, "connect", server.connect)
        monkeypatch.setattr(smoke, "_DIES_WITHIN_S", 0.1)
        return smoke.trial(base_path / "1", timeout_s=5.0, **options)

    return act


def raising(error):
    def act(signature):
        raise error

    return act


def test_each_signature_gets_zeros(tried, base_path):
    assert tried() == ()
    signatures = savedmodel.read_signatures(base_path / "1")
    assert {name for name, _ in tried.server.asked} == set(signatures)


def test_error_answers_are_remarks(tried):
    remarks = tried(raising(InvalidRequest("not zero")))
    assert remarks and all("answers zeros with an error" in each.message for each in remarks)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (DeadlineExceeded("late"), "does not answer a request of zeros within 5 s"),
        (ServerOverloaded("full"), "ran out of memory over a request of zeros: full"),
    ],
)
def test_answers_that_never_come_and_memory_that_ends_refuse(tried, error, text):
    with pytest.raises(PushRefused, match=text) as caught:
        tried(raising(error))
    assert "--trust" in caught.value.remedy


def test_server_that_a_request_ends_refuses_with_its_log(tried):
    def end(signature):
        tried.server.phase, tried.server.exit_code = Phase.EXITED, -6
        raise ServerUnreachable("gone")

    with pytest.raises(PushRefused, match="by a request to") as caught:
        tried(end)
    assert "exit status -6" in caught.value.message and "E last" in caught.value.message


def test_connection_that_broke_while_the_server_lives_is_a_remark(tried):
    assert all("an error" in each.message for each in tried(raising(ServerUnreachable("reset"))))


def test_trusted_version_gets_the_request_of_the_files_alone(tried, tmp_path):
    (tmp_path / "x.json").write_text(json.dumps({"instances": [1.0]}))
    assert tried(files=[tmp_path / "x.json"], is_trusted=True) == ()
    ((signature, inputs),) = tried.server.asked
    assert signature == "" and inputs["x"].tolist() == [1.0]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"signature": "nope"}, "the smoke test failed: the model has no signature 'nope'"),
        ({}, "the smoke test failed: cannot read"),
    ],
)
def test_smoke_test_that_cannot_be_made_refuses(tried, tmp_path, options, text):
    with pytest.raises(PushRefused, match=text):
        tried(files=[tmp_path / "none.json"], is_trusted=True, **options)


def test_without_the_engine_nothing_was_tried_and_files_are_refused(base_path, monkeypatch):
    class Absent:
        def available(self):
            return Availability(False, "no tensorflow", "pip install it")

    monkeypatch.setattr(smoke.process, "embedded", lambda **_: Absent())
    (remark,) = smoke.trial(base_path / "1")
    assert "was not tested" in remark.message and remark.remedy == "pip install it"
    with pytest.raises(EngineUnavailable, match="no smoke test here: no tensorflow"):
        smoke.trial(base_path / "1", files=[base_path / "x.json"])


def test_version_that_does_not_load_is_refused_with_the_log(base_path, monkeypatch):
    class Present:
        def available(self):
            return Availability(True, "")

    def fail(spec, engine):
        raise ServerFailed("it ended", log_tail=["E checksum"])

    monkeypatch.setattr(smoke.process, "embedded", lambda **_: Present())
    monkeypatch.setattr(smoke.launch, "start", fail)
    with pytest.raises(PushRefused, match="it ended") as caught:
        smoke.trial(base_path / "1")
    assert "E checksum" in caught.value.message
