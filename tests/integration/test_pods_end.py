"""How a pod ends, with its own command, files, rights and probes, but without a cluster.

The kubelet's part is played here: the pod's address leaves the name, `preStop` runs, SIGTERM
follows, and SIGKILL after the grace period. Its server dies of SIGTERM, as the official one does;
its callers are those that many have: plain gRPC, balanced over a name, which never repeats a call.
"""

import json
import os
import select
import shutil
import subprocess
import sys
import time

import pytest

from tests.integration import images
from tests.integration.conftest import new_name
from tests.integration.images import docker
from tests.integration.test_fleet_names import NAME, NameServer
from tests.integration.test_swarm import MODELS
from tfserve_kit.clock import SystemClock, wait_until
from tfserve_kit.deployment import build
from tfserve_kit.engines import manifests

MODEL = "half_plus_two"
PLACE = "/models"
NAME_SERVER = "127.77.0.2"  # not that of tests that may run beside these
# Arguments: address, threads, and how often a name may be looked up, in ms. Prints a line once it
# calls; at the end of stdin how many calls were answered, and the errors of the others.
CALLER = """
import json, sys, threading
import grpc
from tfserve_kit import protos
url, threads, lookup_ms = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
request = protos.PredictRequest()
request.model_spec.name = "half_plus_two"
x = request.inputs["x"]
x.dtype = 1
x.tensor_shape.dim.add().size = 1
x.float_val.append(1.0)
channel = grpc.insecure_channel(url, options=[
    ("grpc.lb_policy_name", "round_robin"), ("grpc.enable_retries", 0),
    ("grpc.dns_min_time_between_resolutions_ms", lookup_ms)])
call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
end, came, errors = threading.Event(), [], []
def work():
    while not end.is_set():
        try:
            call(request.SerializeToString(), timeout=30)
            came.append(1)
        except grpc.RpcError as error:
            errors.append(error.details())
            end.wait(0.05)
grpc.channel_ready_future(channel).result(30)
workers = [threading.Thread(target=work) for _ in range(threads)]
for each in workers: each.start()
print("calling", flush=True)
sys.stdin.read()
end.set()
for each in workers: each.join()
print(json.dumps([len(came), errors]), flush=True)
"""


class Pod:
    """A container that is what a Deployment says a pod is; the kubelet's part is played by hand."""

    def __init__(self, found, folder):
        (config,) = (each for each in found if each["kind"] == "ConfigMap")
        (deployment,) = (each for each in found if each["kind"] == "Deployment")
        self.pod = deployment["spec"]["template"]["spec"]
        (self.server,) = self.pod["containers"]
        for name, text in config["data"].items():
            (folder / name).write_text(text, "utf-8")
            (folder / name).chmod(0o644)
        folder.chmod(0o755)
        self.name = f"tfkit-pod-{new_name()}"
        user = self.pod["securityContext"]
        places = {"config": folder, "models": MODELS}
        mounts = {each["name"]: each for each in self.server["volumeMounts"]}
        docker(
            "run", "--detach", "--name", self.name, "--read-only", "--cap-drop=ALL",
            "--security-opt=no-new-privileges", f"--tmpfs={mounts['tmp']['mountPath']}",
            f"--user={user['runAsUser']}:{user['runAsGroup']}",
            *(f"--volume={folder}:{mounts[name]['mountPath']}:ro"
              for name, folder in places.items()),
            *(f"--env={each['name']}={each['value']}" for each in self.server["env"]),
            f"--entrypoint={self.server['command'][0]}", self.server["image"],
            *self.server["command"][1:], *self.server["args"],
        )  # fmt: skip
        template = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
        self.address = docker("inspect", "--format", template, self.name)

    def is_ready(self):
        command = self.server["readinessProbe"]["exec"]["command"]
        done = subprocess.run(
            ["docker", "exec", self.name, *command], check=False, capture_output=True
        )
        return done.returncode == 0 or None

    def end(self):
        """Do as the kubelet does; return the exit code."""
        start = time.monotonic()
        if lifecycle := self.server.get("lifecycle"):
            docker("exec", self.name, *lifecycle["preStop"]["exec"]["command"])
        left_s = self.pod["terminationGracePeriodSeconds"] - (time.monotonic() - start)
        docker("stop", f"--time={max(1, round(left_s))}", self.name)
        return int(docker("inspect", "--format", "{{.State.ExitCode}}", self.name))

    def remove(self):
        docker("rm", "--force", "--volumes", self.name, check=False)


@pytest.fixture
def start_pod(require, tmp_path):
    try:
        images.require_docker()
        image = images.mortal()
    except images.NoImage as missing:
        require("docker", str(missing))
    pods = []

    def run(**sections):
        folder = tmp_path / str(len(pods))
        folder.mkdir()
        sections["server"] = {"name": "web", "engine": "kubernetes", **sections.get("server", {})}
        document = {
            "models": {MODEL: {"base_path": f"{PLACE}/{MODEL}"}},
            "docker": {"image": image, "env": {"DELAY_S": "0.2"}},
            **sections,
        }
        document["kubernetes"] = {"claim": "c", **document.get("kubernetes", {})}
        spec = build(document, source="test", folder=tmp_path)
        pods.append(Pod(manifests.manifests(spec), folder))
        clock = SystemClock()
        assert wait_until(pods[-1].is_ready, timeout_s=60, interval_s=0.2, clock=clock)
        return pods[-1]

    yield run
    for each in pods:
        each.remove()


@pytest.fixture
def name_server():
    if os.geteuid() or not shutil.which("unshare"):
        pytest.skip("another name server needs root and unshare")
    server = NameServer([], NAME_SERVER)
    yield server
    server.close()


class Callers:
    """Many who call by a name, in a process that asks the name server of the tests."""

    def __init__(self, folder, *, threads, lookup_ms):
        resolver = folder / "resolv.conf"
        resolver.write_text(f"nameserver {NAME_SERVER}\noptions timeout:1\n")
        mounted = f'mount --bind {resolver} /etc/resolv.conf && exec "$@"'
        self.process = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", mounted, "sh", sys.executable, "-c", CALLER,
             f"dns:///{NAME}:8500", str(threads), str(lookup_ms)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._line() == "calling"

    def _line(self):
        assert select.select([self.process.stdout], (), (), 60)[0], "nothing is printed"
        return self.process.stdout.readline().strip()

    def done(self):
        """Return how many calls were answered, and the errors of the others."""
        self.process.stdin.close()
        return json.loads(self._line())

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


def lost(start_pod, name_server, folder, *, lookup_ms=500, **sections):
    """End one of two pods under load; return how many calls were answered, and lost ones."""
    leaves, stays = start_pod(**sections), start_pod(**sections)
    name_server.hosts = [leaves.address, stays.address]
    callers = Callers(folder, threads=16, lookup_ms=lookup_ms)
    try:
        name_server.hosts = [stays.address]
        code = leaves.end()
        answered, errors = callers.done()
    finally:
        callers.close()
    return code, answered, errors


def test_pod_dies_empty_and_no_caller_loses_a_request(start_pod, name_server, tmp_path):
    code, answered, errors = lost(start_pod, name_server, tmp_path, kubernetes={"pre_stop_s": 4.0})
    assert (code, errors) == (0, [])
    assert answered > 100


def test_without_an_end_to_its_connections_a_pod_takes_requests_with_it(
    start_pod, name_server, tmp_path
):
    """The reason for all this, and the proof that the test before can fail."""
    sections = {"server": {"drain_s": 2.0}, "kubernetes": {"pre_stop_s": 0.0}}
    _, _, errors = lost(start_pod, name_server, tmp_path, lookup_ms=30_000, **sections)
    assert errors


def test_liveness_asks_nothing_of_models_and_readiness_all(start_pod):
    pod = start_pod(kubernetes={"pre_stop_s": 0.0}, server={"drain_s": 0.0})
    command = list(pod.server["readinessProbe"]["exec"]["command"])
    wrong = [part.replace(MODEL, f"{MODEL} nobody") for part in command]
    done = subprocess.run(["docker", "exec", pod.name, *wrong], check=False, capture_output=True)
    assert done.returncode == 1
    start = time.monotonic()
    pod.end()
    assert time.monotonic() - start < pod.pod["terminationGracePeriodSeconds"]
