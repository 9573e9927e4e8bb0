"""Servers as Deployments of a Kubernetes cluster: pods on several machines, reached by kubectl.

The truth is in the cluster: annotations of the Deployment say what it was made of, so whoever may
read it can find it, and a folder on this machine is a copy::

    <state>/servers/<name>/cluster   deployment.json

What tfkit wants is applied server-side, first as a trial; what it applied before is read from the
objects' own record of who owns which field. So a change that fails is taken back whole: not the
pods alone, but the Services and all else that belongs to them.
"""

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tfserve_kit.clock import Clock, SystemClock, wait_until
from tfserve_kit.deployment.spec import Spec
from tfserve_kit.engines import kubectl, manifests, pods
from tfserve_kit.engines.base import (
    ALIVE,
    Availability,
    Endpoints,
    Plan,
    Replica,
    State,
    taken,
)
from tfserve_kit.engines.container import without_secrets
from tfserve_kit.engines.kubectl import Cluster, Object, reference
from tfserve_kit.engines.records import (
    CLUSTER,
    DEPLOYMENT,
    Home,
    claimed,
    home_of,
    homes,
    keep_copy,
    owner,
    state_folder,
)
from tfserve_kit.errors import (
    EngineUnavailable,
    Problem,
    ServerExists,
    ServerFailed,
    SpecError,
    UsageError,
)
from tfserve_kit.progress import SILENT, Progress

_MADE_OF, _PARTS = "tfkit.deployment", "tfkit.objects"  # annotations of the Deployment
_LOOK_S = 1.0
_SPARE_S = 60.0  # for what a change takes beside the replicas' own times
_CRASH_S = 5.0
_QUICK_S = 6.0  # for a list, where another cluster may be the current one, and far away


@dataclass(frozen=True, slots=True)
class _ObjectsPlan(Plan):
    """A plan for a cluster.

    Attributes:
        objects: what is applied, as the cluster's API has it.
        cluster: the namespace that it is applied to.
    """

    objects: tuple[Object, ...] = ()
    cluster: Cluster = field(default_factory=Cluster)

    @property
    def main(self) -> Object:
        """The Deployment among the objects."""
        return next(each for each in self.objects if each["kind"] == "Deployment")


class KubernetesEngine:
    """Runs servers as Deployments in the cluster that kubectl reaches; implements `Engine`."""

    name = "kubernetes"
    binds_here = False
    answers_here = False

    def available(self) -> Availability:
        """Say whether kubectl is here; never chosen by `auto`.

        Which cluster is meant says the deployment: `prepare` asks it.
        """
        try:
            reason = f"{kubectl.command()} is there"
        except EngineUnavailable as error:
            return Availability(usable=False, reason=error.message, remedy=error.remedy)
        return Availability(usable=True, reason=reason, is_costly=True)

    def plan(self, spec: Spec, files: Mapping[str, str]) -> _ObjectsPlan:
        """Return the objects and the command that applies them; see `Engine.plan`."""
        cluster = _cluster(spec)
        objects, shown = (
            _annotated(manifests.manifests(each, files), each)
            for each in (spec, without_secrets(spec))
        )
        text = kubectl.text_of(objects)
        return _ObjectsPlan(
            server_name=spec.server.name,
            engine=self.name,
            argv=cluster.argv(*kubectl.APPLY),
            files={},
            endpoints=_endpoints([_service_host(spec)], spec, scheme="dns"),
            models={name: model.base_path for name, model in spec.models.items()},
            deployment=spec.model_dump_json(),
            private={text: kubectl.text_of(shown)},
            replicas=spec.server.replicas,
            stdin=text,
            objects=tuple(objects),
            cluster=cluster,
        )  # fmt: skip

    def prepare(self, spec: Spec, *, progress: Progress = SILENT) -> None:
        """Check that what the deployment names is in the cluster; nodes pull images themselves.

        Raises:
            EngineUnavailable: no kubectl, no cluster, or no right to look.
            SpecError: a claim, an account, a Secret or a source of metrics is not there.
        """
        progress.step("asking the cluster")
        found = list(_lacking(_cluster(spec), spec))
        if found:
            raise SpecError("deployment", found)

    def start(
        self, plan: Plan, *, progress: Progress = SILENT, clock: Clock | None = None
    ) -> "_DeploymentHandle":
        """Apply the objects and wait until all pods are ready; see `Engine.start`.

        Raises:
            ServerFailed: a pod finds no node or does not become ready.
        """
        assert isinstance(plan, _ObjectsPlan)  # noqa: S101 (an engine starts its own plans)
        name, cluster = plan.server_name, plan.cluster
        what = f"cannot start server {name!r}"
        with claimed(state_folder(), name), contextlib.ExitStack() as undo:
            found = next(iter(self._in(cluster, name)), None)
            if found is not None:
                if found.state().phase in ALIVE:
                    by = f"deployment {manifests.object_name(name)}"
                    raise taken(name, by, is_fleet=True)
                found.stop(grace_s=0)
            _refuse_foreign(cluster, plan)
            cluster.apply(what, plan.objects, is_trial=True)
            undo.callback(shutil.rmtree, home_of(name), ignore_errors=True)
            undo.callback(_remove, cluster, name, _references(plan.objects), grace_s=0)
            cluster.apply(what, plan.objects)
            (handle,) = self._in(cluster, name)
            wrong = _Change(cluster, plan, progress, clock or SystemClock()).await_()
            if wrong and not _has_ended(handle):
                raise pods.failed(cluster, name, f"does not start: {wrong}")
            undo.pop_all()
            return handle

    def find(self, server_name: str) -> "_DeploymentHandle | None":
        """Return the server of that name; see `Engine.find`.

        It is looked for where it was started from here, or else in kubectl's current namespace.
        """
        home = home_of(server_name)
        is_known = owner(home) == self.name
        if not (is_known or kubectl.is_configured()):
            return None
        try:
            return next(iter(self._in(_remembered(home), server_name)), None)
        except EngineUnavailable:
            if is_known:
                raise
            return None

    def list(self) -> Sequence["_DeploymentHandle"]:
        """Return the servers of kubectl's current namespace, and others started from here.

        None where no cluster answers; see `Engine.list`.
        """
        places = {Cluster(): None} if kubectl.is_configured() else {}
        mine = (home for home in homes() if owner(home) == self.name)
        places |= {_remembered(home): None for home in mine}
        found: dict[str, _DeploymentHandle] = {}
        for cluster in places:
            with contextlib.suppress(EngineUnavailable, ServerFailed):
                found |= {each.uid: each for each in self._in(cluster)}
        return sorted(found.values(), key=lambda handle: handle.server_name)

    def _in(self, cluster: Cluster, server_name: str = "") -> Sequence["_DeploymentHandle"]:
        chosen = pods.selector(server_name) if server_name else f"--selector={pods.OURS}"
        found = cluster.items(
            "cannot look for servers", "deployments.apps", chosen,
            timeout_s=_QUICK_S,
        )  # fmt: skip
        ours = [each for each in found if _MADE_OF in each["metadata"].get("annotations", {})]
        return [
            _handle(cluster, each, home_of(each["metadata"]["labels"][pods.NAME])) for each in ours
        ]


class _DeploymentHandle(Home):
    """A server that is a Deployment; implements `ServerHandle` and `FleetHandle`."""

    engine = KubernetesEngine.name

    def __init__(self, cluster: Cluster, uid: str, made_of: str, home: Path) -> None:
        self.uid = uid
        self._cluster = cluster
        self._spec = Spec.model_validate_json(made_of)
        super().__init__(home)

    @property
    def endpoints(self) -> Endpoints:
        """Where it answers: its ready pods, or its Service while none is."""
        ready = [pod for pod in self._look().pods if pods.is_ready(pod)]
        hosts = [str(pod["status"]["podIP"]) for pod in ready]
        if not hosts:
            return _endpoints([_service_host(self._spec)], self._spec, scheme="dns")
        return _endpoints(hosts, self._spec)

    def state(self) -> State:
        """Look at the pods: one that is ready is enough."""
        return self._look().state()

    def replicas(self) -> list[Replica]:
        """Return what each pod is doing; see `ServerHandle.replicas`."""
        return [self._replica(pod) for pod in self._look().pods]

    def _replica(self, pod: Object) -> Replica:
        address = pod.get("status", {}).get("podIP", "")
        return Replica(
            name=pods.shown(pod["metadata"]["name"]),
            node=pod["spec"].get("nodeName", ""),
            state=pods.state_of(pod),
            endpoints=_endpoints([address], self._spec) if address else None,
            reason=pods.reason(pod),
        )

    def _look(self) -> pods.Look:
        found = pods.look(self._cluster, self.server_name)
        return found if found.uid == self.uid else pods.Look()

    def logs(self, *, tail: int | None = None, follow: bool = False) -> Iterator[str]:
        """Yield the lines of all pods, with their names if there are several."""
        found = self._look()
        if found.deployment is None or (tail == 0 and not follow):
            return
        if follow:
            yield from pods.Followed(self._cluster, self._look, tail).lines()
            return
        told = pods.told(self._cluster, self.server_name, tail, is_one=len(found.pods) == 1)
        yield from told[-tail:] if tail else told

    def stop(self, *, grace_s: float = 10.0) -> None:
        """Delete it and all that belongs to it; pods end as their own grace period says."""
        found = pods.look(self._cluster, self.server_name)
        if found.deployment is not None and found.uid != self.uid:
            return  # the name was given anew
        if found.deployment is not None:
            _remove(self._cluster, self.server_name, _parts(found.deployment), grace_s=grace_s)
        if owner(self._home) == self.engine:
            shutil.rmtree(self._home, ignore_errors=True)

    def update(
        self,
        plan: Plan,
        *,
        is_forced: bool = False,
        progress: Progress = SILENT,
        clock: Clock | None = None,
    ) -> "_DeploymentHandle":
        """Make the server what another plan says, pod by pod; see `FleetHandle.update`.

        Raises:
            UsageError: the plan is for another namespace or context.
            ServerFailed: a pod did not become ready; all is again as it was before.
        """
        assert isinstance(plan, _ObjectsPlan)  # noqa: S101 (an engine starts its own plans)
        here, wanted = self._cluster, plan.cluster
        if (wanted.namespace or here.namespace, wanted.context or here.context) != (
            here.namespace,
            here.context,
        ):
            raise UsageError(
                f"server {self.server_name!r} is in {_where(here)}, and the deployment says "
                f"{_where(wanted)}",
                remedy=f"`tfkit stop {self.server_name}`, and serve it anew",
            )
        _Change(self._cluster, plan, progress, clock or SystemClock()).apply(is_forced=is_forced)
        found = pods.look(self._cluster, self.server_name)
        if found.deployment is None:
            raise ServerFailed(
                f"server {self.server_name!r} was deleted meanwhile",
                remedy="ask whoever may delete Deployments there, then serve it again",
            )
        return _handle(self._cluster, found.deployment, self._home)


def _cluster(spec: Spec) -> Cluster:
    return Cluster(spec.kubernetes.namespace or "", spec.kubernetes.context or "")


def _where(cluster: Cluster) -> str:
    context = f"context {cluster.context!r}" if cluster.context else "the current context"
    return f"namespace {cluster.namespace!r} of {context}" if cluster.namespace else context


def _remembered(home: Path) -> Cluster:
    """Return the cluster that a server was started in from this machine; else the current one."""
    try:
        known = json.loads((home / CLUSTER).read_text("utf-8"))
        return Cluster(known["namespace"], known["context"])
    except (OSError, ValueError, KeyError, TypeError):
        return Cluster()


def _handle(cluster: Cluster, deployment: Object, home: Path) -> _DeploymentHandle:
    """Return a handle of a Deployment, with a copy of what the cluster keeps of it."""
    made_of = deployment["metadata"]["annotations"][_MADE_OF]
    cluster = cluster.settled(deployment["metadata"]["namespace"])
    where = json.dumps({"namespace": cluster.namespace, "context": cluster.context})
    keep_copy(home, KubernetesEngine.name, {DEPLOYMENT: made_of, CLUSTER: where})
    return _DeploymentHandle(cluster, deployment["metadata"]["uid"], made_of, home)


def _has_ended(handle: _DeploymentHandle) -> bool:
    """Say whether a server ended by itself; the cluster may just be starting it once more."""
    found = wait_until(
        lambda: handle.state().exit_code,
        timeout_s=_CRASH_S,
        interval_s=_LOOK_S,
        clock=SystemClock(),
    )
    return bool(found)


def _refuse_foreign(cluster: Cluster, plan: _ObjectsPlan) -> None:
    """Refuse to take over objects that have our names and are somebody else's."""
    what = f"cannot start server {plan.server_name!r}"
    key, _, ours = pods.OURS.partition("=")
    for each in cluster.items(what, *_references(plan.objects)):
        if each["metadata"].get("labels", {}).get(key) != ours:
            raise ServerExists(
                f"{reference(each)} is there already, and tfkit did not make it",
                remedy="give another --name, or delete it",
            )


# The plan


def _annotated(objects: Sequence[Object], spec: Spec) -> list[dict[str, Any]]:
    """Return the objects, of which the Deployment says what they were made of, and which."""
    noted = {_MADE_OF: spec.model_dump_json(), _PARTS: json.dumps(_references(objects))}
    found = []
    for each in objects:
        metadata = dict(each["metadata"])
        if each["kind"] == "Deployment":
            metadata["annotations"] = metadata.get("annotations", {}) | noted
        found.append({**each, "metadata": metadata})
    return found


def _references(objects: Sequence[Object]) -> list[str]:
    return [reference(each) for each in objects]


def _parts(deployment: Object) -> list[str]:
    """Return what belongs to a Deployment, itself included."""
    found: list[str] = json.loads(deployment["metadata"]["annotations"][_PARTS])
    return found


def _service_host(spec: Spec) -> str:
    name = manifests.grpc_service(spec.server.name)
    return f"{name}.{spec.kubernetes.namespace}" if spec.kubernetes.namespace else name


def _endpoints(hosts: Sequence[str], spec: Spec, scheme: str = "") -> Endpoints:
    """Return where pods answer, or a name that stands for them."""
    server = spec.server
    ports = dict(zip(("grpc", "http"), server.pod_ports, strict=True))
    is_tls = bool(server.flags.get("ssl_config_file"))
    names = {"grpc": "grpcs" if is_tls else "grpc", "http": "http"}

    def urls(protocol: str) -> str:
        shown = [f"[{host}]" if ":" in host else host for host in hosts]
        name = names[protocol]
        if scheme:
            name = scheme if name == "grpc" else f"{scheme}+{name}"
        slash = "/" if name == scheme else ""
        return ",".join(f"{name}://{slash}{host}:{ports[protocol]}" for host in shown)

    return Endpoints(urls("grpc"), urls("http"))


# What is checked before


def reached(spec: Spec | None) -> str:
    """Return which cluster answers for a deployment, or for none.

    Raises:
        EngineUnavailable: none does.
    """
    cluster = _cluster(spec) if spec else Cluster()
    told = cluster.read("no cluster answers", "version", timeout_s=_QUICK_S)
    version = told.get("serverVersion", {}).get("gitVersion", "of an unknown version")
    return f"Kubernetes {version} answers in {_where(cluster)}"


def _lacking(cluster: Cluster, spec: Spec) -> Iterator[Problem]:
    """Yield what the deployment names and the cluster does not have."""
    options, what = spec.kubernetes, "cannot look at the cluster"
    wanted = {
        "claim": ("persistentvolumeclaim", options.claim),
        "service_account": ("serviceaccount", options.service_account),
        "credentials_secret": ("secret", options.credentials_secret),
        "env_secret": ("secret", options.env_secret),
        "tls_secret": ("secret", manifests.tls_secret(spec)),
        "pull_secret": ("secret", options.pull_secret),
    }
    cluster.items(what, "deployments.apps", "--selector=none=none")  # says whether it answers
    for key, (kind, name) in wanted.items():
        if name and not _is_there(cluster, kind, name):
            yield Problem(
                f"kubernetes.{key}",
                f"there is no {kind} {name!r} in {_where(cluster)}",
                f"`kubectl get {kind}s` lists them: create it, or name another",
            )
    if options.max_replicas:
        group = "custom.metrics.k8s.io" if options.metric else "metrics.k8s.io"
        served = cluster.run(what, "api-versions").split()
        if not any(each.startswith(f"{group}/") for each in served):
            provider = "an adapter such as prometheus-adapter" if options.metric else (
                "metrics-server")  # fmt: skip
            yield Problem(
                "kubernetes.max_replicas",
                f"the cluster has no metrics ({group}), so no replica would ever be added",
                f"install {provider}, or leave max_replicas out",
            )


def _is_there(cluster: Cluster, kind: str, name: str) -> bool:
    """Say whether an object is there; the pods will tell who may not look."""
    try:
        return bool(cluster.items("cannot look at the cluster", f"{kind}/{name}"))
    except EngineUnavailable:
        return True


# What is changed


def _patience_s(plan: _ObjectsPlan) -> float:
    """Return how long a change may take: Kubernetes' own deadline is for each pod."""
    spec = Spec.model_validate_json(plan.deployment)
    deadline_s = float(plan.main["spec"].get("progressDeadlineSeconds", 600))
    most = spec.kubernetes.max_replicas or spec.server.replicas
    return most * (deadline_s + manifests.stopping_s(spec)) + _SPARE_S


@dataclass(frozen=True, slots=True)
class _Change:
    """A change of a server while it serves."""

    cluster: Cluster
    plan: _ObjectsPlan
    progress: Progress
    clock: Clock

    def apply(self, *, is_forced: bool) -> None:
        """Make the objects what is wanted and wait until they are; nothing changes if they are so.

        Raises:
            ServerFailed: it did not come about, and was taken back.
        """
        name = self.plan.server_name
        what = f"cannot update server {name!r}"
        self.cluster.apply(what, self.plan.objects, is_trial=True)
        before = self._before(what)
        template = self._template(what) if is_forced else None
        with contextlib.ExitStack() as undo:
            undo.callback(self._restore, before)
            self.progress.step(f"updating {manifests.object_name(name)}")
            was, is_ours = self._own(before)
            if was is not None and not is_ours:
                self._hand_over(what, was)
            self.cluster.apply(what, self.plan.objects, is_forced=was is None and is_ours)
            if template and template == self._template(what):
                manager = f"--field-manager={kubectl.MANAGER}"
                self.cluster.run(what, "rollout", "restart", reference(self.plan.main), manager)
            if wrong := self.await_():
                # Before it is taken back: the pods know why.
                said = f"was not updated and serves as before: {wrong}"
                error = pods.failed(self.cluster, name, said)
                undo.close()
                if self.await_(is_back=True):
                    error.message += "; it is not yet all as it was"
                raise error
            undo.pop_all()
        stale = sorted(before.keys() - set(_references(self.plan.objects)))
        _delete(self.cluster, what, stale)

    def await_(self, *, is_back: bool = False) -> str:
        """Wait until all pods are as they should be; return what prevents it, or nothing."""
        since_s: dict[str, float] = {}

        def look() -> str | None:
            found = pods.look(self.cluster, self.plan.server_name)
            if found.deployment is None:
                return "it was deleted"
            self.progress.advance(sum(map(pods.is_ready, found.newest())), found.wanted)
            if found.is_done():
                return ""
            return None if is_back else pods.lasting(found, since_s, self.clock.now_s())

        patience_s = _patience_s(self.plan)
        found = wait_until(look, timeout_s=patience_s, interval_s=_LOOK_S, clock=self.clock)
        return "not all pods are ready in time" if found is None else found

    def _before(self, what: str) -> dict[str, Object]:
        """Return by reference what tfkit applied last of what is there."""
        found = pods.look(self.cluster, self.plan.server_name)
        parts = _parts(found.deployment) if found.deployment else []
        wanted = dict.fromkeys([*parts, *_references(self.plan.objects)])
        there = self.cluster.items(what, *wanted, "--show-managed-fields")
        known = {reference(each): kubectl.applied(each) for each in there}
        return {name: each for name, each in known.items() if each is not None}

    def _template(self, what: str) -> Object:
        """Return what pods are made of now."""
        found = self.cluster.read(what, "get", reference(self.plan.main))
        template: Object = found["spec"]["template"]
        return template

    def _own(self, before: Mapping[str, Object]) -> tuple[int | None, bool]:
        """Return how many replicas tfkit asked for before, and whether it still asks for some.

        None and False: their number is an autoscaler's.
        """
        was = before.get(reference(self.plan.main), {}).get("spec", {}).get("replicas")
        return was, "replicas" in self.plan.main["spec"]

    def _hand_over(self, what: str, replicas: int | None) -> None:
        """Keep the number of replicas in another name, or with None give it up.

        A field that its only owner no longer applies is removed, which would mean one replica.
        """
        now = self.plan.main
        metadata = {"name": now["metadata"]["name"]}
        spec = {} if replicas is None else {"spec": {"replicas": replicas}}
        kept = {"apiVersion": now["apiVersion"], "kind": now["kind"], "metadata": metadata, **spec}
        self.cluster.apply(what, [kept], is_forced=True, manager=f"{kubectl.MANAGER}-handover")

    def _restore(self, before: Mapping[str, Object]) -> None:
        """Make all as it was; `kubectl rollout undo` would bring back the pods' template alone."""
        what = f"cannot take back the update of server {self.plan.server_name!r}"
        self.progress.step("taking it back")
        self.cluster.apply(what, list(before.values()), is_forced=True)
        if self._own(before)[0] is not None and not self._own(before)[1]:
            self._hand_over(what, None)
        new = [each for each in _references(self.plan.objects) if each not in before]
        _delete(self.cluster, what, new)


# What is removed


def _remove(cluster: Cluster, name: str, parts: Sequence[str], *, grace_s: float) -> None:
    """Delete a server's objects and wait until its pods have ended."""
    what = f"cannot stop server {name!r}"
    mine = pods.selector(name)
    first = [each for each in parts if each.startswith("deployment")]
    cluster.run(what, "delete", *first, "--ignore-not-found", "--wait=false")
    if not grace_s:
        _hurry(cluster, what, mine)
    wait_until(
        lambda: None if cluster.items(what, "pods", mine) else True,
        timeout_s=_grace_s(cluster, what, mine) + _SPARE_S,
        interval_s=_LOOK_S,
        clock=SystemClock(),
    )
    _delete(cluster, what, [each for each in parts if each not in first])


def _hurry(cluster: Cluster, what: str, mine: str) -> None:
    """End pods at once, but not before nobody makes new ones in their place."""
    wait_until(
        lambda: None if cluster.items(what, "replicasets.apps", mine) else True,
        timeout_s=_QUICK_S,
        interval_s=_LOOK_S,
        clock=SystemClock(),
    )
    more = ("--grace-period=0", "--force", "--wait=false", "--ignore-not-found")
    cluster.run(what, "delete", "pods", mine, *more)


def _grace_s(cluster: Cluster, what: str, mine: str) -> float:
    found = cluster.items(what, "pods", mine)
    return float(max((each["spec"].get("terminationGracePeriodSeconds", 30) for each in found),
                     default=0))  # fmt: skip


def _delete(cluster: Cluster, what: str, references: Sequence[str]) -> None:
    if references:
        cluster.run(what, "delete", *references, "--ignore-not-found", "--wait=false")
