"""TFRecord files: byte for byte those of TensorFlow, and no damage goes unnoticed."""

import struct
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfserve_kit import tfrecord
from tfserve_kit.tfrecord import TFRecordError

# Two records as tensorflow 2.21 wrote them: `one` and nothing.
WRITTEN = bytes.fromhex("0300000000000000b099490e6f6e6501405508000000000000000029039807d8ea82a2")
SECOND = 19  # where the second one starts


@pytest.fixture
def file(tmp_path):
    return tmp_path / "records"


def read(file, content, **how):
    file.write_bytes(content)
    return list(tfrecord.read(file, **how))


def test_file_is_written_byte_for_byte(file):
    assert tfrecord.write(file, [b"one", b""]) == 2
    assert file.read_bytes() == WRITTEN


def test_records_are_read_in_order(file):
    assert read(file, WRITTEN) == [b"one", b""]


def test_empty_file_has_no_records(file):
    assert tfrecord.write(file, []) == 0
    assert list(tfrecord.read(file)) == []


@settings(max_examples=50, deadline=None)
@given(records=st.lists(st.binary(max_size=300), max_size=5))
def test_what_is_written_is_read(tmp_path_factory, records):
    file = tmp_path_factory.getbasetemp() / "property"
    tfrecord.write(file, iter(records))
    assert list(tfrecord.read(file)) == records
    assert list(tfrecord.read(file, verify=False)) == records


@pytest.mark.parametrize("at", range(len(WRITTEN)))
def test_byte_that_changed_is_damage_to_its_record(file, at):
    for flipped in (0x01, 0x80, 0xFF):
        content = bytearray(WRITTEN)
        content[at] ^= flipped
        with pytest.raises(TFRecordError, match="damaged") as caught:
            read(file, content)
        head, data = (0, 12) if at < SECOND else (SECOND, SECOND + 12)
        assert caught.value.record == (1 if at < SECOND else 2)
        assert caught.value.offset == (head if at < data else data)
        assert f"at byte {caught.value.offset}" in str(caught.value)


@pytest.mark.parametrize("kept", [each for each in range(len(WRITTEN)) if each not in {0, SECOND}])
@pytest.mark.parametrize("verify", [True, False])
def test_file_that_is_cut_off_is_damage_to_its_last_record(file, kept, verify):
    with pytest.raises(TFRecordError, match="is cut off at byte") as caught:
        read(file, WRITTEN[:kept], verify=verify)
    assert caught.value.record == (1 if kept < SECOND else 2)


def test_records_before_the_damage_are_read(file):
    file.write_bytes(WRITTEN[:-1])
    records = tfrecord.read(file)
    assert next(records) == b"one"
    with pytest.raises(TFRecordError, match="record 2"):
        next(records)


@settings(max_examples=200, deadline=None)
@given(content=st.binary(min_size=1, max_size=60))
def test_bytes_of_any_kind_are_damaged_at_worst(tmp_path_factory, content):
    file = tmp_path_factory.getbasetemp() / "any"
    with pytest.raises(TFRecordError):
        read(file, content)


@pytest.mark.parametrize("length", [8, 1 << 31, 1 << 62, (1 << 64) - 1])
def test_length_beyond_the_file_is_no_allocation(file, length):
    tfrecord.write(file, [struct.pack("<Q", length)])
    checksum = file.read_bytes()
    head = struct.pack("<Q", length) + checksum[-4:]  # the checksum of these eight bytes
    tracemalloc.start()
    try:
        with pytest.raises(TFRecordError, match=f"says it has {length} bytes and is cut off"):
            read(file, head + b"few")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_checksums_need_not_be_looked_at(file):
    content = bytearray(WRITTEN)
    content[9] ^= 1
    content[16] ^= 1
    assert read(file, content, verify=False) == [b"one", b""]


@pytest.mark.tensorflow
def test_tensorflow_writes_the_same_and_reads_what_is_written(file, tmp_path):
    import tensorflow as tf

    records = [b"", b"one", bytes(range(256)) * 50]
    theirs = tmp_path / "theirs"
    with tf.io.TFRecordWriter(str(theirs)) as writer:
        for record in records:
            writer.write(record)
    tfrecord.write(file, records)
    assert file.read_bytes() == theirs.read_bytes()
    assert [each.numpy() for each in tf.data.TFRecordDataset(str(file))] == records
