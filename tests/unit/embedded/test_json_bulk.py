"""Large regular arrays: read fast, and exactly as the general parser reads them."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfserve_kit import protos
from tfserve_kit.embedded import json_reader
from tfserve_kit.embedded.json_reader import PredictBody
from tfserve_kit.embedded.ledger import Call
from tfserve_kit.embedded.status import Code, ServingError
from tfserve_kit.tensors import dtypes

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
