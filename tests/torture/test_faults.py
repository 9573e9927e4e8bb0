"""What happens when an operation on a base path is killed, or fails, anywhere."""

import pytest

# How many of a scenario's operations an ordinary run takes; None for all.
KILLS = {
    "push": 64,
    "push of many files": 12,
    "push of an archive": 16,
    "first push": 16,
    "retire": None,
    "rollback": 12,
    "prune": 16,
}
FAILURES = {"push": 44, "push of an archive": 12, "first push": 12, "rollback": 12, "prune": 10}
# What may fail without harm: what only makes it quicker, and what tidies up.
HARMLESS = {"ioctl", "copy_file_range", "unlink", "rmdir", "lstat", "scandir", "stat", "listdir"}


@pytest.mark.parametrize("scenario", KILLS)
def test_killed_before_an_operation_shows_no_half_version(play, scenario):
    told = play("kill-before", scenario, KILLS[scenario])
    assert told["found"] == []
    assert told["spared"] == 0
    assert told["operations"] >= (100 if "push" in scenario else 3)


@pytest.mark.parametrize("scenario", ["copy", "delete"])
def test_what_is_done_in_pieces_is_noticed(play, scenario):
    assert play("kill-before", scenario, 10)["found"] != []


@pytest.mark.parametrize("scenario", ["push", "rollback"])
def test_interrupt_leaves_nothing_or_all(play, scenario):
    assert play("interrupt", scenario, 24)["found"] == []


@pytest.mark.parametrize(("scenario", "points"), [("push", 20), ("rollback", 9), ("prune", 9)])
def test_killed_after_an_operation_shows_no_half_version(play, scenario, points):
    told = play("kill-after", scenario, points)
    assert told["found"] == []
    assert told["spared"] == 0


@pytest.mark.parametrize("scenario", FAILURES)
def test_failed_operation_is_refused_and_changes_nothing(play, scenario):
    told = play("fail", scenario, FAILURES[scenario])
    assert told["found"] == []
    if scenario == "push":
        firm = {name: set(ends) for name, ends in told["outcomes"].items() if name not in HARMLESS}
        assert {"open", "write", "fsync", "rename"} <= firm.keys()
        assert all(firm[name] == {"refused"} for name in firm.keys() - {"open", "read", "close"})


@pytest.mark.parametrize("scenario", ["push", "rollback"])
def test_disk_that_fails_from_some_moment_on_shows_no_half_version(play, scenario):
    assert play("fail-onwards", scenario, 20)["found"] == []
