"""What a caller writes becomes the target of a call."""

from tfserve_kit.clients.results import Target, as_target


def test_target_of_a_call():
    assert as_target("m", "") == Target("m")
    assert as_target("m", "s") == Target("m", signature="s")
    assert as_target(Target("m", 1, signature="a"), "s") == Target("m", 1, signature="s")
    assert as_target(Target("m", 1, signature="a"), "") == Target("m", 1, signature="a")
