"""The pods of a server on Kubernetes: what they do, why they do not, and what they wrote."""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO

from tfserve_kit.engines import kubectl, manifests
from tfserve_kit.engines.base import ALIVE, LOG_TAIL, Phase, State, outlasting, together
from tfserve_kit.engines.kubectl import Cluster, Object
from tfserve_kit.errors import ServerFailed, TfkitError

OURS = "app.kubernetes.io/managed-by=tfkit"
NAME = "app.kubernetes.io/instance"
_REVISION = "deployment.kubernetes.io/revision"
_HASH = "pod-template-hash"
_KINDS = "deployments.apps,replicasets.apps,pods"
_LOOK_S = 1.0
_LAST_S = 8.0  # how long the last lines of a log are waited for
# How long may last what keeps a container from starting: some of it passes by itself.
_PATIENCE_S = {
    "CrashLoopBackOff": 0.0,
    "InvalidImageName": 0.0,
    "ErrImageNeverPull": 3.0,
    "ErrImagePull": 15.0,
    "ImagePullBackOff": 15.0,
    "CreateContainerConfigError": 10.0,
    "CreateContainerError": 10.0,
    "RunContainerError": 10.0,
}
_REFUSED_S = 5.0  # a quota or a rule of the cluster keeps pods from being made
_CLAIM_S = 10.0


def selector(server_name: str) -> str:
    """Return what picks a server's objects."""
    return f"--selector={OURS},{NAME}={server_name}"


def shown(pod: str) -> str:
    """Return what a pod is called here: as its server, without the prefix of all that is ours."""
    return pod.removeprefix(manifests.object_name(""))


# What runs


@dataclass(frozen=True, slots=True)
class Look:
    """A server at one moment; without a Deployment it is gone.

    Attributes:
        pods: those that were not told to end, by name.
        current: hash of the template that pods should have.
    """

    deployment: Object | None = None
    pods: tuple[Object, ...] = ()
    current: str = ""

    @property
    def uid(self) -> str:
        """What tells the Deployment from another of its name; empty once it is gone."""
        return str(self.deployment["metadata"]["uid"]) if self.deployment else ""

    def state(self) -> State:
        """Return where the server is in its life: one pod that is ready is enough."""
        if self.deployment is None:
            return State(Phase.GONE)
        before = State(Phase.STARTING if self.wanted else Phase.EXITED)
        return together([state_of(each) for each in self.pods]) or before

    @property
    def wanted(self) -> int:
        """How many pods there should be."""
        return int((self.deployment or {}).get("spec", {}).get("replicas", 0))

    def newest(self) -> list[Object]:
        """Return the pods that are as the Deployment says now."""
        return [pod for pod in self.pods if pod["metadata"]["labels"].get(_HASH) == self.current]

    def is_done(self) -> bool:
        """Say whether all pods are as the Deployment says and ready, and no others are there."""
        told = (self.deployment or {}).get("status", {})
        counts = {told.get(f"{each}eplicas", 0) for each in ("r", "updatedR", "availableR")}
        return self.is_seen() and counts == {self.wanted}

    def is_seen(self) -> bool:
        """Say whether what the cluster says of the Deployment is about what was applied last."""
        made = self.deployment or {"metadata": {}}
        seen = made.get("status", {}).get("observedGeneration", 0)
        return bool(seen >= made["metadata"].get("generation", 0))

    def condition(self, kind: str, status: str) -> Object:
        """Return a condition of the Deployment if it has that status; else nothing."""
        told = (self.deployment or {}).get("status", {}).get("conditions", [])
        wanted = (kind, status)
        return next((each for each in told if (each["type"], each["status"]) == wanted), {})


def look(cluster: Cluster, server_name: str) -> Look:
    """Look at a server; errors are those of `Cluster.run`."""
    what = f"cannot ask for server {server_name!r}"
    found = cluster.items(what, _KINDS, selector(server_name))
    by_kind: dict[str, list[Object]] = {"Deployment": [], "ReplicaSet": [], "Pod": []}
    for each in found:
        by_kind[each["kind"]].append(each)
    deployment = next(iter(by_kind["Deployment"]), None)
    if deployment is None:
        return Look()
    pods = [each for each in by_kind["Pod"] if _is_wanted(each)]
    return Look(
        deployment,
        tuple(sorted(pods, key=lambda pod: str(pod["metadata"]["name"]))),
        _current(deployment, by_kind["ReplicaSet"]),
    )


def _current(deployment: Object, sets: Sequence[Object]) -> str:
    revision = deployment["metadata"].get("annotations", {}).get(_REVISION)
    for each in sets:
        if each["metadata"].get("annotations", {}).get(_REVISION) == revision:
            return str(each["metadata"]["labels"].get(_HASH, ""))
    return ""


def _is_wanted(pod: Object) -> bool:
    """Say whether a pod was neither told to end nor has been replaced, as one evicted is."""
    over = {"Failed", "Succeeded"}
    return "deletionTimestamp" not in pod["metadata"] and pod["status"].get("phase") not in over


def is_ready(pod: Object) -> bool:
    """Say whether a pod gets requests: each of its models has an available version."""
    conditions = pod["status"].get("conditions", ())
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def _container(pod: Object) -> Object:
    """Return the state of the server's container; nothing before it was made."""
    told = pod["status"].get("containerStatuses", ())
    mine = (each for each in told if each["name"] == manifests.SERVER_CONTAINER)
    return next(mine, {})


def _ended(pod: Object) -> Object:
    """Return how the container ended, perhaps before it began anew; nothing if it never did."""
    told = _container(pod)
    now, last = told.get("state", {}), told.get("lastState", {})
    found: Object = now.get("terminated") or last.get("terminated") or {}
    return found


def _waiting(pod: Object) -> Object:
    found: Object = _container(pod).get("state", {}).get("waiting", {})
    return found


def state_of(pod: Object) -> State:
    """Return where a pod is in its life."""
    if is_ready(pod):
        return State(Phase.RUNNING)
    if (ended := _ended(pod)) and "running" not in _container(pod)["state"]:
        return State(Phase.EXITED, ended.get("exitCode"))
    return State(Phase.STARTING)


def reason(pod: Object) -> str:
    """Return why a pod is not ready, in the words of the cluster; nothing if it is."""
    if is_ready(pod):
        return ""
    if (waiting := _waiting(pod)).get("reason") in _PATIENCE_S:
        return _joined(waiting)
    if ended := _ended(pod):
        return f"the server ended with exit status {ended.get('exitCode')} ({ended.get('reason')})"
    placed = [
        each for each in pod["status"].get("conditions", ()) if each["type"] == "PodScheduled"
    ]
    unplaced = next((each for each in placed if each["status"] == "False"), None)
    if unplaced:
        return _joined(unplaced)
    return _joined(waiting) if waiting else str(pod["status"].get("message", ""))


def _joined(told: Object) -> str:
    return ": ".join(str(told[key]) for key in ("reason", "message") if told.get(key))


def lasting(found: Look, since_s: dict[str, float], now_s: float) -> str | None:
    """Return what prevents pods from being ready for too long; None if nothing does yet."""
    if not found.is_seen():
        return None
    if found.condition("Progressing", "False").get("reason") == "ProgressDeadlineExceeded":
        reasons = filter(None, map(reason, found.newest()))
        return next(reasons, "the pods do not become ready before the deadline")
    faults = {kind: (patience_s, why) for kind, patience_s, why in _faults(found)}
    return outlasting(faults, since_s, now_s)


def _faults(found: Look) -> Iterator[tuple[str, float, str]]:
    """Yield what is wrong now: its kind, how many seconds it may last, and why it is so."""
    if refused := found.condition("ReplicaFailure", "True"):
        yield "refused", _REFUSED_S, str(refused.get("message", "no pod can be made"))
    for pod in found.newest():
        waits = _waiting(pod).get("reason", "")
        if is_ready(pod):
            continue
        if waits in _PATIENCE_S:
            # The kubelet goes from trying to pull to waiting, and back.
            kind = "pull" if waits in {"ErrImagePull", "ImagePullBackOff"} else waits
            yield kind, _PATIENCE_S[waits], reason(pod)
        elif _container(pod).get("lastState", {}).get("terminated"):
            yield "ended", 0.0, reason(pod)
        elif "persistentvolumeclaim" in (why := reason(pod)):
            yield "claim", _CLAIM_S, why


def failed(cluster: Cluster, name: str, what: str) -> ServerFailed:
    """Return an error about a server, with the log of what failed and a remedy."""
    found = look(cluster, name)
    broken = next((pod for pod in found.newest() if not is_ready(pod)), None)
    log: list[str] = []
    if broken is not None:
        pod = broken["metadata"]["name"]
        if events := _events(cluster, pod):
            what = f"{what} ({events[-1]})" if events[-1] not in what else what
        log = _log_of(cluster, pod)
    remedies = (known for part, known in _REMEDIES.items() if part in what)
    described = manifests.object_name(name)
    describe = " ".join(cluster.argv("describe", "pods", f"--selector={NAME}={name}"))
    return ServerFailed(
        f"deployment {described} {what}",
        log_tail=log,
        remedy=next(remedies, f"`{describe}` tells more"),
    )


_REMEDIES = {
    "ErrImageNeverPull": "load the image on every node, or let nodes pull it: pull in [docker]",
    "ImagePull": "push the image to a registry that the nodes reach, check its name, or give "
    "pull_secret in [kubernetes]",
    "InvalidImageName": "check image in [docker]",
    "persistentvolumeclaim": "`kubectl get pvc` shows whether the claim is there and bound",
    "hostPath": "every node needs the folder: share it, or set node_selector in [kubernetes]",
    "secret ": "`kubectl get secrets` lists them: create it, or name another in [kubernetes]",
    "Insufficient": "lower cpus, memory or replicas, or add nodes; a change needs one pod more",
    "node selector": "`kubectl get nodes --show-labels` shows what nodes are; see node_selector",
    "untolerated taint": "see tolerations in [kubernetes]",
    "exceeded quota": "`kubectl describe quota` shows what is left: lower cpus, memory or replicas",
    "PodSecurity": "`kubectl get namespace --show-labels` shows which rules it has; host_path "
    "and root users need the level `privileged`",
    "exit status": "the models did not become available, or the server ended: see the log; "
    "`ready_timeout_s` says how long a pod may take",
    "probe failed": "the models did not become available: see the log; `ready_timeout_s` says how "
    "long a pod may take",
}


_USUAL = {"MissingClusterDNS", "DNSConfigForming"}


def _events(cluster: Cluster, pod: str) -> list[str]:
    """Return what the cluster warned of a pod, oldest first; nothing if it may not be asked.

    What concerns every pod of a cluster prevents none from running.
    """
    chosen = f"--field-selector=involvedObject.name={pod},type=Warning"
    try:
        found = cluster.items("cannot look at events", "events", chosen)
    except TfkitError:
        return []
    found = [each for each in found if each.get("reason") not in _USUAL]
    found.sort(key=lambda each: str(each.get("lastTimestamp") or each.get("eventTime") or ""))
    return [" ".join(str(each.get("message", "")).split())[:400] for each in found]


def _log_of(cluster: Cluster, pod: str) -> list[str]:
    """Return the last lines of a pod; of one that has just begun anew, those from before."""
    for more in (("--previous",), ()):
        with contextlib.suppress(TfkitError):
            text = cluster.run("cannot read the log", "logs", pod, f"--tail={LOG_TAIL}", *more)
            if text.strip():
                return text.splitlines()
    return []


# Logs


def told(cluster: Cluster, name: str, tail: int | None, *, is_one: bool) -> list[str]:
    """Return the last lines of all pods by time, with their names if there are several."""
    text = cluster.run(
        f"cannot read the log of server {name!r}", "logs", selector(name),
        f"--tail={-1 if tail is None else tail}", "--prefix", "--timestamps", "--ignore-errors",
        "--max-log-requests=1000", timeout_s=3 * kubectl.TIMEOUT_S,
    )  # fmt: skip
    lines = []
    for line in text.splitlines():
        place, _, rest = line.partition(" ")  # [pod/NAME/CONTAINER] TIME TEXT
        if place.startswith("[pod/"):  # else it says which pod has no log yet
            time, _, said = rest.partition(" ")
            pod = shown(place.split("/")[1])
            lines.append((time, said if is_one else f"{pod} | {said}"))
    return [said for _, said in sorted(lines, key=lambda each: each[0])]


class Followed:
    """The logs of all pods, also of those that come later, until the server has ended."""

    def __init__(self, cluster: Cluster, look: Callable[[], Look], tail: int | None) -> None:
        self._cluster, self._look = cluster, look
        self._tail = -1 if tail is None else tail
        self._lines: queue.Queue[str] = queue.Queue()
        self._known: dict[str, threading.Thread] = {}
        self._end = contextlib.ExitStack()

    def lines(self) -> Iterator[str]:
        """Yield lines as they come; what follows them ends with the iterator."""
        with self._end:
            while (found := self._look()).state().phase in ALIVE:
                self._follow(found)
                yield from self._come()
            self._follow(found, is_last=True)
            for each in self._known.values():
                each.join(_LAST_S)
            yield from self._come()

    def _come(self) -> Iterator[str]:
        with contextlib.suppress(queue.Empty):
            yield self._lines.get(timeout=_LOOK_S)
            while True:
                yield self._lines.get_nowait()

    def _follow(self, found: Look, *, is_last: bool = False) -> None:
        for pod in found.pods:
            name = pod["metadata"]["name"]
            thread = self._known.get(name)
            is_followed = thread and (is_last or thread.is_alive())
            if "containerID" not in _container(pod) or is_followed:
                continue
            is_first = not self._known
            begun = ["--since=2s"] if thread else [f"--tail={self._tail if is_first else -1}"]
            process = self._end.enter_context(
                self._cluster.following("logs", "--follow", name, *begun)
            )
            prefix = f"{shown(name)} | " if found.wanted > 1 else ""
            read = threading.Thread(target=self._read, args=(process.stdout, prefix), daemon=True)
            self._known[name] = read
            read.start()

    def _read(self, stream: IO[str], prefix: str) -> None:
        with contextlib.suppress(ValueError):  # closed with the block
            for line in stream:
                self._lines.put(prefix + line.rstrip("\n"))
