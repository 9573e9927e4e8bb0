"""Two models on the same examples: is one better, or was it chance? Pure.

Both answered each example, so only those count that one of them got right and the other wrong.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tfserve_kit.evaluation.scores import Interval

# Differences that chance alone makes more often than this prove nothing.
SIGNIFICANCE = 0.05
_DRAWS = 10_000


@dataclass(frozen=True, slots=True)
class Comparison:
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
        if self.p_value >= SIGNIFICANCE:
            return "no difference found"
        return "worse" if self.difference > 0 else "better"


def compare(
    first_right: NDArray[np.bool_], second_right: NDArray[np.bool_], *, seed: int = 0
) -> Comparison:
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
    return Comparison(
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
