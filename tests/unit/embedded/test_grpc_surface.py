"""Messages and codes of the gRPC API, over handlers that are made up."""

from contextlib import ExitStack

import numpy as np
import pytest

from tfserve_kit import protos, tensors
from tfserve_kit.embedded.grpc_surface import GrpcAnswer, GrpcSurface
from tfserve_kit.embedded.handlers import Handlers, Inferred, ModelRef, Predicted
from tfserve_kit.embedded.ledger import Call, Ledger
from tfserve_kit.embedded.manager import Lease, ServableStatus, VersionState
from tfserve_kit.embedded.metrics import Metrics
from tfserve_kit.embedded.status import Code, ServingError
from tfserve_kit.tensors import from_proto, to_proto

SIGNATURES = protos.from_text(
    "SignatureDefMap",
    'signature_def { key: "serving_default" value { method_name: "p" } }',
).signature_def


class EchoHandlers:
    """Answers every model with its inputs as outputs; remembers what it was asked.

    Attributes:
        asked: the arguments of each call.
        call: that of the last inference.
        fault: raised by every call if set.
    """

    def __init__(self):
        self.asked, self.call, self.fault = [], None, None

    def _note(self, *arguments):
        self.asked.append(arguments)
        if self.fault:
            raise self.fault

    async def predict(self, model, signature, inputs, output_filter=(), *, call=None):
        self.call = call
        self._note(model, signature, list(output_filter))
        return Predicted(7, signature or "serving_default", inputs)

    def repeat(self, known, request, account):
        return None

    def metadata(self, model):
        self._note(model)
        return 7, SIGNATURES

    def status(self, model):
        self._note(model)
        broken = ServingError(Code.OUT_OF_RANGE, "cut off")
        return [
            ServableStatus(9, VersionState.END, broken),
            ServableStatus(7, VersionState.AVAILABLE, None),
        ]

    async def classify(self, model, signature, examples, *, call=None):
        self.call = call
        self._note("classify", model, signature, len(examples()))
        classes = [[(b"a", 0.5), (b"b\xff", 1.0)] for _ in examples()]
        return Inferred(7, signature or "serving_default", classes)

    async def regress(self, model, signature, examples, *, call=None):
        self.call = call
        self._note("regress", model, signature, len(examples()))
        return Inferred(7, signature or "serving_default", [2.5 for _ in examples()])

    async def multi_inference(self, tasks, examples, *, call=None):
        self._note("multi", tasks)
        run = {"tensorflow/serving/classify": self.classify}
        return [
            await run.get(task.method_name, self.regress)(
                task.model, task.signature, examples, call=call
            )
            for task in tasks
        ]

    def reload(self, configs, *, call=None):
        self._note("reload", [config.name for config in configs], call.timeout_s)


@pytest.fixture
def handlers():
    return EchoHandlers()


@pytest.fixture
def surface(handlers):
    return GrpcSurface(handlers, Metrics())


def ask(surface, name, message):
    return surface.answer(protos.METHODS[name].path, message.SerializeToString())


def ok(surface, name, message):
    answer = ask(surface, name, message)
    assert (answer.code, answer.details) == (Code.OK, "")
    return protos.message_class(protos.METHODS[name].response).FromString(answer.body)


def predict_request(spec="name: 'm'", **inputs):
    request = protos.PredictRequest(model_spec=protos.from_text("ModelSpec", spec))
    for alias, array in inputs.items():
        request.inputs[alias].CopyFrom(to_proto(array))
    return request


@pytest.mark.parametrize(
    ("spec", "model", "signature"),
    [
        ("name: 'm'", ModelRef("m"), ""),
        ("name: 'm' signature_name: 's'", ModelRef("m"), "s"),
        ("name: 'm' version { value: 3 }", ModelRef("m", 3), ""),
        ("name: 'm' version {}", ModelRef("m", 0), ""),
        ("name: 'm' version_label: 'stable'", ModelRef("m", None, "stable"), ""),
        ("name: 'm' version_label: ''", ModelRef("m", None, ""), ""),
    ],
)
def test_predict_asks_for_the_model_of_the_spec(surface, handlers, spec, model, signature):
    answer = ok(surface, "Predict", predict_request(spec, x=[1.0]))
    assert handlers.asked == [(model, signature, [])]
    assert answer.model_spec.name == "m"
    assert answer.model_spec.version.value == 7
    assert answer.model_spec.signature_name == (signature or "serving_default")


def test_predict_hands_over_tensors_and_filter(surface, handlers):
    request = predict_request(x=np.float32([[1, 2]]), s=np.array([b"a\0"], object))
    request.output_filter.extend(["x", "s"])
    answer = ok(surface, "Predict", request)
    assert handlers.asked[0][2] == ["x", "s"]
    np.testing.assert_array_equal(from_proto(answer.outputs["x"]), np.float32([[1, 2]]))
    assert from_proto(answer.outputs["s"]).tolist() == [b"a\0"]


@pytest.mark.parametrize(
    ("options", "as_content"),
    [({}, False), ({"as_content": False}, False), ({"as_content": True}, True)],
)
def test_numbers_travel_in_the_field_that_was_asked_for(handlers, options, as_content):
    surface = GrpcSurface(handlers, Metrics(), **options)
    tensor = ok(surface, "Predict", predict_request(x=np.float32([1, 2]))).outputs["x"]
    assert bool(tensor.tensor_content) == as_content
    assert bool(tensor.float_val) != as_content


@pytest.mark.parametrize(
    "tensor",
    [
        "dtype: DT_FLOAT tensor_shape { dim { size: 2 } } tensor_content: 'abc'",
        "dtype: DT_FLOAT tensor_shape { dim { size: -1 } }",
        "dtype: DT_FLOAT_REF",
        "dtype: DT_FLOAT tensor_shape { " + "dim { size: 1 } " * 100 + "}",
    ],
    ids=["wrong-length", "negative", "unreadable-type", "too-many-dimensions"],
)
def test_tensor_that_cannot_be_read_is_refused_by_name(surface, handlers, tensor):
    request = predict_request()
    request.inputs["x"].CopyFrom(protos.from_text("TensorProto", tensor))
    answer = ask(surface, "Predict", request)
    assert answer == GrpcAnswer(Code.INVALID_ARGUMENT, "tensor parsing error: x")


def test_metadata_holds_the_packed_signatures(surface):
    request = protos.GetModelMetadataRequest(
        model_spec={"name": "m"}, metadata_field=["signature_def"]
    )
    answer = ok(surface, "GetModelMetadata", request)
    found = protos.SignatureDefMap()
    assert answer.metadata["signature_def"].Unpack(found)
    assert answer.metadata["signature_def"].type_url == (
        "type.googleapis.com/tensorflow.serving.SignatureDefMap"
    )
    assert dict(found.signature_def) == dict(SIGNATURES)
    assert (answer.model_spec.name, answer.model_spec.version.value) == ("m", 7)


@pytest.mark.parametrize(
    ("fields", "details"),
    [
        ([], "GetModelMetadataRequest must specify at least one metadata_field"),
        (["nope"], "Metadata field nope is not supported"),
        (["signature_def", "nope"], "Metadata field nope is not supported"),
    ],
)
def test_metadata_without_a_known_field_is_refused(surface, fields, details):
    request = protos.GetModelMetadataRequest(model_spec={"name": "m"}, metadata_field=fields)
    assert ask(surface, "GetModelMetadata", request) == GrpcAnswer(Code.INVALID_ARGUMENT, details)


def test_status_lists_versions_with_the_error_of_the_ended_one(surface):
    answer = ok(surface, "GetModelStatus", protos.GetModelStatusRequest(model_spec={"name": "m"}))
    ended, available = answer.model_version_status
    assert (ended.version, ended.state) == (9, 50)
    assert (ended.status.error_code, ended.status.error_message) == (11, "cut off")
    assert (available.version, available.state) == (7, 30)
    assert available.HasField("status")
    assert (available.status.error_code, available.status.error_message) == (0, "")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Predict", protos.PredictRequest()),
        ("Classify", protos.ClassificationRequest()),
        ("Regress", protos.RegressionRequest()),
        ("GetModelMetadata", protos.GetModelMetadataRequest(metadata_field=["nope"])),
        ("GetModelStatus", protos.GetModelStatusRequest()),
    ],
)
def test_request_without_a_model_name_is_refused(surface, name, message):
    assert ask(surface, name, message) == GrpcAnswer(Code.INVALID_ARGUMENT, "Missing ModelSpec")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Predict", predict_request()),
        (
            "GetModelMetadata",
            protos.GetModelMetadataRequest(
                model_spec={"name": "m"}, metadata_field=["signature_def"]
            ),
        ),
        ("GetModelStatus", protos.GetModelStatusRequest(model_spec={"name": "m"})),
    ],
)
def test_errors_of_the_handlers_become_code_and_details(surface, handlers, name, message):
    handlers.fault = ServingError(Code.NOT_FOUND, "nothing there")
    assert ask(surface, name, message) == GrpcAnswer(Code.NOT_FOUND, "nothing there")
    handlers.fault = ZeroDivisionError("by zero")
    assert ask(surface, name, message) == GrpcAnswer(Code.INTERNAL, "ZeroDivisionError: by zero")


@pytest.mark.parametrize(
    "path",
    [
        "/tensorflow.serving.PredictionService/Nope",
        "/tensorflow.serving.ModelService/Predict",
        "Predict",
        "/other.Service/Predict",
        "",
    ],
)
def test_unknown_method_is_unimplemented(surface, path):
    assert surface.answer(path, b"") == GrpcAnswer(Code.UNIMPLEMENTED)


@pytest.mark.parametrize("name", ["Predict", "GetModelMetadata", "GetModelStatus"])
def test_bytes_that_are_no_message_are_an_internal_error(surface, name):
    assert surface.answer(protos.METHODS[name].path, b"\xff\xff") == GrpcAnswer(Code.INTERNAL)


# Classify, regress and both at once


EXAMPLES = 'input { example_list { examples { features { feature { key: "x" value {} } } } } }'


def test_classify_answers_labels_and_scores_for_each_example(surface, handlers):
    request = protos.from_text(
        "ClassificationRequest", f"model_spec {{ name: 'm' signature_name: 's' }} {EXAMPLES}"
    )
    answer = ok(surface, "Classify", request)
    assert handlers.asked == [("classify", ModelRef("m"), "s", 1)]
    assert answer.model_spec.version.value == 7
    assert answer.model_spec.signature_name == "s"
    (classified,) = answer.result.classifications
    assert [(each.label, each.score) for each in classified.classes] == [("a", 0.5), ("b\ufffd", 1)]


def test_regress_answers_a_value_for_each_example(surface, handlers):
    request = protos.from_text("RegressionRequest", f"model_spec {{ name: 'm' }} {EXAMPLES}")
    answer = ok(surface, "Regress", request)
    assert handlers.asked == [("regress", ModelRef("m"), "", 1)]
    assert [each.value for each in answer.result.regressions] == [2.5]
    assert answer.model_spec.signature_name == "serving_default"


def test_multi_inference_answers_each_task_in_its_own_kind(surface, handlers):
    request = protos.from_text(
        "MultiInferenceRequest",
        f"""
        tasks {{ model_spec {{ name: 'm' }} method_name: 'tensorflow/serving/regress' }}
        tasks {{ model_spec {{ name: 'm' signature_name: 's' }}
                 method_name: 'tensorflow/serving/classify' }}
        {EXAMPLES}
        """,
    )
    regressed, classified = ok(surface, "MultiInference", request).results
    assert [each.value for each in regressed.regression_result.regressions] == [2.5]
    assert len(classified.classification_result.classifications[0].classes) == 2
    assert classified.model_spec.signature_name == "s"
    assert [task.method_name for task in handlers.asked[0][1]] == [
        "tensorflow/serving/regress",
        "tensorflow/serving/classify",
    ]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Predict", "model_spec {}"),
        ("GetModelMetadata", "model_spec {} metadata_field: 'signature_def'"),
        ("Classify", f"model_spec {{}} {EXAMPLES}"),
        ("Regress", f"model_spec {{ signature_name: 'x' }} {EXAMPLES}"),
        ("MultiInference", EXAMPLES),
        ("MultiInference", f"tasks {{ method_name: 'x' }} {EXAMPLES}"),
    ],
)
def test_inference_without_a_model_name_is_refused(surface, name, text):
    message = protos.from_text(protos.METHODS[name].request, text)
    answer = ask(surface, name, message)
    assert answer == GrpcAnswer(Code.INVALID_ARGUMENT, "ModelSpec has no name specified.")


@pytest.mark.parametrize("name", ["Classify", "Regress"])
def test_inference_without_examples_is_refused(surface, name):
    message = protos.from_text(protos.METHODS[name].request, "model_spec { name: 'm' }")
    assert ask(surface, name, message) == GrpcAnswer(Code.INVALID_ARGUMENT, "Input is empty.")


# Reload, health and metrics


def test_reload_hands_over_the_models_and_the_deadline(surface, handlers):
    request = protos.from_text(
        "ReloadConfigRequest", "config { model_config_list { config { name: 'a' } } }"
    )
    path = protos.METHODS["HandleReloadConfigRequest"].path
    call = Call.within(1.5, Ledger(1).account("c"))
    answer = surface.answer(path, request.SerializeToString(), call)
    assert answer.code is Code.OK
    assert answer.body == b"\x0a\x00"  # a status that is there, and OK
    assert handlers.asked == [("reload", ["a"], pytest.approx(1.5, abs=0.5))]


@pytest.mark.parametrize("config", ["", "config {}", "config { custom_model_config {} }"])
def test_reload_of_another_kind_of_configuration_is_refused(surface, handlers, config):
    request = protos.from_text("ReloadConfigRequest", config)
    answer = ask(surface, "HandleReloadConfigRequest", request)
    assert answer.code is Code.INVALID_ARGUMENT
    assert answer.details == (
        "ServerModelConfig type not supported by HandleReloadConfigRequest. Only ModelConfigList "
        "is currently supported"
    )
    assert handlers.asked == []


HEALTH = "/grpc.health.v1.Health/Check"


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (b"", GrpcAnswer(body=b"\x08\x01")),
        (b"\x0a\x00", GrpcAnswer(body=b"\x08\x01")),
        (b"\x0a\x0cModelService", GrpcAnswer(body=b"\x08\x01")),
        (b"\x0a\x11PredictionService", GrpcAnswer(body=b"\x08\x01")),
        (b"\x0a\x04nope", GrpcAnswer(Code.NOT_FOUND, "service name unknown")),
        (b"\x0a\x0cmodelservice", GrpcAnswer(Code.NOT_FOUND, "service name unknown")),
        (
            b"\x0a\x24tensorflow.serving.PredictionService",
            GrpcAnswer(Code.NOT_FOUND, "service name unknown"),
        ),
        (b"\x0a\xc8\x01" + b"x" * 200, GrpcAnswer(Code.NOT_FOUND, "service name unknown")),
        (
            b"\x0a\xc9\x01" + b"x" * 201,
            GrpcAnswer(Code.INVALID_ARGUMENT, "could not parse request"),
        ),
        (b"\x0a\x04no\xffe", GrpcAnswer(Code.INVALID_ARGUMENT, "could not parse request")),
        (b"\x0a\x09nope", GrpcAnswer(Code.INVALID_ARGUMENT, "could not parse request")),
        (b"\x12\x01a", GrpcAnswer(body=b"\x08\x01")),  # another field: the server as a whole
        (b"\x0a\x04nope\x0a\x0cModelService", GrpcAnswer(body=b"\x08\x01")),  # the last one counts
    ],
)
def test_health_says_serving_for_the_services_there_are(handlers, request_, expected):
    surface = GrpcSurface(handlers, Metrics(), health=True)
    assert surface.answer(HEALTH, request_) == expected


def test_health_is_not_offered_unless_asked_for(surface):
    assert surface.answer(HEALTH, b"") == GrpcAnswer(Code.UNIMPLEMENTED)


INFERENCE = {
    "Predict": "model_spec { name: 'm' }",
    "Classify": f"model_spec {{ name: 'm' }} {EXAMPLES}",
    "Regress": f"model_spec {{ name: 'm' }} {EXAMPLES}",
    "MultiInference": f"tasks {{ model_spec {{ name: 'm' }} method_name: 'x' }} {EXAMPLES}",
}


@pytest.mark.parametrize("name", INFERENCE)
def test_inference_hands_over_the_call(surface, handlers, name):
    message = protos.from_text(protos.METHODS[name].request, INFERENCE[name])
    path = protos.METHODS[name].path
    call = Call.unbounded()
    assert surface.answer(path, message.SerializeToString(), call).code is Code.OK
    assert handlers.asked and handlers.call is call


COUNT = ":tensorflow:serving:request_count"
LATENCY = ":tensorflow:serving:request_latency_count"


@pytest.mark.parametrize(
    ("name", "text", "counted"),
    [
        *((name, text, name != "MultiInference") for name, text in INFERENCE.items()),
        ("GetModelStatus", "model_spec { name: 'm' }", False),
        ("GetModelMetadata", "model_spec { name: 'm' } metadata_field: 'signature_def'", False),
        ("HandleReloadConfigRequest", "config { model_config_list {} }", False),
    ],
)
def test_requests_are_counted_that_the_official_server_counts(handlers, name, text, counted):
    metrics = Metrics()
    ok(GrpcSurface(handlers, metrics), name, protos.from_text(protos.METHODS[name].request, text))
    lines = metrics.page().splitlines()
    assert (f'{COUNT}{{model_name="m",status="OK"}} 1' in lines) == counted
    labels = f'{{model_name="m",API="{name}",entrypoint="GRPC"}} 1'
    assert (LATENCY + labels in lines) == counted
    assert counted or not [line for line in lines if line.startswith((f"{COUNT}{{", LATENCY))]


def test_failed_request_is_counted_by_its_code_and_not_timed(handlers):
    metrics = Metrics()
    handlers.fault = ServingError(Code.NOT_FOUND, "gone")
    ask(GrpcSurface(handlers, metrics), "Predict", predict_request())
    lines = metrics.page().splitlines()
    assert f'{COUNT}{{model_name="m",status="NOT_FOUND"}} 1' in lines
    assert not [line for line in lines if line.startswith(LATENCY)]


# Requests that repeat

ADDING = """
inputs { key: "a" value { name: "a:0" dtype: DT_FLOAT } }
inputs { key: "b" value { name: "b:0" dtype: DT_FLOAT } }
outputs { key: "sum" value { name: "sum:0" dtype: DT_FLOAT } }
outputs { key: "same" value { name: "a:0" dtype: DT_FLOAT } }
"""


class Adding:
    """Adds two inputs.

    Attributes:
        runs: how often it was asked.
        fault: raised if set.
        faulty: a value of `a` that is refused.
    """

    def __init__(self):
        self.signatures = {"serving_default": protos.from_text("SignatureDef", ADDING)}
        self.runs, self.fault, self.faulty = 0, None, None

    def run(self, feeds, fetches, *, call=None):
        self.runs += 1
        if self.fault:
            raise self.fault
        if feeds["a:0"][0] == self.faulty:
            raise ServingError(Code.ABORTED, "refused")
        values = {**feeds, "sum:0": feeds["a:0"] + feeds["b:0"]}
        return [values[name] for name in fetches]


class Lending:
    """A manager with one version.

    Attributes:
        lent: the version; None where there is none.
        out: how often it is lent now.
    """

    def __init__(self):
        self.out = 0
        self.publish(4)

    def publish(self, version):
        self.lent = Lease("m", version, Adding(), self._give_back)

    def lease(self, model, version=None, label=None):
        if self.lent is None or model != "m" or version not in {None, self.lent.version}:
            raise ServingError(Code.NOT_FOUND, f"Servable not found for request: {model}")
        self.out += 1
        return self.lent

    def _give_back(self):
        self.out -= 1


class Repeating:
    """A surface on such a manager; each request is answered by `answer` and by `repeat`."""

    def __init__(self, **options):
        self.manager, self.metrics = Lending(), Metrics()
        handlers = Handlers(self.manager, self.metrics)
        self.surface = GrpcSurface(handlers, self.metrics, **options)
        self.ledger = Ledger(1 << 30)

    def ask(self, content):
        """Return both answers, of which the second may be None; nothing stays lent or held."""
        with self.ledger.account("c") as account:
            first = self.surface.answer(protos.METHODS["Predict"].path, content, Call(account))
        with self.ledger.account("c") as account:
            (second,) = self.surface.repeat([(content, account)]) or (None,)
            assert account.held_bytes in {0, len(second.body) if second else 0}
        assert self.manager.out == self.ledger.held_bytes == 0
        return first, second


def adding(a, b, *, name="m", signature="", output_filter=()):
    spec = protos.ModelSpec(name=name, signature_name=signature).SerializeToString()
    inputs = {"a": np.asarray(a, np.float32), "b": np.asarray(b, np.float32)}
    return tensors.predict_request(inputs, spec, output_filter)


@pytest.mark.parametrize("as_content", [False, True])
@pytest.mark.parametrize("signature", ["", "serving_default"])
@pytest.mark.parametrize("output_filter", [(), ("sum",), ("same", "sum")])
def test_what_repeats_is_answered_as_before_with_other_numbers(
    as_content, signature, output_filter
):
    repeating = Repeating(as_content=as_content)
    options = {"signature": signature, "output_filter": output_filter}
    assert not repeating.surface.repeat([(adding([1, 2], [3, 4], **options), None)])
    for number in range(3):
        first, second = repeating.ask(adding([number, 2], [3, -number], **options))
        assert first.code is Code.OK
        assert second == first
        read = protos.PredictResponse.FromString(second.body)
        assert from_proto(read.outputs["sum"]).tolist() == [number + 3, 2 - number]
    assert repeating.manager.lent.servable.runs == 6
    assert repeating.metrics.first("/tensorflow/serving/request_count") == 6


def test_what_repeats_goes_to_the_newest_version_and_to_none_where_there_is_none():
    repeating, content = Repeating(), adding([1], [2])
    repeating.ask(content)
    repeating.manager.publish(5)
    with repeating.ledger.account("c") as account:  # a version has to be asked once
        assert not repeating.surface.repeat([(content, account)])
    first, second = repeating.ask(content)
    assert second == first
    assert protos.PredictResponse.FromString(second.body).model_spec.version.value == 5
    repeating.manager.lent = None
    first, second = repeating.ask(content)
    assert second == first
    assert second.code is Code.NOT_FOUND


@pytest.mark.parametrize(
    "fault", [ServingError(Code.ABORTED, "no \udcff"), ValueError("a bug"), MemoryError()]
)
def test_fault_of_what_repeats_is_told_and_counted_once_and_it_is_run_once(fault):
    repeating, content = Repeating(), adding([1], [2])
    repeating.ask(content)
    servable = repeating.manager.lent.servable
    servable.fault, before = fault, servable.runs
    with repeating.ledger.account("c") as account:
        (second,) = repeating.surface.repeat([(content, account)])
    assert servable.runs == before + 1
    first, again = repeating.ask(content)
    assert again == second == first
    counted = f'request_count{{model_name="m",status="{first.code.name}"}} 3'
    assert counted in repeating.metrics.page()


def test_as_many_as_are_alike_are_answered_together_each_with_its_own_numbers():
    repeating, asked = Repeating(), [adding([number], [1]) for number in range(5)]
    alone = [repeating.ask(content)[0] for content in asked]
    asked += [adding([5], [1], name="n"), asked[0]]
    with ExitStack() as stack:
        accounts = [stack.enter_context(repeating.ledger.account("c")) for _ in asked]
        answers = repeating.surface.repeat(list(zip(asked, accounts, strict=True)))
    assert answers == alone
    assert repeating.manager.out == repeating.ledger.held_bytes == 0


def test_one_that_fails_among_others_alike_is_refused_alone():
    repeating = Repeating()
    repeating.ask(adding([1], [2]))
    repeating.manager.lent.servable.faulty = 7
    with repeating.ledger.account("c") as account:
        answers = repeating.surface.repeat([(adding([n], [2]), account) for n in (1, 7, 3)])
    assert [answer.code for answer in answers] == [Code.OK, Code.ABORTED, Code.OK]
    page = repeating.metrics.page()
    assert 'request_count{model_name="m",status="ABORTED"} 1' in page
    assert 'request_count{model_name="m",status="OK"} 4' in page


def test_what_large_answers_take_is_held_until_their_clients_have_them():
    repeating, content = Repeating(), adding(np.ones(9000), np.ones(9000))
    repeating.ask(content)
    with repeating.ledger.account("c") as first, repeating.ledger.account("c") as second:
        held = [(content, account) for account in (first, second)]
        answers = repeating.surface.repeat(held)
        assert [account.held_bytes for _, account in held[: len(answers)]] == [
            len(answer.body) for answer in answers
        ]
    assert repeating.ledger.held_bytes == 0


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 40,
        adding([1], [2], name="n"),
        adding([1], [2], signature="none"),
        adding([1], [2], output_filter=["none"]),
        tensors.predict_request({"a": np.zeros(3, np.float64)}, b"\x0a\x01m"),
    ],
    ids=["empty", "junk", "model", "signature", "output", "type"],
)
def test_what_was_never_answered_does_not_repeat(content):
    repeating = Repeating()
    for _ in range(3):
        assert repeating.ask(content)[1] is None


def test_what_is_large_repeats_within_its_budget():
    repeating, content = Repeating(), adding(np.ones(40_000), np.ones(40_000))
    first, second = repeating.ask(content)
    assert second == first
    assert first.code is Code.OK
    repeating.ledger = Ledger(len(content))
    first, second = repeating.ask(content)
    assert second == first
    assert first.code is Code.RESOURCE_EXHAUSTED
    assert repeating.manager.lent.servable.runs == 2
