"""Our senders against C++ gRPC and nginx, and the counts of h2load and wrk beside ours."""

import time
import urllib.request

import numpy as np
import pytest

from bench import generators
from bench.harness import Unavailable
from tfserve_kit.perf.load import Closed, Load, Open
from tfserve_kit.perf.sending import run

IN_FLIGHT = 32
CLOSED = Closed(IN_FLIGHT, requests=4000)
OPEN = Open((np.arange(1000) * 1e6).astype(np.int64))


@pytest.fixture(scope="module")
def grpc_server(tmp_path_factory, require):
    try:
        with generators.grpc_server(tmp_path_factory.mktemp("grpc")) as server:
            yield server
    except Unavailable as missing:
        require("grpc++", str(missing))


@pytest.fixture(scope="module")
def nginx(tmp_path_factory, require):
    try:
        with generators.nginx(tmp_path_factory.mktemp("nginx")) as port:
            yield port
    except Unavailable as missing:
        require("nginx", str(missing))


def printed(generator, *arguments):
    try:
        return generator(*arguments)
    except Unavailable as missing:
        pytest.skip(str(missing))


def settled(count, at_least):
    """Return a server's count once it stands still: it counts an answer when that is gone."""
    end_s, last = time.monotonic() + 10, -1
    while (now := count()) != last or (now < at_least and time.monotonic() < end_s):
        last = now
        time.sleep(0.05)
    return now


def requests_of(port):
    """Return how many requests nginx has had, without those that ask for it."""

    def count():
        count.asked += 1
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/status") as page:
            numbers = page.read().split(b"requests")[1].split()
        return int(numbers[2]) - count.asked

    count.asked = 0
    return count


def assert_accounted(load, payload, count):
    before = count()
    samples = run(load, [payload])
    assert not samples["status"].any()
    assert samples["sequence"].tolist() == list(range(len(samples)))
    assert (samples["received_bytes"] > 0).all()
    assert settled(count, before + len(samples)) - before == len(samples)


@pytest.mark.parametrize("schedule", [CLOSED, OPEN], ids=["closed", "open"])
def test_a_grpc_server_in_cpp_answered_what_the_samples_say(grpc_server, schedule):
    load = Load(f"grpc://127.0.0.1:{grpc_server.port}", "grpc", schedule)
    assert_accounted(load, generators.GRPC, grpc_server.answered)


@pytest.mark.parametrize("schedule", [CLOSED, OPEN], ids=["closed", "open"])
def test_nginx_answered_what_the_samples_say(nginx, schedule):
    load = Load(f"http://127.0.0.1:{nginx}", "rest", schedule)
    assert_accounted(load, generators.REST, requests_of(nginx))


def test_h2load_counts_as_the_grpc_server_does(grpc_server, tmp_path):
    before = grpc_server.answered()
    text = printed(generators.h2load, tmp_path, grpc_server.port, IN_FLIGHT, "-n", "4000")
    assert "4000 succeeded" in text
    assert settled(grpc_server.answered, before + 4000) - before == 4000


def test_wrk_counts_as_nginx_does_but_for_what_is_in_flight_at_its_end(nginx, tmp_path):
    count = requests_of(nginx)
    before = count()
    text = printed(generators.wrk, tmp_path, nginx, IN_FLIGHT, 1)
    theirs = int(generators.found(r"(\d+) requests in", text))
    assert theirs <= settled(count, before + theirs) - before <= theirs + IN_FLIGHT
