"""Single containers, stopped, restarted and reloaded under load, of a server that SIGTERM kills.

So does it the official one: what protects its requests is `drain.sh`, and a client of two servers.
"""

import threading
import time

import numpy as np
import pytest

from tests.integration import images
from tests.integration.conftest import new_name
from tests.integration.test_swarm import MODELS, REQUESTS, Load
from tfserve_kit import connect
from tfserve_kit.deployment import build
from tfserve_kit.engines.docker import DockerEngine
from tfserve_kit.errors import RequestError
from tfserve_kit.serving import launch

MODEL, SLOW_S = "half_plus_two", 1.0


@pytest.fixture(scope="session")
def mortal_image(require):
    try:
        images.require_docker()
        return images.mortal()
    except images.NoImage as missing:
        return require("docker", str(missing))


@pytest.fixture
def up(mortal_image, state_dir):
    """Start a container; it is stopped at the end."""
    started = []

    def run(**more):
        document = {
            "server": {"name": new_name(), "engine": "docker", "grpc_port": 0, "rest_port": 0},
            "models": {MODEL: {"base_path": MODEL}},
            "docker": {"image": mortal_image, **more},
        }
        started.append(launch.up(build(document, source="test", folder=MODELS), DockerEngine()))
        return started[-1]

    yield run
    for each in started:
        if (found := DockerEngine().find(each.server_name)) is not None:
            found.stop(grace_s=0)


@pytest.mark.parametrize("protocol", ["grpc", "rest"])
def test_stop_lets_every_request_in_flight_finish(up, tfkit, protocol):
    handle = up(env={"DELAY_S": str(SLOW_S)})
    came = []

    def call(client):
        try:
            came.append(client.predict(MODEL, {"x": np.ones(1, np.float32)}).outputs["y"].tolist())
        except RequestError as error:
            came.append(error)

    with connect(getattr(handle.endpoints, protocol), retries=0) as client:
        callers = [threading.Thread(target=call, args=(client,)) for _ in range(16)]
        for each in callers:
            each.start()
        time.sleep(SLOW_S / 2)
        assert tfkit("stop", handle.server_name).code == 0
        for each in callers:
            each.join()
    assert came == [[2.5]] * 16


@pytest.mark.parametrize("protocol", ["grpc", "rest"])
def test_restart_reload_and_stop_of_one_of_two_lose_no_request_of_a_fleet_client(
    up, tfkit, protocol
):
    first, second = up(), up()
    fleet = ",".join(getattr(each.endpoints, protocol) for each in (first, second))
    with Load(first, urls=[fleet], retries=2) as load:
        for command in (
            ("restart", first.server_name),
            ("reload", first.server_name, "--model", f"{MODEL}={MODELS / MODEL}"),
            ("restart", second.server_name),
            ("stop", first.server_name),
        ):
            done = tfkit(*command)
            assert done.code == 0, done.err
            load.wait(load.answered + 100)
        load.wait(REQUESTS)
    assert load.lost == []
