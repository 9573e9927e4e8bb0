"""Scores against numbers worked out by hand, and against scikit-learn's."""

from fractions import Fraction
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from tfserve_kit.evaluation.scores import (
    Confusion,
    calibration,
    compare,
    confusion_matrix,
    mcnemar_exact,
    most_confused,
    per_class,
    rank_of,
    top_k_error,
    wilson_interval,
    worst_mistakes,
)

TRUE = np.array([0, 0, 0, 1, 1, 2])
PREDICTED = np.array([0, 0, 1, 1, 0, 0])

pairs = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60)


class TestWilsonInterval:
    @pytest.mark.parametrize(
        ("wrong", "total", "low", "high"),
        [
            (0, 10, 0.0, 0.2775327998628892),
            (10, 10, 0.7224672001371106, 1.0),
            (5, 10, 0.2365930905125640, 0.7634069094874360),
            (81, 263, 0.2553, 0.3662),  # Newcombe (1998), table I
            (15, 148, 0.0624, 0.1605),
            (1, 29, 0.0061, 0.1718),
        ],
    )
    def test_published_values(self, wrong, total, low, high):
        found = wilson_interval(wrong, total)
        assert (found.low, found.high) == (pytest.approx(low, abs=5e-5),
                                           pytest.approx(high, abs=5e-5))  # fmt: skip

    @settings(deadline=None)
    @given(st.integers(1, 500), st.data())
    def test_holds_the_share_and_is_symmetric(self, total, data):
        wrong = data.draw(st.integers(0, total))
        found, mirrored = wilson_interval(wrong, total), wilson_interval(total - wrong, total)
        assert 0 <= found.low <= wrong / total <= found.high <= 1
        assert found.low == pytest.approx(1 - mirrored.high)

    def test_more_examples_make_it_narrower(self):
        widths = [
            found.high - found.low for n in (1, 10, 100) if (found := wilson_interval(n, 4 * n))
        ]
        assert widths == sorted(widths, reverse=True)

    def test_no_examples_are_refused(self):
        with pytest.raises(ValueError, match="no examples"):
            wilson_interval(0, 0)


class TestPerClass:
    def test_numbers_by_hand(self):
        zero, one, two, three = per_class(TRUE, PREDICTED, 4)
        assert (zero.support, zero.precision, zero.recall) == (3, 2 / 4, 2 / 3)
        assert zero.f1 == pytest.approx(4 / 7)
        assert (one.support, one.precision, one.recall, one.f1) == (2, 1 / 2, 1 / 2, 1 / 2)
        assert (two.support, two.precision, two.recall, two.f1) == (1, None, 0.0, 0.0)
        assert (three.support, three.precision, three.recall, three.f1) == (0, None, None, None)

    @settings(deadline=None)
    @given(pairs)
    def test_equals_scikit_learn(self, pairs):
        true, predicted = np.array(pairs).T
        found = per_class(true, predicted, 5)
        wanted = metrics.precision_recall_fscore_support(
            true, predicted, labels=range(5), zero_division=0
        )
        mine = [
            [each.precision or 0, each.recall or 0, each.f1 or 0, each.support] for each in found
        ]
        np.testing.assert_allclose(np.transpose(mine), wanted)


class TestConfusion:
    def test_rows_are_true_classes(self):
        assert confusion_matrix(TRUE, PREDICTED, 3).tolist() == [[2, 1, 0], [1, 1, 0], [1, 0, 0]]

    @settings(deadline=None)
    @given(pairs)
    def test_equals_scikit_learn(self, pairs):
        true, predicted = np.array(pairs).T
        wanted = metrics.confusion_matrix(true, predicted, labels=range(5))
        np.testing.assert_array_equal(confusion_matrix(true, predicted, 5), wanted)

    def test_most_frequent_mistakes_come_first_then_lower_classes(self):
        true, predicted = np.array([3, 3, 0, 2, 1, 1]), np.array([1, 1, 2, 0, 1, 1])
        assert most_confused(true, predicted, 2) == [Confusion(3, 1, 2), Confusion(0, 2, 1)]

    def test_no_mistakes_give_an_empty_list(self):
        assert most_confused(np.array([1, 2]), np.array([1, 2]), 5) == []


class TestRanks:
    @pytest.mark.parametrize(
        ("scores", "true", "rank"),
        [
            ([0.1, 0.7, 0.2], 1, 0),
            ([0.1, 0.7, 0.2], 2, 1),
            ([0.1, 0.7, 0.2], 0, 2),
            ([0.5, 0.5], 0, 0),  # the lower index wins a tie
            ([0.5, 0.5], 1, 1),
            ([-np.inf, 0.0], 0, 1),
        ],
    )
    def test_rank_is_the_number_of_better_classes(self, scores, true, rank):
        assert rank_of(np.array(scores), true) == rank

    @settings(deadline=None)
    @given(st.lists(st.integers(-3, 3), min_size=1, max_size=8), st.data())
    def test_rank_zero_is_what_argmax_says(self, scores, data):
        true = data.draw(st.integers(0, len(scores) - 1))
        assert (rank_of(np.array(scores), true) == 0) == (np.argmax(scores) == true)

    @pytest.mark.parametrize(("k", "error"), [(1, 0.75), (2, 0.5), (3, 0.25), (9, 0.25), (10, 0)])
    def test_top_k_error(self, k, error):
        assert top_k_error(np.array([0, 1, 2, 9]), k) == error

    def test_equals_scikit_learn(self):
        source = np.random.default_rng(3)
        scores, true = source.random((200, 6)), source.integers(0, 6, 200)
        ranks = np.array([rank_of(row, each) for row, each in zip(scores, true, strict=True)])
        for k in (1, 2, 5):
            wanted = metrics.top_k_accuracy_score(true, scores, k=k, labels=range(6))
            assert 1 - top_k_error(ranks, k) == pytest.approx(wanted)


class TestCalibration:
    def test_numbers_by_hand(self):
        found = calibration(np.array([0.95, 0.85, 0.85, 0.3]), np.array([True, True, False, False]))
        filled = {round(each.high, 1): each for each in found.bins if each.count}
        assert {high: each.count for high, each in filled.items()} == {1.0: 1, 0.9: 2, 0.3: 1}
        assert filled[0.9].confidence == pytest.approx(0.85)
        assert filled[0.9].accuracy == 0.5
        # 1/4 * |0.95-1| + 2/4 * |0.85-0.5| + 1/4 * |0.3-0|
        assert found.expected_error == pytest.approx(0.0125 + 0.175 + 0.075)

    def test_empty_bins_hold_nothing(self):
        first = calibration(np.array([0.9]), np.array([True])).bins[0]
        assert (first.count, first.confidence, first.accuracy) == (0, None, None)

    @pytest.mark.parametrize(
        ("score", "place"), [(0.0, 0), (0.1, 0), (0.11, 1), (1.0, 9), (1.001, 9)]
    )
    def test_edges_belong_to_the_bin_below(self, score, place):
        bins = calibration(np.array([score]), np.array([True])).bins
        assert [each.count for each in bins].index(1) == place

    @settings(deadline=None)
    @given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=50))
    def test_every_answer_counts_once_and_the_error_is_a_share(self, answers):
        scores, right = (np.array(each) for each in zip(*answers, strict=True))
        found = calibration(scores, right)
        assert sum(each.count for each in found.bins) == len(answers)
        assert 0 <= found.expected_error <= 1 + 1e-9


def test_worst_mistakes_are_the_surest_wrong_ones():
    confidence = np.array([0.9, 0.8, 0.2, 0.99, 0.7, 0.5])
    assert worst_mistakes(TRUE, PREDICTED, confidence, 2) == [4, 5]
    assert worst_mistakes(TRUE, PREDICTED, confidence, 9) == [4, 5, 2]


class TestMcNemar:
    @pytest.mark.parametrize(
        ("first", "second", "p_value"),
        [
            (0, 0, 1.0),
            (1, 0, 1.0),
            (1, 1, 1.0),
            (0, 5, 2 / 32),
            (5, 0, 2 / 32),
            (0, 6, 2 / 64),
            (1, 7, 2 * (1 + 8) / 256),
            (2, 14, 2 * (1 + 16 + 120) / 65536),
            (3, 3, 1.0),
        ],
    )
    def test_exact_cases(self, first, second, p_value):
        assert mcnemar_exact(first, second) == p_value

    @settings(deadline=None)
    @given(st.integers(0, 40), st.integers(0, 40))
    def test_equals_the_sum_over_every_split_as_uneven(self, first, second):
        tosses, gap = first + second, abs(first - second)
        ways = sum(comb(tosses, k) for k in range(tosses + 1) if abs(tosses - 2 * k) >= gap)
        assert mcnemar_exact(first, second) == float(Fraction(ways, 2**tosses))

    def test_thousands_of_differences_are_no_burden(self):
        assert mcnemar_exact(10_000, 10_400) == pytest.approx(0.0052, abs=1e-4)
        assert mcnemar_exact(0, 5_000) == 0.0  # too small for a float


def rights(both, first, second, neither):
    """Return what two models got right, from the four counts."""
    mine = [True] * (both + first) + [False] * (second + neither)
    theirs = [True] * both + [False] * first + [True] * second + [False] * neither
    return np.array(mine), np.array(theirs)


class TestCompare:
    def test_numbers_by_hand(self):
        found = compare(*rights(80, 2, 14, 4))
        assert (found.examples, found.only_first_right, found.only_second_right) == (100, 2, 14)
        assert found.difference == pytest.approx(-0.12)
        assert found.p_value == mcnemar_exact(2, 14)
        assert found.verdict == "better"
        # The normal approximation: 0.12 -+ 1.96 * sqrt(16 - 144/100) / 100
        assert found.interval.low == pytest.approx(-0.1948, abs=0.015)
        assert found.interval.high == pytest.approx(-0.0452, abs=0.015)

    @pytest.mark.parametrize(
        ("first", "second", "verdict"),
        [(14, 2, "worse"), (2, 14, "better"), (5, 0, "no difference found"), (6, 0, "worse"),
         (7, 7, "no difference found")],
    )  # fmt: skip
    def test_verdict(self, first, second, verdict):
        assert compare(*rights(50, first, second, 3)).verdict == verdict

    def test_the_same_answers_differ_by_nothing(self):
        found = compare(*rights(7, 0, 0, 3))
        assert (found.difference, found.interval.low, found.interval.high) == (0, 0, 0)
        assert found.p_value == 1

    def test_the_same_seed_gives_the_same_interval(self):
        answers = rights(50, 7, 9, 3)
        assert compare(*answers, seed=4) == compare(*answers, seed=4)

    @settings(deadline=None)
    @given(*[st.integers(0, 30)] * 4)
    def test_swapping_the_models_turns_the_difference(self, both, first, second, neither):
        mine, theirs = rights(both, first, second, neither + 1)
        one, other = compare(mine, theirs), compare(theirs, mine)
        assert one.difference == -other.difference
        assert one.p_value == other.p_value
        assert one.interval.low <= one.difference <= one.interval.high

    @pytest.mark.parametrize(("first", "second"), [([], []), ([True], [True, False])])
    def test_answers_without_a_partner_are_refused(self, first, second):
        with pytest.raises(ValueError, match="cannot be paired"):
            compare(np.array(first, bool), np.array(second, bool))
