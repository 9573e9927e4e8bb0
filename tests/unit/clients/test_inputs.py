"""Inputs held against a signature, and tf.Examples out of plain values."""

import json
import math
import warnings
from decimal import Decimal

import numpy as np
import pytest

from tfserve_kit.clients.inputs import check_filter, fit, to_examples, to_json, unchecked
from tfserve_kit.clients.results import Target
from tfserve_kit.errors import InvalidRequest
from tfserve_kit.savedmodel import Signature, TensorSpec
from tfserve_kit.tensors import dtypes

TARGET = Target("m")


def spec(dtype, shape=None):
    return TensorSpec("x:0", dtypes.by_name(dtype), shape)


def signature(optional=(), **inputs):
    outputs = {"y": spec("float"), "scores": spec("float")}
    return Signature("serving_default", inputs, outputs, "", frozenset(optional))


def one(value, dtype, shape=None):
    return fit({"x": value}, signature(x=spec(dtype, shape)), TARGET)["x"]


@pytest.mark.parametrize(
    ("value", "dtype", "expected"),
    [
        ([1, 2], "int32", np.int32([1, 2])),
        ([1, 2], "float", np.float32([1, 2])),
        ([0.1], "float", np.float32([0.1])),
        ([0.1], "half", np.float16([0.1])),
        ([0.1], "double", np.float64([0.1])),
        (np.float32([0.5]), "double", np.float64([0.5])),
        ([np.inf, -np.inf], "float", np.float32([np.inf, -np.inf])),
        ([True, False], "bool", np.array([True, False])),
        ([True, False], "int64", np.int64([1, 0])),
        ([0, 1], "bool", np.array([False, True])),
        ([255], "uint8", np.uint8([255])),
        ([-(2**31)], "int32", np.int32([-(2**31)])),
        (np.uint64([2**63]), "uint64", np.uint64([2**63])),
        ([1, 2], "complex64", np.complex64([1, 2])),
        ([0.5], "complex64", np.complex64([0.5])),
        ([], "int32", np.int32([])),
        ([[], []], "float", np.zeros((2, 0), np.float32)),
        (3, "int8", np.int8(3)),
    ],
)
def test_value_becomes_the_type_of_the_signature(value, dtype, expected):
    np.testing.assert_array_equal(one(value, dtype), expected, strict=True)


def test_nan_passes():
    assert np.isnan(one([np.nan], "float")[0])


def test_array_of_the_right_type_is_not_copied():
    sent = np.float32([1])
    assert one(sent, "float") is sent


@pytest.mark.parametrize(
    ("value", "dtype", "expected"),
    [
        ("a", "string", b"a"), (["a", "b"], "string", ["a", "b"]),
        ([b"a\0", b"\0"], "string", [b"a\0", b"\0"]), (np.array(["a"]), "string", ["a"]),
        ([["a"], ["b"]], "string", [["a"], ["b"]]),
    ],
)  # fmt: skip
def test_text_keeps_every_byte(value, dtype, expected):
    array = one(value, dtype)
    assert array.tolist() in (expected, "a")
    assert dtypes.by_numpy(array.dtype) is dtypes.STRING


@pytest.mark.parametrize(
    ("value", "dtype", "message", "remedy"),
    [
        ([2**31], "int32", "it is int64, the model takes int32, which cannot hold 2", "clip"),
        ([-1], "uint8", "which cannot hold -1", "clip"),
        ([-1], "uint64", "which cannot hold -1", "clip"),
        (np.int8([-1]), "uint8", "which cannot hold -1", "clip"),
        (np.uint64([2**63]), "int64", "which cannot hold 9223372036854775808", "clip"),
        ([2**24 + 1], "float", "which cannot hold 16777217", "scale"),
        ([2**63 - 1], "double", "which cannot hold", "scale"),
        ([2], "bool", "which cannot hold 2", "scale"),
        ([1e300], "float", "the model takes float, which cannot hold 1e+300", "scale"),
        ([70000.0], "half", "which cannot hold 70000", "scale"),
        ([1.0], "int32", "it is double, the model takes int32", "rint"),
        ([1.0], "bool", "it is double, the model takes bool", "rint"),
        ([1j], "float", "it is complex128, the model takes float", ".real"),
        (["1"], "float", "it is string, the model takes float", "float"),
        ([1], "string", "it is int64, the model takes string", "string"),
        ([[1], [2, 3]], "float", "inhomogeneous", "equal length"),
        ([np.datetime64("2020-01-01")], "float", "TensorFlow has no type", "float"),
    ],
)  # fmt: skip
def test_what_would_lose_something_is_refused_by_name(value, dtype, message, remedy):
    with pytest.raises(InvalidRequest) as caught:
        one(value, dtype)
    assert caught.value.message.startswith("cannot send the input 'x' of model 'm': ")
    assert message in caught.value.message
    assert remedy in caught.value.remedy


@pytest.mark.parametrize(
    ("shape", "wanted", "fits"),
    [
        ((), (), True), ((1,), (None,), True), ((0,), (None,), True), ((3, 4), (None, 4), True),
        ((1,), (), False), ((3, 5), (None, 4), False), ((4,), (None, 4), False),
        ((4, 3), (4, 3), True), ((4, 2), (4, 3), False), ((4, 3, 1), (4, 3), False),
    ],
)  # fmt: skip
def test_shape(shape, wanted, fits):
    assert TensorSpec("x:0", None, wanted).takes(shape) is fits
    if fits:
        assert one(np.zeros(shape, np.float32), "float", wanted).shape == shape
        return
    with pytest.raises(InvalidRequest) as caught:
        one(np.zeros(shape, np.float32), "float", wanted)
    assert f"its shape is {list(shape)}, the model takes {spec('float', wanted)}" in str(
        caught.value
    )


def test_shape_of_any_rank_is_not_looked_at():
    assert one(np.zeros((1, 2, 3, 4), np.float32), "float").ndim == 4


def test_forgotten_batch_axis_is_told():
    with pytest.raises(InvalidRequest) as caught:
        one(np.zeros((4,), np.float32), "float", (None, 4))
    assert "numpy.newaxis" in caught.value.remedy


def test_array_alone_is_the_one_input_that_is_needed():
    both = signature(a=spec("float"), b=spec("float"), optional={"b"})
    assert list(fit([1.0], both, TARGET)) == ["a"]
    assert list(fit([1.0], signature(x=spec("float"), optional={"x"}), TARGET)) == ["x"]
    with pytest.raises(InvalidRequest, match="has 2 inputs"):
        fit([1.0], signature(a=spec("float"), b=spec("float")), TARGET)


def test_missing_and_unknown_inputs_are_named():
    both = signature(image=spec("float"), mask=spec("float"))
    with pytest.raises(InvalidRequest, match="also needs the inputs mask"):
        fit({"image": [1.0]}, both, TARGET)
    with pytest.raises(InvalidRequest) as caught:
        fit({"images": [1.0], "mask": [1.0]}, both, TARGET)
    assert caught.value.remedy == "did you mean image?"


def test_inputs_with_defaults_may_be_missing_where_the_protocol_allows_it():
    both = signature(a=spec("float"), b=spec("float"), optional={"b"})
    assert list(fit({"a": [1.0]}, both, TARGET)) == ["a"]
    with pytest.raises(InvalidRequest, match="has defaults for the inputs b, but not over REST"):
        fit({"a": [1.0]}, both, TARGET, takes_defaults=False)
    with pytest.raises(InvalidRequest, match="also needs the inputs a"):
        fit({"b": [1.0]}, both, TARGET)


def test_type_that_cannot_travel_is_left_to_the_server():
    opaque = TensorSpec("x:0", None, None)
    assert fit({"x": [1.0]}, signature(x=opaque), TARGET)["x"].dtype == np.float64


def test_outputs_are_looked_up_by_name():
    check_filter(["y"], signature(), TARGET)
    with pytest.raises(InvalidRequest, match="no output 'score'") as caught:
        check_filter(["y", "score"], signature(), TARGET)
    assert caught.value.remedy == "did you mean scores?"


def test_unchecked_inputs_need_names():
    assert unchecked({"x": 1}) == {"x": 1}
    with pytest.raises(InvalidRequest, match="no name"):
        unchecked([1])


MASKED = np.ma.masked_array([1.0, 2.0], mask=[False, True])


@pytest.mark.parametrize(
    "value",
    [
        MASKED,
        np.ma.masked_less([1, -1], 0),
        [1.0, np.ma.masked],
        [[1.0, 2.0], [3.0, np.ma.masked]],
        [MASKED, MASKED],
        (MASKED,),
    ],
)
def test_masked_values_are_refused(value):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's own, where it makes NaN of them
        with pytest.raises(InvalidRequest, match="some of its values are masked"):
            one(value, "float")


def test_masked_values_are_refused_where_the_signature_is_not_looked_at():
    with pytest.raises(InvalidRequest, match="'x': some of its values are masked"):
        unchecked({"x": MASKED})
    assert unchecked({"x": MASKED.filled(0)})["x"].tolist() == [1, 0]


def test_array_that_masks_nothing_is_an_array():
    found = one(np.ma.masked_array([1.0, 2.0]), "float")
    assert type(found) is np.ndarray and found.tolist() == [1, 2]
    assert np.isnan(one([np.nan, 1.0], "float")[0])


@pytest.mark.parametrize(
    ("items", "dtype", "expected"),
    [
        ([1, 2], "int32", [1, 2]),
        ([1, 2.5], "float", [1, 2.5]),
        ([True, False], "bool", [True, False]),
        ([[1], [2]], "int64", [[1], [2]]),
        (["a", b"b"], "string", ["a", b"b"]),
        ([1 + 2j], "complex64", [1 + 2j]),
        ([2**63], "uint64", [2**63]),
        ([], "string", []),
    ],
)
def test_object_array_is_what_it_holds(items, dtype, expected):
    assert one(np.array(items, object), dtype).tolist() == expected


@pytest.mark.parametrize(
    ("items", "dtype", "told"),
    [
        ([1, None], "float", "it holds None, of type NoneType"),
        (["a", None], "string", "it holds None, of type NoneType"),
        (["a", 1], "string", "it holds 1, of type int"),
        (["a", float("nan")], "string", "it holds nan, of type float"),
        ([2**80], "int64", "it holds 1208925819614629174706176"),
        ([Decimal(1)], "float", "of type Decimal"),
        ([[1], [1, 2]], "int64", "inhomogeneous"),
        ([[1], [2]], "int64", "it holds [1], of type list"),
        ([1, 2], "string", "it is int64, the model takes string"),
        (["a"], "float", "it is string, the model takes float"),
        ([300], "uint8", "which cannot hold 300"),
        (["\ud800"], "string", "surrogates not allowed"),
    ],
)
def test_object_array_is_refused_for_what_it_holds(items, dtype, told):
    array = np.empty(len(items), object)
    array[:] = items
    with pytest.raises(InvalidRequest) as caught:
        one(array, dtype)
    assert told in caught.value.message


@pytest.mark.parametrize(
    ("value", "kind", "values"),
    [
        (1, "int64_list", [1]), (True, "int64_list", [1]), (1.5, "float_list", [1.5]),
        ([1, 2], "int64_list", [1, 2]), (np.float32([1, 2]), "float_list", [1, 2]),
        ("a", "bytes_list", [b"a"]), (b"a\0", "bytes_list", [b"a\0"]),
        (["a", b"b\0"], "bytes_list", [b"a", b"b\0"]), (np.array(["a"]), "bytes_list", [b"a"]),
        ([], "float_list", []),
    ],
)  # fmt: skip
def test_feature_has_the_list_of_its_kind(value, kind, values):
    (example,) = to_examples([{"f": value}])
    feature = example.features.feature["f"]
    assert feature.WhichOneof("kind") == (kind if values else None)
    assert list(getattr(feature, kind).value) == values
    assert to_examples([example.SerializeToString()]) == [example]


def test_example_as_json_keeps_kinds_apart():
    (example,) = to_examples([{"n": 1, "x": 1.0, "b": b"\xff"}])
    assert json.dumps(to_json(example), sort_keys=True) == (
        '{"b": [{"b64": "/w=="}], "n": [1], "x": [1.0]}'
    )


@pytest.mark.parametrize("row", [{"f": 1j}, {"f": [[1]]}, {"f": [None]}, {"f": 2**70}, [], b"\xff"])
def test_row_that_is_no_example_is_named(row):
    with pytest.raises(InvalidRequest, match="example 1"):
        to_examples([{"f": 1}, row])


def test_no_examples_are_refused():
    with pytest.raises(InvalidRequest, match="no examples"):
        to_examples([])


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (1e39, "beyond float32"),
        ([0.5, -1e39], "beyond float32"),
        (np.ma.masked_array([1.0, 2.0], mask=[False, True]), "are masked"),
        ("\ud800", "surrogates"),
    ],
)
def test_values_that_would_become_others_are_no_features(value, told):
    with pytest.raises(InvalidRequest, match=told):
        to_examples([{"f": value}])


def test_infinity_that_is_meant_is_a_feature():
    (example,) = to_examples([{"f": [math.inf, 1.0]}])
    assert list(example.features.feature["f"].float_list.value) == [math.inf, 1.0]
