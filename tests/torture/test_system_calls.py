"""The same at the border of the kernel: strace kills a push at its system calls."""

import re
import shutil
import subprocess
import sys
from collections import Counter

import pytest

from tests.torture.driver import ROOT, environment, spread
from tests.torture.operations import Count, observed
from tests.torture.versions_on_disk import left_overs, make_model, tree, violations
from tfserve_kit.repository import list_versions, push

CALLS = (
    "openat,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,unlink,unlinkat,rmdir,write,pwrite64,"
    "copy_file_range,sendfile,ioctl,chmod,fchmod,fchmodat,ftruncate,fsync,fdatasync,syncfs"
)
PUSH = "import sys; from tfserve_kit.repository import push; push(sys.argv[1], sys.argv[2])"


@pytest.fixture
def strace(require, quick_folder):
    """Run a push under strace with some of its options; give the process that has ended."""
    if not shutil.which("strace"):
        require("strace", "there is no strace command")

    def run(source, base_path, *options):
        command = ["strace", "-f", "-qq", *options, sys.executable, "-c", PUSH, source, base_path]
        return subprocess.run(
            command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
        )

    trial = subprocess.run(["strace", "-f", "true"], capture_output=True, text=True, check=False)
    if trial.returncode:
        require("strace", f"no process can be traced here: {trial.stderr.strip()}")
    return run


@pytest.fixture
def source(quick_folder):
    return make_model(quick_folder / "source")


def calls_of(log):
    """Return each call of the main thread from the push's first on, as name and number.

    The number counts the calls of that name from the start of the process, as strace does.
    """
    lines = log.read_text().splitlines()
    main = lines[0].split()[0]
    numbers, found, begun = Counter(), [], False
    for pid, call in (line.split(maxsplit=1) for line in lines):
        if pid == main and (name := re.match(r"(\w+)\(", call)):
            numbers[name[1]] += 1
            begun = begun or ".tfkit-staging-" in call
            if begun:
                found.append((name[1], numbers[name[1]]))
    return found


def named(calls, *names):
    """Return how many of the calls have one of the names."""
    return sum(bool(re.match(rf"\d+ +({'|'.join(names)})\(", call)) for call in calls)


def test_wrappers_miss_no_operation(strace, source, quick_folder):
    log = quick_folder / "log"
    done = strace(source, quick_folder / "traced", "-o", log, "-e", f"trace={CALLS}")
    assert done.returncode == 0, done.stderr
    with observed(Count()) as counted:
        push(source, quick_folder / "counted")
    calls = log.read_text().splitlines()
    ours = [call for call in calls if str(quick_folder) in call or re.search(r" f\w*sync\(", call)]
    for name in ("rename", "fsync", "copy_file_range"):
        traced = named(calls, f"{name}(at|at2)?")
        assert traced == counted.names.count(name), name
    assert named(ours, "mkdir", "mkdirat") == counted.names.count("mkdir")
    assert named(calls, "syncfs") == counted.names.count("syncfs")


def test_killed_at_a_system_call_shows_no_half_version(strace, source, quick_folder, long):
    base, log = quick_folder / "model", quick_folder / "log"
    push(source, base)
    older = {1: tree(base / "1")}
    strace(source, base, "-o", log, "-e", f"trace={CALLS}")
    calls = calls_of(log)
    assert len(calls) > 50
    shutil.rmtree(base / "2")
    for nth in spread([name for name, _ in calls], 0 if long else 7):
        name, number = calls[nth - 1]
        kill = f"inject={name}:signal=SIGKILL:when={number}"
        done = strace(source, base, "-o", log, "-e", f"trace={CALLS}", "-e", kill)
        assert done.returncode != 0
        assert "killed by SIGKILL" in log.read_text()
        assert violations(base, older=older) == [], calls[nth - 1]
        push(source, base)
        assert left_overs(base) == [], calls[nth - 1]
        for version in list_versions(base)[1:]:
            shutil.rmtree(version.path)
