"""Outputs are stored and described without loss, or refused."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tfserve_kit.clients.files import describe, shortest, values, write_npz
from tfserve_kit.errors import UsageError

OUTPUTS = {
    "file": np.float32([[1.5, np.nan]]),  # an argument's name in numpy.savez
    "a/b:0": np.int64([2**62]),
    "complex": np.complex64([1 + 2j]),
    "none": np.empty((0, 3), np.float16),
    "scalar": np.array(True),
}


def test_outputs_are_read_back_by_numpy(tmp_path):
    write_npz(tmp_path / "out.npz", OUTPUTS)
    with np.load(tmp_path / "out.npz") as found:
        assert set(found.files) == set(OUTPUTS)
        for alias, array in OUTPUTS.items():
            assert found[alias].dtype == array.dtype
            np.testing.assert_array_equal(found[alias], array)


def test_strings_and_bfloat16_are_stored_as_what_numpy_has(tmp_path):
    texts = np.array([[b"a\xff", b""], [b"a\0b", b"long"]], object)
    write_npz(tmp_path / "o.npz", {"t": texts, "b": np.array([1.5], ml_dtypes.bfloat16)})
    with np.load(tmp_path / "o.npz", allow_pickle=False) as found:
        assert found["t"].tolist() == texts.tolist()
        assert (found["b"].dtype, found["b"].tolist()) == (np.float32, [1.5])


def test_string_that_would_lose_its_end_is_refused(tmp_path):
    with pytest.raises(UsageError, match="output 't' has strings that end in zero bytes"):
        write_npz(tmp_path / "o.npz", {"t": np.array([b"a\0"], object)})
    assert not (tmp_path / "o.npz").exists()


def test_file_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(UsageError, match="cannot write"):
        write_npz(tmp_path / "none" / "o.npz", OUTPUTS)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.float32([[0.1, 2]]), ("float [1, 2]", "0.1, 2")),
        (np.float32([16777215, 1 / 3]), ("float [2]", "16777215, 0.33333334")),
        (np.float64([0.1, 1 / 3]), ("double [2]", "0.1, 0.3333333333333333")),
        (np.float16([0.1, 65504]), ("half [2]", "0.1, 65500")),
        (np.array([0.1], ml_dtypes.bfloat16), ("bfloat16 [1]", "0.1")),
        (np.float32([np.nan, np.inf, -0.0, 1e-30]), ("float [4]", "nan, inf, -0, 1e-30")),
        (np.arange(9), ("int64 [9]", "0, 1, 2, 3, 4, 5, 6, 7, ...")),
        (np.array(True), ("bool []", "True")),
        (np.array([b"a\xff\n"], object), ("string [1]", r"'a\\xff\n'")),
        (np.empty((0, 3), np.uint8), ("uint8 [0, 3]", "")),
        (np.array([b"x" * 5000], object), ("string [1]", "'" + "x" * 55 + " ...")),
    ],
)
def test_output_is_described_in_a_line(array, expected):
    assert list(describe({"y": array})) == [("y", *expected)]


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.float32([[0.1, 2]]), [[0.1, 2.0]]),
        (np.array([0.1, 0.3], ml_dtypes.bfloat16), [0.1, 0.3]),
        (np.float64(0.1), 0.1),
        (np.complex64([[1 + 0.1j]]), [[{"real": 1.0, "imag": 0.1}]]),
        (np.complex128(2j), {"real": 0.0, "imag": 2.0}),
        (np.array([b"a\xff"], object), [{"b64": "Yf8="}]),
        (np.uint64([2**64 - 1]), [2**64 - 1]),
        (np.array([[True]]), [[True]]),
        (np.array(0.1, np.float32), 0.1),
        (np.array(0, np.float16), 0.0),
    ],
)
def test_values_are_the_shortest_that_mean_them(array, expected):
    assert values(array) == expected


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_every_narrow_float_survives_its_decimals(dtype):
    every = np.arange(1 << 16, dtype=np.uint16).view(dtype)
    found = shortest(every)
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(found.astype(dtype).astype(float), every.astype(float))


@settings(deadline=None)
@given(arrays(np.float32, 9, elements=st.floats(width=32)))
def test_float32_survives_its_decimals(array):
    found = shortest(array)
    np.testing.assert_array_equal(found.astype(np.float32), array)
    assert all(
        len(repr(float(short))) <= len(repr(float(str(item)))) or not np.isfinite(item)
        for short, item in zip(found, array, strict=True)
    )
