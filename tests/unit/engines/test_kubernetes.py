"""The Kubernetes engine against a kubectl that answers from files."""

import copy
from pathlib import Path

import pytest

from tests.unit.engines.kubectls import FakeKubectl, objects
from tfserve_kit.clock import SystemClock
from tfserve_kit.deployment import build, render
from tfserve_kit.engines import Phase, State, kubectl, kubernetes, pods
from tfserve_kit.engines.kubernetes import KubernetesEngine
from tfserve_kit.engines.records import owner
from tfserve_kit.errors import EngineUnavailable, ServerExists, ServerFailed, SpecError, UsageError
from tfserve_kit.serving import reload

OLD, NEW = "hash-1", "hash-2"
NOTHING = {"items": []}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Look often, and give up soon."""
    monkeypatch.setattr(kubernetes, "_LOOK_S", 0.01)
    monkeypatch.setattr(kubernetes, "_SPARE_S", 0.5)
    monkeypatch.setattr(kubernetes, "_CRASH_S", 0.1)
    monkeypatch.setattr(kubernetes, "_QUICK_S", 2.0)
    monkeypatch.setattr(pods, "_LOOK_S", 0.05)


@pytest.fixture
def fake(tmp_path, monkeypatch, state_dir):
    """The only kubectl there is."""
    fake = FakeKubectl(tmp_path / "kubectl")
    monkeypatch.setenv("PATH", f"{fake.folder / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("KUBECONFIG", "its own")
    fake.says("trial")
    fake.says("apply")
    fake.says("delete")
    fake.says("logs", "the last line\n")
    fake.says("config", "gke\n")
    for kind in ("events", "replicasets.apps", "pods"):
        fake.says(f"get:{kind}", NOTHING)
    return fake


def deployment(*, kubernetes=None, docker=None, client=None, **server):
    return build(
        {
            "server": {"name": "web", "engine": "kubernetes", **server},
            "models": {"m": {"base_path": "/models/m"}},
            "kubernetes": {"in_image": True, "namespace": "prod", **(kubernetes or {})},
            "docker": docker or {},
            "client": client or {},
        },
        source="test",
        folder=Path("/"),
    )


def planned(**options):
    spec = deployment(**options)
    return KubernetesEngine().plan(spec, render.render(spec))


class World:
    """What a cluster says of a server: its Deployment, ReplicaSets and pods."""

    def __init__(self, plan, uid="uid-1"):
        (made,) = (each for each in plan.objects if each["kind"] == "Deployment")
        self.plan, self.uid = plan, uid
        self.deployment = copy.deepcopy(made)
        self.deployment["metadata"] |= {"uid": uid, "generation": 1, "namespace": "prod"}
        self.deployment["metadata"]["annotations"]["deployment.kubernetes.io/revision"] = "1"
        self.counts(1, 1, 1)

    def counts(self, replicas, updated, available, generation=1):
        self.deployment["status"] = {
            "observedGeneration": generation, "replicas": replicas, "updatedReplicas": updated,
            "availableReplicas": available,
        }  # fmt: skip
        return self

    def conditions(self, *told):
        keys = ("type", "status", "reason", "message")
        self.deployment["status"]["conditions"] = [
            dict(zip(keys, each, strict=True)) for each in told
        ]
        return self

    def seen(self, *found):
        """Return what `kubectl get` prints of it with these pods."""
        known = {"deployment.kubernetes.io/revision": "1"}
        metadata = {"labels": {"pod-template-hash": NEW}, "annotations": known}
        current = {"kind": "ReplicaSet", "metadata": metadata}
        return {"items": [self.deployment, current, *found]}


def pod(name="tfkit-web-a", *, ready=True, container=None, of=NEW, address="10.1.0.1", **status):
    told = {"name": "server", "state": {"running": {}}, "containerID": "c", **(container or {})}
    return {
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"pod-template-hash": of}},
        "spec": {"nodeName": "node-1", "terminationGracePeriodSeconds": 0},
        "status": {
            "podIP": address, "containerStatuses": [told],
            "conditions": [{"type": "Ready", "status": str(ready)}], **status,
        },
    }  # fmt: skip


def waiting(reason, message=""):
    return {"state": {"waiting": {"reason": reason, "message": message}}}


def ended(code, reason="Error"):
    return {"terminated": {"exitCode": code, "reason": reason}}


def verbs(fake):
    """Return what was asked of the cluster, in order."""
    found = ["trial" if "--dry-run=server" in call else call[0] for call in fake.calls]
    return [each for each in found if each != "config"]


@pytest.fixture
def handle(fake):
    """Make a handle of a server whose pods are told by the answers to `get`."""

    def make(world):
        fake.says("get", {"items": [world.deployment]})
        found = KubernetesEngine().find("web")
        fake.forget()
        fake.says("config", "gke\n")
        for kind in ("events", "replicasets.apps", "pods"):
            fake.says(f"get:{kind}", NOTHING)
        return found

    return make


# Plans


def test_plan_is_one_command_that_reads_the_objects(state_dir):
    plan = planned(replicas=3)
    assert plan.argv == (
        "kubectl", "apply", "--server-side", "--field-manager=tfkit", "--filename=-",
        "--namespace=prod",
    )  # fmt: skip
    assert objects(plan.stdin) == list(plan.objects)
    assert (plan.replicas, plan.files, plan.before) == (3, {}, ())
    assert plan.endpoints.grpc == "dns:///tfkit-web-grpc.prod:8500"
    assert plan.endpoints.rest == "dns+http://tfkit-web-grpc.prod:8501"
    assert not state_dir.exists()


def test_secrets_of_a_plan_are_hidden_where_it_is_shown():
    plan = planned(docker={"env": {"TOKEN": "hunter2"}}, client={"headers": {"key": "hunter3"}})
    shown = plan.private[plan.stdin]
    assert plan.stdin.count("hunter2") == 2  # the container, and what all was made of
    assert "hunter" not in shown
    assert [each["kind"] for each in objects(shown)] == [each["kind"] for each in plan.objects]


# Start


def test_start_tries_applies_waits_and_leaves_a_copy(fake, state_dir):
    plan = planned(replicas=2)
    world = World(plan).counts(2, 2, 1)
    fake.says("get", NOTHING)  # no server of the name
    fake.says("get", NOTHING)  # no object of ours
    fake.says("get", {"items": [world.deployment]})
    fake.says("get", world.seen(pod()))
    world.counts(2, 2, 2)
    fake.says("get", world.seen(pod(), pod("tfkit-web-b", address="10.1.0.2")))
    handle = KubernetesEngine().start(plan)
    assert verbs(fake) == ["get", "get", "trial", "apply", "get", "get", "get"]
    assert fake.told() == list(plan.objects)
    assert handle.endpoints.grpc == "grpc://10.1.0.1:8500,grpc://10.1.0.2:8500"
    assert handle.endpoints.rest == "http://10.1.0.1:8501,http://10.1.0.2:8501"
    assert handle.models == {"m": "/models/m"}
    assert owner(state_dir / "servers" / "web") == "kubernetes"


def test_refused_trial_leaves_nothing(fake, state_dir):
    fake.forget()
    fake.says("get", NOTHING)
    refused = 'deployments.apps "x" is forbidden: User "joe" cannot patch resource "deployments"'
    fake.says("trial", err=f"Error from server (Forbidden): {refused}", code=1)
    with pytest.raises(EngineUnavailable) as caught:
        KubernetesEngine().start(planned())
    assert caught.value.message.startswith("cannot start server 'web': ")
    assert "kubectl auth can-i --list --namespace=prod" in caught.value.remedy
    assert verbs(fake) == ["get", "get", "trial"]
    assert not (state_dir / "servers" / "web").exists()


@pytest.mark.parametrize(
    ("broken", "message", "remedy"),
    [
        (
            pod(ready=False, container=waiting("ErrImageNeverPull", "not present")),
            "ErrImageNeverPull: not present", "load the image on every node",
        ),
        (
            pod(ready=False, container={"lastState": ended(137)}),
            "ended with exit status 137", "the models did not become available",
        ),
        (
            pod(ready=False, container={}, containerStatuses=[], conditions=[
                {"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                 "message": 'persistentvolumeclaim "models" not found'}]),
            'persistentvolumeclaim "models" not found', "kubectl get pvc",
        ),
    ],
)  # fmt: skip
def test_pods_that_do_not_become_ready_are_taken_away_and_reported(
    fake, state_dir, monkeypatch, broken, message, remedy
):
    monkeypatch.setattr(pods, "_PATIENCE_S", dict.fromkeys(pods._PATIENCE_S, 0.0))
    monkeypatch.setattr(pods, "_CLAIM_S", 0.0)
    world = World(planned()).counts(1, 1, 0)
    fake.says("get", NOTHING)
    fake.says("get", NOTHING)
    fake.says("get", {"items": [world.deployment]})
    fake.says("get", world.seen(broken))
    with pytest.raises(ServerFailed) as caught:
        KubernetesEngine().start(planned())
    assert f"deployment tfkit-web does not start: {message}"[:-1] in caught.value.message or (
        message in caught.value.message
    )
    assert remedy in caught.value.remedy
    assert caught.value.log_tail == ["the last line"]
    deleted = [call[1:] for call in fake.calls if call[0] == "delete"]
    assert deleted[0][0] == "deployment.apps/tfkit-web"
    assert "service/tfkit-web-grpc" in deleted[-1]
    assert not (state_dir / "servers" / "web").exists()


def test_server_that_ended_by_itself_is_kept_with_its_log(fake):
    world = World(planned()).counts(1, 1, 0)
    broken = pod(ready=False, container=waiting("CrashLoopBackOff") | {"lastState": ended(3)})
    fake.says("get", NOTHING)
    fake.says("get", NOTHING)
    fake.says("get", {"items": [world.deployment]})
    fake.says("get", world.seen(broken))
    handle = KubernetesEngine().start(planned())
    assert handle.state() == State(Phase.EXITED, 3)
    assert "delete" not in verbs(fake)


def test_name_that_runs_is_refused(fake):
    world = World(planned())
    fake.says("get", {"items": [world.deployment]})
    fake.says("get", world.seen(pod()))
    with pytest.raises(ServerExists, match="'web' is already running"):
        KubernetesEngine().start(planned())
    assert set(verbs(fake)) == {"get"}


def test_objects_of_somebody_else_are_not_taken_over(fake):
    fake.says("get", NOTHING)
    theirs = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "tfkit-web-grpc"}}
    fake.says("get", {"items": [theirs]})
    with pytest.raises(ServerExists, match="service/tfkit-web-grpc is there already"):
        KubernetesEngine().start(planned())
    assert set(verbs(fake)) == {"get"}


# What is checked before


@pytest.mark.parametrize(
    ("options", "answer", "path", "remedy"),
    [
        ({"in_image": False, "claim": "gone"}, "", "kubernetes.claim", "persistentvolumeclaims"),
        ({"service_account": "gone"}, "", "kubernetes.service_account", "serviceaccounts"),
        ({"pull_secret": "gone"}, "", "kubernetes.pull_secret", "kubectl get secrets"),
        ({"max_replicas": 4}, "", "kubernetes.max_replicas", "install metrics-server"),
        (
            {"max_replicas": 4, "metric": "rps", "metric_target": 9.0}, "",
            "kubernetes.max_replicas", "prometheus-adapter",
        ),
    ],
)  # fmt: skip
def test_what_the_deployment_names_must_be_there(fake, options, answer, path, remedy):
    fake.says("get", answer)
    fake.says("api-versions", "apps/v1\nv1\n")
    with pytest.raises(SpecError) as caught:
        KubernetesEngine().prepare(deployment(kubernetes=options, docker={"cpus": 1.0}))
    (problem,) = caught.value.problems
    assert problem.path == path
    assert remedy in problem.remedy


def test_what_is_there_is_not_complained_about(fake):
    fake.says("get", NOTHING)
    fake.says("get", {"kind": "PersistentVolumeClaim", "metadata": {"name": "models"}})
    fake.says("api-versions", "apps/v1\nmetrics.k8s.io/v1beta1\n")
    options = {"in_image": False, "claim": "models", "max_replicas": 4}
    KubernetesEngine().prepare(deployment(kubernetes=options, docker={"cpus": 1.0}))


# Looks


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([pod()], State(Phase.RUNNING)),
        ([pod(ready=False), pod()], State(Phase.RUNNING)),
        ([pod(ready=False)], State(Phase.STARTING)),
        ([], State(Phase.STARTING)),
        ([pod(ready=False, container={"state": ended(9)})], State(Phase.EXITED, 9)),
        ([pod(ready=False, container={"lastState": ended(9)})], State(Phase.STARTING)),
        ([pod(phase="Failed")], State(Phase.STARTING)),
    ],
)
def test_state_is_that_of_the_pods(fake, handle, found, expected):
    world = World(planned())
    server = handle(world)
    fake.says("get", world.seen(*found))
    assert server.state() == expected


def test_old_handle_of_a_name_that_was_given_anew_sees_nothing(fake, handle):
    server = handle(World(planned()))
    fake.says("get", World(planned(), uid="uid-2").seen(pod()))
    assert server.state() == State(Phase.GONE)
    assert server.replicas() == []
    server.stop()
    assert set(verbs(fake)) == {"get"}


def test_replicas_are_pods_with_nodes_addresses_and_reasons(fake, handle):
    world = World(planned(replicas=2))
    server = handle(world)
    bad = pod("tfkit-web-b", ready=False, address="", container=waiting("ErrImagePull", "no such"))
    leaving = pod("tfkit-web-c")
    leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    fake.says("get", world.seen(pod(), bad, leaving))
    good, bad = server.replicas()
    assert (good.name, good.node, good.endpoints.grpc, good.reason) == (
        "web-a", "node-1", "grpc://10.1.0.1:8500", "",
    )  # fmt: skip
    assert (bad.endpoints, bad.reason) == (None, "ErrImagePull: no such")


def test_server_is_listed_where_it_was_started_from_here_whatever_the_current_namespace(
    fake, handle
):
    handle(World(planned()))  # leaves a copy that says where it is
    fake.says("get", NOTHING)
    KubernetesEngine().list()
    KubernetesEngine().find("web")
    asked = [[each for each in call if each[:5] in {"--nam", "--con"}] for call in fake.calls]
    there = ["--context=gke", "--namespace=prod"]
    assert asked == [[], there, there]


def test_cluster_that_is_away_hides_no_other_server_but_is_told_of_its_own(fake, handle):
    server = handle(World(planned()))
    fake.says("get", err="Unable to connect to the server: dial tcp: i/o timeout", code=1)
    assert KubernetesEngine().list() == []
    assert KubernetesEngine().find("other") is None
    with pytest.raises(EngineUnavailable, match="i/o timeout"):
        KubernetesEngine().find("web")
    with pytest.raises(EngineUnavailable, match="cannot ask for server 'web'"):
        server.state()


# Changes


def live(plan):
    """Return what the cluster has of a plan, with the record that tfkit applied all of it."""

    def fields(value):
        if isinstance(value, dict) and value:
            return {f"f:{key}": fields(part) for key, part in value.items()}
        return {}

    found = []
    for each in copy.deepcopy(list(plan.objects)):
        body = {key: value for key, value in each.items() if key not in {"apiVersion", "kind"}}
        owned = fields(body)
        del owned["f:metadata"]["f:name"]
        each["metadata"]["managedFields"] = [
            {"manager": "tfkit", "operation": "Apply", "fieldsV1": owned}
        ]
        each["status"] = {"of": "the cluster"}
        found.append(each)
    return {"items": found}


def test_change_that_succeeds_removes_what_is_no_longer_wanted(fake, handle):
    old, new = planned(), planned(docker={"image": "new:2"}, drain_s=3.0)
    before, after = World(old), World(new)
    server = handle(before)
    for answer in ("trial", "apply", "delete"):
        fake.says(answer)
    fake.says("get", before.seen(pod(of=OLD)))
    fake.says("get", live(old))
    fake.says("get", after.counts(2, 1, 1).seen(pod(of=OLD), pod("tfkit-web-b", ready=False)))
    fake.says("get", after.counts(1, 1, 1).seen(pod("tfkit-web-b")))
    now = server.update(new)
    assert [each for each in verbs(fake) if each != "get"] == ["trial", "apply"] or (
        [each for each in verbs(fake) if each != "get"] == ["trial", "apply", "delete"]
    )
    assert now.endpoints.grpc == "grpc://10.1.0.1:8500"


def test_change_that_fails_is_taken_back_as_it_was_applied(fake, handle):
    old = planned()
    new = planned(docker={"image": "none:1"}, kubernetes={"max_replicas": 3, "metric": "rps",
                                                          "metric_target": 1.0})  # fmt: skip
    before, after = World(old), World(new)
    server = handle(before)
    for answer in ("trial", "apply", "delete"):
        fake.says(answer)
    fake.says("logs", "it is broken\n")
    broken = pod("tfkit-web-b", ready=False, container=waiting("InvalidImageName", "none"))
    fake.says("get", before.seen(pod(of=OLD)))
    fake.says("get", live(old))
    fake.says("get", after.counts(2, 1, 1).seen(pod(of=OLD), broken))
    fake.says("get", after.seen(pod(of=OLD), broken))
    fake.says("get", before.seen(pod()))
    with pytest.raises(ServerFailed) as caught:
        server.update(new)
    assert "was not updated and serves as before: InvalidImageName: none" in caught.value.message
    assert "not yet all" not in caught.value.message
    assert caught.value.log_tail == ["it is broken"]
    assert [each for each in verbs(fake) if each not in {"get", "logs"}] == [
        "trial", "apply", "apply", "apply", "apply", "delete",
    ]  # fmt: skip
    *_, restored, released = (call for call in fake.calls if call[0] == "apply")
    assert "--force-conflicts" in restored
    assert "--field-manager=tfkit" in restored
    assert fake.told(-2) == list(old.objects)
    assert "--field-manager=tfkit-handover" in released  # an update to an autoscaler began
    assert "spec" not in fake.told()[0]
    deleted = next(call for call in fake.calls if call[0] == "delete")
    assert "horizontalpodautoscaler.autoscaling/tfkit-web" in deleted
    assert "deployment.apps/tfkit-web" not in deleted


def test_deadline_of_the_cluster_ends_the_wait(fake, handle):
    world = World(planned()).counts(1, 1, 0)
    world.conditions(("Progressing", "False", "ProgressDeadlineExceeded", "slow"))
    found = pods.Look(world.deployment, (pod(ready=False),), NEW)
    assert "before the deadline" in pods.lasting(found, {}, 0.0)
    world.deployment["metadata"]["generation"] = 2  # it is about what was before
    assert pods.lasting(found, {}, 0.0) is None


def test_fault_that_passes_is_forgiven():
    world = World(planned()).counts(1, 1, 0)

    def look(*found):
        return pods.Look(world.deployment, found, NEW)

    pulling = pod(ready=False, container=waiting("ErrImagePull", "try 1"))
    waits = pod(ready=False, container=waiting("ImagePullBackOff", "try 2"))
    since = {}
    assert pods.lasting(look(pulling), since, 0.0) is None
    assert pods.lasting(look(pod(ready=False)), since, 10.0) is None
    assert pods.lasting(look(pulling), since, 20.0) is None
    assert pods.lasting(look(waits), since, 40.0) == "ImagePullBackOff: try 2"


def test_restart_replaces_pods_that_would_not_change(fake, handle):
    plan = planned()
    world = World(plan)
    server = handle(world)
    for answer in ("trial", "apply", "rollout"):
        fake.says(answer)
    fake.says("get:configmap", live(plan))
    fake.says("get:deployment.apps", world.deployment)
    fake.says("get", world.seen(pod()))
    server.update(plan, is_forced=True)
    (restart,) = (call for call in fake.calls if call[0] == "rollout")
    assert restart[:3] == ["rollout", "restart", "deployment.apps/tfkit-web"]


def test_server_does_not_move_to_another_namespace(fake, handle):
    server = handle(World(planned()))
    with pytest.raises(
        UsageError, match=r"namespace 'prod' of context 'gke'.* says namespace 'dev'"
    ):
        server.update(planned(kubernetes={"namespace": "dev"}))
    assert fake.calls == []


# Logs


def test_lines_of_several_pods_are_told_by_time_with_their_names(fake, handle):
    world = World(planned(replicas=2))
    server = handle(world)
    fake.says("get", world.seen(pod(), pod("tfkit-web-b")))
    fake.says("logs", "[pod/tfkit-web-a/server] 2026-01-01T00:00:02Z second\n"
              "[pod/tfkit-web-b/server] 2026-01-01T00:00:01Z first\n")  # fmt: skip
    assert list(server.logs()) == ["web-b | first", "web-a | second"]
    assert list(server.logs(tail=1)) == ["web-a | second"]
    assert list(server.logs(tail=0)) == []


def test_log_is_followed_through_new_pods_until_the_server_is_gone(fake, handle):
    world = World(planned(replicas=2))
    server = handle(world)
    fake.says("logs", "a line\n")
    fake.says("get", world.seen(pod()))
    fake.says("get", world.seen(pod()))
    fake.says("get", world.seen(pod(), pod("tfkit-web-b")))
    fake.says("get", NOTHING)
    told = list(server.logs(follow=True))
    assert {"web-a | a line", "web-b | a line"} == set(told)


def test_polite_stop_waits_and_a_hurried_one_does_not(fake, handle):
    for grace_s, is_hurried in ((10.0, False), (0.0, True)):
        world = World(planned())
        server = handle(world)
        fake.says("delete")
        fake.says("get", world.seen(pod()))
        fake.says("get", NOTHING)
        server.stop(grace_s=grace_s)
        deleted = [call for call in fake.calls if call[0] == "delete"]
        assert any("--grace-period=0" in call for call in deleted) == is_hurried
        assert owner(server.home) != "kubernetes"
        assert SystemClock
        fake.forget()


def test_number_of_replicas_outlives_its_handover_to_an_autoscaler(fake, handle):
    old = planned(replicas=3)
    new = planned(replicas=3, kubernetes={"max_replicas": 9, "metric": "rps", "metric_target": 1.0})
    world = World(old).counts(3, 3, 3)
    server = handle(world)
    for answer in ("trial", "apply"):
        fake.says(answer)
    fake.says("get", world.seen(pod()))
    fake.says("get", live(old))
    fake.says("get", world.seen(pod()))
    server.update(new)
    _, kept, applied = (call for call in fake.calls if call[0] == "apply")
    assert "--field-manager=tfkit-handover" in kept
    (told,) = fake.told(1)
    assert (told["metadata"], told["spec"]) == ({"name": "tfkit-web"}, {"replicas": 3})
    assert "--field-manager=tfkit" in applied


def test_machine_that_knows_no_cluster_asks_none(fake, tmp_path, monkeypatch):
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert KubernetesEngine().list() == []
    assert KubernetesEngine().find("web") is None
    assert fake.calls == []


def test_autoscaled_server_is_not_scaled_by_hand(fake, handle):
    options = {"max_replicas": 9, "metric": "rps", "metric_target": 1.0}
    server = handle(World(planned(kubernetes=options)))
    with pytest.raises(UsageError, match="its autoscaler's business, from 1 to 9"):
        reload.scale(server, 3)
    assert fake.calls == []


def test_cause_is_told_by_what_concerns_the_pod_and_not_all_of_the_cluster(fake):
    world = World(planned()).counts(1, 1, 0)
    told = [
        {"reason": "FailedCreatePodSandBox", "message": "no sandbox", "lastTimestamp": "1"},
        {"reason": "MissingClusterDNS", "message": "no DNS", "lastTimestamp": "2"},
    ]
    fake.forget()
    fake.says("get", world.seen(pod(ready=False)))
    fake.says("get:events", {"items": told})
    fake.says("logs")
    assert "no sandbox" in pods.failed(kubectl.Cluster(), "web", "does not start").message
