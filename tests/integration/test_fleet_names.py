"""Names that stand for several servers: a name server of the tests, and a network of containers."""

import os
import select
import shutil
import socket
import struct
import subprocess
import sys
import threading
from contextlib import ExitStack, contextmanager

import pytest

from tests.contract import lying_servers
from tests.contract.lying_servers import ANSWER, Liar, http, says
from tests.integration.images import docker, stand_in

NAME, NAME_SERVER = "models.test", "127.77.0.1"
TRUTH = lying_servers.tensor(
    'outputs { key: "y" value { dtype: DT_FLOAT float_val: 1.5 tensor_shape { dim { size: 1 } } } }'
)
CALLS_S = 20
# Calls until it is told to stop; writes who answered, whenever that is another replica than before.
CALLER = """
import sys, threading, time
from tfserve_kit import connect
end = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), end.set()), daemon=True).start()
with connect(sys.argv[1]) as client:
    seen = set()
    while not end.is_set():
        replica = client.predict(sys.argv[2], {"x": [1.0]}, timeout_s=10).replica
        if replica not in seen:
            seen.add(replica)
            print(replica, flush=True)
        time.sleep(0.01)
"""


class NameServer:
    """Answers every question about an IPv4 address with `hosts`, over UDP."""

    def __init__(self, hosts, address=NAME_SERVER):
        self.hosts = hosts
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((address, 53))
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self):
        while not self._end.is_set():
            if select.select([self._socket], (), (), 0.1)[0]:
                query, where = self._socket.recvfrom(512)
                self._socket.sendto(self._answer(query), where)

    def _answer(self, query):
        end = query.index(b"\0", 12) + 5
        is_ipv4 = query[end - 4 : end - 2] == b"\0\1"
        hosts = self.hosts if is_ipv4 else []
        head = query[:2] + struct.pack(">HHHHH", 0x8180, 1, len(hosts), 0, 0)
        records = (
            struct.pack(">HHHIH", 0xC00C, 1, 1, 0, 4) + socket.inet_aton(host) for host in hosts
        )
        return head + query[12:end] + b"".join(records)

    def close(self):
        self._end.set()
        self._thread.join()
        self._socket.close()


@pytest.fixture
def name_server():
    if os.geteuid() or not shutil.which("unshare"):
        pytest.skip("another name server needs root and unshare")
    server = NameServer(["127.0.0.1", "127.0.0.2"])
    yield server
    server.close()


@contextmanager
def grpc_server(host, port):
    with lying_servers.grpc_liar(TRUTH, f"{host}:{port}") as url:
        yield url


@contextmanager
def rest_server(host, port):
    server = Liar(says(http(ANSWER)), address=(host, port))
    try:
        yield server.url
    finally:
        server.close()


@contextmanager
def calling(argv):
    """Run a caller; yields a function that waits for the next replica it names."""
    process = subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    try:
        yield lambda: _line(process.stdout)
        process.stdin.close()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _line(stream):
    assert select.select([stream], (), (), CALLS_S)[0], "no other replica was seen"
    return stream.readline().strip()


@pytest.mark.parametrize(
    ("serve", "scheme"), [(grpc_server, "dns:///"), (rest_server, "dns+http://")]
)
def test_servers_that_join_and_leave_a_name_are_followed(name_server, serve, scheme, tmp_path):
    resolver = tmp_path / "resolv.conf"
    resolver.write_text(f"nameserver {NAME_SERVER}\noptions timeout:1\n")
    mounted = f'mount --bind {resolver} /etc/resolv.conf && exec "$@"'
    with ExitStack() as stack:
        first = stack.enter_context(ExitStack())
        url = first.enter_context(serve("127.0.0.1", 0))
        port = int(url.rpartition(":")[2])
        second = stack.enter_context(serve("127.0.0.2", port))
        third = stack.enter_context(serve("127.0.0.3", port))
        argv = ["unshare", "--mount", "sh", "-c", mounted, "sh", sys.executable, "-c", CALLER,
                f"{scheme}{NAME}:{port}", "m"]  # fmt: skip
        named = stack.enter_context(calling(argv))
        assert {named(), named()} == {url, second}
        name_server.hosts = ["127.0.0.2", "127.0.0.3"]
        first.close()
        assert named() == third


# Calls by the name until each of three servers has answered; writes their addresses.
IN_THE_NETWORK = """
from tfserve_kit import connect
from tfserve_kit.clock import SystemClock, wait_until
from tfserve_kit.errors import RequestError

def answered():
    try:
        found = {client.predict("half_plus_two", [1.0]).replica for _ in range(60)}
    except RequestError:
        return None
    return found if len(found) == 3 else None

with connect("dns:///models:8500") as client:
    found = wait_until(answered, timeout_s=60, interval_s=0.5, clock=SystemClock())
    print(*sorted(found or ()))
"""


def test_containers_of_a_network_share_a_name(docker_image, models, containers):
    network = f"tfkit-fleet-{os.getpid()}"
    servers = [f"{network}-{number}" for number in range(3)]
    docker("network", "create", network)
    try:
        for server in servers:
            docker(
                "run", "--detach", "--name", server, "--network", network,
                "--network-alias", "models", "--env", "MODEL_NAME=half_plus_two",
                "--volume", f"{models / 'half_plus_two'}:/models/half_plus_two:ro", docker_image,
            )  # fmt: skip
        addresses = docker(
            "inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}",
            *servers,
        ).split()  # fmt: skip
        found = docker(
            "run", "--rm", "--network", network, "--entrypoint", "/opt/tfkit/bin/python",
            stand_in(), "-c", IN_THE_NETWORK,
        )  # fmt: skip
        assert found.split() == sorted(f"grpc://{address}:8500" for address in addresses)
    finally:
        docker("rm", "--force", "--volumes", *servers, check=False)
        docker("network", "rm", network, check=False)
