"""Requests on plain values, over a manager and a servable that are made up."""

import contextlib

import numpy as np
import pytest

from tfserve_kit import protos
from tfserve_kit.embedded import labels
from tfserve_kit.embedded.handlers import Handlers, Metadata, ModelRef, Predicted
from tfserve_kit.embedded.manager import Lease, VersionStatus
from tfserve_kit.embedded.status import Code, ServingError
from tfserve_kit.embedded.versions import State

SIGNATURE = """
inputs { key: "a" value { name: "a_in:0" dtype: DT_FLOAT } }
inputs { key: "b" value { name: "b_in:0" dtype: DT_FLOAT } }
outputs { key: "sum" value { name: "add:0" dtype: DT_FLOAT } }
outputs { key: "diff" value { name: "sub:0" dtype: DT_FLOAT } }
"""


class AddingServable:
    """Computes `add:0` and `sub:0` from `a_in:0` and `b_in:0`; remembers what it was asked."""

    def __init__(self):
        signature = protos.from_text("SignatureDef", SIGNATURE)
        self.signatures = {"serving_default": signature, "other": signature}
        self.asked = []
        self.fault = None

    def run(self, feeds, fetches):
        self.asked.append((list(feeds), list(fetches)))
        if self.fault:
            raise self.fault
        a, b = feeds["a_in:0"], feeds["b_in:0"]
        values = {"add:0": a + b, "sub:0": a - b}
        return [values[name] for name in fetches]


class OneModelManager:
    """Has version 4 of model `m`, and counts the leases that are out."""

    def __init__(self, servable):
        self.servable, self.out = servable, 0

    @contextlib.contextmanager
    def lease(self, model, version=None, label=None):
        if label is not None:
            version = labels.resolve({"m": {"good": 4}}, model, label)
        if model != "m" or version not in {None, 4}:
            raise ServingError(Code.NOT_FOUND, f"no {model} {version}")
        self.out += 1
        try:
            yield Lease(model, 4, self.servable)
        finally:
            self.out -= 1

    def status(self, model):
        states = [VersionStatus(4, State.AVAILABLE, None), VersionStatus(3, State.END, None)]
        return states if model == "m" else []


@pytest.fixture
def servable():
    return AddingServable()


@pytest.fixture
def manager(servable):
    return OneModelManager(servable)


@pytest.fixture
def handlers(manager):
    return Handlers(manager)


M = ModelRef("m")
A, B = np.float32([5, 7]), np.float32([1, 2])


def test_predict_runs_the_default_signature_and_names_what_answered(handlers, servable):
    found = handlers.predict(M, "", {"b": B, "a": A})
    assert isinstance(found, Predicted)
    assert (found.version, found.signature) == (4, "serving_default")
    assert {alias: array.tolist() for alias, array in found.outputs.items()} == {
        "sum": [6, 9],
        "diff": [4, 5],
    }
    assert servable.asked == [(["a_in:0", "b_in:0"], ["sub:0", "add:0"])]


def test_outputs_come_in_the_order_of_their_names(handlers):
    assert list(handlers.predict(M, "", {"a": A, "b": B}).outputs) == ["diff", "sum"]


def test_predict_runs_the_named_signature(handlers):
    assert handlers.predict(M, "other", {"a": A, "b": B}).signature == "other"


@pytest.mark.parametrize("wanted", [["sum"], ["sum", "diff"], ["diff", "sum"]])
def test_output_filter_computes_only_what_is_wanted_in_that_order(handlers, servable, wanted):
    assert list(handlers.predict(M, "", {"a": A, "b": B}, wanted).outputs) == wanted
    assert len(servable.asked[0][1]) == len(wanted)


@pytest.mark.parametrize(
    ("signature", "inputs", "wanted", "code", "text"),
    [
        (
            "nope",
            {"a": A, "b": B},
            [],
            Code.FAILED_PRECONDITION,
            'Serving signature key "nope" not found.',
        ),
        (
            "",
            {"a": A},
            [],
            Code.INVALID_ARGUMENT,
            "input size does not match signature: 1!=2 len({a}) != len({a,b}). Sent extra: {}. "
            "Missing but required: {b}.",
        ),
        (
            "",
            {"a": A, "b": B, "c": B},
            [],
            Code.INVALID_ARGUMENT,
            "input size does not match signature: 3!=2 len({a,b,c}) != len({a,b}). "
            "Sent extra: {c}. Missing but required: {}.",
        ),
        (
            "",
            {},
            [],
            Code.INVALID_ARGUMENT,
            "input size does not match signature: 0!=2 len({}) != len({a,b}). Sent extra: {}. "
            "Missing but required: {a,b}.",
        ),
        (
            "",
            {"a": A, "z": B},
            [],
            Code.INVALID_ARGUMENT,
            "Signature input alias: b(feed name: b_in:0) not found in request and no default "
            "value provided. Inputs expected to be in the request {a,z}, or default input alias "
            "set: ",
        ),
        (
            "",
            {"a": A, "b": B},
            ["nope"],
            Code.INVALID_ARGUMENT,
            "output tensor alias not found in signature: nope Outputs expected to be in the set "
            "{diff,sum}.",
        ),
        (
            "",
            {"a": A, "b": B},
            ["sum", "sum"],
            Code.INVALID_ARGUMENT,
            "duplicate output tensor alias: sum",
        ),
    ],
)
def test_predict_that_does_not_fit_the_signature_is_refused_in_the_official_words(
    handlers, manager, servable, signature, inputs, wanted, code, text
):
    with pytest.raises(ServingError) as caught:
        handlers.predict(M, signature, inputs, wanted)
    assert (caught.value.code, caught.value.message) == (code, text)
    assert servable.asked == []
    assert manager.out == 0


def test_error_of_the_graph_passes_and_gives_the_version_back(handlers, manager, servable):
    servable.fault = ServingError(Code.OUT_OF_RANGE, "index 9")
    with pytest.raises(ServingError) as caught:
        handlers.predict(M, "", {"a": A, "b": B})
    assert caught.value is servable.fault
    assert manager.out == 0


@pytest.mark.parametrize("model", [ModelRef("nope"), ModelRef("m", 3)])
def test_model_or_version_that_is_not_there_is_not_found(handlers, model):
    for ask in (lambda: handlers.predict(model, "", {}), lambda: handlers.metadata(model)):
        with pytest.raises(ServingError) as caught:
            ask()
        assert caught.value.code is Code.NOT_FOUND


@pytest.mark.parametrize("name", ["m", "nope"])
def test_unknown_label_is_refused_whether_or_not_the_model_is_known(handlers, name):
    model = ModelRef(name, label="stable")
    for ask in (lambda: handlers.predict(model, "", {}), lambda: handlers.metadata(model)):
        with pytest.raises(ServingError) as caught:
            ask()
        assert caught.value.code is Code.INVALID_ARGUMENT
        assert caught.value.message == "Unrecognized servable version label: stable"


@pytest.mark.parametrize("version", [None, 4])
def test_metadata_holds_the_signatures_of_the_version(handlers, manager, servable, version):
    assert handlers.metadata(ModelRef("m", version)) == Metadata(4, servable.signatures)
    assert manager.out == 0


@pytest.mark.parametrize(
    ("model", "numbers"),
    [
        (ModelRef("m"), [4, 3]),
        (ModelRef("m", 3), [3]),
        (ModelRef("m", label="ignored"), [4, 3]),
    ],
)
def test_status_lists_all_versions_or_the_one_asked_for(handlers, model, numbers):
    assert [status.number for status in handlers.status(model)] == numbers


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (ModelRef("nope"), "Could not find any versions of model nope"),
        (ModelRef("m", 5), "Could not find version 5 of model m"),
        (ModelRef("m", 0), "Could not find version 0 of model m"),
    ],
)
def test_status_of_what_is_not_known_is_not_found(handlers, model, text):
    with pytest.raises(ServingError) as caught:
        handlers.status(model)
    assert (caught.value.code, caught.value.message) == (Code.NOT_FOUND, text)
