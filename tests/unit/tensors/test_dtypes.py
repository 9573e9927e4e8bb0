"""The table between numpy dtypes and TensorFlow DataTypes."""

import subprocess
import sys

import numpy as np
import pytest

from tfserve_kit import protos
from tfserve_kit.tensors import dtypes

NUMBERS = [row for row in dtypes.TABLE if row is not dtypes.STRING]


@pytest.mark.parametrize("row", dtypes.TABLE, ids=lambda row: row.name)
def test_row_is_found_by_number_and_by_both_names(row):
    assert dtypes.by_number(row.number) is row
    assert dtypes.by_name(row.name) is row
    assert dtypes.by_name(row.enum_name) is row


@pytest.mark.parametrize("row", dtypes.TABLE, ids=lambda row: row.name)
def test_row_agrees_with_the_schema(row):
    assert protos.enum("DataType").values_by_number[row.number].name == row.enum_name
    assert row.field in protos.TensorProto.DESCRIPTOR.fields_by_name


@pytest.mark.parametrize("row", NUMBERS, ids=lambda row: row.name)
@pytest.mark.parametrize("order", "<>=")
def test_row_is_found_by_numpy_dtype_of_any_byte_order(row, order):
    assert dtypes.by_numpy(row.numpy.newbyteorder(order)) is row


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        ("U3", "string"),
        ("S", "string"),
        (object, "string"),
        (np.dtypes.StringDType(), "string"),
        (float, "double"),
        (int, "int64"),
        (bool, "bool"),
        (np.longlong, "int64"),
    ],
)
def test_spelling_of_python_or_numpy_is_found(dtype, name):
    assert dtypes.by_numpy(dtype).name == name


@pytest.mark.parametrize("dtype", ["M8[s]", "m8[ns]", "V4", np.longdouble, [("a", "i4")]])
def test_dtype_that_tensorflow_lacks_is_refused_by_name(dtype):
    with pytest.raises(TypeError) as caught:
        dtypes.by_numpy(dtype)
    assert str(np.dtype(dtype)) in str(caught.value)


@pytest.mark.parametrize("number", [0, 11, 15, 20, 21, 101, -1, 10_000])
def test_data_type_that_cannot_travel_is_a_key_error(number):
    with pytest.raises(KeyError):
        dtypes.by_number(number)


def test_unknown_name_is_a_key_error():
    with pytest.raises(KeyError, match="float16"):
        dtypes.by_name("float16")


WITHOUT_ML_DTYPES = """
import sys
sys.modules["ml_dtypes"] = None
import numpy as np
from tfserve_kit import protos
from tfserve_kit.tensors import dtypes, from_proto, to_proto
assert dtypes.BFLOAT16.numpy is None
message = protos.TensorProto(dtype=14, tensor_content=bytes.fromhex("803f 20c0"))
message.tensor_shape.dim.add(size=2)
array = from_proto(message)
assert array.dtype == np.float32 and array.tolist() == [1.0, -2.5], array
message = protos.TensorProto(dtype=14, half_val=[0x3f80, 0xc020])
message.tensor_shape.dim.add(size=3)
assert from_proto(message).tolist() == [1.0, -2.5, -2.5]
for dtype in (np.float64, np.float32, np.float16, np.int64):
    there = to_proto(np.array([1.5, 2]).astype(dtype), as_content=False)
    assert from_proto(there).tolist() == np.array([1.5, 2]).astype(dtype).tolist(), there
"""


def test_bfloat16_is_read_as_float32_where_numpy_has_no_bfloat16():
    subprocess.run([sys.executable, "-c", WITHOUT_ML_DTYPES], check=True)
