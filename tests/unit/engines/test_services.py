"""What a deployment becomes on a swarm, without one."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests import certificates
from tfserve_kit.deployment import Spec, build, render
from tfserve_kit.engines import services
from tfserve_kit.errors import SpecError

HOME = Path("/state/servers/web")
NAME = "tfkit-web"


def plan(*, gateway=(), models=None, **sections):
    server = {"name": "web", "engine": "swarm", "replicas": 3, **sections.pop("server", {})}
    document = {
        "server": server,
        "models": {name: {"base_path": path} for name, path in (models or {"m": "/m"}).items()},
        **({} if gateway is None else {"gateway": dict(gateway)}),
        **sections,
    }
    spec = build(document, source="test", folder=Path("/"))
    return services.plan(spec, render.render(spec), home=HOME)


def task(made, name=NAME):
    return made.services[name]["TaskTemplate"]


def published(made, name=NAME):
    ports = made.services[name]["EndpointSpec"]["Ports"]
    return {each["TargetPort"]: each["PublishedPort"] for each in ports}


def test_gateway_has_the_ports_and_replicas_have_none():
    made = plan(server={"grpc_port": 1, "rest_port": 2})
    assert published(made) == {}
    assert published(made, f"{NAME}-gateway") == {8500: 1, 8501: 2}
    assert made.services[NAME]["UpdateConfig"]["Order"] == "start-first"
    assert made.replicas == 3


def test_without_a_gateway_replicas_have_the_ports_of_their_nodes_and_end_first():
    made = plan(gateway=None, server={"grpc_port": 1, "rest_port": 2})
    assert list(made.services) == [NAME]
    assert published(made) == {8500: 1, 8501: 2}
    assert made.services[NAME]["UpdateConfig"]["Order"] == "stop-first"
    assert made.network == ""


def test_update_that_fails_is_taken_back():
    for service in plan().services.values():
        assert service["UpdateConfig"]["FailureAction"] == "rollback"
        assert service["UpdateConfig"]["MaxFailureRatio"] == 0


def test_same_deployment_is_the_same_services_and_another_is_not():
    def hashes(**sections):
        made = plan(**sections).services.values()
        return [each["Labels"][services.HASH] for each in made]

    assert hashes() == hashes()
    assert hashes()[0] != hashes(docker={"env": {"A": "b"}})[0]
    assert hashes()[1] == hashes(docker={"env": {"A": "b"}})[1]


def test_number_of_replicas_does_not_touch_what_runs():
    few, many = plan(server={"replicas": 2}), plan(server={"replicas": 7})
    assert task(few) == task(many)
    assert many.services[NAME]["Mode"] == {"Replicated": {"Replicas": 7}}
    assert few.configs == many.configs


@pytest.mark.parametrize(
    "change",
    [
        {"docker": {"cpus": 1.5}},
        {"docker": {"memory": "1g"}},
        {"docker": {"pids_limit": 100}},
        {"swarm": {"constraints": ["node.role == worker"]}},
        {"swarm": {"max_per_node": 2}},
        {"gateway": None, "server": {"grpc_port": 1}},
    ],
)
def test_container_of_before_is_never_taken_for_one_of_after(change):
    """Whether an update is done is seen in what containers are made of."""
    before = plan(gateway=change.get("gateway", ()))
    assert task(before)["ContainerSpec"] != task(plan(**change))["ContainerSpec"]


def test_content_of_a_config_is_a_part_of_its_name():
    one, other = plan(models={"m": "/m"}), plan(models={"m": "/other"})
    assert one.configs.keys() != other.configs.keys()
    assert all(len(name) <= 64 for name in plan(server={"name": "n" * 60}).configs)


def test_drain_begins_before_the_signal_reaches_the_server_and_ends_before_it_is_killed():
    made = task(plan(server={"drain_s": 30.0}))["ContainerSpec"]
    assert made["Command"] == ["sh"]
    assert made["Args"][:4] == ["/tfkit/drain.sh", "2", "32", "8500,8501"]
    assert made["StopGracePeriod"] > 32e9
    bare = task(plan(server={"drain_s": 0.0}))["ContainerSpec"]
    assert bare["Command"] == ["tensorflow_model_server"]


@pytest.mark.parametrize(
    ("swarm", "mounts"),
    [
        ({}, [("bind", "/a/m"), ("bind", "/b")]),
        ({"volumes": {"/a": "models"}}, [("bind", "/b"), ("volume", "models")]),
        ({"in_image": True}, []),
    ],
)
def test_base_paths_are_folders_of_the_nodes_or_in_a_volume_or_in_the_image(swarm, mounts):
    made = task(plan(models={"m": "/a/m", "n": "/b"}, swarm=swarm))["ContainerSpec"]
    found = [(each["Type"], each["Source"]) for each in made["Mounts"] if "Source" in each]
    assert found == mounts


def test_limits_are_reserved_too():
    made = task(plan(docker={"cpus": 1.5, "memory": "2g"}))["Resources"]
    assert made["Reservations"] == {"NanoCPUs": 1_500_000_000, "MemoryBytes": 2 << 30}
    assert made["Limits"] == {**made["Reservations"], "Pids": 8192}


def test_secrets_are_not_shown():
    made = plan(docker={"env": {"TOKEN": "hunter2"}}, client={"headers": {"a": "s3cret"}})
    shown = [made.private.get(each, each) for line in (*made.before, made.argv) for each in line]
    assert "hunter2" in " ".join(made.argv)
    assert not {word for word in ("hunter2", "s3cret") if word in " ".join(shown)}


def test_deployment_is_known_from_the_label():
    made = plan()
    label = made.services[NAME]["Labels"][services.DEPLOYMENT]
    assert Spec.model_validate_json(label).server.replicas == 3
    assert json.loads(label) == json.loads(made.deployment)


@pytest.mark.parametrize("engine", ["auto", "docker", "native", "embedded"])
@pytest.mark.parametrize(("replicas", "gateway"), [(2, {}), (1, {"gateway": {}})])
def test_replicas_and_gateway_take_a_swarm(engine, replicas, gateway):
    document = {
        "server": {"engine": engine, "replicas": replicas},
        "models": {"m": {"base_path": "/m"}},
        **gateway,
    }
    with pytest.raises(SpecError, match='engine = "swarm"'):
        build(document, source="test", folder=Path("/"))


# The gateway


def haproxy_config(made):
    return next(text for name, text in made.configs.items() if "haproxy.cfg" in name)


def test_gateway_asks_for_every_model_and_never_repeats_a_reload():
    text = haproxy_config(plan(models={"m": "/m", "a b": "/n"}))
    assert "uri /v1/models/m\n" in text
    assert "uri /v1/models/a%20b\n" in text
    rules = [each for each in text.splitlines() if "disable-l7-retry" in each]
    (rule,) = [each for each in rules if "tensorflow" in each]
    assert "unless" in rule
    assert "ReloadConfig" not in rule


def require_haproxy_takes(text, folder):
    binary = shutil.which("haproxy", path="/usr/local/sbin:/usr/sbin:/usr/bin")
    if binary is None:
        pytest.skip("there is no haproxy")
    (folder / "haproxy.cfg").write_text(text.replace("/tfkit/", f"{folder}/"))
    command = [binary, "-c", "-f", folder / "haproxy.cfg"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("gateway", [{}, {"metrics_port": 9000}])
def test_configuration_of_the_gateway_is_one_that_haproxy_takes(tmp_path, gateway):
    made = plan(gateway=gateway)
    require_haproxy_takes(haproxy_config(made), tmp_path)


def test_tls_ends_at_the_gateway_and_its_key_is_a_secret(tmp_path):
    authority = certificates.Authority(tmp_path)
    pair = authority.issue("web", alternative="DNS:web")
    file = tmp_path / "ssl.txt"
    ca = authority.own.cert
    file.write_text(certificates.ssl_config(pair, custom_ca=ca, client_verify=True))
    made = plan(server={"flags": {"ssl_config_file": str(file)}})
    assert not [each for each in task(made)["ContainerSpec"]["Args"] if "ssl" in each]
    (secret,) = made.secrets.values()
    assert secret == pair.key.read_text()
    assert secret not in json.dumps([made.services, made.configs, made.files, made.before])
    assert made.endpoints.grpc.startswith("grpcs://")
    text = haproxy_config(made)
    assert "ssl crt /tfkit/gateway.pem ca-file /tfkit/clients.pem verify required alpn h2" in text
    for name, content in (*made.configs.items(), *made.secrets.items()):
        place = name.removeprefix(f"{NAME}-").rpartition("-")[0]
        (tmp_path / place).write_text(content)
    require_haproxy_takes(text, tmp_path)
