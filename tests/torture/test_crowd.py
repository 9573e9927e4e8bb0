"""Many processes push into one base path while somebody looks as a server does."""

import json
import random
import shutil
import subprocess
import sys
from collections import Counter

import pytest

from tests.torture.driver import ROOT, environment
from tests.torture.operations import Meddler, observed
from tests.torture.versions_on_disk import HALF_PLUS_TWO, incomplete, left_overs, tree
from tfserve_kit.repository import list_versions, push, staging

PUSHERS = 8


@pytest.fixture
def source(quick_folder):
    return shutil.copytree(HALF_PLUS_TWO, quick_folder / "source")


@pytest.fixture
def base(quick_folder):
    (quick_folder / "model").mkdir()
    return quick_folder / "model"


@pytest.fixture
def crowd(source, base):
    """Start pushers; those that are left at the end are killed."""
    started = []

    def start(count, times):
        command = [sys.executable, "-m", "tests.torture.pusher", source, base, str(times)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        new = [
            subprocess.Popen(command, cwd=ROOT, env=environment(), text=True, **pipes)
            for _ in range(count)
        ]
        started.extend(new)
        for process in new:
            assert process.stdout.readline() == "ready\n"
        for process in new:
            process.stdin.write("go\n")
            process.stdin.flush()
        return new

    yield start
    for process in started:
        process.kill()
        process.communicate()


class Poller:
    """Looks at a base path as a server does; remembers what it saw."""

    def __init__(self, base_path, dice):
        self.base_path, self.dice = base_path, dice
        self.known, self.harm, self.looks = set(), [], 0

    def look(self):
        """Look once: at all that is new, and again at one of the others."""
        self.looks += 1
        there = list_versions(self.base_path)
        numbers = {version.number for version in there}
        self.harm += [f"{number} is gone" for number in self.known - numbers]
        chosen = [version for version in there if version.number not in self.known]
        for version in [*chosen, self.dice.choice(there)] if there else []:
            self.harm += [f"{version.number}: {each}" for each in incomplete(version.path)]
        self.known |= numbers


def told(process):
    """Return what a pusher said of its pushes, and its errors."""
    output, errors = process.communicate(timeout=60)
    return [json.loads(line) for line in output.splitlines() if line.endswith("}")], errors


def test_pushers_at_once_get_all_numbers_and_nobody_sees_half_a_version(crowd, base, source, long):
    times = 50 if long else 6
    pushers, poller = crowd(PUSHERS, times), Poller(base, random.Random(1))
    while any(process.poll() is None for process in pushers):
        poller.look()
    poller.look()
    ends = [told(process) for process in pushers]
    assert [errors for _, errors in ends if errors] == []
    pushed = [push for pushes, _ in ends for push in pushes]
    print(
        f"{len(pushed)} pushes, {poller.looks} looks,"
        f" {sum(push['lost'] for push in pushed)} numbers lost to others,"
        f" {sorted(push['seconds'] for push in pushed)[len(pushed) // 2]:.3f} s in the middle,"
        f" {max(push['seconds'] for push in pushed):.3f} s at most"
    )
    assert poller.harm == []
    assert poller.looks > len(pushed) / 4
    assert sorted(push["version"] for push in pushed) == list(range(1, PUSHERS * times + 1))
    assert [version.number for version in list_versions(base)] == list(
        range(1, PUSHERS * times + 1)
    )
    assert left_overs(base) == []
    wanted = tree(source).keys()
    assert all(wanted <= tree(version.path).keys() for version in list_versions(base))


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_pusher_harms_no_other(crowd, base, source, long, seed):
    dice = random.Random(seed)
    victims, others = crowd(3, 1000), crowd(3, 40 if long else 6)
    poller, left, due = Poller(base, dice), list(victims), 1
    while any(process.poll() is None for process in others):
        poller.look()
        if left and len(poller.known) >= due:
            left.pop().kill()
            due = len(poller.known) + dice.randrange(1, 5)
    assert len(left) < len(victims)
    for process in left:
        process.kill()
    ends = [told(process) for process in others]
    assert [errors for _, errors in ends if errors] == []
    assert {len(pushes) for pushes, _ in ends} == {40 if long else 6}
    poller.look()
    assert poller.harm == []
    numbers = [push["version"] for process in victims for push in told(process)[0]]
    numbers += [push["version"] for pushes, _ in ends for push in pushes]
    assert max(Counter(numbers).values()) == 1
    assert set(numbers) <= {version.number for version in list_versions(base)}
    push(source, base)
    assert left_overs(base) == []


def test_living_push_that_is_swept_by_mistake_is_refused_not_published_in_part(
    base, source, monkeypatch
):
    monkeypatch.setattr(staging, "_is_abandoned", lambda folder: True)  # as where pids are hidden
    ends = []

    def publish():
        try:
            ends.append(staging.publish(folder / "model", held, "next"))
        except OSError as error:
            ends.append(error)

    with staging.held(base) as held, staging.staging_folder(held) as folder:
        shutil.copytree(source, folder / "model")
        with observed(Meddler("unlink", 2, publish)):
            staging.sweep(base)
    assert [type(end) for end in ends] == [FileNotFoundError]
    assert list_versions(base) == []
    assert left_overs(base) == []
