"""The line that changes on a terminal while `tfkit perf` sends."""

from array import array

import pytest

from tfserve_kit.cli.perf import line, rate
from tfserve_kit.perf.sending.driving import Snapshot

MS = 1_000_000
LATENCIES = array("q", [2 * MS] * 98 + [15 * MS] * 2)
OPEN = Snapshot(3_200 * MS, 9_990 * MS, 1234, 2000, 1, 3, 120_000, LATENCIES)
CLOSED = Snapshot(500 * MS, None, 10, None, 0, 8, None, array("q"))
WIDE = 200


def test_everything_is_told_where_there_is_room():
    assert line("Sending, 200/s", OPEN, 199.6, WIDE) == (
        "Sending, 200/s: 3/10 s, 1,234/2,000 ended, 200/s, 1 error, p50 2.00 ms, p99 15 ms, "
        "3 in flight, 0.12 ms late"
    )


def test_what_is_unknown_is_left_out():
    assert line("Sending", CLOSED, None, WIDE) == (
        "Sending: 0 s, 10 ended, 0 errors, p50 -, p99 -, 8 in flight"
    )


@pytest.mark.parametrize("width", [*range(20, 120, 7), 80])
def test_a_line_never_fills_a_terminal(width):
    assert 0 < len(line("Sending, 200/s", OPEN, 199.6, width)) < width


def test_latency_errors_and_rate_outlive_all_else():
    text = line("Sending, 200/s", OPEN, 199.6, 50)
    assert text == "3/10 s, 200/s, 1 error, p50 2.00 ms, p99 15 ms"


def test_the_rate_is_that_since_the_last_line():
    later = OPEN._replace(at_ns=OPEN.at_ns + 500 * MS, ended=OPEN.ended + 100)
    assert rate(OPEN, later) == 200
    assert rate(None, later) is None
    assert rate(later, later) is None
