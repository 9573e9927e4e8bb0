"""Servers as services of a Docker swarm: replicas on several machines, with or without a gateway.

The truth is in the swarm: a service's labels say what it was deployed with, so any manager can find
it, and a folder on this machine is a copy::

    <state>/servers/<name>/service   deployment.json   *.txt

A change replaces one replica after the other, and is taken back by Swarm itself if one does not
become healthy.
"""

import contextlib
import json
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tfserve_kit.clock import Clock, SystemClock, wait_until
from tfserve_kit.deployment.spec import Spec
from tfserve_kit.engines import services
from tfserve_kit.engines.base import (
    ALIVE,
    LOG_TAIL,
    Availability,
    Endpoints,
    Phase,
    Plan,
    Replica,
    State,
    endpoints,
    outlasting,
    taken,
    together,
)
from tfserve_kit.engines.container import SERVER
from tfserve_kit.engines.docker import TIMEOUT_S, connected, lines, require_readable, translated
from tfserve_kit.engines.records import (
    DEPLOYMENT,
    SERVICE,
    Home,
    claimed,
    home_of,
    keep_copy,
    owner,
    state_folder,
)
from tfserve_kit.engines.services import ServicePlan
from tfserve_kit.errors import EngineUnavailable, ServerFailed, UsageError
from tfserve_kit.progress import SILENT, Progress

_LOOK_S = 0.25
_TASK_ID = "com.docker.swarm.task.id="
# How long what prevents a replica from running may last: resources, or what a node lacks.
_PATIENCE_S = {"pending": 10.0, "rejected": 3.0, "failed": 0.0, "complete": 0.0}
_SPARE_S = 60.0  # for what a change takes beside the replicas' own times
_ENDED = re.compile(r"task: non-zero exit \(\d+\)")  # by itself; else the cause follows
_OVER = {"complete", "failed", "shutdown", "rejected", "remove", "orphaned"}
_BROKEN = {"failed", "rejected", "complete"}  # a server has no reason to complete
_WANTED = {"running", "ready", "accepted"}  # states that the swarm has in mind for a task
_GOING_ON = {"updating", "rollback_started"}
_TAKEN_BACK = {"rollback_completed", "rollback_paused", "paused"}


class SwarmEngine:
    """Runs servers as services of a swarm that this machine manages; implements `Engine`."""

    name = "swarm"
    binds_here = False
    answers_here = True

    def available(self) -> Availability:
        """Say whether the daemon here is a manager; never chosen by `auto`."""
        try:
            with _asked("cannot ask about the swarm") as api:
                swarm = api.info()["Swarm"]
        except EngineUnavailable as error:
            return Availability(usable=False, reason=error.message, remedy=error.remedy)
        if not swarm.get("ControlAvailable"):
            is_worker = swarm.get("LocalNodeState") == "active"
            return Availability(
                usable=False,
                reason="this machine is a worker of a swarm, and managers alone deploy"
                if is_worker
                else "the Docker daemon here is not part of a swarm",
                remedy="run tfkit on a manager, or set DOCKER_HOST to one"
                if is_worker
                else "`docker swarm init`, or use --engine docker",
            )
        nodes = swarm.get("Nodes", 1)
        reason = f"this machine manages a swarm of {nodes} node{'s' if nodes > 1 else ''}"
        return Availability(usable=True, reason=reason, is_costly=True)

    def plan(self, spec: Spec, files: Mapping[str, str]) -> ServicePlan:
        """Return the services, their files and endpoints; see `Engine.plan`."""
        return services.plan(spec, files, home=home_of(spec.server.name))

    def prepare(self, spec: Spec, *, progress: Progress = SILENT) -> None:
        """Check what can be known before; nodes pull images by themselves.

        Raises:
            EngineUnavailable: no swarm, or the replicas' user could not read a model.
            UsageError: the deployment asks for what a swarm does not have.
        """
        if spec.docker.gpu:
            raise UsageError(
                "the swarm engine cannot ask for GPUs",
                remedy="make them the default runtime of the nodes and set [swarm] constraints, "
                "or use --engine docker",
            )
        require_readable(spec)
        found = self.available()
        if not found.usable:
            raise EngineUnavailable(found.reason, remedy=found.remedy)
        most, replicas = spec.swarm.max_per_node, spec.server.replicas
        if spec.gateway and most and replicas + 1 > most * (nodes := _nodes_in_use()):
            progress.note(
                f"Warning: no update will find room: a new replica starts before an old one ends, "
                f"and {nodes} node{'s' if nodes > 1 else ''} with max_per_node = {most} take "
                f"{most * nodes}: raise max_per_node, lower replicas, or add nodes"
            )

    def start(
        self, plan: Plan, *, progress: Progress = SILENT, clock: Clock | None = None
    ) -> "_ServiceHandle":
        """Create the services and wait until all replicas run; see `Engine.start`.

        Raises:
            ServerFailed: a replica finds no node, or its node lacks what it needs.
        """
        assert isinstance(plan, ServicePlan)  # noqa: S101 (an engine starts its own plans)
        name, home = plan.server_name, home_of(plan.server_name)
        with (
            claimed(state_folder(), name),
            _asked(f"cannot start server {name!r}") as api,
            contextlib.ExitStack() as undo,
        ):
            if (found := self.find(name)) is not None:
                if found.state().phase in ALIVE:
                    raise taken(name, f"service {services.service_name(name)}", is_fleet=True)
                found.stop(grace_s=0)
            undo.callback(_remove, api, name)
            undo.callback(shutil.rmtree, home, ignore_errors=True)
            _lay(api, plan)
            for service in plan.services.values():
                _create(api, service)
            service = _known(api, services.service_name(name))
            handle = _handle(service, home)
            change = _Change(api, plan, progress, clock or SystemClock())
            wrong = [change.await_(each) for each in plan.services]
            if any(wrong) and not handle.state().exit_code:
                raise _failed(api, service["Spec"]["Name"], f"does not start: {max(wrong)}")
            undo.pop_all()
            return handle

    def find(self, server_name: str) -> "_ServiceHandle | None":
        """Return the server of that name; see `Engine.find`."""
        try:
            found = self._all()
        except EngineUnavailable:
            if owner(home_of(server_name)) == self.name:
                raise
            return None
        return next((each for each in found if each.server_name == server_name), None)

    def list(self) -> Sequence["_ServiceHandle"]:
        """Return the servers of the swarm, none where no manager answers; see `Engine.list`."""
        try:
            return self._all()
        except EngineUnavailable:
            return []

    def _all(self) -> Sequence["_ServiceHandle"]:
        with _asked("cannot list the services") as api:
            if not api.info()["Swarm"].get("ControlAvailable"):
                raise EngineUnavailable(
                    "the Docker daemon here does not manage a swarm any more",
                    remedy="set DOCKER_HOST to a manager",
                )
            label = f"{services.ROLE}={services.REPLICAS}"
            found = api.services(filters={"label": label})
        handles = [_handle(each, home_of(each["Spec"]["Labels"][SERVER])) for each in found]
        return sorted(handles, key=lambda handle: handle.server_name)


class _ServiceHandle(Home):
    """A server that is a service of a swarm; implements `ServerHandle`."""

    engine = SwarmEngine.name

    def __init__(self, service_id: str, labels: Mapping[str, str], home: Path) -> None:
        self.service_id = service_id
        self._labels = labels
        super().__init__(home)

    @property
    def endpoints(self) -> Endpoints:
        """Where it answers: the gateway, or each node on which a replica runs."""
        deployment = self._deployment()
        planned = services.endpoints_of(deployment)
        if deployment.gateway:
            return planned
        running = [each.endpoints for each in self.replicas() if each.state.phase is Phase.RUNNING]
        found = [each for each in running if each]
        if not found:
            return planned
        return Endpoints(
            ",".join(each.grpc for each in found), ",".join(each.rest for each in found)
        )

    def state(self) -> State:
        """Look at the replicas: one that runs is enough."""
        with _asked(f"cannot ask for server {self.server_name!r}") as api:
            return _state(_tasks(api, self.service_id))

    def replicas(self) -> list[Replica]:
        """Return what each slot is doing; see `ServerHandle.replicas`."""
        with _asked(f"cannot ask for server {self.server_name!r}") as api:
            nodes = {each["ID"]: each for each in api.nodes()}
            here = api.info()["Swarm"]["NodeID"]
            found = _tasks(api, self.service_id)
        return [
            self._replica(slot, task, nodes, here) for slot, task in _slots(found or []).items()
        ]

    def _replica(
        self, slot: int, task: Mapping[str, Any], nodes: Mapping[str, Any], here: str
    ) -> Replica:
        node = nodes.get(task.get("NodeID", ""), {})
        return Replica(
            name=f"{self.server_name}.{slot}",
            node=node.get("Description", {}).get("Hostname", ""),
            state=_task_state(task),
            endpoints=self._own_endpoints(node, is_here=node.get("ID") == here),
            reason=_reason(task),
            address=_address_in(task, services.service_name(self.server_name)),
        )

    def _own_endpoints(self, node: Mapping[str, Any], *, is_here: bool) -> Endpoints | None:
        """Return where a replica answers: the only one, on this machine, as its clients know it."""
        deployment, address = self._deployment(), _address(node)
        if deployment.gateway or not address:
            return None
        is_known = is_here and deployment.server.replicas == 1
        host = deployment.server.host if is_known else address
        return endpoints(deployment.server.model_copy(update={"host": host}))

    def _deployment(self) -> Spec:
        return Spec.model_validate_json(self._labels[services.DEPLOYMENT])

    def logs(self, *, tail: int | None = None, follow: bool = False) -> Iterator[str]:
        """Yield the lines of all replicas, with their names if there are several."""
        import docker

        what = f"cannot read the log of server {self.server_name!r}"
        last = "all" if tail is None else tail
        with (
            _asked(what, timeout_s=None if follow else TIMEOUT_S) as api,
            contextlib.suppress(docker.errors.NotFound),
        ):
            if (tail == 0 and not follow) or (tasks := _tasks(api, self.service_id)) is None:
                return
            is_one = self._deployment().server.replicas == 1
            names = {
                each["ID"]: "" if is_one else f"{self.server_name}.{each.get('Slot', 0)} | "
                for each in tasks
            }
            told = _told(api, self.service_id, names, tail=last, follow=follow)
            if not follow:  # of each replica so many, but of all by time
                told = iter(sorted(told)[-(tail or 0) :])
            yield from (text for _, text in told)

    def stop(self, *, grace_s: float = 10.0) -> None:
        """Remove gateway and replicas, which end as their own grace period says, and the rest."""
        del grace_s  # what it is when services are created holds on all nodes
        with _asked(f"cannot stop server {self.server_name!r}") as api:
            found = _service(api, services.service_name(self.server_name))
            if found is not None and found["ID"] != self.service_id:
                return  # the name was given anew
            _remove(api, self.server_name)
        if owner(self._home) == self.engine:
            shutil.rmtree(self._home, ignore_errors=True)

    def update(
        self,
        plan: Plan,
        *,
        is_forced: bool = False,
        progress: Progress = SILENT,
        clock: Clock | None = None,
    ) -> "_ServiceHandle":
        """Make the server what another plan says, replica by replica; see `FleetHandle.update`.

        Raises:
            ServerFailed: a replica did not become healthy; all is again as it was before.
        """
        assert isinstance(plan, ServicePlan)  # noqa: S101 (an engine starts its own plans)
        name = services.service_name(self.server_name)
        with _asked(f"cannot update server {self.server_name!r}") as api:
            change = _Change(api, plan, progress, clock or SystemClock())
            _lay(api, plan)
            gone = [each for each in _services_of(api, self.server_name)
                    if each["Spec"]["Name"] not in plan.services]  # fmt: skip
            _end(api, gone)
            for service in plan.services.values():
                change.apply(service, is_forced=is_forced and service["Name"] == name)
            _sweep(api, self.server_name)
            return _handle(_known(api, name), self._home)


def _address(node: Mapping[str, Any]) -> str:
    """Return where a node is reached; a manager knows itself as 0.0.0.0."""
    managing: str = node.get("ManagerStatus", {}).get("Addr", "").rpartition(":")[0]
    return managing or str(node.get("Status", {}).get("Addr", ""))


def _address_in(task: Mapping[str, Any], network: str) -> str:
    """Return where a replica is found in a network; nothing where it is not part of it."""
    for each in task.get("NetworksAttachments") or ():
        if each["Network"]["Spec"]["Name"] == network and each.get("Addresses"):
            return str(each["Addresses"][0]).partition("/")[0]
    return ""


@contextlib.contextmanager
def _asked(what: str, *, timeout_s: int | None = TIMEOUT_S) -> Iterator[Any]:
    """Yield the daemon's API; its errors are translated."""
    with translated(what), connected(timeout_s=timeout_s) as client:
        yield client.api


def _nodes_in_use() -> int:
    """Return how many nodes take replicas, whatever constraints say."""
    with _asked("cannot ask for the nodes") as api:
        takes = ("ready", "active")
        nodes = api.nodes()
    return sum((each["Status"]["State"], each["Spec"]["Availability"]) == takes for each in nodes)


def _handle(service: Mapping[str, Any], home: Path) -> _ServiceHandle:
    """Return a handle of a service, with a copy of what the swarm keeps of it."""
    labels = service["Spec"]["Labels"]
    files = {DEPLOYMENT: labels[services.DEPLOYMENT], SERVICE: service["ID"]}
    keep_copy(home, SwarmEngine.name, files)
    return _ServiceHandle(service["ID"], labels, home)


# What runs


def _service(api: Any, name: str) -> Mapping[str, Any] | None:
    import docker

    try:
        found: Mapping[str, Any] = api.inspect_service(name)
    except docker.errors.NotFound:
        return None
    return found


def _known(api: Any, name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = api.inspect_service(name)
    return found


def _services_of(api: Any, server_name: str) -> list[Mapping[str, Any]]:
    """Return the services of a server, the gateway first: it is what must go first."""
    found = api.services(filters={"label": f"{SERVER}={server_name}"})
    return sorted(found, key=lambda each: each["Spec"]["Labels"][services.ROLE])


def _tasks(api: Any, service_id: str) -> list[Mapping[str, Any]] | None:
    """Return a service's tasks, oldest first; None without such a service."""
    if _service(api, service_id) is None:
        return None
    found = [each for each in api.tasks() if each.get("ServiceID") == service_id]
    return sorted(found, key=lambda task: str(task["CreatedAt"]))


def _slots(tasks: Sequence[Mapping[str, Any]]) -> dict[int, Mapping[str, Any]]:
    """Return by slot the task that says how it fares.

    That is one that runs; else the last one that ended by itself, for as long as none that was
    started in its place has come to run; else the one that is to run.
    """
    by_slot: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for each in tasks:
        by_slot[each.get("Slot", 0)].append(each)
    found = {}
    for slot, mine in sorted(by_slot.items()):
        wanted = [each for each in mine if each["DesiredState"] in _WANTED]
        if wanted:
            running = [each for each in wanted if _is_running(each)]
            alike = [each for each in mine if _is_alike(each["Spec"], wanted[-1]["Spec"])]
            broken = [each for each in alike if _is_broken(each)]
            found[slot] = (running or broken or wanted)[-1]
    return found


def _is_alike(spec: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Say whether tasks are started alike; a label has the rest (`services.HASH`)."""
    is_forced_alike = spec.get("ForceUpdate", 0) == other.get("ForceUpdate", 0)
    return is_forced_alike and bool(spec["ContainerSpec"] == other["ContainerSpec"])


def _is_running(task: Mapping[str, Any]) -> bool:
    return bool(task["Status"]["State"] == "running")


def _is_broken(task: Mapping[str, Any]) -> bool:
    return task["Status"]["State"] in _BROKEN


def _task_state(task: Mapping[str, Any]) -> State:
    state = task["Status"]["State"]
    if state == "running":
        return State(Phase.RUNNING)
    if state in _OVER:
        code = None if state == "rejected" else _exit_code(task)
        return State(Phase.EXITED, code)
    return State(Phase.STARTING)


def _exit_code(task: Mapping[str, Any]) -> int | None:
    """Return what a server ended with; not what Docker says of one that it could not start."""
    status = task["Status"]
    if status["State"] == "failed" and not _ENDED.fullmatch(status.get("Err", "")):
        return None
    code: int | None = status.get("ContainerStatus", {}).get("ExitCode")
    return code


def _reason(task: Mapping[str, Any]) -> str:
    status = task["Status"]
    if status["State"] == "complete":
        return "a replica ended by itself, or was unhealthy"
    return "" if _is_running(task) else str(status.get("Err", ""))


def _state(tasks: Sequence[Mapping[str, Any]] | None) -> State:
    if tasks is None:
        return State(Phase.GONE)
    states = [_task_state(each) for each in _slots(tasks).values()]
    return together(states) or State(Phase.STARTING)


# What is changed


def _lay(api: Any, plan: ServicePlan) -> None:
    """Make what the services will read, and their network, where they are not there yet."""
    labels = {SERVER: plan.server_name}
    configs = {each["Spec"]["Name"] for each in api.configs()}
    for name, content in plan.configs.items():
        if name not in configs:
            api.create_config(name, content.encode(), labels)
    secrets = {each["Spec"]["Name"] for each in api.secrets()}
    for name, content in plan.secrets.items():
        if name not in secrets:
            api.create_secret(name, content.encode(), labels)
    if plan.network and not api.networks(names=[plan.network]):
        api.create_network(plan.network, driver="overlay", labels=labels)


def _with_ids(api: Any, service: Mapping[str, Any], force: int) -> dict[str, Any]:
    """Return a service's task with the ids of the configs and secrets that it names."""
    task: dict[str, Any] = json.loads(json.dumps(service["TaskTemplate"]))
    made = task["ContainerSpec"]
    for kind, found in (("Config", api.configs), ("Secret", api.secrets)):
        references = made.get(f"{kind}s", [])
        ids = {each["Spec"]["Name"]: each["ID"] for each in found()} if references else {}
        for each in references:
            each[f"{kind}ID"] = ids[each[f"{kind}Name"]]
    return {**task, "ForceUpdate": force}


def _update(api: Any, now: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    api.update_service(
        now["ID"],
        now["Version"]["Index"],
        task_template=wanted["TaskTemplate"],
        **_beside_task(wanted),
    )


def _beside_task(service: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a service is besides its task, as the daemon's client takes it."""
    return {
        "name": service["Name"],
        "labels": service["Labels"],
        "mode": service["Mode"],
        "update_config": service["UpdateConfig"],
        "rollback_config": service["RollbackConfig"],
        "endpoint_spec": service["EndpointSpec"],
    }


def _create(api: Any, service: Mapping[str, Any]) -> None:
    import docker

    try:
        api.create_service(_with_ids(api, service, 0), **_beside_task(service))
    except docker.errors.APIError as error:
        raise ServerFailed(
            f"the swarm does not take service {service['Name']}: {error.explanation}",
            remedy="`tfkit serve --dry-run` shows the command",
        ) from error


@dataclass(frozen=True, slots=True)
class _Change:
    """A change of services that is awaited."""

    api: Any
    plan: ServicePlan
    progress: Progress = SILENT
    clock: Clock = field(default_factory=SystemClock)

    def apply(self, service: Mapping[str, Any], *, is_forced: bool) -> None:
        """Make a service what is wanted and wait until it is; change nothing if it is so already.

        Raises:
            ServerFailed: it did not come about, and was taken back.
        """
        api, name = self.api, service["Name"]
        before = _service(api, name)
        if before is None:
            _create(api, service)
            if wrong := self.await_(name):
                _end(api, [found for found in [_service(api, name)] if found])
                raise _failed(api, name, f"does not start: {wrong}")
            return
        if _is_same(before["Spec"], service) and not is_forced:
            return
        self.progress.step(f"updating {name}")
        force = before["Spec"]["TaskTemplate"].get("ForceUpdate", 0) + is_forced
        _update(api, before, {**service, "TaskTemplate": _with_ids(api, service, force)})
        if wrong := self.await_(name):
            raise self._taken_back(name, before, wrong)

    def _taken_back(self, name: str, before: Mapping[str, Any], wrong: str) -> ServerFailed:
        """Return what went wrong, once the service is again as it was."""
        error = _failed(self.api, name, f"was not updated and serves as before: {wrong}")
        now = _service(self.api, name) or before
        if now.get("UpdateStatus", {}).get("State") not in _TAKEN_BACK:
            _update(self.api, now, before["Spec"])
        if self.await_(name, is_back=True):
            error.message += "; it is not yet all as it was"
        return error

    def await_(self, name: str, *, is_back: bool = False) -> str:
        """Wait until all replicas are as the service says; return what prevents it, or nothing."""
        since_s: dict[str, float] = {}

        def look() -> str | None:
            service = _service(self.api, name) or {}
            tasks = _tasks(self.api, service.get("ID", "")) or []
            status = service.get("UpdateStatus", {}).get("State", "")
            wanted = service["Spec"]["Mode"]["Replicated"]["Replicas"]
            good = sum(_is_current(each, service) for each in tasks)
            self.progress.advance(good, wanted)
            if status in _TAKEN_BACK and not is_back:
                told = service["UpdateStatus"].get("Message", status)
                return f"{_first_fault(tasks) or 'a replica did not become healthy'} ({told})"
            if good == wanted == len(_slots(tasks)) and status not in _GOING_ON:
                return ""
            return None if is_back else _lasting(tasks, status, since_s, self.clock.now_s())

        patience_s = self._patience_s()
        found = wait_until(look, timeout_s=patience_s, interval_s=_LOOK_S, clock=self.clock)
        return "not all replicas are healthy in time" if found is None else found

    def _patience_s(self) -> float:
        server = Spec.model_validate_json(self.plan.deployment).server
        return server.replicas * (server.ready_timeout_s + server.drain_s + _SPARE_S)


def _is_same(now: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    hashes = (each["Labels"].get(services.HASH) for each in (now, wanted))
    return len(set(hashes)) == 1 and now["Mode"] == wanted["Mode"]


def _is_current(task: Mapping[str, Any], service: Mapping[str, Any]) -> bool:
    """Say whether a task runs what its service says now."""
    is_wanted = _is_running(task) and task["DesiredState"] == "running"
    return is_wanted and _is_alike(task["Spec"], service["Spec"]["TaskTemplate"])


def _lasting(
    tasks: Sequence[Mapping[str, Any]], status: str, since_s: dict[str, float], now_s: float
) -> str | None:
    """Return what prevents a replica from running for too long; None if nothing does yet."""
    # One that finds no place may be the successor of one that still runs.
    wanted = [each for each in tasks if each["DesiredState"] in _WANTED]
    pending = [each for each in wanted if each["Status"]["State"] == "pending"]
    broken = [each for each in _slots(tasks).values() if not status and _is_broken(each)]
    faults = {
        reason: (_PATIENCE_S[each["Status"]["State"]], reason)
        for each in (*pending, *broken)
        if (reason := _reason(each))
    }
    return outlasting(faults, since_s, now_s)


def _first_fault(tasks: Sequence[Mapping[str, Any]]) -> str:
    """Return why the newest replica that failed did."""
    broken = [each for each in tasks if _is_broken(each)]
    return _reason(broken[-1]) if broken else ""


def _failed(api: Any, name: str, what: str) -> ServerFailed:
    """Return an error about a service, with the log of what failed and a remedy."""
    remedies = "; ".join(known for part, known in _REMEDIES.items() if part in what)
    service = _service(api, name) or {}
    broken = [each["ID"] for each in _tasks(api, service.get("ID", "")) or [] if _is_broken(each)]
    told = _told(api, service["ID"], {broken[-1]: ""}, tail=LOG_TAIL) if broken else ()
    return ServerFailed(
        f"service {name} {what}",
        log_tail=[text for _, text in told],
        remedy=remedies or f"`docker service ps --no-trunc {name}` tells more",
    )


_REMEDIES = {
    "bind source path does not exist": "all nodes need the base path: share the folder, keep the "
    "models in a volume or in the image ([swarm] volumes, in_image), or set [swarm] constraints",
    "No such image": "pull or load the image on every node, or push it to a registry",
    "port already in use": "free the port on a node, take other ports, or lower `replicas`: "
    "without [gateway] there is one replica for each node",
    "insufficient resources": "lower cpus, memory or replicas, or add nodes",
    "max replicas per node": "raise max_per_node, lower replicas, or add nodes",
    "scheduling constraints": "`docker node inspect` shows what nodes are; see [swarm] and "
    "[gateway] constraints",
    "unhealthy": "the models did not become available: see the log; `ready_timeout_s` says how "
    "long a replica may take",
    "address already in use": "`ss -ltnp` on that node shows who has the port; take other ports",
}


def _told(
    api: Any, service_id: str, tasks: Mapping[str, str], **options: Any
) -> Iterator[tuple[str, str]]:
    """Yield time and text of the log lines of some tasks, each behind the task's prefix."""
    found = api.service_logs(
        service_id, details=True, timestamps=True, stdout=True, stderr=True, **options
    )
    for line in lines(iter([found]) if isinstance(found, bytes) else found):
        time, _, rest = line.partition(" ")
        details, _, text = rest.partition(" ")
        task = next((part for part in details.split(",") if part.startswith(_TASK_ID)), "")
        if (prefix := tasks.get(task.removeprefix(_TASK_ID))) is not None:
            yield time, prefix + text


# What is removed


def _remove(api: Any, server_name: str) -> None:
    """Remove the services of a server, wait until they have ended, and all they used."""
    for each in _services_of(api, server_name):
        _end(api, [each])
    _sweep(api, server_name)
    network = services.service_name(server_name)
    wait_until(
        lambda: _removed_network(api, network),
        timeout_s=_SPARE_S,
        interval_s=_LOOK_S,
        clock=SystemClock(),
    )


def _end(api: Any, found: Sequence[Mapping[str, Any]]) -> None:
    """Remove services and wait until their tasks have ended."""
    import docker

    for service in found:
        made = service["Spec"]["TaskTemplate"]["ContainerSpec"]
        with contextlib.suppress(docker.errors.NotFound):
            api.remove_service(service["ID"])
        wait_until(
            partial(_has_ended, api, service["ID"]),
            timeout_s=made.get("StopGracePeriod", 0) / 1e9 + _SPARE_S,
            interval_s=_LOOK_S,
            clock=SystemClock(),
        )


def _has_ended(api: Any, service_id: str) -> bool | None:
    """Say whether no task of a service is left on nodes that answer."""
    ready = {each["ID"] for each in api.nodes() if each["Status"]["State"] == "ready"}
    left = (
        each
        for each in api.tasks()
        if each.get("ServiceID") == service_id
        and each["Status"]["State"] not in _OVER
        and each.get("NodeID") in ready
    )
    return None if any(left) else True


def _removed_network(api: Any, name: str) -> bool | None:
    import docker

    found = [each for each in api.networks(names=[name]) if each["Name"] == name]
    try:
        for each in found:
            api.remove_network(each["Id"])
    except docker.errors.NotFound:
        return True
    except docker.errors.APIError:  # a task that ended is still being taken off it
        return None
    return not found or None


def _sweep(api: Any, server_name: str) -> None:
    """Remove configs and secrets that no service of a server needs, nor its state before."""
    import docker

    used = set()
    for service in _services_of(api, server_name):
        for spec in (service["Spec"], service.get("PreviousSpec") or {}):
            made = spec.get("TaskTemplate", {}).get("ContainerSpec", {})
            used |= {each["ConfigID"] for each in made.get("Configs") or ()}
            used |= {each["SecretID"] for each in made.get("Secrets") or ()}
    mine = {"label": f"{SERVER}={server_name}"}
    for found, remove in ((api.configs, api.remove_config), (api.secrets, api.remove_secret)):
        for each in found(filters=mine):
            if each["ID"] not in used:
                with contextlib.suppress(docker.errors.APIError):  # in use after all, or gone
                    remove(each["ID"])
