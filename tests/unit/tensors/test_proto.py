"""Arrays to TensorProto and back."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.tensors.drawn import arrays, string_array, string_arrays
from tfserve_kit import protos
from tfserve_kit.tensors import TensorError, dtypes, from_proto, proto, to_proto
from tfserve_kit.tensors.proto import ForeignTensorError, decode_varint, encode_varint


def tensor(dtype, shape, **fields):
    """Return a TensorProto made by hand."""
    message = protos.TensorProto(dtype=dtypes.by_name(dtype).number, **fields)
    message.tensor_shape.SetInParent()
    for size in shape:
        message.tensor_shape.dim.add(size=size)
    return message


def assert_same(found, wanted):
    assert found.dtype == wanted.dtype.newbyteorder("=")
    assert found.shape == wanted.shape
    if found.dtype == dtypes.BFLOAT16.numpy:  # numpy does not know its NaN
        assert found.tobytes() == wanted.tobytes()
    else:
        np.testing.assert_array_equal(found, wanted)


class TestRoundTrip:
    @settings(deadline=None)
    @given(arrays())
    def test_content_keeps_every_bit(self, array):
        message = to_proto(array)
        assert len(message.tensor_content) == array.nbytes
        found = from_proto(message)
        assert_same(found, array)
        assert found.tobytes() == array.astype(array.dtype.newbyteorder("=")).tobytes()

    @settings(deadline=None)
    @given(arrays())
    def test_typed_field_keeps_every_value(self, array):
        message = to_proto(array, as_content=False)
        assert not message.tensor_content
        assert_same(from_proto(message), array)

    @settings(deadline=None)
    @given(string_arrays())
    def test_strings_come_back_as_bytes(self, array):
        found = from_proto(to_proto(array))
        wanted = [item.encode() if isinstance(item, str) else item for item in array.ravel()]
        assert found.dtype == object
        assert found.shape == array.shape
        assert found.ravel().tolist() == wanted

    @pytest.mark.parametrize("row", dtypes.TABLE, ids=lambda row: row.name)
    @pytest.mark.parametrize("shape", [(), (0,), (0, 3), (2, 0, 3), (1, 1)])
    def test_scalar_and_empty_keep_dtype_and_shape(self, row, shape):
        array = np.full(shape, b"x") if row is dtypes.STRING else np.ones(shape, row.numpy)
        for as_content in (True, False):
            message = to_proto(array, as_content=as_content)
            assert message.dtype == row.number
            assert message.HasField("tensor_shape")
            found = from_proto(message)
            assert (found.shape, found.dtype) == (shape, row.numpy)
            assert found.tolist() == array.tolist()


class TestToProto:
    @pytest.mark.parametrize(
        ("array", "field", "values"),
        [
            (np.array([1.5, -2], np.float32), "float_val", [1.5, -2]),
            (np.array([0.1]), "double_val", [0.1]),
            (np.array([-1, 7], np.int8), "int_val", [-1, 7]),
            (np.array([65535], np.uint16), "int_val", [65535]),
            (np.array([2**32 - 1], np.uint32), "uint32_val", [2**32 - 1]),
            (np.array([2**64 - 1], np.uint64), "uint64_val", [2**64 - 1]),
            (np.array([-(2**63)]), "int64_val", [-(2**63)]),
            (np.array([True, False]), "bool_val", [True, False]),
            (np.array([1 + 2j], np.complex64), "scomplex_val", [1, 2]),
            (np.array([1 + 2j, 3]), "dcomplex_val", [1, 2, 3, 0]),
            (np.array([1], np.float16), "half_val", [0x3C00]),
            (np.array([1], dtypes.BFLOAT16.numpy), "half_val", [0x3F80]),
            (np.array(["é", b"\xff\0"], object), "string_val", ["é".encode(), b"\xff\0"]),
        ],
        ids=lambda value: str(getattr(value, "dtype", "")),
    )
    def test_values_go_to_the_field_of_their_type(self, array, field, values):
        message = to_proto(array, as_content=False)
        assert list(getattr(message, field)) == values
        used = {each.name for each, _ in message.ListFields()}
        assert used == {"dtype", "tensor_shape", field}

    def test_content_is_little_endian_whatever_the_array_is(self):
        assert to_proto(np.array([1, 2], ">i4")).tensor_content == b"\1\0\0\0\2\0\0\0"

    @pytest.mark.parametrize("item", [1, None, ["a"], 2.5])
    def test_string_array_with_another_element_is_refused_naming_it(self, item):
        with pytest.raises(TypeError) as caught:
            to_proto(string_array([b"x", item], (2,)))
        assert repr(item) in str(caught.value)

    def test_dtype_that_tensorflow_lacks_is_refused(self):
        with pytest.raises(TypeError, match="datetime64"):
            to_proto(np.zeros(1, "M8[s]"))


class TestFewerOrMoreValues:
    @pytest.mark.parametrize(
        ("dtype", "field", "values", "found"),
        [
            ("float", "float_val", [1, 2], [1, 2, 2, 2]),
            ("float", "float_val", [1, 2, 3, 4, 5], [1, 2, 3, 4]),
            ("float", "float_val", [], [0, 0, 0, 0]),
            ("double", "float_val", [1, 2], [0, 0, 0, 0]),
            ("int8", "int_val", [300, -129], [44, 127, 127, 127]),
            ("uint8", "int_val", [-1], [255] * 4),
            ("uint16", "int_val", [65537], [1] * 4),
            ("bool", "bool_val", [True], [True] * 4),
            ("complex64", "scomplex_val", [1, 2, 3], [1 + 2j] * 4),
            ("complex128", "dcomplex_val", [1, 2, 3, 4], [1 + 2j, 3 + 4j, 3 + 4j, 3 + 4j]),
            ("complex64", "scomplex_val", [1], [0] * 4),
            ("half", "half_val", [0x3C00], [1] * 4),
            ("half", "half_val", [-1 << 16 | 0x3C00, 0x13C00], [1] * 4),
            ("bfloat16", "half_val", [0x3F80], [1] * 4),
            ("string", "string_val", [b"a", b"b"], [b"a", b"b", b"b", b"b"]),
            ("string", "string_val", [], [b""] * 4),
            ("string", "string_val", [b"a"] * 4 + [b"b"], [b"a"] * 4),
        ],
    )
    def test_last_value_repeats_none_is_zero_and_surplus_is_cut(self, dtype, field, values, found):
        assert from_proto(tensor(dtype, [2, 2], **{field: values})).ravel().tolist() == found

    def test_content_wins_over_values(self):
        message = tensor("int32", [1], tensor_content=b"\7\0\0\0", int_val=[3])
        assert from_proto(message).tolist() == [7]

    def test_string_content_wins_over_values(self):
        message = tensor("string", [1], tensor_content=b"\1A", string_val=[b"B"])
        assert from_proto(message).tolist() == [b"A"]


class TestStringContent:
    @given(st.lists(st.binary(max_size=4) | st.just(b"x" * 300), min_size=1, max_size=5))
    def test_lengths_come_first_then_the_bytes(self, items):
        lengths = b"".join(
            bytes([len(item)])
            if len(item) < 128
            else bytes([len(item) & 127 | 128, len(item) >> 7])
            for item in items
        )
        message = tensor("string", [len(items)], tensor_content=lengths + b"".join(items))
        assert from_proto(message).tolist() == items

    def test_length_may_take_five_bytes(self):
        message = tensor("string", [2], tensor_content=b"\x80\x80\x80\x80\0" + b"\1A")
        assert from_proto(message).tolist() == [b"", b"A"]

    @pytest.mark.parametrize(
        ("shape", "content"),
        [
            ([1], b"\2A"),
            ([1], b"\1AB"),
            ([1], b"\x80"),
            ([1], b"\x80" * 5 + b"\0"),
            ([2], b"\1A"),
            ([3], b"\1A"),
            ([1 << 40], b"\1A"),
        ],
    )
    def test_content_that_does_not_add_up_is_refused(self, shape, content):
        with pytest.raises(TensorError, match="string content"):
            from_proto(tensor("string", shape, tensor_content=content))


class TestRefusals:
    @pytest.mark.parametrize("size", [7, 9, 4, 12])
    def test_content_of_another_length_is_refused_with_both_lengths(self, size):
        with pytest.raises(TensorError) as caught:
            from_proto(tensor("int32", [2], tensor_content=b"x" * size))
        assert f"{size} bytes" in str(caught.value)
        assert "8 of int32 [2]" in str(caught.value)

    @pytest.mark.parametrize(
        "shape",
        [[-1], [2, -1], [-1, -1], [0, -1], [1 << 32, 1 << 31], [1 << 62, 2], [(1 << 63) - 1] * 9],
    )
    def test_negative_or_overflowing_shape_is_refused(self, shape):
        with pytest.raises(TensorError, match=str(shape[0])):
            from_proto(tensor("uint8", shape))

    @pytest.mark.parametrize("rank", [255, 100_000])
    def test_more_dimensions_than_tensorflow_has_are_refused(self, rank):
        with pytest.raises(TensorError, match=f"{rank} dimensions"):
            from_proto(tensor("float", [1] * rank))

    @pytest.mark.parametrize("shape", [[1 << 62, 1 << 62, 0], [1 << 32, 1 << 31], [2, -1, 0]])
    @pytest.mark.parametrize("dtype", ["float", "string", "uint8"])
    def test_shape_that_overflows_on_the_way_is_refused(self, dtype, shape):
        with pytest.raises(TensorError, match="no tensor can have the shape"):
            from_proto(tensor(dtype, shape))

    @pytest.mark.parametrize("shape", [[1] * 254, [1] * 65, [0, 1 << 62, 1 << 62]])
    @pytest.mark.parametrize("dtype", ["float", "string"])
    def test_shape_that_numpy_lacks_is_a_tensor_error(self, dtype, shape):
        with pytest.raises(TensorError, match="numpy"):
            from_proto(tensor(dtype, shape))

    def test_unknown_rank_is_refused(self):
        message = protos.TensorProto(dtype=1, float_val=[1])
        message.tensor_shape.unknown_rank = True
        with pytest.raises(TensorError, match="rank"):
            from_proto(message, whole=True)

    @pytest.mark.parametrize("dims", [[], [2], [1, 2]])
    def test_server_takes_the_dimensions_whatever_is_said_of_the_rank(self, dims):
        message = tensor("float", dims, float_val=[1.5])
        message.tensor_shape.unknown_rank = True
        np.testing.assert_array_equal(from_proto(message), np.full(dims, 1.5, np.float32))

    @pytest.mark.parametrize("dtype", ["float", "string", "bool", "complex64"])
    @pytest.mark.parametrize("shape", [[0], [3, 0]])
    def test_content_of_a_tensor_without_elements_is_not_looked_at(self, dtype, shape):
        assert from_proto(tensor(dtype, shape, tensor_content=b"\1ABC")).shape == tuple(shape)

    @pytest.mark.parametrize("number", [11, 12, 13, 15, 16, 20, 21, 24, 29])
    def test_type_that_only_tensorflow_reads_is_told_from_one_that_nobody_does(self, number):
        with pytest.raises(ForeignTensorError) as caught:
            from_proto(protos.TensorProto(dtype=number))
        assert caught.value.number == number

    @pytest.mark.parametrize(
        "text",
        [
            "dtype: DT_INVALID",
            "dtype: DT_FLOAT_REF",
            "dtype: DT_STRING_REF",
            "dtype: 999",
            "dtype: DT_QINT8 tensor_content: 'ab'",
            "dtype: DT_QINT32 tensor_content: 'abc'",
            "dtype: DT_RESOURCE tensor_content: 'a'",
            "dtype: DT_VARIANT variant_val { type_name: 'mine' }",
            "dtype: DT_RESOURCE tensor_shape { dim { size: -1 } }",
        ],
    )
    def test_tensor_that_nobody_can_read_is_no_foreign_one(self, text):
        with pytest.raises(TensorError) as caught:
            from_proto(protos.from_text("TensorProto", text))
        assert not isinstance(caught.value, ForeignTensorError)

    @pytest.mark.parametrize("shape", [[0, 1 << 40], [1 << 32, 0], [1 << 20, 0, 1 << 20]])
    @pytest.mark.parametrize("dtype", ["float", "string", "bool"])
    def test_nothing_of_which_a_model_makes_very_much_is_refused(self, dtype, shape):
        with pytest.raises(TensorError, match="without elements"):
            from_proto(tensor(dtype, shape))

    def test_axes_beside_an_empty_one_count_as_values_that_were_left_out(self):
        told = []
        assert from_proto(tensor("float", [0, 1000, 1000]), fill=told.append).size == 0
        assert told[-1] >= 8 * 1000 * 1000

    @pytest.mark.parametrize("number", [0, 20, 21, 11, 999])
    def test_data_type_that_cannot_travel_is_refused_by_number(self, number):
        message = protos.TensorProto(dtype=number)
        with pytest.raises(TensorError, match=f"DataType {number}"):
            from_proto(message)

    @pytest.mark.parametrize(
        ("dtype", "size", "fields"),
        [
            ("float", 1 << 40, {}),
            ("float", 1 << 40, {"float_val": [1]}),
            ("double", (1 << 27) + 1, {"double_val": [1]}),
            ("uint8", (1 << 30) + 1, {}),
            ("bool", (1 << 62), {"bool_val": [True]}),
            ("string", (1 << 27) + 2, {"string_val": [b"a"]}),
            ("string", 1 << 62, {}),
        ],
    )
    def test_huge_claim_of_a_small_message_is_refused_without_allocating(self, dtype, size, fields):
        message = tensor(dtype, [size], **fields)
        tracemalloc.start()
        try:
            with pytest.raises(TensorError, match=str(size)):
                from_proto(message)
            assert tracemalloc.get_traced_memory()[1] < 100_000
        finally:
            tracemalloc.stop()

    def test_limit_itself_is_still_filled_in(self, monkeypatch):
        monkeypatch.setattr(proto, "MAX_FILLED_BYTES", 16)
        assert from_proto(tensor("double", [2], double_val=[3])).tolist() == [3, 3]
        assert from_proto(tensor("string", [3], string_val=[b"a"])).tolist() == [b"a"] * 3
        for message in (tensor("double", [3]), tensor("string", [3])):
            with pytest.raises(TensorError):
                from_proto(message)


class TestVarint:
    @given(st.integers(0, 2**64 - 1), st.binary(max_size=3), st.binary(max_size=3))
    def test_what_is_encoded_decodes_wherever_it_stands(self, value, before, after):
        data = before + encode_varint(value) + after
        assert decode_varint(data, len(before)) == (value, len(data) - len(after))

    @pytest.mark.parametrize(("value", "data"), [
        (0, b"\x00"), (127, b"\x7f"), (128, b"\x80\x01"), (300, b"\xac\x02"),
    ])  # fmt: skip
    def test_bytes_are_protobuf_s(self, value, data):
        assert encode_varint(value) == data

    @pytest.mark.parametrize("data", [b"", b"\x80", b"\xff" * 9])
    def test_number_that_the_data_cuts_off_is_refused(self, data):
        with pytest.raises(ValueError, match="ends within"):
            decode_varint(data, 0)

    def test_number_that_does_not_end_is_refused(self):
        with pytest.raises(ValueError, match="does not end"):
            decode_varint(b"\xff" * 20, 0)
