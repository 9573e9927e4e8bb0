"""The process of the server, and its event loop."""

import platform
import subprocess
import sys
import time
from itertools import count

import pytest

from tfserve_kit.embedded import front
from tfserve_kit.embedded.front import AWAKE_S, EventLoop, Lookout

# Memory of messages that come and go, several at a time; then how many pages were brought in.
_MESSAGES = """
import resource, sys
from tfserve_kit.embedded.front import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
def come_and_go(times):
    for _ in range(times):
        messages = [bytes(602_112) for _ in range(8)]
        del messages
come_and_go(3)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
come_and_go(20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_memory_of_large_messages_is_not_brought_in_again_for_each():
    pages = {
        what: int(subprocess.check_output([sys.executable, "-c", _MESSAGES, what]))
        for what in ("kept", "by itself")
    }
    assert pages["kept"] < 20 * 8 < pages["by itself"]


# How long after the one before each thing arrives, of those that it stays awake for; and of others.
SOON, LATE = AWAKE_S / 2, AWAKE_S * 2


@pytest.mark.parametrize(
    ("gaps_s", "stays_awake"),
    [
        ([], False),
        ([SOON] * 3, False),
        ([SOON] * 10, True),
        ([SOON] * 1000 + [LATE], True),
        ([SOON] * 1000 + [LATE] * 10, False),
        ([LATE] * 1000 + [SOON] * 10, True),
        ([SOON, LATE] * 500, False),
        ([SOON, SOON, SOON, LATE] * 250, True),
        ([0.005] * 1000, False),
    ],
)
def test_it_stays_awake_while_most_things_arrive_soon(gaps_s, stays_awake):
    lookout, now_s = Lookout(), 100.0
    lookout.note_work(now_s)
    until_s = lookout.awake_until_s(now_s)
    for gap_s in gaps_s:
        now_s += gap_s
        lookout.note_work(now_s)
        until_s = lookout.awake_until_s(now_s)
    assert (until_s > now_s) is stays_awake
    assert until_s in (now_s, now_s + AWAKE_S)


@pytest.fixture
def looks(monkeypatch):
    """A loop, and how often it looks for what arrives though nothing is to be done."""
    monkeypatch.setattr(front, "_PROCESSORS", 2)
    loop, looks = EventLoop(), count()
    look_again = loop._look_again
    monkeypatch.setattr(loop, "_look_again", lambda: (next(looks), look_again()))
    yield loop, looks
    loop.stop()


def rest(loop, share):
    """Let a loop have nothing to do for a while, as it knows how much arrived soon of late."""
    loop.lookout.share = share
    loop.loop.call_soon(loop.stay_awake)
    loop.loop.call_later(0.1, loop.loop.stop)
    loop.loop.run_forever()


def test_loop_is_awake_for_a_moment_then_sleeps(looks):
    loop, looks = looks
    before_s = time.thread_time()
    rest(loop, 1.0)
    assert time.thread_time() - before_s < 0.05
    assert next(looks) > 1
    begin = next(looks)
    loop.loop.call_later(0.05, loop.loop.stop)
    loop.loop.run_forever()
    assert next(looks) == begin + 1


@pytest.mark.parametrize(("share", "processors"), [(0.0, 2), (1.0, 1)])
def test_loop_sleeps_if_little_arrives_soon_or_it_has_the_only_processor(
    looks, monkeypatch, share, processors
):
    monkeypatch.setattr(front, "_PROCESSORS", processors)
    loop, looks = looks
    rest(loop, share)
    assert next(looks) == 0
