"""Other models for a server that runs, and restarts; by process and by container."""

import shutil

import numpy as np
import pytest

from tests.integration.commands import Caller, running
from tfserve_kit import connect
from tfserve_kit.clients import Target
from tfserve_kit.clock import SystemClock, wait_until
from tfserve_kit.deployment import Spec, build
from tfserve_kit.engines import Phase, process, registry
from tfserve_kit.engines.docker import DockerEngine
from tfserve_kit.errors import InvalidRequest, RequestError, ServerFailed, UsageError
from tfserve_kit.repository import push
from tfserve_kit.serving import launch, reload

pytestmark = pytest.mark.tensorflow

PATIENCE_S = 60.0


def settled(condition):
    return wait_until(
        lambda: condition() or None, timeout_s=PATIENCE_S, interval_s=0.05, clock=SystemClock()
    )


@pytest.fixture(params=["embedded", "docker"])
def engine_name(request):
    """The engines that serve for real."""
    return request.param


@pytest.fixture
def docker_options(engine_name, request):
    """What a deployment says of Docker."""
    if engine_name != "docker":
        return {}
    request.getfixturevalue("containers")
    return {"image": request.getfixturevalue("docker_image")}


@pytest.fixture
def folder(tmp_path, models):
    """A folder of base paths with one version each."""
    for name in ("a", "outside/c"):
        shutil.copytree(models / "half_plus_two" / "1", tmp_path / name / "1")
    return tmp_path


@pytest.fixture
def deployment(docker_options, folder, name, state_dir):
    """Make a deployment of models: keys by name, each in the folder of that name."""

    def make(**models):
        document = {
            "server": {"name": name, "grpc_port": 0, "rest_port": 0, "ready_timeout_s": 20.0},
            "models": {name: {"base_path": name, **keys} for name, keys in models.items()},
            "docker": docker_options,
        }
        return build(document, source="test", folder=folder)

    return make


@pytest.fixture
def up(engine_name):
    """Start a server; it is stopped at the end of the test."""
    handles = []

    def run(deployment):
        engine = {"embedded": process.embedded, "docker": DockerEngine}[engine_name]()
        handles.append(launch.up(deployment, engine))
        return handles[-1]

    yield run
    for handle in handles:
        handle.stop(grace_s=5)


@pytest.fixture
def found(name, up):
    """Return the server as another command would find it."""

    def find():
        return registry.find(name)

    return find


def states(handle, model):
    with connect(handle.endpoints.grpc) as client:
        return {each.version: each.state for each in client.status(Target(model))}


def answer(handle, target):
    with connect(handle.endpoints.grpc) as client:
        return client.predict(target, {"x": np.float32([1])}).version


# Reloading


def test_model_is_added_and_another_one_goes(deployment, up, found, folder):
    shutil.copytree(folder / "a" / "1", folder / "a" / "inner" / "1")
    handle = up(deployment(a={}))
    now = reload.reload(handle, deployment(inner={"base_path": "a/inner"}))
    assert list(now.models) == ["inner"]
    assert answer(handle, Target("inner")) == 1
    with connect(handle.endpoints.grpc) as client, pytest.raises(RequestError):
        client.predict(Target("a"), {"x": np.float32([1])})
    assert found().models == {"inner": str(folder / "a" / "inner")}


def test_container_that_does_not_see_a_folder_must_be_restarted(
    deployment, up, found, engine_name, folder
):
    handle = up(deployment(a={}))
    wanted = deployment(a={}, c={"base_path": "outside/c"})
    if engine_name == "embedded":
        reload.reload(handle, wanted)
        assert answer(handle, Target("c")) == 1
        return
    with pytest.raises(UsageError) as caught:
        reload.reload(handle, wanted)
    assert f"{folder}/outside/c is not mounted in it" in caught.value.message
    assert caught.value.remedy.startswith(f"`tfkit restart {handle.server_name} --config")
    assert answer(handle, Target("a")) == 1
    assert list(found().models) == ["a"]


def test_policy_is_changed_and_both_versions_answer(deployment, up, models, folder):
    handle = up(deployment(a={}))
    push(models / "half_plus_two" / "2", folder / "a")
    reload.reload(handle, deployment(a={"versions": "all"}))
    assert states(handle, "a") == {1: "AVAILABLE", 2: "AVAILABLE"}
    reload.reload(handle, deployment(a={"versions": {"specific": [1]}}))
    assert settled(lambda: states(handle, "a") == {1: "AVAILABLE", 2: "END"})


def test_label_moves_to_a_version_that_is_yet_to_be_loaded(deployment, up, models, folder):
    handle = up(deployment(a={"versions": {"specific": [1]}, "labels": {"stable": 1}}))
    assert answer(handle, Target("a", label="stable")) == 1
    push(models / "half_plus_two" / "2", folder / "a")
    new = deployment(a={"versions": {"specific": [2]}, "labels": {"stable": 2, "next": 2}})
    reload.reload(handle, new)
    assert answer(handle, Target("a", label="stable")) == 2
    assert answer(handle, Target("a", label="next")) == 2
    assert settled(lambda: states(handle, "a") == {1: "END", 2: "AVAILABLE"})


def test_configuration_that_is_refused_leaves_the_old_one(deployment, up, found, models, folder):
    before = deployment(a={})
    handle = up(before)
    # A model of the same base path, whose label nobody can load.
    labelled = before.models["a"].model_copy(update={"labels": {"stable": 9}})
    wrong = before.model_copy(update={"models": {"a": labelled}})
    with pytest.raises(InvalidRequest):
        reload.reload(handle, wrong)
    assert answer(handle, Target("a")) == 1
    assert reload.deployment(found().home).models == before.models
    push(models / "half_plus_two" / "2", folder / "a")  # still the latest one is wanted
    assert settled(lambda: answer(handle, Target("a")) == 2)


def test_model_that_cannot_be_loaded_leaves_the_old_ones(deployment, up, folder):
    before = deployment(a={})
    flags = {"max_num_load_retries": 0}
    server = before.server.model_copy(update={"flags": flags})
    handle = up(before.model_copy(update={"server": server}))
    broken = shutil.copytree(folder / "a" / "1", folder / "a" / "broken" / "1")
    shard = broken / "variables" / "variables.data-00000-of-00001"
    shard.write_bytes(b"x" * shard.stat().st_size)  # its length is right, its checksum is not
    wanted = deployment(broken={"base_path": "a/broken"}).model_copy(update={"server": server})
    with pytest.raises((RequestError, ServerFailed)):
        reload.reload(handle, wanted)
    assert settled(lambda: answer(handle, Target("a")) == 1)


@pytest.mark.parametrize(("section", "keys"), [("batching", {}), ("monitoring", {})])
def test_what_is_read_at_the_start_only_is_refused(deployment, up, section, keys):
    handle = up(deployment(a={}))
    wanted = Spec.model_validate({**deployment(a={}).model_dump(), section: keys})
    with pytest.raises(UsageError) as caught:
        reload.reload(handle, wanted)
    assert f"[{section}] differs" in caught.value.message


# The commands


def test_reload_and_restart_serve_the_same_on_the_same_ports(deployment, up, found, tfkit, folder):
    handle = up(deployment(a={}))
    shutil.copytree(folder / "a" / "1", folder / "a" / "sub" / "1")
    done = tfkit("reload", "--model", f"a={folder}/a", "--model", f"sub={folder}/a/sub", "--json")
    assert done.code == 0, done.err
    assert list(done.data["models"]) == ["a", "sub"]
    with running("restart", "--json") as restarting:
        done = restarting.ended()
    assert done.code == 0, done.err
    again = found()
    try:
        assert again.state().phase is Phase.RUNNING
        assert (again.endpoints, list(again.models)) == (handle.endpoints, ["a", "sub"])
        assert done.data["grpc"] == again.endpoints.grpc
        assert list(done.data["models"]) == ["a", "sub"]
        assert answer(again, Target("sub")) == 1
        assert handle.state().phase is Phase.GONE
    finally:
        again.stop(grace_s=5)


def test_restart_can_serve_other_models_on_the_same_ports(deployment, up, found, folder):
    handle = up(deployment(a={}))
    with running("restart", "--model", f"c={folder}/outside/c", "--json") as restarting:
        done = restarting.ended()
    again = found()
    try:
        assert (done.code, list(done.data["models"])) == (0, ["c"]), done.err
        assert again.endpoints == handle.endpoints
        assert answer(again, Target("c")) == 1
    finally:
        again.stop(grace_s=5)


@pytest.mark.parametrize("engine_name", ["embedded"], indirect=True)
def test_reload_says_what_only_a_restart_applies(deployment, up, tfkit, folder, name):
    up(deployment(a={}))
    file = folder / "tfkit.toml"
    file.write_text(
        f'[server]\nname = "{name}"\ngrpc_port = 0\nrest_port = 0\ndrain_s = 3.0\n'
        '[models.a]\nbase_path = "a"\n'
    )
    done = tfkit("reload", "--config", file, "--json")
    assert (done.code, [each["path"] for each in done.data["not_applied"]]) == (
        0,
        ["server.drain_s"],
    )
    assert f"tfkit restart {name} --config FILE" in done.data["not_applied"][0]["remedy"]
    assert "server.drain_s: is 3.0, but 10.0 in the running server; not applied" in done.err
    with running("restart", "--config", file, "--json") as restarting:
        assert restarting.ended().code == 0
    assert tfkit("reload", "--config", file, "--json").data["not_applied"] == []
    assert tfkit("stop").code == 0


def test_reload_of_a_base_path_that_is_not_there_is_refused_and_the_old_one_served(
    deployment, up, tfkit, folder
):
    handle = up(deployment(a={}))
    done = tfkit("reload", "--model", f"a={folder}/a/none", "--json")
    assert (done.code, done.data["error"]) == (3, "SpecError")
    assert answer(handle, Target("a")) == 1


# Under load


def test_push_and_reload_under_load_fail_no_request(deployment, up, models, folder):
    handle = up(deployment(a={}))
    with Caller(handle.endpoints.grpc, "a") as grpc, Caller(handle.endpoints.rest, "a") as rest:
        callers = (grpc, rest)
        assert settled(lambda: all(len(each.answers) > 20 for each in callers))
        push(models / "half_plus_two" / "2", folder / "a")
        assert settled(lambda: all(3.5 in each.answers for each in callers))
        reload.reload(handle, deployment(a={"versions": "all", "labels": {"old": 1}}))
        counts = [len(each.answers) for each in callers]
        assert settled(
            lambda: all(len(e.answers) > n + 20 for e, n in zip(callers, counts, strict=True))
        )
    for each in callers:
        assert each.errors == []
        assert each.answers == sorted(each.answers)  # version 1, then version 2, never back
        assert set(each.answers) == {2.5, 3.5}
    assert answer(handle, Target("a", label="old")) == 1
