"""JSON as RapidJSON 1.1.0 reads and prints it: what it says of a fault, and what it echoes.

The expectations were given by that release itself, with the flags that
tensorflow_serving/util/json_tensor.cc sets.
"""

import contextlib
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfserve_kit.embedded import json_reader
from tfserve_kit.embedded.json_reader import Fault, members, parse_object
from tfserve_kit.embedded.json_writer import echo
from tfserve_kit.embedded.ledger import Call
from tfserve_kit.embedded.status import ServingError

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
