"""What a caller writes becomes the target of a call."""

import pytest

from tfserve_kit.clients.results import Target, as_target
from tfserve_kit.errors import UsageError


def test_target_of_a_call():
    assert as_target("m", "") == Target("m")
    assert as_target("m", "s") == Target("m", signature="s")
    assert as_target(Target("m", 1, signature="a"), "s") == Target("m", 1, signature="s")
    assert as_target(Target("m", 1, signature="a"), "") == Target("m", 1, signature="a")


def test_target_has_a_version_or_a_label():
    with pytest.raises(UsageError, match="version 0 and label 'stable' cannot both be asked for"):
        Target("m", version=0, label="stable")
    assert Target("m", version=3, label="").version == 3
