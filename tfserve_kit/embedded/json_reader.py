"""JSON text to values exactly as RapidJSON 1.1.0 reads it, down to the place of a fault.

Slow: for bodies that a fast parser refuses, or that are no UTF-8, which RapidJSON does not look at.
Strings are read as bytes; those that are no UTF-8 become halves of characters, as
`surrogateescape` has it.

Source: rapidjson/reader.h of release 1.1.0, with the flags that
tensorflow_serving/util/json_tensor.cc sets: iterative, NaN and infinity, stop when done.
"""

import re
from typing import Any, NoReturn

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


class Members(dict[str, Any]):
    """An object with a key more than once: the first of each counts, and `pairs` has them all."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(reversed(pairs))
        self.pairs = pairs


def members(value: dict[str, Any]) -> list[tuple[str, Any]]:
    """Return an object's members in the order of the text, also those whose key repeats."""
    return value.pairs if isinstance(value, Members) else list(value.items())


def as_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object of some members."""
    found = dict(pairs)
    return found if len(found) == len(pairs) else Members(pairs)


def read(body: bytes) -> Any:
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
