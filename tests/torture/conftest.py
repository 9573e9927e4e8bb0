"""Fixtures of the tests that break a push wherever it can be broken."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.torture.driver import ROOT, environment

LONG = bool(os.environ.get("TFKIT_TORTURE"))  # every point, where an ordinary run takes some
MEMORY = Path("/dev/shm")  # a file system without a disk, where a thousand pushes take seconds


@pytest.fixture(scope="session")
def long():
    """Whether this is the long run (TFKIT_TORTURE=1)."""
    return LONG


@pytest.fixture
def quick_folder():
    """Return an empty folder, in memory where the system has such."""
    where = MEMORY if MEMORY.is_dir() and os.access(MEMORY, os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="tfkit-torture-", dir=where))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def play(quick_folder):
    """Run a job of the driver; give what it found."""

    def run(job, scenario, points):
        points = [] if LONG or points is None else ["--points", str(points)]
        command = [
            sys.executable,
            "-m",
            "tests.torture.driver",
            job,
            scenario,
            quick_folder,
            *points,
        ]
        done = subprocess.run(
            command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.fixture
def mount(require):
    """Mount file systems for one test; give their folders. They are unmounted whatever happens."""
    mounted = []

    def run(kind, options):
        # Not below tmp_path: a mount that an aborted run leaves must not be in pytest's way.
        folder = Path(tempfile.mkdtemp(prefix="tfkit-mount-"))
        command = ["mount", "-t", kind, "-o", options, "tfkit-test", str(folder)]
        if not shutil.which("mount"):
            require("mount", "there is no mount command")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            folder.rmdir()
            require("mount", f"nothing can be mounted here: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield run
    for folder in reversed(mounted):
        subprocess.run(["umount", "-l", str(folder)], check=True)
        folder.rmdir()
