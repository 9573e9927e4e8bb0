"""The highest rate that holds: pure, whatever a trial is."""

from collections.abc import Callable
from dataclasses import dataclass

# A slow rate takes long to try: a start that is so far off deserves another command.
_MOST_STEPS_DOWN = 6


@dataclass(frozen=True, slots=True)
class Trial:
    """One rate that was tried.

    Attributes:
        rate: requests per second.
        held: whether the server kept what was asked of it.
    """

    rate: float
    held: bool


def find_max(
    holds: Callable[[float], bool | None],
    *,
    start: float,
    precision: float = 0.05,
    confirmations: int = 2,
    most_trials: int = 30,
    growth: float = 2.0,
) -> tuple[float, list[Trial]]:
    """Return the highest rate that holds, and every trial on the way.

    The rate doubles until one fails, or halves until one holds (or changes by another factor);
    then the gap between the two is halved until it is small. The last rate must hold
    `confirmations` times more: where it does not, it was luck, and the search goes on below it.

    Args:
        holds: tries a rate, in requests per second; None if that could not be done, which ends
            the search.
        start: the first rate.
        precision: how far the answer may lie below a rate that failed, as a share.
        confirmations: how often the answer is tried again.
        most_trials: how many trials there may be.
        growth: by how much the rate grows or shrinks before there is a gap.

    Returns:
        The rate, 0.0 if none held every time; and the trials in order. Where there were too many of
        them, or the search was ended, the rate is the highest that never failed, and may not have
        been confirmed.
    """
    search = _Search(holds, growth, most_trials)
    try:
        return search.settled(start, precision, confirmations), search.trials
    except _Ended:
        return highest(search.trials), search.trials


def highest(trials: list[Trial]) -> float:
    """Return the highest rate that never failed; 0.0 if there is none."""
    failed = {trial.rate for trial in trials if not trial.held}
    return max((trial.rate for trial in trials if trial.rate not in failed), default=0.0)


class _Ended(Exception):
    """There is nothing more to try, or there were enough trials."""


class _Search:
    """One search; its methods raise `_Ended`."""

    def __init__(self, holds: Callable[[float], bool | None], growth: float, most: int) -> None:
        self._holds, self._growth, self._most = holds, growth, most
        self.trials: list[Trial] = []

    def settled(self, start: float, precision: float, confirmations: int) -> float:
        """Return the highest rate that holds, each time it is tried."""
        low, high = self._bracket(start)
        while low >= start / self._growth**_MOST_STEPS_DOWN:
            if high > low * (1 + precision):
                middle = (low + high) / 2
                low, high = (middle, high) if self._held(middle) else (low, middle)
            elif all(self._held(low) for _ in range(confirmations)):
                return low
            else:
                low, high = self._below(low), low
        return highest(self.trials)

    def _held(self, rate: float) -> bool:
        answer = self._holds(rate) if len(self.trials) < self._most else None
        if answer is None:
            raise _Ended
        self.trials.append(Trial(rate, answer))
        return answer

    def _bracket(self, rate: float) -> tuple[float, float]:
        """Return a rate that held and one above it that did not; 0 where none held."""
        if self._held(rate):
            while self._held(self._growth * rate):
                rate *= self._growth
            return rate, self._growth * rate
        for _ in range(_MOST_STEPS_DOWN):
            if self._held(rate / self._growth):
                return rate / self._growth, rate
            rate /= self._growth
        return 0.0, rate

    def _below(self, rate: float) -> float:
        """Return the next lower rate that never failed, or half the rate where there is none."""
        return highest([trial for trial in self.trials if trial.rate < rate]) or rate / 2
