"""A Prometheus of a test's own, with data of its own."""

import contextlib
import json
import shutil
import subprocess
import time
import urllib.parse
import urllib.request

from tests.ports import free_port

PATIENCE_S = 60.0
TOOLS = ("prometheus", "promtool", "amtool")


def missing():
    """Say what of Prometheus this machine lacks; empty if nothing."""
    return ", ".join(name for name in TOOLS if not shutil.which(name))


def checked(*command):
    """Run promtool or amtool and return what it says; fail as it does."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def until(look, what):
    """Return what `look` finds once that is something."""
    end_s = time.monotonic() + PATIENCE_S
    while not (found := look()):
        assert time.monotonic() < end_s, f"{what} never came"
        time.sleep(0.1)
    return found


class Prometheus:
    """A running one, seen from a test."""

    def __init__(self, port):
        self.url = f"http://127.0.0.1:{port}"

    def get(self, path, **arguments):
        query = urllib.parse.urlencode(arguments)
        with urllib.request.urlopen(f"{self.url}{path}?{query}", timeout=10) as answer:
            return answer.read()

    def query(self, expression, **more):
        """Return the samples of an instant query: labels and value; of a range, all values."""
        path = "/api/v1/query_range" if more else "/api/v1/query"
        found = json.loads(self.get(path, query=expression, **more))["data"]["result"]
        return [(each["metric"], each.get("values") or each["value"][1]) for each in found]

    def firing(self):
        """Return the names of the alerts that fire now."""
        found = json.loads(self.get("/api/v1/alerts"))["data"]["alerts"]
        return {each["labels"]["alertname"] for each in found if each["state"] == "firing"}

    def is_ready(self):
        with contextlib.suppress(OSError):
            return b"Ready" in self.get("/-/ready")
        return False


@contextlib.contextmanager
def running(files, folder):
    """Run a Prometheus with rendered files during a `with` block."""
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    port = free_port()
    command = [
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        found = Prometheus(port)
        until(found.is_ready, (folder / "log").read_text)
        yield found
    finally:
        process.terminate()
        process.wait()
