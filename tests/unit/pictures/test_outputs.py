"""What outputs are, told by their values."""

import numpy as np
import pytest

from tfserve_kit.pictures.outputs import are_probabilities


@pytest.mark.parametrize(
    ("scores", "are"),
    [
        ([[0.2, 0.8], [1, 0]], True),
        ([[0.2, 0.805]], True),  # half precision
        ([[0.2, 0.9]], False),
        ([[-0.5, 1.5]], False),
        ([[3.0, -2.0]], False),
        ([[0.2, 0.8], [5, 1]], False),
        ([[np.nan, 1.0]], False),
    ],
)
def test_only_scores_that_sum_to_one_are_probabilities(scores, are):
    assert are_probabilities(np.array(scores)) is are
