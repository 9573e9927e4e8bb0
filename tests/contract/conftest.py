"""What the contracts are held against: the engines, servers and clients there are."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.contract.blocking import Blocking
from tfserve_kit import connect
from tfserve_kit.deployment import build
from tfserve_kit.engines import Availability, process
from tfserve_kit.engines.docker import DockerEngine
from tfserve_kit.serving import launch

FAKE_SERVER = Path(__file__).with_name("fake_model_server.py")
MODELS = Path(__file__).parents[1] / "data" / "models"


@pytest.fixture(scope="session")
def native_binary(require):
    """The official binary, where $TFKIT_TEST_MODEL_SERVER names one."""
    binary = os.environ.get("TFKIT_TEST_MODEL_SERVER")
    return binary or require("native", "TFKIT_TEST_MODEL_SERVER names no tensorflow_model_server")


# Engines

FAKE = (("fake", [sys.executable, str(FAKE_SERVER)], Availability(True, "a script")),
        {"binds_host": False})  # fmt: skip


@pytest.fixture
def fake_engine(state_dir):
    """The engine of the fake binary."""
    arguments, options = FAKE
    return process.ProcessEngine(*arguments, **options)


@pytest.fixture(
    params=["fake", pytest.param("embedded", marks=pytest.mark.tensorflow), "native", "docker"]
)
def engine(request, state_dir):
    """Every engine."""
    if request.param == "fake":
        return request.getfixturevalue("fake_engine")
    if request.param == "native":
        return process.native(request.getfixturevalue("native_binary"))
    if request.param == "docker":
        request.getfixturevalue("docker_image")
        return DockerEngine()
    return process.embedded()


@pytest.fixture
def docker_options(request):
    """What a deployment says of Docker: the image under test, where the test runs containers."""
    callspec = getattr(request.node, "callspec", None)
    is_docker = callspec is not None and callspec.params.get("engine") == "docker"
    return {"image": request.getfixturevalue("docker_image")} if is_docker else {}


@pytest.fixture
def deployment(docker_options):
    """Make a deployment of one model on free ports."""

    def make(name="a", **server):
        server = {"name": name, "grpc_port": 0, "rest_port": 0, **server}
        models = {"half_plus_two": {"base_path": str(MODELS / "half_plus_two")}}
        document = {"server": server, "models": models, "docker": docker_options}
        return launch.settle_ports(build(document, source="test", folder=MODELS))

    return make


# Servers and clients


@pytest.fixture(
    scope="session",
    params=[pytest.param("embedded", marks=pytest.mark.tensorflow), "native", "docker"],
)
def server(request):
    """Every server that speaks TensorFlow Serving, with most of the models: its handle."""
    if request.param == "embedded":
        if find_spec("tensorflow") is None:
            request.getfixturevalue("require")("tensorflow", "the tensorflow wheel is missing")
        yield request.getfixturevalue("embedded_server")
        return
    serve = request.getfixturevalue("serve")
    if request.param == "docker":
        running = serve(DockerEngine, docker={"image": request.getfixturevalue("docker_image")})
    else:
        binary = request.getfixturevalue("native_binary")
        running = serve(lambda: process.native(binary))
    with running as handle:
        yield handle


# How to connect, by name: both twins.
CONNECT = {"sync": connect, "async": Blocking}


@pytest.fixture(params=CONNECT)
def twin(request):
    """Each way to connect: what takes a URL and options, and gives a client that blocks."""
    return CONNECT[request.param]


@pytest.fixture(params=["grpc", "rest"])
def client(request, server, twin):
    """A client of every kind and protocol, connected to every server."""
    with twin(getattr(server.endpoints, request.param)) as client:
        yield client
