"""Sorted class scores and label files."""

import numpy as np
import pytest

from tfserve_kit.clients.classifier import ClassScore, top_scores
from tfserve_kit.errors import UsageError
from tfserve_kit.pictures.label_files import read as read_labels


@pytest.mark.parametrize(
    ("count", "indices"), [(1, [2]), (2, [2, 0]), (3, [2, 0, 1]), (9, [2, 0, 1])]
)
def test_best_classes_come_first_and_no_more_than_asked_for(count, indices):
    found = top_scores(np.float32([0.3, 0.1, 0.6]), None, count)
    assert [each.index for each in found] == indices
    assert all(each.label is None for each in found)


def test_score_is_the_models_own_number():
    (best,) = top_scores(np.float32([0.1, 0.7]), ["no", "yes"], 1)
    assert best == ClassScore(1, "yes", float(np.float32(0.7)))
    assert isinstance(best.index, int)
    assert isinstance(best.score, float)


def test_lower_index_wins_a_tie():
    found = top_scores(np.array([1, 3, 3, 1]), ["a", "b", "c", "d"], 4)
    assert [each.label for each in found] == ["b", "c", "a", "d"]


def test_unsigned_and_extreme_scores_are_ordered_by_value():
    found = top_scores(np.uint8([0, 255, 7]), None, 3)
    assert [each.index for each in found] == [1, 2, 0]
    found = top_scores(np.float32([-np.inf, np.nan, np.inf, 0]), None, 4)
    assert [each.index for each in found] == [2, 3, 0, 1]


@pytest.mark.parametrize("labels", [["a"], ["a", "b", "c"], []])
def test_other_number_of_labels_than_classes_is_refused(labels):
    with pytest.raises(UsageError) as caught:
        top_scores(np.zeros(2), labels, 1)
    assert caught.value.message == f"{len(labels)} labels for a model with 2 classes"


@pytest.mark.parametrize(
    ("content", "labels"),
    [
        (b"cat\ndog\n", ("cat", "dog")),
        (b"cat\ndog", ("cat", "dog")),
        (b"cat\ndog\n\n\n", ("cat", "dog")),
        (b"cat\r\ndog\r\n", ("cat", "dog")),
        (b"\xef\xbb\xbfcat\n", ("cat",)),
        (b"cat\n\ndog\n", ("cat", "", "dog")),
        ("grüner Hund\n".encode(), ("grüner Hund",)),
    ],
)
def test_label_file_has_a_label_on_each_line(tmp_path, content, labels):
    (tmp_path / "labels.txt").write_bytes(content)
    assert read_labels(tmp_path / "labels.txt") == labels


def test_label_file_that_cannot_be_read_is_refused_by_name(tmp_path):
    (tmp_path / "latin1.txt").write_bytes(b"gr\xfcn\n")
    for name in ("latin1.txt", "missing.txt"):
        with pytest.raises(UsageError) as caught:
            read_labels(tmp_path / name)
        assert caught.value.message.startswith(f"cannot read the labels in {tmp_path / name}: ")
