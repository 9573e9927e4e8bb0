"""JSON as RapidJSON 1.1.0 reads and prints it: what it says of a fault, and what it echoes.

The expectations were given by that release itself, with the flags that
tensorflow_serving/util/json_tensor.cc sets.
"""

import contextlib
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfserve_kit import protos
from tfserve_kit.embedded import json_reader
from tfserve_kit.embedded.json_reader import (
    Fault,
    PredictBody,
    few_numbers,
    members,
    parse_object,
    regular,
)
from tfserve_kit.embedded.json_writer import echo
from tfserve_kit.embedded.ledger import Call
from tfserve_kit.embedded.status import Code, ServingError
from tfserve_kit.tensors import dtypes

# Body, RapidJSON's words, and where it found the fault.
FAULTS = [
    (b" ", "The document is empty.", 1),
    (b"\n\t\r ", "The document is empty.", 4),
    (b"\x00", "The document is empty.", 0),
    (b"}", "The document is empty.", 0),
    (b"]", "The document is empty.", 0),
    (b",", "The document is empty.", 0),
    (b":", "The document is empty.", 0),
    (b"{", "Missing a name for object member.", 1),
    (b"[", "Invalid value.", 1),
    (b"{]", "Missing a name for object member.", 1),
    (b"[}", "Invalid value.", 1),
    (b'{"a"', "Missing a colon after a name of object member.", 4),
    (b'{"a":', "Invalid value.", 5),
    (b'{"a":}', "Invalid value.", 5),
    (b'{"a":,', "Invalid value.", 5),
    (b'{"a":1', "Missing a comma or '}' after an object member.", 6),
    (b'{"a":1,', "Missing a name for object member.", 7),
    (b'{"a":1,}', "Missing a name for object member.", 7),
    (b'{"a":1 "b":2}', "Missing a comma or '}' after an object member.", 7),
    (b'{"a" 1}', "Missing a colon after a name of object member.", 5),
    (b"{'a':1}", "Missing a name for object member.", 1),
    (b"{a:1}", "Missing a name for object member.", 1),
    (b"{1:1}", "Missing a name for object member.", 1),
    (b"{,}", "Missing a name for object member.", 1),
    (b"[,1]", "Invalid value.", 1),
    (b"[1,]", "Invalid value.", 3),
    (b"[1,,2]", "Invalid value.", 3),
    (b"[1 2]", "Missing a comma or ']' after an array element.", 3),
    (b"[1:2]", "Missing a comma or ']' after an array element.", 2),
    (b"[1}", "Missing a comma or ']' after an array element.", 2),
    (b'["a"', "Missing a comma or ']' after an array element.", 4),
    (b'["a', "Missing a closing quotation mark in string.", 3),
    (b'["a\\', "Invalid escape character in string.", 3),
    (b'["a\x00b"]', "Missing a closing quotation mark in string.", 3),
    (b'["a\x01b"]', "Invalid escape character in string.", 3),
    (b'["a\nb"]', "Invalid escape character in string.", 3),
    (b'["\\q"]', "Invalid escape character in string.", 2),
    (b'["\\\'"]', "Invalid escape character in string.", 2),
    (b'["\\u12"]', "Incorrect hex digit after \\u escape in string.", 2),
    (b'["\\u12g4"]', "Incorrect hex digit after \\u escape in string.", 2),
    (b'["\\ud800"]', "The surrogate pair in string is invalid.", 2),
    (b'["\\ud800\\n"]', "The surrogate pair in string is invalid.", 2),
    (b'["\\ud800\\u0041"]', "The surrogate pair in string is invalid.", 2),
    (b'["\\ud83d\\u00zz"]', "Incorrect hex digit after \\u escape in string.", 2),
    (b"[nul]", "Invalid value.", 4),
    (b"[nulL]", "Invalid value.", 4),
    (b"[tRue]", "Invalid value.", 2),
    (b"[falsy]", "Invalid value.", 5),
    (b"[None]", "Invalid value.", 2),
    (b"[undefined]", "Invalid value.", 1),
    (b"[+1]", "Invalid value.", 1),
    (b"[-]", "Invalid value.", 2),
    (b"[--1]", "Invalid value.", 2),
    (b"[.5]", "Invalid value.", 1),
    (b"[5.]", "Miss fraction part in number.", 3),
    (b"[5.e1]", "Miss fraction part in number.", 3),
    (b"[1e]", "Miss exponent in number.", 3),
    (b"[1e+]", "Miss exponent in number.", 4),
    (b"[1E-]", "Miss exponent in number.", 4),
    (b"[01]", "Missing a comma or ']' after an array element.", 2),
    (b"[-01]", "Missing a comma or ']' after an array element.", 3),
    (b"[0x10]", "Missing a comma or ']' after an array element.", 2),
    (b"[1_000]", "Missing a comma or ']' after an array element.", 2),
    (b"[1e309]", "Number too big to be stored in double.", 1),
    (b"[1e400]", "Number too big to be stored in double.", 1),
    (b"[-1e309]", "Number too big to be stored in double.", 1),
    (b"[Nan]", "Invalid value.", 3),
    (b"[nan]", "Invalid value.", 2),
    (b"[Inf", "Missing a comma or ']' after an array element.", 4),
    (b"[Infinit]", "Invalid value.", 8),
    (b"[Infi]", "Invalid value.", 5),
    (b"[inf]", "Invalid value.", 1),
    (b"[NaN.]", "Miss fraction part in number.", 5),
    (b"[NaNe]", "Miss exponent in number.", 5),
    (b"[-NaN", "Missing a comma or ']' after an array element.", 5),
    (b"[INF]", "Invalid value.", 2),
    (b"/*a*/[1]", "Invalid value.", 0),
    (b"[1,//a\n2]", "Invalid value.", 3),
    (b"\xef\xbb\xbf{", "Missing a name for object member.", 4),
    (b"\xef\xbb{", "Missing a name for object member.", 3),
    (b'\xbb\xbf{"a"}', "Missing a colon after a name of object member.", 6),
    (b"\xff", "Invalid value.", 0),
    (b'{"a\xff"}', "Missing a colon after a name of object member.", 5),
    (b'{"a":\xff}', "Invalid value.", 5),
    (b"[1\xff]", "Missing a comma or ']' after an array element.", 2),
    (b'["\xff', "Missing a closing quotation mark in string.", 3),
    (b"[\x0b1]", "Invalid value.", 1),
    (b"[\xc2\xa01]", "Invalid value.", 1),
    (b'"a', "Missing a closing quotation mark in string.", 2),
    (b'"\xc3\xa9', "Missing a closing quotation mark in string.", 3),
    (b"[1" + b"0" * 400 + b"]", "Number too big to be stored in double.", 1),
    (b'{"x": ' + b"[" * 5000, "Invalid value.", 5006),
]

# Body, and its first value as error texts quote it.
ECHOES = [
    (b"[1]//a", b"[1]"),
    (b'{"a":1}x', b'{\n    "a": 1\n}'),
    (b"1 2", b"1"),
    (b'{"a":1,"a":2}', b'{\n    "a": 1,\n    "a": 2\n}'),
    (b'{"a":{"b":[]}}', b'{\n    "a": {\n        "b": []\n    }\n}'),
    (
        b"[1.0,-0.0,-0,1e2,1E-7,123456789012345678901]",
        b"[1.0, -0.0, 0, 100.0, 1e-7, 123456789012345670000.0]",
    ),
    (
        b"[9223372036854775807,-9223372036854775808,18446744073709551615]",
        b"[9223372036854775807, -9223372036854775808, 18446744073709551615]",
    ),
    (
        b"[18446744073709551616,-9223372036854775809]",
        b"[18446744073709553000.0, -9223372036854776000.0]",
    ),
    (b"[1.8e308]", b"["),
    (b"[NaN,1]", b"["),
    (b"[1,Infinity]", b"[1, "),
    (
        b"[0.1,1e21,1e22,1e-6,1e-7,5e-324,1.7976931348623157e308]",
        b"[0.1, 1e21, 1e22, 0.000001, 1e-7, 5e-324, 1.7976931348623157e308]",
    ),
    (b'["\\u0000\\u001f\\u007f\\/\\b\\"\\\\"]', b'["\\u0000\\u001F\x7f/\\b\\"\\\\"]'),
    (b'["\\udc00"]', b'["\xed\xb0\x80"]'),
    (b'["\\ud83d\\ude00"]', b'["\xf0\x9f\x98\x80"]'),
    (b'["\xff\xc3"]', b'["\xff\xc3"]'),
    (b'{"":{"":""}}', b'{\n    "": {\n        "": ""\n    }\n}'),
    (b'[[],{},[{}],""]', b'[[], {}, [{}], ""]'),
    (b"[null,true,false]", b"[null, true, false]"),
    (b'["\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80"]', b'["\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80"]'),
    (b"\xef\xbb\xbf[1]", b"[1]"),
    (b"\xbf[1]", b"[1]"),
    (b"\t[1]\n\x00", b"[1]"),
    (b"[NInf]", b"["),
    (b"[-Inf]", b"["),
    (b"[1e-400,-1e-400]", b"[0.0, -0.0]"),
    (b"[0.3,2.675,1.005,123456.789e3]", b"[0.3, 2.675, 1.005, 123456789.0]"),
    (b'["' + b"x" * 254 + b'",1]', b'["' + b"x" * 254 + b'"'),
    (b'["' + b"x" * 252 + b'",1,2]', b'["' + b"x" * 252 + b'", 1'),
    (b'["' + b"x" * 300 + b'"]', b'["' + b"x" * 300 + b'"'),
]


@pytest.mark.parametrize(("body", "reason", "offset"), FAULTS)
def test_fault_is_named_as_rapidjson_names_it(body, reason, offset):
    with pytest.raises(Fault) as caught:
        json_reader.read_exactly(body)
    assert (caught.value.reason, caught.value.offset) == (reason, offset)
    with pytest.raises(ServingError) as refused:
        parse_object(body, Call.unbounded().account)
    assert refused.value.message == f"JSON Parse error: {reason} at offset: {offset}"


@pytest.mark.parametrize(("body", "expected"), ECHOES)
def test_value_is_echoed_as_rapidjson_prints_it(body, expected):
    text = echo(json_reader.read_exactly(body))
    assert text.encode("utf-8", "surrogateescape") == expected


@pytest.mark.parametrize(("body", "expected"), [each for each in ECHOES if b"{" not in each[1][:1]])
def test_body_that_is_no_object_is_quoted(body, expected):
    with pytest.raises(ServingError) as refused:
        parse_object(body, Call.unbounded().account)
    text = refused.value.message.encode("utf-8", "surrogateescape")
    assert text == b"JSON Value: " + expected + b" Is not object"


def test_members_keep_a_key_that_repeats_and_the_first_counts():
    fast = parse_object(b'{"a": 1, "b": 2, "a": 3}', Call.unbounded().account)
    slow = json_reader.read_exactly(b'{"a": 1, "b": 2, "a": 3}')
    for document in (fast, slow):
        assert document == {"a": 1, "b": 2}
        assert members(document) == [("a", 1), ("b", 2), ("a", 3)]
    assert members({"a": 1}) == [("a", 1)]


def test_large_body_that_is_no_json_is_refused_by_the_fast_parser(monkeypatch):
    monkeypatch.setattr("tfserve_kit.embedded.json_reader._MOST_READ_AGAIN_BYTES", 10)
    monkeypatch.setattr(json_reader, "read_exactly", pytest.fail)
    with pytest.raises(ServingError) as refused:
        parse_object(b'{"a": [1, 2, 3}', Call.unbounded().account)
    assert refused.value.message == (
        "JSON Parse error: Missing a comma or ']' after an array element. at offset: 14"
    )


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(values, st.booleans())
def test_json_of_any_shape_reads_as_it_was_written(value, ascii_only):
    body = json.dumps(value, ensure_ascii=ascii_only).encode()
    assert json_reader.read_exactly(body) == value


@given(st.floats(allow_nan=False))
def test_double_is_read_to_the_last_bits(value):
    found = json_reader.read_exactly(repr(value).replace("inf", "Infinity").encode())
    assert found == value or math.isclose(found, value, rel_tol=1e-15, abs_tol=1e-300)


@given(st.binary(max_size=40))
def test_any_bytes_are_read_or_refused(body):
    with contextlib.suppress(Fault):
        assert len(echo(json_reader.read_exactly(body))) < 1000


# Large regular arrays: read fast, and exactly as the general parser reads them.


ACCOUNT = Call.unbounded().account
DTYPES = ["float", "int8", "uint8", "int16", "int32", "int64", "uint32", "uint64"]
shapes = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple)


def info_of(dtype, *aliases):
    tensor = protos.TensorInfo(name="x:0", dtype=dtypes.by_name(dtype).number)
    return lambda name: dict.fromkeys(aliases or ["x"], tensor)


def general(body, info):
    """What the parser says that is responsible for everything else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_reader, "LEAST_BYTES", len(body) + 1)
        return PredictBody(body, info, ACCOUNT)


def same(body, dtype):
    """Return the array, if both parsers read the same; None where the fast one passes."""
    info = info_of(dtype)
    fast = json_reader.read_bulk(body, info)
    if fast is None:
        return None
    slow = general(body, info)
    assert (fast.signature, fast.row_format) == (slow.signature, slow.row_format)
    assert fast.inputs["x"].dtype == slow.inputs["x"].dtype
    np.testing.assert_array_equal(fast.inputs["x"], slow.inputs["x"])
    return fast.inputs["x"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["instances", "inputs"])
@given(data=st.data())
def test_every_readable_type_is_read_as_by_the_general_parser(dtype, layout, data):
    numpy = dtypes.by_name(dtype).numpy
    if numpy.kind == "f":
        numbers = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**63), 2**63)
    else:
        limits = np.iinfo(numpy)
        numbers = st.integers(int(limits.min), int(limits.max))
    shape = data.draw(shapes)
    flat = data.draw(st.lists(numbers, min_size=int(np.prod(shape)), max_size=int(np.prod(shape))))
    array = np.array(flat, object).reshape(shape)
    space = data.draw(st.sampled_from([None, 1]))
    body = json.dumps({layout: array.tolist()}, indent=space).encode()
    found = same(body, dtype)
    assert found is not None
    assert found.shape == shape


@given(st.recursive(st.integers(-9, 9), lambda inner: st.lists(inner, max_size=4), max_leaves=20))
def test_ragged_lists_are_left_to_the_general_parser(value):
    try:
        regular = np.array(value, np.int64)
    except ValueError:
        regular = None
    found = same(json.dumps({"inputs": value}).encode(), "int64")
    assert (found is not None) == (regular is not None and regular.ndim > 0 and regular.size > 0)


@pytest.mark.parametrize(
    "body",
    [
        b'{"instances": [1, 2], "inputs": [3]}',
        b'{"instances": [[1, 2], [3]], "x": 1}',
        b'{"instances": [1, 2], "signature_name": 5}',
        b'{"instances": [1, "2"]}',
        b'{"instances": [1, true]}',
        b'{"instances": [1, null]}',
        b'{"instances": [1, NaN]}',
        b'{"instances": [{"x": 1}]}',
        b'{"instances": 5}',
        b'{"instances": []}',
        b'{"instances": [[], []]}',
        b'{"instances": [01]}',
        b'{"instances": [1,]}',
        b'{"instances": [1]} and more',
        b'{"instances": [1, 2',
        b'{"instances": [1e400]}',
        b'{"instances": [99999999999999999999999]}',
        b'{"signature_name": "[1]", "instances": [2]}',
        b'{"instances": [2], "signature_name": "]"}',
        b'[{"instances": [1]}]',
        b"\xff",
        b"",
    ],
)
def test_anything_else_is_left_to_the_general_parser(body):
    assert json_reader.read_bulk(body, info_of("float")) is None


@pytest.mark.parametrize(
    ("dtype", "number"),
    [("int32", 2**31), ("uint32", -1), ("uint64", -1), ("int64", 2**63), ("uint8", 2**31),
     ("int8", -(2**31) - 1), ("int32", 1.0)],
)  # fmt: skip
def test_numbers_the_type_cannot_be_are_left_to_the_general_parser(dtype, number):
    body = json.dumps({"instances": [1, number]}).encode()
    assert json_reader.read_bulk(body, info_of(dtype)) is None


def test_other_types_and_several_inputs_are_left_to_the_general_parser():
    body = b'{"instances": [1]}'
    assert json_reader.read_bulk(body, info_of("bool")) is None
    assert json_reader.read_bulk(body, info_of("string")) is None
    assert json_reader.read_bulk(body, info_of("double")) is None
    assert json_reader.read_bulk(body, info_of("float", "x", "y")) is None
    assert json_reader.read_bulk(body, info_of("float")) is not None


def test_signature_is_the_one_asked_for_and_an_unknown_one_is_refused_at_once():
    body = b'{"instances": [1], "signature_name": "other"}'
    assert json_reader.read_bulk(body, info_of("float")).signature == "other"
    assert (
        json_reader.read_bulk(b'{"inputs": [1]}', info_of("float")).signature == "serving_default"
    )

    def unknown(name):
        raise ServingError(Code.INVALID_ARGUMENT, name)

    with pytest.raises(ServingError, match="other"):
        json_reader.read_bulk(body, unknown)


def test_deep_lists_are_left_to_the_general_parser():
    for depth in (33, 2000):
        body = b'{"inputs": ' + b"[" * depth + b"1" + b"]" * depth + b"}"
        assert json_reader.read_bulk(body, info_of("float")) is None


def test_large_requests_take_the_fast_way_and_the_parser_serves_again():
    array = np.random.default_rng(1).random((1, 40, 40, 3), np.float32)
    body = json.dumps({"instances": array.tolist()}).encode()
    for _ in range(3):
        kept = json_reader.read_bulk(body, info_of("float")).inputs[
            "x"
        ]  # alive while the next is read
        np.testing.assert_array_equal(
            PredictBody(body, info_of("float"), ACCOUNT).inputs["x"], array
        )
    np.testing.assert_array_equal(kept, array)


# Short lists of numbers

WRITTEN = [
    b"1", b"-1", b"0", b"-0", b"1.5", b"-0.0", b"1e5", b"1E-5", b"255", b"256", b"-129",
    b"4294967296", b"9223372036854775808", b"18446744073709551615", b"18446744073709551616",
    b"1e39", b"1e308", b"1.7976931348623157e308", b"1e309", b"5e-324", b"1e-400",
    b"0.10000000149011612", b"1.00000005960464477539", b"123456789.123456789e-7", b"NaN", b"-NaN",
    b"Infinity", b"-Infinity", b"Inf", b"-Inf", b"01", b"1.", b".5", b"+1", b"1e", b"0x1", b"null",
    b"true", b"false", b"{}", b"[]", b"nan", b'"1"',
]  # fmt: skip
NUMBERS = st.sampled_from(WRITTEN) | (
    st.floats(width=32) | st.floats() | st.integers(-(2**70), 2**70)
).map(lambda number: repr(number).encode())
LISTS = st.recursive(
    NUMBERS,
    lambda inner: (st.lists(inner, max_size=3) | st.tuples(inner).map(lambda one: one * 2)).map(
        lambda items: b"[" + b", ".join(items) + b"]"
    ),
    max_leaves=6,
)
BODIES = st.builds(
    lambda before, key, value, after: before + b"{" + key + b":" + value + b"}" + after,
    st.sampled_from([b"", b" ", b"\xef\xbb\xbf", b"[", b"\x00"]),
    st.sampled_from([b'"instances"', b'"inputs"', b' "instances" ', b'"\\u0069nputs"', b'"other"',
                     b"instances", b'"instances": 1, "instances"']),
    LISTS,
    st.sampled_from([b"", b" ", b"\n", b"}", b"x", b",", b"\x00", b"\xff", b' {"instances": [1]}']),
)  # fmt: skip


def slowly(body, info):
    """What is read with no short cut at all: the inputs and layout, or why there are none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_reader, "_decode_unrepeated", json_reader._decode)
        patch.setattr(json_reader, "_quick", lambda *_: None)
        try:
            found = PredictBody(body, info, ACCOUNT)
        except ServingError as error:
            return error.code, error.message
    return found.row_format, found.inputs


@pytest.mark.parametrize("dtype", [*DTYPES, "double", "bool", "string", "half"])
@given(
    body=BODIES,
    at=st.none() | st.integers(0, 40),
    byte=st.sampled_from(b'"[]{}:,0123456789.eE-+ \x00n'),
    others=st.lists(BODIES, max_size=2),
)
def test_few_numbers_are_read_as_by_the_general_parser_or_not_at_all(dtype, body, at, byte, others):
    if at is not None and at < len(body):
        body = body[:at] + bytes([byte]) + body[at + 1 :]
    info, bodies = info_of(dtype), [body, *others]
    few = few_numbers(bodies)
    arrays = few and regular(few[1], dtypes.by_name(dtype))
    if arrays is None:
        return
    for array, each in zip(arrays, bodies, strict=True):
        row_format, expected = slowly(each, info)
        assert few[0] is row_format
        assert list(expected) == ["x"]
        assert array.dtype == expected["x"].dtype
        assert array.shape == expected["x"].shape
        assert array.tobytes() == expected["x"].tobytes()


@pytest.mark.parametrize(
    "bodies",
    [
        [b'{"instances": [1', b'2]},{"instances": [3]}'],
        [b'{"instances": [1]},{"instances": [2]}', b'{"instances": [3', b"4]}"],
        [b'{"instances": [1', b'{"instances": [2]}]}'],
        [b'{"instances": [1]}]', b'[{"instances": [2]}'],
        [b'{"instances": [1]},', b'{"instances": [2]}'],
        [b'{"instances": [1]},2', b'{"instances": [3]}'],
        [b'{"instances": [1]}', b""],
        [b'{"instances": [1]}', b'{"inputs": [2]}'],
    ],
)
def test_requests_that_are_whole_only_together_are_none(bodies):
    assert few_numbers(bodies) is None


@pytest.mark.parametrize("layout", ["instances", "inputs"])
def test_usual_short_requests_are_few_numbers(layout):
    for value in ([1.0, 2.0, 5.0], [[0.1, 3]], [[[1], [2]], [[3], [4]]]):
        row_format, read = few_numbers([json.dumps({layout: value}).encode()] * 2)
        found = regular(read, dtypes.by_name("float"))
        assert row_format is (layout == "instances")
        np.testing.assert_array_equal(found, np.float32([value] * 2))


@pytest.mark.parametrize(
    "body",
    [
        b'{"instances": [1], "signature_name": "a"}',
        b'{"instances": []}',
        b'{"inputs": 1}',
        b'{"instances": {"a": 1}}',
        b'["instances"]',
        b'{"instances": [1',
        b'{"instances": [\xff]}',
        b'{"instances": [' + b"1, " * 1000 + b"1]}",
        b"[" * 100_000,
        b"",
    ],
)
def test_other_requests_are_not(body):
    assert few_numbers([body]) is None
