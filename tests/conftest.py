"""Fixtures shared by all tests."""

import os
import signal
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, settings

from tests import selection
from tests.integration import clusters, images, nodes
from tfserve_kit.deployment import build
from tfserve_kit.engines import process
from tfserve_kit.serving import launch

DATA = Path(__file__).parent / "data"

# How long an example takes is the machine's business; slow ones are no fault.
settings.register_profile(
    "any-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any-machine")


def pytest_configure(config):
    """Listen to Ctrl-C, so that the commands that tests start and interrupt do so too.

    What a shell without job control puts in the background is deaf to it, and so are its children.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.setdefault("TFKIT_TRUST", "1")  # a trial takes seconds; test_trial.py has them


def pytest_ignore_collect(collection_path, config):
    """Do not even import what `make test` leaves out, nor what has nothing but its tests."""
    place = collection_path.relative_to(Path(__file__).parent).as_posix()
    asked = config.option.markexpr
    if asked == "not slow" and not selection.holds_quick_tests(place):
        return True
    if asked.startswith("slow") and collection_path.match("test_*.py"):
        return not selection.holds_slow_tests(place, collection_path.read_text("utf-8")) or None
    return None


@pytest.hookimpl(tryfirst=True)  # before -m picks
def pytest_collection_modifyitems(items):
    """Mark what `make test` leaves out as slow, and of that what is run apart from the others."""
    for item in items:
        test = item.nodeid.removeprefix("tests/")
        parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
        texts = {each for each in parameters if isinstance(each, str)}
        uses = texts.union(item.fixturenames)
        marks = {
            "slow": selection.is_slow(test, uses),
            "alone": selection.is_alone(test),
            "swarm": selection.is_of_swarm(test, uses),
        }
        for name in (name for name, is_so in marks.items() if is_so):
            assert selection.holds_slow_tests(test.partition("::")[0], item.path.read_text())
            item.add_marker(name)


@pytest.fixture(scope="session")
def models() -> Path:
    """Folder of tiny SavedModels: one base path per model, see data/README.md."""
    return DATA / "models"


@pytest.fixture
def state_dir(tmp_path, monkeypatch):
    """$TFKIT_STATE_DIR of one test; what was started with it must have ended with the test."""
    folder = tmp_path / "state"
    monkeypatch.setenv("TFKIT_STATE_DIR", str(folder))
    yield folder
    left = [each for each in psutil.process_iter() if _state_dir_of(each) == str(folder)]
    for each in left:
        each.kill()
    assert not left, "the test left processes behind"


def _state_dir_of(process):
    try:
        return process.environ().get("TFKIT_STATE_DIR")
    except psutil.Error:
        return None


@pytest.fixture(scope="session")
def require():
    """Skip what this machine cannot do; with its name in $TFKIT_REQUIRE, fail instead."""

    def skip_or_fail(name, reason):
        wanted = os.environ.get("TFKIT_REQUIRE", "").split(",")
        (pytest.fail if name in wanted else pytest.skip)(reason)

    return skip_or_fail


@pytest.fixture(scope="session")
def docker_image(require):
    """The image that containers run; see tests/integration/images.py."""
    try:
        image = images.image_under_test()
    except images.NoImage as missing:
        require("docker", str(missing))
    images.remove_left_containers()
    return image


@pytest.fixture(scope="session")
def swarm_images(require):
    """Files with the images that a fleet runs: replicas that SIGTERM kills, and a gateway."""
    if reason := nodes.missing():
        require("swarm", reason)
    try:
        return [images.archive(image) for image in (images.mortal(), images.haproxy())]
    except images.NoImage as missing:
        return require("swarm", str(missing))


@pytest.fixture(scope="session")
def swarm(swarm_images, tmp_path_factory):
    """The nodes of a swarm on this machine, the manager first; see tests/integration/nodes.py."""
    with nodes.nodes(tmp_path_factory.mktemp("nodes"), 3, swarm_images) as found:
        yield found


@pytest.fixture(scope="session")
def cluster(require, tmp_path_factory):
    """A namespace of the cluster that $TFKIT_TEST_KUBECONFIG names; see integration/clusters.py."""
    known = {each: os.environ.get(each, "") for each in clusters.VARIABLES}
    if not all(known.values()):
        require("kubernetes", f"{' and '.join(known)} name no cluster and its image")
    kubeconfig, image = known.values()
    with clusters.cluster(kubeconfig, tmp_path_factory.mktemp("cluster"), image) as found:
        yield found


@pytest.fixture(scope="session")
def serve(tmp_path_factory):
    """Run a server with most of the models for a `with` block."""

    @contextmanager
    def run(make_engine, **sections):
        names = "half_plus_two mlp image strings scalars dtypes multi_io batchy legacy"
        models = {name: {"base_path": name} for name in names.split()}
        models["half_plus_two"]["versions"] = "all"
        server = {"name": f"session-{os.getpid()}", "grpc_port": 0, "rest_port": 0}
        deployment = build(
            {"models": models, "server": server, **sections},
            source="tests",
            folder=DATA / "models",
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TFKIT_STATE_DIR", str(tmp_path_factory.mktemp("session")))
            handle = launch.up(deployment, make_engine())
        try:
            yield handle
        finally:
            handle.stop()

    return run


@pytest.fixture(scope="session")
def embedded_server(serve):
    """An embedded server for the whole session: its handle."""
    with serve(process.embedded) as handle:
        yield handle
