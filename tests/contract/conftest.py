"""What the contracts are held against: the engines, servers and clients there are."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.contract.blocking import Blocking
from tests.integration import images
from tfserve_kit import connect
from tfserve_kit.deployment import build
from tfserve_kit.engines import Availability, process
from tfserve_kit.engines.docker import DockerEngine
from tfserve_kit.engines.kubernetes import KubernetesEngine
from tfserve_kit.engines.swarm import SwarmEngine
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


def _fake(request):
    return request.getfixturevalue("fake_engine")


def _embedded(request):
    del request
    return process.embedded()


def _native(request):
    return process.native(request.getfixturevalue("native_binary"))


def _docker(request):
    request.getfixturevalue("docker_image")
    return DockerEngine()


def _swarm(request):
    manager = request.getfixturevalue("swarm")[0]
    request.getfixturevalue("monkeypatch").setenv("DOCKER_HOST", manager.url)
    return SwarmEngine()


def _kubernetes(request):
    current = request.getfixturevalue("cluster")
    request.getfixturevalue("monkeypatch").setenv("KUBECONFIG", str(current.config))
    return KubernetesEngine()


# What makes each engine, by the name of the parameter.
ENGINES = {
    "fake": _fake,
    "embedded": _embedded,
    "native": _native,
    "docker": _docker,
    "swarm": _swarm,
    "kubernetes": _kubernetes,
}
NEED_TENSORFLOW = {"embedded"}


@pytest.fixture(
    params=[
        pytest.param(name, marks=[pytest.mark.tensorflow] if name in NEED_TENSORFLOW else [])
        for name in ENGINES
    ]
)
def engine(request, state_dir):
    """Every engine."""
    return ENGINES[request.param](request)


@pytest.fixture
def engine_name(request):
    """The parameter of `engine`, where a test has it."""
    callspec = getattr(request.node, "callspec", None)
    return callspec.params.get("engine", "") if callspec is not None else ""


@pytest.fixture
def docker_options(request, engine_name):
    """What a deployment says of Docker: the image under test, where the test runs containers."""
    if engine_name == "swarm":
        return {"image": images.MORTAL}
    return {"image": request.getfixturevalue("docker_image")} if engine_name == "docker" else {}


@pytest.fixture
def deployment(request, docker_options, engine_name):
    """Make a deployment of one model on free ports."""

    def make(name="a", **server):
        server = {"name": name, "grpc_port": 0, "rest_port": 0, **server}
        if engine_name == "kubernetes":
            document = request.getfixturevalue("cluster").settings(name, server=server)
            return launch._settle_ports(build(document, source="test", folder=MODELS))
        models = {"half_plus_two": {"base_path": str(MODELS / "half_plus_two")}}
        document = {"server": server, "models": models, "docker": docker_options}
        if engine_name == "swarm":  # where the plan says; elsewhere it has the address of its node
            server["engine"] = "swarm"
            document["swarm"] = {"constraints": ["node.role == manager"]}
        return launch._settle_ports(build(document, source="test", folder=MODELS))

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
