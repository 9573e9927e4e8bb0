"""Loading, swapping, lending and retrying versions, with a loader and a clock under control."""

import threading
import time
from concurrent import futures
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue

import pytest

from tfserve_kit import protos
from tfserve_kit.clock import SystemClock, wait_until
from tfserve_kit.embedded import manager
from tfserve_kit.embedded.ledger import Call, Ledger
from tfserve_kit.embedded.manager import (
    MOST_ENDED,
    Entry,
    Manager,
    Poller,
    VersionState,
    aspired_versions,
    mark_aspired,
    next_step,
)
from tfserve_kit.embedded.metrics import VERSION_AVAILABLE, VERSIONS
from tfserve_kit.embedded.settings import ServerSettings
from tfserve_kit.embedded.status import Code, ServingError

PATIENCE_S = 10.0
RETRY_S = 60.0
POLL_S = 1.0


class FakeServable:
    """Knows its name, and writes down when it is closed."""

    signatures = {}

    def __init__(self, name, history):
        self.name, self._history = name, history

    def run(self, feeds, fetches, *, call=None):
        return []

    def close(self):
        self._history.append(("closed", self.name))


class FakeLoader:
    """Loads `model/version` by name; can be told to fail, or to wait until it is let go.

    Attributes:
        history: what happened, in order: (began | failed | loaded | closed, name).
        faults: name to what makes the exception that its load raises.
        gates: name to the event its load waits for.
    """

    def __init__(self):
        self.history, self.faults, self.gates = [], {}, {}

    def __call__(self, version_dir):
        name = f"{version_dir.parent.name}/{version_dir.name}"
        self.history.append(("began", name))
        if name in self.gates:
            assert self.gates[name].wait(PATIENCE_S)
        if name in self.faults:
            self.history.append(("failed", name))
            error = self.faults[name]()
            raise error
        self.history.append(("loaded", name))
        return FakeServable(name, self.history)

    def tries(self, name):
        return self.history.count(("began", name))


class WatchedClock:
    """Stands still until told to advance; can wait until the manager has looked at it again."""

    def __init__(self):
        self._now_s, self._looks, self._seen = 1000.0, 0, threading.Condition()

    def now_s(self):
        with self._seen:
            self._looks += 1
            self._seen.notify_all()
            return self._now_s

    def sleep(self, duration_s):
        self.advance(duration_s)

    def advance(self, duration_s):
        with self._seen:
            self._now_s += duration_s

    def let_manager_run(self, looks=8):
        """Return after at least one more whole round of the manager's thread."""
        with self._seen:
            wanted = self._looks + looks
            assert self._seen.wait_for(lambda: self._looks >= wanted, PATIENCE_S)


def eventually(condition):
    """Wait until something is so; return whether it came to that."""
    return wait_until(
        lambda: condition() or None,
        timeout_s=PATIENCE_S,
        interval_s=0.002,
        clock=SystemClock(),
    )


class World:
    """A manager with everything around it under the test's control."""

    def __init__(self, root, stack):
        self.root, self._stack = root, stack
        self.loader, self.clock = FakeLoader(), WatchedClock()
        self.manager = None
        self._last_error = None

    def put(self, *names):
        for name in names:
            (self.root / name).mkdir(parents=True)

    def remove(self, name):
        (self.root / name).rmdir()

    def config(self, model, more=""):
        text = f'name: "{model}" base_path: "{self.root / model}" model_platform: "tensorflow"'
        return protos.from_text("ModelConfig", f"{text} {more}")

    def start(self, *models, policy="", more="", **settings):
        more = f"model_version_policy {{ {policy} }} {more}"
        configs = tuple(self.config(model, more) for model in models or ("m",))
        defaults = {"poll_wait_s": POLL_S, "load_retry_interval_s": RETRY_S}
        self.manager = Manager(
            ServerSettings(configs, **defaults | settings), self.loader, clock=self.clock
        )
        self._stack.callback(self.manager.stop)
        self.manager.start()
        return self.manager

    def poll(self):
        """Let the manager look at the disk, and do what it then can."""
        self.clock.advance(POLL_S)
        self.clock.let_manager_run()

    def states(self, model="m"):
        return {status.number: status.state.name for status in self.manager.status(model)}

    def settles(self, expected, model="m"):
        """Wait until the versions have these states; they must then be exactly these."""
        eventually(lambda: self.states(model) == expected)
        assert self.states(model) == expected

    def next_failure(self, number=1):
        """Wait until the manager has noted another failed load of a version."""

        def errors():
            return {status.number: status.error for status in self.manager.status("m")}

        assert eventually(lambda: errors().get(number) is not self._last_error)
        self._last_error = errors()[number]


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.setattr("tfserve_kit.embedded.manager._TICK_S", 0.005)
    with ExitStack() as stack:
        yield World(tmp_path, stack)


@pytest.fixture
def damaged():
    return lambda: ServingError(Code.OUT_OF_RANGE, "Read less bytes than requested")


def in_background(stack, action):
    """Run something in a thread that the test waits for at its end."""
    thread = threading.Thread(target=action)
    thread.start()
    stack.callback(thread.join, PATIENCE_S)
    return thread


# What is loaded


def test_highest_version_is_loaded_and_lent(world):
    world.put("m/1", "m/3", "m/20")
    manager = world.start()
    manager.wait_until_serving()
    assert world.states() == {20: "AVAILABLE"}
    with manager.lease("m") as lease:
        assert (lease.model, lease.version, lease.servable.name) == ("m", 20, "m/20")


def test_all_versions_load_highest_first_and_each_can_be_asked_for(world):
    world.put("m/1", "m/2", "m/3")
    manager = world.start(policy="all {}")
    world.settles({3: "AVAILABLE", 2: "AVAILABLE", 1: "AVAILABLE"})
    assert [name for event, name in world.loader.history if event == "began"] == [
        "m/3",
        "m/2",
        "m/1",
    ]
    with manager.lease("m", 1) as one, manager.lease("m") as latest:
        assert (one.version, latest.version) == (1, 3)


def test_status_lists_versions_from_the_highest_down(world):
    world.put("m/9", "m/10", "m/1")
    manager = world.start(policy="all {}")
    world.settles({1: "AVAILABLE", 9: "AVAILABLE", 10: "AVAILABLE"})
    assert [status.number for status in manager.status("m")] == [10, 9, 1]


def test_readings_of_a_model_without_versions_are_zero_for_every_state(world):
    manager = world.start(policy="all {}")
    states = ("START", "LOADING", "AVAILABLE", "UNLOADING")
    assert manager.readings() == [(VERSIONS, ("m", state), 0) for state in states]


def test_readings_count_versions_by_state_and_name_those_that_answer(world):
    world.put("m/1", "m/2")
    manager = world.start(policy="all {}")
    world.settles({1: "AVAILABLE", 2: "AVAILABLE"})
    found = manager.readings()
    counts = {labels[1]: value for metric, labels, value in found if metric is VERSIONS}
    assert counts == {"START": 0, "LOADING": 0, "AVAILABLE": 2, "UNLOADING": 0}
    named = [each for each in found if each[0] is VERSION_AVAILABLE]
    assert sorted(labels for _, labels, _ in named) == [("m", "1"), ("m", "2")]


@pytest.mark.parametrize(
    ("model", "version", "text"),
    [
        ("nope", None, "Servable not found for request: Latest(nope)"),
        ("nope", 3, "Servable not found for request: Specific(nope, 3)"),
        ("m", 2, "Servable not found for request: Specific(m, 2)"),
    ],
)
def test_lease_of_what_is_not_there_is_not_found(world, model, version, text):
    world.put("m/1")
    manager = world.start()
    manager.wait_until_serving()
    with pytest.raises(ServingError) as caught, manager.lease(model, version):
        pass
    assert (caught.value.code, caught.value.message) == (Code.NOT_FOUND, text)


def test_lease_of_a_version_that_still_loads_is_not_found(world):
    world.put("m/1")
    gate = world.loader.gates["m/1"] = threading.Event()
    manager = world.start()
    world.settles({1: "LOADING"})
    with pytest.raises(ServingError, match=r"Latest\(m\)"), manager.lease("m"):
        pass
    gate.set()
    manager.wait_until_serving()


# Swaps


def test_new_version_is_loaded_before_the_old_one_goes(world):
    world.put("m/1")
    manager = world.start()
    manager.wait_until_serving()
    gate = world.loader.gates["m/2"] = threading.Event()
    world.put("m/2")
    world.poll()
    world.settles({2: "LOADING", 1: "AVAILABLE"})
    with manager.lease("m") as lease:
        assert lease.version == 1
    gate.set()
    world.settles({2: "AVAILABLE", 1: "END"})
    assert world.loader.history == [
        ("began", "m/1"),
        ("loaded", "m/1"),
        ("began", "m/2"),
        ("loaded", "m/2"),
        ("closed", "m/1"),
    ]


def test_removing_the_newest_version_loads_the_older_before_it_goes(world):
    world.put("m/1", "m/2")
    world.start().wait_until_serving()
    world.remove("m/2")
    world.poll()
    world.settles({2: "END", 1: "AVAILABLE"})
    assert world.loader.history[-2:] == [("loaded", "m/1"), ("closed", "m/2")]


def test_new_version_is_not_seen_before_the_poll_is_due(world):
    world.put("m/1")
    world.start().wait_until_serving()
    world.put("m/2")
    world.clock.advance(POLL_S - 0.01)
    world.clock.let_manager_run()
    assert world.states() == {1: "AVAILABLE"}
    world.clock.advance(0.01)
    world.settles({2: "AVAILABLE", 1: "END"})


def test_poll_wait_of_zero_looks_once(world):
    world.put("m/1")
    world.start(poll_wait_s=0).wait_until_serving()
    world.put("m/2")
    world.clock.advance(1e6)
    world.clock.let_manager_run()
    assert world.states() == {1: "AVAILABLE"}


def test_negative_poll_wait_never_looks(world):
    world.put("m/1")
    world.start(poll_wait_s=-1)
    world.clock.advance(1e6)
    world.clock.let_manager_run(looks=3)
    assert world.states() == {}


def test_empty_base_path_unloads_everything(world):
    world.put("m/1")
    world.start().wait_until_serving()
    world.remove("m/1")
    world.poll()
    world.settles({1: "END"})
    assert world.loader.history[-1] == ("closed", "m/1")


def test_vanished_base_path_keeps_serving(world, tmp_path):
    world.put("m/1")
    manager = world.start()
    manager.wait_until_serving()
    (tmp_path / "m").rename(tmp_path / "elsewhere")
    world.poll()
    assert world.states() == {1: "AVAILABLE"}
    with manager.lease("m") as lease:
        assert lease.version == 1


def test_vanished_base_path_of_one_model_does_not_stop_the_updates_of_another(world, tmp_path):
    world.put("a/1", "b/1")
    world.start("a", "b").wait_until_serving()
    (tmp_path / "a").rename(tmp_path / "elsewhere")
    world.put("b/2")
    world.poll()
    world.settles({2: "AVAILABLE", 1: "END"}, model="b")


# Leases


def test_lease_holds_the_unload_back_until_it_ends(world):
    world.put("m/1")
    manager = world.start()
    manager.wait_until_serving()
    with manager.lease("m") as old:
        with manager.lease("m"):
            world.put("m/2")
            world.poll()
            world.settles({2: "AVAILABLE", 1: "UNLOADING"})
        assert old.servable.name == "m/1"
        world.clock.let_manager_run()
        assert ("closed", "m/1") not in world.loader.history
        with manager.lease("m") as new:
            assert new.version == 2
    world.settles({2: "AVAILABLE", 1: "END"})
    assert world.loader.history.count(("closed", "m/1")) == 1


def test_version_that_unloads_is_lent_no_more(world):
    world.put("m/1")
    manager = world.start()
    manager.wait_until_serving()
    with manager.lease("m"):
        world.remove("m/1")
        world.poll()
        world.settles({1: "UNLOADING"})
        with pytest.raises(ServingError, match=r"Specific\(m, 1\)"), manager.lease("m", 1):
            pass


def test_lease_ends_when_its_block_raises(world):
    world.put("m/1")
    manager = world.start()
    manager.wait_until_serving()
    with pytest.raises(ZeroDivisionError), manager.lease("m"):
        raise ZeroDivisionError
    world.remove("m/1")
    world.poll()
    world.settles({1: "END"})


def test_unload_that_waits_for_a_lease_does_not_hold_back_the_unloads_of_others(world):
    world.put("busy/1", "idle/1")
    manager = world.start("busy", "idle")
    manager.wait_until_serving()
    with manager.lease("busy"):
        world.put("busy/2")
        world.poll()
        world.settles({2: "AVAILABLE", 1: "UNLOADING"}, model="busy")
        world.put("idle/2")
        world.poll()
        world.settles({2: "AVAILABLE", 1: "END"}, model="idle")
        assert world.states("busy") == {2: "AVAILABLE", 1: "UNLOADING"}


# Failures


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_failed_load_is_tried_again_as_often_as_set_and_then_ends(world, damaged, retries):
    world.put("m/1")
    world.loader.faults["m/1"] = damaged
    world.start(max_load_retries=retries)
    for tries in range(1, retries + 1):
        world.next_failure()
        assert world.loader.tries("m/1") == tries
        assert world.states() == {1: "LOADING"}
        world.clock.advance(RETRY_S - 0.01)
        world.clock.let_manager_run()
        assert world.loader.tries("m/1") == tries
        world.clock.advance(0.01)
    world.settles({1: "END"})
    world.clock.advance(10 * RETRY_S)
    world.clock.let_manager_run()
    assert world.loader.tries("m/1") == 1 + retries
    assert world.manager.status("m")[0].error.code is Code.OUT_OF_RANGE


def test_load_that_succeeds_at_the_second_try_serves_without_an_error(world, damaged):
    world.put("m/1")
    world.loader.faults["m/1"] = damaged
    manager = world.start(max_load_retries=1)
    world.next_failure()
    del world.loader.faults["m/1"]
    world.clock.advance(RETRY_S)
    manager.wait_until_serving()
    assert manager.status("m")[0].error is None


def test_old_version_serves_on_while_and_after_the_new_one_fails(world, damaged):
    world.put("m/1")
    manager = world.start(max_load_retries=1)
    manager.wait_until_serving()
    world.loader.faults["m/2"] = damaged
    world.put("m/2")
    world.poll()
    world.next_failure(2)
    world.settles({2: "LOADING", 1: "AVAILABLE"})
    world.clock.advance(RETRY_S)
    world.settles({2: "END", 1: "AVAILABLE"})
    with manager.lease("m") as lease:
        assert lease.version == 1


def test_version_that_failed_is_never_tried_again_even_if_it_goes_and_comes_back(world, damaged):
    world.put("m/1")
    world.start(max_load_retries=0).wait_until_serving()
    world.loader.faults["m/2"] = damaged
    world.put("m/2")
    world.poll()
    world.settles({2: "END", 1: "AVAILABLE"})
    world.remove("m/2")
    world.poll()
    del world.loader.faults["m/2"]
    world.put("m/2")
    world.poll()
    world.clock.advance(10 * RETRY_S)
    world.clock.let_manager_run()
    assert world.loader.tries("m/2") == 1
    assert world.states() == {2: "END", 1: "AVAILABLE"}


def test_healthy_version_that_went_and_came_back_is_loaded_again(world):
    world.put("m/1", "m/2")
    world.start().wait_until_serving()
    world.remove("m/2")
    world.poll()
    world.settles({2: "END", 1: "AVAILABLE"})
    world.put("m/2")
    world.poll()
    world.settles({2: "AVAILABLE", 1: "END"})
    assert world.loader.tries("m/2") == 2


def test_version_removed_between_two_tries_ends_at_the_next_one(world, damaged):
    world.put("m/1", "m/2")
    world.loader.faults["m/2"] = damaged
    world.start(max_load_retries=5)
    world.next_failure(2)
    world.remove("m/2")
    world.poll()
    world.settles({2: "LOADING", 1: "AVAILABLE"})
    world.clock.advance(RETRY_S)
    world.settles({2: "END", 1: "AVAILABLE"})


def test_failing_loads_of_one_model_do_not_delay_another(world, damaged):
    world.put("bad/1", "good/1")
    world.loader.faults["bad/1"] = damaged
    world.start("bad", "good", max_load_retries=5)
    world.settles({1: "AVAILABLE"}, model="good")
    world.put("good/2")
    world.poll()
    world.settles({2: "AVAILABLE", 1: "END"}, model="good")
    assert world.states("bad") == {1: "LOADING"}


def test_loader_that_breaks_in_an_unforeseen_way_counts_as_failed(world):
    world.put("m/1")
    world.loader.faults["m/1"] = lambda: ZeroDivisionError("by zero")
    world.start(max_load_retries=0)
    world.settles({1: "END"})
    error = world.manager.status("m")[0].error
    assert (error.code, error.message) == (Code.INTERNAL, "by zero")


# Waiting for the start


def test_wait_names_the_version_that_failed_in_the_official_words(world, damaged):
    world.put("m/1", "m/2")
    world.loader.faults["m/2"] = damaged
    with pytest.raises(ServingError) as caught:
        world.start(max_load_retries=0).wait_until_serving()
    assert str(caught.value) == (
        "UNKNOWN: 1 servable(s) did not become available: {{{name: m version: 2} due to error: "
        "OUT_OF_RANGE: Read less bytes than requested}, }"
    )


def test_wait_names_every_version_that_failed(world, damaged):
    world.put("a/1", "b/4", "c/1")
    world.loader.gates["c/1"] = gate = threading.Event()
    world.loader.faults |= {"a/1": damaged, "b/4": lambda: ServingError(Code.NOT_FOUND, "gone")}
    manager = world.start("a", "b", "c", max_load_retries=0)
    world.settles({1: "END"}, model="a")
    world.settles({4: "END"}, model="b")
    with pytest.raises(ServingError) as caught:
        manager.wait_until_serving()
    gate.set()
    assert caught.value.message == (
        "2 servable(s) did not become available: {{{name: a version: 1} due to error: "
        "OUT_OF_RANGE: Read less bytes than requested}, "
        "{{name: b version: 4} due to error: NOT_FOUND: gone}, }"
    )


def test_wait_goes_on_until_every_model_serves(world):
    world.put("a/1", "b/1")
    world.loader.gates["b/1"] = gate = threading.Event()
    manager = world.start("a", "b")
    served = threading.Event()
    with ExitStack() as stack:
        in_background(stack, lambda: (manager.wait_until_serving(), served.set()))
        world.settles({1: "AVAILABLE"}, model="a")
        world.clock.let_manager_run()
        assert not served.is_set()
        gate.set()
        assert served.wait(PATIENCE_S)


def test_wait_for_an_empty_base_path_ends_when_a_version_arrives(world):
    (world.root / "m").mkdir()
    manager = world.start()
    served = threading.Event()
    with ExitStack() as stack:
        in_background(stack, lambda: (manager.wait_until_serving(), served.set()))
        world.clock.let_manager_run()
        assert not served.is_set()
        world.put("m/1")
        world.clock.advance(POLL_S)
        assert served.wait(PATIENCE_S)


def test_interrupt_ends_the_wait_as_cancelled(world):
    (world.root / "m").mkdir()
    manager = world.start()
    caught = []

    def wait():
        with pytest.raises(ServingError) as error:
            manager.wait_until_serving()
        caught.append(error.value.code)

    with ExitStack() as stack:
        in_background(stack, wait)
        manager.interrupt()
    assert caught == [Code.CANCELLED]


def test_wait_is_content_with_one_version_where_another_failed(world, damaged):
    world.put("m/1", "m/2")
    world.loader.faults["m/2"] = damaged
    manager = world.start(policy="all {}", max_load_retries=0)
    manager.wait_until_serving()
    world.settles({2: "END", 1: "AVAILABLE"})


# Labels

STABLE = 'version_labels { key: "stable" value: 1 }'


def test_label_lends_the_version_it_names(world):
    world.put("m/1", "m/2")
    manager = world.start(policy="all {}", more=STABLE, allow_labels_for_unavailable=True)
    world.settles({2: "AVAILABLE", 1: "AVAILABLE"})
    with manager.lease("m", label="stable") as lease:
        assert lease.version == 1


@pytest.mark.parametrize(("model", "label"), [("m", "canary"), ("m", ""), ("nope", "stable")])
def test_label_that_nobody_gave_out_is_refused(world, model, label):
    world.put("m/1")
    manager = world.start(more=STABLE, allow_labels_for_unavailable=True)
    manager.wait_until_serving()
    with pytest.raises(ServingError) as caught, manager.lease(model, label=label):
        pass
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert caught.value.message == f"Unrecognized servable version label: {label}"


def test_label_of_a_version_that_is_not_there_is_not_found(world):
    world.put("m/2")
    manager = world.start(more=STABLE, allow_labels_for_unavailable=True)
    manager.wait_until_serving()
    with pytest.raises(ServingError) as caught, manager.lease("m", label="stable"):
        pass
    assert (caught.value.code, caught.value.message) == (
        Code.NOT_FOUND,
        "Servable not found for request: Specific(m, 1)",
    )


def test_label_at_the_start_is_refused_unless_it_may_name_what_is_not_loaded(world):
    world.put("m/1")
    with pytest.raises(ServingError) as caught:
        world.start(more=STABLE)
    assert caught.value.code is Code.FAILED_PRECONDITION
    assert caught.value.message == (
        "Request to assign label to version 1 of model m, which is not currently available for "
        "inference"
    )


# Reload


def test_reload_serves_the_new_models_and_unloads_the_old(world):
    world.put("old/1", "new/1")
    manager = world.start("old")
    manager.wait_until_serving()
    manager.reload([world.config("new")])
    assert world.states("new") == {1: "AVAILABLE"}
    world.settles({1: "END"}, model="old")
    with pytest.raises(ServingError, match=r"Latest\(old\)"), manager.lease("old"):
        pass


def test_reload_to_nothing_unloads_everything(world):
    world.put("m/1")
    manager = world.start()
    manager.wait_until_serving()
    manager.reload([])
    world.settles({1: "END"})


def test_reload_changes_the_policy_of_a_model_that_stays(world):
    world.put("m/1", "m/2")
    manager = world.start()
    manager.wait_until_serving()
    manager.reload([world.config("m", "model_version_policy { all {} }")])
    world.settles({2: "AVAILABLE", 1: "AVAILABLE"})


def test_reload_moves_a_label_to_a_version_that_is_there(world):
    world.put("m/1", "m/2")
    manager = world.start(policy="all {}")
    world.settles({2: "AVAILABLE", 1: "AVAILABLE"})
    for version in (1, 2):
        label = f'version_labels {{ key: "stable" value: {version} }}'
        manager.reload([world.config("m", f"model_version_policy {{ all {{}} }} {label}")])
        with manager.lease("m", label="stable") as lease:
            assert lease.version == version


def test_reload_that_is_refused_changes_nothing(world):
    world.put("m/1", "n/1")
    manager = world.start()
    manager.wait_until_serving()
    label = 'version_labels { key: "stable" value: 9 }'
    with pytest.raises(ServingError) as caught:
        manager.reload([world.config("m", label), world.config("n")])
    assert caught.value.code is Code.FAILED_PRECONDITION
    world.poll()
    assert world.states("n") == {}
    with pytest.raises(ServingError), manager.lease("m", label="stable"):
        pass


def test_reload_of_a_model_that_fails_to_load_says_so(world, damaged):
    world.put("m/1", "bad/1")
    world.loader.faults["bad/1"] = damaged
    manager = world.start(max_load_retries=0)
    manager.wait_until_serving()
    with pytest.raises(ServingError) as caught:
        manager.reload([world.config("m"), world.config("bad")])
    assert caught.value.code is Code.UNKNOWN
    assert caught.value.message == (
        "1 model(s) did not become available: {{{name: bad version: 1} due to error: "
        "OUT_OF_RANGE: Read less bytes than requested}, }"
    )
    assert world.states() == {1: "AVAILABLE"}


def test_reload_of_a_model_that_is_not_there_waits_as_long_as_it_may(world):
    world.put("m/1")
    manager = world.start()
    manager.wait_until_serving()
    with pytest.raises(ServingError) as caught:
        manager.reload([world.config("m"), world.config("late")], timeout_s=0)
    assert caught.value.code is Code.DEADLINE_EXCEEDED
    world.put("late/1")
    world.poll()
    world.settles({1: "AVAILABLE"}, model="late")


def test_reload_that_changes_a_platform_is_refused(world):
    world.put("m/1")
    manager = world.start()
    manager.wait_until_serving()
    changed = world.config("m")
    changed.model_platform = "torch"
    with pytest.raises(ServingError) as caught:
        manager.reload([changed])
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert caught.value.message == (
        "Illegal to change a model's platform. For model m platform was tensorflow and new "
        "platform requested is torch"
    )


# (models as text, the first fault in the order of server_core.cc, ReloadConfig)
FAULTS_IN_ORDER = [
    ('m model_platform: "torch" version_labels { key: "a" value: 9 }',
     "Illegal to change a model's platform. For model m platform was tensorflow and new platform "
     "requested is torch"),
    ('m model_type: OTHER', "ModelServerConfig::model_type choice 2 not supported."),
    ('m model_platform: "tensorflow" version_labels { key: "a" value: 9 } | n model_platform: "x"',
     "Request to assign label to version 9 of model m, which is not currently available for "
     "inference"),
    ('n model_platform: "x" version_labels { key: "a" value: 1 }',
     "Request to assign label to version 1 of model n, which is not currently available for "
     "inference"),
    ('n model_platform: "x" | m', "Illegal setting neither ModelServerConfig::model_type "
     "(deprecated) nor ModelServerConfig::model_platform, model name is m"),
    ('n model_platform: "x" | k', "Model n requests unsupported platform x"),
    ('k | n model_platform: "x"', "Illegal setting neither ModelServerConfig::model_type "
     "(deprecated) nor ModelServerConfig::model_platform, model name is k"),
    ('n model_platform: "x" logging_config {}', "Model n requests unsupported platform x"),
]  # fmt: skip


@pytest.mark.parametrize(("models", "message"), FAULTS_IN_ORDER)
def test_reload_with_several_faults_names_the_one_that_upstream_finds_first(world, models, message):
    world.put("m/1", "n/1")
    manager = world.start()
    manager.wait_until_serving()
    configs = [
        protos.from_text("ModelConfig", f'name: "{text.split()[0]}" base_path: "/x" {text[2:]}')
        for text in models.split(" | ")
    ]
    with pytest.raises(ServingError) as caught:
        manager.reload(configs)
    assert caught.value.message == message
    assert world.states() == {1: "AVAILABLE"}
    assert world.states("n") == {}


def test_reload_that_asks_for_logging_serves_the_models_and_says_that_it_cannot_log(world):
    world.put("m/1", "n/1")
    manager = world.start()
    manager.wait_until_serving()
    with pytest.raises(ServingError) as caught:
        manager.reload([world.config("n", "logging_config {}")])
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert caught.value.message == "No request-logger-creator provided."
    assert world.states("n") == {1: "AVAILABLE"}
    world.settles({1: "END"})


def test_label_moves_at_once_though_the_new_models_never_come(world):
    world.put("m/1")
    manager = world.start()
    manager.wait_until_serving()
    label = 'version_labels { key: "stable" value: 1 }'
    with pytest.raises(ServingError, match="DEADLINE_EXCEEDED"):
        manager.reload([world.config("m", label), world.config("never")], timeout_s=0)
    with manager.lease("m", label="stable") as lease:
        assert lease.version == 1


def test_version_that_is_no_directory_fails_without_being_loaded(world):
    world.put("m/1")
    world.start(max_load_retries=0).wait_until_serving()
    (world.root / "m" / "2").write_text("")
    world.poll()
    world.settles({2: "END", 1: "AVAILABLE"})
    assert world.loader.tries("m/2") == 0
    assert "Not a directory" in world.manager.status("m")[0].error.message


# The end


def test_stop_waits_for_leases_and_closes_every_version_once(world):
    world.put("m/1", "m/2")
    manager = world.start(policy="all {}")
    world.settles({1: "AVAILABLE", 2: "AVAILABLE"})
    stopped = threading.Event()
    with ExitStack() as stack:
        with manager.lease("m", 1):
            in_background(stack, lambda: (manager.stop(), stopped.set()))
            world.settles({2: "END", 1: "UNLOADING"})
            assert not stopped.is_set()
            assert ("closed", "m/1") not in world.loader.history
        assert stopped.wait(PATIENCE_S)
    assert world.states() == {2: "END", 1: "END"}
    closed = [name for event, name in world.loader.history if event == "closed"]
    assert sorted(closed) == ["m/1", "m/2"]


def test_stop_leaves_a_request_that_outlasts_its_grace(world):
    world.put("m/1")
    manager = world.start()
    world.settles({1: "AVAILABLE"})
    with manager.lease("m"):
        manager.stop(grace_s=0.05)
        assert world.states() == {1: "UNLOADING"}
        assert ("closed", "m/1") not in world.loader.history


def test_stop_unloads_a_version_whose_load_it_interrupted(world):
    world.put("m/1")
    world.loader.gates["m/1"] = gate = threading.Event()
    manager = world.start()
    world.settles({1: "LOADING"})
    with ExitStack() as stack:
        in_background(stack, manager.stop)
        gate.set()
    assert world.loader.history[-1] == ("closed", "m/1")


def test_version_that_cannot_be_closed_ends_all_the_same(world):
    world.put("m/1")
    manager = world.start()
    manager.wait_until_serving()
    with manager.lease("m") as lease:
        lease.servable.close = lambda: 1 / 0
    manager.stop()
    assert world.states() == {1: "END"}


def test_stop_is_idempotent_and_allowed_before_start(tmp_path):
    manager = Manager(ServerSettings(()), FakeLoader())
    manager.stop()
    manager.stop()
    assert manager.status("m") == []


# Reloads nobody waits for


class Client:
    """Someone who can go away."""

    def __init__(self):
        self.has_gone, self.told = False, []

    def call(self):
        account = Ledger(1 << 20).account("")
        return Call.within(None, account, lambda: self.has_gone, self.told.append)

    def leave(self):
        self.has_gone = True
        for tell in self.told:
            tell()


def reloading(world, *models, call=None):
    """Reload in a thread; return it, and the code it raises once it has ended."""
    codes = []

    def reload():
        try:
            world.manager.reload([world.config(model) for model in models], call=call)
            codes.append(None)
        except ServingError as error:
            codes.append(error.code)

    thread = threading.Thread(target=reload)
    thread.start()
    return thread, codes


def test_reload_whose_client_goes_waits_no_longer(world):
    world.put("m/1")
    world.start()
    world.settles({1: "AVAILABLE"})
    client = Client()
    thread, codes = reloading(world, "m", "never", call=client.call())
    assert eventually(lambda: client.told)
    assert not codes
    client.leave()
    thread.join(PATIENCE_S)
    assert codes == [Code.CANCELLED]


def test_reload_that_another_one_follows_ends_as_aborted(world):
    world.put("m/1")
    world.start()
    world.settles({1: "AVAILABLE"})
    first = reloading(world, "m", "never")
    assert eventually(lambda: "never" in world.manager._configs)
    world.manager.reload([world.config("m")])
    first[0].join(PATIENCE_S)
    assert first[1] == [Code.ABORTED]


# What must not hold up, or end, the manager


def test_base_path_that_hangs_holds_up_no_other_model(world, monkeypatch):
    world.put("m/1", "n/1", "stuck/1")
    go, aspired = threading.Event(), aspired_versions

    def hanging(config):
        if config.name == "stuck":
            assert go.wait(PATIENCE_S)
        return aspired(config)

    monkeypatch.setattr("tfserve_kit.embedded.manager.aspired_versions", hanging)
    world.start("stuck", "m", "n")
    world.poll()
    world.settles({1: "AVAILABLE"}, "m")
    world.settles({1: "AVAILABLE"}, "n")
    world.put("m/2")
    world.poll()
    world.settles({2: "AVAILABLE", 1: "END"}, "m")
    assert world.states("stuck") == {}
    go.set()
    world.settles({1: "AVAILABLE"}, "stuck")


def test_base_path_that_cannot_be_one_does_not_end_the_manager(world):
    world.put("m/1")
    impossible = world.config("x")
    impossible.base_path = "/a\0b"
    world.start()
    world.settles({1: "AVAILABLE"})
    with pytest.raises(ServingError) as caught:
        world.manager.reload([world.config("m"), impossible], timeout_s=0)
    assert caught.value.code is Code.DEADLINE_EXCEEDED
    world.put("m/2")
    world.poll()
    world.settles({2: "AVAILABLE", 1: "END"})


@pytest.mark.parametrize("fault", [MemoryError, RecursionError, SystemExit, KeyboardInterrupt])
def test_load_that_ends_in_any_way_is_seen(world, fault):
    world.put("m/1", "n/1")
    world.loader.faults["m/1"] = fault
    world.start("m", "n", max_load_retries=0)
    world.settles({1: "END"})
    error = world.manager.status("m")[0].error
    assert (error.code, error.message) == (Code.INTERNAL, fault.__name__)
    world.settles({1: "AVAILABLE"}, "n")


def test_step_that_fails_is_not_the_managers_last(world, monkeypatch):
    world.put("m/1")
    calls, ask = [], Poller.ask

    def failing(poller, configs):
        calls.append(configs)
        if len(calls) == 1:
            raise RuntimeError("can't start new thread")
        ask(poller, configs)

    monkeypatch.setattr(Poller, "ask", failing)
    world.start()
    assert eventually(lambda: calls)
    world.poll()
    world.settles({1: "AVAILABLE"})


def test_load_without_a_thread_fails_and_is_tried_again(world, monkeypatch):
    world.put("m/1")
    submit, refused = futures.ThreadPoolExecutor.submit, []

    def refuse(pool, call, *arguments):
        if call.__name__ == "_load" and not refused:
            refused.append(arguments)
            raise RuntimeError("can't start new thread")
        return submit(pool, call, *arguments)

    monkeypatch.setattr(futures.ThreadPoolExecutor, "submit", refuse)
    manager = world.start(max_load_retries=1)
    assert eventually(lambda: manager._retrying)
    world.clock.advance(RETRY_S)
    world.settles({1: "AVAILABLE"})


def test_versions_that_have_ended_are_forgotten_one_day():
    entries = {}
    for number in range(1, 3000):
        mark_aspired("m", entries, {number: None})
        entries[number].state = VersionState.AVAILABLE
        if number > 1:
            entries[number - 1].state = VersionState.END
    assert max(entries) == 2999
    assert len(entries) <= MOST_ENDED + 2


def test_models_that_have_ended_are_forgotten_one_day(world):
    world.put("m/1")
    manager = world.start(poll_wait_s=-1)
    for number in range(1200):
        config = world.config("m")
        config.name, config.base_path = f"made-up-{number}", str(world.root / "nowhere")
        with pytest.raises(ServingError):
            manager.reload([config], timeout_s=0)
        with manager._changed:
            manager._aspire(config.name, {})
    assert len(manager._entries) <= MOST_ENDED + 2


def test_models_by_the_ten_thousand_are_taken_in_without_holding_up_the_status(world):
    world.put("m/1")
    manager = world.start()
    world.settles({1: "AVAILABLE"})
    config = world.config("m")
    many = []
    for number in range(20_000):
        more = type(config)()
        more.CopyFrom(config)
        more.name, more.base_path = f"m{number}", str(world.root / "nowhere")
        many.append(more)
    longest_s, end = [0.0], threading.Event()

    def watch():
        while not end.wait(0.001):
            before_s = time.monotonic()
            manager.status("m")
            longest_s[0] = max(longest_s[0], time.monotonic() - before_s)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with pytest.raises(ServingError):
        manager.reload([config, *many], timeout_s=0)
    world.poll()
    end.set()
    watcher.join(PATIENCE_S)
    assert world.states() == {1: "AVAILABLE"}
    assert longest_s[0] < 0.5


# Which versions a model's policy asks for, from what is on disk.


def config(base_path, policy="", name="m"):
    text = f'name: "{name}" base_path: "{base_path}" model_version_policy {{ {policy} }}'
    return protos.from_text("ModelConfig", text)


@pytest.fixture
def base(tmp_path):
    for name in ("1", "2", "10", "v3", ".tfkit-staging-x", "4.tmp"):
        (tmp_path / name).mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("", {10}),
        ("latest {}", {10}),
        ("latest { num_versions: 0 }", {10}),
        ("latest { num_versions: 1 }", {10}),
        ("latest { num_versions: 2 }", {2, 10}),
        ("latest { num_versions: 9 }", {1, 2, 10}),
        ("all {}", {1, 2, 10}),
        ("specific { versions: 1 }", {1}),
        ("specific { versions: 10 versions: 2 }", {2, 10}),
        ("specific { versions: 2 versions: 7 }", {2}),
        ("specific { versions: 7 }", set()),
        ("specific {}", set()),
    ],
)
def test_policy_asks_for_the_versions(base, policy, expected):
    assert manager.aspired_versions(config(base, policy)) == {n: base / str(n) for n in expected}


def test_no_policy_at_all_asks_for_the_highest_by_number_not_by_name(base):
    message = protos.ModelConfig(name="m", base_path=str(base))
    assert set(manager.aspired_versions(message)) == {10}


def test_leading_zeros_name_the_directory_that_is_there(tmp_path):
    (tmp_path / "007").mkdir()
    assert manager.aspired_versions(config(tmp_path)) == {7: tmp_path / "007"}


@pytest.mark.parametrize("prefix", ["file://", "file://localhost"])
def test_scheme_of_files_is_a_path_of_this_machine(base, prefix):
    assert manager.aspired_versions(config(f"{prefix}{base}")) == {10: base / "10"}


@pytest.mark.parametrize("path", ["gs://bucket/m", "file:///nowhere/at/all", "s3://b"])
def test_other_schemes_lead_nowhere(path):
    with pytest.raises(ServingError) as caught:
        manager.aspired_versions(config(path))
    assert caught.value.code is Code.NOT_FOUND
    assert f"Could not find base path {path} for servable m" in caught.value.message


def test_empty_base_path_asks_for_nothing(tmp_path):
    assert manager.aspired_versions(config(tmp_path)) == {}


@pytest.mark.parametrize("kind", ["missing", "file"])
def test_base_path_that_cannot_be_listed_is_not_found(tmp_path, kind):
    path = tmp_path / "gone"
    if kind == "file":
        path.write_text("")
    with pytest.raises(ServingError) as caught:
        manager.aspired_versions(config(path))
    assert caught.value.code is Code.NOT_FOUND
    assert caught.value.message == (
        f"Could not find base path {path} for servable m with error NOT_FOUND: {path} not found"
    )


def test_version_that_is_a_directory_may_be_loaded(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    manager.check_directory(tmp_path, "{s}")
    manager.check_directory(tmp_path / "link", "{s}")


@pytest.mark.parametrize(
    ("kind", "code", "end"),
    [
        ("file", Code.FAILED_PRECONDITION, "; Not a directory"),
        ("dangling link", Code.NOT_FOUND, " not found"),
        ("nothing", Code.NOT_FOUND, " not found"),
    ],
)
def test_version_that_is_no_directory_is_refused_in_the_official_words(tmp_path, kind, code, end):
    path = tmp_path / "7"
    if kind == "file":
        path.write_text("")
    if kind == "dangling link":
        path.symlink_to(tmp_path / "gone")
    with pytest.raises(ServingError) as caught:
        manager.check_directory(path, "{name: m version: 7}")
    assert caught.value.code is code
    assert caught.value.message == (
        "Error while attempting to reserve resources to load servable {name: m version: 7}: "
        f"{path}{end}"
    )


# Looking at base paths: all of them once a round, beside one that hangs.


class Disk:
    """Notes who is looked at; `slow` hangs until it is let go."""

    def __init__(self):
        self.looked, self.go = SimpleQueue(), threading.Event()

    def look(self, name, config):
        self.looked.put((name, config))
        if name == "slow":
            assert self.go.wait(PATIENCE_S)

    def next(self):
        return self.looked.get(timeout=PATIENCE_S)


@pytest.fixture
def disk():
    disk = Disk()
    yield disk
    disk.go.set()


def test_model_that_hangs_is_not_looked_at_again_and_others_are(disk):
    poller, configs = Poller(disk.look), {"slow": object(), "quick": object()}
    poller.ask(configs)
    assert disk.next() == ("slow", configs["slow"])
    for _ in range(3):
        poller.ask(configs)
        assert disk.next() == ("quick", configs["quick"])
    disk.go.set()
    poller.ask({"last": 1})
    assert disk.next() == ("last", 1)


def test_model_that_is_replaced_while_it_is_looked_at_is_looked_at_once_more(disk):
    poller = Poller(disk.look)
    poller.ask({"slow": "old"})
    assert disk.next() == ("slow", "old")
    poller.ask({"slow": "new"})  # the only round: base paths need not be polled
    disk.go.set()
    assert disk.next() == ("slow", "new")


def test_model_that_is_removed_while_it_is_looked_at_is_not_looked_at_again(disk):
    poller = Poller(disk.look)
    poller.ask({"slow": "old"})
    assert disk.next() == ("slow", "old")
    poller.ask({"slow": "new"})
    poller.ask({"other": 1})
    assert disk.next() == ("other", 1)
    disk.go.set()
    poller.ask({"end": 1})
    assert disk.next() == ("end", 1)


# The availability-preserving policy: what is served goes only after its replacement is there.


START, LOADING, AVAILABLE = VersionState.START, VersionState.LOADING, VersionState.AVAILABLE
UNLOADING, END = VersionState.UNLOADING, VersionState.END


def entries(*rows):
    """Return entries; a row is (number, state) if aspired, (number, state, False) if not."""
    return [Entry("m", number, Path(), state, aspired=not rest) for number, state, *rest in rows]


@pytest.mark.parametrize(
    ("versions", "expected"),
    [
        pytest.param([], None, id="nothing-known"),
        pytest.param([(1, START)], (1, LOADING), id="first-version-loads"),
        pytest.param([(1, START), (3, START), (2, START)], (3, LOADING), id="highest-loads-first"),
        pytest.param(
            [(3, LOADING), (2, START)], (2, LOADING), id="next-loads-beside-a-loading-one"
        ),
        pytest.param([(1, LOADING)], None, id="loading-is-waited-for"),
        pytest.param([(1, AVAILABLE)], None, id="settled"),
        pytest.param([(1, END)], None, id="ended-is-left-alone"),
        pytest.param([(2, UNLOADING)], None, id="unloading-is-waited-for"),
        pytest.param(
            [(1, AVAILABLE, False), (2, START)], (2, LOADING), id="new-loads-while-old-serves"
        ),
        pytest.param(
            [(1, AVAILABLE, False), (2, LOADING)], None, id="old-stays-until-new-is-there"
        ),
        pytest.param([(1, AVAILABLE, False), (2, END)], None, id="old-stays-when-new-failed"),
        pytest.param(
            [(1, AVAILABLE, False), (2, UNLOADING)], None, id="old-stays-when-new-is-going"
        ),
        pytest.param(
            [(1, AVAILABLE, False), (2, AVAILABLE)], (1, UNLOADING), id="old-goes-once-new-is-there"
        ),
        pytest.param(
            [(2, AVAILABLE, False), (1, AVAILABLE, False), (3, AVAILABLE)],
            (1, UNLOADING),
            id="lowest-goes-first",
        ),
        pytest.param(
            [(1, AVAILABLE, False), (3, AVAILABLE), (2, START)],
            (1, UNLOADING),
            id="unload-comes-before-further-loads",
        ),
        pytest.param([(1, AVAILABLE, False)], (1, UNLOADING), id="none-aspired-unloads"),
        pytest.param(
            [(1, LOADING, False), (2, AVAILABLE)], None, id="surplus-that-still-loads-is-waited-for"
        ),
        pytest.param([(1, START, False)], None, id="unwanted-before-it-began-never-loads"),
        pytest.param([(1, UNLOADING, False), (2, AVAILABLE)], None, id="surplus-unloads-only-once"),
        pytest.param(
            [(2, AVAILABLE, False), (1, START)], (1, LOADING), id="rollback-loads-the-older-first"
        ),
    ],
)
def test_next_step_for_versions_is(versions, expected):
    step = next_step(entries(*versions))
    assert (step and (step[0].number, step[1])) == expected


def test_state_numbers_are_those_of_the_status_message():
    from tfserve_kit import protos

    official = protos.enum("ModelVersionStatus.State").values_by_name
    assert {state.name: int(state) for state in VersionState} == {
        name: value.number for name, value in official.items()
    }


# Version labels: what a configuration gives out, and what a label stands for.


def labelled(name, **versions):
    return protos.ModelConfig(name=name, version_labels=versions)


def assign(configs, current=None, *, available=(), allow_unavailable=False):
    return manager.assign_labels(
        configs,
        current or {},
        lambda model, version: (model, version) in available,
        allow_unavailable=allow_unavailable,
    )


def test_labels_of_available_versions_are_given_out_by_model():
    configs = [
        labelled("a", stable=1, canary=2),
        labelled("b", stable=7),
        labelled("c"),
    ]
    found = assign(configs, available={("a", 1), ("a", 2), ("b", 7)})
    assert found == {"a": {"stable": 1, "canary": 2}, "b": {"stable": 7}}


def test_label_that_a_configuration_leaves_out_is_gone():
    found = assign([labelled("a", new=1)], {"a": {"old": 1}}, available={("a", 1)})
    assert found == {"a": {"new": 1}}


@pytest.mark.parametrize("allowed", [False, True])
@pytest.mark.parametrize(
    ("current", "lenient"),
    [
        ({}, True),  # the label is new
        ({"a": {"other": 1}}, True),
        ({"b": {"stable": 1}}, True),
        ({"a": {"stable": 2}}, True),  # it stays where it is
        ({"a": {"stable": 1}}, False),  # it moves
        ({"a": {"stable": 0}}, False),
    ],
)
def test_label_may_name_an_unavailable_version_if_allowed_and_not_moved(current, lenient, allowed):
    ask = [labelled("a", stable=2)]
    if lenient and allowed:
        assert assign(ask, current, allow_unavailable=True) == {"a": {"stable": 2}}
        return
    with pytest.raises(ServingError) as caught:
        assign(ask, current, available={("a", 1), ("b", 2)}, allow_unavailable=allowed)
    assert caught.value.code is Code.FAILED_PRECONDITION
    assert caught.value.message == (
        "Request to assign label to version 2 of model a, which is not currently available for "
        "inference"
    )


def test_label_may_move_to_an_available_version():
    current = {"a": {"stable": 1}}
    for allow in (True, False):
        found = assign(
            [labelled("a", stable=2)],
            current,
            available={("a", 2)},
            allow_unavailable=allow,
        )
        assert found == {"a": {"stable": 2}}
    assert current == {"a": {"stable": 1}}


def test_label_stands_for_its_version():
    assert manager.resolve_label({"a": {"stable": 3}}, "a", "stable") == 3


@pytest.mark.parametrize(("model", "label"), [("a", "canary"), ("b", "stable"), ("a", "")])
def test_unknown_label_is_refused(model, label):
    with pytest.raises(ServingError) as caught:
        manager.resolve_label({"a": {"stable": 3}}, model, label)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert caught.value.message == f"Unrecognized servable version label: {label}"
