"""Numbers printed as the official server prints them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfserve_kit.embedded import json_writer
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


# Many floats at once

ODD_FLOATS = (0.0, -0.0, np.nan, np.inf, -np.inf, 1e-45, 1e-38, -1e-40, 999999.5, 99999.95)
FLOATS = {
    "normal": lambda draw, n: draw.standard_normal(n),
    "of all sizes": lambda draw, n: draw.standard_normal(n) * 10 ** draw.uniform(-30, 30, n),
    "halves": lambda draw, n: draw.integers(-5000, 5000, n) / 2,
    "of few digits": lambda draw, n: draw.integers(0, 10**6, n) / 10 ** draw.integers(0, 6, n),
    "whole": lambda draw, n: draw.integers(-(10**10), 10**10, n).astype(float),
    "powers of ten": lambda draw, n: 10.0 ** draw.integers(-45, 38, n),
    "just below them": lambda draw, n: 10.0 ** draw.integers(-20, 20, n) * (1 - 2.0**-24),
    "halfway": lambda draw, n: (
        (draw.integers(10**5, 10**6, n) + 0.5) / 10 ** draw.integers(0, 3, n)
    ),
    "any bits": lambda draw, n: draw.integers(0, 2**32, n, np.uint64).astype(np.uint32).view("f4"),
    "odd ones": lambda draw, n: draw.choice(
        [0.0, -0.0, np.nan, np.inf, -np.inf, 1e-45, 1e-38, -1e-40, 999999.5, 99999.95, 0.99999995],
        n,
    ),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", FLOATS)
def test_many_floats_are_printed_as_one_is(kind, dtype):
    with np.errstate(all="ignore"):
        array = FLOATS[kind](np.random.default_rng(7), 20_000).astype(dtype)
    assert json_writer._floats(array) == json_writer._printed(array)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(
    st.lists(
        st.floats()
        | st.floats(width=32)
        | st.builds(
            lambda n, power: n * 10.0**power, st.integers(-(10**7), 10**7), st.integers(-12, 9)
        ),
        max_size=5,
    )
)
def test_few_floats_are_printed_as_one_is(dtype, values):
    with np.errstate(all="ignore"):
        array = np.array(values, dtype)
    assert json_writer._floats(array) == json_writer._printed(array)


def test_short_floats_are_printed_in_short():
    usual = np.float32([0, -0.0, 1, -2.5, 0.1, 12345.5, 0.0001, 99999])
    assert json_writer._printed_short(usual) == json_writer._printed(usual)
    for value in (1e-5, 1e6, 123456.7, 1e-40, math.nan, -math.inf, 0.1234567):
        assert not json_writer._printed_short(np.float32([value]))


@pytest.mark.parametrize("row_format", [True, False])
@pytest.mark.parametrize("shape", [(0,), (3,), (1, 4), (2, 2, 3), (2, 0)], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_answers_that_are_alike_are_printed_as_each_is(row_format, shape, dtype):
    calls = np.random.default_rng(3).random((3, *shape)).astype(dtype)
    assert json_writer.predictions_alike({"y": calls}, row_format=row_format) == [
        json_writer.predictions({"y": each}, row_format=row_format) for each in calls
    ]


@pytest.mark.parametrize(
    "outputs",
    [
        {},
        {"y": np.float32([[1]]), "z": np.float32([[1]])},
        {"y": np.float32([1, 2])},
        {"y": np.int32([[1]])},
        {"y": np.array([[b"a"]], object)},
    ],
    ids=["no output", "two outputs", "no list", "integers", "strings"],
)
def test_other_answers_are_not(outputs):
    assert json_writer.predictions_alike(outputs, row_format=True) is None
