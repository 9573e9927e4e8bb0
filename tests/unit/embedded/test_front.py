"""The process of the server, and its event loop."""

import platform
import subprocess
import sys

import pytest

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
