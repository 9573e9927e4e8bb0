"""The MNIST example, run as a newcomer runs it, without a network."""

import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.system.shell import commands

EXAMPLE = Path(__file__).parents[2] / "examples" / "mnist"

pytestmark = [pytest.mark.slow, pytest.mark.tensorflow]


@pytest.fixture
def offline(shell_env, tmp_path):
    """A shell whose downloads fail at once, with a folder of its own for temporary files."""
    pytest.importorskip("tensorflow")
    (tmp_path / "tmp").mkdir()
    return {
        **shell_env,
        "https_proxy": "http://127.0.0.1:9",  # nobody listens on the port of `discard`
        "no_proxy": "127.0.0.1,localhost",
        "TMPDIR": str(tmp_path / "tmp"),
    }


def servers_in(folder):
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("TFKIT_STATE_DIR", "").startswith(str(folder)):
                found.append(process)
        except psutil.Error:
            continue
    return found


def names(argv):
    return {Path(part).name for part in argv}


def test_error_rate_falls_without_a_restart_and_nothing_is_left_behind(offline, tmp_path):
    done = subprocess.run(
        [sys.executable, EXAMPLE / "run.py"],
        env=offline,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = map(
        float, re.findall(r"^Inference error rate: (.+)%$", done.stdout, re.MULTILINE)
    )
    assert second < first < 15
    assert "No MNIST" in done.stdout
    assert "The Classify API takes the first digit for a 5" in done.stdout
    assert " 0 lost, 0 answers amiss" in done.stdout
    assert done.stdout.endswith("Stopped default\n")
    assert list((tmp_path / "tmp").iterdir()) == []
    assert servers_in(tmp_path) == []
    shown = [shlex.split(line[2:]) for line in done.stdout.splitlines() if line.startswith("$ ")]
    for argv in commands((EXAMPLE / "README.md").read_text("utf-8")):
        assert argv == ["python", "run.py"] or any(names(argv) <= names(each) for each in shown)


def test_ctrl_c_stops_the_server(offline, tmp_path):
    process = subprocess.Popen(
        [sys.executable, EXAMPLE / "run.py", "--data", EXAMPLE.parents[1] / "data" / "digits"],
        env=offline,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        for line in process.stdout:
            if "is ready" in line:
                break
        assert servers_in(tmp_path / "tmp")
        process.send_signal(signal.SIGINT)
        assert "Stopped default" in process.stdout.read()
        assert process.wait(timeout=60) != 0
    finally:
        process.kill()
        process.stdout.close()
        process.wait()
    assert servers_in(tmp_path) == []
