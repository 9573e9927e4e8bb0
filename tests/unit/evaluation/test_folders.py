"""Folders as they come from archives, cameras and file shares: which of them are classes."""

import os

import pytest
from PIL import Image

from tfserve_kit.errors import UsageError
from tfserve_kit.evaluation.classes import Classes
from tfserve_kit.evaluation.datasets import open_dataset


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
    return [each.label for each in dataset.examples(range(len(dataset)))]


class TestWhatLiesAbout:
    def test_what_systems_leave_is_neither_class_nor_example(self, made):
        found = open_dataset([made(
            "cat/a.png", "dog/b.png", "__MACOSX/cat/._a.png", ".ipynb_checkpoints/x.png",
            ".DS_Store", "Thumbs.db", "cat/Thumbs.db", "cat/desktop.ini", "cat/.DS_Store",
            "cat/._a.png", "dog/__MACOSX/b.png", "@eaDir/x.png", "dog/.hidden/x.png",
        )])  # fmt: skip
        assert found.class_names == {"cat", "dog"}
        assert labels(found) == ["cat", "dog"]
        assert not found.about.left_out
        (remark,) = found.about.remarks
        assert "__MACOSX (2)" in remark
        assert "Thumbs.db (2)" in remark

    def test_files_that_are_no_pictures_are_no_examples_and_told(self, made):
        folder = made("cat/a.png", "cat/notes.txt", "cat/deep/b.xml", "dog/b.png")
        found = open_dataset([folder])
        assert labels(found) == ["cat", "dog"]
        assert [(each.name, each.reason) for each in found.about.left_out] == [
            (str(folder / "cat" / "deep" / "b.xml"), "is not a picture"),
            (str(folder / "cat" / "notes.txt"), "is not a picture"),
        ]

    def test_pictures_without_an_ending_are_known_by_their_content(self, made):
        assert labels(open_dataset([made("cat/photo", "dog/b.png")])) == ["cat", "dog"]

    def test_loose_pictures_are_told(self, made):
        found = open_dataset([made("cat/a.png", "dog/b.png", "c.png", "readme.txt")])
        assert len(found) == 2
        assert found.about.remarks[0].startswith("1 pictures right in")

    def test_links_to_nothing_and_to_folders_are_told(self, made, tmp_path):
        folder = made("cat/a.png", "dog/b.png")
        (folder / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
        (folder / "cat" / "loop").symlink_to(folder)
        (folder / "cat" / "again.png").symlink_to(folder / "cat" / "a.png")
        (folder / "cow").symlink_to(folder / "dog")
        found = open_dataset([folder])
        assert labels(found) == ["cat", "cat", "cow", "dog"]
        assert [each.reason for each in found.about.left_out] == ["is a link to nothing"]
        assert "links to folders are not followed" in found.about.remarks[0]

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
        assert "classes without any picture: cow" in found.about.remarks

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
        with pytest.raises(UsageError, match="which are the classes is not known") as caught:
            Classes.of(found, None)
        assert str(folder / such_as) in caught.value.remedy
        with pytest.raises(UsageError, match="which are the classes is not known"):
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
        assert "lie in folders below" in found.about.remarks[0]

    def test_pictures_without_classes_are_refused_with_what_helps(self, made):
        folder = made("a.png", "b.png")
        with pytest.raises(UsageError, match="but 2 pictures of its own") as caught:
            open_dataset([folder])
        assert f"tfkit predict {folder}" in caught.value.remedy
