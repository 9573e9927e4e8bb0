"""Whether settings are better than others, from values measured in turn: pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal, Self

from tfserve_kit.perf import intervals

CONFIDENCE = 0.95
LEAST_ROUNDS = 6  # fewer give no interval of the median with that confidence

Outcome = Literal["better", "worse", "unclear"]


@dataclass(frozen=True, slots=True)
class Proof:
    """Pairs of values measured right after each other, so that both had the same machine.

    Attributes:
        pairs: of each round the default's value and the other's.
        gain: by how much the other is better, as a factor: median of the rounds.
        low: lower end of its interval; it assumes nothing of how gains are distributed. None
            for too few rounds: 95 % need six.
        high: its upper end.
        outcome: `unclear` where the interval holds 1, or is not known.
    """

    pairs: tuple[tuple[float, float], ...]
    gain: float
    low: float | None
    high: float | None
    outcome: Outcome

    @classmethod
    def of(
        cls, pairs: Sequence[tuple[float, float]], gain: Callable[[float, float], float]
    ) -> Self:
        """Judge at least one pair.

        Args:
            pairs: values of both sides, by round.
            gain: by how much the second value of two is better, as a factor.
        """
        gains = sorted(gain(before, after) for before, after in pairs)
        ends = intervals.ranks(len(gains), 0.5, CONFIDENCE)
        if ends is None:
            return cls(tuple(pairs), median(gains), None, None, "unclear")
        low, high = (gains[end] for end in ends)
        outcome: Outcome = "better" if low > 1 else "worse" if high < 1 else "unclear"
        return cls(tuple(pairs), median(gains), low, high, outcome)
