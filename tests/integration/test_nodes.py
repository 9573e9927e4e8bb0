"""What tests of a swarm need of this machine is given back, however their run ends."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.integration import nodes

RUN = """
import sys, time
from tests.integration import nodes
with nodes.nodes(sys.argv[1], 1) as found:
    print(found[0].name, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_nothing_is_left_of_nodes_whose_run_was_ended(require, tmp_path_factory, number):
    if reason := nodes.missing():
        require("swarm", reason)
    folder = tmp_path_factory.mktemp("n")
    command = [sys.executable, "-c", RUN, folder]
    told = tmp_path_factory.mktemp("told") / "stderr"
    with (
        told.open("wb") as stderr,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr) as run,
    ):
        name = run.stdout.readline().decode().strip()
        assert name, told.read_text("utf-8")
        assert {"processes", "mounts", "files", "networks"} == left(folder, name)
        run.send_signal(number)
        run.wait()
    with nodes.place(folder):  # as the next run begins
        end_s = time.monotonic() + 5  # what was killed may take a moment to end
        while left(folder, name) and time.monotonic() < end_s:
            time.sleep(0.1)
        assert left(folder, name) == set()


def left(folder, name):
    """Return what there is of nodes in a folder."""
    commands = (" ".join(each.info["cmdline"] or ()) for each in psutil.process_iter(["cmdline"]))
    found = {
        "processes": any(f"{folder}/" in each for each in commands),
        "mounts": f" {folder}/" in Path("/proc/self/mountinfo").read_text(),
        "files": any(folder.iterdir()),
        "networks": (Path("/run/netns") / name).exists(),
    }
    return {what for what, is_there in found.items() if is_there}
