"""Confidence intervals of quantiles that assume nothing of the distribution: order statistics.

How many of `n` independent values lie below the true quantile `q` is binomial(n, q), whatever the
distribution. So two of the sorted values enclose the quantile with a probability that can be
computed (see David and Nagaraja, Order Statistics, 3rd edition, section 7.1).
"""

import math

import numpy as np

# Seven quantiles stand side by side in a report: at 99 % each, seldom is any of them wrong.
CONFIDENCE = 0.99

_DEVIATIONS = 12  # farther from its mean, a binomial has no weight that a float could hold


def rank(count: int, q: float) -> int:
    """Return where a quantile stands among `count` sorted values, from 0."""
    return max(0, math.ceil(q * count) - 1)


def needed(q: float, confidence: float = CONFIDENCE) -> int:
    """Return how many values a quantile's interval needs at least."""
    return math.ceil(math.log((1 - confidence) / 2) / math.log(max(q, 1 - q)))


def ranks(count: int, q: float, confidence: float = CONFIDENCE) -> tuple[int, int] | None:
    """Return which two of the sorted values enclose a quantile.

    Args:
        count: number of values, independent of each other.
        q: 0 < q < 1.
        confidence: with which probability, at least.

    Returns:
        Places of both ends, from 0; None if there are too few values.
    """
    if count < needed(q, confidence):
        return None
    spread = _DEVIATIONS * math.sqrt(count * q * (1 - q)) + 2 * _DEVIATIONS
    first, last = max(0, math.floor(count * q - spread)), min(count, math.ceil(count * q + spread))
    below = np.arange(first, last)
    # Each probability by the one before it, so that no factorial overflows.
    steps = np.log((count - below) / (below + 1.0) * (q / (1 - q)))
    logs = np.concatenate([[0.0], np.cumsum(steps)])
    weights = np.exp(logs - logs.max())
    at_most = np.cumsum(weights) / weights.sum()
    tail = (1 - confidence) / 2
    low = first + int(np.searchsorted(at_most, tail, side="right")) - 1
    high = first + int(np.searchsorted(at_most, 1 - tail))
    return (low, high) if low >= 0 and high < count else None
