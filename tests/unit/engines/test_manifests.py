"""What a deployment becomes on Kubernetes, without a cluster."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tfserve_kit.deployment import Spec, build
from tfserve_kit.engines import draining, manifests
from tfserve_kit.errors import SpecError

VERSIONS = ("1.25", "1.28", "1.31", "1.34", "1.37")
EVERYTHING = {
    "server": {
        "replicas": 3,
        "grpc_port": 9500,
        "rest_port": 9501,
        "drain_s": 45.0,
        "flags": {"ssl_config_file": "ssl.txt", "tensorflow_intra_op_parallelism": 2},
    },
    "docker": {
        "image": "registry.example/serving:1",
        "pull": "always",
        "gpu": "2",
        "cpus": 1.5,
        "memory": "4g",
        "user": "1000:2000",
        "env": {"PRICE": "$(HOME) {braces}", "LINES": "a\nb"},
    },
    "batching": {"max_batch_size": 8},
    "monitoring": {},
    "kubernetes": {
        "context": "prod",
        "namespace": "serving",
        "claim": "models",
        "service_account": "reader",
        "credentials_secret": "google",
        "env_secret": "aws",
        "pull_secret": "registry",
        "node_selector": {"cloud.example.com/gpu": "yes"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "max_replicas": 9,
        "clients": {"app": "web"},
    },
}
KSERVE = {
    "server": {"replicas": 3},
    "docker": {"cpus": 2, "memory": "4g"},
    "monitoring": {},
    "kubernetes": {"claim": "models", "max_replicas": 9, "service_account": "reader"},
}
GOLDEN = Path(__file__).parents[2] / "data" / "golden" / "manifests"


def spec(models=None, **sections):
    server = {"name": "web", "engine": "kubernetes", **sections.pop("server", {})}
    paths = models or {"m": "/models/m"}
    document = {
        "models": {name: {"base_path": path} for name, path in paths.items()},
        "kubernetes": {"claim": "models"},
        **sections,
        "server": server,
    }
    return build(document, source="test", folder=Path("/"))


def made(*args, **sections):
    """Return the objects by kind; of Services, by kind and protocol."""
    found = manifests.manifests(spec(*args, **sections))
    return {
        each["kind"] + (each["metadata"]["name"].rpartition("-")[2].title()
                        if each["kind"] == "Service" else ""): each
        for each in found
    }  # fmt: skip


def pod(*args, **sections):
    return made(*args, **sections)["Deployment"]["spec"]["template"]["spec"]


def server(*args, **sections):
    (only,) = pod(*args, **sections)["containers"]
    return only


@pytest.mark.parametrize("version", VERSIONS)
def test_objects_are_what_the_schemas_of_kubernetes_say(version):
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    everything = manifests.manifests(spec(**EVERYTHING))
    for each in (*manifests.manifests(spec()), *everything):
        kubernetes_validate.validate(each, version, strict=True)
    everything[1]["spec"]["template"]["spec"]["nonsense"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(everything[1], version, strict=True)


def test_yaml_is_read_back_as_what_it_was():
    names = {"m": "/models/m", "a: b # {{ $(x) }} 'q' \"": "/models/odd\n name", "yes": "/models/1"}
    wanted = manifests.manifests(spec(names, **EVERYTHING))
    assert [yaml.safe_load(manifests._to_yaml(each)) for each in wanted] == wanted
    texts = manifests.files(spec(names, **EVERYTHING))
    base = yaml.safe_load(texts[manifests.KUSTOMIZATION])
    assert [yaml.safe_load(texts[name]) for name in base["resources"]] == wanted
    assert len(texts) == len(wanted) + 1


@pytest.mark.parametrize("target", ["kubernetes", "kserve"])
def test_files_are_those_that_were_looked_at(target, monkeypatch):
    """TFKIT_GOLDEN=1 writes them anew; look at the difference before it is committed."""
    monkeypatch.setattr(draining, "script", lambda: "the script\n")
    folder = GOLDEN / target
    texts = manifests.files(spec(**(EVERYTHING if target == "kubernetes" else KSERVE)), target)
    if os.environ.get("TFKIT_GOLDEN"):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name, text in texts.items():
            (folder / name).write_text(text, "utf-8")
    assert texts == {each.name: each.read_text("utf-8") for each in sorted(folder.iterdir())}


@pytest.mark.parametrize("target", ["kubernetes", "kserve"])
def test_kustomize_takes_the_folder_and_keeps_every_object(target, tmp_path):
    kubectl = shutil.which("kubectl", path=Path(sys.executable).parent) or shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("there is no kubectl")
    texts = manifests.files(spec(**(EVERYTHING if target == "kubernetes" else KSERVE)), target)
    for name, text in texts.items():
        (tmp_path / name).write_text(text, "utf-8")
    done = subprocess.run(
        [kubectl, "kustomize", tmp_path], capture_output=True, text=True, check=True
    )
    wanted = [
        yaml.safe_load(text) for name, text in texts.items() if name != manifests.KUSTOMIZATION
    ]

    def by_name(objects):
        return sorted(objects, key=lambda each: (each["kind"], each["metadata"]["name"]))

    assert by_name(yaml.safe_load_all(done.stdout)) == by_name(wanted)


# The end of a pod


@pytest.mark.parametrize(
    ("arguments", "sleep_s", "age_ms"),
    [
        (None, 40, 10_000),
        ("grpc.so_reuseport=0", 40, 10_000),
        ("grpc.max_connection_age_ms=2000", 40, 2000),
        ("grpc.max_connection_age_ms=60000", 76, 60_000),
        ("grpc.max_connection_age_ms=2147483647", 40, 2**31 - 1),
    ],
)
def test_pod_goes_on_until_its_connections_are_too_old(arguments, sleep_s, age_ms):
    flags = {"grpc_channel_arguments": arguments} if arguments else {}
    made = pod(server={"flags": flags, "drain_s": 20.0})
    (only,) = made["containers"]
    assert only["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", str(sleep_s)]
    assert f"grpc.max_connection_age_ms={age_ms}" in " ".join(only["args"])
    assert made["terminationGracePeriodSeconds"] == sleep_s + 20 + 10
    assert only["command"] == ["sh", "/tfkit/drain.sh"]
    assert only["args"][:3] == ["0", "20", "8500,8501"]


@pytest.mark.parametrize(("pre_stop_s", "drain_s"), [(3.5, 20.0), (3.5, 0.0)])
def test_how_long_a_pod_goes_on_can_be_said(pre_stop_s, drain_s):
    kubernetes = {"claim": "c", "pre_stop_s": pre_stop_s}
    made = pod(server={"drain_s": drain_s}, kubernetes=kubernetes)
    (only,) = made["containers"]
    assert only["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "4"]
    assert "--grpc_channel_arguments=grpc.max_connection_age_ms=1750" in only["args"]
    assert made["terminationGracePeriodSeconds"] == 4 + drain_s + 10


def test_pod_that_need_not_drain_ends_at_once():
    made = pod(server={"drain_s": 0.0})
    (only,) = made["containers"]
    assert "lifecycle" not in only
    assert only["args"][:2] == ["0", "0"]  # the script still passes SIGTERM on
    assert made["terminationGracePeriodSeconds"] == 10


def test_no_pod_leaves_before_its_successor_is_ready():
    rules = made()["Deployment"]["spec"]["strategy"]["rollingUpdate"]
    assert rules == {"maxUnavailable": 0, "maxSurge": 1}


# Probes


def test_pod_is_ready_by_the_status_of_each_model_and_alive_while_it_listens():
    names = {"m": "/models/m", "it's/odd": "/models/odd"}
    only = server(names, server={"ready_timeout_s": 300.0})
    for kind in ("startupProbe", "readinessProbe"):
        shell, option, script = only[kind]["exec"]["command"]
        assert (shell, option) == ("bash", "-c")
        assert "for model in m it%27s%2Fodd;" in script
        assert "/v1/models/%s" in script and '"AVAILABLE"' in script
    startup = only["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] == 300
    assert only["livenessProbe"]["tcpSocket"] == {"port": "rest"}
    assert "exec" not in only["livenessProbe"]


def test_ports_are_those_of_the_deployment_everywhere():
    found = made(server={"grpc_port": 9500, "rest_port": 9501})
    (only,) = found["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert only["ports"] == [
        {"name": "grpc", "containerPort": 9500},
        {"name": "rest", "containerPort": 9501},
    ]
    assert {"--port=9500", "--rest_api_port=9501"} <= set(only["args"])
    assert "9500,9501" in only["args"]
    assert "/dev/tcp/127.0.0.1/9501" in only["readinessProbe"]["exec"]["command"][2]
    assert found["ServiceGrpc"]["spec"]["ports"][0]["port"] == 9500
    assert found["ServiceGrpc"]["spec"]["clusterIP"] == "None"
    assert found["ServiceRest"]["spec"]["ports"][0]["port"] == 9501
    assert "clusterIP" not in found["ServiceRest"]["spec"]


def test_ports_of_zero_are_the_usual_ones():
    args = server(server={"grpc_port": 0, "rest_port": 0})["args"]
    assert {"--port=8500", "--rest_api_port=8501"} <= set(args)


# Rights


def test_pod_has_no_rights_that_it_does_not_need():
    made = pod()
    assert made["automountServiceAccountToken"] is False
    assert made["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 65534,
        "runAsGroup": 65534,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    (only,) = made["containers"]
    assert only["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    writable = [each["mountPath"] for each in only["volumeMounts"] if not each.get("readOnly")]
    assert writable == ["/tmp"]


def test_pods_may_call_nobody_unless_their_models_are_elsewhere():
    assert made()["NetworkPolicy"]["spec"]["egress"] == []
    assert made({"m": "gs://b/m"})["NetworkPolicy"]["spec"]["egress"] == [{}]


def test_callers_can_be_named():
    allowed = made(kubernetes={"claim": "c", "clients": {"app": "web"}})["NetworkPolicy"]["spec"]
    (rule,) = allowed["ingress"]
    assert rule["from"] == [{"podSelector": {"matchLabels": {"app": "web"}}}]
    assert [each["port"] for each in rule["ports"]] == ["grpc", "rest"]


# Models, files and secrets


@pytest.mark.parametrize(
    ("kubernetes", "source", "place"),
    [
        ({"claim": "c"}, {"persistentVolumeClaim": {"claimName": "c"}}, "/models"),
        ({"claim": "c", "mount_path": "/models/m"},
         {"persistentVolumeClaim": {"claimName": "c"}}, "/models/m"),
        ({"host_path": "/models"}, {"hostPath": {"path": "/models", "type": "Directory"}},
         "/models"),
        ({"host_path": "/srv", "mount_path": "/models"},
         {"hostPath": {"path": "/srv", "type": "Directory"}}, "/models"),
    ],
)  # fmt: skip
def test_models_come_from_a_claim_or_a_folder_of_the_nodes(kubernetes, source, place):
    found = pod(kubernetes=kubernetes)
    assert {"name": "models", **source} in found["volumes"]
    mounts = found["containers"][0]["volumeMounts"]
    assert {"name": "models", "mountPath": place, "readOnly": True} in mounts


@pytest.mark.parametrize(
    ("path", "kubernetes"), [("/models/m", {"in_image": True}), ("gs://bucket/m", {})]
)
def test_models_of_the_image_or_of_a_store_take_no_volume(path, kubernetes):
    names = [each["name"] for each in pod({"m": path}, kubernetes=kubernetes)["volumes"]]
    assert names == ["config", "tmp"]


def test_rendered_files_are_there_and_their_content_is_a_part_of_the_name():
    few, many = made(), made(batching={}, monitoring={})
    assert set(few["ConfigMap"]["data"]) == {"model_config.txt", "drain.sh"}
    assert 'base_path: "/models/m"' in few["ConfigMap"]["data"]["model_config.txt"]
    names = {each["ConfigMap"]["metadata"]["name"] for each in (few, many, made())}
    assert len(names) == 2
    assert "monitoring_config.txt" in many["ConfigMap"]["data"]
    spec_ = many["Deployment"]["spec"]["template"]
    assert spec_["metadata"]["annotations"]["prometheus.io/port"] == "8501"
    (only,) = spec_["spec"]["containers"]
    assert "--monitoring_config_file=/tfkit/monitoring_config.txt" in only["args"]
    assert spec_["spec"]["volumes"][0]["configMap"]["name"] in names


def test_files_that_flags_name_go_along_if_they_are_here(tmp_path):
    (tmp_path / "session.txt").write_text("a: 1")
    flags = {
        "tensorflow_session_config_file": str(tmp_path / "session.txt"),
        "platform_config_file": "/in/the/image.txt",
    }
    found = made(server={"flags": flags})
    assert found["ConfigMap"]["data"]["tensorflow_session_config_file.txt"] == "a: 1"
    (only,) = found["Deployment"]["spec"]["template"]["spec"]["containers"]
    place = "/tfkit/tensorflow_session_config_file.txt"
    assert f"--tensorflow_session_config_file={place}" in only["args"]
    assert "--platform_config_file=/in/the/image.txt" in only["args"]


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"\xff", "cannot be read"), (b"x" * 1_100_000, "cannot be read"),
     (b"\n" * 600_000, "more than a ConfigMap holds")],
)  # fmt: skip
def test_file_that_no_config_map_takes_is_refused(tmp_path, content, said):
    (tmp_path / "session.txt").write_bytes(content)
    flags = {"tensorflow_session_config_file": str(tmp_path / "session.txt")}
    with pytest.raises(SpecError, match=said):
        made(server={"flags": flags})


def test_key_of_tls_is_in_no_object(tmp_path):
    (tmp_path / "ssl.txt").write_text('server_key: "hunter2"')
    flags = {"ssl_config_file": str(tmp_path / "ssl.txt")}
    texts = manifests.files(spec(server={"flags": flags}))
    assert "hunter2" not in "".join(texts.values())
    found = pod(server={"flags": flags})
    assert {"name": "tls", "secret": {"secretName": "tfkit-web-tls"}} in found["volumes"]
    assert "--ssl_config_file=/tfkit-secrets/tls/ssl.txt" in found["containers"][0]["args"]
    named = spec(server={"flags": flags}, kubernetes={"claim": "c", "tls_secret": "mine"})
    assert manifests.tls_secret(named) == "mine"
    assert manifests.tls_secret(spec()) is None


def test_variables_of_the_deployment_are_no_variables_of_kubernetes():
    env = {each["name"]: each["value"] for each in server(docker={"env": {"A": "$(B)"}})["env"]}
    assert env["A"] == "$$(B)"
    args = server({"m": "/models/$(HOME)"}, server={"flags": {"mixed_precision": "$(A)"}})["args"]
    assert "--mixed_precision=$$(A)" in args


# Size


def test_limits_are_reserved_too():
    found = server(docker={"cpus": 1.5, "memory": "512m", "gpu": "2"})["resources"]
    assert found["requests"] == found["limits"]
    assert found["limits"] == {"cpu": "1500m", "memory": "512Mi", "nvidia.com/gpu": "2"}
    assert "resources" not in server()


def test_threads_do_not_depend_on_this_machine(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 999)
    assert "--grpc_max_threads=64" in server()["args"]
    assert "--grpc_max_threads=128" in server(docker={"cpus": 31.5})["args"]
    assert "--grpc_max_threads=7" in server(server={"flags": {"grpc_max_threads": 7}})["args"]


def test_autoscaler_goes_by_the_cpu_and_has_the_number_of_replicas_to_itself():
    found = made(server={"replicas": 2}, docker={"cpus": 1}, kubernetes={"claim": "c",
                 "max_replicas": 5})  # fmt: skip
    assert "replicas" not in found["Deployment"]["spec"]
    described = found["HorizontalPodAutoscaler"]["spec"]
    assert (described["minReplicas"], described["maxReplicas"]) == (2, 5)
    assert described["metrics"] == [
        {
            "type": "Resource",
            "resource": {
                "name": "cpu",
                "target": {"type": "Utilization", "averageUtilization": 70},
            },
        }
    ]
    assert made(server={"replicas": 2})["Deployment"]["spec"]["replicas"] == 2
    assert "HorizontalPodAutoscaler" not in made()


def test_autoscaler_can_go_by_a_rate():
    kubernetes = {"claim": "c", "max_replicas": 5, "metric": "requests_per_second",
                  "metric_target": 12.5}  # fmt: skip
    (metric,) = made(kubernetes=kubernetes)["HorizontalPodAutoscaler"]["spec"]["metrics"]
    target = {"type": "AverageValue", "averageValue": "12500m"}
    assert metric["pods"] == {"metric": {"name": "requests_per_second"}, "target": target}


# Refusals


@pytest.mark.parametrize(
    ("sections", "place", "said"),
    [
        ({"server": {"name": "Web"}}, "server.name", "lower-case"),
        ({"server": {"name": "a.b"}}, "server.name", "lower-case"),
        ({"server": {"name": "w" * 53}}, "server.name", "52"),
        ({"server": {"grpc_port": 8501, "rest_port": 0}}, "server.grpc_port", "rest_port"),
        ({"docker": {"user": "serving"}}, "docker.user", "numbers"),
        ({"docker": {"gpu": "all"}}, "docker.gpu", "how many"),
        ({"docker": {"gpu": "device=0"}}, "docker.gpu", "how many"),
        ({"docker": {"env": {"A=B": "c"}}}, "docker.env", "'A=B'"),
        ({"kubernetes": {}}, "models.m.base_path", "claim, host_path or in_image"),
        ({"kubernetes": {"claim": "c", "host_path": "/m"}}, "kubernetes", "exclude each other"),
        ({"kubernetes": {"mount_path": "/m"}}, "kubernetes", "claim"),
        ({"kubernetes": {"claim": "c", "mount_path": "/other"}}, "models.m.base_path", "/other"),
        ({"kubernetes": {"host_path": "/"}}, "kubernetes.mount_path", "/models"),
        ({"kubernetes": {"claim": "c", "max_replicas": 3}}, "kubernetes.max_replicas", "cpus"),
        ({"kubernetes": {"claim": "c", "max_replicas": 1}, "docker": {"cpus": 1},
          "server": {"replicas": 2}}, "kubernetes.max_replicas", "below replicas"),
        ({"kubernetes": {"claim": "c", "max_replicas": 3, "metric": "m"}}, "kubernetes", "both"),
        ({"kubernetes": {"claim": "c", "metric": "m", "metric_target": 1}}, "kubernetes",
         "max_replicas"),
        *(({"kubernetes": {"claim": "c", "max_replicas": 3, "metric": name,
             "metric_target": 1}},
           "kubernetes", "counter") for name in ("requests-total", "request.count")),
        ({"kubernetes": {"claim": "c", "tls_secret": "s"}}, "kubernetes.tls_secret",
         "ssl_config_file"),
        ({"kubernetes": {"claim": "Models"}}, "kubernetes.claim", "pattern"),
        ({"kubernetes": {"claim": "c" * 254}}, "kubernetes.claim", "253"),
        ({"kubernetes": {"claim": "c", "namespace": "a.b"}}, "kubernetes.namespace", "pattern"),
        ({"kubernetes": {"claim": "c", "node_selector": {"a b": "c"}}}, "kubernetes", "pattern"),
        ({"kubernetes": {"claim": "c", "clients": {"a": "b\nc: d"}}}, "kubernetes", "pattern"),
        ({"kubernetes": {"claim": "c", "tolerations": [{"keys": "a"}]}}, "kubernetes", "no key"),
        ({"kubernetes": {"claim": "c", "tolerations": [{"value": "a"}]}}, "kubernetes", "Exists"),
        ({"kubernetes": {"claim": "c", "tolerations": [{"key": "a", "effect": "no"}]}},
         "kubernetes", "NoSchedule"),
        ({"gateway": {}}, "", "swarm"),
    ],
)  # fmt: skip
def test_what_kubernetes_could_not_take_is_refused_with_the_remedy(sections, place, said):
    with pytest.raises(SpecError) as caught:
        spec(**sections)
    (first, *_) = caught.value.problems
    assert first.path.startswith(place)
    assert said in f"{first.message} {first.remedy}"


def test_deployment_made_by_hand_is_looked_at_too():
    bad = Spec.model_validate({"models": {"m": {"base_path": "/m"}}})
    with pytest.raises(SpecError, match="claim"):
        manifests.manifests(bad)


# KServe


def test_kserve_gets_a_runtime_that_serves_the_metrics_it_names():
    found = manifests.kserve(spec(**KSERVE))
    runtime = found["servingruntime-m.yaml"]["spec"]
    (only,) = runtime["containers"]
    assert only["name"] == "kserve-container"
    assert only["ports"][0] == {"name": "rest", "containerPort": 8501}  # KServe's port 80
    assert only["image"].endswith(":2.20.0")
    page = runtime["annotations"]["prometheus.kserve.io/path"]
    config = found["configmap-m.yaml"]["data"]
    assert page in config["monitoring_config.txt"]
    assert 'base_path: "/mnt/models"' in config["model_config.txt"]
    assert runtime["annotations"]["prometheus.kserve.io/port"] == "8501"


@pytest.mark.parametrize(
    ("path", "kubernetes", "uri"),
    [
        ("/models/m", {"claim": "c"}, "pvc://c/m"),
        ("/models", {"claim": "c"}, "pvc://c"),
        ("gs://bucket/m", {}, "gs://bucket/m"),
        ("/models/m", {"in_image": True}, None),
    ],
)
def test_kserve_is_told_where_the_model_is(path, kubernetes, uri):
    found = manifests.kserve(spec({"m": path}, kubernetes=kubernetes))
    assert found["inferenceservice-m.yaml"]["spec"]["predictor"]["model"].get("storageUri") == uri


def test_kserve_runs_as_many_replicas_as_the_deployment_says():
    few = manifests.kserve(spec(server={"replicas": 2}))
    predictor = few["inferenceservice-m.yaml"]["spec"]["predictor"]
    assert (predictor["minReplicas"], predictor["maxReplicas"]) == (2, 2)
    assert "scaleMetric" not in predictor
    many = manifests.kserve(spec(**KSERVE))["inferenceservice-m.yaml"]["spec"]["predictor"]
    assert (many["maxReplicas"], many["scaleMetric"], many["scaleTarget"]) == (9, "cpu", 70)


def test_values_are_no_templates_of_kserve():
    found = manifests.kserve(spec(docker={"env": {"A": "{{.Name}}"}}))
    (only,) = found["servingruntime-m.yaml"]["spec"]["containers"]
    assert {"name": "A", "value": "{{`{{`}}.Name}}"} in only["env"]


@pytest.mark.parametrize(
    ("sections", "place"),
    [
        ({"kubernetes": {"host_path": "/models"}}, "kubernetes.host_path"),
        ({"kubernetes": {"claim": "c", "env_secret": "s"}}, "kubernetes.env_secret"),
        ({"kubernetes": {"claim": "c", "clients": {"a": "b"}}}, "kubernetes.clients"),
        ({"models": {"Big_Model": {"base_path": "/models/m"}}}, "models.Big_Model"),
        ({"models": {"m" * 50: {"base_path": "/models/m"}}}, "models.mmm"),
    ],
)
def test_what_kserve_could_not_take_is_refused(sections, place):
    with pytest.raises(SpecError) as caught:
        manifests.kserve(spec(**sections))
    (only,) = caught.value.problems
    assert only.path.startswith(place) and only.remedy
