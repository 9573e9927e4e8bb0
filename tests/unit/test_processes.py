"""Processes that give way."""

import os
import subprocess
import sys
from pathlib import Path

import psutil

from tfserve_kit import processes

CODE = """
import threading
threading.Thread(target=threading.Event().wait, daemon=True).start()
print(flush=True)
input()
"""


def test_threads_of_a_process_give_way_and_this_one_does_not():
    before = os.getpriority(os.PRIO_PROCESS, 0)
    process = subprocess.Popen(
        [sys.executable, "-c", CODE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    group = Path(f"/proc/{process.pid}/autogroup")
    with process:
        process.stdout.readline()
        processes.give_way(process.pid)
        threads = [each.id for each in psutil.Process(process.pid).threads()]
        found = [os.getpriority(os.PRIO_PROCESS, each) for each in threads]
        if group.exists():
            assert group.read_text().endswith("nice 10\n")
        process.communicate(b"\n")
    assert found == [10, 10]
    assert os.getpriority(os.PRIO_PROCESS, 0) == before


def test_process_that_has_ended_is_passed_over():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    processes.give_way(process.pid)


def test_process_is_alive_until_it_ends_and_only_if_it_started_then():
    with subprocess.Popen([sys.executable, "-c", CODE], stdin=subprocess.PIPE) as process:
        started_s = processes.started_s(process.pid)
        for moment_s in (started_s, started_s - 60):
            is_it = processes.alive(process.pid, moment_s) is not None
            assert processes.is_alive(process.pid, moment_s) is is_it is (moment_s == started_s)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie from now on
        assert not processes.is_alive(process.pid, started_s)
        assert processes.alive(process.pid, started_s) is None
    assert not processes.is_alive(process.pid, started_s)
