"""Labelled sets of every form, damaged ones too, and which class a label means."""

import gzip
import io
import os
import re
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tfserve_kit.errors import InvalidRequest, UsageError
from tfserve_kit.evaluation.classes import Classes
from tfserve_kit.evaluation.datasets import open_dataset
from tfserve_kit.evaluation.examples import choose

IMAGES = np.arange(24, dtype=np.uint8).reshape(3, 2, 4)
LABELS = [7, 0, 2]


def idx(array):
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return b"\0\0\x08" + bytes([array.ndim]) + sizes + array.astype(np.uint8).tobytes()


@pytest.fixture
def pair(tmp_path):
    """The two files of a set like MNIST's."""
    images, labels = tmp_path / "t10k-images-idx3-ubyte", tmp_path / "t10k-labels-idx1-ubyte"
    images.write_bytes(idx(IMAGES))
    labels.write_bytes(idx(np.array(LABELS)))
    return images, labels


def contents(dataset, wanted=None):
    chosen = range(len(dataset)) if wanted is None else wanted
    return [(each.index, each.label, each.load()) for each in dataset.read(chosen)]


def assert_holds_images(dataset, labels=LABELS):
    found = contents(dataset)
    assert [label for _, label, _ in found] == labels
    np.testing.assert_array_equal([content for _, _, content in found], IMAGES)


class TestIdx:
    def test_two_files_in_either_order(self, pair):
        assert_holds_images(open_dataset(pair))
        assert_holds_images(open_dataset(pair[::-1]))

    def test_labels_are_found_beside_the_images(self, pair):
        assert_holds_images(open_dataset(pair[:1]))

    def test_folder_with_four_files_means_the_test_set(self, pair, tmp_path):
        (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(IMAGES[:1]))
        (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.array([1])))
        assert_holds_images(open_dataset([tmp_path]))

    def test_compressed_files_are_known_by_their_content(self, pair):
        for file in pair:
            file.write_bytes(gzip.compress(file.read_bytes()))
        assert_holds_images(open_dataset(pair))

    def test_only_what_is_wanted_is_yielded_with_its_place(self, pair):
        found = list(open_dataset(pair).read([0, 2]))
        assert [(each.index, each.label) for each in found] == [(0, 7), (2, 2)]
        assert found[1].name == f"{pair[0]}[2]"
        np.testing.assert_array_equal(found[1].load(), IMAGES[2])

    def test_nothing_wanted_gives_nothing(self, pair):
        assert contents(open_dataset(pair), []) == []

    @pytest.mark.parametrize(
        ("content", "fault"),
        [
            (b"", "starts with nothing"),
            (b"\x89PNG and so on", "starts with 89 50 4e 47"),
            (
                b"\x93NUMPY",
                "is no set of labelled examples: by its name it is no table and no .npz",
            ),
            (b"\0\0\x0d\3" + bytes(12), "starts with 00 00 0d 03"),
            (b"\0\0\x08\0", "starts with 00 00 08 00"),
            (idx(IMAGES)[:9], "truncated within its header"),
            (idx(IMAGES)[:-1], "truncated: 23 values where shape [3, 2, 4] needs 24"),
            (idx(IMAGES) + b"\0", "too long: 25 values"),
            (gzip.compress(idx(IMAGES))[:-9], "truncated: its gzip data ends too early"),
            (gzip.compress(idx(IMAGES))[:10] + b"\xff" * 20, "damaged"),
            (idx(np.zeros((3, 2, 2, 4))), "4 channels"),
            (idx(np.zeros((3, 1, 1, 1, 1))), "which is not the shape of images"),
            (idx(IMAGES[:2]), "labels of shape [3] for 2 images"),
        ],
    )
    def test_damage_is_named_before_anything_is_sent(self, pair, content, fault):
        pair[0].write_bytes(content)
        with pytest.raises(UsageError, match=re.escape(fault)):
            open_dataset(pair)

    def test_missing_labels_are_named(self, pair):
        pair[1].unlink()
        with pytest.raises(UsageError, match="no file of labels beside"):
            open_dataset(pair[:1])

    @settings(deadline=None)
    @given(array=st.builds(lambda n, h, w: np.full((n, h, w), n, np.uint8),
                           st.integers(1, 5), st.integers(1, 6), st.integers(1, 6)),
           packed=st.booleans())  # fmt: skip
    def test_any_size_comes_back(self, array, packed, tmp_path_factory):
        folder = tmp_path_factory.mktemp("idx")
        pack = gzip.compress if packed else bytes
        (folder / "a-images-idx3-ubyte").write_bytes(pack(idx(array)))
        (folder / "a-labels-idx1-ubyte").write_bytes(pack(idx(np.arange(len(array)))))
        found = contents(open_dataset([folder]))
        np.testing.assert_array_equal([content for _, _, content in found], array)
        assert [label for _, label, _ in found] == list(range(len(array)))


class TestFolder:
    @pytest.fixture
    def folder(self, tmp_path):
        for kind, name in (("dog", "b.png"), ("cat", "a.png"), ("cat", "deep/c.png")):
            file = tmp_path / "set" / kind / name
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (2, 2), 9).save(file)
        (tmp_path / "set" / ".hidden").mkdir()
        (tmp_path / "set" / ".hidden" / "x.png").write_bytes(b"")
        (tmp_path / "set" / "cat" / ".DS_Store").write_bytes(b"")
        (tmp_path / "set" / "README").write_text("not in a class")
        return tmp_path / "set"

    def test_folders_are_the_labels(self, folder):
        found = open_dataset([folder])
        assert found.class_names == {"cat", "dog"}
        names = [(each.name, each.label) for each in found.read(range(3))]
        assert names == [(str(folder / "cat" / "a.png"), "cat"),
                         (str(folder / "cat" / "deep" / "c.png"), "cat"),
                         (str(folder / "dog" / "b.png"), "dog")]  # fmt: skip
        assert Image.open(io.BytesIO(contents(found)[0][2])).size == (2, 2)

    def test_a_file_that_went_away_fails_when_it_is_loaded(self, folder):
        (example,) = open_dataset([folder]).read([2])
        (folder / "dog" / "b.png").unlink()
        with pytest.raises(InvalidRequest, match=r"cannot read .*b\.png"):
            example.load()

    def test_folder_without_classes_is_refused(self, tmp_path):
        (tmp_path / "a.png").write_bytes(b"")
        with pytest.raises(UsageError, match="holds no folders with pictures"):
            open_dataset([tmp_path])


class TestCsv:
    @pytest.mark.parametrize("header", ["", "path,label\n", "File,Label\r\n"])
    def test_paths_are_from_the_file_s_own_folder(self, tmp_path, header):
        (tmp_path / "a.png").write_bytes(b"A")
        (tmp_path / "b, c.png").write_bytes(b"B")
        file = tmp_path / "set.csv"
        file.write_text(f'{header}a.png,cat\n\n"b, c.png", dog \n', newline="")
        found = open_dataset([file])
        assert contents(found) == [(0, "cat", b"A"), (1, "dog", b"B")]
        assert found.class_names == {"cat", "dog"}

    @pytest.mark.parametrize("header", ["", "label,1x1,1x2,1x3\n", "\ufefflabel,p0,p1,p2\n"])
    def test_pixels(self, tmp_path, header):
        file = tmp_path / "set.csv"
        file.write_text(f"{header}7,0,128,255\n0, 1,2,3\n", "utf-8")
        found = contents(open_dataset([file]))
        assert [label for _, label, _ in found] == [7, 0]
        assert [content.tolist() for _, _, content in found] == [[0, 128, 255], [1, 2, 3]]
        assert found[0][2].dtype == np.uint8

    @pytest.mark.parametrize(
        ("row", "fault"),
        [
            ("1,2,3", "has 2 pixels, most rows 3"),
            ("1,2,3,4,5", "has 4 pixels"),
            ("1,2,x,4", "not a number"),
            ("1,2,256,4", "whole numbers from 0 to 255"),
            ("1,2,-1,4", "whole numbers from 0 to 255"),
            ("1,2,0.5,4", "whole numbers from 0 to 255"),
            ("1,2,nan,4", "whole numbers from 0 to 255"),
        ],
    )
    def test_a_bad_row_fails_alone_and_by_name(self, tmp_path, row, fault):
        file = tmp_path / "set.csv"
        file.write_text(f"5,0,0,0\n{row}\n6,1,1,1\n")
        _, bad, good = open_dataset([file]).read(range(3))
        with pytest.raises(InvalidRequest, match=re.escape(f"{file}[1]: ") + f".*{fault}"):
            bad.load()
        assert good.load().tolist() == [1, 1, 1]

    @pytest.mark.parametrize(
        ("content", "fault"),
        [
            (b"", "no column"),
            (b"a\nb\n", "only one column"),
            (b"path,label\n", "a header and no rows"),
            (b"label,p0,p1\n", "a header and no rows"),
            (b"\xff\xfe\0a", "cannot read"),
        ],
    )
    def test_files_that_are_no_set_are_refused(self, tmp_path, content, fault):
        (tmp_path / "set.csv").write_bytes(content)
        with pytest.raises(UsageError, match=fault):
            open_dataset([tmp_path / "set.csv"])


class TestNpz:
    @pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
    def test_bytes_are_pictures(self, tmp_path, save):
        save(tmp_path / "set.npz", x=IMAGES, y=np.array(LABELS))
        found = open_dataset([tmp_path / "set.npz"])
        assert not found.ready
        assert_holds_images(found)

    @pytest.mark.parametrize("dtype", [np.float32, ">f8", np.int64])
    def test_other_types_are_rows_of_the_input(self, tmp_path, dtype):
        np.savez(tmp_path / "set.npz", x=IMAGES.astype(dtype), y=np.array(LABELS, np.uint8))
        found = open_dataset([tmp_path / "set.npz"])
        assert found.ready
        assert_holds_images(found)
        assert contents(found)[0][2].dtype == np.dtype(dtype)

    @pytest.mark.parametrize(
        ("labels", "read"),
        [
            (np.array(["cat", "dog", "cat"]), ["cat", "dog", "cat"]),
            (np.array([[1], [0], [2]]), [1, 0, 2]),
            (np.eye(3, dtype=np.float32)[[1, 0, 2]], [1, 0, 2]),
        ],
    )
    def test_names_columns_and_one_hot_rows_are_labels(self, tmp_path, labels, read):
        np.savez(tmp_path / "set.npz", x=IMAGES, y=labels)
        assert_holds_images(open_dataset([tmp_path / "set.npz"]), read)

    @pytest.mark.parametrize(("x", "y"), [("x_test", "y_test"), ("test_images", "test_labels")])
    def test_arrays_of_keras_and_medmnist_are_those_of_the_test_set(self, tmp_path, x, y):
        train = {x.replace("test", "train"): IMAGES[:1], y.replace("test", "train"): np.array([1])}
        np.savez(tmp_path / "set.npz", **{x: IMAGES, y: np.array(LABELS)[:, np.newaxis]}, **train)
        found = open_dataset([tmp_path / "set.npz"])
        assert_holds_images(found)
        assert f"of its arrays, {x} and {y} are used (change: " in found.remarks[0]

    def test_shares_are_labels_and_it_is_told(self, tmp_path):
        shares = np.array([[0.2, 0.8, 0], [0.9, 0.1, 0], [0, 0.3, 0.7]], np.float32)
        np.savez(tmp_path / "set.npz", x=IMAGES, y=shares)
        found = open_dataset([tmp_path / "set.npz"])
        assert_holds_images(found, [1, 0, 2])
        assert "the highest share" in found.remarks[0]

    def test_whole_numbers_stored_as_floats_are_labels(self, tmp_path):
        np.savez(tmp_path / "set.npz", x=IMAGES, y=np.array(LABELS, np.float32))
        assert_holds_images(open_dataset([tmp_path / "set.npz"]))

    @pytest.mark.parametrize(
        ("arrays", "fault"),
        [
            ({"x": IMAGES, "y": np.array([[3, 1], [0, 1], [2, 2]])}, "which cannot be labels"),
            ({"x": IMAGES, "y": np.array([[-1.0, 2.0]] * 3)}, "which cannot be labels"),
            ({"x": IMAGES}, "has no y; it has x"),
            ({}, "has no x and no y; it has nothing"),
            ({"x": IMAGES, "y": np.array([1])}, r"shape \[3, 2, 4\] for 1 labels"),
            ({"x": IMAGES, "y": np.array([0.5, 1, 2])}, "which cannot be labels"),
            ({"x": np.asfortranarray(IMAGES), "y": np.arange(3)}, "column by column"),
            ({"x": np.zeros((3, 2, 2, 5), np.uint8), "y": np.arange(3)}, "5 channels"),
            ({"x": np.zeros(3, np.uint8), "y": np.arange(3)}, "which is not the shape of pictures"),
        ],
    )
    def test_other_arrays_are_refused(self, tmp_path, arrays, fault):
        np.savez(tmp_path / "set.npz", **arrays)
        with pytest.raises(UsageError, match=fault):
            open_dataset([tmp_path / "set.npz"])

    def test_objects_are_not_unpickled(self, tmp_path):
        objects = np.array([b"a", None, 3], object)
        np.savez(tmp_path / "set.npz", x=objects, y=np.arange(3), allow_pickle=True)
        with pytest.raises(UsageError, match="holds Python objects"):
            open_dataset([tmp_path / "set.npz"])

    def test_damaged_data_is_named(self, tmp_path):
        file = tmp_path / "set.npz"
        np.savez(file, x=np.zeros((9, 99, 99), np.uint8), y=np.arange(9))
        content = bytearray(file.read_bytes())
        content[5000] ^= 0xFF
        file.write_bytes(content)
        with pytest.raises(UsageError, match="cannot read"):
            contents(open_dataset([file]))

    def test_what_is_no_archive_is_refused(self, tmp_path):
        (tmp_path / "set.npz").write_bytes(b"no zip file")
        with pytest.raises(UsageError, match="cannot read"):
            open_dataset([tmp_path / "set.npz"])
        with zipfile.ZipFile(tmp_path / "set.npz", "w") as archive:
            archive.writestr("x.npy", b"no array")
            archive.writestr("y.npy", b"no array")
        with pytest.raises(UsageError, match="cannot read"):
            open_dataset([tmp_path / "set.npz"])


class TestPaths:
    def test_missing_path_is_named(self, tmp_path):
        with pytest.raises(UsageError, match=r"cannot read .*nowhere: No such file"):
            open_dataset([tmp_path / "nowhere"])

    def test_many_paths_are_no_set(self, tmp_path):
        with pytest.raises(UsageError, match="3 paths are not a labelled set"):
            open_dataset([tmp_path] * 3)


class TestChoose:
    def test_first_n_or_all(self):
        assert list(choose(5, 3, None)) == [0, 1, 2]
        assert list(choose(5, None, 1)) == list(choose(5, 9, 1)) == [0, 1, 2, 3, 4]

    @settings(deadline=None)
    @given(st.integers(1, 50), st.integers(1, 50), st.integers(0, 9))
    def test_drawn_ones_are_different_rising_and_the_same_for_a_seed(self, total, count, seed):
        found = list(choose(total, count, seed))
        assert found == sorted(set(found)) == list(choose(total, count, seed))
        assert len(found) == min(total, count)
        assert all(0 <= index < total for index in found)

    def test_another_seed_draws_others(self):
        assert choose(1000, 10, 1) != choose(1000, 10, 2)


class TestClasses:
    def test_names_are_looked_up_in_the_labels(self):
        classes = Classes(("dog", "cat", "1"), {"cat", "dog"})
        assert [classes.index(label) for label in ("cat", "dog", "1")] == [1, 0, 2]
        assert classes.index(1) == 1  # a number is an index, whatever names there are
        assert classes.index("0") == 0
        assert not any("sorted by name" in remark for remark in classes.remarks())

    def test_unknown_name_fails_with_the_nearest(self):
        with pytest.raises(InvalidRequest, match="no class 'dgo'") as caught:
            Classes(("dog", "cat"), {"dgo"}).index("dgo")
        assert caught.value.remedy.startswith("did you mean dog?; ")

    def test_whole_numbers_are_indices_where_no_labels_are_known(self):
        classes = Classes(None, {"10", "2"})
        assert [classes.index(label) for label in ("2", "10")] == [2, 10]
        assert classes.name(10) == "10"
        classes.require(11)  # not all classes need to occur

    def test_other_names_stand_in_sorted_order(self):
        classes = Classes(None, {"dog", "cat", "10"})
        assert [classes.index(label) for label in ("10", "cat", "dog")] == [0, 1, 2]
        assert classes.name(1) == "cat"
        assert any("sorted by name" in remark for remark in classes.remarks())

    def test_sorted_names_must_be_as_many_as_the_classes(self):
        Classes(None, {"cat", "dog"}).require(2)
        both = r"the set has 2 classes \(cat, dog\), the model 3 \(numbers 0 to 2, "
        with pytest.raises(UsageError, match=both) as caught:
            Classes(None, {"cat", "dog"}).require(3)
        assert "--labels" in caught.value.remedy
        with pytest.raises(UsageError, match="has 2 classes") as caught:
            Classes(None, {"cat", "dog"}).require(1)
        assert caught.value.remedy.startswith("remove the extra class from the set, or ")

    def test_labels_must_be_as_many_as_the_classes(self):
        with pytest.raises(UsageError, match="2 labels for a model with 3 classes"):
            Classes(("a", "b"), set()).require(3)

    def test_the_first_of_equal_labels_counts(self):
        assert Classes(("crane", "crane"), {"crane"}).index("crane") == 0


@pytest.fixture
def made(tmp_path):
    """Make files of a set: pictures, folders for names that end in /, texts for others."""

    def make(*names):
        for name in names:
            file = tmp_path / "set" / name
            if name.endswith("/"):
                file.mkdir(parents=True)
                continue
            file.parent.mkdir(parents=True, exist_ok=True)
            if name.endswith(("png", "photo")):
                Image.new("L", (2, 2), 9).save(file, "PNG")
            else:
                file.write_bytes(b"no picture at all")
        return tmp_path / "set"

    return make


def labels(dataset):
    return [each.label for each in dataset.read(range(len(dataset)))]


class TestWhatLiesAbout:
    def test_what_systems_leave_is_neither_class_nor_example(self, made):
        found = open_dataset([made(
            "cat/a.png", "dog/b.png", "__MACOSX/cat/._a.png", ".ipynb_checkpoints/x.png",
            ".DS_Store", "Thumbs.db", "cat/Thumbs.db", "cat/desktop.ini", "cat/.DS_Store",
            "cat/._a.png", "dog/__MACOSX/b.png", "@eaDir/x.png", "dog/.hidden/x.png",
        )])  # fmt: skip
        assert found.class_names == {"cat", "dog"}
        assert labels(found) == ["cat", "dog"]
        assert not found.left_out
        (remark,) = found.remarks
        assert "__MACOSX (2)" in remark
        assert "Thumbs.db (2)" in remark

    def test_files_that_are_no_pictures_are_no_examples_and_told(self, made):
        folder = made("cat/a.png", "cat/notes.txt", "cat/deep/b.xml", "dog/b.png")
        found = open_dataset([folder])
        assert labels(found) == ["cat", "dog"]
        assert [(each.name, each.reason) for each in found.left_out] == [
            (str(folder / "cat" / "deep" / "b.xml"), "is not a picture"),
            (str(folder / "cat" / "notes.txt"), "is not a picture"),
        ]

    def test_pictures_without_an_ending_are_known_by_their_content(self, made):
        assert labels(open_dataset([made("cat/photo", "dog/b.png")])) == ["cat", "dog"]

    def test_loose_pictures_are_told(self, made):
        found = open_dataset([made("cat/a.png", "dog/b.png", "c.png", "readme.txt")])
        assert len(found) == 2
        assert found.remarks[0].startswith("1 pictures right in")

    def test_links_to_nothing_and_to_folders_are_told(self, made, tmp_path):
        folder = made("cat/a.png", "dog/b.png")
        (folder / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
        (folder / "cat" / "loop").symlink_to(folder)
        (folder / "cat" / "again.png").symlink_to(folder / "cat" / "a.png")
        (folder / "cow").symlink_to(folder / "dog")
        found = open_dataset([folder])
        assert labels(found) == ["cat", "cat", "cow", "dog"]
        assert [each.reason for each in found.left_out] == ["is a broken link"]
        assert "links to folders are not followed" in found.remarks[0]

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_a_folder_that_cannot_be_read_is_named(self, made):
        folder = made("cat/a.png", "dog/b.png")
        (folder / "dog").chmod(0)
        try:
            with pytest.raises(UsageError, match=r"cannot read .*dog"):
                open_dataset([folder])
        finally:
            (folder / "dog").chmod(0o700)


class TestEmptyFolders:
    def test_they_are_classes_in_the_sorted_order(self, made):
        found = open_dataset([made("cat/a.png", "cow/", "dog/b.png")])
        assert found.class_names == {"cat", "cow", "dog"}
        classes = Classes.of(found, None)
        classes.agree(found, 3)
        assert classes.index("dog") == 2
        (remark,) = found.remarks
        assert remark.startswith("empty folders count as classes with no examples: cow (change: ")

    def test_they_contradict_no_labels(self, made):
        found = open_dataset([made("cat/a.png", "logs/", "dog/b.png")])
        Classes.of(found, ("cat", "dog")).agree(found, 2)

    def test_nothing_else_is_no_set(self, made):
        with pytest.raises(UsageError, match="these are empty: cat, dog"):
            open_dataset([made("cat/", "dog/")])


class TestLevels:
    @pytest.mark.parametrize(
        ("names", "such_as"),
        [
            (["train/cat/a.png", "train/dog/b.png", "val/cat/c.png", "val/dog/d.png"], "val"),
            (["train/cat/a.png", "train/dog/b.png", "test/cow/c.png"], "test"),
            (["photos/cat/a.png", "photos/dog/b.png"], "photos"),
            (["set1/cat/a.png", "set2/cat/a.png"], "set1"),
            (["Validation/cat/a.png", "Training/dog/b.png", "__MACOSX/x.png"], "Validation"),
        ],
    )
    def test_a_level_too_high_is_refused_naming_the_right_one(self, made, names, such_as):
        folder = made(*names)
        found = open_dataset([folder])
        with pytest.raises(UsageError, match="it is not known which are the classes") as caught:
            Classes.of(found, None)
        assert str(folder / such_as) in caught.value.remedy
        with pytest.raises(UsageError, match="it is not known which are the classes"):
            Classes.of(found, ("cat", "dog", "cow"))

    def test_parts_without_classes_are_refused(self, made):
        found = open_dataset([made("train/a.png", "test/b.png")])
        with pytest.raises(UsageError, match="parts of a set by their names"):
            Classes.of(found, None)

    def test_names_that_the_model_knows_are_classes_at_any_rate(self, made):
        found = open_dataset([made("train/steam/a.png", "test/steam/b.png")])
        assert Classes.of(found, ("train", "test")).index("test") == 1

    def test_pictures_below_are_their_class_s_and_it_is_told(self, made):
        found = open_dataset([made("cat/2020/a.png", "dog/2021/b.png")])
        assert labels(found) == ["cat", "dog"]
        assert Classes.of(found, None).index("dog") == 1
        assert "lie in folders below" in found.remarks[0]

    def test_pictures_without_classes_are_refused_with_what_helps(self, made):
        folder = made("a.png", "b.png")
        with pytest.raises(UsageError, match="only 2 pictures, without a class") as caught:
            open_dataset([folder])
        assert f"tfkit predict {folder}" in caught.value.remedy
