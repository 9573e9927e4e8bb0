"""Numbers of seven bits a byte."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfserve_kit.tensors import varint


@given(st.integers(0, 2**64 - 1), st.binary(max_size=3), st.binary(max_size=3))
def test_what_is_encoded_decodes_wherever_it_stands(value, before, after):
    data = before + varint.encode(value) + after
    assert varint.decode(data, len(before)) == (value, len(data) - len(after))


@pytest.mark.parametrize(("value", "data"), [
    (0, b"\x00"), (127, b"\x7f"), (128, b"\x80\x01"), (300, b"\xac\x02"),
])  # fmt: skip
def test_bytes_are_protobuf_s(value, data):
    assert varint.encode(value) == data


@pytest.mark.parametrize("data", [b"", b"\x80", b"\xff" * 9])
def test_number_that_the_data_cuts_off_is_refused(data):
    with pytest.raises(ValueError, match="ends within"):
        varint.decode(data, 0)


def test_number_that_does_not_end_is_refused():
    with pytest.raises(ValueError, match="does not end"):
        varint.decode(b"\xff" * 20, 0)
