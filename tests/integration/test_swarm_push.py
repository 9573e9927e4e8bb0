"""A push to replicas behind a gateway is proven on each of them, or is none.

Each node has a folder of its own here, so that one may lack a version, or have it damaged.
"""

import itertools
import json
import shutil

import pytest

from tests.integration import test_swarm
from tests.integration.test_swarm import MODEL, MODELS, REQUESTS, Load, served
from tfserve_kit.errors import ServerFailed
from tfserve_kit.serving import reload, rollback

manager, deployment, start = test_swarm.manager, test_swarm.deployment, test_swarm.start
_numbers = itertools.count()


@pytest.fixture
def folders(swarm, tmp_path):
    """A volume, and its folders: the first two nodes share one, the third has its own."""
    volume = f"models-{next(_numbers)}"
    shared, own = tmp_path / "shared", tmp_path / "own"
    for folder in (shared, own):
        shutil.copytree(MODELS / MODEL / "1", folder / MODEL / "1")
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    for node, device in zip(swarm, (shared, shared, own), strict=True):
        options = ("--opt=type=none", "--opt=o=bind", f"--opt=device={device}")
        node.docker("volume", "create", *options, volume)
    return volume, shared / MODEL, own / MODEL


@pytest.fixture
def fleet(folders, deployment, start):
    swarm = {"volumes": {"/models": folders[0]}}
    return start(deployment(base_path=f"/models/{MODEL}", replicas=3, swarm=swarm))


def push(tfkit, fleet, folder, version, *more):
    options = ("--to", folder, "--version", version, "--trust", "--url", fleet.endpoints.grpc)
    return tfkit("push-model", MODELS / MODEL / "2", *options, "--model", MODEL, *more)


def lacking(own):
    """The third node's folder never gets the version."""


def damaged(own):
    """The third node's copy of the version cannot be loaded."""
    shutil.copytree(own / "1", own / ".2")
    (own / ".2" / "saved_model.pb").write_bytes(b"")
    (own / ".2").rename(own / "2")


@pytest.mark.parametrize("fault", [lacking, damaged])
def test_version_that_one_of_three_replicas_does_not_serve_is_not_verified_and_taken_back(
    fleet, folders, tfkit, fault
):
    _, shared, own = folders
    fault(own)
    with Load(fleet) as load:
        done = push(tfkit, fleet, shared, 2, "--verify", "--rollback", "--timeout", 5, "--json")
        load.wait(REQUESTS)
    assert load.lost == []
    report = done.data["swap"]
    assert (done.code, report["passed"], report["rolled_back"]) == (5, False, [2])
    missing = [name for name, took in report["replicas"].items() if took is None]
    assert len(report["replicas"]) == 3 and len(missing) == 1
    assert f"on replica {missing[0]}" in report["failure"]
    assert (report["lost"], report["wrong"]) == ({}, {})
    assert not (shared / "2").exists() and (shared / "1").exists()
    assert served(fleet) == {(1,)}


def test_version_that_all_replicas_serve_is_verified_and_rolled_back_on_all(
    deployment,
    start,
    tfkit,
    tmp_path,
):
    shared = tmp_path / MODEL
    shutil.copytree(MODELS / MODEL / "1", shared / "1")
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    fleet = start(deployment(base_path=shared, replicas=3))
    names = [each.name for each in fleet.replicas()]
    with Load(fleet) as load:
        done = push(tfkit, fleet, shared, 2, "--verify", "--json")
        assert (done.code, list(done.data["swap"]["replicas"])) == (0, names)
        assert served(fleet) == {(2,)}
        assert tfkit("rollback", shared).code == 0
        assert served(fleet) == {(1,)}
        done = push(tfkit, fleet, shared, 3, "--wait", "--json")
        assert (done.code, list(done.data["replicas"])) == (0, names)
        load.wait(REQUESTS)
    assert load.lost == []


def test_replica_that_does_not_run_is_named_and_nothing_is_pushed(
    fleet,
    folders,
    tfkit,
    manager,
):
    service = f"tfkit-{fleet.server_name}"
    manager.docker("service", "scale", "--detach", f"{service}=4")
    done = push(tfkit, fleet, folders[1], 2, "--verify")
    assert done.code == 5
    assert f"replica {fleet.server_name}.4" in done.err and "cannot be asked" in done.err
    assert not (folders[1] / "2").exists()


def test_canary_that_one_replica_does_not_have_is_taken_back(fleet, folders, tfkit):
    _, shared, _ = folders
    shutil.copytree(MODELS / MODEL / "2", shared / "2")
    with pytest.raises(ServerFailed, match=r"replica .* again as it was"):
        rollback.canary(fleet, MODEL, 2)
    assert reload.deployment(fleet.home).models[MODEL].labels == {}
    assert json.loads(tfkit("ps", "--json").out)["data"][0]["state"] == "running"
