"""Whatever is sent to the two surfaces, they answer: never an exception, never their own fault.

Cases that were found this way stay at the end as plain ones.
"""

import contextlib
import json
import os
from functools import reduce

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tfserve_kit import protos
from tfserve_kit.embedded.grpc_surface import GrpcSurface
from tfserve_kit.embedded.handlers import Handlers
from tfserve_kit.embedded.manager import Lease, ServableStatus, VersionState
from tfserve_kit.embedded.metrics import PROMETHEUS_PATH, Metrics
from tfserve_kit.embedded.rest_surface import RestSurface
from tfserve_kit.embedded.status import Code, ServingError
from tfserve_kit.tensors import dtypes, from_proto

FUZZ = settings(
    max_examples=300,
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=list(HealthCheck),
)

NUMBERS = {row.name: row.number for row in dtypes.TABLE}
CLASSIFY, REGRESS = "tensorflow/serving/classify", "tensorflow/serving/regress"
NAMES = [
    "m",
    "no",
    "",
    "..",
    "../../etc/passwd",
    "a\0b",
    "m\n",
    "m" * 300,
    "\u20ac",
    '"',
    "{}",
    "%s",
]


def signature(inputs, outputs=(("y", "float"),), method="tensorflow/serving/predict"):
    definition = protos.SignatureDef(method_name=method)
    for side, tensors in ((definition.inputs, inputs), (definition.outputs, outputs)):
        for alias, kind in tensors:
            side[alias].name = f"{alias}:0"
            side[alias].dtype = NUMBERS[kind]
    return definition


SIGNATURES = {
    "serving_default": signature([("x", "float")]),
    "pair": signature([("a", "int32"), ("b", "string")]),
    "none": signature([]),
    "many": signature([(str(number), "float") for number in range(1000)]),
    "classes": signature(
        [("inputs", "string")], [("classes", "string"), ("scores", "float")], CLASSIFY
    ),
    "values": signature([("inputs", "string")], [("outputs", "float")], REGRESS),
    **{name: signature([("x", name)], [("y", name)]) for name in NUMBERS},
}


class EchoServable:
    """Answers `y` with its first input, and examples with as many classes and values."""

    signatures = SIGNATURES

    def run(self, feeds, fetches, **how):
        first = next(iter(feeds.values()), np.zeros(0, np.float32))
        rows = len(first) if first.ndim else 0
        values = {
            "y:0": first,
            "classes:0": np.full((rows, 2), b"\xff", object),
            "scores:0": np.zeros((rows, 2), np.float32),
            "outputs:0": np.zeros(rows, np.float32),
        }
        return [values[name] for name in fetches]


class OneModelManager:
    """Has version 1 of model `m`; takes any configuration."""

    @contextlib.contextmanager
    def lease(self, model, version=None, label=None):
        if model != "m" or version not in {None, 1} or label is not None:
            raise ServingError(Code.NOT_FOUND, f"no {model} {version} {label}")
        yield Lease(model, 1, EchoServable(), bool)

    def status(self, model):
        return [ServableStatus(1, VersionState.AVAILABLE, None)] if model == "m" else []

    def reload(self, configs, *, call=None):
        assert call is not None


@pytest.fixture(scope="module")
def rest():
    metrics = Metrics()
    handlers = Handlers(OneModelManager(), metrics)
    return RestSurface(handlers, metrics, metrics_path=PROMETHEUS_PATH)


@pytest.fixture(scope="module")
def grpc():
    metrics = Metrics()
    return GrpcSurface(Handlers(OneModelManager(), metrics), metrics, health=True)


# What is sent

raw_bytes = st.binary(max_size=60)
names = st.sampled_from(NAMES) | st.text(max_size=8)
numbers = st.integers(-(2**70), 2**70) | st.floats(width=32) | st.floats()
leaves = st.none() | st.booleans() | numbers | st.text(max_size=5) | st.just({"b64": "YQ=="})
members = st.sampled_from(["x", "a", "b", "b64", "y", "inputs", "instances", ""])
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(members, inner, max_size=3),
    max_leaves=12,
)
grids = st.builds(
    lambda leaf, sizes: reduce(lambda inner, size: [inner] * size, sizes, leaf),
    leaves,
    st.lists(st.integers(0, 3), max_size=4),
)
chosen = {"signature_name": st.sampled_from([*SIGNATURES, "nope", ""]) | values}
features = st.dictionaries(names, leaves | st.lists(leaves, max_size=3), max_size=3)
rows = grids | st.lists(st.dictionaries(members, grids, max_size=2), max_size=3)
documents = st.one_of(
    st.fixed_dictionaries({"instances": rows | values}, optional=chosen),
    st.fixed_dictionaries(
        {"inputs": st.dictionaries(members, grids, max_size=3) | rows | values}, optional=chosen
    ),
    st.fixed_dictionaries(
        {"examples": st.lists(features, max_size=3) | values},
        optional={**chosen, "context": features | values},
    ),
    st.dictionaries(st.sampled_from(["instances", "inputs", "examples", "context"]), values),
    values,
)
TOKENS = [
    *(b"[", b"]", b"{", b"}", b'"', b",", b":", b" ", b"-", b"/*", b"null", b"NaN", b'{"b64":"'),
    *(b"\\ud800", b"\xff", b"\x00", b"\xed\xa0\x80"),
    *(b"1e999", b"9" * 40, b"1" * 5000, b"[" * 30),
]


@st.composite
def mutated(draw, valid, tokens=(b"\xff", b"\x00", b"\x80" * 10, b"\x7f")):
    """Bytes that were valid before a few cuts, repetitions and insertions."""
    data = bytearray(draw(valid))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 8)))
        middle = draw(st.sampled_from(tokens) | st.binary(max_size=4))
        data[start:end] = draw(st.sampled_from([middle, data[start:end] * 2, b""]))
    return bytes(data)


bodies = (
    mutated(documents.map(lambda document: json.dumps(document).encode()), TOKENS)
    | st.lists(st.sampled_from(TOKENS), max_size=12).map(b"".join)
    | raw_bytes
)
targets = st.builds(
    lambda start, parts: start + "".join(parts),
    st.sampled_from(["/v1/models/m", "/v1/models/m", "/v1/models/", "", "http://h/v1/models/m"]),
    st.lists(
        st.sampled_from(
            ["/", "/v1/models", "m", ":predict", ":regress", "/metadata", "/versions/", "/labels/",
             "1", "..", "%2e%2e%2f", "%00", "%ff", "%zz", "%", "?", "#", "//", "http://h", "\xff",
             "9" * 30, PROMETHEUS_PATH, "\n", "\u0661"]
        ),
        max_size=4,
    ),
)  # fmt: skip
verbs = st.sampled_from(["predict", "predict", "classify", "regress"])
methods = st.sampled_from(["GET", "POST", "POST", "POST", "HEAD", "OPTIONS", "DELETE", "X"])


@st.composite
def tensors(draw):
    """A TensorProto in which nothing need fit."""
    tensor = protos.TensorProto(dtype=draw(st.sampled_from([*range(30), 101, 120])))
    sizes = st.sampled_from([-1, 0, 1, 2, 3, 2**31, 2**40, 2**62, 2**63 - 1, -(2**63)])
    for size in draw(st.lists(sizes, max_size=4)):
        tensor.tensor_shape.dim.add(size=size)
    tensor.tensor_shape.unknown_rank = draw(st.booleans()) and draw(st.booleans())
    tensor.tensor_content = draw(st.just(b"") | raw_bytes | st.just(b"\xff" * 9))
    for row in dtypes.TABLE:
        if row.field != "string_val" and draw(st.integers(0, 5)) == 0:
            whole = row.field not in {"float_val", "double_val", "scomplex_val", "dcomplex_val"}
            getattr(tensor, row.field).extend([1] if whole else [1.5, float("nan")])
    tensor.string_val.extend(draw(st.lists(raw_bytes, max_size=2)))
    return tensor


def fill_spec(spec, draw):
    spec.name = draw(st.sampled_from(["m"] * 40 + NAMES))
    spec.signature_name = draw(st.sampled_from([*SIGNATURES, "", "nope"]))
    choice = draw(st.sampled_from([""] * 8 + ["version", "label"]))
    if choice == "version":
        spec.version.value = draw(st.sampled_from([1, 0, -1, 2**63 - 1, -(2**63)]))
    elif choice == "label":
        spec.version_label = draw(st.sampled_from(NAMES))


def fill_input(message, draw):
    if draw(st.booleans()):
        message.example_list.SetInParent()
        rows = message.example_list.examples
    else:
        rows = message.example_list_with_context.examples
        feature = message.example_list_with_context.context.features.feature
        feature["c"].bytes_list.value.append(draw(raw_bytes))
    for _ in range(draw(st.integers(0, 3))):
        rows.add().features.feature["f"].float_list.value.append(1)


@st.composite
def calls(draw):
    """A method's name and a request of its message that may be nonsense."""
    name = draw(st.sampled_from(sorted(protos.METHODS)))
    request = protos.message_class(protos.METHODS[name].request)()
    if hasattr(request, "model_spec"):
        fill_spec(request.model_spec, draw)
    if name == "Predict":
        for alias in draw(st.lists(st.sampled_from(["x", "a", "b", "", "\0"]), max_size=2)):
            request.inputs[alias].CopyFrom(draw(tensors()))
        request.output_filter.extend(draw(st.lists(st.sampled_from(["y", "z", ""]), max_size=2)))
    if name == "GetModelMetadata":
        request.metadata_field.append(draw(st.sampled_from(["signature_def", *NAMES])))
    if name == "MultiInference":
        for _ in range(draw(st.integers(0, 2))):
            task = request.tasks.add(
                method_name=draw(st.sampled_from([CLASSIFY, REGRESS, "", "x"]))
            )
            fill_spec(task.model_spec, draw)
    if name == "HandleReloadConfigRequest":
        config = request.config.model_config_list.config.add()
        config.name, config.base_path = draw(st.sampled_from(NAMES)), draw(st.sampled_from(NAMES))
    if hasattr(request, "input"):
        fill_input(request.input, draw)
    return name, request.SerializeToString()


# What must come back


def assert_answered(reply):
    assert reply.status in {200, 400, 404, 501}, reply.body
    for name, value in reply.headers.items():
        assert f"{name}{value}".isprintable()
    if reply.headers["Content-Type"] == "application/json" and reply.body:
        document = json.loads(reply.body.decode("utf-8", "surrogateescape"))
        assert (reply.status != 200) == ("error" in document)


def assert_sound(answer, name, request):
    parses = True
    try:
        protos.message_class(protos.METHODS[name].request).FromString(request)
    except protos.DecodeError:
        parses = False
    assert (answer.code is Code.INTERNAL) == (not parses), answer.details
    assert answer.code is not Code.UNKNOWN
    if answer.code is Code.OK:
        protos.message_class(protos.METHODS[name].response).FromString(answer.body)
    else:
        assert answer.body == b""


@FUZZ
@given(method=methods, target=targets)
def test_any_rest_target_is_answered(rest, method, target):
    assert_answered(rest.reply(method, target, b'{"instances": [1]}'))


@FUZZ
@given(verb=verbs, body=bodies)
def test_any_rest_body_is_answered(rest, verb, body):
    assert_answered(rest.reply("POST", f"/v1/models/m:{verb}", body))


@FUZZ
@given(verb=verbs, document=documents)
def test_any_json_document_is_answered(rest, verb, document):
    body = json.dumps(document, ensure_ascii=False).encode("utf-8", "surrogatepass")
    assert_answered(rest.reply("POST", f"/v1/models/m:{verb}", body))


@FUZZ
@given(kind=st.sampled_from(sorted(NUMBERS)), rows=grids | st.lists(leaves, max_size=4))
def test_any_value_for_any_type_is_answered(rest, kind, rows):
    for key in ("instances", "inputs"):
        body = json.dumps({"signature_name": kind, key: rows}).encode()
        assert_answered(rest.reply("POST", "/v1/models/m:predict", body))


@FUZZ
@given(call=calls())
def test_any_grpc_message_is_answered(grpc, call):
    name, request = call
    assert_sound(grpc.answer(protos.METHODS[name].path, request), name, request)


@FUZZ
@given(name=st.sampled_from(sorted(protos.METHODS)), data=st.data())
def test_any_grpc_bytes_are_answered(grpc, name, data):
    request = data.draw(raw_bytes | mutated(calls().map(lambda call: call[1])))
    assert_sound(grpc.answer(protos.METHODS[name].path, request), name, request)


@FUZZ
@given(path=st.text(max_size=20) | st.just("/grpc.health.v1.Health/Check"), request=raw_bytes)
def test_any_grpc_method_is_answered(grpc, path, request):
    answer = grpc.answer(path, request)
    wanted = {Code.OK, Code.UNIMPLEMENTED, Code.NOT_FOUND, Code.INVALID_ARGUMENT}
    assert answer.code in wanted


# Found so, or thought of


@pytest.mark.parametrize(
    "body",
    [
        b'{"examples": [{"a": "\\ud800", "b": "\xff"}]}',
        b'{"examples": [{"\\ud800": 1, "b": "\xff"}]}',
        b'{"examples": [{"a": %s, "b": "\xff"}]}' % (b"1" * 5000),
        b'{"examples": [{"a": 1, "b": [' + b"[" * 300 + b"]" * 300 + b"]}]}",
    ],
    ids=["surrogate", "surrogate-name", "long", "deep"],
)
def test_examples_that_cannot_be_stored_are_refused(rest, body):
    for verb in ("classify", "regress"):
        reply = rest.reply("POST", f"/v1/models/m:{verb}", body)
        assert reply.status == 400, reply.body


@pytest.mark.parametrize(
    "body",
    [
        b'{"%s": "classes", "examples": [{"a": -9223372036854775809, "b": "\xff"}]}',
        b'{"%s": "classes", "examples": [{"a\xff": 1, "\\udc00": 2}]}',
    ],
    ids=["below-64-bits", "no-utf8-names"],
)
def test_examples_with_odd_names_and_numbers_are_stored(rest, body):
    reply = rest.reply("POST", "/v1/models/m:classify", body % b"signature_name")
    assert reply.status == 200, reply.body


def test_row_of_many_leaves_far_down_is_refused_before_each_is_looked_for(rest):
    # Without a limit this would take a step per leaf and level.
    row = b"[" * 200 + b"[" * 100 + b"1," * 100_000 + b"true" + b"]" * 300
    reply = rest.reply("POST", "/v1/models/m:predict", b'{"instances": [' + row + b"]}")
    assert reply.status == 400
    assert b"tensor parsing error: x" in reply.body


def test_page_of_metrics_survives_names_that_are_no_utf8(rest):
    assert rest.reply("POST", "/v1/models/%ff%00:predict", b"{}").status == 404
    assert rest.reply("GET", PROMETHEUS_PATH, b"").status == 200


@pytest.mark.parametrize(
    "path", ["../../etc/passwd", "%2e%2e%2fetc", "a%00b", "..", "m/versions/-1", "m/versions/%31"]
)
def test_name_that_looks_like_a_path_is_just_unknown(rest, path):
    assert rest.reply("GET", f"/v1/models/{path}", b"").status in {400, 404}


@pytest.mark.parametrize("kind", sorted(NUMBERS))
@pytest.mark.parametrize("sent", [0, 1, 2])
def test_tensor_that_claims_a_trillion_elements_is_refused(grpc, kind, sent):
    request = protos.PredictRequest(model_spec={"name": "m", "signature_name": kind})
    tensor = request.inputs["x"]
    tensor.dtype = NUMBERS[kind]
    tensor.tensor_shape.dim.add(size=2**40)
    field = dtypes.by_name(kind).field
    getattr(tensor, field).extend([b"s" if kind == "string" else 1] * sent)
    answer = grpc.answer(protos.METHODS["Predict"].path, request.SerializeToString())
    assert (answer.code, answer.details) == (Code.INVALID_ARGUMENT, "tensor parsing error: x")


@pytest.mark.parametrize("kind", sorted(NUMBERS))
@pytest.mark.parametrize("sent", [0, 1])
def test_one_value_for_a_large_tensor_is_kept_once(kind, sent):
    tensor = protos.TensorProto(dtype=NUMBERS[kind])
    for size in (2, 1 << 25):
        tensor.tensor_shape.dim.add(size=size)
    values = [b"s"] if kind == "string" else [1] * (2 if "complex" in kind else 1)
    getattr(tensor, dtypes.by_name(kind).field).extend(values * sent)
    array = from_proto(tensor)
    assert (array.shape, array.strides) == ((2, 1 << 25), (0, 0))
    assert bool(array[1, -1]) == bool(sent)


@pytest.mark.parametrize(
    "content",
    [b"\xff" * 5, b"\xff\xff\xff\xff\x0f", b"\x80", b"\x05abc", b"\0" * 9],
    ids=["endless", "huge", "cut", "short", "surplus"],
)
def test_strings_with_silly_lengths_are_refused(grpc, content):
    request = protos.PredictRequest(model_spec={"name": "m", "signature_name": "string"})
    request.inputs["x"].dtype = NUMBERS["string"]
    request.inputs["x"].tensor_shape.dim.add(size=1)
    request.inputs["x"].tensor_content = content
    answer = grpc.answer(protos.METHODS["Predict"].path, request.SerializeToString())
    assert (answer.code, answer.details) == (Code.INVALID_ARGUMENT, "tensor parsing error: x")


def test_context_that_many_examples_would_multiply_is_refused(grpc):
    spec = {"name": "m", "signature_name": "classes"}
    request = protos.ClassificationRequest(model_spec=spec)
    both = request.input.example_list_with_context
    both.context.features.feature["c"].bytes_list.value.append(b"x" * 1_000_000)
    for _ in range(2000):
        both.examples.add()
    answer = grpc.answer(protos.METHODS["Classify"].path, request.SerializeToString())
    assert answer.code is Code.INVALID_ARGUMENT
    assert "too large to be merged" in answer.details


def test_tensors_that_claim_too_much_together_are_refused(grpc):
    request = protos.PredictRequest(model_spec={"name": "m", "signature_name": "many"})
    for alias in map(str, range(1000)):  # 256 GiB
        tensor = request.inputs[alias]
        tensor.dtype = NUMBERS["float"]
        tensor.tensor_shape.dim.add(size=1 << 26)
        tensor.float_val.extend([1, 2])
    answer = grpc.answer(protos.METHODS["Predict"].path, request.SerializeToString())
    assert answer.code is Code.INVALID_ARGUMENT
    assert answer.details.startswith("tensor parsing error: ")


def test_names_that_are_made_up_do_not_fill_the_memory(rest):
    for number in range(11_000):
        rest.reply("GET", f"/v1/models/{number}{'x' * 2000}", b"")
    page = rest.reply("GET", PROMETHEUS_PATH, b"").body
    assert len(page) < 15_000_000
