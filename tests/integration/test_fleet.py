"""Clients of three servers, one of which is killed, falls silent, refuses, or is replaced."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import DATA
from tests.ports import free_port
from tests.torture.conftest import LONG
from tfserve_kit import connect, connect_async
from tfserve_kit.clock import SystemClock, wait_until
from tfserve_kit.errors import RequestError

MODEL, INPUTS = "half_plus_two", {"x": np.float32([1])}
CALLS = 10_000 if LONG else 500  # at least
CALLERS, RATE = 4, 250.0  # calls a second, all callers together
EJECTED_S, BACK_S = 1.0, 5.0
PATIENCE_S = 60.0


class Node:
    """An embedded server in a process of its own."""

    def __init__(self, host, ports):
        self.urls = dict(
            zip(("grpc", "rest"), (f"grpc://{host}:{ports[0]}", f"http://{host}:{ports[1]}"),
                strict=True)
        )  # fmt: skip
        self._ports = ports
        self.process = None

    def start(self):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tfserve_kit.embedded", f"--port={self._ports[0]}",
             f"--rest_api_port={self._ports[1]}", f"--model_name={MODEL}",
             f"--model_base_path={DATA / 'models' / MODEL}"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def answers(self, protocol):
        try:
            with connect(self.urls[protocol], retries=0) as client:
                return client.status(MODEL, timeout_s=1)[0].state == "AVAILABLE" or None
        except RequestError:
            return None

    def wait(self, protocol):
        """Wait until it answers; return when that was."""
        assert wait_until(
            lambda: self.answers(protocol),
            timeout_s=PATIENCE_S,
            interval_s=0.02,
            clock=SystemClock(),
        )
        return time.monotonic()

    def send(self, number):
        os.kill(self.process.pid, number)

    def kill(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def nodes():
    found = [Node(f"127.0.0.{n}", (free_port(), free_port())) for n in (1, 2, 3)]
    for node in found:
        node.start()
    for node in found:
        node.wait("grpc")
    yield found
    for node in found:
        node.send(signal.SIGCONT)
        node.kill()


class Load:
    """Calls of a client at a constant rate for a `with` block, and what came of each."""

    def __init__(self, urls, kind):
        self._urls, self._kind = urls, kind
        self.answers, self.errors = [], []  # (sent at, took, replica), errors
        self._ended, self._sent = threading.Event(), 0

    def __enter__(self):
        begin = self._blocking if self._kind == "sync" else lambda: asyncio.run(self._awaiting())
        self._thread = threading.Thread(target=begin)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        self._thread.join()

    def is_spread(self):
        return len({by for _, _, by in self.answers}) == 3

    def is_out(self, url):
        return next(each.is_out for each in self._rotation.replicas if each.url == url)

    def answered_since(self, moment_s, url):
        return next((at + took for at, took, by in self.answers if by == url and at > moment_s),
                    None)  # fmt: skip

    def _blocking(self):
        with connect(self._urls) as client:
            self._rotation = client._transport.rotation
            callers = [threading.Thread(target=self._call, args=(client,)) for _ in range(CALLERS)]
            for each in callers:
                each.start()
            for each in callers:
                each.join()

    def _goes_on(self):
        self._sent += 1
        return self._sent <= CALLS or not self._ended.is_set()

    def _call(self, client):
        while self._goes_on():
            began_s = time.monotonic()
            try:
                self._note(began_s, client.predict(MODEL, INPUTS))
            except RequestError as error:
                self.errors.append(error)
            time.sleep(max(0, began_s + CALLERS / RATE - time.monotonic()))

    async def _awaiting(self):
        async with connect_async(self._urls) as client:
            self._rotation = client._transport.rotation
            await asyncio.gather(*(self._await(client) for _ in range(CALLERS)))

    async def _await(self, client):
        while self._goes_on():
            began_s = time.monotonic()
            try:
                self._note(began_s, await client.predict(MODEL, INPUTS))
            except RequestError as error:
                self.errors.append(error)
            await asyncio.sleep(max(0, began_s + CALLERS / RATE - time.monotonic()))

    def _note(self, began_s, answer):
        if answer.outputs["y"].tolist() != [3.5]:
            self.errors.append(answer)
        self.answers.append((began_s, time.monotonic() - began_s, answer.replica))


@pytest.fixture(params=["grpc", "rest"])
def protocol(request):
    return request.param


@pytest.fixture(params=["sync", "async"])
def kind(request):
    return request.param


def waited(condition, within_s):
    """Return after how many seconds something was so; fail if it was not in time."""
    began_s = time.monotonic()
    while not condition():
        assert time.monotonic() - began_s < within_s
        time.sleep(0.01)
    return time.monotonic() - began_s


def returned(load, url, up_s):
    """Wait until a replica answers again; return how long after it was up it did, in seconds."""
    waited(lambda: load.answered_since(up_s, url), BACK_S + 1)
    return load.answered_since(up_s, url) - up_s


def unnoticed(load, what):
    """Fail if a call was lost; return how long the slowest took, in seconds."""
    slowest_s = max(took for _, took, _ in load.answers)
    print(f"{what}, slowest {slowest_s:.3f}")
    assert not load.errors
    return slowest_s


def test_killed_replica_costs_no_call_and_comes_back(nodes, protocol, kind):
    urls = [node.urls[protocol] for node in nodes]
    with Load(urls, kind) as load:
        waited(load.is_spread, 10)
        nodes[0].kill()
        ejected_s = waited(lambda: load.is_out(urls[0]), EJECTED_S)
        nodes[0].start()
        up_s = nodes[0].wait(protocol)
        back_s = returned(load, urls[0], up_s)
    unnoticed(load, f"{protocol} {kind}: out {ejected_s:.3f} s, back {back_s:.3f} s")
    assert back_s < BACK_S


def test_silent_replica_costs_no_call_and_comes_back(nodes, protocol, kind):
    urls = [node.urls[protocol] for node in nodes]
    with Load(urls, kind) as load:
        waited(load.is_spread, 10)
        nodes[1].send(signal.SIGSTOP)
        ejected_s = waited(lambda: load.is_out(urls[1]), EJECTED_S)
        time.sleep(2)
        nodes[1].send(signal.SIGCONT)
        up_s = time.monotonic()
        back_s = returned(load, urls[1], up_s)
    slowest_s = unnoticed(load, f"{protocol} {kind}: out {ejected_s:.3f} s, back {back_s:.3f} s")
    assert back_s < BACK_S
    assert slowest_s < 2 * EJECTED_S


def test_pause_of_all_replicas_at_once_is_waited_out(nodes, protocol, kind):
    urls = [node.urls[protocol] for node in nodes]
    with Load(urls, kind) as load:
        waited(load.is_spread, 10)
        for node in nodes:
            node.send(signal.SIGSTOP)
        time.sleep(3)
        for node in nodes:
            node.send(signal.SIGCONT)
        up_s = time.monotonic()
        waited(lambda: all(load.answered_since(up_s, url) for url in urls), BACK_S + 1)
    assert not load.errors


def test_commands_take_several_addresses(nodes, protocol, tfkit, monkeypatch):
    urls = [node.urls[protocol] for node in nodes]
    several = [word for url in urls for word in ("--url", url)]
    body = Path("request.json")
    body.write_text('{"inputs": {"x": [1.0]}}')
    for given in (several, ["--url", ",".join(urls)]):
        done = tfkit("request", body, "--model", MODEL, *given)
        assert done.code == 0 and any(f"answered by {url}" in done.out for url in urls)
    monkeypatch.setenv("TFKIT_URL", " ".join(urls))
    assert tfkit("metadata", "--model", MODEL, "--json").data["replica"] in urls


def test_status_shows_each_server_of_a_fleet(nodes, protocol, tfkit):
    urls = [node.urls[protocol] for node in nodes]
    several = [word for url in urls for word in ("--url", url)]
    done = tfkit("status", "--model", MODEL, *several)
    assert [done.out.count(url) for url in urls] == [1, 1, 1]
    gone = "grpc://127.0.0.1:1" if protocol == "grpc" else "http://127.0.0.1:1"
    done = tfkit("status", "--model", MODEL, *several, "--url", gone, "--json")
    assert done.code == 6
    assert [row["replica"] for row in done.data] == [*urls, gone]
    assert done.data[-1]["state"] == "UNKNOWN" and gone in done.data[-1]["error"]


def test_where_all_are_down_each_address_and_the_remedy_is_named(tfkit):
    done = tfkit("metadata", "--model", "m", "--url", "grpc://127.0.0.1:1,grpc://127.0.0.2:1")
    assert done.code == 6
    assert "none of the 2 replicas answers" in done.err
    assert "grpc://127.0.0.1:1: " in done.err and "grpc://127.0.0.2:1: " in done.err
    assert "tfkit serve" in done.err


def test_push_is_awaited_on_every_server_of_a_fleet(nodes, protocol, tfkit, models, tmp_path):
    fleet = [word for node in nodes for word in ("--url", node.urls[protocol])]  # with version 2
    waiting = ("--wait", "--rollback", "--trust", "--model", MODEL, "--timeout", 3, *fleet)
    done = tfkit(
        "push-model", models / MODEL / "1", "--to", "m", "--version", 2, *waiting, "--json"
    )
    assert done.code == 0
    assert list(done.data["replicas"]) == [node.urls[protocol] for node in nodes]
    done = tfkit("push-model", models / MODEL / "1", "--to", "m", "--version", 7, *waiting)
    assert done.code == 5 and "0 of 3 replicas have it" in done.err
    assert "version 2 serves" in done.err


def test_load_is_spread_over_a_fleet_and_told_by_server(nodes, protocol, tfkit):
    urls = [node.urls[protocol] for node in nodes]
    several = [word for url in urls for word in ("--url", url)]
    rest = ["--model", MODEL, "--duration", "2", "--concurrency", "6", "--markdown", "run.md"]
    done = tfkit("perf", *several, *rest, "--json")
    assert done.code == 0
    parts = done.data["replicas"]
    assert [each["url"] for each in parts] == urls
    assert sum(each["requests"] for each in parts) == done.data["requests"]
    assert min(each["requests"] for each in parts) > 0.02 * done.data["requests"]
    assert all(url in Path("run.md").read_text() for url in urls)
