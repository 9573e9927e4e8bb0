"""REST requests as JSON, read as RapidJSON 1.1.0 does and checked in the official server's words.

Three ways to the same result, fastest first: one regular array of numbers is read in bulk by
simdjson; any other body by python-rapidjson; and what that refuses, or what is not UTF-8 (which the
official server does not look at), by `read_exactly`, which tells faults as RapidJSON does, down to
their place. Faults are found in the official server's order.

Source: tensorflow_serving/util/json_tensor.cc, and rapidjson/reader.h of release 1.1.0 with the
flags set there: iterative, NaN and infinity, stop when done. Bytes that are not UTF-8 become halves
of characters, as `surrogateescape` has it.
"""

import base64
import re
import sys
import threading
from array import array as packed
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from operator import methodcaller
from typing import Any, NamedTuple, NoReturn

import numpy as np
import rapidjson
import simdjson
from numpy.typing import NDArray

from tfserve_kit.embedded import ledger
from tfserve_kit.embedded.json_writer import as_object, echo, members
from tfserve_kit.embedded.ledger import Account
from tfserve_kit.embedded.status import Code, ServingError, invalid
from tfserve_kit.savedmodel import DEFAULT_SIGNATURE
from tfserve_kit.tensors import dtypes
from tfserve_kit.tensors.dtypes import DType
from tfserve_kit.tensors.proto import MAX_RANK

_SPACE = re.compile(rb"[ \n\r\t]*")
_PLAIN = re.compile(rb'[^"\\\x00-\x1f]*')
_DIGITS = re.compile(rb"[0-9]*")
_WHOLE = re.compile(rb"0|[1-9][0-9]*")
_HEX = re.compile(rb"[0-9a-fA-F]{4}")
_ESCAPED = dict(zip(b'"/\\bfnrt', b'"/\\\b\f\n\r\t', strict=True))
_LITERALS = {b"n": (b"null", None), b"t": (b"true", True), b"f": (b"false", False)}
_NO_VALUE = {b"", b"\0", b"]", b"}", b",", b":"}
_MARKS = (b"\xef", b"\xbb", b"\xbf")  # each is skipped where it comes next

_HIGH_SURROGATES = range(0xD800, 0xDC00)
_LOW_SURROGATES = range(0xDC00, 0xE000)
_MOST_UINT64, _MOST_NEGATED = (1 << 64) - 1, 1 << 63
_MOST_EXACT = (1 << 53) - 1
_MOST_EXPONENT = 308
_MOST_DIGITS = 17
_TENTH_OF_THE_LARGEST = 1.7976931348623157e307


class Fault(ValueError):
    """The text is no JSON.

    Attributes:
        reason: RapidJSON's words.
        offset: where, in bytes.
    """

    def __init__(self, reason: str, offset: int) -> None:
        super().__init__(f"{reason} at offset: {offset}")
        self.reason, self.offset = reason, offset


def read_exactly(body: bytes) -> Any:
    """Return the first value of a text; what follows it is not looked at.

    Raises:
        Fault: it is no JSON.
    """
    return _Reader(body).document()


class _Open:
    """A list or object that is not closed yet."""

    __slots__ = ("items", "key", "pairs")

    def __init__(self, *, is_list: bool) -> None:
        self.items: list[Any] | None = [] if is_list else None
        self.pairs: list[tuple[str, Any]] = []
        self.key = ""

    def add(self, value: Any) -> None:
        if self.items is None:
            self.pairs.append((self.key, value))
        else:
            self.items.append(value)

    def closed(self) -> Any:
        return as_object(self.pairs) if self.items is None else self.items


class _Reader:
    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = 0
        self._open: list[_Open] = []

    def document(self) -> Any:
        for mark in _MARKS:
            self._consume(mark)
        self._skip()
        while True:
            done, value = self._begin()
            while done:
                if not self._open:
                    return value
                self._open[-1].add(value)
                done, value = self._after()

    def _begin(self) -> tuple[bool, Any]:
        """Read a value, or only the beginning of one that is not empty; say whether it is whole."""
        start = self._peek()
        if start in _NO_VALUE:
            self._fail("Invalid value." if self._open else "The document is empty.")
        if start == b'"':
            return True, self._string()
        if start in _LITERALS:
            return True, self._literal(*_LITERALS[start])
        if start not in {b"[", b"{"}:
            return True, self._number()
        self._open.append(_Open(is_list=start == b"["))
        self._step()
        if self._consume(b"]" if start == b"[" else b"}"):
            return True, self._open.pop().closed()
        if start == b"{":
            self._key()
        return False, None

    def _after(self) -> tuple[bool, Any]:
        """Read what follows a value: an end, which is a value again, or a comma."""
        self._skip()
        is_list = self._open[-1].items is not None
        if self._consume(b"]" if is_list else b"}"):
            return True, self._open.pop().closed()
        if self._peek() != b",":
            self._fail(
                "Missing a comma or ']' after an array element."
                if is_list
                else "Missing a comma or '}' after an object member."
            )
        self._step()
        if not is_list:
            self._key()
        return False, None

    def _key(self) -> None:
        if self._peek() != b'"':
            self._fail("Missing a name for object member.")
        self._open[-1].key = self._string()
        self._skip()
        if self._peek() != b":":
            self._fail("Missing a colon after a name of object member.")
        self._step()

    def _literal(self, text: bytes, value: Any) -> Any:
        for index in range(len(text)):
            if not self._consume(text[index : index + 1]):
                self._fail("Invalid value.")
        return value

    # Strings

    def _string(self) -> str:
        self._at += 1
        pieces = []
        while True:
            plain = self._take(_PLAIN)
            pieces.append(plain)
            stop = self._peek()
            if stop == b"\\":
                pieces.append(self._escape())
            elif stop == b'"':
                self._at += 1
                return b"".join(pieces).decode("utf-8", "surrogateescape")
            elif stop in {b"", b"\0"}:
                self._fail("Missing a closing quotation mark in string.")
            else:
                self._fail("Invalid escape character in string.")

    def _escape(self) -> bytes:
        begin = self._at
        kind = self._body[begin + 1 : begin + 2]
        self._at += 2
        if kind and kind[0] in _ESCAPED:
            return bytes([_ESCAPED[kind[0]]])
        if kind != b"u":
            self._fail("Invalid escape character in string.", begin)
        code = self._hex(begin)
        if code in _HIGH_SURROGATES:
            low = self._hex(begin) if self._consume(b"\\") and self._consume(b"u") else 0
            if low not in _LOW_SURROGATES:
                self._fail("The surrogate pair in string is invalid.", begin)
            code = 0x10000 + ((code - 0xD800) << 10 | (low - 0xDC00))
        return chr(code).encode("utf-8", "surrogatepass")

    def _hex(self, begin: int) -> int:
        digits = _HEX.match(self._body, self._at)
        if digits is None:
            self._fail("Incorrect hex digit after \\u escape in string.", begin)
        self._at += 4
        return int(digits[0], 16)

    # Numbers

    def _number(self) -> float:
        begin = self._at
        is_negative = self._consume(b"-")
        named = self._named() if self._peek() in {b"I", b"N"} else None
        whole = b"0" if named is not None else self._take(_WHOLE)
        if not whole:
            self._fail("Invalid value.")
        fraction = (
            self._some_digits("Miss fraction part in number.") if self._consume(b".") else b""
        )
        has_exponent = self._consume(b"e") or self._consume(b"E")
        sign, exponent = self._exponent() if has_exponent else (b"", b"")
        sign_of_all = -1 if is_negative else 1
        if not fraction and not exponent:
            if named is not None:
                return sign_of_all * named
            if _is_integer(whole, is_negative=is_negative):
                return sign_of_all * int(whole)
        try:
            value = _double(whole, fraction, is_negative=is_negative)
            return sign_of_all * value.raised(sign, exponent)
        except OverflowError:
            self._fail("Number too big to be stored in double.", begin)

    def _named(self) -> float:
        """Read NaN, Inf or Infinity, in RapidJSON's way: `NInf` is infinity as well."""
        if self._consume(b"N") and self._consume(b"a") and self._consume(b"N"):
            return float("nan")
        if self._consume(b"I") and self._consume(b"n") and self._consume(b"f"):
            if self._peek() == b"i":
                self._literal(b"inity", None)
            return float("inf")
        return self._fail("Invalid value.")

    def _exponent(self) -> tuple[bytes, bytes]:
        sign = b"+" if self._consume(b"+") else b"-" if self._consume(b"-") else b""
        return sign, self._some_digits("Miss exponent in number.")

    def _some_digits(self, reason: str) -> bytes:
        digits = self._take(_DIGITS)
        if not digits:
            self._fail(reason)
        return digits

    # Bytes

    def _peek(self) -> bytes:
        return self._body[self._at : self._at + 1]

    def _take(self, pattern: re.Pattern[bytes]) -> bytes:
        found = pattern.match(self._body, self._at)
        if found is None:
            return b""
        self._at = found.end()
        return found[0]

    def _consume(self, byte: bytes) -> bool:
        found = self._peek() == byte
        self._at += found
        return found

    def _step(self) -> None:
        self._at += 1
        self._skip()

    def _skip(self) -> None:
        self._take(_SPACE)

    def _fail(self, reason: str, at: int | None = None) -> NoReturn:
        raise Fault(reason, self._at if at is None else at)


def _is_integer(whole: bytes, *, is_negative: bool) -> bool:
    """Say whether digits fit into 64 bits."""
    most = _MOST_NEGATED if is_negative else _MOST_UINT64
    return len(whole) <= len(str(most)) and int(whole) <= most


class _Significand:
    """Digits as a double, times a power of ten."""

    def __init__(self, value: float, power: int) -> None:
        self._value, self._power = value, power

    def raised(self, sign: bytes, digits: bytes) -> float:
        """Return the double with an exponent; OverflowError where RapidJSON refuses it."""
        kept = digits.lstrip(b"0")[:10]
        exponent = int(kept or b"0")
        if sign == b"-":
            exponent = -exponent
        elif exponent > _MOST_EXPONENT - self._power:
            raise OverflowError
        power = exponent + self._power
        if power < -_MOST_EXPONENT:
            return _scaled(_scaled(self._value, -_MOST_EXPONENT), power + _MOST_EXPONENT)
        return _scaled(self._value, power)


def _scaled(value: float, power: int) -> float:
    """Multiply or divide once, which may miss the closest double by one."""
    if power < -_MOST_EXPONENT:
        return 0.0
    return value * float(f"1e{power}") if power >= 0 else value / float(f"1e{-power}")


def _double(whole: bytes, fraction: bytes, *, is_negative: bool) -> _Significand:
    """Return digits as RapidJSON keeps them: 64 bits of an integer, then a double."""
    if not _is_integer(whole, is_negative=is_negative):
        value, significant = _long_whole(whole, is_negative=is_negative)
        return _with_fraction(value, 0, significant, fraction)
    integer, significant, used = int(whole), len(whole) - 1, 0
    for digit in fraction:
        if integer > _MOST_EXACT:
            break
        integer = integer * 10 + digit - ord("0")
        used += 1
        significant += integer != 0
    return _with_fraction(float(integer), -used, significant, fraction[used:])


def _long_whole(whole: bytes, *, is_negative: bool) -> tuple[float, int]:
    """Return the double of a whole number beyond 64 bits, and how many digits it counts for."""
    kept = next(n for n in (20, 19, 18) if _is_integer(whole[:n], is_negative=is_negative))
    value = float(int(whole[:kept]))
    for digit in whole[kept:]:
        if value >= _TENTH_OF_THE_LARGEST:
            raise OverflowError
        value = value * 10 + (digit - ord("0"))
    return value, kept - 1


def _with_fraction(value: float, power: int, significant: int, rest: bytes) -> _Significand:
    for digit in rest:
        if significant >= _MOST_DIGITS:
            break
        value = value * 10.0 + (digit - ord("0"))
        power -= 1
        significant += value > 0.0
    return _Significand(value, power)


# Of a larger body that is no JSON the fast parser says why, now and then in other words.
_MOST_READ_AGAIN_BYTES = 4_000_000
_RECURSION_LIMIT = 100_000
_STACK_BYTES = 64 << 20  # reserved, not used, until a request nests that deeply


def allow_deep() -> None:
    """Let requests nest tens of thousands of lists, in threads that are still to be started.

    The official server's parser does.
    """
    sys.setrecursionlimit(_RECURSION_LIMIT)
    threading.stack_size(_STACK_BYTES)


class _Decoder(rapidjson.Decoder):
    """Keeps all members of an object, also two with one key."""

    def start_object(self) -> list[tuple[str, Any]]:
        """Collect the members of an object as pairs."""
        return []

    def end_object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """Turn the pairs into the object."""
        return as_object(pairs)


_NUMBERS = rapidjson.NM_NAN | rapidjson.NM_NATIVE
_decode = _Decoder(number_mode=_NUMBERS)
# The same parser without calls into Python: of members with one key it keeps the last.
_decode_unrepeated = rapidjson.Decoder(number_mode=_NUMBERS)
_QUOTES_OF_A_KEY = 2


def parse_object(body: bytes, account: Account) -> dict[str, Any]:
    """Parse a request body.

    Args:
        body: the JSON.
        account: charged with what it becomes.

    Returns:
        The object. Bytes that are no UTF-8 are halves of characters in it, as `surrogateescape`
        has it; of members with one key the first counts.

    Raises:
        ServingError: it is no JSON, or no object, or becomes too large.
    """
    account.take(ledger.cost_of_json(body), "the JSON as objects")
    if not body:
        raise invalid("JSON Parse error: The document is empty")
    try:
        document = _parse(body)
    except Fault as fault:
        raise invalid(f"JSON Parse error: {fault}") from fault
    if not isinstance(document, dict):
        raise invalid(f"JSON Value: {echo(document)} Is not object")
    return document


def _parse(body: bytes) -> Any:
    """Parse fast what is an object, and anew what is not, or no JSON, or not for this parser."""
    # One key alone cannot repeat.
    decode = _decode_unrepeated if body.count(b'"') == _QUOTES_OF_A_KEY else _decode
    try:
        document = decode(body)
    except rapidjson.JSONDecodeError as error:
        if len(body) > _MOST_READ_AGAIN_BYTES:
            where, _, reason = str(error).removeprefix("Parse error at offset ").partition(": ")
            raise Fault(reason, int(where)) from error
    except (UnicodeDecodeError, RecursionError):
        pass
    else:
        if isinstance(document, dict):
            return document
    return read_exactly(body)


# A smaller body is read as fast by the general parser.
LEAST_BYTES = 2_000
# A larger body's parser is not kept: its memory stays as large as the largest body it has seen.
_MOST_KEPT_BYTES = 8_000_000
_NUMBERS_AND_SPACE = b"0123456789.eE+- \t\r\n"
_MOST_BULK_DIMENSIONS = 32  # numpy's limit before its second version
_LAYOUTS = {"instances", "inputs"}
_SIGNATURE = "signature_name"
# Doubles are not for here: RapidJSON, as the official server uses it, may miss their last bit.
# The range of the numbers that a dtype may be given; within it the narrow ones wrap around.
_LIMITS = {name: np.iinfo(name) for name in ("int32", "int64", "uint32", "uint64")}
_LIMITS |= dict.fromkeys(("int8", "int16", "uint8"), np.iinfo(np.int32))

_kept = threading.local()


class Bulk(NamedTuple):
    """A request that holds one array: its signature, layout and array by input alias."""

    signature: str
    row_format: bool
    inputs: Mapping[str, NDArray[Any]]


def read_bulk(body: bytes, info: Callable[[str], Mapping[str, Any]]) -> Bulk | None:
    """Read a predict request, or return None for one that is not one regular array of numbers.

    Args:
        body: the request's JSON.
        info: returns a signature's inputs by alias, as TensorInfo messages; raises for one that
            does not exist.
    """
    # A parser is kept when its document is gone, so one that an error holds on to never is.
    parser = vars(_kept).pop("parser", None) or simdjson.Parser()
    try:
        found = _read(parser, body, info)
    except (ValueError, TypeError, LookupError, RuntimeError, OverflowError):
        return None
    if len(body) <= _MOST_KEPT_BYTES:
        _kept.parser = parser
    return found


def _read(parser: Any, body: bytes, info: Callable[[str], Mapping[str, Any]]) -> Bulk | None:
    document = parser.parse(body)
    if not isinstance(document, simdjson.Object):
        return None
    (layout,) = _LAYOUTS.intersection(document.keys())
    signature = document.get(_SIGNATURE, DEFAULT_SIGNATURE)
    if not isinstance(signature, str):
        return None
    ((alias, tensor),) = info(signature).items()
    values = document[layout]
    shape = _first_shape(values)
    if not shape or _structure(body) != _brackets(shape):
        return None
    flat = _numbers(values, dtypes.by_number(tensor.dtype))
    return Bulk(signature, layout == "instances", {alias: flat.reshape(shape)})


def _first_shape(value: Any) -> tuple[int, ...]:
    """Return the shape told by the first element on each level, empty if it is none."""
    shape: list[int] = []
    while isinstance(value, simdjson.Array) and len(shape) < _MOST_BULK_DIMENSIONS:
        shape.append(len(value))
        value = value[0]  # IndexError: an empty list is not for here
    return tuple(shape)


def _structure(body: bytes) -> bytes:
    """Return the brackets and commas of the array, and whatever else is no number.

    The array reaches from the first bracket to the last one: a string with brackets in it would
    leave its quotes behind.
    """
    return body[body.index(b"[") : body.rindex(b"]") + 1].translate(None, _NUMBERS_AND_SPACE)


def _brackets(shape: tuple[int, ...]) -> bytes:
    """Return the brackets and commas of a regular array."""
    text = b""
    for size in reversed(shape):
        text = b"[" + b",".join([text] * size) + b"]"
    return text


def _numbers(values: Any, dtype: dtypes.DType) -> NDArray[Any]:
    """Return the numbers of all levels in one row; raises for some that the dtype cannot be."""
    if dtype.name == "float":
        wide = np.frombuffer(values.as_buffer(of_type="d"), np.float64)
        with np.errstate(over="ignore"):  # 1e39 as a float is infinity, as in C++
            return wide.astype(dtype.numpy)
    limits = _LIMITS[dtype.name]
    kind = "u" if dtype.name == "uint64" else "i"
    whole = np.frombuffer(values.as_buffer(of_type=kind), f"{kind}8")
    if whole.min() < limits.min or whole.max() > limits.max:
        raise OverflowError(dtype.name)
    return whole.astype(dtype.numpy)


# A signature's inputs, by alias, as TensorInfo messages; raises ServingError for an unknown one.
InputInfo = Callable[[str], Mapping[str, Any]]

# Integers that wrap around instead of being refused.
_WRAPPING = frozenset({"uint8", "int8", "int16"})
_INTEGERS = frozenset({"int32", "int64", "uint32", "uint64"})
_NUMBERS_AND_BOOL = _WRAPPING | _INTEGERS | {"float", "double", "bool"}
_READABLE = _NUMBERS_AND_BOOL | {"string"}
_LIMITS_OF = {name: np.iinfo(name) for name in _WRAPPING | _INTEGERS}
# absl/strings/escaping.cc: blanks anywhere, dots as good as equals signs, and padding or none.
_BLANKS = b" \t\n\v\f\r"
_BASE64 = re.compile(rb"([A-Za-z0-9+/]*)([=.]*)")


class PredictBody:
    """A parsed predict request.

    Attributes:
        signature: name of the signature, as sent or the default.
        row_format: whether it came as `instances`, which decides the answer's layout.
        inputs: array per input alias.

    Raises:
        ServingError: the body is no request, or becomes too large for the account.
    """

    def __init__(self, body: bytes, info: InputInfo, account: Account) -> None:
        if len(body) >= LEAST_BYTES:
            found = bulk_body(body, info, account)
            if found is not None:
                self.signature, self.row_format, self.inputs = found
                return
        document = parse_object(body, account)
        named = signature_name(document)
        self.signature = named or DEFAULT_SIGNATURE
        inputs = info(self.signature)
        if not inputs:
            raise invalid(f"Failed to get input map for signature: {named or 'DEFAULT'}")
        self.row_format = "instances" in document
        self.inputs = _inputs(document, inputs)


def few_numbers(bodies: Sequence[bytes]) -> tuple[bool, list[list[Any]]] | None:
    """Read short predict requests that are one list each by the only key there is, all the same.

    They are parsed as one text. Each begins with a brace, and there are no others: none can end
    within another, so as many objects as there are requests are one of each.

    Returns:
        Whether they came as `instances`, and what stands there in each, see `regular`; None for
        any others.
    """
    text, count = b",".join(bodies), len(bodies)
    is_usual = text.count(b"{") == count and text.count(b'"') == _QUOTES_OF_A_KEY * count
    if (
        not is_usual
        or not all(map(_begins_as_object, bodies))
        or max(map(len, bodies)) >= LEAST_BYTES
    ):
        return None
    try:
        documents = _decode_unrepeated(b"[" + text + b"]")
        (key,) = documents[0]
        values = [each[key] for each in documents]
    except (ValueError, LookupError, TypeError, RecursionError):  # also what is no UTF-8
        return None
    is_known = key in _LAYOUTS and len(values) == count
    are_lists = is_known and set(map(type, values)) == {list} and all(values)
    return (key == "instances", values) if are_lists else None


_begins_as_object = methodcaller("startswith", b"{")


def regular(values: list[list[Any]], dtype: DType) -> NDArray[Any] | None:
    """Return lists with something in them as one array; None where `PredictBody` has to look."""
    shape = _shape(values)
    try:
        return _quick(values, shape, dtype) if len(shape) <= MAX_RANK else None
    except ServingError:  # numpy has no such array
        return None


def bulk_body(body: bytes, info: InputInfo, account: Account) -> Bulk | None:
    """Read a request that is one array of numbers; None for any other.

    Arguments and errors as of `PredictBody`.
    """
    cost_bytes = ledger.cost_of_json_numbers(body)
    account.take(cost_bytes, "the JSON as numbers")
    found = read_bulk(body, info)
    if found is None:
        account.give(cost_bytes)
    return found


def _inputs(document: dict[str, Any], inputs: Mapping[str, Any]) -> Mapping[str, NDArray[Any]]:
    if "instances" in document:
        if "inputs" in document:
            raise _misformed(
                document,
                "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to "
                "exist ",
            )
        return _rows(document, inputs)
    if "inputs" in document:
        return _columns(document["inputs"], inputs)
    raise invalid("Missing 'inputs' or 'instances' key")


def _misformed(document: Any, text: str) -> ServingError:
    return invalid(f"JSON Value: {echo(document)} {text}")


def signature_name(document: Mapping[str, Any]) -> str:
    """Return the signature a request names, empty if it names none; raises ServingError."""
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise _misformed(
            document, "not formatted correctly. 'signature_name' key must be a string value."
        )
    return name


def _columns(value: Any, inputs: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    if isinstance(value, dict) and not is_bytes(value):
        columns = {}
        for alias in sorted(inputs):
            if alias not in value:
                raise invalid(f"Missing named input: {alias} in 'inputs' object.")
            columns[alias] = _array(value[alias], _dtype(inputs[alias]), alias)
        return columns
    if len(inputs) > 1:
        raise invalid(
            "inputs is a plain value/list, but expecting an object as multiple input tensors "
            "required as per tensorinfo_map"
        )
    ((alias, info),) = inputs.items()
    return {alias: _array(value, _dtype(info), alias)}


def _rows(document: dict[str, Any], inputs: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    rows = document["instances"]
    if not isinstance(rows, list):
        raise _misformed(document, "Expecting 'instances' to be an list/array")
    if not rows:
        raise _misformed(document, "No values in 'instances' array")
    if not isinstance(rows[0], dict) and len(inputs) > 1:
        raise invalid(
            "instances is a plain list, but expecting list of objects as multiple input tensors "
            "required as per tensorinfo_map"
        )
    found = _regular_rows(rows, inputs)
    return _one_by_one(rows, inputs) if found is None else found


def _regular_rows(rows: list[Any], inputs: Mapping[str, Any]) -> dict[str, NDArray[Any]] | None:
    """Convert input by input, which is fast; None where a row is not like the others."""
    columns = {min(inputs): rows}
    if _is_named(rows[0]):
        aliases = set(inputs)
        if not all(type(row) is dict and row.keys() == aliases for row in rows):
            return None
        # Sorted: each order of inputs would be compiled as a call of its own.
        columns = {alias: [row[alias] for row in rows] for alias in sorted(aliases)}
    try:
        return {
            alias: _stacked(column, _dtype(inputs[alias]), alias)
            for alias, column in columns.items()
        }
    except ServingError:
        return None


def _stacked(rows: list[Any], dtype: DType, alias: str) -> NDArray[Any]:
    shape = _shape(rows)
    array = _quick(rows, shape, dtype) if len(shape) <= MAX_RANK else None
    if array is None:
        column = _Column(alias, dtype)
        for row in rows:
            column.add(row)
        array = column.array(len(rows))
    return array


def _one_by_one(rows: list[Any], inputs: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """Convert row by row, and say what is wrong with the first bad one."""
    columns = {alias: _Column(alias, _dtype(inputs[alias])) for alias in sorted(inputs)}
    named = _is_named(rows[0])
    for index, row in enumerate(rows):
        if _is_named(row) != named:
            want, got = ("object", "list") if named else ("value/list", "object")
            raise invalid(f"Expecting {want} but got {got} at item {index} of input list")
        if named:
            _add_named(columns, index, row)
        else:
            with _at_element(index):
                columns[min(columns)].add(row)
    return {alias: each.array(len(rows)) for alias, each in columns.items() if not each.is_empty}


def _add_named(columns: Mapping[str, "_Column"], index: int, row: dict[str, Any]) -> None:
    keys = set()
    for key, value in members(row):
        name = c_string(key)
        keys.add(name)
        with _at_element(index, f" key: {name}"):
            if name not in columns:
                raise invalid(f"JSON object: does not have named input: {name}")
            columns[name].add(value)
    if keys != columns.keys():
        raise invalid(
            f"Failed to process element: {index} of 'instances' list. "
            f"JSON object: {echo(row)} keys must be equal to: {','.join(sorted(columns))}"
        )


@contextmanager
def _at_element(index: int, key: str = "") -> Iterator[None]:
    try:
        yield
    except ServingError as error:
        raise invalid(
            f"Failed to process element: {index}{key} of 'instances' list. Error: {error}"
        ) from error


class _Column:
    """The values of one input, row by row; each must have the shape of the first."""

    def __init__(self, alias: str, dtype: DType) -> None:
        self._alias, self._dtype = alias, dtype
        self._values: list[Any] = []
        self._shape: tuple[int, ...] = ()
        self._size = 0
        self.is_empty = True

    def add(self, row: Any) -> None:
        """Take the next row; raises ServingError."""
        shape = _shape(row)
        flat = _leaves(row, shape, self._dtype) if len(shape) < MAX_RANK else []
        if self.is_empty:
            self._shape, self._size, self.is_empty = shape, len(flat), False
        if len(flat) != self._size:
            raise invalid(f"Expecting tensor size: {self._size} but got: {len(flat)}")
        if shape != self._shape:
            raise invalid(f"Expecting shape {_axes(self._shape)} but got: {_axes(shape)}")
        self._values += flat

    def array(self, rows: int) -> NDArray[Any]:
        """Return the array [rows, ...]; a key twice in one row leaves more values than it takes."""
        if len(self._shape) >= MAX_RANK:
            raise invalid(f"tensor parsing error: {self._alias}")
        return _built(self._values[: rows * self._size], self._dtype, (rows, *self._shape))


def _array(value: Any, dtype: DType, alias: str) -> NDArray[Any]:
    """Return the array that nested lists stand for."""
    shape = _shape(value)
    if len(shape) > MAX_RANK:
        raise invalid(f"tensor parsing error: {alias}")
    array = _quick(value, shape, dtype)
    if array is not None:
        return array
    return _built(_leaves(value, shape, dtype), dtype, shape)


# The Python types that a list may hold that becomes an array at once, by name of dtype.
_PLAIN_TYPES: dict[str, frozenset[type]] = {
    **dict.fromkeys(_WRAPPING | _INTEGERS, frozenset({int})),
    **dict.fromkeys(("float", "double"), frozenset({int, float})),
    "bool": frozenset({bool}),
}


def _quick(value: Any, shape: tuple[int, ...], dtype: DType) -> NDArray[Any] | None:
    """Convert regular lists of numbers at C speed; None where that might hide a fault."""
    types = _PLAIN_TYPES.get(dtype.name)
    if types is None:
        return None
    flat = value if shape else [value]
    for size in shape[1:]:
        if set(map(type, flat)) != {list} or set(map(len, flat)) != {size}:
            return None
        flat = list(chain.from_iterable(flat))
    if not types.issuperset(map(type, flat)):
        return None
    limits = _LIMITS_OF.get(dtype.name)
    if limits and flat and not _in_range(flat, limits):
        return None
    return _built(flat, dtype, shape)


def _in_range(flat: list[int], limits: Any) -> bool:
    return bool(limits.min <= min(flat) and max(flat) <= limits.max)


def _built(flat: list[Any], dtype: DType, shape: tuple[int, ...]) -> NDArray[Any]:
    if dtype is dtypes.STRING:
        array = np.empty(len(flat), object)
        array[:] = flat
    elif dtype.numpy is None:
        raise ServingError(Code.UNIMPLEMENTED, f"JSON cannot carry the type {dtype.name}")
    elif dtype.name == "float" and flat:  # 1e39 as a float is infinity, as in C++
        array = np.frombuffer(packed("f", flat), np.float32)
    else:
        array = np.array(flat, dtype.numpy)
    if len(shape) == 1:
        return array
    try:
        return array.reshape(shape)
    except ValueError as error:  # numpy knows fewer dimensions than tensorflow
        raise invalid(f"a tensor of {len(shape)} dimensions is not supported here") from error


def _shape(value: Any) -> tuple[int, ...]:
    """Return the shape told by the first element on each level."""
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        if not value:
            break
        value = value[0]
    return tuple(shape)


def _leaves(value: Any, shape: tuple[int, ...], dtype: DType) -> list[Any]:
    """Return the leaves, checking each; slow, but knows what to say about the first bad one."""
    leaves: list[Any] = []
    _collect(value, shape, 0, dtype, leaves)
    return leaves


def _collect(value: Any, shape: tuple[int, ...], level: int, dtype: DType, to: list[Any]) -> None:
    """Add the leaves from a level on; all into one list, so that none costs a step per level."""
    if not isinstance(value, list):
        if level != len(shape):
            raise invalid(
                f"JSON Value: {echo(value)} found at incorrect level: {level + 1} in the JSON DOM. "
                f"Expected at level: {len(shape)}"
            )
        to.append(_leaf(value, dtype))
        return
    if level >= len(shape):
        raise invalid(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
    if len(value) != shape[level]:
        raise invalid(
            f"Encountered list at unexpected size: {len(value)} at level: {level} "
            f"expected size: {shape[level]}"
        )
    for item in value:
        _collect(item, shape, level + 1, dtype, to)


def _leaf(value: Any, dtype: DType) -> Any:
    if isinstance(value, dict) and dtype is dtypes.STRING:
        return _object_bytes(value)
    if dtype.name not in _READABLE and not isinstance(value, dict):
        raise ServingError(
            Code.UNIMPLEMENTED, f"Conversion of JSON Value: {echo(value)} to type: {dtype.name}"
        )
    kind = type(value)
    if dtype is dtypes.STRING and kind is str:
        return value.encode("utf-8", "surrogateescape")
    if dtype.name in {"float", "double"} and kind in {int, float}:
        return float(value)
    if dtype.name == "bool" and kind is bool:
        return value
    if dtype.name in _WRAPPING and kind is int and -(2**31) <= value < 2**31:
        return int(np.array(value, np.int64).astype(dtype.numpy))
    if dtype.name in _INTEGERS and kind is int:
        limits = np.iinfo(dtype.name)
        if limits.min <= value <= limits.max:
            return value
    raise _misformed(value, f"Type: {type_name(value)} is not of expected type: {dtype.name}")


def type_name(value: Any) -> str:
    """Return what error texts call the type of a JSON value."""
    if isinstance(value, bool):
        return str(value)
    names = {dict: "Object", list: "Array", str: "String", type(None): "Null"}
    return names.get(type(value), "Number")


def from_base64(text: str) -> bytes:
    """Decode base64 in the standard alphabet, padded or not; raises ServingError."""
    dense = text.encode("utf-8", "surrogateescape").translate(None, _BLANKS)
    found = _BASE64.fullmatch(dense)
    missing = -len(found[1]) % 4 if found else 0
    if found is None or missing == 3 or len(found[2]) not in {0, missing}:  # noqa: PLR2004 (6 bits)
        raise invalid("Unable to base64 decode")
    return base64.b64decode(found[1] + b"=" * missing)


def is_bytes(value: Any) -> bool:
    """Say whether a JSON value is `{"b64": "..."}`."""
    return type(value) is dict and value.keys() == {"b64"} and isinstance(value["b64"], str)


def _object_bytes(value: dict[str, Any]) -> bytes:
    if not is_bytes(value):
        raise _misformed(value, "not formatted correctly for base64 data")
    return from_base64(value["b64"])


def c_string(name: str) -> str:
    """Return a key as upstream reads it where it does not ask for the length."""
    return name.partition("\0")[0]


def _is_named(row: Any) -> bool:
    return isinstance(row, dict) and not is_bytes(row)


def _dtype(info: Any) -> DType:
    """Return the row of an input's type; one without a numpy dtype if the table has none."""
    try:
        return dtypes.by_number(info.dtype)
    except KeyError:
        return DType(info.dtype, dtypes.name_of(info.dtype), None, "")


def _axes(shape: tuple[int, ...]) -> str:
    return "[" + ",".join(map(str, shape)) + "]"
