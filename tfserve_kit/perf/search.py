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
    holds: Callable[[float], bool],
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
        holds: tries a rate, in requests per second.
        start: the first rate.
        precision: how far the answer may lie below a rate that failed, as a share.
        confirmations: how often the answer is tried again.
        most_trials: how many trials there may be.
        growth: by how much the rate grows or shrinks before there is a gap.

    Returns:
        The rate, 0.0 if none held every time; and the trials in order. Where there were too many of
        them, the rate is the highest that never failed, and may not have been confirmed.
    """
    trials: list[Trial] = []

    def held(rate: float) -> bool:
        trials.append(Trial(rate, holds(rate)))
        return trials[-1].held

    low, high = _bracket(held, start, growth, most_trials - 1)
    while low >= start / growth**_MOST_STEPS_DOWN and len(trials) < most_trials:
        if high is not None and high > low * (1 + precision):
            middle = (low + high) / 2
            low, high = (middle, high) if held(middle) else (low, middle)
        elif all(held(low) for _ in range(confirmations)):
            return low, trials
        else:
            low, high = _below(low, trials), low
    return highest(trials), trials


def highest(trials: list[Trial]) -> float:
    """Return the highest rate that never failed; 0.0 if there is none."""
    failed = {trial.rate for trial in trials if not trial.held}
    return max((trial.rate for trial in trials if trial.rate not in failed), default=0.0)


def _bracket(
    held: Callable[[float], bool], rate: float, growth: float, most: int
) -> tuple[float, float | None]:
    """Return a rate that held and, if any, one above it that did not; at most so many more."""
    if held(rate):
        for _ in range(most):
            if not held(growth * rate):
                return rate, growth * rate
            rate *= growth
        return rate, None
    for _ in range(min(most, _MOST_STEPS_DOWN)):
        if held(rate / growth):
            return rate / growth, rate
        rate /= growth
    return 0.0, rate


def _below(rate: float, trials: list[Trial]) -> float:
    """Return the next lower rate that never failed, or half the rate where there is none."""
    return highest([trial for trial in trials if trial.rate < rate]) or rate / 2
