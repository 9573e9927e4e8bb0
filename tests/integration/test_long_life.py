"""Memory over many version swaps, in a server process of its own."""

import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from tfserve_kit.clock import SystemClock, wait_until

ROOT = Path(__file__).parents[2]
MB = 1_000_000

pytestmark = pytest.mark.tensorflow


@contextmanager
def swapping(version):
    """Serve a version; yields its memory in bytes, and what makes swaps and says the memory."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.swaps", version], cwd=ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip

    def swap(count):
        process.stdin.write(f"{count}\n")
        process.stdin.flush()
        return int(process.stdout.readline())

    try:
        yield int(process.stdout.readline()), swap
    finally:
        process.kill()
        process.communicate()


def settles(swap, limit):
    """Say whether the memory sinks below a limit: a version has ended before its memory is back."""

    def is_below():
        return swap(0) < limit or None

    return wait_until(is_below, timeout_s=20, interval_s=0.2, clock=SystemClock())


def test_a_hundred_swaps_leave_the_memory_as_it_was(models):
    with swapping(models / "half_plus_two" / "1") as (_, swap):
        before = swap(10)
        swap(100)
        assert settles(swap, before + 5 * MB)


def test_swaps_of_a_large_model_leave_no_old_version_in_memory(tmp_path):
    version = tmp_path / "large" / "1"
    subprocess.run(
        [sys.executable, "-m", "bench.savedmodel", version, "60"],
        cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    with swapping(version) as (before, swap):
        swap(8)
        assert settles(swap, before + 120 * MB)  # eight old ones would be 480
