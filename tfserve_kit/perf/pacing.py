"""When requests are due: pure, no clock."""

import random
from collections.abc import Iterator


def constant(rate: float, duration_s: float) -> Iterator[float]:
    """Yield due times, evenly spaced.

    Args:
        rate: requests per second.
        duration_s: how long to go on, in seconds.

    Yields:
        Seconds since the start, rising.
    """
    for sequence in range(round(rate * duration_s)):
        yield sequence / rate


def poisson(rate: float, duration_s: float, seed: int) -> Iterator[float]:
    """Yield due times with exponentially distributed gaps, as independent users cause them.

    Args:
        rate: requests per second, on average.
        duration_s: how long to go on, in seconds.
        seed: the same seed gives the same times.

    Yields:
        Seconds since the start, rising.
    """
    source = random.Random(seed)  # noqa: S311 (arrival times, no secret)
    due_s = source.expovariate(rate)
    while due_s < duration_s:
        yield due_s
        due_s += source.expovariate(rate)
