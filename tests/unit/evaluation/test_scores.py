"""Scores against numbers worked out by hand, and against scikit-learn's."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from tfserve_kit.evaluation.scores import (
    Confusion,
    are_probabilities,
    calibration,
    confusion_matrix,
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

    @pytest.mark.parametrize(
        ("scores", "are"),
        [
            ([[0.2, 0.8], [1, 0]], True),
            ([[0.2, 0.805]], True),  # half precision
            ([[0.2, 0.9]], False),
            ([[-0.5, 1.5]], False),
            ([[3.0, -2.0]], False),
            ([[0.2, 0.8], [5, 1]], False),
            ([[np.nan, 1.0]], False),
        ],
    )
    def test_only_scores_that_sum_to_one_are_probabilities(self, scores, are):
        assert are_probabilities(np.array(scores)) is are


def test_worst_mistakes_are_the_surest_wrong_ones():
    confidence = np.array([0.9, 0.8, 0.2, 0.99, 0.7, 0.5])
    assert worst_mistakes(TRUE, PREDICTED, confidence, 2) == [4, 5]
    assert worst_mistakes(TRUE, PREDICTED, confidence, 9) == [4, 5, 2]
