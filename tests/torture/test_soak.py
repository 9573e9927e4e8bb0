"""A server under everything at once, for long: it answers all good clients, and stays as it is.

Clients of every kind ask it while versions are swapped without a pause and hostile clients do their
worst, one kind after the other. An ordinary run takes 20 seconds; with TFKIT_TORTURE=1 20 minutes.
"""

import asyncio
import itertools
import json
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from statistics import median

import grpc
import numpy as np
import psutil
import pytest

from tests.torture.conftest import LONG
from tests.torture.driver import ROOT
from tests.torture.test_load_beside_attack import MODELS, PATIENCE_S, Server
from tfserve_kit import protos, tensors
from tfserve_kit.perf.stats import quantile

pytestmark = pytest.mark.tensorflow

DURATION_S = 20 * 60 if LONG else 20
ATTACK_S = 15 if LONG else 2.5
MIB = 1 << 20
WINDOWS = 4
# What may be told from a leak: memory that the allocator keeps after a crowd has left, and that a
# model's two versions take while one is replaced, differ by this much from window to window. A
# leak of 1 KB for each request would be several hundred MiB in 20 minutes.
MOST_GROWTH_BYTES = 48 * MIB if LONG else 200 * MIB
MOST_OVERLOADED = 1e-3  # of all requests; the machine may have other things to do
OVERLOADED = {"UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "503", "504"}
HOSTILE = (
    "rapid_resets",
    "frame_floods",
    "header_bombs",
    "starved_windows",
    "silent_streams",
    "slow_readers",
    "gzip_bombs",
    "odd_shapes",
    "surrogates",
)
PREDICT = protos.METHODS["Predict"].path
LARGE = np.arange(1 << 20, dtype=np.float32)


def request(model, values, alias="x", signature=""):
    spec = protos.ModelSpec(name=model, signature_name=signature).SerializeToString()
    return tensors.predict_request({alias: np.asarray(values, np.float32)}, spec)


@dataclass
class Clients:
    """Good clients of every kind, each one request after the other until told to stop.

    Attributes:
        times_s: how long the answers took, by kind.
        overloaded: what was said of too much work, by kind.
        failed: all other failures.
    """

    server: Server
    stop: threading.Event = field(default_factory=threading.Event)
    times_s: dict = field(default_factory=dict)
    overloaded: Counter = field(default_factory=Counter)
    failed: list = field(default_factory=list)

    def _ask(self, kind, ask, right, pause_s):
        started_s = time.monotonic()
        try:
            answer = ask()
            assert right(answer), answer
        except Exception as error:  # noqa: BLE001 (whatever it is, the server is to blame)
            self._note(kind, error)
        self.times_s.setdefault(kind, []).append(time.monotonic() - started_s)
        self.stop.wait(pause_s)

    def _note(self, kind, error):
        said = error.code().name if isinstance(error, grpc.RpcError) else str(error)[:3]
        if said in OVERLOADED:
            self.overloaded[kind, said] += 1
        else:
            self.failed.append((kind, repr(error)))

    def over_grpc(self, kind, message, right, pause_s=0.005):
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        with grpc.insecure_channel(f"127.0.0.1:{self.server.ports[0]}", options) as channel:
            call = channel.unary_unary(PREDICT)
            while not self.stop.is_set():
                self._ask(kind, lambda: output(call(message, timeout=PATIENCE_S)), right, pause_s)

    def over_aio(self, kind, message, right):
        async def client(call):
            while not self.stop.is_set():
                started_s = time.monotonic()
                try:
                    assert right(output(await call(message, timeout=PATIENCE_S)))
                except Exception as error:  # noqa: BLE001 (as above)
                    self._note(kind, error)
                self.times_s.setdefault(kind, []).append(time.monotonic() - started_s)
                await asyncio.sleep(0.02)

        async def main():
            address = f"127.0.0.1:{self.server.ports[0]}"
            async with grpc.aio.insecure_channel(address) as channel:
                call = channel.unary_unary(PREDICT)
                await asyncio.gather(*(client(call) for _ in range(8)))

        asyncio.run(main())

    def over_rest(self, kind, model, values, right, stays):
        body = json.dumps({"instances": values})

        def ask():
            connection.request("POST", f"/v1/models/{model}:predict", body)
            answer = connection.getresponse()
            content = answer.read()
            assert answer.status == 200, f"{answer.status} {content}"
            return json.loads(content)["predictions"]

        while not self.stop.is_set():
            with closing(self.server.connection()) as connection:
                self._ask(kind, ask, right, 0.005)
                while stays and not self.stop.is_set():
                    self._ask(kind, ask, right, 0.005)

    def all(self):
        """Return what each of them does, with its arguments."""
        tiny, rows = [1.0, 2.0, 5.0], [[1.0, 2.0], [3.0, 4.0]]
        doubled = [2.5, 3.0, 4.5]
        is_tiny = lambda answer: list(answer) == doubled  # noqa: E731
        batched = output(ask_once(self.server, request("batchy", rows)))
        is_batched = lambda answer: np.array_equal(answer, batched)  # noqa: E731
        is_large = lambda answer: np.array_equal(answer, LARGE / 2 + 2)  # noqa: E731
        return [
            (self.over_grpc, "grpc", request("swapped", tiny), is_tiny),
            (self.over_aio, "aio", request("swapped", tiny), is_tiny),
            (self.over_rest, "rest", "swapped", tiny, is_tiny, True),
            (self.over_rest, "rest anew", "swapped", tiny, is_tiny, False),
            (self.over_grpc, "batched", request("batchy", rows), is_batched),
            (self.over_grpc, "batched", request("batchy", rows), is_batched),
            (self.over_rest, "batched rest", "batchy", rows, is_batched, True),
            (self.over_grpc, "slow", request("batchy", [1.0], "w", "slow"), lambda _: True),
            (self.over_grpc, "large", request("swapped", LARGE), is_large, 1.0),
        ]


def output(answer):
    (value,) = protos.message_class("PredictResponse").FromString(answer).outputs.values()
    return tensors.from_proto(value)


def ask_once(server, message):
    with grpc.insecure_channel(f"127.0.0.1:{server.ports[0]}") as channel:
        return channel.unary_unary(PREDICT)(message, timeout=PATIENCE_S)


class Swaps:
    """Replaces the version of a model again and again.

    Attributes:
        base_path: where the versions are.
        count: how many there have been.
    """

    def __init__(self, base_path):
        self.base_path, self.count = base_path, 1
        shutil.copytree(MODELS / "half_plus_two" / "1", base_path / "1")

    def go_on(self, stop):
        while not stop.wait(1.5):
            hidden = self.base_path / f".{self.count + 1}"
            shutil.copytree(MODELS / "half_plus_two" / "1", hidden)
            hidden.rename(self.base_path / f"{self.count + 1}")
            self.count += 1
            for version in self.base_path.iterdir():
                if version.name.isdigit() and int(version.name) < self.count - 2:
                    shutil.rmtree(version)


def attack(server, stop):
    """Let the hostile clients come, one kind after the other."""
    served = [str(each) for model in server.served.items() for each in model]
    for name in itertools.cycle(HOSTILE):
        command = ["nice", "-n", "15", sys.executable, "-m", "tests.torture.attackers", name]
        attacker = subprocess.Popen(
            [*command, *map(str, server.ports), *served],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        ended = stop.wait(ATTACK_S)
        attacker.kill()
        attacker.wait()
        if ended or stop.wait(0.5):
            return


@dataclass(frozen=True)
class Sample:
    """What the process of the server has."""

    resident_bytes: int
    threads: int
    descriptors: int

    @classmethod
    def of(cls, process):
        with process.oneshot():
            return cls(process.memory_info().rss, process.num_threads(), process.num_fds())


@pytest.fixture
def server(tmp_path):
    (tmp_path / "swapped").mkdir()
    swaps = Swaps(tmp_path / "swapped")
    batching = tmp_path / "batching.config"
    batching.write_text(f"max_batch_size {{ value: {LARGE.size} }}")
    server = Server(
        tmp_path,
        "--enable_batching=true",
        f"--batching_parameters_file={batching}",
        "--file_system_poll_wait_seconds=1",
        swapped=swaps.base_path,
    )
    yield server, swaps
    server.process.terminate()
    assert server.process.wait(PATIENCE_S) == 0
    assert "Traceback" not in server.log.read_text("utf-8", "replace")


def test_server_under_everything_at_once_answers_all_good_clients_and_stays_as_it_is(server):
    server, swaps = server
    clients, process = Clients(server), psutil.Process(server.process.pid)
    work, attacks_end, samples = clients.all(), threading.Event(), []
    with ThreadPoolExecutor(len(work) + 2) as pool:
        running = [pool.submit(*each) for each in work]
        running.append(pool.submit(swaps.go_on, clients.stop))
        time.sleep(2)
        before = Sample.of(process)
        running.append(pool.submit(attack, server, attacks_end))
        end_s = time.monotonic() + DURATION_S
        while time.monotonic() < end_s and process.is_running():
            samples.append(Sample.of(process))
            time.sleep(0.5)
        attacks_end.set()
        time.sleep(5)  # the last attacker's connections are noticed
        after = Sample.of(process)
        clients.stop.set()
        for each in running:
            each.result(PATIENCE_S)
    windows = medians([each.resident_bytes for each in samples])
    report(clients, swaps, windows, samples, before, after)
    assert not clients.failed
    asked = sum(map(len, clients.times_s.values()))
    assert clients.overloaded.total() <= MOST_OVERLOADED * asked, clients.overloaded
    assert swaps.count > DURATION_S / 10
    assert max(windows[1:]) - windows[0] < MOST_GROWTH_BYTES
    assert after.descriptors <= before.descriptors + 20
    assert after.threads <= before.threads + 10


def medians(values):
    """Return the medians of equal windows, without the first quarter, when all is still growing."""
    kept = values[len(values) // 4 :]
    size = len(kept) // WINDOWS
    return [median(kept[at * size : (at + 1) * size]) for at in range(WINDOWS)]


def report(clients, swaps, windows, samples, before, after):
    for kind, times_s in clients.times_s.items():
        ordered = sorted(times_s)
        p50, p99 = (quantile(ordered, each) * 1e3 for each in (0.5, 0.99))
        print(f"{kind}: {len(ordered)} answers, median {p50:.1f} ms, p99 {p99:.0f} ms")
    print(f"{swaps.count} versions; overloaded: {dict(clients.overloaded)}")
    print("MiB by window:", *(f"{each / MIB:.0f}" for each in windows))
    print(f"most MiB: {max(each.resident_bytes for each in samples) / MIB:.0f}")
    print(f"before: {before}; after: {after}")
    print(f"failed: {len(clients.failed)}", *clients.failed[:10], sep="\n")
