"""Servers in containers of a real Docker: from the first command to the last, and every fault."""

import contextlib
import json
import re
import shutil
import signal
import socket
import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import docker as sdk
import pytest
from PIL import Image

from tests.integration.commands import PATIENCE_S, running
from tests.integration.conftest import new_name
from tests.integration.images import docker
from tfserve_kit.clock import SystemClock, wait_until
from tfserve_kit.deployment import build
from tfserve_kit.deployment.spec import Docker
from tfserve_kit.engines import Phase, State, container, registry
from tfserve_kit.engines.container import default_user
from tfserve_kit.engines.docker import DockerEngine
from tfserve_kit.errors import EngineUnavailable, ServerExists, ServerFailed
from tfserve_kit.serving import launch

pytestmark = pytest.mark.tensorflow

MODELS = Path(__file__).parents[1] / "data" / "models"
DEAD = "unix:///nonexistent/docker.sock"


def settled(condition):
    return wait_until(
        lambda: condition() or None, timeout_s=PATIENCE_S, interval_s=0.1, clock=SystemClock()
    )


def inspected(name, image=False):
    return json.loads(docker("inspect", name if image else container.container_name(name)))[0]


# One server for all who only look


@pytest.fixture(scope="module")
def served(docker_image, tmp_path_factory):
    """A server with all limits set: its handle and its state folder."""
    folder = tmp_path_factory.mktemp("served")
    document = {
        "server": {"name": new_name(), "grpc_port": 0, "rest_port": 0},
        "models": {name: {"base_path": name} for name in ("half_plus_two", "image")},
        "docker": {"image": docker_image, "cpus": 1.5, "memory": "1g", "env": {"A": "b c"}},
    }
    deployment = build(document, source="test", folder=MODELS)
    handle = launch.up(deployment, DockerEngine(deployment.docker, folder=folder))
    yield handle, folder
    handle.stop()


@pytest.fixture
def look(served, tfkit, monkeypatch):
    """Run a command that sees the server for all: `look(command, *options)`."""
    monkeypatch.setenv("TFKIT_STATE_DIR", str(served[1]))
    return tfkit


def test_server_is_listed_with_its_models_and_addresses(look, served):
    (row,) = look("ps", "--json").data
    assert (row["name"], row["engine"], row["state"]) == (
        served[0].server_name,
        "docker",
        "running",
    )
    assert row["models"] == {name: str(MODELS / name) for name in ("half_plus_two", "image")}
    assert row["grpc"] == served[0].endpoints.grpc


@pytest.mark.parametrize("protocol", ["grpc", "rest"])
def test_server_answers_over_both_protocols(look, tmp_path, protocol):
    Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / "red.png")
    to = ("--protocol", protocol, "--model", "image", "--json")
    (answer,) = look("predict", "red.png", *to).data
    assert (answer["model"], answer["version"], len(answer["scores"])) == ("image", 1, 3)
    assert look("status", *to).data[0]["state"] == "AVAILABLE"
    assert look("metadata", *to).data["version"] == 1


def test_log_is_shown_from_its_tail(look, served):
    whole = look("logs").out.splitlines()
    assert len(whole) > 1
    assert look("logs", served[0].server_name, "--tail", 1).out.splitlines() == whole[-1:]
    assert look("logs", "--tail", 0).out == ""


def test_log_is_followed_until_ctrl_c(look, served):
    with running("logs", "--follow") as following:
        following.wait_for("\n", "stdout")
        following.popen.send_signal(signal.SIGINT)
        assert following.ended().code == 130


def test_container_is_locked_down_and_limited(served):
    found = inspected(served[0].server_name)
    config, host = found["Config"], found["HostConfig"]
    assert config["User"] == default_user([MODELS / "image"])
    assert not config["User"].startswith("0")
    assert host["PidsLimit"] == 8192
    assert host["ReadonlyRootfs"] is True
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert host["Init"] is True
    assert (host["NanoCpus"], host["Memory"]) == (1_500_000_000, 2**30)
    assert host["RestartPolicy"]["Name"] == "no"
    bindings = [each for each in host["PortBindings"].values() if each]
    assert len(bindings) == 2
    assert {each["HostIp"] for (each,) in bindings} == {"127.0.0.1"}
    assert {each["RW"] for each in found["Mounts"] if each["Type"] == "bind"} == {False}
    assert {"A=b c", "HOME=/tmp"} <= set(config["Env"])
    assert config["Labels"]["tfkit.server"] == served[0].server_name


def test_container_becomes_healthy(served):
    name = served[0].server_name
    state = settled(lambda: inspected(name)["State"]["Health"]["Status"] != "starting")
    assert state
    assert inspected(name)["State"]["Health"]["Status"] == "healthy"


def test_auto_takes_docker_where_its_image_is_and_no_binary(served, docker_image):
    options = Docker(image=docker_image)
    engine, why = registry.choose("auto", binary="no-such-binary", docker=options)
    assert engine.name == "docker"
    assert why.endswith(f"Docker has the image {docker_image}")


def test_image_that_would_have_to_be_pulled_is_passed_over(served):
    engine, why = registry.choose(
        "auto", binary="no-such-binary", docker=Docker(image="tfkit.invalid/none:1")
    )
    assert engine.name == "embedded"
    assert "Docker would have to pull tfkit.invalid/none:1" in why


def test_name_of_a_container_of_another_state_folder_is_refused(served, container_deployment):
    taken = container_deployment(name=served[0].server_name)
    with pytest.raises(ServerExists) as caught:
        launch.up(taken, DockerEngine(taken.docker))
    assert "is not of this state folder" in caught.value.message
    assert served[0].state() == State(Phase.RUNNING)


def test_stop_without_a_daemon_says_so_instead_of_knowing_no_server(look, served, monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", DEAD)
    done = look("stop", served[0].server_name, "--json")
    assert (done.code, done.data["error"]) == (4, "EngineUnavailable")
    assert f"no Docker daemon answers at {DEAD}" in done.err


# A life


def test_stopped_server_leaves_no_container_and_no_folder(tfkit, serve_args, containers, state_dir):
    done = tfkit(*serve_args("--detach", "--json"))
    assert (done.code, done.data["state"]) == (0, "running")
    assert len(containers()) == 1
    assert tfkit("stop", "--json").code == 0
    assert containers() == []
    assert not list((state_dir / "servers").glob("*/"))


def test_server_is_found_and_stopped_without_its_state_folder(
    tfkit, serve_args, containers, state_dir, name
):
    assert tfkit(*serve_args("--detach")).code == 0
    shutil.rmtree(state_dir)
    assert [each["models"] for each in tfkit("ps", "--json").data] == [
        {"half_plus_two": str(MODELS / "half_plus_two")}
    ]
    assert tfkit("logs", name).out
    assert tfkit("reload", "--model", "m=m").code == 2
    assert tfkit("stop", name).out == f"Stopped {name}\n"
    assert containers() == []


def test_two_who_stop_at_once_both_succeed(container_plan, containers):
    handle = DockerEngine().start(container_plan())
    errors = []

    def stop():
        try:
            handle.stop(grace_s=1)
        except Exception as error:  # noqa: BLE001 (a thread's errors are lost otherwise)
            errors.append(error)

    threads = [threading.Thread(target=stop) for _ in range(3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert errors == []
    assert handle.state() == State(Phase.GONE)


def test_old_handle_leaves_the_folder_of_the_new_server_alone(container_plan, state_dir):
    engine, todo = DockerEngine(), container_plan()
    old = engine.start(todo)
    old.stop(grace_s=0)
    new = engine.start(todo)
    old.stop()
    assert all(Path(file).is_file() for file in todo.files)
    new.stop(grace_s=0)


# The command on paper


def files_in(text):
    """Return the line to paste and the files that `--dry-run` prints."""
    line, *parts = re.split(r"^# (/.*)\n", text, flags=re.MULTILINE)
    return line.strip(), dict(zip(parts[::2], parts[1::2], strict=True))


def test_line_of_a_dry_run_makes_the_same_server_when_pasted(
    tfkit, serve_args, container_deployment, tmp_path, name
):
    odd = shutil.copytree(MODELS / "half_plus_two", tmp_path / 'it\'s "a": $1, b')
    free = launch._settle_ports(container_deployment()).server
    ports = ("--grpc-port", free.grpc_port, "--rest-port", free.rest_port)
    arguments = (*serve_args(model=odd), *ports)
    line, files = files_in(tfkit(*arguments, "--dry-run").out)
    write(files)
    subprocess.run(["bash", "-c", line], check=True, stdout=subprocess.DEVNULL)
    pasted = inspected(name)
    (row,) = tfkit("ps", "--json").data
    assert settled(lambda: "AVAILABLE" in tfkit("status", "--url", row["grpc"], "--model",
                                                "half_plus_two").out)  # fmt: skip
    assert tfkit("stop", name).code == 0
    assert tfkit(*arguments, "--detach").code == 0
    assert comparable(inspected(name)) == comparable(pasted)
    assert tfkit("stop", name).code == 0


def write(files):
    for file, text in files.items():
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text(text)


def comparable(found):
    """Return what two containers must have in common; the health checks are spelled differently."""
    config = {**found["Config"], "Hostname": "", "Healthcheck": ""}
    config = {key: value for key, value in config.items() if not key.startswith("Attach")}
    config["Env"] = sorted(config["Env"])
    keys = ("PortBindings", "ReadonlyRootfs", "CapDrop", "SecurityOpt", "Init", "Tmpfs",
            "NanoCpus", "Memory", "RestartPolicy", "Mounts")  # fmt: skip
    return config, {key: found["HostConfig"].get(key) for key in keys}


def test_gpus_are_asked_for_and_a_machine_without_says_what_to_install(container_plan, containers):
    todo = container_plan(docker={"gpu": "device=0,1"})
    write(todo.files)
    with contextlib.closing(sdk.from_env()) as client:
        made = client.containers.create(**todo.container)
        (request,) = made.attrs["HostConfig"]["DeviceRequests"]
        made.remove()
    assert (request["DeviceIDs"], request["Capabilities"]) == (["0", "1"], [["gpu"]])
    if "nvidia" not in docker("info", "--format", "{{json .Runtimes}}"):
        with pytest.raises(EngineUnavailable) as caught:
            DockerEngine().start(todo)
        assert "NVIDIA container toolkit" in caught.value.remedy


# Images that are not there


@pytest.mark.parametrize(
    ("image", "pull", "text"),
    [
        ("127.0.0.1:1/none:1", "never", "127.0.0.1:1/none:1 is not here, and pull is never"),
        ("127.0.0.1:1/none:1", "missing", "cannot pull 127.0.0.1:1/none:1: "),
        ("Nonsense::name", "missing", "cannot look for the image 'Nonsense::name': "),
    ],
)
def test_image_that_cannot_be_had_is_refused_with_a_remedy(tfkit, serve_args, image, pull, text):
    done = tfkit(*serve_args("--image", image, "--pull", pull, "--json"))
    assert (done.code, done.data["error"]) == (4, "EngineUnavailable")
    assert text in done.data["message"]
    assert done.data["remedy"]


def test_image_that_vanished_before_the_start_is_reported(container_plan, containers):
    todo = container_plan()
    todo = replace(todo, container={**todo.container, "image": "tfkit.invalid/none:1"})
    with pytest.raises(EngineUnavailable) as caught:
        DockerEngine().start(todo)
    assert caught.value.message == "the image tfkit.invalid/none:1 is not here"


# Names and ports that are taken


def test_port_in_use_is_refused_beforehand_and_at_the_start(
    tfkit, serve_args, container_plan, containers
):
    todo = container_plan()
    port = int(todo.endpoints.grpc.rpartition(":")[2])
    with socket.create_server(("127.0.0.1", port)):
        done = tfkit(*serve_args("--grpc-port", port))
        assert done.code == 5
        assert f"cannot listen on 127.0.0.1:{port}" in done.err
        with pytest.raises(ServerFailed) as caught:
            DockerEngine().start(todo)
    assert caught.value.message.startswith("a port is taken: ")
    assert containers() == []


def test_of_two_serves_at_once_exactly_one_wins(tfkit, serve_args, containers, name):
    arguments = serve_args("--detach", "--json")
    with running(*arguments) as first, running(*arguments) as second:
        done = sorted((first.ended(), second.ended()), key=lambda each: each.code)
    assert [each.code for each in done] == [0, 5]
    assert done[1].data["error"] == "ServerExists"
    assert tfkit("status", "--json").data[0]["state"] == "AVAILABLE"
    assert tfkit("stop", name).code == 0


def test_name_of_another_engines_server_is_refused_until_that_ended(
    tfkit, serve_args, fake_binary, containers, name
):
    native = [*serve_args("--detach", "--json", "--engine", "native", "--binary", fake_binary())]
    assert tfkit(*serve_args("--detach")).code == 0
    refused = tfkit(*native)
    assert (refused.code, refused.data["error"]) == (5, "ServerExists")
    assert "(engine docker)" in refused.err
    docker("kill", container.container_name(name))
    with running(*native) as serving:
        assert serving.ended().code == 0
    assert containers() == []
    refused = tfkit(*serve_args("--detach", "--json"))
    assert (refused.code, refused.data["error"]) == (5, "ServerExists")
    assert [each["engine"] for each in tfkit("ps", "--json").data] == ["native"]
    assert tfkit("stop", name).code == 0
