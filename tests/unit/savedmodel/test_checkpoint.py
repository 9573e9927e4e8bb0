"""Checkpoint indexes: sizes of shards, and what damage does."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfserve_kit import protos
from tfserve_kit.savedmodel.checkpoint import CheckpointError, shard_sizes

HEADER = protos.BundleHeaderProto(num_shards=1)
MAGIC = struct.pack("<Q", 0xDB4775248B80FB57)


def varint(value):
    encoded = b""
    while value > 127:
        encoded += bytes([value & 127 | 128])
        value >>= 7
    return encoded + bytes([value])


def block(entries, compression=0):
    """Return a table block whose keys share what they can, as the format allows."""
    content, last = b"", b""
    for key, value in entries:
        shared = next(
            (i for i, (a, b) in enumerate(zip(key, last, strict=False)) if a != b),
            min(len(key), len(last)),
        )
        content += varint(shared) + varint(len(key) - shared) + varint(len(value))
        content += key[shared:] + value
        last = key
    restarts = struct.pack("<II", 0, 1)
    return content + restarts + bytes([compression]) + b"crc!"


def index_bytes(header, entries, *, per_block=100, compression=0, magic=MAGIC):
    """Return an index file: `entries` are (key, shard, offset, size)."""
    pairs = [(b"", header.SerializeToString())]
    for key, shard, offset, size in entries:
        value = protos.BundleEntryProto(shard_id=shard, offset=offset, size=size)
        pairs.append((key, value.SerializeToString()))
    table, handles = b"", []
    for start in range(0, len(pairs), per_block):
        part = block(pairs[start : start + per_block], compression)
        last_key = pairs[start : start + per_block][-1][0]
        handles.append((last_key, varint(len(table)) + varint(len(part) - 5)))
        table += part
    meta, top = block([]), block(handles)
    footer = varint(len(table)) + varint(len(meta) - 5)
    footer += varint(len(table) + len(meta)) + varint(len(top) - 5)
    return table + meta + top + footer.ljust(40, b"\0") + magic


@pytest.fixture
def read(tmp_path):
    def read_bytes(content):
        file = tmp_path / "variables.index"
        file.write_bytes(content)
        return shard_sizes(file)

    return read_bytes


@pytest.mark.parametrize(
    ("model", "size"), [("half_plus_two/1", 225), ("half_plus_two/2", 225), ("mlp/1", 31360)]
)
def test_real_index_names_the_size_of_its_data_file(models, model, size):
    variables = models / model / "variables"
    name = "variables.data-00000-of-00001"
    assert shard_sizes(variables / "variables.index") == {name: size}
    assert (variables / name).stat().st_size == size


def test_shard_needs_the_end_of_its_farthest_tensor(read):
    entries = [(b"a", 0, 100, 20), (b"b", 2, 0, 7), (b"c", 0, 10, 40), (b"d", 2, 7, 1)]
    assert read(index_bytes(protos.BundleHeaderProto(num_shards=3), entries)) == {
        "variables.data-00000-of-00003": 120,
        "variables.data-00001-of-00003": 0,
        "variables.data-00002-of-00003": 8,
    }


@pytest.mark.parametrize("per_block", [1, 2, 7, 1000])
def test_tensors_of_all_blocks_count(read, per_block):
    entries = [(b"layer/%04d" % i, i % 2, i * 8, 8) for i in range(300)]
    content = index_bytes(protos.BundleHeaderProto(num_shards=2), entries, per_block=per_block)
    assert set(read(content).values()) == {2392, 2400}


def test_name_of_the_shards_follows_the_index(tmp_path):
    file = tmp_path / "100%.index"
    file.write_bytes(index_bytes(HEADER, [(b"a", 0, 0, 4)]))
    assert shard_sizes(file) == {"100%.data-00000-of-00001": 4}


@pytest.mark.parametrize(
    ("shards", "used"), [(0, 0), (-1, 0), (1, 1), (2, 5), (1, -1), (2**31 - 1, 0), (100_000, 0)]
)
def test_shard_count_that_cannot_be_is_refused_naming_it(read, shards, used):
    with pytest.raises(CheckpointError, match=str(shards)):
        read(index_bytes(protos.BundleHeaderProto(num_shards=shards), [(b"a", used, 0, 4)]))


def test_index_without_header_is_refused(read):
    part = block([(b"a", protos.BundleEntryProto(size=4).SerializeToString())])
    top = block([(b"a", varint(0) + varint(len(part) - 5))])
    footer = varint(0) + varint(0) + varint(len(part)) + varint(len(top) - 5)
    with pytest.raises(CheckpointError, match="0 shards"):
        read(part + top + footer.ljust(40, b"\0") + MAGIC)


def test_compressed_block_is_refused(read):
    with pytest.raises(CheckpointError, match="compressed"):
        read(index_bytes(HEADER, [], compression=1))


@pytest.mark.parametrize(("size", "words"), [(47, "47 bytes"), (48, "does not end")])
def test_index_shorter_than_its_footer_is_refused_as_truncated(read, size, words):
    with pytest.raises(CheckpointError, match=words):
        read(b"\0" * size)


def test_other_magic_number_is_refused(read):
    with pytest.raises(CheckpointError, match="does not end"):
        read(index_bytes(HEADER, [], magic=b"\0" * 8))


def test_number_without_end_is_refused(read):
    with pytest.raises(CheckpointError):
        read(b"\xff" * 40 + MAGIC)


def test_value_that_is_no_message_is_refused_with_the_file_name(read):
    part = block([(b"", HEADER.SerializeToString()), (b"a", b"\xff\xff")])
    top = block([(b"a", varint(0) + varint(len(part) - 5))])
    footer = varint(0) + varint(0) + varint(len(part)) + varint(len(top) - 5)
    with pytest.raises(CheckpointError, match=r"variables\.index is damaged"):
        read(part + top + footer.ljust(40, b"\0") + MAGIC)


def test_missing_index_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        shard_sizes(tmp_path / "variables.index")


def outcome(file):
    try:
        return shard_sizes(file)
    except CheckpointError:
        return None


@pytest.mark.parametrize("model", ["half_plus_two/1", "mlp/1"])
def test_index_cut_off_anywhere_is_refused(models, tmp_path, model):
    content = (models / model / "variables" / "variables.index").read_bytes()
    file = tmp_path / "variables.index"
    for length in range(len(content)):
        file.write_bytes(content[:length])
        assert outcome(file) is None, length
    file.write_bytes(content)
    assert outcome(file)


def test_index_cut_at_its_start_is_refused(models, tmp_path):
    content = (models / "mlp/1/variables/variables.index").read_bytes()
    file = tmp_path / "variables.index"
    for length in range(1, len(content)):
        file.write_bytes(content[length:])
        assert outcome(file) is None, length


@settings(deadline=None)
@given(st.data())
def test_damaged_bytes_never_raise_anything_but_a_checkpoint_error(tmp_path_factory, data):
    header = protos.BundleHeaderProto(num_shards=2)
    entries = [(b"layer/%d" % i, i % 2, i * 8, 8) for i in range(6)]
    content = bytearray(index_bytes(header, entries, per_block=3))
    flips = st.dictionaries(
        st.integers(0, len(content) - 9), st.integers(0, 255), min_size=1, max_size=6
    )
    for at, byte in data.draw(flips).items():
        content[at] = byte
    file = tmp_path_factory.mktemp("damaged") / "variables.index"
    file.write_bytes(content)
    assert all(name.startswith("variables.data-") for name in outcome(file) or ())


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_before_the_magic_number_are_refused_or_read(tmp_path_factory, content):
    file = tmp_path_factory.mktemp("random") / "variables.index"
    file.write_bytes(content + MAGIC)
    outcome(file)
