"""The MNIST example, run as a newcomer runs it, without a network."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "mnist"

pytestmark = pytest.mark.tensorflow


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


def test_error_rate_falls_without_a_restart(printed_by):
    printed = printed_by("mnist").read_text("utf-8")
    first, second = map(float, re.findall(r"^Inference error rate: (.+)%$", printed, re.MULTILINE))
    assert second < first < 15
    assert re.search(r"The Classify API takes the first digit for a [57]", printed)
    assert " 0 lost, 0 wrong answers" in printed
    assert printed.endswith("Stopped default\n")


def test_digits_are_used_where_mnist_cannot_be_downloaded(offline, tmp_path):
    code = "import run; from pathlib import Path; print(run.download(Path()) == run.DIGITS)"
    printed = subprocess.check_output(
        [sys.executable, "-c", code],
        env={**offline, "PYTHONPATH": str(EXAMPLE)},
        cwd=tmp_path / "tmp",
        text=True,
    )
    assert printed.startswith("No MNIST")
    assert printed.endswith("True\n")


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
