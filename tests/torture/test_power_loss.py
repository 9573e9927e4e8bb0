"""When the power fails, what was not synced may be lost; no version may be half there."""

import pytest

from tests.torture.operations import observed
from tests.torture.power_loss import Recorder, survivors, undisturbed
from tests.torture.scenarios import SCENARIOS, Stage
from tfserve_kit.repository import parse_version

BASE = "new/deep/model"


def recorded(folder, scenario):
    """Record a run of a scenario; return the recorder and the stage."""
    stage = Stage(folder, SCENARIOS[scenario])
    stage.reset()
    recorder = Recorder(folder)
    with observed(recorder):
        stage.act()
    return recorder, stage


def versions(tree):
    """Return the visible versions of a tree: number to what lies below."""
    found = {}
    for path, content in tree.items():
        if path.startswith(f"{BASE}/"):
            name, _, inner = path.removeprefix(f"{BASE}/").partition("/")
            if (number := parse_version(name)) is not None:
                found.setdefault(number, {})[inner] = content
    return found


def violations(recorder, effects=None, *, seeds=4):
    """Return what a server could find after a power loss and must not find."""
    first, last = versions(undisturbed(recorder, [])), versions(undisturbed(recorder))
    whole, found = first | last, []
    effects = recorder.effects if effects is None else effects
    for moment, choice, tree in survivors(recorder, effects, seeds=seeds):
        there = versions(tree)
        broken = [number for number, content in there.items() if content != whole.get(number)]
        found += [f"{choice} at {moment}: {number} is incomplete" for number in broken]
        needed = last if moment == len(effects) else first.keys() & last.keys()
        lost = sorted(set(needed) - there.keys())
        found += [f"{choice} at {moment}: {number} is lost" for number in lost]
        if moment == len(effects) and there.keys() - set(last):
            found.append(f"{choice}: {sorted(there)} are there in the end")
    return found


@pytest.fixture(scope="module")
def push_record(tmp_path_factory):
    return recorded(tmp_path_factory.mktemp("push"), "push")[0]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_no_version_is_half_there_or_lost_after_a_power_loss(scenario, tmp_path):
    recorder, stage = recorded(tmp_path, scenario)
    there = {
        path.relative_to(tmp_path).as_posix(): path.read_bytes()
        for path in tmp_path.rglob("*")
        if path.is_file()
    }
    replayed = undisturbed(recorder)
    assert there == {path: data for path, data in replayed.items() if isinstance(data, bytearray)}
    assert violations(recorder) == []
    assert sorted(versions(replayed)) == list(stage.scenario.ends)


def test_without_any_sync_half_a_version_could_be_found(push_record):
    effects = [effect for effect in push_record.effects if effect.kind != "sync"]
    assert any("incomplete" in each for each in violations(push_record, effects))


def test_each_file_and_folder_must_be_synced(push_record, long):
    synced = list({each.node: each for each in push_record.effects if each.kind == "sync"})
    assert len(synced) > 8
    for node in synced if long else synced[:: len(synced) // 6]:
        effects = [
            effect for effect in push_record.effects if (effect.kind, effect.node) != ("sync", node)
        ]
        assert violations(push_record, effects, seeds=0), node


def test_rename_before_the_sync_could_show_half_a_version(push_record):
    effects = list(push_record.effects)
    kinds = [effect.kind for effect in effects]
    rename = effects.pop(kinds.index("move"))
    effects.insert(kinds.index("mode"), rename)  # which comes right before the syncs
    assert any("incomplete" in each for each in violations(push_record, effects))


def test_name_that_is_not_synced_could_be_lost(push_record):
    assert push_record.effects[-1].kind == "unlink"  # of the staging folder
    number = max(n for n, effect in enumerate(push_record.effects) if effect.kind == "sync")
    effects = push_record.effects[:number] + push_record.effects[number + 1 :]
    assert any("lost" in each for each in violations(push_record, effects))
