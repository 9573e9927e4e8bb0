"""A cluster for tests: that of $TFKIT_TEST_KUBECONFIG, in a namespace of their own.

It has one node, which is this machine, as the models are in a folder of it; neither kube-proxy nor
DNS: pods are reached by their addresses, and the name of a Service is resolved here, as DNS would.
"""

import json
import os
import shutil
import socket
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

from tfserve_kit.engines import Phase, kubectl
from tfserve_kit.engines.kubernetes import KubernetesEngine

MODELS = Path(__file__).parents[1] / "data" / "models"
VARIABLES = ("TFKIT_TEST_KUBECONFIG", "TFKIT_TEST_IMAGE")
_PATIENCE_S = 120


class Cluster:
    """A namespace of a real cluster.

    Attributes:
        folder: of this session; its file `config` makes the namespace kubectl's current one.
        shared: folder of the node with models, for `host_path`.
        image: what pods run.
    """

    def __init__(self, kubeconfig, folder, shared, image):
        self.namespace = f"tfkit-test-{os.getpid()}"
        self.folder, self.shared, self.image = folder, shared, image
        self.config = folder / "config"
        view = ["config", "view", "--raw", "--minify", "--flatten", "--output=json"]
        self._known = json.loads(self._run(kubeconfig, *view))
        for each in self._known["contexts"]:
            each["context"]["namespace"] = self.namespace
        self.config.write_text(json.dumps(self._known))

    def kubectl(self, *arguments, stdin=None):
        """Run kubectl and return what it printed."""
        return self._run(self.config, *arguments, stdin=stdin)

    def make(self, api, kind, name, **parts):
        """Make an object, in somebody else's name."""
        made = {"apiVersion": api, "kind": kind, "metadata": {"name": name}, **parts}
        self.kubectl("create", "--filename=-", stdin=json.dumps(made))

    def names(self, kind):
        """Return the names of all objects of a kind that tfkit made."""
        mine = "--selector=app.kubernetes.io/managed-by=tfkit"
        return self.kubectl("get", kind, mine, "--output=name").split()

    def get(self, name):
        """Return an object."""
        return json.loads(self.kubectl("get", name, "--output=json"))

    def as_somebody(self, user="nobody"):
        """Return a file that makes kubectl ask as a user who has no rights."""
        known = json.loads(json.dumps(self._known))
        for each in known["users"]:
            each["user"]["as"] = user
        file = self.folder / f"config-{user}"
        file.write_text(json.dumps(known))
        return file

    def settings(self, name, **more):
        """Return a deployment file for it, as `build` takes it."""
        found = {
            "server": {"name": name, "engine": "kubernetes", "ready_timeout_s": 60.0},
            "models": {"half_plus_two": {"base_path": str(self.shared / "half_plus_two")}},
            "kubernetes": {"host_path": str(self.shared)},
            "docker": {"image": self.image, "pull": "never"},
        }
        for section, values in more.items():
            found[section] = {**found.get(section, {}), **values}
        return found

    def _run(self, config, *arguments, stdin=None):
        done = subprocess.run(
            [kubectl.command(), *map(str, arguments)],
            input=stdin, capture_output=True, text=True, check=False, timeout=_PATIENCE_S,
            env={**os.environ, "KUBECONFIG": str(config)},
        )  # fmt: skip
        assert done.returncode == 0, f"kubectl {' '.join(map(str, arguments))}: {done.stderr}"
        return done.stdout


@contextmanager
def cluster(kubeconfig, folder, image):
    """Give a namespace of a cluster, which is deleted at the end with all that is in it."""
    shared = Path(tempfile.mkdtemp(prefix="tfkit-models-", dir="/var/tmp"))
    try:
        shutil.copytree(MODELS / "half_plus_two" / "1", shared / "half_plus_two" / "1")
        for each in (shared, *shared.rglob("*")):
            each.chmod(0o755 if each.is_dir() else 0o644)
        found = Cluster(kubeconfig, folder, shared, image)
        found.make("v1", "Namespace", found.namespace)
        try:
            yield found
        finally:
            found.kubectl("delete", "namespace", found.namespace, "--wait=false")
    finally:
        shutil.rmtree(shared)


@contextmanager
def names_of_services(monkeypatch):
    """Have the names of headless Services mean their ready pods here, as the cluster's DNS does."""
    real = socket.getaddrinfo

    def getaddrinfo(host, port, *arguments, **options):
        name = str(host).partition(".")[0]
        if not (name.startswith("tfkit-") and name.endswith("-grpc")):
            return real(host, port, *arguments, **options)
        server = KubernetesEngine().find(name.removeprefix("tfkit-").removesuffix("-grpc"))
        running = [each for each in server.replicas() if each.state.phase is Phase.RUNNING]
        urls = [each.endpoints.grpc for each in running]
        hosts = [url.partition("://")[2].rpartition(":")[0] for url in urls]
        kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        return [(*kind, (each, port)) for each in hosts]

    with monkeypatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", getaddrinfo)
        yield
