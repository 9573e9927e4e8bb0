"""JSON documents of the REST API against recorded ones, byte for byte."""

import base64
import gzip
import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfserve_kit import protos
from tfserve_kit.embedded import json_reader, json_writer
from tfserve_kit.embedded.json_reader import PredictBody
from tfserve_kit.embedded.ledger import Call
from tfserve_kit.embedded.status import Code, ServingError
from tfserve_kit.tensors import dtypes

ACCOUNT = Call.unbounded().account
DATA = Path(__file__).parents[2] / "data"
GROUPS = {"rest-predict", "rest-numbers", "rest-dtypes", "rest-strings"}


def signatures(model):
    newest = max((DATA / "models" / model).iterdir())
    message = protos.SavedModel.FromString((newest / "saved_model.pb").read_bytes())
    return message.meta_graphs[0].signature_def


def doubled(s):
    twice = np.empty(len(s), object)
    twice[:] = [item + b"|" + item for item in s]
    return twice


# What the tiny models compute, by model and signature.
COMPUTE = {
    ("half_plus_two", "serving_default"): lambda x: {"y": x / 2 + 3},
    ("multi_io", "serving_default"): lambda a, b: {"double_a": a * 2, "sum": a + b},
    ("multi_io", "only_sum"): lambda a, b: {"sum": a + b},
    ("scalars", "serving_default"): lambda u: {"out": u},
    ("scalars", "echo"): lambda u: {"out": u},
    ("scalars", "echo_int"): lambda i: {"out": i},
    ("scalars", "empty_out"): lambda m: {"out": m[:, :0]},
    ("scalars", "head"): lambda v: {"out": v[:1]},
    ("scalars", "matrix"): lambda m: {"out": m},
    ("scalars", "no_batch"): lambda m: {
        "out": m.sum(axis=1),
        "rows": np.array(m.shape, np.int32),
    },
    ("scalars", "scalar"): lambda sc: {"out": sc},
    ("scalars", "sum"): lambda v: {"total": v.sum()},
    ("scalars", "sum_and_same"): lambda v: {"same": v, "total": v.sum()},
    ("strings", "serving_default"): lambda s: {"image_bytes": s, "s_out": doubled(s)},
    ("strings", "echo"): lambda s: {"out": s},
    ("strings", "echo_bytes"): lambda s: {"out_bytes": s},
    ("strings", "any"): lambda g: {"out": g},
    ("strings", "length"): lambda s: {"n": np.array([len(item) for item in s], np.int32)},
    ("dtypes", "serving_default"): lambda **same: same,
}  # fmt: skip


def recorded():
    """Return the recorded predict requests to models whose results are computed below."""
    with gzip.open(DATA / "golden" / "rest.jsonl.gz", "rt", encoding="utf-8") as lines:
        cases = [json.loads(line) for line in lines]
    found = []
    for case in cases:
        request = case["request"]
        path = re.fullmatch(r"/v1/models/(\w+):predict", request["path"])
        computable = path and path[1] in {model for model, _ in COMPUTE}
        if case["group"] in GROUPS and computable:
            found.append(pytest.param(path[1], request, case["response"], id=case["id"]))
    assert len(found) > 100
    return found


def computed(model, body):
    compute = COMPUTE.get((model, body.signature), lambda x: {"y": x})
    return compute(**body.inputs)


def body_of(message):
    return (
        message["body"].encode()
        if "body" in message
        else base64.b64decode(message.get("body_b64", ""))
    )


def in_recorded_order(outputs, answer):
    """Sort outputs as the recorded answer has them: the official server's order is by chance."""
    if len(outputs) == 1 or b'"error": ' in answer:
        return outputs
    value = json.loads(answer)
    return {alias: outputs[alias] for alias in value.get("outputs") or value["predictions"][0]}


@pytest.mark.parametrize(("model", "request_", "response"), recorded())
def test_recorded_request_gets_the_recorded_answer(model, request_, response):
    known = signatures(model)
    expected = body_of(response)
    try:
        body = PredictBody(body_of(request_), lambda name: known[name].inputs, ACCOUNT)
        outputs = in_recorded_order(computed(model, body), expected)
        answer = json_writer.predictions(outputs, row_format=body.row_format)
        failed = False
    except ServingError as error:
        answer = json_writer.error_body(error.message)
        failed = True
    assert answer == expected
    assert failed == (response["status"] != 200)


# Requests


def info(**types):
    signature = protos.SignatureDef()
    for alias, dtype in types.items():
        signature.inputs[alias].dtype = dtypes.by_name(dtype).number
    return lambda name: signature.inputs


def parse(document, **types):
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    return PredictBody(text, info(**types or {"x": "float"}), ACCOUNT)


def refusal(document, **types):
    with pytest.raises(ServingError) as caught:
        parse(document, **types)
    return caught.value


@pytest.mark.parametrize("form", ["instances", "inputs"])
@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("float", [[1.5, 2], [3, -4]]),
        ("double", [0.1, 1e300]),
        ("int32", [-(2**31), 2**31 - 1]),
        ("int64", [-(2**63), 2**63 - 1]),
        ("uint32", [0, 2**32 - 1]),
        ("uint64", [0, 2**64 - 1]),
        ("uint8", [[[0], [255]]]),
        ("int8", [-128, 127]),
        ("int16", [-(2**15), 2**15 - 1]),
        ("bool", [True, False]),
        ("float", [[], []]),
    ],
)
def test_lists_become_the_array_they_spell(form, dtype, value):
    array = parse({form: value}, x=dtype).inputs["x"]
    expected = np.array(value, dtypes.by_name(dtype).numpy)
    assert array.dtype == expected.dtype
    np.testing.assert_array_equal(array, expected, strict=True)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("int32", 2**31),
        ("int32", -(2**31) - 1),
        ("int64", 2**63),
        ("int64", -(2**63) - 1),
        ("uint32", 2**32),
        ("uint32", -1),
        ("uint64", -1),
        ("uint8", 2**31),
        ("int8", -(2**31) - 1),
        ("int32", True),
        ("bool", 1),
        ("float", True),
        ("string", 1),
    ],
)
def test_value_that_the_type_cannot_hold_is_refused(dtype, value):
    error = refusal({"inputs": [value]}, x=dtype)
    assert error.code is Code.INVALID_ARGUMENT
    assert error.message.endswith(f"is not of expected type: {dtype}")


@pytest.mark.parametrize(
    ("dtype", "value", "expected"),
    [("uint8", 256, 0), ("uint8", -1, 255), ("int8", 128, -128), ("int16", 32768, -32768)],
)
def test_small_integers_wrap_around(dtype, value, expected):
    assert parse({"inputs": [value]}, x=dtype).inputs["x"].tolist() == [expected]


@pytest.mark.parametrize("value", [-(2**31), 2**31 - 1])
def test_small_integers_wrap_around_within_32_bits(value):
    found = parse({"inputs": [value]}, x="uint8").inputs["x"]
    assert found.tolist() == [value % 256]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (
            {"inputs": [[1], 2]},
            "JSON Value: 2 found at incorrect level: 2 in the JSON DOM. Expected at level: 2",
        ),
        ({"inputs": [1, [2]]}, "Encountered list at unexpected level: 1 expected < 1"),
        (
            {"inputs": [[1, 2], [3]]},
            "Encountered list at unexpected size: 1 at level: 1 expected size: 2",
        ),
    ],
)
def test_lists_of_uneven_depth_or_length_are_refused_where_they_are(document, message):
    assert refusal(document).message == message


def test_unnamed_rows_cannot_fill_two_inputs():
    assert refusal({"instances": [1, 2]}, x="float", y="float").message == (
        "instances is a plain list, but expecting list of objects as multiple input tensors "
        "required as per tensorinfo_map"
    )


def test_first_of_two_members_with_one_key_counts():
    text = b'{"inputs": {"x": [1], "y": [5], "x": [2]}, "inputs": 3}'
    found = parse(text, x="float", y="float").inputs
    assert {alias: array.tolist() for alias, array in found.items()} == {"x": [1], "y": [5]}


def test_several_inputs_are_gathered_from_named_rows():
    rows = [{"x": [1, 2], "s": "a"}, {"x": [3, 4], "s": {"b64": "/w=="}}]
    found = parse({"instances": rows}, x="int32", s="string").inputs
    assert found["x"].tolist() == [[1, 2], [3, 4]]
    assert found["s"].tolist() == [b"a", b"\xff"]


def test_scalar_input_keeps_rank_zero_in_the_column_form():
    assert parse({"inputs": 4.5}).inputs["x"].shape == ()


@pytest.mark.parametrize(
    ("text", "expected"), [("YWI=", b"ab"), ("YWI", b"ab"), ("", b""), ("/+8=", b"\xff\xef")]
)
def test_base64_is_decoded_with_or_without_padding(text, expected):
    found = parse({"inputs": [{"b64": text}]}, x="string").inputs["x"]
    assert found.tolist() == [expected]


def test_string_that_is_no_utf8_passes_as_it_is():
    found = parse(b'{"inputs": ["a\xff\xc3b"]}', x="string").inputs["x"]
    assert found.tolist() == [b"a\xff\xc3b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "JSON Parse error: The document is empty"),
        (b"\xff", "JSON Parse error: Invalid value. at offset: 0"),
        (b"[" * 5000, "JSON Parse error: Invalid value. at offset: 5000"),
        (b"\xff[" + b"[" * 5000, "JSON Parse error: Invalid value. at offset: 0"),
        (b'["\xff",' + b"[" * 200000, "JSON Parse error: Invalid value. at offset: 200005"),
        (
            b'{"inputs": ' + b"[" * 300 + b"1" + b"]" * 300 + b"}",
            "tensor parsing error: x",
        ),
    ],
    ids=["empty", "no-utf8", "deep-open", "no-utf8-and-deep", "no-utf8-deep", "many-dimensions"],
)
def test_body_that_cannot_be_read_is_refused(text, message):
    error = refusal(text)
    assert (error.code, error.message) == (Code.INVALID_ARGUMENT, message)


NUMBERS = st.floats(width=32) | st.integers(-(2**24), 2**24)


@given(st.lists(st.lists(NUMBERS, min_size=2, max_size=2), min_size=1, max_size=4))
def test_regular_lists_read_alike_on_the_quick_and_on_the_careful_way(rows):
    quick = parse({"inputs": rows}).inputs["x"]
    careful = np.array([[float(item) for item in row] for row in rows], np.float32)
    np.testing.assert_array_equal(quick, careful, strict=True)


# Echoes


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, "1"),
        (1.0, "1.0"),
        (None, "null"),
        ("é", '"é"'),
        ([1, "a"], '[1, "a"]'),
        ({"a": [1, 2]}, '{\n    "a": [1, 2]\n}'),
        (float("nan"), ""),
        ([float("inf")], "["),
        ([1, float("nan"), 2], "[1, "),
        ({"a": float("nan")}, '{\n    "a": '),
        ("x" * 300, '"' + "x" * 300 + '"'),
        (["x" * 300], '["' + "x" * 300 + '"'),
        (["é" * 126, "y", "z"], '["' + "é" * 126 + '", "y"'),
        ([], "[]"),
        ([[[]], {}], "[[[]], {}]"),
        (
            [{"a": {"b": []}}],
            '[{\n        "a": {\n            "b": []\n        }\n    }]',
        ),
        ('\x00\x1f\x7f"\\/', '"\\u0000\\u001F\x7f\\"\\\\/"'),
        ("\udcff", '"\udcff"'),
    ],
)
def test_echo_prints_as_rapidjson_until_the_limit_has_been_reached(value, expected):
    assert json_reader.echo(value) == expected


# Answers


@pytest.mark.parametrize("width", [32, 64])
@given(data=st.data())
def test_printed_floats_read_back_exactly(width, data):
    kind = {32: np.float32, 64: np.float64}[width]
    number = kind(data.draw(st.floats(width=width, allow_nan=False, allow_subnormal=False)))
    text = json_writer.predictions({"y": np.array([number])}, row_format=False)
    (found,) = json.loads(text)["outputs"]
    assert kind(found) == number
    assert isinstance(found, float)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.float32(0.1), "0.1"),
        (np.float32(3.14159265), "3.14159274"),
        (np.float32(1e6), "1e+06"),
        (np.float32(1), "1.0"),
        (np.float32(-0.0), "-0.0"),
        (np.float32(1.17549435e-38), "1.17549435e-38"),
        (np.float32(1.1e-38), "0.0"),
        (np.float32(3.4028235e38), "3.40282347e+38"),
        (np.float64(99999.99), "99999.990000000005"),
        (np.float64(5e-324), "0.0"),
        (np.float64(2.2250738585072014e-308), "2.2250738585072014e-308"),
        (np.float32("nan"), "NaN"),
        (np.float64("inf"), "Infinity"),
        (np.float64("-inf"), "-Infinity"),
        (np.int64(-(2**63)), str(-(2**63))),
        (np.uint64(2**64 - 1), str(2**64 - 1)),
        (np.bool_(True), "true"),
        (np.bool_(False), "false"),
    ],
)
def test_scalar_is_printed_as(value, text):
    answer = json_writer.predictions({"y": np.asarray(value)}, row_format=False)
    assert answer.decode() == '{\n    "outputs": ' + text + "\n}"


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({"y": np.float32(1)}, "Tensor name: y has no shape information "),
        (
            {"y": np.zeros(2), "z": np.zeros(3)},
            "Tensor name: y has inconsistent batch size: 2 expecting: 3",
        ),
    ],
)
def test_rows_need_one_batch_size(outputs, message):
    arrays = {alias: np.asarray(value) for alias, value in outputs.items()}
    with pytest.raises(ServingError) as caught:
        json_writer.predictions(arrays, row_format=True)
    assert (caught.value.code, caught.value.message) == (Code.INVALID_ARGUMENT, message)


@pytest.mark.parametrize("dtype", ["complex64", "complex128", "half", "uint16"])
@pytest.mark.parametrize("row_format", [True, False])
def test_type_that_json_cannot_carry_is_refused(dtype, row_format):
    value = np.zeros(2, {"half": "float16"}.get(dtype, dtype))
    with pytest.raises(ServingError) as caught:
        json_writer.predictions({"y": value}, row_format=row_format)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert caught.value.message == f"Failed to write JSON value for tensor type: {dtype}"


def test_type_that_json_cannot_carry_matters_to_nobody_without_a_value():
    answer = json_writer.predictions({"y": np.zeros((0, 2), np.complex64)}, row_format=False)
    assert json.loads(answer) == {"outputs": []}


def test_output_names_are_escaped():
    answer = json_writer.predictions({'a"b': np.zeros(1), "é": np.zeros(1)}, row_format=True)
    assert json.loads(answer) == {"predictions": [{'a"b': 0.0, "é": 0.0}]}


def test_bytes_within_a_row_are_indented_by_their_depth():
    rows = np.empty((1, 2), object)
    rows[:] = b"a"
    answer = json_writer.predictions({"x_bytes": rows}, row_format=True)
    assert answer.decode().splitlines() == [
        "{",
        '    "predictions": [[{',
        '                "b64": "YQ=="',
        "            }, {",
        '                "b64": "YQ=="',
        "            }]",
        "    ]",
        "}",
    ]


def test_bytes_within_a_named_column_are_indented_by_their_depth():
    column = np.empty(1, object)
    column[:] = [b"a"]
    answer = json_writer.predictions({"x_bytes": column, "y": np.zeros(1)}, row_format=False)
    assert answer.decode().splitlines() == [
        "{",
        '    "outputs": {',
        '        "x_bytes": [',
        "            {",
        '                "b64": "YQ=="',
        "            }",
        "        ],",
        '        "y": [',
        "            0.0",
        "        ]",
        "    }",
        "}",
    ]


@pytest.mark.parametrize(
    ("value", "rows"),
    [
        (np.arange(12).reshape(2, 2, 3), "[[0, 1, 2], [3, 4, 5]], [[6, 7, 8], [9, 10, 11]]"),
        (np.zeros((1, 1, 1, 1), np.int8), "[[[0]]]"),
        (np.zeros((2, 2, 0)), "[[], []], [[], []]"),
        (np.zeros((2, 0, 2)), "[], []"),
        (np.zeros((0, 2)), ""),
    ],
)
def test_rows_of_any_rank_are_printed_on_one_line(value, rows):
    answer = json_writer.predictions({"y": value}, row_format=True)
    end = "\n    ]\n}" if len(value) else "]\n}"
    assert answer.decode() == '{\n    "predictions": [' + rows + end


def test_error_message_that_holds_raw_bytes_passes_them():
    assert json_writer.error_body("a\udcff\n") == b'{\n    "error": "a\xff\\n"\n}'


def test_deep_tensor_that_is_looked_at_leaf_by_leaf_costs_no_step_per_level():
    def steps(depth):
        body = b'{"inputs": ' + b"[" * depth + b"1," * 5000 + b'"no"' + b"]" * depth + b"}"
        info = {"x": protos.TensorInfo(name="x:0", dtype=1)}
        started_s = time.process_time()
        with pytest.raises(ServingError, match="not of expected type"):
            PredictBody(body, lambda _: info, ACCOUNT)
        return time.process_time() - started_s

    assert steps(250) < 20 * steps(1)
