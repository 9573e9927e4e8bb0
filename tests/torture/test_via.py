"""Pushes to three places behind shells: killed on either side, and one place with a full disk."""

import contextlib
import multiprocessing
import random
import shutil
import signal
import subprocess
import time

import psutil
import pytest

from tests.torture.conftest import LONG
from tests.torture.versions_on_disk import left_overs, make_model, tree, violations
from tfserve_kit.errors import PushRefused
from tfserve_kit.repository import list_versions, push_to_places
from tfserve_kit.repository.shells import Place

KILLED = 100 if LONG else 6  # pushes, on each side
PATIENCE_S = 60.0
_PROCESSES = multiprocessing.get_context("spawn")


def push(source, folders):
    """Push to a base path in each folder; the exit status is 1 where that is refused."""
    try:
        push_to_places(source, [Place(f"env -C {each}", "half") for each in folders])
    except PushRefused as error:
        raise SystemExit(1) from error


def begun(source, folders):
    process = _PROCESSES.Process(target=push, args=(source, folders))
    process.start()
    return process


def pushed(source, folders):
    """Push in another process, undisturbed; return how long that took, in seconds."""
    started_s = time.monotonic()
    process = begun(source, folders)
    process.join(PATIENCE_S)
    assert process.exitcode == 0
    return time.monotonic() - started_s


@pytest.fixture
def source(quick_folder):
    return make_model(quick_folder / "source")


@pytest.fixture
def folders(quick_folder):
    found = [quick_folder / name for name in "abc"]
    for each in found:
        each.mkdir()
    return found


def visible(folder):
    return {each.number for each in list_versions(folder / "half")}


def kill_here(process, dice):
    """Kill the push; return what it had started over there, which may go on for a moment."""
    pushing = psutil.Process(process.pid)
    pushing.suspend()  # or it would start something between the two
    shells = pushing.children(recursive=True)
    pushing.kill()
    return shells


def kill_there(process, dice):
    """Kill something that the push has started over there, shell or tool."""
    shells = psutil.Process(process.pid).children(recursive=True)
    if shells:
        dice.choice(shells).send_signal(signal.SIGKILL)
    return shells


@pytest.mark.parametrize("kill", [kill_here, kill_there])
def test_push_that_is_killed_is_whole_or_absent_in_every_place(source, folders, kill):
    dice = random.Random(kill.__name__)
    took_s = pushed(source, folders)
    outcomes = []
    for _ in range(KILLED):
        before = {each: visible(each) for each in folders}
        older = {number: tree(folders[0] / "half" / str(number)) for number in before[folders[0]]}
        process = begun(source, folders)
        process.join(dice.uniform(0, took_s))
        shells = []
        with contextlib.suppress(psutil.NoSuchProcess):  # it was quicker
            shells = kill(process, dice)
        process.join(PATIENCE_S)
        _, alive = psutil.wait_procs(shells, PATIENCE_S)
        assert process.exitcode is not None and not alive
        new = {each: visible(each) - before[each] for each in folders}
        for each in folders:
            assert violations(each / "half", older=older) == []
            assert len(new[each]) <= 1
        outcomes.append((process.exitcode, sum(map(len, new.values()))))

        took_s = pushed(source, folders)
        (number,) = {max(visible(each)) for each in folders}
        assert all(number > max(before[each] | new[each]) for each in folders)
        for each in folders:
            assert violations(each / "half") == [] and left_overs(each / "half") == []
            for old in list_versions(each / "half")[:-1]:
                shutil.rmtree(old.path)
    if kill is kill_there:  # who is still there to say so knows what came of it
        assert {status for status, _ in outcomes} <= {0, 1}
        assert {count for status, count in outcomes if status} <= {0}
        assert {count for status, count in outcomes if not status} <= {len(folders)}
    print(f"exit status and places with the version: {sorted(outcomes)}")


def test_full_disk_of_one_place_leaves_all_as_they_were(source, folders, mount):
    full = mount("tmpfs", "size=900k")
    places = [Place(f"env -C {each}", "half") for each in (*folders[:2], full)]
    push_to_places(source, places[:2])
    before = {each: tree(each) for each in folders}
    with pytest.raises(PushRefused) as caught:
        push_to_places(source, places)
    assert str(full) in str(caught.value) and "No space left on device" in str(caught.value)
    assert "no place has changed" in str(caught.value) and caught.value.remedy
    assert {each: tree(each) for each in folders} == before and tree(full) == {}

    subprocess.run(["mount", "-o", "remount,size=9m", str(full)], check=True)
    assert {each.version for each in push_to_places(source, places).values()} == {2}
    for each in (*folders[:2], full):
        assert violations(each / "half") == [] and left_overs(each / "half") == []
