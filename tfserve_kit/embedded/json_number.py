"""Prints doubles as RapidJSON does, which the official server echoes JSON values with.

RapidJSON uses Grisu2 (Loitsch, "Printing Floating-Point Numbers Quickly and Accurately with
Integers", 2010). It is fast, but in one case of a thousand its digits are not the shortest or not
the closest ones, so no other algorithm prints the same. Here speed does not matter: powers of ten
are computed where RapidJSON looks them up.
"""

import math

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
