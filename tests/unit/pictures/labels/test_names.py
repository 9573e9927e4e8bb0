"""Whether names are as many as the classes of a model, and what proves a class more or fewer."""

import pytest

from tfserve_kit.errors import UsageError
from tfserve_kit.pictures.labels import Labels, parse


def test_as_many_as_classes_are_taken_as_they_are():
    labels = Labels(("background", "cat"))
    assert labels.fit(2) is labels
    assert not labels.fit(2).remarks


@pytest.mark.parametrize(
    "first", ["background", "Background", "__background__", "dummy", "unknown", "???", "label"]
)
def test_a_first_line_too_many_that_names_no_class_is_left_out_and_told(first):
    found = parse(f"{first}\ncat\ndog\n", "f").fit(2)
    assert found == ("cat", "dog")
    assert found.remarks == (f"f: the first label, {first!r}, is left out: it is one too many",)


def test_aliases_follow_their_names():
    text = '{"0": ["n0", "background"], "1": ["n1", "cat"], "2": ["n2", "dog"]}'
    assert parse(text, "f").fit(2).aliases == {"n1": 0, "n2": 1}


def test_ids_from_one_that_are_as_many_as_the_classes_are_shifted_and_told():
    found = parse("1: cat\n2: dog\n", "f").fit(2)
    assert found == ("cat", "dog")
    assert found.remarks == ("f counts from 1: class 0 is 'cat'",)


def test_ids_from_one_leave_class_0_to_the_background():
    found = parse("item { id: 1 name: 'n1' display_name: 'cat' }", "f").fit(2)
    assert found == ("background", "cat")
    assert found.aliases == {"n1": 1}
    assert "class 0, which it does not name, is background" in found.remarks[0]


@pytest.mark.parametrize(
    ("text", "classes", "said", "remedy"),
    [
        ("a\nb\nc\n", 2, "f: 3 labels for a model with 2 classes; the first label is 'a', the last "
         "'c'", "one label for each class"),
        ("a\nb\n", 3, "2 labels for a model with 3 classes", "put 'background' on a line before"),
        ("a\n", 2, "1 labels for a model with 2 classes", "name both classes, first the one"),
        ("a\n\nb\n\n\n", 2, "; line 2 blank", "delete the blank lines"),
        ("1 a\n2 b\n", 4, "2 labels for a model with 4 classes", "one label"),
        ("1 a\n2 b\n", 1, "2 labels for a model with 1 classes", "one label"),
        ("0 cat\n1 a\n2 b\n", 2, "3 labels", "one label"),
    ],
)  # fmt: skip
def test_other_counts_are_refused_with_file_number_and_ends(text, classes, said, remedy):
    with pytest.raises(UsageError) as caught:
        parse(text, "f").fit(classes)
    assert said in caught.value.message
    assert remedy in caught.value.remedy


@pytest.mark.parametrize(("text", "names"), [("1 a\n2 b\n", [None, "a", "b", None]),
                                             ("a\nb\n", ["a", "b", None, None])])  # fmt: skip
def test_a_class_by_its_number_has_the_name_that_the_file_gives_it(text, names):
    found = parse(text, "f")
    assert [found.by_id(index) for index in range(4)] == names
    assert found.by_id(-1) is None


def test_one_name_for_one_column_is_that_of_the_second_class_and_told():
    found = parse("cat\n", "f").fit(2, is_one_column=True)
    assert found == ("not cat", "cat")
    assert found.remarks == ("f: class 1 is 'cat', class 0 is not",)
    assert parse("a\nb\n", "f").fit(2, is_one_column=True) == ("a", "b")
