"""Other models for a running server: what is sent, awaited, refused and put back."""

import shutil

import pytest

from tfserve_kit.errors import InvalidRequest, ServerFailed, UsageError
from tfserve_kit.serving import reload


def test_what_is_served_is_remembered(serve, deployed, base_path):
    server = serve(versions={"specific": [1]})
    shutil.copytree(base_path, base_path.parent / "other")
    wanted = deployed(models={"other": {"base_path": str(base_path.parent / "other")}})
    served = reload.reload(server, wanted)
    assert set(server.models) == {"half", "other"} and len(server.told) == 2
    assert reload.deployment(server.home) == served


def test_label_that_moves_to_a_version_yet_to_be_loaded_takes_two_configurations(serve, deployed):
    server = serve(versions={"specific": [1]}, labels={"stable": 1})
    wanted = deployed(half={"versions": {"specific": [2]}, "labels": {"stable": 2}})
    reload.reload(server, wanted)
    _, interim, last = server.told
    assert "versions: 1" in interim and "versions: 2" in interim and "value: 1" in interim
    assert "versions: 1" not in last and "value: 2" in last


def test_name_and_ports_stay_the_servers_own(serve, deployed):
    server = serve()
    served = reload.reload(server, deployed("other", server={"grpc_port": 1234}))
    assert served.server == server.spec.server


@pytest.mark.parametrize(
    ("engine", "sections", "keys"),
    [
        ("native", {}, []),
        ("native", {"server": {"host": "0.0.0.0"}}, ["server.host"]),
        ("native", {"server": {"grpc_port": 9000, "drain_s": 3.0}},
         ["server.grpc_port", "server.drain_s"]),
        ("native", {"server": {"engine": "docker"}}, ["server.engine"]),
        ("native", {"server": {"binary": "/bin/x"}}, ["server.binary"]),
        ("docker", {"docker": {"cpus": 1.0, "env": {"A": "b"}}}, ["docker.cpus", "docker.env"]),
        # What is left to tfkit, what is applied, and what is another engine's
        ("native", {"server": {"grpc_port": 0, "rest_port": 0, "engine": "native"}}, []),
        ("native", {"server": {"ready_timeout_s": 9.0}, "client": {"server_name": "a"}}, []),
        ("docker", {"server": {"binary": "/bin/x"}}, []),
        ("native", {"docker": {"memory": "4g"}, "swarm": {"max_per_node": 1}}, []),
    ],
)  # fmt: skip
def test_what_a_reload_leaves_out_is_told(serve, deployed, monkeypatch, engine, sections, keys):
    server = serve()
    monkeypatch.setattr(server, "engine", engine)
    told = reload.not_applied(server, deployed("other", **sections))
    assert [each.path for each in told] == keys
    assert all("tfkit restart web --config FILE" in each.remedy for each in told)


def test_what_a_reload_leaves_out_has_both_values_unless_they_may_be_secret(serve, deployed):
    server = serve()
    server.engine = "docker"
    wanted = deployed(server={"drain_s": 3.0}, docker={"env": {"TOKEN": "hush"}})
    drain, env = map(str, reload.not_applied(server, wanted))
    assert "is 3.0, but 10.0 in the running server" in drain
    assert "docker.env" in env and "hush" not in env


def test_longer_wait_for_a_reload_is_applied(serve, deployed):
    served = reload.reload(serve(), deployed(server={"ready_timeout_s": 9.0}))
    assert served.server.ready_timeout_s == 9.0


@pytest.mark.parametrize(
    ("sections", "what"),
    [
        ({"server": {"flags": {"max_num_load_retries": 1}}}, "[server.flags] differs"),
        ({"batching": {"max_batch_size": 4}}, "[batching] differs"),
        ({"monitoring": {"path": "/metrics"}}, "[monitoring] differs"),
    ],
)
def test_what_is_read_at_the_start_only_needs_a_restart(serve, deployed, sections, what):
    server = serve()
    with pytest.raises(UsageError) as caught:
        reload.reload(server, deployed(**sections))
    assert what in caught.value.message and "tfkit restart web" in caught.value.remedy
    assert len(server.told) == 1


def test_folder_that_the_server_cannot_see_needs_a_restart(serve, deployed, base_path):
    server = serve()
    server.unseen.add(str(base_path))
    with pytest.raises(UsageError, match="is not mounted in it"):
        reload.reload(server, deployed())


def test_configuration_that_is_refused_is_put_back(serve, deployed, monkeypatch):
    server = serve(versions={"specific": [1]})
    honest = server.reload

    def refuse_new(config, *, timeout_s=1.0):
        honest(config, timeout_s=timeout_s)
        if "versions: 2" in str(config):
            raise InvalidRequest("no")

    monkeypatch.setattr(server, "reload", refuse_new)
    with pytest.raises(InvalidRequest):
        reload.reload(server, deployed(half={"versions": {"specific": [2]}}))
    assert server.told[-1] == server.told[0] and server.available("half") == {1}
    assert reload.deployment(server.home) == server.spec


def test_version_that_never_comes_is_told_and_the_old_ones_serve(serve, deployed):
    server = serve(versions={"specific": [1]})
    server.broken[2] = ""  # END without an error: it may come yet
    with pytest.raises(ServerFailed, match=r"does not serve the new models after 0\.2 s"):
        reload.reload(server, deployed(half={"versions": {"specific": [2]}}))
    assert server.available("half") == {1}


def test_deployment_that_is_not_known_is_told_with_what_to_do(tmp_path):
    with pytest.raises(UsageError, match="'web' is not known") as caught:
        reload.deployment(tmp_path / "web")
    assert "serve it again" in caught.value.remedy
