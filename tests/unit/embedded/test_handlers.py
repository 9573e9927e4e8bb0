"""Requests on plain values, over a manager and a servable that are made up."""

import contextlib

import numpy as np
import pytest

from tests.unit.embedded.flows import Blocking
from tfserve_kit import protos
from tfserve_kit.embedded.batching import completed
from tfserve_kit.embedded.handlers import (
    Handlers,
    InferenceTask,
    ModelRef,
    Predicted,
    PredictedTogether,
)
from tfserve_kit.embedded.ledger import Call, Ledger
from tfserve_kit.embedded.manager import Lease, ServableStatus, VersionState, resolve_label
from tfserve_kit.embedded.metrics import Metrics
from tfserve_kit.embedded.signatures import CLASSIFY, REGRESS
from tfserve_kit.embedded.status import Code, ServingError
from tfserve_kit.tensors import to_proto

SIGNATURE = """
inputs { key: "a" value { name: "a_in:0" dtype: DT_FLOAT } }
inputs { key: "b" value { name: "b_in:0" dtype: DT_FLOAT } }
outputs { key: "sum" value { name: "add:0" dtype: DT_FLOAT } }
outputs { key: "diff" value { name: "sub:0" dtype: DT_FLOAT } }
"""


def strings(*items):
    array = np.empty(len(items), object)
    array[:] = [item.encode() for item in items]
    return array


class AddingServable:
    """Computes `add:0` and `sub:0` from `a_in:0` and `b_in:0`; remembers what it was asked."""

    def __init__(self):
        signature = protos.from_text("SignatureDef", SIGNATURE)
        self.signatures = {"serving_default": signature, "other": signature}
        self.asked = []
        self.fault = None

    def run(self, feeds, fetches, *, call=None):
        self.asked.append((list(feeds), list(fetches)))
        if self.fault:
            raise self.fault
        a, b = feeds["a_in:0"], feeds["b_in:0"]
        values = {"add:0": a + b, "sub:0": a - b}
        return [values[name] for name in fetches]


class Halving:
    """Computes `half:0` and `y:0` from `x:0`, unless it finds that too large."""

    def __init__(self):
        text = """
        inputs { key: "x" value { name: "x:0" dtype: DT_FLOAT } }
        outputs { key: "y" value { name: "y:0" dtype: DT_FLOAT } }
        outputs { key: "half" value { name: "half:0" dtype: DT_FLOAT } }
        """
        self.signatures = {"serving_default": protos.from_text("SignatureDef", text)}

    def run(self, feeds, fetches, *, call=None):
        (x,) = feeds.values()
        if x.max() > 1000:
            raise ServingError(Code.INVALID_ARGUMENT, f"{x.max()} is too large")
        values = {"half:0": x / 2, "y:0": x / 2 + 3}
        return [values[name] for name in fetches]


class OneModelManager:
    """Has version 4 of model `m`, and counts the leases that are out."""

    def __init__(self, servable):
        self.servable, self.out = servable, 0
        self.lent = Lease("m", 4, servable, bool)
        self.reloaded = None

    @contextlib.contextmanager
    def lease(self, model, version=None, label=None):
        if label is not None:
            version = resolve_label({"m": {"good": 4}}, model, label)
        if model != "m" or version not in {None, 4}:
            raise ServingError(Code.NOT_FOUND, f"no {model} {version}")
        self.out += 1
        try:
            yield self.lent
        finally:
            self.out -= 1

    def status(self, model):
        states = [
            ServableStatus(4, VersionState.AVAILABLE, None),
            ServableStatus(3, VersionState.END, None),
        ]
        return states if model == "m" else []

    def reload(self, configs, *, call=None):
        self.reloaded = (configs, call.timeout_s)


def handling(*arguments, **options):
    return Blocking(Handlers(*arguments, **options))


@pytest.fixture
def servable():
    return AddingServable()


@pytest.fixture
def manager(servable):
    return OneModelManager(servable)


@pytest.fixture
def handlers(manager):
    return handling(manager, Metrics())


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


def always(*arrays):
    return lambda dtype: np.array(arrays, dtype.numpy)


def test_predict_at_once_does_as_predict_once_the_signature_is_known():
    metrics, manager = Metrics(), OneModelManager(Halving())
    handlers, account = Handlers(manager, metrics), Ledger(1 << 30).account("c")
    assert handlers.predict_at_once(M, always(A), [account]) is None
    usual = [completed(handlers.predict(M, "", {"x": array})) for array in (A, B)]
    found = handlers.predict_at_once(M, always(A, B), [account] * 2)
    for expected, got in zip(usual, found, strict=True):
        assert got[:2] == expected[:2]
        assert list(got.outputs) == list(expected.outputs) == ["half", "y"]
        assert all((got.outputs[alias] == array).all() for alias, array in expected.outputs.items())
    assert 'runtime_latency_count{model_name="m",API="Predict",runtime="TF1"} 4' in metrics.page()
    assert handlers.predict_at_once(M, lambda _: None, [account]) is None
    assert manager.out == 0


def results(*arrays):
    return [Predicted(7, "a", {"y": np.array(array)}) for array in arrays]


def test_results_are_put_together_and_taken_apart_again():
    apart = results([1.5, 2], [3, 4.5])
    together = PredictedTogether.of(apart)
    assert together.outputs["y"].tolist() == [[1.5, 2], [3, 4.5]]
    for one, other in zip(together.apart(), apart, strict=True):
        assert one[:2] == other[:2]
        assert (one.outputs["y"] == other.outputs["y"]).all()


@pytest.mark.parametrize(
    "apart",
    [results([1.5], [2.5, 3]), results([1.5], [2]), [*results([1.5]), ValueError()], []],
    ids=["shapes", "types", "a failure", "none"],
)
def test_results_that_differ_are_not_put_together(apart):
    assert PredictedTogether.of(apart) is None


def test_predict_at_once_is_not_for_several_inputs(handlers):
    handlers.predict(M, "", {"a": A, "b": B})
    account = Ledger(1).account("")
    assert handlers.predict_at_once(M, always(A), [account]) is None


def test_of_requests_at_once_each_has_its_own_error(caplog):
    manager = OneModelManager(Halving())
    handlers = Handlers(manager, Metrics())
    completed(handlers.predict(M, "", {"x": A}))
    poor, rich = Ledger(1 << 20).account(""), Ledger(1 << 30).account("")
    large = np.zeros(1 << 20, np.float32)
    first, bad, last = handlers.predict_at_once(M, always(A, A * 1000, A), [rich] * 3)
    assert [each.outputs["half"].tolist() for each in (first, last)] == [(A / 2).tolist()] * 2
    with pytest.raises(ServingError) as usual:
        completed(handlers.predict(M, "", {"x": A * 1000}))
    assert (bad.code, bad.message) == (usual.value.code, usual.value.message)
    refused, fine = handlers.predict_at_once(M, always(large, large), [poor, rich])
    assert refused.code is Code.RESOURCE_EXHAUSTED
    assert fine.outputs["half"].tolist() == large.tolist()
    assert manager.out == 0


@pytest.mark.parametrize("model", [ModelRef("nope"), ModelRef("m", 3), ModelRef("m", label="x")])
def test_predict_at_once_refuses_as_predict_does(manager, handlers, model):
    with pytest.raises(ServingError) as usual:
        handlers.predict(model, "", {})
    with pytest.raises(ServingError) as caught:
        Handlers(manager, Metrics()).predict_at_once(model, always(A), [Ledger(1).account("")])
    assert (caught.value.code, caught.value.message) == (usual.value.code, usual.value.message)


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
    for ask in (
        lambda: handlers.predict(model, "", {}),
        lambda: handlers.metadata(model),
        lambda: handlers.inputs(model, "serving_default"),
    ):
        with pytest.raises(ServingError) as caught:
            ask()
        assert caught.value.code is Code.NOT_FOUND


@pytest.mark.parametrize("name", ["m", "nope"])
def test_unknown_label_is_refused_whether_or_not_the_model_is_known(handlers, name):
    model = ModelRef(name, label="stable")
    for ask in (
        lambda: handlers.predict(model, "", {}),
        lambda: handlers.metadata(model),
        lambda: handlers.inputs(model, "serving_default"),
    ):
        with pytest.raises(ServingError) as caught:
            ask()
        assert caught.value.code is Code.INVALID_ARGUMENT
        assert caught.value.message == "Unrecognized servable version label: stable"


@pytest.mark.parametrize("version", [None, 4])
def test_inputs_are_those_of_the_signature(handlers, manager, servable, version):
    for name, definition in servable.signatures.items():
        for _ in range(2):
            found = handlers.inputs(ModelRef("m", version), name)
            assert found == dict(definition.inputs)
    assert handlers.inputs(ModelRef("m", version), "nope") is None
    assert manager.out == 0


@pytest.mark.parametrize("version", [None, 4])
def test_metadata_holds_the_signatures_of_the_version(handlers, manager, servable, version):
    assert handlers.metadata(ModelRef("m", version)) == (4, servable.signatures)
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


def test_label_stands_for_its_version(handlers):
    found = handlers.predict(ModelRef("m", label="good"), "", {"a": A, "b": B})
    assert found.version == 4


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ({"a": A, "b": B.astype(np.int32)}, "Expects arg[1] to be float but int32 is provided"),
        ({"a": strings("x"), "b": B}, "Expects arg[0] to be float but string is provided"),
    ],
)
def test_input_of_another_type_is_refused_in_the_official_words(handlers, servable, inputs, text):
    with pytest.raises(ServingError) as caught:
        handlers.predict(M, "", inputs)
    assert (caught.value.code, caught.value.message) == (Code.INVALID_ARGUMENT, text)
    assert servable.asked == []


def test_input_left_out_takes_its_default(handlers, servable):
    servable.signatures["other"].defaults["b"].CopyFrom(to_proto(np.float32([10, 20])))
    found = handlers.predict(M, "other", {"a": A})
    assert found.outputs["sum"].tolist() == [15, 27]


def test_default_does_not_excuse_another_missing_input(handlers, servable):
    servable.signatures["other"].defaults["b"].CopyFrom(to_proto(np.float32([10, 20])))
    with pytest.raises(ServingError) as caught:
        handlers.predict(M, "other", {"b": B})
    assert caught.value.message.endswith("or default input alias set: b")


# Classify, regress and both at once

EXAMPLES = strings("one", "two")


class ExampleServable:
    """Has a classification and a regression signature over two examples."""

    def __init__(self):
        both = 'inputs { key: "inputs" value { name: "in:0" dtype: DT_STRING } }'
        classify = both + (
            f'method_name: "{CLASSIFY}" '
            'outputs { key: "classes" value { name: "c:0" dtype: DT_STRING } } '
            'outputs { key: "scores" value { name: "s:0" dtype: DT_FLOAT } }'
        )
        regress = both + (
            f'method_name: "{REGRESS}" '
            'outputs { key: "outputs" value { name: "o:0" dtype: DT_FLOAT } }'
        )
        self.signatures = {
            "serving_default": protos.from_text("SignatureDef", classify),
            "value": protos.from_text("SignatureDef", regress),
        }
        self.values = {
            "c:0": np.array([[b"cat", b"dog"], [b"cat", b"dog"]], object),
            "s:0": np.float32([[0.25, 0.75], [1, 0]]),
            "o:0": np.float32([[1.5], [2.5]]),
        }

    def run(self, feeds, fetches, *, call=None):
        (fed,) = feeds.items()
        assert fed[0] == "in:0"
        assert fed[1] is EXAMPLES
        return [self.values[name] for name in fetches]


@pytest.fixture
def teller():
    return ExampleServable()


@pytest.fixture
def telling(teller):
    return handling(OneModelManager(teller), Metrics())


def test_classify_pairs_labels_with_scores(telling):
    found = telling.classify(M, "", lambda: EXAMPLES)
    assert (found.version, found.signature) == (4, "serving_default")
    assert found.rows == [[(b"cat", 0.25), (b"dog", 0.75)], [(b"cat", 1), (b"dog", 0)]]


@pytest.mark.parametrize(
    ("dropped", "expected"),
    [
        ("classes", [[(b"", 0.25), (b"", 0.75)], [(b"", 1), (b"", 0)]]),
        ("scores", [[(b"cat", 0), (b"dog", 0)], [(b"cat", 0), (b"dog", 0)]]),
    ],
)
def test_classify_does_with_labels_or_scores_alone(telling, teller, dropped, expected):
    del teller.signatures["serving_default"].outputs[dropped]
    assert telling.classify(M, "", lambda: EXAMPLES).rows == expected


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_regress_gives_a_value_for_each_example(telling, teller, shape):
    teller.values["o:0"] = teller.values["o:0"].reshape(shape)
    found = telling.regress(M, "value", lambda: EXAMPLES)
    assert (found.version, found.signature, found.rows) == (4, "value", [1.5, 2.5])


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("c:0", np.zeros((2, 2), np.float32),
         "Expected classes Tensor of DT_STRING. Got: DT_FLOAT"),
        ("s:0", np.zeros((2, 2), np.int32), "Expected scores Tensor of DT_FLOAT. Got: DT_INT32"),
        ("s:0", np.zeros(2, np.float32),
         "Expected Tensor shape: [batch_size num_classes] but got [2]"),
        ("s:0", np.zeros((3, 2), np.float32), "Expected scores output batch size of 2. Got: 3"),
        ("s:0", np.zeros((2, 3), np.float32),
         "Tensors class and score should match in dim_size(1). Got 2 vs. 3"),
    ],
)  # fmt: skip
def test_classes_of_another_type_or_shape_are_refused(telling, teller, name, value, text):
    teller.values[name] = value
    with pytest.raises(ServingError) as caught:
        telling.classify(M, "", lambda: EXAMPLES)
    assert (caught.value.code, caught.value.message) == (Code.INVALID_ARGUMENT, text)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.zeros((2, 2), np.float32), "Expected output Tensor shape to be either [batch_size] "
         "or [batch_size, 1] but got [2,2]"),
        (np.float32(1), "Expected output Tensor shape to be either [batch_size] "
         "or [batch_size, 1] but got []"),
        (np.zeros(3, np.float32), "Input batch size did not match output batch size: 2 vs. 3"),
        (np.zeros(2, np.float64), "Expected output Tensor of DT_FLOAT.  Got: DT_DOUBLE"),
    ],
)  # fmt: skip
def test_values_of_another_type_or_shape_are_refused(telling, teller, value, text):
    teller.values["o:0"] = np.asarray(value)
    with pytest.raises(ServingError) as caught:
        telling.regress(M, "value", lambda: EXAMPLES)
    assert (caught.value.code, caught.value.message) == (Code.INVALID_ARGUMENT, text)


@pytest.mark.parametrize(
    ("call", "change", "text"),
    [
        ("classify", 'inputs { key: "more" value {} }', "Expected one input Tensor."),
        ("classify", 'outputs { key: "more" value {} }',
         "Expected one or two output Tensors, found 3"),
        ("regress", 'inputs { key: "more" value {} }', "Expected one input Tensor."),
        ("regress", 'outputs { key: "more" value {} }', "Expected one output Tensor."),
    ],
)  # fmt: skip
def test_signature_of_another_form_is_refused(telling, teller, call, change, text):
    name = {"classify": "serving_default", "regress": "value"}[call]
    teller.signatures[name].MergeFrom(protos.from_text("SignatureDef", change))
    with pytest.raises(ServingError) as caught:
        getattr(telling, call)(M, name, lambda: EXAMPLES)
    assert (caught.value.code, caught.value.message) == (Code.INVALID_ARGUMENT, text)


@pytest.mark.parametrize(
    ("call", "name", "side", "text"),
    [
        ("classify", "serving_default", "inputs", "No classification inputs found in SignatureDef"),
        ("classify", "serving_default", "outputs", 'at least one of "classes" or "scores"'),
        ("regress", "value", "inputs", "No regression inputs found in SignatureDef"),
        ("regress", "value", "outputs", "No regression outputs found in SignatureDef"),
    ],
)
def test_signature_with_other_names_is_refused(telling, teller, call, name, side, text):
    aliases = getattr(teller.signatures[name], side)
    aliases.clear()
    aliases["other"].name = "x:0"
    with pytest.raises(ServingError) as caught:
        getattr(telling, call)(M, name, lambda: EXAMPLES)
    assert text in caught.value.message


@pytest.mark.parametrize("call", ["classify", "regress"])
def test_inference_with_an_unknown_signature_is_refused(telling, call):
    with pytest.raises(ServingError) as caught:
        getattr(telling, call)(M, "nope", pytest.fail)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert caught.value.message == "No signature was found with the name: nope"


def test_method_name_counts_only_where_it_is_checked(teller):
    for name in teller.signatures:
        teller.signatures[name].method_name = "other"
    manager = OneModelManager(teller)
    lenient = handling(manager, Metrics())
    strict = handling(manager, Metrics(), check_method_name=True)
    for call, name, kind, wanted in (
        ("classify", "serving_default", "classification", CLASSIFY),
        ("regress", "value", "regression", REGRESS),
    ):
        getattr(lenient, call)(M, name, lambda: EXAMPLES)
        with pytest.raises(ServingError) as caught:
            getattr(strict, call)(M, name, lambda: EXAMPLES)
        assert caught.value.message == (
            f"Expected {kind} signature method_name to be {wanted}. Was: other"
        )


def test_multi_inference_runs_each_task_in_order(telling):
    tasks = [InferenceTask(M, "value", REGRESS), InferenceTask(M, "", CLASSIFY)]
    regressed, classified = telling.multi_inference(tasks, lambda: EXAMPLES)
    assert regressed.rows == [1.5, 2.5]
    assert len(classified.rows) == 2


@pytest.mark.parametrize(
    ("tasks", "code", "text"),
    [
        (
            [InferenceTask(M, "", CLASSIFY), InferenceTask(ModelRef("n"), "", CLASSIFY)],
            Code.INVALID_ARGUMENT,
            "All ModelSpecs in a MultiInferenceRequest must access the same model name.",
        ),
        (
            [InferenceTask(M, "", "predict")],
            Code.UNIMPLEMENTED,
            "Unsupported signature method_name: predict",
        ),
        (
            [InferenceTask(M, "value", REGRESS), InferenceTask(ModelRef(""), "", CLASSIFY)],
            Code.INVALID_ARGUMENT,
            "Found ModelSpec with an empty model name.",
        ),
        (
            [InferenceTask(M, "nope", REGRESS)],
            Code.INVALID_ARGUMENT,
            "Requested signature not found in model graph: nope",
        ),
        (
            [InferenceTask(M, "", CLASSIFY), InferenceTask(M, "serving_default", "nope")],
            Code.INVALID_ARGUMENT,
            "Duplicate evaluation of signature: serving_default",
        ),
        (
            [InferenceTask(M, "value", REGRESS)] * 3000,
            Code.INVALID_ARGUMENT,
            "Duplicate evaluation of signature: value",
        ),
        (
            [
                InferenceTask(ModelRef("m", 9), "value", REGRESS),
                InferenceTask(ModelRef("n"), "", ""),
            ],
            Code.NOT_FOUND,
            "no m 9",
        ),
    ],
)
def test_multi_inference_that_cannot_be_done_is_refused(telling, tasks, code, text):
    with pytest.raises(ServingError) as caught:
        telling.multi_inference(tasks, lambda: EXAMPLES)
    assert (caught.value.code, caught.value.message) == (code, text)


def test_refused_multi_inference_runs_nothing_and_merges_no_examples():
    servable = NotingServable()
    tasks = [InferenceTask(M, "value", REGRESS), InferenceTask(M, "value", REGRESS)]
    with pytest.raises(ServingError, match="Duplicate"):
        handling(OneModelManager(servable), Metrics()).multi_inference(tasks, pytest.fail)
    assert servable.timeouts == []


def test_version_of_the_first_task_is_that_of_all():
    servable = NotingServable()
    other = InferenceTask(ModelRef("m", 9), "classes", CLASSIFY)
    found = handling(OneModelManager(servable), Metrics()).multi_inference(
        [InferenceTask(M, "value", REGRESS), other], lambda: EXAMPLES
    )
    assert [each.version for each in found] == [4, 4]


def test_reload_checks_the_models_before_it_hands_them_over(handlers, manager):
    good = protos.ModelConfig(name="m", base_path="/m", model_platform="tensorflow")
    handlers.reload([good], call=Call.within(3, Ledger(1).account("c")))
    assert manager.reloaded == ([good], pytest.approx(3, abs=1))
    with pytest.raises(ServingError, match="multiple times"):
        handlers.reload([good, good])
    assert manager.reloaded[0] == [good]


# Timeouts and metrics


class NotingServable:
    """Has one signature of each kind; writes down the timeouts it is given.

    Attributes:
        timeouts: those of the runs.
        fault: raised by every run if set.
    """

    def __init__(self):
        servable = ExampleServable()
        self.signatures = {**servable.signatures, **AddingServable().signatures}
        self.signatures["classes"] = servable.signatures["serving_default"]
        self._values = {**servable.values, "add:0": A, "sub:0": B}
        self.timeouts, self.fault = [], None

    def run(self, feeds, fetches, *, call=None):
        self.timeouts.append(call and call.deadline_s)
        if self.fault:
            raise self.fault
        return [self._values[name] for name in fetches]


BOTH = [InferenceTask(M, "value", REGRESS), InferenceTask(M, "classes", CLASSIFY)]
INFERENCES = [
    (lambda handlers, **o: handlers.predict(M, "", {"a": A, "b": B}, **o), ["Predict"]),
    (lambda handlers, **o: handlers.classify(M, "classes", lambda: EXAMPLES, **o), ["Classify"]),
    (lambda handlers, **o: handlers.regress(M, "value", lambda: EXAMPLES, **o), ["Regress"]),
    (
        lambda handlers, **o: handlers.multi_inference(BOTH, lambda: EXAMPLES, **o),
        [],
    ),
]


def runtimes(metrics):
    """Return how many runs the page counts, by (model, API)."""
    start = ":tensorflow:serving:runtime_latency_count{"
    return [line.removeprefix(start) for line in metrics.page().splitlines() if start in line]


@pytest.mark.parametrize(("ask", "apis"), INFERENCES)
def test_run_is_timed_by_model_and_api_and_told_the_timeout(ask, apis):
    servable, metrics = NotingServable(), Metrics()
    handlers = handling(OneModelManager(servable), metrics)
    ask(handlers, call=Call(Ledger(1).account("c"), 2.5))
    assert servable.timeouts == [2.5]
    assert runtimes(metrics) == [f'model_name="m",API="{api}",runtime="TF1"}} 1' for api in apis]
    ask(handlers)
    assert servable.timeouts[-1] is None


@pytest.mark.parametrize(("ask", "apis"), INFERENCES)
def test_failed_run_is_not_timed(ask, apis):
    servable, metrics = NotingServable(), Metrics()
    servable.fault = ServingError(Code.OUT_OF_RANGE, "index 9")
    with pytest.raises(ServingError):
        ask(handling(OneModelManager(servable), metrics))
    assert runtimes(metrics) == []


def test_run_counts_also_where_its_outputs_are_refused():
    servable, metrics = NotingServable(), Metrics()
    servable._values["o:0"] = np.int64([1, 2])
    with pytest.raises(ServingError, match="Expected output Tensor of DT_FLOAT"):
        handling(OneModelManager(servable), metrics).regress(M, "value", lambda: EXAMPLES)
    assert runtimes(metrics) == ['model_name="m",API="Regress",runtime="TF1"} 1']
