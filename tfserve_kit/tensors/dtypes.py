"""numpy dtypes and TensorFlow DataTypes: the one table that translates between them.

Source: tensorflow/core/framework/types.proto and tensor.proto (which `*_val` field carries which
type), tensorflow/core/framework/types.cc (DataTypeString, the names used in error texts).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

try:  # numpy has no bfloat16; tensorflow brings the package that adds it
    import ml_dtypes

    _BFLOAT16: DTypeLike | None = ml_dtypes.bfloat16
except ImportError:
    _BFLOAT16 = None


@dataclass(frozen=True, slots=True)
class DType:
    """One row of the table.

    Attributes:
        number: value of the DataType enum.
        name: TensorFlow's lower-case name, such as `float` or `int64`, as error texts print it.
        numpy: the numpy dtype; None where numpy has none (bfloat16 without ml_dtypes).
        field: the TensorProto field for single values, such as `float_val`.
    """

    number: int
    name: str
    numpy: np.dtype | None
    field: str

    @property
    def enum_name(self) -> str:
        """The enum's own spelling, such as `DT_FLOAT`."""
        return f"DT_{self.name.upper()}"


def _row(number: int, name: str, numpy: DTypeLike | None, field: str) -> DType:
    return DType(number, name, None if numpy is None else np.dtype(numpy), field)


TABLE = (
    _row(1, "float", np.float32, "float_val"),
    _row(2, "double", np.float64, "double_val"),
    _row(3, "int32", np.int32, "int_val"),
    _row(4, "uint8", np.uint8, "int_val"),
    _row(5, "int16", np.int16, "int_val"),
    _row(6, "int8", np.int8, "int_val"),
    _row(7, "string", np.object_, "string_val"),
    _row(8, "complex64", np.complex64, "scomplex_val"),
    _row(9, "int64", np.int64, "int64_val"),
    _row(10, "bool", np.bool_, "bool_val"),
    _row(14, "bfloat16", _BFLOAT16, "half_val"),
    _row(17, "uint16", np.uint16, "int_val"),
    _row(18, "complex128", np.complex128, "dcomplex_val"),
    _row(19, "half", np.float16, "half_val"),
    _row(22, "uint32", np.uint32, "uint32_val"),
    _row(23, "uint64", np.uint64, "uint64_val"),
)
# Kinds of numpy dtypes whose elements lie in the array itself; V is bfloat16.
NUMBERS = frozenset("biufcV")
STRING = TABLE[6]
BFLOAT16 = TABLE[10]

_BY_NUMBER = {row.number: row for row in TABLE}
_BY_NAME = {row.name: row for row in TABLE} | {row.enum_name: row for row in TABLE}
_NUMPY = {row.number: row.numpy for row in TABLE if row.numpy is not None}
_BY_NUMPY = {row.numpy: row for row in TABLE if row.numpy is not None}


# Types without a row, by number; variables of a type have its number plus a hundred.
_OTHERS = {
    0: "INVALID", 11: "qint8", 12: "quint8", 13: "qint32", 15: "qint16", 16: "quint16",
    20: "resource", 21: "variant", 24: "float8_e5m2", 25: "float8_e4m3fn", 26: "float8_e4m3fnuz",
    27: "float8_e4m3b11fnuz", 28: "float8_e5m2fnuz", 29: "int4", 30: "uint4", 31: "int2",
    32: "uint2",
}  # fmt: skip
_VARIABLE = 100
# Those of them that TensorFlow reads from a message: bytes of an element, 0 for what has no size.
FOREIGN_BYTES = {
    11: 1, 12: 1, 13: 4, 15: 2, 16: 2, 20: 0, 21: 0, 24: 1, 25: 1, 26: 1, 27: 1, 28: 1, 29: 1,
    30: 1,
}  # fmt: skip


def name_of(number: int) -> str:
    """Return the name of any DataType number, as error texts print it."""
    if number > _VARIABLE:
        return f"{name_of(number - _VARIABLE)}_ref"
    row = _BY_NUMBER.get(number)
    return row.name if row else _OTHERS.get(number, f"unknown dtype enum ({number})")


def by_number(number: int) -> DType:
    """Return the row of a DataType number.

    Raises:
        KeyError: the table has no such type (resource, variant, quantized and reference types).
    """
    return _BY_NUMBER[number]


def numpy_of(number: int) -> np.dtype | None:
    """Return the numpy dtype of a DataType number, None where there is none."""
    return _NUMPY.get(number)


def by_name(name: str) -> DType:
    """Return the row of a name in either spelling, `float` or `DT_FLOAT`.

    Raises:
        KeyError: the table has no such type.
    """
    return _BY_NAME[name]


def by_numpy(dtype: DTypeLike) -> DType:
    """Return the row of a numpy dtype; text, bytes and object arrays are strings.

    Raises:
        TypeError: TensorFlow has no such type (dates, records, long doubles).
    """
    known = _BY_NUMPY.get(dtype) if isinstance(dtype, np.dtype) else None
    return known or _by_any_numpy(np.dtype(dtype))


def _by_any_numpy(dtype: np.dtype) -> DType:
    if dtype.kind in "OSU" or dtype.kind == "T":
        return STRING
    try:
        return _BY_NUMPY[dtype.newbyteorder("=")]
    except KeyError:
        raise TypeError(f"TensorFlow has no type for numpy's {dtype}") from None


class CannotConvert(Exception):
    """Values cannot become another type without losing something.

    Args:
        why: what would be lost, as the end of a sentence; empty if the types tell it.
        remedy: what to do about it.
    """

    def __init__(self, why: str, remedy: str) -> None:
        super().__init__(why)
        self.remedy = remedy


def convert(array: NDArray[Any], wanted: DType) -> NDArray[Any]:
    """Return an array in another type; real numbers may be rounded, all else stays the same.

    Raises:
        CannotConvert: a value would become another.
    """
    given = by_numpy(array.dtype)
    if not array.size and wanted.numpy is not None and STRING not in {given, wanted}:
        return array.astype(wanted.numpy)  # an empty list is float64 for want of better
    if STRING in {given, wanted} or wanted.numpy is None:
        raise CannotConvert("", f"give values of type {wanted.name}")
    kind, target_kind = _kind(given), _kind(wanted)
    if kind == "c" and target_kind != "c":
        raise CannotConvert("", "the imaginary part would be lost: take .real or .imag")
    if kind == "f" and target_kind in "iub":
        raise CannotConvert("", "round as you mean it, such as numpy.rint(x).astype")
    with np.errstate(all="ignore"):
        converted: NDArray[Any] = array.astype(wanted.numpy)
        back = converted.real if target_kind == "c" else converted
        kept = (
            np.isfinite(converted) | ~np.isfinite(array)
            if kind in "fc"
            else (back.astype(array.dtype) == array) & ((back < 0) == (array < 0))
        )
    if not kept.all():
        lost = array[~kept].ravel()[0]
        raise CannotConvert(f", which cannot hold {lost}", "scale or clip the values first")
    return converted


def _kind(dtype: DType) -> str:
    """Return numpy's letter of a kind; numpy itself takes bfloat16 for raw bytes."""
    return "f" if dtype is BFLOAT16 or dtype.numpy is None else dtype.numpy.kind
