"""The digits that the examples train on: IDX reading and writing, and the files in `data/`."""

import gzip
import hashlib
import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[2]
DATA = REPOSITORY / "data"


def load_example(name):
    path = REPOSITORY / "examples" / "digits" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"examples_digits_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


idx = load_example("idx")

CUBE = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
CUBE_AS_IDX = bytes.fromhex("00000803 00000002 00000003 00000004") + bytes(range(24))


@pytest.fixture(scope="module")
def digits():
    return idx.load(DATA / "digits")


class TestReadAndWrite:
    @pytest.mark.parametrize("name", ["cube", "cube.gz", "cube.idx3-ubyte.gz"])
    @pytest.mark.parametrize("array", [CUBE, CUBE[0], CUBE[:0], CUBE.T], ids=lambda a: str(a.shape))
    def test_round_trip(self, tmp_path, name, array):
        idx.write_idx(tmp_path / name, array)
        again = idx.read_idx(tmp_path / name)
        assert again.dtype == np.uint8
        np.testing.assert_array_equal(again, array)

    def test_bytes_are_those_of_the_format(self, tmp_path):
        idx.write_idx(tmp_path / "cube", CUBE)
        assert (tmp_path / "cube").read_bytes() == CUBE_AS_IDX

    def test_gz_is_compressed_and_depends_on_the_values_only(self, tmp_path):
        for name in ("one.gz", "other.gz"):
            idx.write_idx(tmp_path / name, CUBE)
        content = (tmp_path / "one.gz").read_bytes()
        assert gzip.decompress(content) == CUBE_AS_IDX
        assert content == (tmp_path / "other.gz").read_bytes()

    def test_unpacked_file_still_named_gz_is_read(self, tmp_path):
        (tmp_path / "cube.gz").write_bytes(CUBE_AS_IDX)
        np.testing.assert_array_equal(idx.read_idx(tmp_path / "cube.gz"), CUBE)

    def test_other_types_are_not_written(self, tmp_path):
        with pytest.raises(ValueError, match=r"cube: cannot hold float64 values"):
            idx.write_idx(tmp_path / "cube", CUBE.astype(np.float64))
        assert not (tmp_path / "cube").exists()


class TestDamagedFiles:
    @pytest.mark.parametrize(
        ("content", "fault"),
        [
            (b"", "starts with ''"),
            (b"\x89PNG and so on", "starts with '89 50 4e 47'"),
            (b"\0\0\x0d\1\0\0\0\1\0\0\0\0", "starts with '00 00 0d 01'"),
            (CUBE_AS_IDX[:3], "truncated within its header, at 3 bytes"),
            (CUBE_AS_IDX[:15], "truncated within its header, at 15 bytes"),
            (CUBE_AS_IDX[:-1], "truncated: 23 values where shape (2, 3, 4) needs 24"),
            (CUBE_AS_IDX + b"\0", "too long: 25 values where shape (2, 3, 4) needs 24"),
            (gzip.compress(CUBE_AS_IDX)[:-9], "truncated: its gzip data ends too early"),
            (gzip.compress(CUBE_AS_IDX[:-1]), "truncated: 23 values"),
            (gzip.compress(CUBE_AS_IDX)[:10] + b"\xff" * 20, "damaged gzip data"),
        ],
    )
    def test_error_names_the_file_and_the_fault(self, tmp_path, content, fault):
        path = tmp_path / "train-images"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=re.escape(f"{path}: {fault}")):
            idx.read_idx(path)


class TestLoad:
    IMAGES, LABELS = np.zeros((2, 28, 28), np.uint8), np.array([3, 7], np.uint8)

    def write(self, directory, joint="-", suffix="", **changed):
        for part in ("train", "t10k"):
            images, labels = changed.get("images", self.IMAGES), changed.get("labels", self.LABELS)
            idx.write_idx(directory / f"{part}-images{joint}idx3-ubyte{suffix}", images)
            idx.write_idx(directory / f"{part}-labels{joint}idx1-ubyte{suffix}", labels)

    @pytest.mark.parametrize("joint", ["-", "."])
    @pytest.mark.parametrize("suffix", ["", ".gz"])
    def test_every_spelling_of_the_names_is_found(self, tmp_path, joint, suffix):
        self.write(tmp_path, joint, suffix)
        np.testing.assert_array_equal(idx.load(tmp_path).test_labels, [3, 7])

    def test_missing_file_is_named(self, tmp_path):
        self.write(tmp_path)
        (tmp_path / "t10k-labels-idx1-ubyte").unlink()
        with pytest.raises(FileNotFoundError, match=r"holds none of t10k-labels-idx1-ubyte\.gz, "):
            idx.load(tmp_path)

    def test_images_of_another_size_are_refused(self, tmp_path):
        self.write(tmp_path, images=CUBE)
        with pytest.raises(ValueError, match=r"train-images-idx3-ubyte: holds shape \(2, 3, 4\)"):
            idx.load(tmp_path)

    def test_every_image_needs_one_label(self, tmp_path):
        self.write(tmp_path, labels=self.LABELS[:1])
        with pytest.raises(ValueError, match=r"train-labels-.*: shape \(1,\) for 2 images"):
            idx.load(tmp_path)


class TestShippedDigits:
    def test_shapes_and_types(self, digits):
        assert digits.train_images.shape == (1300, 28, 28)
        assert digits.train_labels.shape == (1300,)
        assert digits.test_images.shape == (497, 28, 28)
        assert digits.test_labels.shape == (497,)

    def test_every_class_has_its_share_of_both_parts(self, digits):
        in_train, in_test = np.bincount(digits.train_labels), np.bincount(digits.test_labels)
        assert len(in_train) == len(in_test) == 10
        np.testing.assert_allclose(in_test / (in_train + in_test), 497 / 1797, atol=0.01)

    def test_strokes_are_light_on_black(self, digits):
        assert digits.train_images.max() == 255
        assert np.median(digits.train_images) == 0
        assert not digits.train_images[:, 0].any()

    def test_no_image_is_twice_in_the_set(self, digits):
        images = [*digits.train_images, *digits.test_images]
        assert len({image.tobytes() for image in images}) == 1797

    @pytest.mark.parametrize("label", range(10))
    def test_jpeg_is_a_held_out_digit(self, digits, label):
        with Image.open(DATA / "digits" / "jpeg" / f"digit-{label}.jpg") as jpeg:
            assert (jpeg.format, jpeg.mode, jpeg.size) == ("JPEG", "L", (112, 112))
            pixels = np.asarray(jpeg.resize((28, 28), Image.Resampling.BILINEAR), np.int16)
        differences = np.abs(digits.test_images - pixels).mean(axis=(1, 2))
        assert digits.test_labels[differences.argmin()] == label
        # The digit itself comes back within about 2 grey levels; the next nearest is 7 away.
        assert differences.min() < 4


def test_checksums_in_the_readme_are_those_of_the_files():
    readme = (DATA / "README.md").read_text("utf-8")
    rows = re.findall(r"^\| `(.+)` \| (\d+) \| `(\w{64})` \|$", readme, re.MULTILINE)
    files = {path for path in (DATA / "digits").rglob("*") if path.is_file()}
    assert {DATA / "digits" / name for name, _, _ in rows} == files
    for name, size, checksum in rows:
        content = (DATA / "digits" / name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (int(size), checksum), name
