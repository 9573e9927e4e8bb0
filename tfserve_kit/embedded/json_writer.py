"""REST answers as JSON, in the official server's layout, and JSON values as error texts quote them.

Source: tensorflow_serving/util/json_tensor.cc (what has been printed is looked at before each
value, so the last one may go beyond JsonWriterWithLimit's limit) and rapidjson/prettywriter.h of
release 1.1.0: lists on one line, a member of an object on each.

Quoted doubles are printed by Grisu2 (Loitsch, "Printing Floating-Point Numbers Quickly and
Accurately with Integers", 2010), as RapidJSON does: in one case of a thousand its digits are not
the shortest or not the closest ones, so no other algorithm prints the same. Speed does not matter
there: powers of ten are computed where RapidJSON looks them up.
"""

import base64
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from struct import Struct
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from tfserve_kit.embedded.status import ServingError, encoded, invalid
from tfserve_kit.tensors import dtypes

_BITS = 64
_FRACTION_BITS = 52
_HIDDEN_BIT = 1 << _FRACTION_BITS
_BIAS = 1075
_MOST_INTEGER_DIGITS = 21
_MOST_LEADING_ZEROS = 6
# RapidJSON 1.1.0 has a short table here; beyond it the last digit stays as it was generated.
_POWERS_KEPT = 9

# A number significand * 2**exponent.
_Scaled = tuple[int, int]


def double_text(value: float) -> str:
    """Return the text of a finite double."""
    sign = "-" if math.copysign(1, value) < 0 else ""
    if value == 0:
        return sign + "0.0"
    digits, exponent = _shortest(abs(value))
    return sign + _laid_out(digits, exponent)


def _shortest(value: float) -> tuple[str, int]:
    """Return digits and the decimal exponent of the last one, by Grisu2."""
    fraction, exponent = math.frexp(value)
    exponent = max(exponent - _FRACTION_BITS - 1, 1 - _BIAS)  # that of subnormals is fixed
    significand = int(math.ldexp(value, -exponent)) if fraction else 0
    upper = _normalized(2 * significand + 1, exponent - 1)
    even_gap = significand == _HIDDEN_BIT and exponent > 1 - _BIAS
    lower, lower_exponent = (
        (4 * significand - 1, exponent - 2) if even_gap else (2 * significand - 1, exponent - 1)
    )
    power, decimal = _power_of_ten(upper[1])
    exact = _product(_normalized(significand, exponent), power)
    high, high_exponent = _product(upper, power)
    low, _ = _product((lower << (lower_exponent - upper[1]), upper[1]), power)
    high, low = high - 1, low + 1
    digits, shift = _digits(high, high_exponent, high - low, high - exact[0])
    return digits, decimal + shift


def _digits(high: int, exponent: int, delta: int, distance: int) -> tuple[str, int]:
    """Generate digits of `high * 2**exponent` until what is left is within `delta`."""
    one = 1 << -exponent
    whole, rest = divmod(high, one)
    digits = str(whole)
    for length in range(1, len(digits) + 1):
        unit = 10 ** (len(digits) - length)
        left = whole % unit * one + rest
        if left <= delta:
            kept = int(digits[:length])
            return _rounded(kept, delta, left, unit * one, distance), len(digits) - length
    kept, shift = whole, 0
    while True:
        rest, delta, shift = rest * 10, delta * 10, shift - 1
        digit, rest = divmod(rest, one)
        kept = kept * 10 + digit
        if rest < delta:
            far = distance * 10**-shift if -shift < _POWERS_KEPT else 0
            return _rounded(kept, delta, rest, one, far), shift


def _rounded(kept: int, delta: int, rest: int, unit: int, distance: int) -> str:
    """Lower the last digit as long as that brings the number closer to the exact one."""
    while (
        rest < distance
        and delta - rest >= unit
        and (rest + unit < distance or distance - rest > rest + unit - distance)
    ):
        kept -= 1
        rest += unit
    return str(kept)


def _power_of_ten(exponent: int) -> tuple[_Scaled, int]:
    """Return a power of ten that brings `exponent` near -61, and its negative decimal exponent."""
    wanted = math.ceil((-61 - exponent) * 0.30102999566398114 + 347)
    decimal = ((wanted >> 3) + 1) * 8 - 348
    # Exact, then rounded to 64 bits.
    numerator, denominator = (10**decimal, 1) if decimal >= 0 else (1, 10**-decimal)
    shift = _BITS + 2 - numerator.bit_length() + denominator.bit_length()
    scaled = (numerator << shift if shift >= 0 else numerator >> -shift) // denominator
    spare = scaled.bit_length() - _BITS
    significand = (scaled + (1 << (spare - 1))) >> spare
    return (significand, spare - shift), -decimal


def _normalized(significand: int, exponent: int) -> _Scaled:
    shift = _BITS - significand.bit_length()
    return significand << shift, exponent - shift


def _product(a: _Scaled, b: _Scaled) -> _Scaled:
    """Return the upper 64 bits of a product, rounded."""
    return (a[0] * b[0] + (1 << (_BITS - 1))) >> _BITS, a[1] + b[1] + _BITS


def _laid_out(digits: str, exponent: int) -> str:
    """Put the decimal point where RapidJSON puts it."""
    point = len(digits) + exponent
    if exponent >= 0 and point <= _MOST_INTEGER_DIGITS:
        return digits + "0" * exponent + ".0"
    if 0 < point <= _MOST_INTEGER_DIGITS:
        return f"{digits[:point]}.{digits[point:]}"
    if -_MOST_LEADING_ZEROS < point <= 0:
        return "0." + "0" * -point + digits
    mantissa = digits[0] + ("." + digits[1:] if len(digits) > 1 else "")
    return f"{mantissa}e{point - 1}"


_MOST_BYTES = 256
_INDENT = "    "

# Fewer floats are printed faster one by one; of more, so many at once stay in the cache.
_FEW_FLOATS = 100
_FLOATS_AT_ONCE = 1 << 14
_FLOATS = "fd"
_SINGLE_BYTES = 4
_SHORT, _LONG = 6, 9  # digits of a float32
_POWERS = np.array([float(f"1e{power}") for power in range(23)])  # those that a double holds
_LEAST_EXPONENT, _MOST_EXPONENT = -13, 26
_LEAST_FIXED = -4
_NEXT_TO_A_HALF = 1e-6
_TRIPLES = np.array([list(f"{number:03d}".encode()) for number in range(1000)], np.uint8)
_WIDEST = 1 + 2 + 3 + _LONG + 4 + 1  # sign, `0.`, zeros, digits, exponent, comma

_ESCAPES = {byte: f"\\u{byte:04X}" for byte in range(0x20)} | {
    0x08: "\\b", 0x09: "\\t", 0x0A: "\\n", 0x0C: "\\f", 0x0D: "\\r", 0x22: '\\"', 0x5C: "\\\\",
}  # fmt: skip


class _Members(dict[str, Any]):
    """An object with a key more than once: the first of each counts, and `pairs` has them all."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(reversed(pairs))
        self.pairs = pairs


def members(value: dict[str, Any]) -> list[tuple[str, Any]]:
    """Return an object's members in the order of the text, also those whose key repeats."""
    return value.pairs if isinstance(value, _Members) else list(value.items())


def as_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object of some members."""
    found = dict(pairs)
    return found if len(found) == len(pairs) else _Members(pairs)


def quoted(text: str) -> str:
    """Print a string; what is beyond ASCII, Unicode or not, goes out as it is."""
    return '"' + text.translate(_ESCAPES) + '"'


def echo(value: Any) -> str:
    """Print a value: a string whole, else until 256 bytes or a NaN have been reached."""
    printer = _Printer()
    printer.add("", value, 0)
    return "".join(printer.pieces)


class _Printer:
    def __init__(self) -> None:
        self.pieces: list[str] = []
        self._size_bytes = 0

    def add(self, before: str, value: Any, level: int) -> bool:
        """Print a value behind its comma or key; say whether there may be more."""
        if isinstance(value, list):
            return self._list(before, value, level)
        if isinstance(value, dict):
            return self._object(before, value, level)
        if isinstance(value, float) and not math.isfinite(value):
            self._put(before)
            return False
        return self._put(before + _scalar(value))

    def _list(self, before: str, items: list[Any], level: int) -> bool:
        return (
            self._put(before + "[")
            and all(
                self.add(", " if index else "", item, level + 1) for index, item in enumerate(items)
            )
            and self._put("]")
        )

    def _object(self, before: str, value: dict[str, Any], level: int) -> bool:
        inner, pairs = "\n" + _INDENT * (level + 1), members(value)
        end = "\n" + _INDENT * level + "}" if pairs else "}"
        return (
            self._put(before + "{")
            and all(
                self._put(("," if index else "") + inner + quoted(key))
                and self.add(": ", member, level + 1)
                for index, (key, member) in enumerate(pairs)
            )
            and self._put(end)
        )

    def _put(self, text: str) -> bool:
        """Print what belongs together, unless the limit was reached before."""
        if self._size_bytes >= _MOST_BYTES:
            return False
        self.pieces.append(text)
        self._size_bytes += len(text.encode("utf-8", "surrogateescape"))
        return True


def _scalar(value: Any) -> str:
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, float):
        return double_text(value)
    return _LITERALS[value] if value is None or isinstance(value, bool) else str(value)


_LITERALS = {None: "null", True: "true", False: "false"}


def predictions(outputs: Mapping[str, NDArray[Any]], *, row_format: bool) -> bytes:
    """Print the outputs of a predict call.

    Args:
        outputs: array per output alias; in row format all [batch, ...].
        row_format: `predictions` row by row, else `outputs` tensor by tensor.

    Raises:
        ServingError: the row format needs one batch size on every output, or a dtype that JSON
            cannot carry.
    """
    if len(outputs) == 1:
        ((alias, array),) = outputs.items()
        if row_format and not array.ndim:
            raise _unshaped(alias)
        items = _leaves(alias, array, 1 + array.ndim)
        return _only_output(items, array.shape, row_format=row_format)
    if row_format:
        batch = _batch_size(outputs)
        return _in_rows(_objects(outputs, batch), batch)
    members = [
        _member(alias, 2) + _column(_leaves(alias, array, 2 + array.ndim), array.shape, _INDENT * 2)
        for alias, array in outputs.items()
    ]
    return _in_columns(b"{\n" + b",\n".join(members) + b"\n" + _INDENT.encode() + b"}")


def predictions_alike(
    outputs: Mapping[str, NDArray[Any]], *, row_format: bool
) -> list[bytes] | None:
    """Print the outputs of several predict calls; numbers are printed all at once.

    Args:
        outputs: array [calls, ...] per output alias.
        row_format: as of `predictions`.

    Returns:
        What `predictions` prints of each; None if they are not one output of floats.
    """
    if len(outputs) != 1:
        return None
    (array,) = outputs.values()
    shape = array.shape[1:]
    if array.dtype.char not in _FLOATS or not shape:
        return None
    calls = _split(_floats(array.ravel()), len(array))
    if row_format and len(shape) == 1:  # as below, with less to look at for each
        return [_in_rows(b", ".join(items), len(items)) for items in calls]
    return [_only_output(items, shape, row_format=row_format) for items in calls]


def _only_output(items: list[bytes], shape: tuple[int, ...], *, row_format: bool) -> bytes:
    """Print the elements of an output that is alone."""
    if not row_format:
        return _in_columns(_column(items, shape, _INDENT))
    if len(shape) > 1:
        items = [_inline(row, shape[1:]) for row in _split(items, shape[0])]
    return _in_rows(b", ".join(items), shape[0])


def _in_columns(text: bytes) -> bytes:
    return b'{\n    "outputs": ' + text + b"\n}"


def _in_rows(text: bytes, batch: int) -> bytes:
    return b'{\n    "predictions": [' + text + (b"\n    ]\n}" if batch else b"]\n}")


def _objects(outputs: Mapping[str, NDArray[Any]], batch: int) -> bytes:
    """Print several outputs: an object with all of them for each row."""
    leaves = {alias: _leaves(alias, array, 2 + array.ndim) for alias, array in outputs.items()}
    shapes = {alias: array.shape[1:] for alias, array in outputs.items()}
    split = {alias: _split(items, batch) for alias, items in leaves.items()}
    objects = [
        b",\n".join(
            _member(alias, 3) + _inline(split[alias][row], shapes[alias]) for alias in outputs
        )
        for row in range(batch)
    ]
    pad = (_INDENT * 2).encode()
    return b",".join(b"\n" + pad + b"{\n" + each + b"\n" + pad + b"}" for each in objects)


def _member(alias: str, level: int) -> bytes:
    """Print the name of an object's member."""
    return (_INDENT * level).encode() + _quoted(alias.encode()) + b": "


def _batch_size(outputs: Mapping[str, NDArray[Any]]) -> int:
    batch: int | None = None
    for alias, array in reversed(list(outputs.items())):
        if array.ndim == 0:
            raise _unshaped(alias)
        if batch is not None and len(array) != batch:
            raise invalid(
                f"Tensor name: {alias} has inconsistent batch size: {len(array)} expecting: {batch}"
            )
        batch = len(array)
    return batch or 0


def _unshaped(alias: str) -> ServingError:
    return invalid(f"Tensor name: {alias} has no shape information ")


def _split(items: list[bytes], batch: int) -> list[list[bytes]]:
    size = len(items) // batch if batch else 0
    return [items[row * size : (row + 1) * size] for row in range(batch)]


def _inline(items: list[bytes], shape: tuple[int, ...]) -> bytes:
    """Print nested lists on one line."""
    if not shape:
        return items[0]
    if len(shape) == 1:
        return b"[" + b", ".join(items) + b"]"
    return b"[" + b", ".join(_inline(part, shape[1:]) for part in _split(items, shape[0])) + b"]"


def _column(items: list[bytes], shape: tuple[int, ...], indent: str) -> bytes:
    """Print nested lists with an element on each line."""
    if not shape:
        return items[0]
    if not shape[0]:
        return b"[]"
    inner = indent + _INDENT
    pad = b"\n" + inner.encode()
    parts = (
        [_column(part, shape[1:], inner) for part in _split(items, shape[0])]
        if len(shape) > 1
        else items
    )
    return b"[" + pad + (b"," + pad).join(parts) + b"\n" + indent.encode() + b"]"


def _leaves(alias: str, array: NDArray[Any], level: int) -> list[bytes]:
    """Print each element, in C order; `level` counts the lists and objects around it."""
    if array.dtype.char in _FLOATS:
        return _floats(array.ravel())
    dtype = dtypes.by_numpy(array.dtype)
    flat = array.ravel().tolist()
    if dtype is dtypes.STRING:
        if alias.endswith("_bytes"):
            return [_base64_object(item, _INDENT * level) for item in flat]
        return [_quoted(item) for item in flat]
    if dtype.name == "bool":
        return [b"true" if item else b"false" for item in flat]
    if not flat:  # lists of nothing are of no type
        return []
    if array.dtype.kind in "iu" and dtype.name != "uint16":
        return str(flat)[1:-1].encode().split(b", ")
    raise invalid(f"Failed to write JSON value for tensor type: {dtype.name}")


def _floats(flat: NDArray[Any]) -> list[bytes]:
    """Print floats with six digits where these suffice, else with all that tell them apart."""
    if len(flat) < _FEW_FLOATS:
        return _printed_short(flat) or _printed(flat)
    items: list[bytes] = []
    with np.errstate(all="ignore"):
        for begin in range(0, len(flat), _FLOATS_AT_ONCE):
            items += _printed_at_once(flat[begin : begin + _FLOATS_AT_ONCE])
    return items


def _printed_short(flat: NDArray[Any]) -> list[bytes]:
    """Print floats if the shortest digits of all are no more than six; nothing otherwise.

    orjson finds these digits. It differs in exponents, and where it has one, in NaN (`null`).
    """
    text = orjson.dumps(flat, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
    items = text.split(b",")
    is_short = len(flat) and max(map(len, items)) <= len("0.12345")
    is_usual = b"e" not in text and b"n" not in text and b"0.0000" not in text
    return items if is_short and is_usual else []


def _printed(flat: NDArray[Any]) -> list[bytes]:
    """Print floats one by one, which is the definition of how they are printed."""
    exact, tiny, kept = _SINGLE if flat.dtype.itemsize == _SINGLE_BYTES else _DOUBLE
    items = []
    for value in flat.tolist():
        if tiny <= value < math.inf or tiny <= -value < math.inf:
            text = b"%.6g" % value
            short = float(text)
            if short != value and kept(short) != value:
                text = exact % value
            items.append(text if b"." in text or b"e" in text else text + b".0")
        else:
            items.append(_unusual(value))
    return items


def _unusual(value: float) -> bytes:
    """Print what is not finite, or subnormal: that is printed as nothing."""
    if value != value:  # noqa: PLR0124 (NaN is the only value unlike itself)
        return b"NaN"
    sign = b"-" if math.copysign(1, value) < 0 else b""
    if abs(value) == math.inf:
        return sign + b"Infinity"
    return sign + b"0.0" if value == 0 else b"0.0"


_FLOAT = Struct("f")


def _as_single(value: float) -> float:
    """Return the closest float32 of a double that is in its range."""
    rounded: float = _FLOAT.unpack(_FLOAT.pack(value))[0]
    return rounded


# Digits that tell all apart, the least number that is not subnormal, and what a number is kept as.
_SINGLE = b"%.9g", float(np.finfo(np.float32).tiny), _as_single
_DOUBLE = b"%.17g", float(np.finfo(np.float64).tiny), float


def _printed_at_once(flat: NDArray[Any]) -> list[bytes]:
    """Print floats all together; those that this is not sure about, one by one.

    Digits come from products with powers of ten that doubles hold exactly, so they are wrong only
    where a product is very close to half a digit.
    """
    values = flat.astype(np.float64)
    sizes = np.abs(values)
    exponents = np.floor(np.log10(sizes))
    is_sure = (exponents >= _LEAST_EXPONENT) & (exponents <= _MOST_EXPONENT)
    exponents = np.where(is_sure, exponents, 0).astype(np.int64)
    sizes[~is_sure] = 0.0
    is_sure |= values == 0
    short, short_exponents, is_short_sure = _digits_of(sizes, exponents, _SHORT)
    back = _scaled_by(short.astype(np.float64), short_exponents - (_SHORT - 1))
    is_short = back == sizes
    if flat.dtype.itemsize == _SINGLE_BYTES:
        is_short = back.astype(np.float32) == sizes.astype(np.float32)
        digits, exponents, is_long_sure = _digits_of(sizes, exponents, _LONG)
        is_sure &= is_short_sure & (is_short | is_long_sure)
    else:
        digits, is_sure = np.zeros_like(short), is_sure & is_short_sure & is_short
    digits = np.where(is_short, short * 10 ** (_LONG - _SHORT), digits)
    exponents = np.where(is_short, short_exponents, exponents)
    items = _laid_out_at_once(
        np.signbit(values), digits, exponents, np.where(is_short, _SHORT, _LONG)
    )
    unsure = np.flatnonzero(~is_sure)
    for index, item in zip(unsure.tolist(), _printed(flat[unsure]), strict=True):
        items[index] = item
    return items


def _scaled_by(values: NDArray[Any], powers: NDArray[Any]) -> NDArray[Any]:
    """Return values times powers of ten, each rounded once."""
    factors = _POWERS[np.minimum(np.abs(powers), len(_POWERS) - 1)]
    scaled: NDArray[Any] = np.where(powers >= 0, values * factors, values / factors)
    return scaled


def _digits_of(
    sizes: NDArray[Any], exponents: NDArray[Any], count: int
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return `count` digits of each number as a whole one, its exponent, and whether it is sure."""
    scaled = _scaled_by(sizes, count - 1 - exponents)
    off = (scaled >= 10.0**count).astype(np.int64) - ((scaled < 10.0 ** (count - 1)) & (sizes > 0))
    if off.any():  # the logarithm was rounded to the next whole number
        exponents = exponents + off
        scaled = _scaled_by(sizes, count - 1 - exponents)
    is_sure = np.abs(scaled - np.floor(scaled) - 0.5) > _NEXT_TO_A_HALF
    digits = np.rint(scaled).astype(np.int64)
    is_next = digits == 10**count
    return np.where(is_next, 10 ** (count - 1), digits), exponents + is_next, is_sure


def _laid_out_at_once(
    is_negative: NDArray[Any],
    digits: NDArray[Any],
    exponents: NDArray[Any],
    precisions: NDArray[Any],
) -> list[bytes]:
    """Return numbers as `%g` prints them, and `.0` behind whole ones.

    Args:
        is_negative: whether each bears a sign.
        digits: nine digits of each, as a whole number.
        exponents: decimal exponent of each one's first digit.
        precisions: from which exponent on it is printed with an exponent.
    """
    is_fixed = (exponents >= _LEAST_FIXED) & (exponents < precisions)
    kinds = (exponents * 2 + is_fixed).astype(np.int16)
    order = np.argsort(kinds, kind="stable")
    figures = _figures(digits[order])
    last = _LONG - np.argmax(figures[:, ::-1] != ord("0"), axis=1)
    last[digits[order] == 0] = 1
    text = np.zeros((len(digits), _WIDEST), np.uint8)  # zeros are left out
    text[:, 0] = np.where(is_negative[order], ord("-"), 0)
    text[:, -1] = ord(",")
    kinds = kinds[order]
    begins = [0, *(np.flatnonzero(np.diff(kinds)) + 1).tolist(), len(kinds)]
    for begin, end in pairwise(begins):
        rows, kind = slice(begin, end), int(kinds[begin])
        _lay_out(text[rows], figures[rows], last[rows], kind >> 1, as_fixed=bool(kind & 1))
    unordered = np.empty(len(text), f"V{_WIDEST}")
    unordered[order] = text.view(unordered.dtype)[:, 0]
    return unordered.tobytes().translate(None, b"\0").split(b",")[:-1]


def _figures(digits: NDArray[Any]) -> NDArray[np.uint8]:
    """Return nine digits of each number as characters [numbers, 9]."""
    rest = digits.astype(np.uint32)
    upper, rest = np.divmod(rest, np.uint32(10**6))
    middle, lower = np.divmod(rest, np.uint32(1000))
    figures = np.empty((len(digits), _LONG), np.uint8)
    for column, three in ((0, upper), (3, middle), (6, lower)):
        figures[:, column : column + 3] = _TRIPLES.take(three, axis=0)
    return figures


def _lay_out(
    text: NDArray[np.uint8],
    figures: NDArray[np.uint8],
    last: NDArray[Any],
    exponent: int,
    *,
    as_fixed: bool,
) -> None:
    """Write numbers of one exponent behind their signs, up to digit number `last` of each."""
    whole = 1 + (exponent if as_fixed else 0)  # digits before the point
    shown = np.where(np.arange(_LONG) < np.maximum(last, whole)[:, None], figures, 0)
    before = max(whole, 0)
    column = 1 + max(before, 1)
    if whole <= 0:
        text[:, 1] = ord("0")
    else:
        text[:, 1:column] = shown[:, :before]
    has_fraction = last > whole
    text[:, column] = np.where(has_fraction | as_fixed, ord("."), 0)
    text[:, column + 1 : column + 1 - min(whole, 0)] = ord("0")
    column += 1 - min(whole, 0)
    text[:, column : column + _LONG - before] = shown[:, before:]
    if as_fixed:
        text[~has_fraction, column] = ord("0")
    else:
        text[:, -5:-1] = np.frombuffer(f"e{exponent:+03d}".encode(), np.uint8)


def _quoted(item: bytes) -> bytes:
    """Print a string; bytes that are no UTF-8 go out as they are."""
    return quoted(item.decode("latin-1")).encode("latin-1")


def _base64_object(item: bytes, indent: str) -> bytes:
    encoded = base64.b64encode(item).decode()
    return f'{{\n{indent}{_INDENT}"b64": "{encoded}"\n{indent}}}'.encode()


def error_body(message: str) -> bytes:
    """Print an error."""
    text = encoded(message, errors="surrogateescape")  # what was no UTF-8 goes back as it came
    return b'{\n    "error": ' + _quoted(text) + b"\n}"


def classifications(examples: Sequence[Sequence[tuple[bytes, float]]]) -> bytes:
    """Print the answer to classify: (label, score) per class and example."""
    rows = [
        b"[" + b", ".join(b"[" + _quoted(n) + b", " + _float32(v) + b"]" for n, v in classes) + b"]"
        for classes in examples
    ]
    return b'{\n    "results": [' + b", ".join(rows) + b"\n    ]\n}"


def regressions(values: Sequence[float]) -> bytes:
    """Print the answer to regress: a value per example."""
    return b'{\n    "results": [' + b", ".join(map(_float32, values)) + b"]\n}"


def _float32(value: float) -> bytes:
    (text,) = _leaves("", np.array([value], np.float32), 0)
    return text
