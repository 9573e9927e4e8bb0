"""McNemar's test against exact cases, and the bootstrap against what must hold."""

from fractions import Fraction
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfserve_kit.evaluation.scores import compare, mcnemar_exact


class TestMcNemar:
    @pytest.mark.parametrize(
        ("first", "second", "p_value"),
        [
            (0, 0, 1.0),
            (1, 0, 1.0),
            (1, 1, 1.0),
            (0, 5, 2 / 32),
            (5, 0, 2 / 32),
            (0, 6, 2 / 64),
            (1, 7, 2 * (1 + 8) / 256),
            (2, 14, 2 * (1 + 16 + 120) / 65536),
            (3, 3, 1.0),
        ],
    )
    def test_exact_cases(self, first, second, p_value):
        assert mcnemar_exact(first, second) == p_value

    @settings(deadline=None)
    @given(st.integers(0, 40), st.integers(0, 40))
    def test_equals_the_sum_over_every_split_as_uneven(self, first, second):
        tosses, gap = first + second, abs(first - second)
        ways = sum(comb(tosses, k) for k in range(tosses + 1) if abs(tosses - 2 * k) >= gap)
        assert mcnemar_exact(first, second) == float(Fraction(ways, 2**tosses))

    def test_thousands_of_differences_are_no_burden(self):
        assert mcnemar_exact(10_000, 10_400) == pytest.approx(0.0052, abs=1e-4)
        assert mcnemar_exact(0, 5_000) == 0.0  # too small for a float


def rights(both, first, second, neither):
    """Return what two models got right, from the four counts."""
    mine = [True] * (both + first) + [False] * (second + neither)
    theirs = [True] * both + [False] * first + [True] * second + [False] * neither
    return np.array(mine), np.array(theirs)


class TestCompare:
    def test_numbers_by_hand(self):
        found = compare(*rights(80, 2, 14, 4))
        assert (found.examples, found.only_first_right, found.only_second_right) == (100, 2, 14)
        assert found.difference == pytest.approx(-0.12)
        assert found.p_value == mcnemar_exact(2, 14)
        assert found.verdict == "better"
        # The normal approximation: 0.12 -+ 1.96 * sqrt(16 - 144/100) / 100
        assert found.interval.low == pytest.approx(-0.1948, abs=0.015)
        assert found.interval.high == pytest.approx(-0.0452, abs=0.015)

    @pytest.mark.parametrize(
        ("first", "second", "verdict"),
        [(14, 2, "worse"), (2, 14, "better"), (5, 0, "no difference found"), (6, 0, "worse"),
         (7, 7, "no difference found")],
    )  # fmt: skip
    def test_verdict(self, first, second, verdict):
        assert compare(*rights(50, first, second, 3)).verdict == verdict

    def test_the_same_answers_differ_by_nothing(self):
        found = compare(*rights(7, 0, 0, 3))
        assert (found.difference, found.interval.low, found.interval.high) == (0, 0, 0)
        assert found.p_value == 1

    def test_the_same_seed_gives_the_same_interval(self):
        answers = rights(50, 7, 9, 3)
        assert compare(*answers, seed=4) == compare(*answers, seed=4)

    @settings(deadline=None)
    @given(*[st.integers(0, 30)] * 4)
    def test_swapping_the_models_turns_the_difference(self, both, first, second, neither):
        mine, theirs = rights(both, first, second, neither + 1)
        one, other = compare(mine, theirs), compare(theirs, mine)
        assert one.difference == -other.difference
        assert one.p_value == other.p_value
        assert one.interval.low <= one.difference <= one.interval.high

    @pytest.mark.parametrize(("first", "second"), [([], []), ([True], [True, False])])
    def test_answers_without_a_partner_are_refused(self, first, second):
        with pytest.raises(ValueError, match="cannot be paired"):
            compare(np.array(first, bool), np.array(second, bool))
