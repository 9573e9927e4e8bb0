"""Names and numbers of classes in a set and in a model: alike, otherwise, contradicting."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfserve_kit.errors import UsageError
from tfserve_kit.evaluation.classes import Classes
from tfserve_kit.evaluation.examples import Dataset
from tfserve_kit.pictures.labels import parse


def agreed(labels, names=(), classes=None, *, numbers=(), first_class=None):
    found = Classes(labels, names, numbers=numbers, first_class=first_class)
    found.agree(Dataset("the set", list(names), lambda wanted: iter(())), classes)
    return found


class TestNumbers:
    @pytest.mark.parametrize("names", [["1", "2", "3"], ["01", "02", "03"]])
    def test_counted_from_1_against_a_model_of_as_many_is_refused(self, names):
        with pytest.raises(UsageError, match="numbered 1 to 3, and those of the model 0 to 2") as e:
            agreed(None, names, 3)
        assert "--first-class 1" in e.value.remedy

    @pytest.mark.parametrize("names", [["1", "2", "3"], ["01", "02", "03"]])
    def test_they_are_shifted_if_that_is_said_and_it_is_told(self, names):
        found = agreed(None, names, 3, first_class=1)
        assert [found.index(name) for name in names] == [0, 1, 2]
        assert found.name(0) == "1"
        assert "counted from 1" in found.remarks()[0]

    def test_indices_of_arrays_are_looked_at_as_well(self):
        with pytest.raises(UsageError, match="numbered 1 to 26"):
            agreed(None, (), 26, numbers=range(1, 27))
        assert agreed(None, (), 26, numbers=range(1, 27), first_class=1).index(26) == 25

    def test_others_beyond_the_model_have_no_such_remedy(self):
        with pytest.raises(UsageError, match="numbered 0 to 7") as caught:
            agreed(None, ["0", "7"], 3)
        assert "--first-class" not in caught.value.remedy

    def test_what_begins_at_1_and_fits_all_the_same_is_told(self):
        (remark,) = agreed(None, (), 5, numbers=[1, 2, 3]).remarks()
        assert "--first-class 1" in remark

    def test_folders_up_to_nine_need_no_remark_and_more_do(self):
        assert agreed(None, list("0123456789"), 10).remarks() == []
        (remark,) = agreed(None, [str(i) for i in range(12)], 12).remarks()
        assert "sorted as texts" in remark

    def test_padded_numbers_are_numbers(self):
        assert agreed(None, ["00", "01", "10"], 11).index("01") == 1

    def test_first_class_of_names_is_refused(self):
        with pytest.raises(UsageError, match="--first-class is for classes that are numbers"):
            agreed(None, ["cat", "dog"], 2, first_class=1)

    @pytest.mark.parametrize(
        ("labels", "name", "index"), [(("01", "02"), "2", 1), (("7", "5"), "05", 1)]
    )
    def test_a_number_that_the_model_has_as_a_name_is_that(self, labels, name, index):
        assert agreed(labels, [name], 2).index(name) == index


class TestNames:
    @pytest.mark.parametrize(
        ("label", "name"),
        [
            ("great white shark", "Great_White-Shark"),
            ("gr\u00fcn", "gru\u0308n"),  # as macOS and as the rest writes it
            ("Cat", "cat"),
        ],
    )
    def test_other_ways_to_write_a_name_are_understood_and_told(self, label, name):
        found = agreed(("dog", label), [name], 2)
        assert found.index(name) == 1
        assert f"{name} is {label}" in found.remarks()[0]

    def test_of_two_names_that_differ_in_case_alone_each_is_itself(self):
        found = agreed(("Cat", "cat"), ["cat", "Cat"], 2)
        assert [found.index(name) for name in ("Cat", "cat")] == [0, 1]
        with pytest.raises(UsageError, match=r"no class of the set \(CAT\) is in"):
            agreed(("Cat", "cat"), ["CAT"], 2)

    def test_classes_of_a_set_that_differ_in_case_alone_are_told(self):
        assert "differ only in how they are written are different: Cat, cat (change: " in " ".join(
            agreed(None, ["Cat", "cat"], 2).remarks()
        )

    def test_aliases_are_names(self):
        labels = parse('{"0": ["n01440764", "tench"], "1": ["n01443537", "goldfish"]}', "f")
        assert agreed(labels, ["n01443537"], 2).index("n01443537") == 1

    def test_classes_that_the_model_lacks_are_refused_with_both_lists(self):
        with pytest.raises(UsageError) as caught:
            agreed(("cat", "dog", "cow"), ["cat", "dgo"], 3)
        assert caught.value.message == (
            "'dgo' of the set is not in the model's names (cat, dog, cow)"
        )
        assert caught.value.remedy.startswith("did you mean dog for dgo? Else: where the model ")

    def test_names_of_a_file_are_told_as_the_file_s(self):
        labels = parse("blau\ngruen\nrot\n", "labels.txt")
        with pytest.raises(UsageError) as caught:
            agreed(labels, ["blue", "green", "red"], 3)
        assert caught.value.message == (
            "no class of the set (blue, green, red) is in labels.txt (blau, gruen, rot)"
        )
        assert "did you mean blau for blue, gruen for green? Else: " in caught.value.remedy
        assert "the set's names, one a line, in the order of labels.txt" in caught.value.remedy

    def test_long_lists_are_shortened(self):
        with pytest.raises(UsageError) as caught:
            agreed([f"m{i}" for i in range(1000)], [f"s{i}" for i in range(1000)])
        assert len(caught.value.message) < 600
        assert "and 990 more" in caught.value.message

    def test_classes_without_examples_are_told(self):
        (remark,) = agreed(("cat", "dog", "cow"), ["dog"], 3).remarks()
        assert "has no examples of 2 of the model's classes: cat, cow; " in remark
        assert "(change: add pictures of them)" in remark

    def test_a_guess_is_told(self):
        (remark,) = agreed(None, ["dog", "cat"], 2).remarks()
        assert "classes 0 to 1 are the set's, sorted by name: cat, dog (change: --labels" in remark

    def test_labels_that_come_to_fit_are_told_and_counted_anew(self):
        found = Classes(parse("background\ncat\ndog\n", "f"), ["cat", "dog"])
        found.require(2)
        assert [found.index(name) for name in ("cat", "dog")] == [0, 1]
        assert "is left out" in found.remarks()[0]


@given(st.lists(st.text(min_size=1), min_size=1, unique=True))
def test_every_name_of_the_model_is_found_as_itself(labels):
    found = Classes(labels, labels)
    assert [found.index(name) for name in labels] == list(range(len(labels)))
