"""examples/digits: what `make demo` shows."""

import re

import pytest

pytestmark = pytest.mark.tensorflow


def test_swap_under_traffic_loses_nothing_and_both_protocols_agree(printed_by):
    printed = printed_by("digits").read_text("utf-8")
    (told,) = re.findall(r"^Answers during the swap: (.+)$", printed, re.MULTILINE)
    first, second, failed = map(int, re.findall(r"(?:version \d|failed): (\d+)", told))
    assert first > 0
    assert second > 0
    assert failed == 0
    assert printed.endswith("\n10 of 10 pictures right; gRPC and REST agree.\n")
