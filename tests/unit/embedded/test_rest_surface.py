"""Routes, status codes and documents of the REST API, over handlers that are made up."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfserve_kit import protos
from tfserve_kit.embedded import json_writer
from tfserve_kit.embedded.handlers import Inferred, ModelRef, Predicted
from tfserve_kit.embedded.ledger import Call, Ledger
from tfserve_kit.embedded.manager import ServableStatus, VersionState
from tfserve_kit.embedded.metrics import Metrics
from tfserve_kit.embedded.rest_surface import RestSurface
from tfserve_kit.embedded.status import Code, ServingError
from tfserve_kit.tensors import dtypes

SIGNATURES = protos.from_text(
    "SignatureDefMap",
    """
    signature_def { key: "serving_default" value {
      inputs { key: "x" value { name: "x:0" dtype: DT_FLOAT
                                tensor_shape { dim { size: -1 } } } }
      outputs { key: "y" value { name: "y:0" dtype: DT_FLOAT } }
      method_name: "tensorflow/serving/predict"
    } }
    """,
).signature_def


class HalfPlusTwoHandlers:
    """Answers y = x / 2 + 2 for any model, and remembers which were asked for.

    Attributes:
        asked: (method, model) of each call.
        call: that of the last request that computes.
        fault: raised by `predict`, `inputs`, `metadata` and `status` if set.
    """

    def __init__(self):
        self.asked, self.call, self.fault = [], None, None

    def _note(self, method, model):
        self.asked.append((method, model))
        if self.fault:
            raise self.fault

    async def predict(self, model, signature, inputs, output_filter=(), *, call=None):
        self.call = call
        self._note("predict", model)
        return Predicted(model.version or 7, signature, {"y": inputs["x"] / 2 + 2})

    def predict_at_once(self, model, inputs, accounts):
        self._note("at once", model)
        arrays = inputs(dtypes.by_number(SIGNATURES["serving_default"].inputs["x"].dtype))
        if arrays is None:
            return None
        assert len(arrays) == len(accounts)
        return [Predicted(model.version or 7, "serving_default", {"y": x / 2 + 2}) for x in arrays]

    def inputs(self, model, signature):
        self._note("inputs", model)
        return SIGNATURES[signature].inputs if signature in SIGNATURES else None

    def metadata(self, model):
        self._note("metadata", model)
        return model.version or 7, SIGNATURES

    async def classify(self, model, signature, examples, *, call=None):
        self.call = call
        self._note("classify", model)
        return Inferred(7, signature, [[(b"a", 0.5), (b'"', 1.0)] for _ in examples()])

    async def regress(self, model, signature, examples, *, call=None):
        self.call = call
        self._note("regress", model)
        return Inferred(7, signature, [2.5, 0.1])

    def status(self, model):
        self._note("status", model)
        broken = ServingError(Code.OUT_OF_RANGE, "Read less bytes than requested")
        return [
            ServableStatus(9, VersionState.END, broken),
            ServableStatus(8, VersionState.LOADING, broken),
            ServableStatus(7, VersionState.AVAILABLE, None),
        ]


@pytest.fixture
def handlers():
    return HalfPlusTwoHandlers()


@pytest.fixture
def reply(handlers):
    surface = RestSurface(handlers, Metrics())
    return lambda method, target, body=b"": surface.reply(method, target, body)


BODY = b'{"instances": [1, 2]}'

NAMES = [
    ("m", ModelRef("m")),
    ("m/versions/3", ModelRef("m", 3)),
    ("m/versions/0", ModelRef("m", 0)),
    ("m/versions/0001", ModelRef("m", 1)),
    ("m/versions/9223372036854775807", ModelRef("m", 2**63 - 1)),
    ("m/VERSIONS/3", ModelRef("m", 3)),
    ("m/labels/stable", ModelRef("m", None, "stable")),
    ("m/Labels/%73table", ModelRef("m", None, "stable")),
    ("m/labels/3", ModelRef("m", None, "3")),
    ("name%20with%20space", ModelRef("name with space")),
    ("name+with+plus", ModelRef("name+with+plus")),
    ("m%C3%B6dell", ModelRef("mödell")),
    ("m%c3%b6dell", ModelRef("mödell")),
    ("a%2Fb", ModelRef("a/b")),
    ("Upper.Case-1", ModelRef("Upper.Case-1")),
    ("m?x=1", ModelRef("m?x=1")),
    ("versions", ModelRef("versions")),
]


@pytest.mark.parametrize(("path", "model"), NAMES)
@pytest.mark.parametrize("prefix", ["/v1/models/", "/V1/Models/", "http://h:8501/v1/models/"])
def test_predict_reaches_the_model_that_the_path_names(reply, handlers, prefix, path, model):
    found = reply("POST", f"{prefix}{path}:predict", BODY)
    assert found.status == 200
    assert ("predict", model) in handlers.asked
    assert found.body == b'{\n    "predictions": [2.5, 3.0\n    ]\n}'
    assert (dict(found.headers), found.close) == ({"Content-Type": "application/json"}, False)


@pytest.mark.parametrize(("path", "model"), NAMES)
@pytest.mark.parametrize(
    ("suffix", "asked"), [("", "status"), ("/metadata", "metadata"), ("/METADATA", "status")]
)
def test_get_reaches_the_model_that_the_path_names(reply, handlers, path, model, suffix, asked):
    assert reply("GET", f"/v1/models/{path}{suffix}").status == 200
    assert handlers.asked == [(asked, model)]


MALFORMED = [
    ("GET", "/v1/models/"),
    ("GET", "/v1/modelsx"),
    ("GET", "/v1/models/a/b"),
    ("GET", "/v1/models/m/versions/x"),
    ("GET", "/v1/models/m/versions/-1"),
    ("GET", "/v1/models/m/versions/1/"),
    ("GET", "/v1/models/m/versions/"),
    ("GET", "/v1/models/m/labels/"),
    ("GET", "/v1/models/m/metadata/"),
    ("GET", "/v1/models/m:predict"),
    ("POST", "/v1/models:predict"),
    ("POST", "/v1/models/m"),
    ("POST", "/v1/models/m/metadata"),
    ("POST", "/v1/models/m:PREDICT"),
    ("POST", "/v1/models/m:Predict"),
    ("POST", "/v1/models/m:predict?alt=json"),
    ("POST", "/v1/models/m:predict#frag"),
    ("POST", "/v1/models/m:predictx"),
    ("POST", "/v1/models/m%3Apredict"),
    ("POST", "/v1/models/m/versions/abc:predict"),
    ("POST", "/v1/models/m/versions/:predict"),
    ("POST", "/v1/models/m/versions/%201:predict"),
    ("POST", "/v1/models/m/versions/1/:predict"),
    ("POST", "/v1/models/m/versions/1/labels/a:predict"),
    ("POST", "/v1/models/m/labels/:predict"),
    ("POST", "/v1/models"),
    ("PUT", "/v1/models/m:predict"),
    ("PUT", "/v1/models/m"),
    ("DELETE", "/v1/models/m"),
    ("HEAD", "/v1/models/m"),
]


@pytest.mark.parametrize(("method", "target"), MALFORMED)
def test_path_or_method_that_fits_no_route_is_malformed(reply, handlers, method, target):
    found = reply(method, target, BODY)
    assert found.status == 400
    assert json.loads(found.body) == {"error": f"Malformed request: {method} {target}"}
    assert handlers.asked == []
    assert not found.close


@pytest.mark.parametrize("target", ["/v1/models", "/V1/MODELS"])
def test_list_of_models_is_refused_as_a_missing_name(reply, target):
    found = reply("GET", target)
    assert (found.status, json.loads(found.body)) == (
        400,
        {"error": "Missing model name in request."},
    )


@pytest.mark.parametrize(
    "number", ["9223372036854775808", "99999999999999999999", "9" * 5000], ids=len
)
@pytest.mark.parametrize(("method", "suffix"), [("GET", ""), ("POST", ":predict")])
def test_version_above_int64_is_refused_without_a_text(reply, handlers, method, suffix, number):
    found = reply(method, f"/v1/models/m/versions/{number}{suffix}", BODY)
    assert (found.status, found.body, handlers.asked) == (400, b"", [])
    assert dict(found.headers) == {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("target", "status", "title"),
    [
        ("/", 404, "Not Found"),
        ("/healthz", 404, "Not Found"),
        ("/v2/models/m:predict", 404, "Not Found"),
        ("/v1", 404, "Not Found"),
        ("/v1x/models/m", 404, "Not Found"),
        ("x/v1/models/m", 404, "Not Found"),
        ("/v1/models/half%zz:predict", 400, "Bad Request"),
        ("/elsewhere%", 400, "Bad Request"),
        ("/v1/models/m%2", 400, "Bad Request"),
    ],
)
def test_target_outside_the_api_gets_a_page_and_the_connection_is_closed(
    reply, target, status, title
):
    found = reply("POST", target, BODY)
    assert (found.status, found.close) == (status, True)
    assert dict(found.headers) == {"Content-Type": "text/html"}
    assert found.body.decode() == (
        f"<HTML><HEAD>\n<TITLE>{status} {title}</TITLE>\n</HEAD><BODY>\n"
        f"<H1>{title}</H1>\n</BODY></HTML>\n"
    )


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("/v1/", "Malformed request: GET /v1/"),
        ("/V1/model", "Malformed request: GET /V1/model"),
        ("/v1/other/m", "Malformed request: GET /v1/other/m"),
        ("/v1/models/", "Malformed request: GET /v1/models/"),
        ("/v1/models/m/n", "Malformed request: GET /v1/models/m/n"),
        ("/v1/models/m:predict", "Malformed request: GET /v1/models/m:predict"),
        ("/v1/models", "Missing model name in request."),
        ("/v1/Models", "Missing model name in request."),
        ("/v1/models/versions/1", "Missing model name in request."),
        ("/v1/models/labels/stable", "Missing model name in request."),
        ("/v1/models/versions/1/metadata", "Missing model name in request."),
        ("/v1/models/labels/a/METADATA", "Missing model name in request."),
    ],
)
def test_path_of_the_api_that_names_no_model_is_told(reply, handlers, target, message):
    found = reply("GET", target)
    assert found.status == 400
    assert json.loads(found.body) == {"error": message}
    assert handlers.asked == []


@pytest.mark.parametrize("cors", [True, False])
@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("", 400),
        ("null", 400),
        ("example.com", 400),
        ("ftp://example.com", 400),
        ("HTTP://example.com", 400),
        ("http://example.com", 200),
        ("https://example.com", 200),
        ("x https://", 200),
    ],
)
def test_options_is_answered_by_the_origin_whatever_may_be_read(handlers, cors, origin, status):
    surface = RestSurface(handlers, Metrics(), cors=cors)
    found = surface.reply("OPTIONS", "/v1/models/m:predict", b"", origin=origin)
    assert (found.status, found.body) == (status, b"")
    assert ("Access-Control-Allow-Origin" in found.headers) == cors


@pytest.mark.parametrize("target", ["/v1/models/m:predict", "/v1/models/m"])
def test_options_is_refused_without_a_body(reply, target):
    found = reply("OPTIONS", target)
    assert (found.status, found.body) == (400, b"")
    assert dict(found.headers) == {"Content-Type": "text/html; charset=ISO-8859-1"}


def test_options_outside_the_api_is_not_found(reply):
    assert reply("OPTIONS", "/x").status == 404


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (Code.CANCELLED, 499),
        (Code.UNKNOWN, 500),
        (Code.INVALID_ARGUMENT, 400),
        (Code.DEADLINE_EXCEEDED, 504),
        (Code.NOT_FOUND, 404),
        (Code.ALREADY_EXISTS, 409),
        (Code.PERMISSION_DENIED, 403),
        (Code.RESOURCE_EXHAUSTED, 429),
        (Code.FAILED_PRECONDITION, 400),
        (Code.ABORTED, 409),
        (Code.OUT_OF_RANGE, 400),
        (Code.UNIMPLEMENTED, 501),
        (Code.INTERNAL, 500),
        (Code.UNAVAILABLE, 503),
        (Code.DATA_LOSS, 500),
        (Code.UNAUTHENTICATED, 401),
    ],
)
@pytest.mark.parametrize(
    "target", ["/v1/models/m:predict", "/v1/models/m", "/v1/models/m/metadata"]
)
def test_error_code_becomes_the_http_status(reply, handlers, code, status, target):
    handlers.fault = ServingError(code, 'a "text"\n')
    found = reply("POST" if "predict" in target else "GET", target, BODY)
    assert (found.status, found.body) == (status, b'{\n    "error": "a \\"text\\"\\n"\n}')
    assert not found.close


def test_unforeseen_error_is_answered_and_logged(reply, handlers, caplog):
    handlers.fault = ZeroDivisionError("by zero")
    found = reply("GET", "/v1/models/m")
    assert found.status == 500
    assert json.loads(found.body) == {"error": "ZeroDivisionError: by zero"}
    (record,) = caplog.records  # one line, as every client could have it written again and again
    assert record.getMessage().startswith("GET /v1/models/m failed: ZeroDivisionError: by zero (")
    assert record.exc_info is None


def test_unknown_signature_is_refused_in_the_official_words(reply):
    found = reply("POST", "/v1/models/m:predict", b'{"signature_name": "z", "inputs": 1}')
    assert found.status == 400
    assert json.loads(found.body) == {
        "error": 'Serving signature name: "z" not found in signature def'
    }


def test_column_form_is_answered_in_the_column_form(reply):
    found = reply("POST", "/v1/models/m:predict", b'{"inputs": [1, 2]}')
    assert found.body == b'{\n    "outputs": [\n        2.5,\n        3.0\n    ]\n}'


def test_status_shows_the_error_of_ended_versions_only(reply):
    found = reply("GET", "/v1/models/m")
    assert found.body.decode().startswith(
        '{\n "model_version_status": [\n  {\n   "version": "9",\n   "state": "END",\n'
        '   "status": {\n    "error_code": "OUT_OF_RANGE",\n'
        '    "error_message": "Read less bytes than requested"\n   }\n  },\n'
    )
    assert found.body.endswith(b"  }\n ]\n}\n")
    ended, loading, available = json.loads(found.body)["model_version_status"]
    assert (ended["version"], loading["state"], available["state"]) == ("9", "LOADING", "AVAILABLE")
    assert loading["status"] == available["status"] == {"error_code": "OK", "error_message": ""}


def test_metadata_has_the_official_layout(reply):
    found = reply("GET", "/v1/models/m/versions/4/metadata")
    assert found.body.decode().startswith(
        '{\n"model_spec":{\n "name": "m",\n "version": "4",\n "signature_name": ""\n}\n,\n'
        '"metadata": {"signature_def": {\n "signature_def": {\n  "serving_default": {\n'
    )
    signature = json.loads(found.body)["metadata"]["signature_def"]["signature_def"]
    assert signature["serving_default"]["inputs"]["x"] == {
        "dtype": "DT_FLOAT",
        "tensor_shape": {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False},
        "name": "x:0",
    }
    assert signature["serving_default"]["method_name"] == "tensorflow/serving/predict"


# Classify and regress


@pytest.mark.parametrize(
    ("verb", "results"),
    [("classify", b'[[["a", 0.5], ["\\"", 1.0]]\n    ]'), ("regress", b"[2.5, 0.1]")],
)
def test_examples_are_answered_in_the_official_layout(reply, handlers, verb, results):
    found = reply("POST", f"/v1/models/m/versions/3:{verb}", b'{"examples": [{"x": 1}]}')
    assert handlers.asked == [(verb, ModelRef("m", 3))]
    assert (found.status, found.body) == (200, b'{\n    "results": ' + results + b"\n}")


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"[]", "Is not object"),
        (b"{}", "key 'examples' is expected and was not found"),
        (b'{"examples": 1}', "Expecting 'examples' value to be an list/array"),
        (b'{"examples": []}', "'examples' value is an empty array"),
        (b'{"examples": [1]}', "Example must be JSON object but got JSON Number"),
        (b'{"examples": [{"x": [1, "a"]}]}', "Unexpected element type in feature: x"),
        (b'{"examples": [{"x": null}]}', "Feature: x has element with unexpected JSON type: Null"),
        (b'{"examples": [{"x": 9223372036854775808}]}', "Only int64_t is supported"),
    ],
)
@pytest.mark.parametrize("verb", ["classify", "regress"])
def test_examples_that_are_none_are_refused(reply, handlers, verb, body, text):
    found = reply("POST", f"/v1/models/m:{verb}", body)
    assert found.status == 400
    assert text in json.loads(found.body)["error"]
    assert handlers.asked == []


# Pages of other origins, metrics


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("OPTIONS", "/v1/models/m:predict", 400),
        ("POST", "/v1/models/m:predict", 200),
        ("GET", "/v1/models/m/x/y", 400),
    ],
)
def test_answers_may_be_read_by_other_origins_where_that_is_wanted(
    handlers, method, target, status
):
    surface = RestSurface(handlers, Metrics(), cors=True)
    found = surface.reply(method, target, BODY)
    assert found.status == status
    assert found.headers["Access-Control-Allow-Origin"] == "*"
    assert found.headers["Access-Control-Allow-Methods"] == "POST, GET"
    assert "Content-Type" in found.headers
    plain = RestSurface(handlers, Metrics()).reply(method, target, BODY)
    assert "Access-Control-Allow-Origin" not in plain.headers


def test_metrics_page_is_where_it_was_asked_for(handlers):
    surface = RestSurface(handlers, Metrics(), metrics_path="/metrics")
    page = surface.reply("GET", "/metrics", b"")
    assert (page.status, dict(page.headers)) == (200, {"Content-Type": "text/plain"})
    assert page.body.startswith(b"# TYPE :tensorflow:")
    assert surface.reply("GET", "/metrics/", b"").status == 404
    assert RestSurface(handlers, Metrics()).reply("GET", "/metrics", b"").status == 404


EXAMPLES = b'{"examples": [{}, {}]}'


@pytest.mark.parametrize(
    ("method", "target", "body", "name", "verb"),
    [
        ("POST", "/v1/models/m%20x/versions/1:predict", BODY, "m x", "predict"),
        ("POST", "/v1/models/m:classify", EXAMPLES, "m", "classify"),
        ("POST", "/v1/models/m:regress", EXAMPLES, "m", "regress"),
        ("GET", "/v1/models/m", b"", "m", ""),
        ("GET", "/v1/models/m/labels/l/metadata", b"", "m", ""),
    ],
)
def test_request_is_counted_and_timed_by_model_and_verb(handlers, method, target, body, name, verb):
    lines = counted(handlers, method, target, body)
    assert f'request_count{{model_name="{name}",status="OK"}} 1' in lines
    latency = f'request_latency_count{{model_name="{name}",API="{verb}",entrypoint="REST"}} 1'
    assert latency in lines


@pytest.mark.parametrize(
    ("method", "target", "name", "status"),
    [
        ("POST", "/v1/models/m:predict", "m", "NOT_FOUND"),
        ("GET", "/v1/models/m", "m", "NOT_FOUND"),
        ("GET", "/v1/models/m/a/b", "", "INVALID_ARGUMENT"),
        ("GET", "/v1/models/m:predict", "", "INVALID_ARGUMENT"),
        ("POST", "/v1/models/m", "", "INVALID_ARGUMENT"),
        ("PUT", "/v1/models/m:predict", "", "INVALID_ARGUMENT"),
        ("GET", "/v1/models", "", "INVALID_ARGUMENT"),
    ],
)
def test_failed_request_is_counted_without_a_name_where_its_path_is_malformed(
    handlers, method, target, name, status
):
    handlers.fault = ServingError(Code.NOT_FOUND, "gone")
    lines = counted(handlers, method, target, BODY)
    assert f'request_count{{model_name="{name}",status="{status}"}} 1' in lines
    assert not [line for line in lines if line.startswith("request_latency")]


@pytest.mark.parametrize("target", ["/metrics", "/v2/models/m", "/"])
def test_request_for_no_model_is_not_counted(handlers, target):
    assert not [line for line in counted(handlers, "GET", target, b"") if "request_count" in line]


def counted(handlers, method, target, body):
    """Return the values on the metrics page after one request."""
    metrics = Metrics()
    RestSurface(handlers, metrics, metrics_path="/metrics").reply(method, target, body)
    lines = metrics.page().splitlines()
    prefix = ":tensorflow:serving:"
    return [line.removeprefix(prefix) for line in lines if not line.startswith("#")]


@pytest.mark.parametrize(
    ("verb", "body"), [("predict", BODY), ("classify", EXAMPLES), ("regress", EXAMPLES)]
)
def test_what_computes_is_handed_the_call(handlers, verb, body):
    surface, call = RestSurface(handlers, Metrics()), Call.unbounded()
    assert surface.reply("POST", f"/v1/models/m:{verb}", body, call).status == 200
    assert handlers.call is call


@pytest.mark.parametrize(
    "target", ["/v1/models/m:predict", "http://h/v1/models/m/versions/3:predict"]
)
@pytest.mark.parametrize("fault", [None, ServingError(Code.NOT_FOUND, "nope"), ValueError("x")])
def test_answer_at_once_is_the_usual_one_and_counted_so(handlers, target, fault):
    handlers.fault = fault
    pages, replies = [], []
    for is_usual in (True, False):
        metrics = Metrics()
        surface, account = RestSurface(handlers, metrics), Ledger(1 << 30).account("c")
        account.take(100, "the request")
        if is_usual:
            replies.append(surface.reply("POST", target, BODY, Call(account)))
        else:
            replies += surface.at_once(target, [(BODY, account)])
        pages.append([line for line in metrics.page().splitlines() if "request_count" in line])
        assert account.held_bytes == 100
    assert replies[0] == replies[1]
    assert pages[0] == pages[1]
    assert handlers.asked[-1][0] == "at once"


@pytest.mark.parametrize("size", [3, 100_000])
def test_large_answers_are_not_made_together_as_each_has_to_be_afforded(
    handlers, monkeypatch, size
):
    made, alike = [], json_writer.predictions_alike
    monkeypatch.setattr(
        json_writer, "predictions_alike", lambda *a, **k: made.append(True) or alike(*a, **k)
    )
    many = np.ones(size, np.float32)
    handlers.predict_at_once = lambda *_: [Predicted(7, "serving_default", {"y": many})] * 2
    rich, poor = (Ledger(size_bytes).account("c") for size_bytes in (1 << 30, 1 << 20))
    target = "/v1/models/m:predict"
    replies = RestSurface(handlers, Metrics()).at_once(target, [(BODY, rich), (BODY, poor)])
    is_small = size == 3
    assert bool(made) is is_small
    assert [reply.status for reply in replies] == [200, 200 if is_small else 413]


@pytest.mark.parametrize(
    ("target", "body"),
    [
        ("/v1/models/m:classify", BODY),
        ("/v1/models/m", BODY),
        ("/v1/models/m/versions/99999999999999999999:predict", BODY),
        ("/v1/nothing", BODY),
        ("/v1/models/%zz:predict", BODY),
        ("/monitoring", BODY),
        ("/v1/models/m:predict", b'{"instances": [1, "a"]}'),
        ("/v1/models/m:predict", b'{"instances": [[1], [2, 3]]}'),
        ("/v1/models/m:predict", b""),
    ],
)
def test_what_is_unusual_is_not_answered_at_once(handlers, target, body):
    metrics = Metrics()
    surface = RestSurface(handlers, metrics, metrics_path="/monitoring")
    assert surface.at_once(target, [(body, Ledger(1 << 30).account("c"))]) == [None]
    assert "request_count{" not in metrics.page()


def test_where_other_origins_may_read_answers_none_is_given_at_once(handlers):
    surface = RestSurface(handlers, Metrics(), cors=True)
    asked = [(BODY, Ledger(1 << 30).account("c"))]
    assert surface.at_once("/v1/models/m:predict", asked) == [None]


# Numbers as JSON can have them: what is printed, and what is written by hand.
NUMBERS = (
    st.floats(width=32).map(repr).map(lambda text: text.replace("inf", "Infinity"))
    | st.floats().map(repr)
    | st.integers(-(2**70), 2**70).map(str)
    | st.sampled_from(
        ["-0", "-0.0", "0e5", "1E3", "1e-3", "1.5e+3", "1e39", "1e400", "1e-400", "00", "1.", ".5",
         "NaN", "-NaN", "Infinity", "-Infinity", "Inf", "nan", "+1", "true", "null", '"1"', "[]",
         "{}", "-", "1e", "0x1", "123456789012345678901234567890"]
    )
)  # fmt: skip
SPACES = st.sampled_from(["", "", " ", "\n", "\t", "\r\n  ", "\f", "\u00a0"])
LISTS = st.recursive(
    NUMBERS, lambda inner: st.lists(inner, max_size=4).map(lambda items: ("[", items)), max_leaves=8
)
KEYS = st.sampled_from(
    ['"instances"', '"instances"', '"inputs"', '"instance\\u0073"', '"Instances"', '"x"',
     '"signature_name"', "instances"]
)  # fmt: skip


def written(value, space):
    if isinstance(value, str):
        return space() + value + space()
    return space() + "[" + ",".join(written(each, space) for each in value[1]) + space() + "]"


@st.composite
def json_bodies(draw):
    def space():
        return draw(SPACES)

    def member():
        return f"{space()}{draw(KEYS)}{space()}:{written(draw(LISTS), space)}"

    members = [member() for _ in range(draw(st.sampled_from([1, 1, 1, 1, 2, 0])))]
    text = space() + "{" + ",".join(members) + "}" + draw(st.sampled_from(["", "", " ", "x", "\0"]))
    body = text.encode()
    cut = draw(st.none() | st.none() | st.integers(0, len(body)))
    return body if cut is None else body[:cut]


@given(st.lists(json_bodies(), min_size=1, max_size=4), st.booleans())
def test_answers_at_once_are_the_usual_ones_to_the_byte_whatever_was_sent(bodies, is_labelled):
    handlers = HalfPlusTwoHandlers()
    target = "/v1/models/m/labels/l:predict" if is_labelled else "/v1/models/m:predict"
    usual, at_once = (RestSurface(handlers, Metrics()) for _ in range(2))
    account = Ledger(1 << 30).account("c")
    replies = at_once.at_once(target, [(body, account) for body in bodies])
    expected = [usual.reply("POST", target, body) for body in bodies]
    for reply, other in zip(replies, expected, strict=True):
        assert reply is None or reply == other
    assert account.held_bytes == 0
