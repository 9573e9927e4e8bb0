"""An engine and a binary whose servers live as a test wants."""

import itertools
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.commands import PATIENCE_S, Done
from tests.integration.images import docker
from tfserve_kit.cli import main
from tfserve_kit.deployment import build, render
from tfserve_kit.engines import Availability, process
from tfserve_kit.engines.docker import DockerEngine
from tfserve_kit.engines.process import ProcessEngine
from tfserve_kit.serving import launch

FAKE_SERVER = Path(__file__).parents[1] / "contract" / "fake_model_server.py"
_numbers = itertools.count()


@pytest.fixture
def tfkit(state_dir, tmp_path, monkeypatch, capsys):
    """Run a command in this process, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Done(caught.value.code, captured.out, captured.err)

    return run


@pytest.fixture
def shell(state_dir, tmp_path, monkeypatch):
    """Run a command as a process of its own, as servers that outlive it need."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, timeout_s=PATIENCE_S):
        done = subprocess.run(
            [sys.executable, "-m", "tfserve_kit", *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    yield run
    for engine in (process.native(), process.embedded()):
        for handle in engine.list():
            handle.stop(grace_s=5)


@pytest.fixture
def containers(docker_image, state_dir):
    """Look which containers a test has; each must be gone at its end, and its folder."""

    def found():
        mine = f"label=tfkit.folder={state_dir}"
        return docker("ps", "--all", "--quiet", "--no-trunc", "--filter", mine).split()

    yield found
    folders, left = list((state_dir / "servers").glob("*/")), found()
    if left:
        docker("rm", "--force", "--volumes", *left)
    assert not left, "the test left containers behind"
    assert not folders, "the test left folders behind"


def new_name():
    """Return a name that no container of this machine has."""
    return f"test-{os.getpid()}-{next(_numbers)}"


@pytest.fixture
def name():
    """A server's name that is nobody else's."""
    return new_name()


@pytest.fixture
def serve_args(docker_image, containers, models, name):
    """Make the arguments of `tfkit serve` for a container with one model."""

    def make(*more, model="half_plus_two"):
        return ("serve", "--engine", "docker", "--image", docker_image, "--name", name,
                "--model", f"half_plus_two={models / model}", "--grpc-port", 0, "--rest-port", 0,
                *more)  # fmt: skip

    return make


@pytest.fixture
def container_deployment(docker_image, containers, models, name):
    """Make a deployment of one model for a container."""

    def make(*, base_path="half_plus_two", docker=None, **server):
        document = {
            "server": {"name": name, "grpc_port": 0, "rest_port": 0, **server},
            "models": {"half_plus_two": {"base_path": str(base_path)}},
            "docker": {"image": docker_image, **(docker or {})},
        }
        return build(document, source="test", folder=models)

    return make


@pytest.fixture
def container_plan(container_deployment):
    """Make a plan of the Docker engine, on free ports."""

    def make(**options):
        deployment = launch._settle_ports(container_deployment(**options))
        return DockerEngine().plan(deployment, render.render(deployment))

    return make


@pytest.fixture
def fake_engine(state_dir):
    """Make an engine of the fake model server (see contract/) with a life of one's choice."""

    def make(life=""):
        head = [sys.executable, str(FAKE_SERVER), f"--fake={life}"]
        return ProcessEngine("fake", head, Availability(True, "a script"), binds_host=False)

    return make


@pytest.fixture
def fake_binary(tmp_path):
    """Make an executable of the fake model server with a life of one's choice: its path."""

    def make(life=""):
        file = tmp_path / f"fake_{life.replace(':', '_')}_server"
        command = shlex.join([sys.executable, str(FAKE_SERVER), f"--fake={life}"])
        file.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        file.chmod(0o755)
        return str(file)

    return make


@pytest.fixture
def deployment(models):
    """Make a deployment of `half_plus_two` on free ports."""

    def make(*, base_path="half_plus_two", versions="latest", **server):
        server = {"name": "web", "grpc_port": 0, "rest_port": 0, **server}
        model = {"base_path": str(base_path), "versions": versions}
        document = {"server": server, "models": {"half_plus_two": model}}
        return build(document, source="test", folder=models)

    return make
