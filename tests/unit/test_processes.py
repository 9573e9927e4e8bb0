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
