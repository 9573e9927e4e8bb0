"""Versions over time on a real server, while requests come in: none of them may notice.

$TFKIT_TORTURE=1 asks for a hundred swaps instead of ten. The official binary takes part where
$TFKIT_TEST_MODEL_SERVER names one.
"""

import os
import shutil
import threading
import uuid
from contextlib import contextmanager

import numpy as np
import pytest

from tests.integration.commands import Caller
from tfserve_kit import connect
from tfserve_kit.clients import Target
from tfserve_kit.clock import SystemClock, wait_until
from tfserve_kit.deployment import build
from tfserve_kit.engines import Phase, process
from tfserve_kit.errors import PushRefused, RequestError, ServerFailed, UsageError
from tfserve_kit.repository import list_versions, push, versions
from tfserve_kit.serving import launch, reload, rollback, swap
from tfserve_kit.serving.access import ServedModel
from tfserve_kit.serving.rollback import bring_back, claims, roll_back

pytestmark = pytest.mark.tensorflow

SWAPS = 100 if os.environ.get("TFKIT_TORTURE") == "1" else 10
SHARD = "variables/variables.data-00000-of-00001"
PATIENCE_S = 60.0
# A failed load is final at once: nothing is gained by trying a damaged file again.
FLAGS = {"max_num_load_retries": 0, "num_load_threads": 1}


@pytest.fixture(params=["embedded", "native"])
def engine(request, require, state_dir):
    """The engines that serve for real."""
    if request.param == "embedded":
        return process.embedded()
    binary = os.environ.get("TFKIT_TEST_MODEL_SERVER")
    return process.native(
        binary or require("native", "TFKIT_TEST_MODEL_SERVER names no tensorflow_model_server")
    )


@pytest.fixture
def base_path(tmp_path, models):
    """Version 1 of half_plus_two; 1 becomes 2.5, and 3.5 in even versions."""
    shutil.copytree(models / "half_plus_two" / "1", tmp_path / "half" / "1")
    return tmp_path / "half"


@pytest.fixture
def add(base_path, models):
    """Push the next version, or one of this number; return its number."""

    def push_next(version="next"):
        number = version if version != "next" else list_versions(base_path)[-1].number + 1
        content = models / "half_plus_two" / ("1" if number % 2 else "2")
        return push(content, base_path, version=number).version

    return push_next


@pytest.fixture
def add_broken(base_path):
    """Add a version whose load fails: its checkpoint has the right length and a wrong content."""

    def place():
        number = list_versions(base_path)[-1].number + 1
        hidden = shutil.copytree(base_path / "1", base_path / f".{uuid.uuid4()}")
        (hidden / SHARD).write_bytes(b"x" * (hidden / SHARD).stat().st_size)
        hidden.rename(base_path / str(number))
        return number

    return place


@pytest.fixture
def serve(engine, base_path):
    """Serve the base path; the server is stopped at the end of the test."""
    handles = []

    def up(**keys):
        server = {"name": "web", "grpc_port": 0, "rest_port": 0, "flags": FLAGS}
        models = {"half": {"base_path": str(base_path), **keys}}
        deployment = build({"server": server, "models": models}, source="test", folder=base_path)
        handles.append(launch.up(deployment, engine))
        return handles[-1]

    yield up
    for handle in handles:
        handle.stop(grace_s=5)


@pytest.fixture
def grpc():
    """Make gRPC clients, closed at the end of the test."""
    clients = []

    def make(handle):
        clients.append(connect(handle.endpoints.grpc))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def states(client):
    return {each.version: each.state for each in client.status(Target("half"))}


def settled(condition):
    return wait_until(
        lambda: condition() or None, timeout_s=PATIENCE_S, interval_s=0.05, clock=SystemClock()
    )


TRAFFIC = swap.Traffic(
    rate=100, settle_s=0.1, inputs={"x": np.float32([1])}, swap_timeout_s=PATIENCE_S
)


# Swaps under traffic


def test_swap_after_swap_loses_no_request_and_gives_no_wrong_answer(serve, grpc, add, base_path):
    handle = serve()
    client = grpc(handle)
    with Caller(handle.endpoints.rest, "half") as caller:
        for number in range(2, SWAPS + 2):
            report = swap.verify(client, "half", add, traffic=TRAFFIC)
            assert report.passed, report.as_text()
            assert (report.old, report.new) == (number - 1, number)
            assert report.answers[report.old] and report.answers[report.new]
            versions.prune(base_path, 3)  # as in a long life
            assert settled(lambda value=2.5 + (number + 1) % 2: caller.answers[-1] == value)
    assert caller.errors == []
    changes = sum(a != b for a, b in zip(caller.answers, caller.answers[1:], strict=False))
    assert set(caller.answers) == {2.5, 3.5}
    assert changes == SWAPS  # never back to a version that had been replaced


def test_version_that_does_not_load_is_found_and_rolled_back(
    serve, grpc, add, add_broken, base_path
):
    client = grpc(serve())
    report = swap.verify(client, "half", add_broken, traffic=TRAFFIC, roll_back_in=base_path)
    assert "version 2 of 'half' failed to load" in report.failure
    assert (report.rolled_back, report.roll_back_failure) == ((2,), "")
    assert report.lost == {} and set(report.answers) == {1}
    assert states(client)[1] == "AVAILABLE"
    # The number stays taken; the next good version is served.
    with pytest.raises(PushRefused):
        add(2)
    report = swap.verify(client, "half", lambda: add(3), traffic=TRAFFIC)
    assert report.passed, report.as_text()


def test_wait_says_why_a_version_is_not_served(serve, grpc, add_broken):
    client = grpc(serve())
    number = add_broken()
    with pytest.raises(ServerFailed, match="version 2 of 'half' failed to load at grpc://"):
        swap.wait(client, "half", number, timeout_s=PATIENCE_S)
    assert states(client)[1] == "AVAILABLE"


def test_wait_for_a_version_that_a_pinned_policy_does_not_want_names_the_policy(serve, grpc, add):
    client = grpc(serve(versions={"specific": [1]}))
    with pytest.raises(ServerFailed, match="the server says: 1 AVAILABLE") as caught:
        swap.wait(client, "half", add(), timeout_s=0.5)
    assert "policy may be pinned" in caught.value.remedy


# Rolling back


def test_roll_back_and_back_again_under_traffic_lose_no_request(serve, grpc, add, base_path):
    add()
    handle = serve()
    with Caller(handle.endpoints.grpc, "half") as caller:
        assert settled(lambda: 3.5 in caller.answers)
        done = roll_back(base_path, places=None, timeout_s=PATIENCE_S)
        assert settled(lambda: caller.answers[-1] == 2.5)
        again = bring_back(base_path, 2, places=None, timeout_s=PATIENCE_S)
        assert settled(lambda: caller.answers[-1] == 3.5)
    place = ServedModel(handle.endpoints.grpc, "half", base_path)
    assert done == (1, [2], [place])
    assert again == [place]
    assert caller.errors == []
    assert [a for a, b in zip(caller.answers, caller.answers[1:], strict=False) if a != b] == [
        3.5,
        2.5,
    ]


def test_roll_back_refuses_what_a_label_or_a_pinned_version_names(serve, add, base_path):
    add()
    serve(versions={"specific": [1, 2]})
    with pytest.raises(PushRefused, match="version 2 is pinned by server 'web'") as caught:
        roll_back(base_path)
    assert "tfkit promote" in caught.value.remedy
    assert [version.number for version in list_versions(base_path)] == [1, 2]
    assert roll_back(base_path, is_forced=True)[1] == [2]


# Who needs a version


def test_claims_are_what_is_served_and_what_is_named(serve, add, base_path):
    add()
    add()
    rollback.promote(serve(versions={"specific": [1, 2]}), "half", 1, keep_old=True)
    assert [(c.version, c.reason, c.label) for c in claims(base_path)] == [
        (1, "labelled", "stable"),
        (1, "pinned", ""),
        (1, "served", ""),
        (2, "pinned", ""),
        (2, "served", ""),
    ]


# Labels


class LabelCaller:
    """Asks for a label, one request after the other, until told to stop."""

    def __init__(self, handle, label):
        self._handle, self._label, self._ended = handle, label, threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.versions, self.errors = [], []

    def _run(self):
        with connect(self._handle.endpoints.grpc) as client:
            while not self._ended.is_set():
                try:
                    target = Target("half", label=self._label)
                    answer = client.predict(target, {"x": np.float32([1])})
                    assert answer.outputs["y"] == (2.5 if answer.version % 2 else 3.5)
                    self.versions.append(answer.version)
                except (RequestError, AssertionError) as error:
                    self.errors.append(error)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._ended.set()
        self._thread.join()


def test_canary_promotion_and_abortion_refuse_no_request_for_stable(serve, grpc, add):
    handle = serve(versions={"specific": [1]})
    client = grpc(handle)
    assert rollback.promote(handle, "half").labels == {"stable": 1}
    with LabelCaller(handle, "stable") as caller:
        served = rollback.canary(handle, "half", add())
        assert (served.versions, served.labels) == ((1, 2), {"stable": 1, "canary": 2})
        assert client.predict(Target("half", label="canary"), {"x": np.float32([1])}).version == 2

        served = rollback.promote(handle, "half")
        assert (served.versions, served.labels) == ((2,), {"stable": 2})
        assert settled(lambda: states(client) == {1: "END", 2: "AVAILABLE"})

        rollback.canary(handle, "half", add())
        served = rollback.abort(handle, "half")
        assert (served.versions, served.labels) == ((2,), {"stable": 2})
        assert settled(lambda: states(client)[3] == "END")
        with pytest.raises(RequestError):
            client.predict(Target("half", label="canary"), {"x": np.float32([1])})

        served = rollback.promote(handle, "half", add(), keep_old=True)
        assert (served.versions, served.labels) == ((2, 4), {"stable": 4})
        rollback.canary(handle, "half", 2)
        served = rollback.promote(handle, "half", 4)  # not the canary, which stays
        assert (served.versions, served.labels) == ((2, 4), {"stable": 4, "canary": 2})
        count = len(caller.versions)
        assert settled(lambda: len(caller.versions) > count + 20)
    assert caller.errors == []
    assert caller.versions == sorted(caller.versions)
    assert set(caller.versions) == {1, 2, 4}
    model = reload.deployment(handle.home).models["half"]
    assert (model.versions.specific, model.labels) == ((2, 4), {"stable": 4, "canary": 2})


def test_canary_that_does_not_load_leaves_what_was_served(serve, grpc, add_broken):
    handle = serve(versions={"specific": [1]})
    rollback.promote(handle, "half", 1)
    with LabelCaller(handle, "stable") as caller:
        with pytest.raises((ServerFailed, RequestError)):
            rollback.canary(handle, "half", add_broken())
        count = len(caller.versions)
        assert settled(lambda: len(caller.versions) > count + 20)
    assert caller.errors == []
    assert reload.deployment(handle.home).models["half"].labels == {"stable": 1}


def test_labels_that_make_no_sense_are_refused(serve, add, base_path):
    handle = serve()
    for act, text in (
        (lambda: rollback.canary(handle, "half", 9), "no version 9 of 'half'"),
        (lambda: rollback.promote(handle, "hlf"), "has no model 'hlf'"),
        (lambda: rollback.abort(handle, "half"), "has no canary"),
    ):
        with pytest.raises(UsageError, match=text):
            act()
    add()
    (base_path / "2" / SHARD).unlink()
    with pytest.raises(UsageError, match="version 2 of 'half' is not a complete SavedModel"):
        rollback.canary(handle, "half", 2)
    rollback.canary(handle, "half", 1)
    with pytest.raises(UsageError, match="is all that is loaded of 'half'"):
        rollback.abort(handle, "half")


# The commands


def test_rollback_command_waits_until_the_server_has_followed(serve, grpc, add, tfkit, base_path):
    add()
    client = grpc(serve())
    done = tfkit("rollback", base_path, "--json")
    assert done.code == 0, done.err
    assert (done.kind, done.data["version"], done.data["retired"]) == ("rollback", 1, [2])
    assert done.data["servers"] == [client.url]
    assert states(client)[1] == "AVAILABLE" and states(client)[2] != "AVAILABLE"
    done = tfkit("rollback", base_path, "--restore", 2, "--url", client.url, "--json")
    assert (done.code, done.data["version"], done.data["restored"]) == (0, 2, [2])
    assert states(client)[2] == "AVAILABLE"


def test_prune_command_spares_what_is_served(serve, add, tfkit, base_path):
    add()
    handle = serve(versions={"specific": [1]})
    add()
    done = tfkit("prune", base_path, "--keep", 1)
    assert done.code == 0
    assert done.out.splitlines()[0] == f"Deleted 2 of {base_path}"
    assert "version 1 is served by server 'web'" in done.out
    assert [version.number for version in list_versions(base_path)] == [1, 3]
    handle.stop(grace_s=5)  # and forgotten: nobody needs version 1 any more
    assert tfkit("prune", base_path, "--keep", 1, "--json").data["deleted"] == [1]


def test_prune_command_spares_what_a_server_that_does_not_answer_would_load(
    serve, add, tfkit, base_path
):
    handle = serve(versions={"specific": [1]})
    add()
    with killed(handle):
        done = tfkit("prune", base_path, "--keep", 1)
    assert (done.code, done.out.splitlines()[0]) == (0, f"Deleted no version of {base_path}")
    assert "server 'web' does not answer; what its deployment names is kept" in done.err
    assert "version 1 is pinned by server 'web'" in done.out


@contextmanager
def killed(handle):
    """A server that was ended from outside, and that tfkit still has a record of."""
    record = process.Record.read(handle.home)
    os.kill(record.pid, 9)
    assert settled(lambda: handle.state().phase is Phase.EXITED)
    yield


def test_canary_and_promote_commands_print_the_lines_of_the_deployment_file(serve, add, tfkit):
    serve(versions={"specific": [1]})
    assert tfkit("promote", "half", 1).code == 0
    add()
    done = tfkit("canary", "half", 2, "--server", "web")
    assert done.code == 0, done.err
    assert done.out.splitlines() == [
        "[models.half]",
        "versions = {specific = [1, 2]}",
        "labels = {canary = 2, stable = 1}",
    ]
    done = tfkit("promote", "half", "--json")
    assert (done.data["versions"], done.data["labels"]) == ([2], {"stable": 2})
    assert done.data["toml"].startswith("[models.half]\n")
    done = tfkit("canary", "half", "--abort")
    assert (done.code, done.out) == (2, "")
    assert "has no canary" in done.err


def test_commands_know_a_model_by_its_name_and_no_server_is_needed(tfkit, tmp_path, base_path):
    (tmp_path / "models").mkdir()
    base_path.rename(tmp_path / "models" / "half")
    for number in (2, 3):
        shutil.copytree(tmp_path / "models/half/1", tmp_path / f"models/half/{number}")
    done = tfkit("rollback", "half")
    assert (done.code, done.out) == (0, "Version 2: retired 3; not waited\n")
    assert tfkit("rollback", "half", "--restore", 3, "--no-wait").code == 0
    assert tfkit("prune", "half", "--keep", 2, "--json").data["deleted"] == [1]


def test_prune_command_spares_what_the_deployment_file_names(tfkit, tmp_path, base_path):
    for number in (2, 3, 4, 5):
        shutil.copytree(base_path / "1", base_path / str(number))
    (tmp_path / "tfkit.toml").write_text(
        '[models.half]\nbase_path = "half"\nversions = {latest = 2}\nlabels = {old = 1}\n'
    )
    done = tfkit("prune", "half", "--keep", 1, "--dry-run", "--json")
    assert (done.data["deleted"], done.data["dry_run"]) == ([2, 3], True)
    assert {"version": 4, "who": "the deployment file", "reason": "among the latest"} in done.data[
        "needed"
    ]
    assert len(list_versions(base_path)) == 5


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["prune", "nowhere", "--keep", 1], 2, "cannot read nowhere: No such file"),
        (["prune", "half", "--keep", 0], 2, "0 is not in the range x>=1"),
        (["rollback", "nowhere"], 8, "cannot roll back nowhere: No such file"),
        (["rollback", "half"], 8, "there is no older version to go back to"),
        (["rollback", "half", "--to", 1, "--restore", 2], 2, "not both"),
        (["rollback", "half", "--restore", 2], 8, "there is no retired version 2"),
        (["canary", "half"], 2, "give a version, or --abort alone"),
        (["canary", "half", 2, "--abort"], 2, "give a version, or --abort alone"),
        (["canary", "half", 2], 2, "which server? There are: none"),
        (["promote", "half", "--server", "web"], 5, "there is no server named 'web'"),
    ],
)
def test_what_a_command_cannot_do_is_said_with_its_exit_code(
    tfkit, base_path, arguments, code, text
):
    done = tfkit(*arguments)
    assert (done.code, done.out) == (code, "")
    assert text in done.err
