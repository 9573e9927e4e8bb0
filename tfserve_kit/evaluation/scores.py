"""What the answers to a labelled set amount to, and whether one model is better; pure, exact.

Classes are counted from 0, in the order of the model's scores. Of two models each answered the
same examples, so only those count that one of them got right and the other wrong.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]

_Z_95 = 1.959963984540054  # the normal distribution holds 95 % between -z and z
_BINS = 10  # of a calibration


@dataclass(frozen=True, slots=True)
class Interval:
    """The 95 % interval of a number."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class ClassScores:
    """How one class fared.

    Attributes:
        index: number of the class.
        support: how many examples belong to it.
        taken: how many examples were taken for it.
        precision: share of those taken for it that belong to it; None where none was taken for it.
        recall: share of its examples that were recognized; None where it has none.
        f1: harmonic mean of both, 0 where all of either are wrong; None where it has no example
            and none was taken for it.
    """

    index: int
    support: int
    taken: int
    precision: float | None
    recall: float | None
    f1: float | None


@dataclass(frozen=True, slots=True)
class Confusion:
    """How often examples of one class were taken for another."""

    true: int
    predicted: int
    count: int


@dataclass(frozen=True, slots=True)
class _ReliabilityBin:
    """The answers whose score lies above `low`, up to `high`.

    Attributes:
        low: lower edge; the first bin includes it.
        high: upper edge.
        count: how many they are.
        confidence: their mean score; None where there are none.
        accuracy: the share of them that is right; None where there are none.
    """

    low: float
    high: float
    count: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True, slots=True)
class Calibration:
    """How far scores are the probabilities they seem to be.

    Attributes:
        expected_error: mean distance of confidence and accuracy, weighted by the bins' counts, 0-1.
        bins: of equal width, in rising order.
    """

    expected_error: float
    bins: tuple[_ReliabilityBin, ...]


def wilson_interval(wrong: int, total: int) -> Interval:
    """Return Wilson's 95 % interval of a share; it stays within 0-1 and holds for few examples.

    Raises:
        ValueError: there are no examples.
    """
    if total < 1:
        raise ValueError("a share of no examples has no interval")
    share, z2 = wrong / total, _Z_95**2
    middle = (share + z2 / (2 * total)) / (1 + z2 / total)
    spread = math.sqrt(share * (1 - share) / total + z2 / (4 * total**2))
    half = _Z_95 * spread / (1 + z2 / total)
    # Rounding must not move the ends off an observed 0 or 1.
    low = 0.0 if wrong == 0 else max(0.0, middle - half)
    return Interval(low, 1.0 if wrong == total else min(1.0, middle + half))


def top_k_error(ranks: Indices, k: int) -> float:
    """Return the share of examples whose class is not among the k best.

    Args:
        ranks: int64 [examples], how many classes scored better than the true one.
        k: how many classes count.
    """
    return float(np.mean(ranks >= k))


def rank_of(scores: NDArray[np.floating], true: int) -> int:
    """Return how many classes come before the true one; the lower index wins a tie.

    Args:
        scores: float [classes], without NaN.
        true: index of the true class.
    """
    better = np.count_nonzero(scores > scores[true])
    return int(better + np.count_nonzero(scores[:true] == scores[true]))


def confusion_matrix(true: Indices, predicted: Indices, classes: int) -> Indices:
    """Count what was taken for what.

    Args:
        true: int64 [examples].
        predicted: int64 [examples].
        classes: number of classes; the matrix grows with its square.

    Returns:
        int64 [classes, classes], true by row, predicted by column.
    """
    counts = np.bincount(true * classes + predicted, minlength=classes * classes)
    return counts.reshape(classes, classes).astype(np.int64, copy=False)


def most_confused(true: Indices, predicted: Indices, count: int) -> list[Confusion]:
    """Return the most frequent mistakes, the lower classes first where they are as frequent."""
    wrong = true != predicted
    pairs, times = np.unique(
        np.stack([true[wrong], predicted[wrong]], axis=1), axis=0, return_counts=True
    )
    order = np.argsort(-times, kind="stable")[:count]
    return [Confusion(int(pairs[i, 0]), int(pairs[i, 1]), int(times[i])) for i in order]


def per_class(true: Indices, predicted: Indices, classes: int) -> list[ClassScores]:
    """Return precision, recall and F1 of every class, in order."""
    support = np.bincount(true, minlength=classes)
    taken = np.bincount(predicted, minlength=classes)
    right = np.bincount(true[true == predicted], minlength=classes)
    return [
        ClassScores(
            index,
            int(support[index]),
            int(taken[index]),
            _share(right[index], taken[index]),
            _share(right[index], support[index]),
            _share(2 * right[index], support[index] + taken[index]),
        )
        for index in range(classes)
    ]


def _share(part: int, whole: int) -> float | None:
    return float(part / whole) if whole else None


def calibration(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> Calibration:
    """Compare how sure the answers are with how often they are right.

    Args:
        confidence: float64 [examples], probability of the predicted class, 0-1; at least one.
        right: bool [examples], whether the prediction is right.
    """
    edges = np.linspace(0, 1, _BINS + 1)
    # A score of 1.0000001, as softmax in single precision gives, belongs to the last bin.
    places = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, _BINS - 1)
    found, error = [], 0.0
    for place in range(_BINS):
        mine = places == place
        count = int(mine.sum())
        mean, accuracy = (0.0, 0.0)
        if count:
            mean, accuracy = float(confidence[mine].mean()), float(right[mine].mean())
        error += count / len(confidence) * abs(mean - accuracy)
        values = (mean, accuracy) if count else (None, None)
        found.append(_ReliabilityBin(float(edges[place]), float(edges[place + 1]), count, *values))
    return Calibration(error, tuple(found))


def worst_mistakes(
    true: Indices, predicted: Indices, confidence: NDArray[np.float64], count: int
) -> list[int]:
    """Return the positions of the wrong answers with the highest scores, the surest first."""
    wrong = np.flatnonzero(true != predicted)
    order = np.argsort(-confidence[wrong], kind="stable")[:count]
    return [int(position) for position in wrong[order]]


# Differences that chance alone makes more often than this prove nothing.
_SIGNIFICANCE = 0.05
_DRAWS = 10_000


@dataclass(frozen=True, slots=True)
class ModelComparison:
    """A first and a second model on the examples that both answered.

    Attributes:
        examples: how many they are.
        only_first_right: how many only the first got right.
        only_second_right: how many only the second got right.
        difference: error rate of the second minus that of the first, -1 to 1.
        interval: 95 % interval of the difference, by a paired bootstrap.
        p_value: how often chance makes such a difference or a larger one between equals.
    """

    examples: int
    only_first_right: int
    only_second_right: int
    difference: float
    interval: Interval
    p_value: float

    @property
    def verdict(self) -> str:
        """What can be said of the second: `better`, `worse` or `no difference found`."""
        if self.p_value >= _SIGNIFICANCE:
            return "no difference found"
        return "worse" if self.difference > 0 else "better"


def compare(
    first_right: NDArray[np.bool_], second_right: NDArray[np.bool_], *, seed: int = 0
) -> ModelComparison:
    """Compare two models.

    Args:
        first_right: bool [examples], whether the first was right; at least one example.
        second_right: bool [examples], the same of the second, in the same order.
        seed: of the bootstrap; the same seed gives the same interval.

    Raises:
        ValueError: the lengths differ, or there are no examples.
    """
    if len(first_right) != len(second_right) or not len(first_right):
        raise ValueError(f"{len(first_right)} and {len(second_right)} answers cannot be paired")
    total = len(first_right)
    only_first = int(np.count_nonzero(first_right & ~second_right))
    only_second = int(np.count_nonzero(second_right & ~first_right))
    return ModelComparison(
        total,
        only_first,
        only_second,
        (only_first - only_second) / total,
        _bootstrap(only_first, only_second, total, seed),
        mcnemar_exact(only_first, only_second),
    )


def mcnemar_exact(only_first_right: int, only_second_right: int) -> float:
    """Return the two-sided p-value of McNemar's exact test.

    Between equals each example that one got right and the other wrong is the toss of a fair coin:
    the p-value is the chance of a split at least as uneven.
    """
    tosses, fewer = only_first_right + only_second_right, min(only_first_right, only_second_right)
    ways = total = 1  # of no heads; whole numbers, so that nothing is rounded before the end
    for heads in range(1, fewer + 1):
        ways = ways * (tosses - heads + 1) // heads
        total += ways
    return min(1.0, float(2 * total / 2**tosses))


def _bootstrap(only_first: int, only_second: int, total: int, seed: int) -> Interval:
    """Draw sets of examples with replacement: only the counts of the three outcomes matter."""
    shares = np.array([only_first, only_second, total - only_first - only_second]) / total
    drawn = np.random.default_rng(seed).multinomial(total, shares, size=_DRAWS)
    differences = (drawn[:, 0] - drawn[:, 1]) / total
    low, high = np.quantile(differences, [0.025, 0.975])
    return Interval(float(low), float(high))
