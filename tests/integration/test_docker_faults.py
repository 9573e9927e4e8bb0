"""What ends a container, its client or its daemon, at the worst moments."""

import os
import shutil
import signal
from dataclasses import replace

import pytest

from tests.integration.commands import running
from tests.integration.daemon_proxy import DaemonProxy
from tests.integration.images import docker
from tfserve_kit.clock import SystemClock, wait_until
from tfserve_kit.engines import Phase, State
from tfserve_kit.engines.container import container_name
from tfserve_kit.engines.docker import DockerEngine
from tfserve_kit.errors import ServerFailed
from tfserve_kit.serving import launch

pytestmark = pytest.mark.tensorflow

PATIENCE_S = 30.0
DEAD = "unix:///nonexistent/docker.sock"


def settled(condition):
    return wait_until(
        lambda: condition() or None, timeout_s=PATIENCE_S, interval_s=0.05, clock=SystemClock()
    )


# The container ends


def failed_start(deployment):
    with pytest.raises(ServerFailed) as caught:
        launch.start(deployment, DockerEngine(deployment.docker))
    assert caught.value.exit_code not in {0, None}
    assert f"ended with exit status {caught.value.exit_code}" in caught.value.message
    return caught.value


def test_server_that_refuses_its_flags_is_reported_with_its_log(container_deployment, containers):
    error = failed_start(
        container_deployment(flags={"tensorflow_session_config_file": "/nonexistent/session.txt"})
    )
    assert "/nonexistent/session.txt" in "".join(error.log_tail)
    assert containers() == []


def test_model_whose_damage_only_a_load_finds_ends_the_server(
    container_deployment, containers, models, tmp_path
):
    base_path = shutil.copytree(models / "half_plus_two", tmp_path / "m")
    shard = base_path / "2" / "variables" / "variables.data-00000-of-00001"
    shard.write_bytes(b"x" * shard.stat().st_size)  # its length is right, its checksum is not
    error = failed_start(
        container_deployment(base_path=base_path, flags={"max_num_load_retries": 0})
    )
    assert "DATA_LOSS" in "".join(error.log_tail)
    assert containers() == []


def test_image_without_a_server_ends_with_the_status_of_a_command_not_found(container_plan):
    plan = container_plan()
    handle = DockerEngine().start(
        replace(plan, container={**plan.container, "entrypoint": ["no_such_server"]})
    )
    assert settled(lambda: handle.state() == State(Phase.EXITED, 127))
    assert "no_such_server" in "".join(handle.logs())
    handle.stop()


def test_limit_that_the_machine_cannot_give_is_reported(container_plan, containers):
    with pytest.raises(ServerFailed) as caught:
        DockerEngine().start(container_plan(docker={"cpus": 4096.0}))
    assert caught.value.message.startswith("cannot create the container: ")
    assert containers() == []


def test_killed_server_is_listed_with_its_status_until_it_is_stopped(tfkit, serve_args, name):
    assert tfkit(*serve_args("--detach")).code == 0
    docker("kill", container_name(name))
    (row,) = tfkit("ps", "--json").data
    assert (row["state"], row["exit_code"]) == ("exited", 137)
    assert "exited (137)" in tfkit("ps").out
    assert tfkit("logs", name).out
    assert tfkit("stop", name).code == 0


def test_killed_server_ends_the_command_in_the_foreground_with_its_last_words(
    serve_args, containers, name
):
    with running(*serve_args()) as serving:
        serving.wait_for("is ready", "stdout")
        docker("kill", container_name(name))
        done = serving.ended()
    assert done.code == 5
    assert f"server '{name}' ended by itself with exit status 137 (killed: " in done.err
    assert "  | " in done.err
    assert containers() == []


def test_server_that_is_stopped_from_elsewhere_ends_the_command_in_the_foreground(
    tfkit, serve_args, containers, name
):
    with running(*serve_args()) as serving:
        serving.wait_for("is ready", "stdout")
        assert tfkit("stop", name).code == 0
        done = serving.ended()
    assert done.code == 5
    assert f"server '{name}' ended by itself with " in done.err
    assert "Traceback" not in done.err
    assert containers() == []


def test_server_that_docker_starts_again_goes_on(container_deployment):
    deployment = container_deployment(docker={"restart": "always"})
    handle = launch.up(deployment, DockerEngine(deployment.docker))
    pid = docker("inspect", "-f", "{{.State.Pid}}", container_name(deployment.server.name))
    os.kill(int(pid), signal.SIGKILL)  # `docker kill` would count as the user's own wish
    restarted = settled(
        lambda: (
            docker("inspect", "-f", "{{.RestartCount}}", container_name(handle.server_name)) == "1"
            and handle.state().phase is Phase.RUNNING
        )
    )
    handle.stop(grace_s=1)
    assert restarted


# The command ends


def test_server_outlives_a_foreground_command_that_is_killed(tfkit, serve_args, containers, name):
    with running(*serve_args()) as serving:
        serving.wait_for("is ready", "stdout")
        serving.popen.kill()
        serving.ended()
    assert [each["state"] for each in tfkit("ps", "--json").data] == ["running"]
    assert tfkit("status", "--json").data[0]["state"] == "AVAILABLE"
    assert tfkit("stop", name).code == 0
    assert containers() == []


@pytest.mark.parametrize(
    ("moment", "stream", "number"),
    [
        ("Engine: docker", "stderr", signal.SIGINT),
        ("starting", "stderr", signal.SIGINT),
        ("starting", "stderr", signal.SIGTERM),
        ("waiting for", "stderr", signal.SIGINT),
        ("is ready", "stdout", signal.SIGINT),
        ("is ready", "stdout", signal.SIGTERM),
    ],
)
def test_interrupted_command_leaves_no_container_and_no_folder(
    serve_args, containers, moment, stream, number
):
    with running(*serve_args()) as serving:
        serving.wait_for(moment, stream)
        serving.popen.send_signal(number)
        done = serving.ended()
    assert done.code == 130
    assert done.err.splitlines()[-1] == "Interrupted."
    assert containers() == []


def test_command_whose_reader_has_left_leaves_no_container(serve_args, containers):
    with running(*serve_args()) as serving:
        serving.popen.stdout.close()
        serving.wait_for("waiting for")
        assert serving.popen.wait(PATIENCE_S) != 0
    assert containers() == []


# The daemon ends


def test_without_a_daemon_serve_says_so_and_processes_are_still_listed(
    tfkit, serve_args, fake_binary, monkeypatch, name
):
    native = ("--engine", "native", "--binary", fake_binary(), "--detach")
    with monkeypatch.context() as patch:
        patch.setenv("DOCKER_HOST", DEAD)
        done = tfkit(*serve_args("--json"))
        assert (done.code, done.data["error"]) == (4, "EngineUnavailable")
        assert f"no Docker daemon answers at {DEAD}" in done.data["message"]
        assert "another --engine" in done.data["remedy"]
        with running(*serve_args(*native)) as serving:
            assert serving.ended().code == 0
        assert [each["engine"] for each in tfkit("ps", "--json").data] == ["native"]
        assert tfkit("stop", name).code == 0


def test_file_that_is_no_socket_is_no_daemon(serve_args, monkeypatch, tmp_path):
    (tmp_path / "file.sock").write_text("")
    with monkeypatch.context() as patch:
        patch.setenv("DOCKER_HOST", f"unix://{tmp_path / 'file.sock'}")
        with running(*serve_args()) as serving:
            done = serving.ended()
    assert done.code == 4
    assert "no Docker daemon answers at unix://" in done.err


def test_daemon_that_goes_away_during_the_start_is_reported_and_the_name_is_free_again(
    tfkit, serve_args, containers, monkeypatch, tmp_path, state_dir, name
):
    with DaemonProxy(tmp_path / "d.sock", "/start HTTP") as proxy, monkeypatch.context() as patch:
        patch.setenv("DOCKER_HOST", proxy.url)
        with running(*serve_args("--detach", "--json")) as serving:
            done = serving.ended()
    assert (done.code, done.data["error"]) == (4, "EngineUnavailable")
    assert "the Docker daemon went away" in done.data["message"]
    assert not list((state_dir / "servers").glob("*/"))
    (left,) = containers()
    assert docker("inspect", "-f", "{{.State.Status}}", left) == "created"
    assert tfkit(*serve_args("--detach")).code == 0
    assert left not in containers()
    assert tfkit("stop", name).code == 0


def test_pull_that_breaks_off_is_reported_and_leaves_nothing(
    tfkit, serve_args, monkeypatch, tmp_path, state_dir, containers
):
    with (
        DaemonProxy(tmp_path / "d.sock", "/images/create") as proxy,
        monkeypatch.context() as patch,
    ):
        patch.setenv("DOCKER_HOST", proxy.url)
        done = tfkit(*serve_args("--pull", "always", "--json"))
    assert (done.code, done.data["error"]) == (4, "EngineUnavailable")
    assert "cannot pull" in done.data["message"]
    assert not list((state_dir / "servers").glob("*/"))
    assert containers() == []


def test_daemon_that_goes_away_while_serving_ends_the_command_and_the_server_goes_on(
    tfkit, serve_args, monkeypatch, tmp_path, name
):
    with DaemonProxy(tmp_path / "d.sock", "/stop") as proxy, monkeypatch.context() as patch:
        patch.setenv("DOCKER_HOST", proxy.url)
        with running(*serve_args()) as serving:
            serving.wait_for("is ready", "stdout")
            serving.popen.send_signal(signal.SIGINT)
            done = serving.ended()
    assert done.code == 4
    assert "the Docker daemon went away" in done.err
    assert "Traceback" not in done.err
    assert [each["state"] for each in tfkit("ps", "--json").data] == ["running"]
    assert tfkit("stop", name).code == 0
