"""Replicas on a swarm of real daemons, under load: no request is lost, whatever is changed.

The replicas are of a server that SIGTERM kills with its requests in flight, 50 ms each, as the
official one is. Clients do not repeat anything. Tests share one fleet where they can: to make and
to remove one takes longer than most changes.
"""

import itertools
import json
import os
import re
import shutil
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from tests.integration import images, nodes
from tfserve_kit import connect, doctor
from tfserve_kit.cli import exits
from tfserve_kit.clients import addresses
from tfserve_kit.deployment import build
from tfserve_kit.engines import Phase
from tfserve_kit.engines.swarm import SwarmEngine
from tfserve_kit.errors import EngineUnavailable, RequestError, ServerFailed, Severity
from tfserve_kit.serving import launch, reload
from tfserve_kit.serving.access import ServedModel, each_replica

LONG = os.environ.get("TFKIT_TORTURE") == "1"
REQUESTS = 10_000 if LONG else 2_000
RATE = 150.0  # requests each second, of both protocols together
SENDERS = 16
# Those that send over gRPC without a pause, and how long each waits: Docker itself waits for two
# seconds before it ends a replica.
SLOW_SENDERS, SLOW_S = 6, 5.0
LARGE = 20_000  # numbers: more than the gateway can hold to send again
RETRIES = 2  # as a client has them by default
EJECTED_S, BACK_S, GATEWAY_S, SILENT_S = 1.0, 5.0, 15.0, 30.0
MODELS = Path(__file__).parents[1] / "data" / "models"
MODEL = "half_plus_two"
_names = itertools.count()


class Load:
    """A constant load on a server for a `with` block: what was answered, and what was lost."""

    def __init__(self, handle, *, sizes=(1,), slow=0, urls=(), **options):
        urls = urls or (handle.endpoints.grpc, handle.endpoints.rest)
        kinds = [
            (url, np.full(size, 2.0, np.float32), SENDERS / RATE) for size in sizes for url in urls
        ]
        self._senders = list(itertools.islice(itertools.cycle(kinds), SENDERS))
        self._senders += [(urls[0], np.full(LARGE, -SLOW_S, np.float32), 0.0)] * slow
        self.options = {"retries": 0, **options}
        self.answered, self.lost, self.slowest_s = 0, [], 0.0
        self._lock, self._stop = threading.Lock(), threading.Event()

    def __enter__(self):
        self._start_s = time.monotonic()
        self._threads = [
            threading.Thread(target=self._run, args=(number, *sender))
            for number, sender in enumerate(self._senders)
        ]
        for each in self._threads:
            each.start()
        self.wait(50)
        return self

    def __exit__(self, *error):
        self._stop.set()
        for each in self._threads:
            each.join()

    def wait(self, number):
        """Wait until so many requests have been sent."""
        while self.answered + len(self.lost) < number:
            assert any(each.is_alive() for each in self._threads), "nobody sends any more"
            time.sleep(0.05)

    def _run(self, number, url, x, gap_s):
        due_s = self._start_s + gap_s * number / SENDERS
        with connect(url, **self.options) as client:
            while not self._stop.is_set():
                time.sleep(max(0.0, due_s - time.monotonic()))
                due_s += gap_s
                self._send(client, x)

    def _send(self, client, x):
        start_s = time.monotonic()
        try:
            answer = client.predict("half_plus_two", {"x": x}, timeout_s=20)
            fault = "" if (answer.outputs["y"] == x / 2 + 2).all() else f"wrong: {answer}"
        except RequestError as error:
            fault = f"{type(error).__name__}: {error.message}"
        with self._lock:
            self.slowest_s = max(self.slowest_s, time.monotonic() - start_s)
            if fault:
                self.lost.append((round(start_s - self._start_s, 2), fault))
            else:
                self.answered += 1


def settings_of(manager, name, ports, **more):
    """Return a file of replicas behind a gateway, as `build` takes it."""
    server = {"name": name, "engine": "swarm", "host": manager.address, **ports,
              "replicas": 2, "ready_timeout_s": 60.0}  # fmt: skip
    return {"server": server, "swarm": {}, "docker": {"image": images.MORTAL},
            "gateway": {"image": images.HAPROXY}, **more}  # fmt: skip


def free_ports():
    first = 20_000 + 4 * next(_names)
    return {"grpc_port": first, "rest_port": first + 1}, first + 2


@pytest.fixture
def manager(swarm, state_dir, monkeypatch):
    """The swarm's manager, which tfkit talks to."""
    monkeypatch.setenv("DOCKER_HOST", swarm[0].url)
    return swarm[0]


@pytest.fixture
def deployment(manager):
    """Make a deployment of replicas behind a gateway."""
    name = f"fleet-{next(_names)}"
    ports, _ = free_ports()

    def make(*, base_path="half_plus_two", gateway=True, docker=None, **server):
        more = {key: server.pop(key) for key in ("swarm", "client") if key in server}
        document = settings_of(manager, name, ports, **more)
        document["models"] = {"half_plus_two": {"base_path": str(base_path)}}
        document["server"].update({"drain_s": 0.0, **server})  # what is not drained ends sooner
        document["docker"].update(docker or {})
        if not gateway:
            del document["gateway"]
        return build(document, source="test", folder=MODELS)

    return make


@pytest.fixture
def start(manager):
    """Start a deployment; it is stopped at the end, and nothing of it may be left in the swarm."""
    started = []

    def run(spec):
        started.append(launch.up(spec, SwarmEngine()))
        return started[-1]

    yield run
    for each in started:
        if (found := SwarmEngine().find(each.server_name)) is not None:  # perhaps made anew
            found.stop()
    left = {
        kind: manager.docker(kind, "ls", "--quiet", "--filter", "name=tfkit-fleet")
        for kind in ("service", "config", "secret", "network")
    }
    assert not any(left.values())


def indices(manager, spec):
    service = f"tfkit-{spec.server.name}"
    names = (service, f"{service}-gateway")
    return [
        manager.docker("service", "inspect", "-f", "{{.Version.Index}}", each) for each in names
    ]


# What doctor says


def test_doctor_looks_at_the_swarm_its_nodes_and_the_gateways_image(deployment, swarm):
    found = {each.path: each for each in doctor.examine(spec=deployment())}
    assert (
        found["swarm"].severity is Severity.INFO and "manages a swarm of" in found["swarm"].message
    )
    assert found["swarm nodes"].message == f"{len(swarm)} of {len(swarm)} take replicas"
    assert found["gateway"].message == f"{images.HAPROXY} is here" and found["ipvs"].message
    assert "gateway" not in {each.path for each in doctor.examine()}


# Nothing is lost


class Fleet:
    """Three replicas that all tests under load share, and what they are made of by now."""

    def __init__(self, manager, shared):
        self.name, self.shared, self.manager = f"shared-{next(_names)}", shared, manager
        ports, self.metrics_port = free_ports()
        self._document = settings_of(manager, self.name, ports)
        self._document["models"] = {"half_plus_two": {"base_path": str(shared)}}
        self._document["server"]["replicas"] = 3
        self._document["gateway"]["metrics_port"] = self.metrics_port

    def spec(self, **sections):
        """Return its deployment, with changes that are to last."""
        for section, values in sections.items():
            self._document[section].update(values)
        return build(self._document, source="test", folder=MODELS)

    def broken(self, **sections):
        """Return its deployment with changes that will be taken back."""
        document = {key: {**old, **sections.get(key, {})} for key, old in self._document.items()}
        return build(document, source="test", folder=MODELS)

    @property
    def handle(self):
        return SwarmEngine().find(self.name)

    def in_service(self):
        """Return how many replicas the gateway sends requests to, in both protocols."""
        url = f"http://{self.manager.address}:{self.metrics_port}/metrics"
        with urllib.request.urlopen(url) as answer:
            text = answer.read().decode()
        found = re.findall(r'backend_active_servers\{proxy="\w+_replicas"\} (\d+)', text)
        return set(map(int, found))

    def wait_for(self, replicas, within_s):
        """Wait until the gateway sends requests to so many; return after how many seconds."""
        start_s = time.monotonic()
        while self.in_service() != {replicas}:
            assert time.monotonic() - start_s < within_s, self.in_service()
            time.sleep(0.02)
        return time.monotonic() - start_s

    def limits(self):
        """Return how much memory each of its replicas may have, in bytes."""
        of = ("--quiet", "--filter", "desired-state=running", f"tfkit-{self.name}")
        tasks = self.manager.docker("service", "ps", *of).split()
        shown = "{{.Spec.Resources.Limits.MemoryBytes}}"
        return list(map(int, self.manager.docker("inspect", "-f", shown, *tasks).split()))

    def started_s(self):
        """Return when the newest replica began to answer, as time.time() has it."""
        service = f"tfkit-{self.name}"
        # It also fails, having told the rest, where a replica of before never found a node.
        told = self.manager.docker("service", "logs", "--timestamps", "--raw", service, check=False)
        return max(
            datetime.fromisoformat(line.split()[0][:26] + "+00:00").timestamp()
            for line in told.splitlines()
            if "Running gRPC ModelServer" in line
        )


@pytest.fixture(scope="class")
def kept_fleet(swarm, tmp_path_factory):
    shared = tmp_path_factory.mktemp("shared")
    for folder in (shared, *shared.parents[:2]):
        folder.chmod(0o755)
    shutil.copytree(MODELS / "half_plus_two" / "1", shared / "1")
    fleet = Fleet(swarm[0], shared)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_HOST", swarm[0].url)
        patch.setenv("TFKIT_STATE_DIR", str(tmp_path_factory.mktemp("state")))
        handle = launch.up(fleet.spec(), SwarmEngine())
        yield fleet
        handle.stop()


@pytest.fixture
def fleet(kept_fleet, manager):
    """The shared fleet, with three replicas."""
    reload.scale(kept_fleet.handle, 3)
    kept_fleet.wait_for(3, within_s=30)
    return kept_fleet


@pytest.fixture
def report(record_testsuite_property, request):
    """Show a figure that a test measured: with -s, and in reports."""

    def tell(**figures):
        shown = {key: round(value, 2) for key, value in figures.items()}
        print(request.node.name, shown)
        record_testsuite_property(request.node.name, json.dumps(shown))

    return tell


def broken_model(folder):
    """Return a base path whose only version cannot be loaded."""
    shutil.copytree(MODELS / MODEL / "1", folder / "broken" / "1")
    (folder / "broken" / "1" / "saved_model.pb").write_bytes(b"")
    return str(folder / "broken")


def served(handle):
    """Return the versions that are AVAILABLE, as each replica says."""
    found = set()
    for each in each_replica(ServedModel(handle.endpoints.grpc, MODEL)).values():
        with each.connect() as client:
            rows = client.status(MODEL)
        found.add(tuple(row.version for row in rows if row.state == "AVAILABLE"))
    return found


class TestUnderLoad:
    def test_rolling_update_of_three_replicas_loses_nothing(self, fleet, report):
        before = {each.name for each in fleet.handle.replicas()}
        with Load(fleet.handle, sizes=(1, LARGE), slow=SLOW_SENDERS) as load:
            change = {"env": {"ROUND": "2"}, "memory": "600m"}
            launch.change(fleet.handle, fleet.spec(docker=change))
            load.wait(REQUESTS)
        report(answered=load.answered, lost=len(load.lost), slowest_s=load.slowest_s)
        assert load.lost == []
        assert {each.name for each in fleet.handle.replicas()} == before
        assert [each.state.phase for each in fleet.handle.replicas()] == [Phase.RUNNING] * 3

    def test_change_of_limits_alone_is_done_once_all_replicas_have_them(self, fleet):
        launch.change(fleet.handle, fleet.spec(docker={"memory": "500m"}))
        assert fleet.limits() == [500 << 20] * 3

    def test_scaling_down_and_up_loses_nothing(self, fleet, report):
        with Load(fleet.handle) as load:
            for replicas in (2, 4, 2):
                handle = reload.scale(fleet.handle, replicas)
                assert len(handle.replicas()) == replicas
            load.wait(REQUESTS)
        report(answered=load.answered, lost=len(load.lost), slowest_s=load.slowest_s)
        assert load.lost == []

    def test_version_pushed_into_the_shared_folder_is_verified_on_all_and_nothing_is_lost(
        self, fleet, report, tfkit
    ):
        names = [each.name for each in fleet.handle.replicas()]
        to = ("--to", fleet.shared, "--url", fleet.handle.endpoints.grpc, "--model", MODEL)
        push = ("push-model", MODELS / MODEL / "2", *to, "--trust", "--json")
        with Load(fleet.handle) as load:
            done = tfkit(*push, "--version", 2, "--verify")
            swap = done.data["swap"]
            assert (done.code, list(swap["replicas"])) == (0, names)
            assert (swap["lost"], swap["wrong"]) == ({}, {})
            assert served(fleet.handle) == {(2,)}
            assert tfkit("rollback", fleet.shared).code == 0
            assert served(fleet.handle) == {(1,)}
            done = tfkit(*push, "--version", 3, "--wait")
            assert (done.code, list(done.data["replicas"])) == (0, names)
            load.wait(REQUESTS)
        report(answered=load.answered, lost=len(load.lost), slowest_s=load.slowest_s)
        assert load.lost == []

    def test_updates_that_cannot_run_are_taken_back_and_lose_nothing(self, fleet, tmp_path, report):
        before, limits = fleet.handle.models, fleet.limits()
        updates = [
            ({"models": {MODEL: {"base_path": broken_model(tmp_path)}},
              "server": {"ready_timeout_s": 3.0}, "docker": {"user": "0:0"}},
             "healthy", "see the log"),
            ({"docker": {"image": "tfkit.invalid/none:1"}}, "No such image: ", "on every node"),
            ({"docker": {"memory": "900000g"}}, "insufficient resources", "lower cpus, memory"),
        ]  # fmt: skip
        with Load(fleet.handle) as load:
            for number, (change, message, remedy) in enumerate(updates, 1):
                with pytest.raises(ServerFailed) as caught:
                    launch.change(fleet.handle, fleet.broken(**change))
                assert "was not updated and serves as before" in caught.value.message
                assert message in caught.value.message + caught.value.remedy
                assert remedy in caught.value.remedy
                assert "not yet all as it was" not in caught.value.message
                load.wait(REQUESTS * number if LONG else REQUESTS)
        report(answered=load.answered, lost=len(load.lost), slowest_s=load.slowest_s)
        assert load.lost == []
        assert (fleet.handle.models, fleet.limits()) == (before, limits)
        assert [each.state.phase for each in fleet.handle.replicas()] == [Phase.RUNNING] * 3

    def test_killed_replica_costs_no_call_and_its_successor_is_used_soon(
        self, fleet, swarm, report
    ):
        label = f"label=com.docker.swarm.service.name=tfkit-{fleet.name}"
        with Load(fleet.handle, retries=RETRIES) as load:
            worker = next(each for each in swarm if each.docker("ps", "-q", "--filter", label))
            victim = worker.docker("ps", "-q", "--filter", label).split()[0]
            worker.docker("kill", "--signal=KILL", victim)
            ejected_s = fleet.wait_for(2, within_s=5)
            fleet.wait_for(3, within_s=60)
            back_s = time.time() - fleet.started_s()
            load.wait(REQUESTS)
        report(answered=load.answered, failed=len(load.lost), slowest_s=load.slowest_s,
               ejected_s=ejected_s, back_s=back_s)  # fmt: skip
        assert load.lost == []
        assert ejected_s < EJECTED_S
        assert back_s < BACK_S

    def test_gateway_that_is_replaced_refuses_for_some_seconds_and_loses_nothing_it_has(
        self, fleet, report
    ):
        with Load(fleet.handle) as load:
            gateway = f"tfkit-{fleet.name}-gateway"
            fleet.manager.docker("service", "update", "--force", "--quiet", gateway)
            load.wait(REQUESTS)
        moments = [moment for moment, _ in load.lost]
        report(answered=load.answered, refused=len(moments), slowest_s=load.slowest_s,
               outage_s=moments[-1] - moments[0])  # fmt: skip
        assert moments[-1] - moments[0] < GATEWAY_S
        kinds = {fault.partition(":")[0] for _, fault in load.lost}
        assert kinds <= {"ServerUnreachable", "ServerOverloaded"}  # it, and then all replicas

    def test_node_that_falls_silent_costs_no_call(self, fleet, swarm, report):
        before = time.monotonic()
        with Load(fleet.handle, retries=RETRIES) as load, swarm[2].unplugged():
            cut_s = time.monotonic() - before
            load.wait(load.answered + REQUESTS)
            silent_s = time.monotonic() - before - cut_s
        report(answered=load.answered, failed=len(load.lost), slowest_s=load.slowest_s,
               silent_s=silent_s)  # fmt: skip
        nodes.wait_until_ready(swarm)
        assert load.lost == []
        assert load.slowest_s < SILENT_S


def test_without_the_drain_an_update_loses_slow_requests(deployment, start):
    handle = start(deployment(replicas=1, drain_s=0.0))
    with Load(handle, slow=SLOW_SENDERS) as load:
        load.wait(100)
        launch.change(handle, deployment(replicas=1, drain_s=0.0, docker={"env": {"ROUND": "2"}}))
        load.wait(load.answered + 300)
    assert load.slowest_s > SLOW_S
    assert load.lost


# What the swarm cannot do


def test_daemon_outside_a_swarm_is_refused_with_the_remedy(tfkit, require):
    try:
        images.require_docker()
    except images.NoImage as missing:
        require("docker", str(missing))
    done = tfkit("serve", "--engine", "swarm", "--model", f"half_plus_two={MODELS}/half_plus_two")
    assert done.code == 4
    assert "not part of a swarm" in done.err
    assert "docker swarm init" in done.err


def test_worker_is_refused_with_the_remedy(swarm, state_dir, monkeypatch, deployment):
    monkeypatch.setenv("DOCKER_HOST", swarm[1].url)
    with pytest.raises(EngineUnavailable, match="worker of a swarm") as caught:
        launch.up(deployment(), SwarmEngine())
    assert "on a manager" in caught.value.remedy


def test_without_a_gateway_it_is_called_on_the_nodes_that_have_a_replica(swarm, deployment, start):
    elsewhere = {"constraints": ["node.role == worker"]}
    handle = start(deployment(replicas=2, gateway=False, swarm=elsewhere))
    workers = {each.address for each in swarm[1:]}
    for url in (handle.endpoints.grpc, handle.endpoints.rest):
        assert {each.host for each in addresses.read(url).members} == workers
        with connect(url, retries=0) as client:
            for _ in workers:
                answer = client.predict(MODEL, {"x": np.ones(1, np.float32)}, timeout_s=10)
                assert answer.outputs["y"].tolist() == [2.5]


@pytest.fixture
def refusals(manager, tmp_path):
    """Deployments by what they ask for, with what is said of it."""
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    taken, _ = free_ports()
    unready = {"ready_timeout_s": 12.0}
    everywhere = {"server": {"replicas": 3, **taken}, "gateway": None}
    return {
        "an image that no node has": (
            {"docker": {"image": "tfkit.invalid/none:1"}}, "No such image", "on every node"),
        "more memory than there is": (
            {"docker": {"memory": "900000g"}}, "insufficient resources", "lower cpus, memory"),
        "nodes that do not exist": (
            {"swarm": {"constraints": ["node.labels.gpu == yes"]}}, "constraints", "[swarm]"),
        "more replicas than may be": (
            {"server": {"replicas": 5}, "swarm": {"max_per_node": 1}},
            "max replicas per node", "max_per_node"),
        "a port that one node has no more": (
            everywhere, "address already in use", "`ss -ltnp` on that node"),
        "more replicas than nodes have ports": (
            {"server": {"replicas": 5}, "gateway": None}, "port", "one replica for each node"),
        "a folder that no node has": (
            {"models": {MODEL: {"base_path": str(tmp_path / "none")}}},
            "bind source path does not exist", "share the folder"),
        "a folder without versions": (
            {"models": {MODEL: {"base_path": str(tmp_path / "empty")}}, "server": unready},
            "unhealthy", "Running gRPC ModelServer"),
    }  # fmt: skip


def test_server_that_finds_no_place_is_refused_and_leaves_nothing(
    refusals, manager, swarm, monkeypatch
):
    monkeypatch.setattr("tfserve_kit.serving.launch.check", lambda _: [])  # of what is known here
    taken = refusals["a port that one node has no more"][0]["server"]["grpc_port"]

    def told(change):
        name = f"refused-{next(_names)}"
        document = settings_of(manager, name, free_ports()[0])
        document["models"] = {MODEL: {"base_path": str(MODELS / MODEL)}}
        for section, values in change.items():
            document[section] = None if values is None else {**document[section], **values}
        document = {key: each for key, each in document.items() if each is not None}
        with pytest.raises(ServerFailed) as caught:
            launch.up(build(document, source="test", folder=MODELS), SwarmEngine())
        assert SwarmEngine().find(name) is None
        return caught.value

    with swarm[2].listening(taken), ThreadPoolExecutor(len(refusals)) as threads:
        errors = list(threads.map(told, (change for change, *_ in refusals.values())))
    for (what, (_, message, remedy)), error in zip(refusals.items(), errors, strict=True):
        assert message in error.message, what
        assert remedy in "\n".join([error.remedy, *error.log_tail]), what
        assert exits.exit_code(error) == 5, what
    assert manager.docker("service", "ls", "--quiet", "--filter", "name=tfkit-refused") == ""


# The commands


def test_life_of_a_fleet_by_its_commands(deployment, start, tfkit, manager):
    docker = {"env": {"TOKEN": "hunter2"}, "cpus": 0.5, "memory": "256m"}
    spec = deployment(docker=docker)
    handle = start(spec)
    name, made = handle.server_name, described(manager, spec)
    (row,) = tfkit("ps", "--json").data
    assert (row["engine"], row["state"], len(row["replicas"])) == ("swarm", "running", 2)
    assert "running 2/2" in tfkit("ps").out
    status = tfkit("status").out
    assert "AVAILABLE" in status
    assert f"{name}.1" in status
    assert f"{name}.2" in status
    logs = tfkit("logs", name, "--tail", 4).out.splitlines()
    assert len(logs) <= 4
    assert all(line.startswith(f"{name}.") for line in logs)
    before = indices(manager, spec)
    reload.reload(handle, deployment(docker=docker))
    assert indices(manager, spec) == before, "the same deployment again changes nothing"
    assert "has 1 replica\n" in tfkit("scale", name, 1).out
    before = containers(manager, name)
    assert tfkit("restart", name).code == 0
    assert before.isdisjoint(containers(manager, name))
    assert tfkit("stop", name).out == f"Stopped {name}\n"
    assert tfkit("ps", "--json").data == []
    paste(manager, launch.plan(spec, SwarmEngine()))
    assert described(manager, spec) == made, "the lines of a dry run make the same services"


def containers(manager, name):
    """Return what runs of the replicas."""
    of = ("--quiet", "--filter", "desired-state=running", f"tfkit-{name}")
    return set(manager.docker("service", "ps", *of).split())


def paste(manager, plan):
    """Run the lines that a dry run shows, on the files that it shows."""
    for file, text in plan.files.items():
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text(text)
    for line in (*plan.before, plan.argv):
        manager.docker(*line[1:])


def described(manager, spec):
    """Return what two ways to make a service must agree on."""
    found = {}
    for name in (f"tfkit-{spec.server.name}", f"tfkit-{spec.server.name}-gateway"):
        service = json.loads(manager.docker("service", "inspect", name))[0]["Spec"]
        task = service["TaskTemplate"]
        made = task["ContainerSpec"]
        keys = ("Image", "Command", "Args", "Env", "User", "ReadOnly", "Init", "StopGracePeriod",
                "StopSignal", "CapabilityDrop", "Mounts", "Sysctls")  # fmt: skip
        files = sorted(each["ConfigName"] for each in made["Configs"])
        found[name] = (
            {key: made.get(key) for key in keys},
            files,
            {key: value for key, value in task["Resources"].items() if value},
            task["RestartPolicy"]["Condition"],
            service["Labels"],
            service["Mode"],
            service["EndpointSpec"],
            service["UpdateConfig"],
        )
    return found
