"""Starting a server and waiting until it is ready, and everything that can go wrong meanwhile."""

import contextlib
import os
import shutil
import socket
import subprocess

import psutil
import pytest

from tests.integration.commands import Caller
from tfserve_kit import connect
from tfserve_kit.clients import Target
from tfserve_kit.clock import SystemClock, wait_until
from tfserve_kit.engines import Phase, process
from tfserve_kit.errors import ServerExists, ServerFailed, SpecError
from tfserve_kit.repository import push
from tfserve_kit.serving import launch


class Steps:
    """Progress that is written down; `interrupt_at` is the step at whose advance Ctrl-C comes."""

    def __init__(self, interrupt_at=None):
        self.steps, self.notes, self.counts = [], [], []
        self._interrupt_at = interrupt_at

    def step(self, text):
        self.steps.append(text)

    def note(self, text):
        self.notes.append(text)

    def advance(self, done, total):
        self.counts.append((done, total))
        if self._interrupt_at is not None:
            raise self._interrupt_at


class CountingClock:
    """A real clock that notes what it was asked to sleep, and may end the test's patience."""

    def __init__(self, *, interrupt_after=None):
        self.sleeps, self._interrupt_after, self._real = 0, interrupt_after, SystemClock()

    def now_s(self):
        return self._real.now_s()

    def sleep(self, duration_s):
        self.sleeps += 1
        if self.sleeps == self._interrupt_after:
            raise KeyboardInterrupt
        self._real.sleep(duration_s)


@pytest.fixture
def up():
    """Run `launch.up`; the server is stopped at the end of the test."""
    handles = []

    def run(*arguments, **options):
        handles.append(launch.up(*arguments, **options))
        return handles[-1]

    yield run
    for handle in handles:
        handle.stop(grace_s=5)


def refused_by(engine, deployment, **options):
    with pytest.raises(ServerFailed) as caught:
        launch.up(deployment, engine, **options)
    assert engine.list() == []
    return caught.value


# What goes well


def test_server_is_up_once_its_models_are_available(fake_engine, deployment, up):
    progress = Steps()
    handle = up(deployment(), fake_engine(), progress=progress)
    assert handle.state().phase is Phase.RUNNING
    with connect(handle.endpoints.grpc) as client:
        assert client.status(Target("half_plus_two"))[0].state == "AVAILABLE"
    assert progress.steps == ["starting 'web' (fake)", "waiting for half_plus_two"]
    assert progress.counts == [(1, 1)]


def test_ports_of_zero_become_two_free_ones(fake_engine, deployment, up):
    handle = up(deployment(), fake_engine())
    ports = [int(url.rpartition(":")[2]) for url in (handle.endpoints.grpc, handle.endpoints.rest)]
    assert 0 not in ports
    assert ports[0] != ports[1]
    for port in ports:
        socket.create_connection(("127.0.0.1", port), 5).close()


def test_stopped_server_frees_its_name_and_ports(fake_engine, deployment, up):
    engine = fake_engine()
    handle = up(deployment(), engine)
    port = int(handle.endpoints.grpc.rpartition(":")[2])
    handle.stop()
    again = up(deployment(grpc_port=port), engine)
    assert again.endpoints.grpc == handle.endpoints.grpc


def test_plan_changes_nothing(fake_engine, deployment, state_dir):
    plan = launch.plan(deployment(grpc_port=1, rest_port=2), fake_engine())
    assert plan.endpoints.grpc == "grpc://127.0.0.1:1"
    assert not state_dir.exists()


# What goes wrong


def test_server_that_ends_at_once_is_reported_with_status_and_log(fake_engine, deployment):
    error = refused_by(fake_engine("exit:3"), deployment())
    assert error.message == "server 'web' ended with exit status 3"
    assert error.exit_code == 3
    assert error.log_tail[1:] == ["something is wrong", "it cannot go on"]
    assert "it cannot go on" in str(error)


@pytest.mark.parametrize("life", ["never", "loading"])
def test_server_that_is_never_ready_is_given_up_after_the_timeout(fake_engine, deployment, life):
    started_s = SystemClock().now_s()
    error = refused_by(fake_engine(life), deployment(ready_timeout_s=2.0))
    assert 2.0 <= SystemClock().now_s() - started_s < 15
    assert error.message == "server 'web' was not ready after 2 s"
    assert error.exit_code is None
    assert error.log_tail[0].startswith("fake model server")


def test_what_the_linter_knows_is_said_of_a_server_that_is_not_ready(
    fake_engine, deployment, models, tmp_path
):
    shutil.copytree(models / "half_plus_two" / "1", tmp_path / "half" / "1")
    shutil.copytree(models / "half_plus_two" / "1", tmp_path / "half" / "v2")
    given = deployment(base_path=tmp_path / "half", ready_timeout_s=0.5)
    error = refused_by(fake_engine("never"), given)
    assert (
        "'v2' in" in error.message and f"mv {tmp_path}/half/v2 {tmp_path}/half/2" in error.message
    )


def test_model_that_fails_to_load_is_reported_with_its_error(fake_engine, deployment):
    error = refused_by(fake_engine("failed"), deployment())
    assert error.message == "server 'web' could not load 'half_plus_two': cut off"


@pytest.mark.parametrize("key", ["grpc_port", "rest_port"])
def test_port_in_use_is_reported_before_anything_starts(fake_engine, deployment, state_dir, key):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        error = refused_by(fake_engine(), deployment(**{key: port}))
    option = key.replace("_", " ")
    assert error.message.startswith(f"cannot listen on 127.0.0.1:{port} for {option}: ")
    assert f"--{key.replace('_', '-')} 0" in error.remedy
    assert not state_dir.exists()


def test_base_path_that_does_not_exist_is_reported_before_anything_starts(
    fake_engine, deployment, state_dir, tmp_path
):
    with pytest.raises(SpecError) as caught:
        launch.up(deployment(base_path=tmp_path / "none"), fake_engine())
    (problem,) = caught.value.problems
    assert problem.path == "models.half_plus_two.base_path"
    assert problem.message == f"{tmp_path / 'none'} cannot be read (No such file or directory)"
    push = f"tfkit push-model SAVED_MODEL --to {tmp_path / 'none'}"
    assert problem.remedy == f"store a version there: {push}"
    assert not state_dir.exists()


def test_base_path_without_a_version_is_reported(fake_engine, deployment, tmp_path):
    (tmp_path / "v1").mkdir()
    with pytest.raises(SpecError) as caught:
        launch.up(deployment(base_path=tmp_path), fake_engine())
    (problem,) = caught.value.problems
    assert problem.message == f"{tmp_path} holds no version"


def test_version_that_is_not_there_is_reported(fake_engine, deployment):
    with pytest.raises(SpecError) as caught:
        launch.up(deployment(versions={"specific": [1, 7]}), fake_engine())
    (problem,) = caught.value.problems
    assert problem.path == "models.half_plus_two.versions"
    assert problem.message.startswith("version 7 is not in ")
    assert problem.remedy == "it holds [1, 2]"


def test_model_that_is_damaged_is_reported_before_anything_starts(
    fake_engine, deployment, models, tmp_path, state_dir
):
    graph = tmp_path / "m" / "1" / "saved_model.pb"
    graph.parent.mkdir(parents=True)
    graph.write_bytes((models / "half_plus_two" / "1" / "saved_model.pb").read_bytes()[:500])
    with pytest.raises(SpecError) as caught:
        launch.up(deployment(base_path=tmp_path / "m"), fake_engine())
    (problem,) = caught.value.problems
    assert "saved_model.pb cannot be parsed" in problem.message
    assert not state_dir.exists()


def test_warnings_of_the_linter_are_told_and_stop_nothing(
    fake_engine, deployment, models, tmp_path, up
):
    base_path = shutil.copytree(models / "half_plus_two", tmp_path / "m")
    (base_path / "v3").mkdir()
    progress = Steps()
    up(deployment(base_path=base_path), fake_engine(), progress=progress)
    assert progress.notes == [
        f"Warning: models.half_plus_two.base_path: 'v3' in {base_path} will never be loaded (name "
        "versions with whole numbers below 2^63, such as 1: "
        f"mv {base_path}/v3 {base_path}/3)"
    ]


def test_check_returns_what_is_no_error(deployment, tmp_path, models):
    assert launch.check(deployment()) == []
    (note,) = launch.check(deployment(base_path="gs://bucket/m"))
    assert note.rule == "remote-base-path"


def test_base_path_that_only_the_server_can_read_is_left_to_it(fake_engine, deployment):
    error = refused_by(fake_engine("exit:1"), deployment(base_path="gs://bucket/m"))
    assert error.exit_code == 1


def test_second_server_of_a_name_is_refused_and_the_first_goes_on(fake_engine, deployment, up):
    engine = fake_engine()
    first = up(deployment(), engine)
    with pytest.raises(ServerExists):
        launch.up(deployment(), engine)
    assert first.state().phase is Phase.RUNNING


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ZeroDivisionError()])
def test_interruption_while_waiting_leaves_no_process(fake_engine, deployment, error):
    engine = fake_engine("loading")
    with pytest.raises(type(error)):
        launch.up(deployment(), engine, progress=Steps(interrupt_at=error))
    assert engine.list() == []


def test_interruption_before_the_ports_are_open_leaves_no_process(fake_engine, deployment):
    engine = fake_engine("never")
    with pytest.raises(KeyboardInterrupt):
        launch.up(deployment(), engine, clock=CountingClock(interrupt_after=3))
    assert engine.list() == []


# The real thing


@pytest.mark.tensorflow
def test_damage_that_only_a_load_finds_ends_the_real_server_and_its_log_says_why(
    deployment, models, tmp_path, state_dir
):
    base_path = shutil.copytree(models / "half_plus_two", tmp_path / "m")
    shard = base_path / "2" / "variables" / "variables.data-00000-of-00001"
    shard.write_bytes(b"x" * shard.stat().st_size)  # its length is right, its checksum is not
    flags = {"max_num_load_retries": 0}
    error = refused_by(process.embedded(), deployment(base_path=base_path, flags=flags))
    assert error.exit_code == 255
    assert error.message.startswith(
        "server 'web' ended with exit status 255 (refused to start because of "
    )
    why = (
        "Failed to start server. Error: UNKNOWN: 1 servable(s) did not become available: "
        "{{{name: half_plus_two version: 2} due to error: DATA_LOSS: "
    )
    assert [line for line in error.log_tail if line.startswith(why)]


@pytest.mark.tensorflow
def test_push_while_serving_swaps_the_version_without_a_failed_request(
    deployment, up, models, tmp_path, state_dir
):
    base_path = tmp_path / "half_plus_two"
    shutil.copytree(models / "half_plus_two" / "1", base_path / "1")
    server = deployment(base_path=base_path)
    handle = up(server, process.embedded())
    with (
        Caller(handle.endpoints.grpc) as grpc,
        Caller(handle.endpoints.rest) as rest,
    ):
        callers = (grpc, rest)
        assert settled(lambda: all(len(each.answers) > 20 for each in callers))
        pushed = push(models / "half_plus_two" / "2", base_path)
        assert pushed.version == 2
        assert settled(lambda: all(3.5 in each.answers for each in callers))
        swapped = [len(each.answers) for each in callers]
        assert settled(
            lambda: all(
                len(each.answers) > at + 20 for each, at in zip(callers, swapped, strict=True)
            )
        )
    for each in callers:
        assert each.errors == []
        assert set(each.answers) == {2.5, 3.5}
        assert each.answers == sorted(each.answers)  # version 1, then version 2, never back
    with connect(handle.endpoints.grpc) as client:
        assert settled(
            lambda: (
                [(s.version, s.state) for s in client.status(Target("half_plus_two"))]
                == [(2, "AVAILABLE"), (1, "END")]
            )
        )
    pid = process.Record.read(state_dir / "servers" / "web").pid
    handle.stop()
    assert not psutil.pid_exists(pid)


def settled(condition):
    """Wait until something is so; return whether it came to that."""
    return wait_until(
        lambda: condition() or None, timeout_s=60, interval_s=0.05, clock=SystemClock()
    )


@pytest.fixture
def full_disk(state_dir):
    """Put the state folder on a disk without room."""
    state_dir.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(state_dir)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("no right to mount a small disk")
    with contextlib.suppress(OSError):
        (state_dir / "ballast").write_bytes(bytes(1 << 20))
    yield state_dir
    subprocess.run(["umount", state_dir], check=True)


def test_full_disk_is_named_and_nothing_is_left_running(fake_engine, deployment, full_disk):
    error = refused_by(fake_engine(), deployment())
    assert "No space left on device" in error.message
    assert "free some space" in error.remedy
    assert not list((full_disk / "servers").glob("*/"))
