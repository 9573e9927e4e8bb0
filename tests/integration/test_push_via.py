"""`tfkit push-model --via`: through a real sshd, into a container, and beside running servers."""

import contextlib
import getpass
import os
import shlex
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from tests.integration.images import docker
from tests.integration.test_push_cli import unloadable
from tests.ports import free_port
from tfserve_kit.clock import SystemClock, wait_until
from tfserve_kit.deployment import build
from tfserve_kit.engines import process
from tfserve_kit.repository import push
from tfserve_kit.repository.manifest import verify
from tfserve_kit.serving import launch

PATIENCE_S = 30.0


@pytest.fixture
def model(models):
    return models / "half_plus_two" / "1"


@pytest.fixture
def ssh(tmp_path):
    """A command that logs in on this machine, by way of a server of the test's own."""
    sshd = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    if not sshd:
        pytest.skip("no sshd")
    for name in ("host", "key"):
        line = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)]
        subprocess.run(line, check=True)
    port = free_port()
    Path("/run/sshd").mkdir(exist_ok=True)  # where it drops its rights
    options = {
        "Port": port,
        "ListenAddress": "127.0.0.1",
        "HostKey": tmp_path / "host",
        "AuthorizedKeysFile": tmp_path / "key.pub",
        "StrictModes": "no",
        "PidFile": "none",
        "UsePAM": "no",
        "PermitRootLogin": "yes",
    }
    given = [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
    server = subprocess.Popen([sshd, "-D", "-f", "/dev/null", *given], stderr=subprocess.DEVNULL)

    def listens():
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return True
        return None

    try:
        wait_until(listens, timeout_s=PATIENCE_S, interval_s=0.05, clock=SystemClock())
        asked = {
            "IdentityFile": tmp_path / "key",
            "StrictHostKeyChecking": "no",
            "UserKnownHostsFile": "/dev/null",
            "LogLevel": "ERROR",
            "BatchMode": "yes",
        }
        more = [part for name, value in asked.items() for part in ("-o", f"{name}={value}")]
        line = ["ssh", "-F", "/dev/null", "-p", port, *more, f"{getpass.getuser()}@127.0.0.1"]
        yield shlex.join(map(str, line))
    finally:
        server.terminate()
        server.wait()


@pytest.fixture
def container(docker_image):
    """A container that only sleeps, with the shell of the image under test."""
    line = ["run", "-d", "--rm", "--entrypoint", "sleep", docker_image, "600"]
    name = docker(*line).strip()
    yield name
    docker("rm", "-f", name)


def test_version_goes_through_ssh_and_into_a_container(tfkit, model, ssh, container, tmp_path):
    place = tmp_path / "it's far"
    vias = ["--via", ssh, "--via", f"docker exec -i {container}"]
    for number in (1, 2):
        done = tfkit("push-model", model, "--to", place, *vias, "--json")
        assert done.code == 0, done.err
        assert [each["version"] for each in done.data["places"]] == [number] * 2
    manifest, problems = verify(place / "2")
    assert manifest and not problems
    inside = docker("exec", container, "sh", "-c", f"cd {shlex.quote(str(place))}; ls -a . 2")
    assert inside.split() == docker_listing(place)


def docker_listing(place):
    line = ["sh", "-c", f"cd {shlex.quote(str(place))}; ls -a . 2"]
    return subprocess.run(line, capture_output=True, text=True, check=True).stdout.split()


def test_login_that_is_refused_says_so(tfkit, model, ssh, tmp_path):
    (tmp_path / "key.pub").unlink()
    done = tfkit("push-model", model, "--to", tmp_path / "far", "--via", ssh)
    assert done.code == 8
    assert "Permission denied" in done.err and "try it by hand: ssh" in done.err


@pytest.fixture
def sides(state_dir, model, tmp_path):
    """Two servers with a folder of versions each: command to server."""
    with contextlib.ExitStack() as stack:
        found = {}
        for name in ("a", "b"):
            folder = tmp_path / name
            push(model, folder / "half")
            flags = {"file_system_poll_wait_seconds": 1, "max_num_load_retries": 0}
            server = {"name": name, "grpc_port": 0, "rest_port": 0, "flags": flags}
            spec = build(
                {"server": server, "models": {"half": {"base_path": "half"}}},
                source="tests",
                folder=folder,
            )
            handle = launch.up(spec, process.embedded())
            stack.callback(handle.stop)
            found[f"env -C {folder}"] = handle.endpoints.grpc
        yield found


def arguments(sides):
    return [part for via, url in sides.items() for part in ("--via", via, "--at", url)]


@pytest.mark.parametrize("how", [["--wait"], ["--verify"], ["--verify", "--wave", "2"]])
def test_version_is_served_behind_every_command(tfkit, model, sides, how):
    done = tfkit("push-model", model, "--model", "half", "--to", "half", *arguments(sides), *how,
                 "--json")  # fmt: skip
    assert done.code == 0, done.err
    assert [each["version"] for each in done.data["places"]] == [2, 2]
    for each in done.data["places"]:
        assert each["swap"]["passed"] if "--verify" in how else each["available_s"] > 0


@pytest.mark.parametrize("how", ["--wait", "--verify"])
def test_version_that_does_not_load_goes_no_further_and_is_taken_back(
    tfkit, model, sides, tmp_path, how
):
    broken = unloadable(model, tmp_path / "broken")
    done = tfkit("push-model", broken, "--to", "half", *arguments(sides), how, "--trust")
    assert done.code == 5, done.err + done.out
    assert "version 2 was retired again in half by way of env -C" in done.err + done.out
    assert [names(tmp_path / side / "half") for side in "ab"] == [[".tfkit-retired-2", "1"], ["1"]]
    again = tfkit("push-model", model, "--to", "half", *arguments(sides), "--wait", "--json")
    assert [each["version"] for each in again.data["places"]] == [3, 3]


def names(folder):
    return sorted(each.name for each in folder.iterdir())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--via", "env", "--wait"], "give --at URL for each --via"),
        (["--via", "env", "--at", "grpc://a:1"], "add --verify or --wait"),
        (["--via", "env", "--at", "grpc://a:1", "--at", "grpc://b:1", "--wait"], "2 --at for 1"),
        (["--at", "grpc://a:1", "--wait"], "1 --at for 0 --via"),
        (["--via", "env", "--via", "env"], "given twice"),
        (["--via", "env", "--url", "grpc://a:1"], "--at"),
    ],
)
def test_options_that_do_not_fit_are_named(tfkit, model, options, text):
    done = tfkit("push-model", model, "--to", "far", "--trust", *options)
    assert done.code == 2
    assert text in done.err
