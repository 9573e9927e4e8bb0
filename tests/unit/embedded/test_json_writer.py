"""Doubles printed as RapidJSON prints them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfserve_kit.embedded.json_writer import double_text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.0"),
        (-0.0, "-0.0"),
        (1.0, "1.0"),
        (-2.5, "-2.5"),
        (0.1, "0.1"),
        (100.0, "100.0"),
        (123.456, "123.456"),
        (1e20, "100000000000000000000.0"),
        (1e21, "1e21"),
        (1.5e30, "1.5e30"),
        (1e-6, "0.000001"),
        (1e-7, "1e-7"),
        (1.25e-9, "1.25e-9"),
        (5e-324, "5e-324"),
        (2.2250738585072014e-308, "2.2250738585072014e-308"),
        (1.7976931348623157e308, "1.7976931348623157e308"),
    ],
)
def test_point_and_exponent_stand_where_rapidjson_puts_them(value, text):
    assert double_text(value) == text


def test_digits_beyond_the_short_table_stay_as_they_were_generated():
    # Recorded from the official server; the closest 17 digits end in 552.
    assert double_text(2.0**64) == "18446744073709553000.0"


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_text_reads_back_as_the_same_double(value):
    read = float(double_text(value))
    assert read == value
    assert math.copysign(1, read) == math.copysign(1, value)


@given(st.integers(-(2**53), 2**53))
def test_whole_numbers_keep_all_their_digits(value):
    expected = f"{value}.0" if value else "0.0"
    assert double_text(float(value)) == expected
