"""A server of its own for tests of the load harness, and sending to it while something happens."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

from tfserve_kit.perf.load import Payload
from tfserve_kit.perf.sending import run

SCRIPT = Path(__file__).with_name("answering_server.py")
PAYLOAD = Payload("/test.S/Echo", (), b"hello")


class AnsweringServer:
    """The process, seen from a test.

    Attributes:
        urls: its addresses by protocol.
        stalls_ns: one of (before, frozen, thawed) for each time it was frozen.
    """

    def __init__(self, ports=(0, 0), host="127.0.0.1"):
        self._host = host
        self._begin(*ports)
        self.stalls_ns = []

    def _begin(self, grpc_port, rest_port):
        argv = [sys.executable, SCRIPT, str(grpc_port), str(rest_port), self._host]
        self.process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.ports = tuple(map(int, self.process.stdout.readline().split()))
        self.urls = {
            "grpc": f"grpc://{self._host}:{self.ports[0]}",
            "rest": f"http://{self._host}:{self.ports[1]}",
        }

    def tell(self, **settings):
        """Change how long requests are held from now on."""
        self.process.stdin.write(json.dumps(settings) + "\n")

    def told(self):
        """Return how many requests came since the last time, and how long it held the answered.

        The latter in nanoseconds.
        """
        self.process.stdin.write('"told"\n')
        return json.loads(self.process.stdout.readline())

    def freeze(self, seconds):
        """Stop it, as a machine that pauses does."""
        before_ns = time.monotonic_ns()
        os.kill(self.process.pid, signal.SIGSTOP)
        frozen_ns = time.monotonic_ns()
        time.sleep(seconds)
        thawed_ns = time.monotonic_ns()
        os.kill(self.process.pid, signal.SIGCONT)
        self.stalls_ns.append((before_ns, frozen_ns, thawed_ns))

    def kill(self):
        self.process.kill()
        self.process.communicate()

    def begin_again(self):
        """Begin anew at the same ports, after it was killed."""
        self._begin(*self.ports)


@contextmanager
def answering():
    """Run a server during a `with` block, at ports that nobody else gets meanwhile."""
    with contextlib.ExitStack() as stack:
        server = AnsweringServer([stack.enter_context(_kept_port()) for _ in range(2)])
        try:
            yield server
        finally:
            server.kill()


@contextmanager
def _kept_port():
    """Find a free port, and keep it from others: servers that reuse ports get it all the same."""
    with socket.socket() as keeper:
        keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        keeper.bind(("127.0.0.1", 0))
        yield keeper.getsockname()[1]


def sent_while(act, load, *, stop=None, payload=PAYLOAD):
    """Run a load while `act(start_ns)` goes on beside it; return samples and start."""
    starts, threads = [], []

    def started(start_ns):
        starts.append(start_ns)
        threads.append(threading.Thread(target=act, args=(start_ns,)))
        threads[0].start()

    samples = run(load, [payload], stop=stop, started=started)
    threads[0].join()
    return samples, starts[0]
