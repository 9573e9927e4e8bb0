"""Due times are what was asked for."""

import pytest

from tfserve_kit.perf import pacing


def test_constant_spaces_requests_evenly_and_starts_at_once():
    assert list(pacing.constant(4, 1.0)) == [0.0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize(("rate", "duration_s", "count"), [(10, 2, 20), (0.5, 2, 1), (3, 0.1, 0)])
def test_constant_sends_rate_times_duration(rate, duration_s, count):
    assert len(list(pacing.constant(rate, duration_s))) == count
