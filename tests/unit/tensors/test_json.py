"""Arrays as JSON values of the REST API."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tfserve_kit.tensors import TensorError, dtypes
from tfserve_kit.tensors.json import answer, from_value, to_value

FLOAT, INT32, INT64 = (dtypes.by_name(name) for name in ("float", "int32", "int64"))
STRING = dtypes.STRING
# The dtypes that JSON can carry.
CARRIED = [row for row in dtypes.TABLE if row is not STRING and row.numpy.kind != "c"]


def strings(items, shape):
    array = np.empty(len(items), object)
    array[:] = items
    return array.reshape(shape)


@st.composite
def arrays(draw):
    """Draw a dtype and an array of it, without empty axes: JSON lists cannot tell those apart."""
    row = draw(st.sampled_from(CARRIED))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=1, max_side=3))
    if row is dtypes.BFLOAT16:
        return row, draw(hnp.arrays(np.int8, shape)).astype(row.numpy)
    return row, draw(hnp.arrays(row.numpy, shape))


class TestRoundTrip:
    @given(arrays())
    def test_numbers_survive_the_text(self, drawn):
        row, array = drawn
        found = from_value(json.loads(json.dumps(to_value(array))), row)
        assert (found.dtype, found.shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(found, array)

    @given(st.lists(st.binary(max_size=6), min_size=6, max_size=6))
    def test_bytes_survive_the_text(self, items):
        array = strings(items, (2, 3))
        for dtype in (STRING, None):
            found = from_value(json.loads(json.dumps(to_value(array))), dtype)
            assert (found.dtype, found.shape) == (np.dtype(object), (2, 3))
            assert found.ravel().tolist() == items

    @pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1)])
    def test_trailing_zero_bytes_stay(self, shape):
        array = strings([b"a\0\0"], shape)
        found = from_value(to_value(array), STRING)
        assert found.shape == shape
        assert found.ravel()[0] == b"a\0\0"


class TestToValue:
    def test_bytes_become_b64_objects_and_text_stays_text(self):
        assert to_value(strings([b"\xff\0", "é"], (2,))) == [{"b64": "/wA="}, "é"]

    def test_special_numbers_become_the_tokens_of_the_rest_api(self):
        values = to_value(np.array([np.nan, np.inf, -np.inf], np.float32))
        assert json.dumps(values) == "[NaN, Infinity, -Infinity]"

    @pytest.mark.parametrize("array", [np.array([1j]), np.array(1, np.complex64)])
    def test_complex_is_refused_with_a_remedy(self, array):
        with pytest.raises(TypeError, match="use gRPC") as caught:
            to_value(array)
        assert dtypes.by_numpy(array.dtype).name in str(caught.value)

    @pytest.mark.parametrize("item", [None, 3])
    def test_string_array_with_another_element_is_refused_naming_it(self, item):
        with pytest.raises(TypeError, match=str(item)):
            to_value(strings([b"x", item], (2,)))


class TestFromValue:
    @pytest.mark.parametrize(
        ("value", "dtype", "array"),
        [
            ([1, 2], FLOAT, np.array([1, 2], np.float32)),
            ([1.0, 2.0], INT32, np.array([1, 2], np.int32)),
            (3, INT64, np.array(3)),
            ([1, 2.5], None, np.array([1, 2.5])),
            ([True], None, np.array([True])),
            ([], INT32, np.array([], np.int32)),
            ([[], []], FLOAT, np.zeros((2, 0), np.float32)),
            ([], STRING, np.array([], object)),
            (2**64 - 1, dtypes.by_name("uint64"), np.array(2**64 - 1, np.uint64)),
            ([0, 2**63 + 1], dtypes.by_name("uint64"), np.array([0, 2**63 + 1], np.uint64)),
            ([1e39, 1e-50], FLOAT, np.array([np.inf, 0], np.float32)),
        ],
    )
    def test_value_becomes_an_array_of_the_dtype(self, value, dtype, array):
        found = from_value(value, dtype)
        assert (found.dtype, found.shape) == (array.dtype, array.shape)
        assert found.tolist() == array.tolist()

    def test_special_numbers_are_read(self):
        value = json.loads("[NaN, Infinity, -Infinity, -0.0]")
        found = from_value(value, FLOAT)
        np.testing.assert_array_equal(found, np.float32([np.nan, np.inf, -np.inf, 0]))
        assert np.signbit(found[3])

    @pytest.mark.parametrize(
        "value",
        [
            [[1], [1, 2]],
            [[1, 2], 3],
            [1, [2]],
            [["a"], ["a", "b"]],
            [["a"], "b"],
            ["a", ["b"]],
            [[], [{"b64": ""}]],
        ],
    )
    @pytest.mark.parametrize("dtype", [None, FLOAT, STRING])
    def test_ragged_lists_are_refused(self, value, dtype):
        with pytest.raises(TensorError):
            from_value(value, dtype)

    @pytest.mark.parametrize("text", ["?", "YQ", "YQ=", "YQ==\n", "_-8=", "é", "Y Q="])
    def test_bad_base64_is_refused_naming_it(self, text):
        with pytest.raises(TensorError) as caught:
            from_value([{"b64": text}])
        assert repr(text) in str(caught.value)
        assert "base64" in str(caught.value)

    @pytest.mark.parametrize("value", [{}, {"b64": 1}, {"b64": "YQ==", "x": 1}, {"B64": "YQ=="}])
    def test_other_objects_are_refused_naming_the_right_form(self, value):
        with pytest.raises(TensorError, match=r"'b64': '\.\.\.'") as caught:
            from_value([value])
        assert repr(value) in str(caught.value)

    @pytest.mark.parametrize(
        ("value", "dtype"),
        [
            (["1"], FLOAT),
            ([1], STRING),
            ([None], FLOAT),
            ([None], None),
            ([1, "a"], None),
            ([1.5], INT32),
            ([256], dtypes.by_name("uint8")),
            ([-1], dtypes.by_name("uint64")),
            ([2**63], INT64),
            ([2**64], INT64),
            ([float("nan")], INT32),
            ([float("inf")], INT64),
            ([1, 2.5], INT64),
            ([-1, 2**63 + 1], dtypes.by_name("uint64")),
            ([0.5, 2**63 + 1], dtypes.by_name("uint64")),
            ([0, 2**63 + 1], INT64),
            ([2], dtypes.by_name("bool")),
            (["\ud800"], STRING),
        ],
    )
    def test_value_of_another_type_is_refused(self, value, dtype):
        with pytest.raises(TensorError):
            from_value(value, dtype)

    def test_refusal_names_value_and_type(self):
        with pytest.raises(TensorError, match=r"\[1.5\].*int32"):
            from_value([1.5], INT32)


class TestAnswer:
    @pytest.mark.parametrize(
        "document",
        [
            {"outputs": [[1, 2]]},
            {"outputs": {"y": [[1, 2]]}},
            {"predictions": [[1, 2]]},
            {"predictions": [{"y": [1, 2]}]},
        ],
    )
    def test_single_output_is_found_with_and_without_its_name(self, document):
        found = answer(document, {"y": FLOAT})
        assert found.keys() == {"y"}
        assert found["y"].dtype == np.float32
        assert found["y"].tolist() == [[1, 2]]

    @pytest.mark.parametrize(
        "document",
        [
            {"outputs": {"a": [1, 2], "b": ["x", {"b64": "eQ=="}]}},
            {"predictions": [{"a": 1, "b": "x"}, {"a": 2, "b": {"b64": "eQ=="}}]},
        ],
    )
    def test_several_outputs_are_found_in_both_formats(self, document):
        found = answer(document, {"a": INT64, "b": STRING})
        assert {alias: array.tolist() for alias, array in found.items()} == {
            "a": [1, 2],
            "b": [b"x", b"y"],
        }
        assert found["a"].dtype == np.int64

    @pytest.mark.parametrize("key", ["outputs", "predictions"])
    def test_bytes_of_a_single_output_are_no_named_row(self, key):
        found = answer({key: [{"b64": "eQ=="}, {"b64": ""}]}, {"y": STRING})
        assert found["y"].tolist() == [b"y", b""]

    @pytest.mark.parametrize("key", ["outputs", "predictions"])
    def test_answer_without_rows_is_empty(self, key):
        found = answer({key: []}, {"y": FLOAT})["y"]
        assert (found.shape, found.dtype) == ((0,), np.float32)

    @pytest.mark.parametrize(
        ("document", "words"),
        [
            ([1], "not a predict response"),
            ({"error": "boom"}, "boom"),
            ({"predictions": {"a": 1}}, "not a list of predictions"),
            ({"predictions": [1, 2]}, "names none"),
            ({"outputs": [1, 2]}, "names none"),
            ({"outputs": {"a": [1]}}, r"\['b'\]"),
            ({"predictions": [{"a": 1, "b": "x"}, {"a": 1}]}, "different outputs"),
            ({"predictions": [{"a": 1}, {"a": 1, "b": "x"}]}, "different outputs"),
            ({"predictions": [{"a": 1, "b": "x"}, 3]}, "different outputs"),
            ({"predictions": [{"a": 1, "b": "x"}, {"a": 1.5, "b": "x"}]}, "int64"),
        ],
    )
    def test_document_that_does_not_fit_the_signature_is_refused(self, document, words):
        with pytest.raises(TensorError, match=words):
            answer(document, {"a": INT64, "b": STRING})
