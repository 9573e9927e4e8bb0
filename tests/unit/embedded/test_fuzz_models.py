"""Valid but hostile requests against real models in this process: all answered, nothing left.

A crash of native code would end this process. Every request is also sent broken in several ways.
30,000 cases; with $TFKIT_TORTURE=1 half a million, in rounds, so that hypothesis may forget them.
"""

import contextlib
import json
import logging
import os
import random
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.embedded.test_fuzz import TOKENS
from tfserve_kit import protos
from tfserve_kit.embedded.batching import completed
from tfserve_kit.embedded.grpc_surface import GrpcSurface
from tfserve_kit.embedded.handlers import Handlers, ModelRef
from tfserve_kit.embedded.ledger import Call, Ledger
from tfserve_kit.embedded.manager import Lease
from tfserve_kit.embedded.metrics import Metrics
from tfserve_kit.embedded.rest_surface import RestSurface
from tfserve_kit.embedded.status import Code, ServingError
from tfserve_kit.tensors import dtypes

pytestmark = pytest.mark.tensorflow

IS_LONG = os.environ.get("TFKIT_TORTURE") == "1"
ROUNDS = pytest.mark.parametrize("number", range(17 if IS_LONG else 1))
EXAMPLES, BROKEN = 2000, 4  # of each of three kinds: 30,000 cases a round
FUZZ = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=bool(os.environ.get("CI")) and not IS_LONG,
    database=None,
    suppress_health_check=list(HealthCheck),
)
MODELS = Path(__file__).parents[2] / "data" / "models"
NAMES = ("strings", "dtypes", "legacy", "half_plus_two", "multi_io", "defaults")
MIB = 1 << 20


class LoadedManager:
    """Lends the newest version of each model."""

    def __init__(self):
        from tfserve_kit.embedded.loader import SavedModelLoader
        from tfserve_kit.embedded.settings import SessionOptions

        load = SavedModelLoader(SessionOptions())
        self.servables = {name: load(max((MODELS / name).iterdir())) for name in NAMES}

    @contextlib.contextmanager
    def lease(self, model, version=None, label=None):
        if model not in self.servables or version not in {None, 1} or label:
            raise ServingError(Code.NOT_FOUND, f"Servable not found for request: {model}")
        yield Lease(model, 1, self.servables[model], bool)


@pytest.fixture(scope="module")
def manager():
    return LoadedManager()


class Tracebacks(logging.Handler):
    """Keeps what is logged with a traceback: a client must not be able to bring one about."""

    def __init__(self):
        super().__init__()
        self.texts = []

    def emit(self, record):
        if record.exc_info:
            self.texts.append(self.format(record))


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(scope="module")
def surfaces(manager):
    """Both surfaces and a ledger; at the end nothing is held, and the process is as it was."""
    metrics, ledger = Metrics(), Ledger(256 * MIB)
    handlers = Handlers(manager, metrics)
    # What is made on first use is made.
    for name, servable in manager.servables.items():
        for signature in servable.signatures:
            with contextlib.suppress(ServingError):
                completed(handlers.predict(ModelRef(name), signature, {}))
    before = resident_bytes(), threading.active_count(), len([*Path("/proc/self/fd").iterdir()])
    tracebacks = Tracebacks()
    logging.getLogger("tfserve_kit").addHandler(tracebacks)
    yield GrpcSurface(handlers, metrics), RestSurface(handlers, metrics), ledger
    logging.getLogger("tfserve_kit").removeHandler(tracebacks)
    assert tracebacks.texts == []
    assert (ledger.held_bytes, ledger.clients) == (0, 0)
    assert resident_bytes() < before[0] + 500 * MIB
    assert threading.active_count() <= before[1] + 2
    assert len([*Path("/proc/self/fd").iterdir()]) <= before[2] + 5


@st.composite
def spec(draw, message, manager):
    """Fill a ModelSpec with a model that is there and one of its signatures, mostly."""
    message.name = draw(st.sampled_from([*NAMES, "nope"]))
    servable = manager.servables.get(message.name)
    known = sorted(servable.signatures) if servable else []
    message.signature_name = draw(st.sampled_from([*known, *known, "", "nope", "\ud7ff"]))
    return servable.signatures.get(message.signature_name) if servable else None


sizes = st.sampled_from([0, 1, 1, 1, 2, 3, 2**31, 2**40, -1, 2**62])
ranks = st.integers(0, 4) | st.sampled_from([31, 32, 33, 63, 64, 65, 128, 254, 255, 300])


@st.composite
def hostile_tensor(draw, number):
    """A tensor of a type, with any shape, and as many values as it likes."""
    tensor = protos.TensorProto(dtype=number)
    rank = draw(ranks)
    several = draw(sizes) if rank <= 32 else draw(st.sampled_from([0, 1]))
    for axis in range(rank):
        inner = draw(sizes) if rank <= 2 else 1
        tensor.tensor_shape.dim.add(size=several if axis == rank - 1 else inner)
    try:
        row = dtypes.by_number(number)
    except KeyError:
        return tensor
    few = draw(st.integers(0, 4))
    if row is dtypes.STRING:
        tensor.string_val.extend(draw(st.lists(st.binary(max_size=30), max_size=4)))
    elif draw(st.booleans()):
        tensor.tensor_content = draw(st.binary(min_size=0, max_size=8)) * few
    else:
        whole = not any(kind in row.field for kind in ("float", "double", "complex"))
        getattr(tensor, row.field).extend([draw(st.integers(0, 1)) if whole else 1.5] * few)
    return tensor


@st.composite
def predictions(draw, manager):
    request = protos.PredictRequest()
    signature = draw(spec(request.model_spec, manager))
    for alias, info in signature.inputs.items() if signature else [("x", None)]:
        number = info.dtype if info and draw(st.integers(0, 9)) else draw(st.integers(0, 30))
        request.inputs[alias].CopyFrom(draw(hostile_tensor(number)))
    aliases = [*(signature.outputs if signature else ()), "nope"]
    request.output_filter.extend(draw(st.lists(st.sampled_from(aliases), max_size=4)))
    return request.SerializeToString()


@st.composite
def inferences(draw, manager):
    request = protos.MultiInferenceRequest()
    for _ in range(draw(st.integers(0, 4))):
        task = request.tasks.add()
        draw(spec(task.model_spec, manager))
        kind = draw(st.sampled_from(["classify", "regress", ""]))
        task.method_name = f"tensorflow/serving/{kind}"
    kind = draw(st.sampled_from(["example_list", "example_list_with_context"]))
    message = getattr(request.input, kind)
    message.SetInParent()
    for _ in range(draw(st.integers(0, 4))):
        feature = message.examples.add().features.feature[draw(st.sampled_from(["x", "y", ""]))]
        feature.float_list.value.extend([draw(st.floats(width=32))] * draw(st.integers(0, 3)))
    if kind == "example_list_with_context":
        message.context.features.feature["x"].bytes_list.value.append(draw(st.binary(max_size=9)))
    return request.SerializeToString()


def broken(body, seed, tokens=(b"\xff", b"\x00", b"\x80" * 10, b"\x7f")):
    """Yield a body, and then after a few cuts, repetitions and insertions."""
    yield body
    choices = random.Random(seed)
    for _ in range(BROKEN):
        data = bytearray(body)
        for _ in range(choices.randint(1, 4)):
            start = choices.randint(0, len(data))
            end = min(len(data), start + choices.randint(0, 8))
            other = choices.choice([choices.choice(tokens), choices.randbytes(3)])
            data[start:end] = choices.choice([other, data[start:end] * 2, b""])
        yield bytes(data)


seeds = st.integers(0, 2**32)


def assert_called(surfaces, method, body):
    surface, _, ledger = surfaces
    with ledger.account("client") as account:
        answer = surface.answer(protos.METHODS[method].path, body, Call(account))
        assert account.held_bytes <= len(answer.body)
    assert (
        answer.code is not Code.UNKNOWN
        and answer.details.encode("utf-8", "surrogateescape") is not None
    )
    if answer.code is Code.OK:
        protos.message_class(protos.METHODS[method].response).FromString(answer.body)


def assert_posted(surfaces, path, body):
    _, surface, ledger = surfaces
    with ledger.account("client") as account:
        reply = surface.reply("POST", path, body, Call(account))
        assert account.held_bytes <= len(reply.body)
    assert reply.status in {200, 400, 404, 413, 500, 501}
    assert (b'"error"' in reply.body) or reply.status == 200


@ROUNDS
@FUZZ
@given(data=st.data(), seed=seeds)
def test_hostile_predictions_are_answered(surfaces, manager, number, data, seed):
    for body in broken(data.draw(predictions(manager)), seed):
        assert_called(surfaces, "Predict", body)


@ROUNDS
@FUZZ
@given(data=st.data(), seed=seeds)
def test_hostile_inferences_are_answered(surfaces, manager, number, data, seed):
    for body in broken(data.draw(inferences(manager)), seed):
        assert_called(surfaces, "MultiInference", body)


nested = st.builds(
    lambda leaf, depth: b"[" * depth + leaf + b"]" * depth,
    st.sampled_from([b"1", b'"a"', b"true", b"null", b"1e999", b"NaN", b'{"b64": "YQ=="}', b"[]"]),
    ranks,
)


@ROUNDS
@FUZZ
@given(
    model=st.sampled_from(NAMES),
    verb=st.sampled_from(["predict", "predict", "classify", "regress"]),
    key=st.sampled_from(["inputs", "instances", "examples", "\\ud800", "signature_name"]),
    value=nested | st.lists(nested, max_size=3).map(lambda items: b"[%s]" % b",".join(items)),
    more=st.sampled_from([b"", b', "y": "\xff"', b', "signature_name": "\\udcff"', *TOKENS]),
    data=st.data(),
    seed=seeds,
)
def test_hostile_json_is_answered(
    surfaces, manager, number, model, verb, key, value, more, data, seed
):
    name = data.draw(st.sampled_from(sorted(manager.servables[model].signatures)))
    head = f'{{"signature_name": {json.dumps(name)}, "{key}": '.encode()
    for body in broken(head + value + more + b"}", seed, TOKENS):
        assert_posted(surfaces, f"/v1/models/{model}:{verb}", body)
