"""Compressed requests, inflated a piece at a time, and large ones one after the other."""

import gzip
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfserve_kit.embedded import inflate
from tfserve_kit.embedded.inflate import inflated
from tfserve_kit.embedded.ledger import BudgetExceeded, Ledger
from tfserve_kit.embedded.status import ServingError

MIB = 1 << 20


def account(size_bytes=1 << 40):
    return Ledger(size_bytes).account("a")


@settings(deadline=None)
@given(piece=st.binary(max_size=1000), times=st.integers(0, 8000))
def test_pieces_make_the_whole(piece, times):
    assert inflated(gzip.compress(piece * times, 1), account()) == piece * times


@pytest.mark.parametrize("cut", [0, 3])
def test_large_ones_take_turns_and_give_theirs_back_whatever_happens(cut):
    large = gzip.compress(bytes(12 * MIB))
    damaged = large[: len(large) // 2 + cut]
    with pytest.raises(BudgetExceeded):
        inflated(large, account(10 * MIB))
    with pytest.raises(ServingError, match="larger than"):
        inflated(large, account(), most_bytes=8 * MIB)
    assert inflated(damaged + b"\xff" * 1000, account()) is None
    assert inflated(damaged, account()) is None
    with ThreadPoolExecutor(4) as pool:
        several = [pool.submit(inflated, large, account()) for _ in range(4)]
        assert {len(each.result(60)) for each in several} == {12 * MIB}


def test_small_ones_do_not_wait_for_large_ones():
    with inflate._large, ThreadPoolExecutor(1) as pool:
        small = pool.submit(inflated, gzip.compress(bytes(MIB)), account())
        assert len(small.result(30)) == MIB
