"""`tfkit capacity` held against what it predicts: a real gateway before three real replicas."""

import contextlib
import json
import shutil
import socket
import struct
import subprocess
import threading
from pathlib import Path
from statistics import median

import pytest

from tests.integration.answering import AnsweringServer
from tests.ports import free_port
from tfserve_kit.deployment import build, render
from tfserve_kit.engines import services
from tfserve_kit.perf import samples, stats
from tfserve_kit.perf.load import Closed, Load, Open, Payload, due_ns, ramp
from tfserve_kit.perf.measuring import Bench

SERVICE_S, SLOTS, REPLICAS = 0.020, 4, 3
RATE = 400.0  # of 600 that three replicas could answer
PREDICT = Payload("/v1/models/m:predict", (), b'{"instances": [1.0]}')
HOSTS = [f"127.0.0.{2 + n}" for n in range(REPLICAS)]


@contextlib.contextmanager
def name_server(hosts):
    """Answer every question for an IPv4 address with these hosts, as a swarm's name server does."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    asked, whom = server.recvfrom(4096)
                    if not asked:
                        return
                    server.sendto(answer(asked, hosts), whom)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        port = server.getsockname()[1]
        try:
            yield port
        finally:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
                end.sendto(b"", ("127.0.0.1", port))
            thread.join()


def answer(asked, hosts):
    """Return the answer to a question, a message of RFC 1035; questions for IPv6 have none."""
    end = asked.index(b"\0", 12) + 5
    (kind,) = struct.unpack_from("!H", asked, end - 4)
    addresses = hosts if kind == 1 else []
    head = asked[:2] + struct.pack("!5H", 0x8180, 1, len(addresses), 0, 0)
    record = b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 1, 4)
    return head + asked[12:end] + b"".join(record + socket.inet_aton(each) for each in addresses)


@contextlib.contextmanager
def gateway(folder, binary, name_port, rest_port):
    """Run the gateway of a deployment as it is rendered, but for its addresses."""
    document = {
        "server": {"name": "web", "engine": "swarm", "replicas": REPLICAS},
        "models": {"m": {"base_path": "/m"}},
        "gateway": {},
    }
    spec = build(document, source="test", folder=Path("/"))
    made = services.plan(spec, render.render(spec), home=folder)
    (text,) = (text for name, text in made.configs.items() if "haproxy.cfg" in name)
    port = free_port()
    for old, new in (
        ("127.0.0.11:53", f"127.0.0.1:{name_port}"),
        ("bind :8500", f"bind 127.0.0.1:{free_port()}"),
        ("bind :8501", f"bind 127.0.0.1:{port}"),
        (":8501 ", f":{rest_port} "),
        (":8501\n", f":{rest_port}\n"),
        ("connect port 8501", f"connect port {rest_port}"),
    ):
        text = text.replace(old, new)
    (folder / "haproxy.cfg").write_text(text)
    process = subprocess.Popen([binary, "-db", "-f", folder / "haproxy.cfg"])
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def fleet(tmp_path, require):
    """Three replicas that wait for 20 ms, four requests at a time, and the gateway's address."""
    binary = shutil.which("haproxy", path="/usr/local/sbin:/usr/sbin:/usr/bin")
    if binary is None:
        require("haproxy", "there is no haproxy")
    rest_port = free_port()
    with contextlib.ExitStack() as stack:
        servers = []
        for host in HOSTS:
            servers.append(AnsweringServer((0, rest_port), host=host))
            stack.callback(servers[-1].kill)
            servers[-1].tell(delay_s=SERVICE_S, slots=SLOTS)
        name_port = stack.enter_context(name_server(HOSTS))
        url = stack.enter_context(gateway(tmp_path, binary, name_port, rest_port))
        yield servers, url


def measured(url, schedule):
    load = Load(url, "rest", schedule, connections=32)
    return Bench([PREDICT], about={"warmup_s": 0.3}).measure(load)


def all_answer(servers, url):
    """Wait until the gateway sends requests to every replica."""
    for _ in range(100):
        for each in servers:
            each.told()
        run = measured(url, Closed(6, requests=60))
        if all(each.told()[0] for each in servers):
            return not samples.is_error(run.samples).any()
    return False


def test_three_replicas_behind_the_gateway_are_as_quick_as_simulated(fleet, tmp_path, shell):
    servers, url = fleet
    files = []
    for name, schedule in (("light", Closed(1, requests=650)), ("full", Closed(16, 4.0))):
        run = measured(servers[0].urls["rest"], schedule)
        files.append(str(tmp_path / f"{name}.npz"))
        samples.write(run, Path(files[-1]))
    done = shell(
        "capacity", *files, "--rate", str(RATE), "--p99", "1s", "--replicas", str(REPLICAS),
        "--policy", "least-loaded", "--json",
    )  # fmt: skip
    assert done.code in {0, 7}, done.err  # of one dead nothing is asked here
    found = json.loads(done.out)["data"]
    assert found["replica"]["slots"] == SLOTS
    simulated = found["answers"][0]["outcome"]

    assert all_answer(servers, url)
    seen = []
    for seed in range(5):
        due = due_ns(ramp(RATE, RATE, 4.0), "poisson", seed)
        summary = stats.summarize(measured(url, Open(due)))
        assert not summary.errors
        seen.append([summary.latency.value_s(name) for name in ("p50", "p99")])
    expected = {"p50": simulated["p50_s"], "p99": simulated["value_s"]}
    for (name, expected_s), values in zip(expected.items(), zip(*seen, strict=True), strict=True):
        print(name, [f"{each * 1e3:.2f}" for each in values], f"{expected_s * 1e3:.2f} simulated")
        assert expected_s == pytest.approx(median(values), rel=0.2), name


LIGHT, FULL = (
    str(Path(__file__).parents[1] / "data" / "runs" / f"{name}.npz") for name in ("light", "full")
)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([LIGHT, FULL, "--rate", "1000", "--p99", "50ms"], 0, "7 replicas keep p99<50ms"),
        ([LIGHT, FULL, "--rate", "1000", "--slo", "p95=5ms"], 7, "a request alone takes longer"),
        ([LIGHT, FULL, "--rate", "1000", "--p99", "50ms", "--replicas", "6"], 7, "one dead"),
        ([FULL, "--rate", "1000", "--p99", "50ms"], 2, "do not show the service time"),
        ([LIGHT, FULL, "--rate", "9", "--p99", "50ms", "--arrivals", "recorded"], 2, "closed loop"),
        ([LIGHT, "--rate", "1000"], 2, "either --p99 or --slo"),
        ([LIGHT, "--rate", "1000", "--p99", "soon"], 2, "'p99=soon'"),
        (["nothing.npz", "--rate", "1000", "--p99", "50ms"], 2, "nothing.npz"),
    ],
)
def test_exit_code_tells_kept_from_not_kept_and_from_what_runs_cannot_tell(
    shell, arguments, code, says
):
    done = shell("capacity", *arguments)
    assert done.code == code, done.err
    assert says in done.out + done.err


def test_plot_replaces_only_what_tfkit_wrote(shell, tmp_path):
    page = tmp_path / "plan.html"
    command = ["capacity", LIGHT, FULL, "--rate", "200", "--p99", "90ms", "--plot", str(page)]
    assert shell(*command).code == 0
    assert "<svg" in page.read_text()
    assert shell(*command).code == 0
    page.write_text("mine")
    assert shell(*command).code == 2
    assert page.read_text() == "mine"
