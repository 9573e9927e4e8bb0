"""Rendered rules and dashboard before a real Prometheus that watches a real server."""

import contextlib
import gzip
import json
import math
import re
import shutil
import subprocess
import threading
import time
from collections import Counter
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from tests.conftest import DATA as TESTS_DATA
from tests.integration import prometheus
from tests.integration.prometheus import checked, until
from tests.ports import free_port
from tfserve_kit import connect
from tfserve_kit.clients import Target
from tfserve_kit.deployment import build, monitoring, render
from tfserve_kit.deployment.flags import FILE_FLAGS, MODEL_CONFIG
from tfserve_kit.embedded import limits
from tfserve_kit.embedded.server import EmbeddedServer
from tfserve_kit.engines import process
from tfserve_kit.errors import RequestError
from tfserve_kit.perf.metrics import parse

pytestmark = pytest.mark.tensorflow

DATA = TESTS_DATA / "models"
SCRAPE_S, HOUR_S = 1, 900  # an hour of the windows in tests


@pytest.fixture(scope="module", autouse=True)
def _tools(require):
    if lacking := prometheus.missing():
        require("prometheus", f"no {lacking}")


def spec(**sections):
    document = {"models": {"digits": {"base_path": "/m/digits"}}, "monitoring": {}, **sections}
    return build(document, source="test", folder=Path())


def written(files, folder):
    for name, text in files.items():
        (folder / name).write_text(text)


# The files


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"batching": {"max_batch_size": 8}},
        {"models": {'a"b\\c\n\u2028{{ $x }}.*\x85 ü': {"base_path": "/m"}}},
        {"server": {"engine": "swarm", "replicas": 3}, "gateway": {"metrics_port": 8404}},
    ],
)
def test_prometheus_takes_configuration_and_rules(sections, tmp_path):
    place = {"name": "tfkit-default", "port": 8501} if "gateway" in sections else None
    written(monitoring.render(spec(**sections), discovery=place), tmp_path)
    checked("promtool", "check", "config", "--lint-fatal", tmp_path / "prometheus.yml")


def test_alertmanager_calls_somebody_for_what_cannot_wait(tmp_path):
    written(monitoring.render(spec()), tmp_path)
    file = tmp_path / "alertmanager.yml"
    checked("amtool", "check-config", file)
    for severity, receiver in (("page", "on-call"), ("ticket", "tickets")):
        route = ("amtool", "config", "routes", "test", f"--config.file={file}")
        assert checked(*route, f"severity={severity}").strip() == receiver


# The rules, over hours that are written down: every fault beside a server in health.

JOB = 'job="tfserving-default"'
HERE = f'{JOB}, instance="i"'
MODEL = f'{HERE}, model_name="digits"'
COUNT, SERVING = ":tensorflow:serving:request_count", ":tensorflow:serving:"
LATENCY = f'{MODEL}, API="Predict", entrypoint="GRPC"'
CHECKS = f'{MODEL}, API="", entrypoint="REST"'
SESSION = f"{SERVING}batching_session:"
STEADY = "0+600x125"
HEALTHY = {
    f"up{{{HERE}}}": "1x125",
    f'{COUNT}{{{MODEL}, status="OK"}}': STEADY,
    f'{SERVING}request_latency_bucket{{{LATENCY}, le="708235"}}': "0+599x125",
    f'{SERVING}request_latency_count{{{LATENCY}}}': STEADY,
    f'{SESSION}queuing_latency_bucket{{{HERE}, thread_pool_name="", le="120"}}': STEADY,
    f'{SESSION}queuing_latency_bucket{{{HERE}, thread_pool_name="", le="+Inf"}}': STEADY,
    f'{SESSION}processed_batch_size_sum{{{HERE}}}': STEADY,
    f'{SESSION}padding_size_sum{{{HERE}, execution_batch_size="8"}}': "0+120x125",
    f'tfkit_model_versions{{{MODEL}, state="AVAILABLE"}}': "1x125",
    f'tfkit_model_versions{{{MODEL}, state="LOADING"}}': "0x125",
    f':tensorflow:cc:saved_model:load_attempt_count{{{HERE}, model_path="/m/1", status="success"}}':
        "1x125",
    'haproxy_backend_active_servers{job="tfserving-default-gateway", proxy="rest_replicas"}':
        "2x125",
}  # fmt: skip
GONE = "_x125"
FAULTS = {
    "health": ({}, set()),
    "callers' errors": (
        {f'{COUNT}{{{MODEL}, status="{code}"}}': STEADY
         for code in ("INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "CANCELLED")},
        set(),
    ),
    "errors beside health checks": (
        {f'{COUNT}{{{MODEL}, status="OK"}}': "0+6600x125",
         f'{SERVING}request_latency_bucket{{{CHECKS}, le="708235"}}': "0+6000x125",
         f'{SERVING}request_latency_count{{{CHECKS}}}': "0+6000x125",
         f'{COUNT}{{{MODEL}, status="INTERNAL"}}': "0+30x125"},
        {"ErrorBudgetBurn page", "ErrorBudgetBurn ticket"},
    ),
    "slow beside health checks": (
        {f'{SERVING}request_latency_bucket{{{CHECKS}, le="708235"}}': "0+6000x125",
         f'{SERVING}request_latency_count{{{CHECKS}}}': "0+6000x125",
         f'{SERVING}request_latency_bucket{{{LATENCY}, le="708235"}}': "0+450x125"},
        {"LatencyBudgetBurn page", "LatencyBudgetBurn ticket"},
    ),
    "names that nobody serves": (
        {f'{COUNT}{{{HERE}, model_name="made up", status="NOT_FOUND"}}': STEADY}, set()
    ),
    "errors": (
        {f'{COUNT}{{{MODEL}, status="INTERNAL"}}': "0+30x125"},
        {"ErrorBudgetBurn page", "ErrorBudgetBurn ticket"},
    ),
    "a few errors for long": (
        {f'{COUNT}{{{MODEL}, status="UNAVAILABLE"}}': "0+2x125"}, {"ErrorBudgetBurn ticket"}
    ),
    "slow": (
        {f'{SERVING}request_latency_bucket{{{LATENCY}, le="708235"}}': "0+450x125"},
        {"LatencyBudgetBurn page", "LatencyBudgetBurn ticket"},
    ),
    "slow, as Prometheus 3 writes it": (
        {f'{SERVING}request_latency_bucket{{{LATENCY}, le="708235"}}': GONE,
         f'{SERVING}request_latency_bucket{{{LATENCY}, le="708235.0"}}': "0+450x125"},
        {"LatencyBudgetBurn page", "LatencyBudgetBurn ticket"},
    ),
    "no capacity": (
        {f'{COUNT}{{{MODEL}, status="RESOURCE_EXHAUSTED"}}': "0+30x125"},
        {"ResourceExhausted page", "ResourceExhausted ticket"},
    ),
    "down": ({f"up{{{HERE}}}": "1x60 0x65"}, {"ServerDown page"}),
    "never seen": (dict.fromkeys(HEALTHY, GONE), {"ServerDown page"}),
    "no version": (
        {f'tfkit_model_versions{{{MODEL}, state="AVAILABLE"}}': "1x60 0x65"},
        {"NoVersionAvailable page"},
    ),
    "no version of an official server": (
        {f'tfkit_model_versions{{{MODEL}, state="AVAILABLE"}}': GONE,
         f'tfkit_model_versions{{{MODEL}, state="LOADING"}}': GONE,
         f'{COUNT}{{{MODEL}, status="OK"}}': "600x125",
         f'{COUNT}{{{MODEL}, status="NOT_FOUND"}}': STEADY},
        {"NoVersionAvailable page"},
    ),
    "a swap": (
        {f'tfkit_model_versions{{{MODEL}, state="LOADING"}}': "0x115 1x10"}, set()
    ),
    "a swap without end": (
        {f'tfkit_model_versions{{{MODEL}, state="LOADING"}}': "0x60 1x65"},
        {"SwapUnfinished ticket"},
    ),
    "a version that cannot be loaded": (
        {":tensorflow:cc:saved_model:load_attempt_count"
         f'{{{HERE}, model_path="/m/2", status="fail"}}': "_x115 1x10"},
        {"LoadFails ticket"},
    ),
    "one that could not, once": (
        {":tensorflow:cc:saved_model:load_attempt_count"
         f'{{{HERE}, model_path="/m/2", status="fail"}}': "_x60 1x65"},
        set(),
    ),
    "a full queue": (
        {f'{SESSION}queuing_latency_bucket{{{HERE}, thread_pool_name="", le="120"}}': "0+60x125",
         f'{SESSION}queuing_latency_bucket{{{HERE}, thread_pool_name="", le="700000"}}': STEADY},
        {"QueueSaturated ticket"},
    ),
    "padding": (
        {f'{SESSION}padding_size_sum{{{HERE}, execution_batch_size="8"}}': "0+400x125"},
        {"PaddingWaste ticket"},
    ),
    "a gateway without replicas": (
        {'haproxy_backend_active_servers{job="tfserving-default-gateway", '
         'proxy="rest_replicas"}': "2x60 0x65"},
        {"GatewayHasNoServer page"},
    ),
}  # fmt: skip


def test_every_fault_has_its_alert_and_no_other(tmp_path):
    server = {"engine": "swarm", "replicas": 2}
    files = monitoring.render(
        spec(server=server, gateway={"metrics_port": 8404}, batching={"max_batch_size": 8})
    )
    written(files, tmp_path)
    alerts = 'count by (alertname, severity) (ALERTS{alertstate="firing"})'
    tests = [
        {
            "name": fault,
            "interval": "1m",
            "input_series": [
                {"series": series, "values": values} for series, values in (HEALTHY | more).items()
            ],
            "promql_expr_test": [
                {
                    "expr": alerts,
                    "eval_time": "125m",
                    "exp_samples": [
                        {"labels": '{{alertname="{}", severity="{}"}}'.format(*each.split()),
                         "value": 1}
                        for each in expected
                    ],
                }
            ],
        }
        for fault, (more, expected) in FAULTS.items()
    ]  # fmt: skip
    document = {"rule_files": ["rules.yml"], "evaluation_interval": "5m", "tests": tests}
    (tmp_path / "test.yml").write_text(json.dumps(document))
    checked("promtool", "test", "rules", tmp_path / "test.yml")


def test_every_alert_is_tried():
    rendered = monitoring.render(
        spec(server={"engine": "swarm"}, gateway={"metrics_port": 1}, batching={})
    )["rules.yml"]
    named = {line.split()[-1] for line in rendered.splitlines() if "- alert:" in line}
    assert named == {alert.split()[0] for _, expected in FAULTS.values() for alert in expected}


# The dashboard, before servers under load


class Load:
    """Callers that send one request after the other during a `with` block, whatever comes back."""

    def __init__(self, *calls):
        self._stop, self.codes = threading.Event(), Counter()
        self._threads = [threading.Thread(target=self._run, args=(call,)) for call in calls]

    def _run(self, call):
        while not self._stop.is_set():
            try:
                call()
                self.codes["OK"] += 1
            except RequestError as error:
                self.codes[type(error).__name__] += 1

    def __enter__(self):
        for each in self._threads:
            each.start()
        return self

    def __exit__(self, *error):
        self._stop.set()
        for each in self._threads:
            each.join()


def queries(*places, job="tfserving-default"):
    """Yield title and query of every line of the panels for such servers, as Grafana sends them."""
    stands_for = {"job": job, "gateway": f"{job}-gateway", "instance": ".*", "model": ".*",
                  "__rate_interval": "10s"}  # fmt: skip
    for row in monitoring.PANELS.values():
        for title, _, where, lines in row:
            for number, (query, _) in enumerate(lines):
                if set(where) & set(places):
                    named = re.sub(r"\$(\w+)", lambda name: stands_for[name[1]], query)
                    yield f"{title} {number}", named


def without_values(found, *places):
    """Return the titles of lines whose queries find no numbers now."""
    return [
        title
        for title, query in queries(*places)
        if not any(math.isfinite(float(value)) for _, value in found.query(query))
    ]


BATCHING = {
    "max_batch_size": 8,
    "batch_timeout_micros": 2000,
    "allowed_batch_sizes": [4, 8],
    "num_batch_threads": 2,
}


def test_every_panel_has_values_while_the_embedded_engine_is_under_load(serve, tfkit, tmp_path):
    with serve(process.embedded, monitoring={}, batching=BATCHING) as handle:
        port = urlsplit(handle.endpoints.rest).port
        files = monitoring.render(
            spec(server={"rest_port": port}, batching=BATCHING), scrape_s=SCRAPE_S
        )
        x, urls = np.float32([1, 2, 3]), (handle.endpoints.grpc, handle.endpoints.rest)
        with ExitStack() as stack:
            found = stack.enter_context(prometheus.running(files, tmp_path / "prometheus"))
            clients = [stack.enter_context(connect(url)) for url in urls]
            calls = [
                partial(client.predict, Target("half_plus_two"), {"x": x}) for client in clients
            ]
            older = Target("half_plus_two", 1)
            wrong = partial(clients[1].predict, Target("half_plus_two", 77), {"x": x})
            calls += [partial(clients[0].predict, older, {"x": x}), wrong]
            load = stack.enter_context(Load(*calls))
            places = (monitoring.OFFICIAL, monitoring.EMBEDDED, monitoring.BATCHING)
            until(lambda: not without_values(found, *places), "a value in every panel")
            assert load.codes["OK"] and len(load.codes) == 2
            served = found.query("tfkit_model_version_available{model_name='half_plus_two'}")
            assert sorted(labels["version"] for labels, _ in served) == ["1", "2"]
            versions = found.query("sum by (version, signature) (tfkit_runtime_latency_count)")
            assert {labels["version"] for labels, _ in versions} == {"1", "2"}
            done = tfkit("top", "--url", urls[1], "--once", "--json", "--interval", "2")
            (server,) = done.data
            model = next(each for each in server["models"] if each["model"] == "half_plus_two")
            assert (done.code, server["state"], model["versions"]) == (0, "running", [2, 1])
            assert model["rate"] > model["error_rate"] > 0 and 0 < model["p50_s"] <= model["p99_s"]
            assert server["memory_bytes"] > 1e8 and server["processors"] > 0
            assert 1 <= server["batch"]["rows"] <= 8 and server["batch"]["fill"] is None


def test_every_panel_of_the_gateway_has_values(require, embedded_server, tmp_path):
    if not shutil.which("haproxy"):
        require("haproxy", "no haproxy")
    rest, front, page = urlsplit(embedded_server.endpoints.rest), free_port(), free_port()
    (tmp_path / "haproxy.cfg").write_text(
        "defaults\n mode http\n timeout connect 2s\n timeout client 9s\n timeout server 9s\n"
        f"frontend rest\n bind 127.0.0.1:{front}\n default_backend rest_replicas\n"
        f"backend rest_replicas\n server replica1 {rest.hostname}:{rest.port} check\n"
        f"frontend metrics\n bind 127.0.0.1:{page}\n"
        " http-request use-service prometheus-exporter if { path /metrics }\n"
    )
    files = monitoring.render(
        spec(server={"engine": "swarm"}, gateway={"metrics_port": page}), scrape_s=SCRAPE_S
    )
    argv = ["haproxy", "-db", "-f", tmp_path / "haproxy.cfg"]
    with ExitStack() as stack:
        gateway = stack.enter_context(subprocess.Popen(argv))
        stack.callback(gateway.terminate)
        found = stack.enter_context(prometheus.running(files, tmp_path / "prometheus"))
        client = stack.enter_context(connect(f"http://127.0.0.1:{front}"))
        call = partial(client.predict, Target("half_plus_two"), {"x": np.float32([1])})
        stack.enter_context(Load(call))
        places = (monitoring.GATEWAY,)
        until(lambda: not without_values(found, *places), "a value in every panel")


def test_panels_for_the_official_server_ask_for_what_it_has():
    """Names and labels of its page, recorded without batching."""
    with gzip.open(TESTS_DATA / "golden" / "metrics.txt.gz", "rt") as file:
        page = parse(file.read())
    for title, query in queries(monitoring.OFFICIAL):
        for name, labels in re.findall(r"([:\w]+)\{([^}]*)\}", query):
            if name == "up":  # Prometheus's own
                continue
            asked = set(re.findall(r"(\w+)=?[~=!]", labels)) - {"job", "instance"}
            assert any(n == name and asked <= set(dict(known)) for n, known in page), (title, name)


# Faults, before the embedded engine


@contextlib.contextmanager
def watched(tmp_path, models, monitored, batching=None, hour_s=HOUR_S, **flags):
    """Run a server and a Prometheus with short windows for a `with` block."""
    sections = {"monitoring": {"path": "/metrics"} | monitored}
    if batching:
        sections["batching"] = {"num_batch_threads": 1, **batching}
        flags["enable_batching"] = True
    for name, text in render.render(spec(**sections)).items():
        (tmp_path / name).write_text(text)
        if name != MODEL_CONFIG:
            flags[FILE_FLAGS[name]] = str(tmp_path / name)
    with EmbeddedServer.of(models, **flags) as server:
        files = monitoring.render(
            spec(server={"rest_port": server.rest_port}, **sections),
            scrape_s=SCRAPE_S,
            hour_s=hour_s,
        )
        with prometheus.running(files, tmp_path / "prometheus") as found:
            until(lambda: found.query("up == 1") and not found.firing(), "the first page")
            yield server, found


def alerts_during(found, expected):
    """Return which alerts fired until those that are expected do, and a while after."""
    seen = set()

    def look():
        seen.update(found.firing())
        return seen >= expected

    until(look, expected)
    end = time.monotonic() + 3
    while time.monotonic() < end:
        look()
        time.sleep(SCRAPE_S)
    return seen


X = {"x": np.float32([1])}
LARGE = {"x": np.ones(1_000_000, np.float32)}  # takes more than the 0.6 ms below


def put(models, name, number=1):
    """Return the base path of a copy of a model's version 1."""
    shutil.copytree(DATA / name / "1", models / name / str(number))
    return models / name


def test_errors_fire_the_alert_of_errors_and_no_other(tmp_path):
    """A queue for one batch refuses what comes beside it."""
    batching = {"max_batch_size": 1, "max_enqueued_batches": 1}
    models = {"half_plus_two": DATA / "half_plus_two"}
    with (
        watched(tmp_path, models, {"slo_latency_ms": 60_000}, batching) as (server, found),
        connect(server.grpc_url, retries=0) as client,
    ):
        call = partial(client.predict, Target("half_plus_two"), X)
        with Load(*[call] * 8) as load:
            assert alerts_during(found, {"ErrorBudgetBurn"}) == {"ErrorBudgetBurn"}
        assert load.codes["ServerOverloaded"]


def test_slow_model_fires_the_alert_of_latency_and_no_other(tmp_path):
    models = {"half_plus_two": DATA / "half_plus_two"}
    with (
        watched(tmp_path, models, {"slo_latency_ms": 0.5}) as (server, found),
        connect(server.grpc_url) as client,
    ):
        call = partial(client.predict, Target("half_plus_two"), LARGE)
        with Load(call):
            assert alerts_during(found, {"LatencyBudgetBurn"}) == {"LatencyBudgetBurn"}


def test_model_without_a_version_fires_its_alert_and_no_other(tmp_path):
    base_path = put(tmp_path, "half_plus_two")
    flags, patient = {"file_system_poll_wait_seconds": 1}, {"slo_latency_ms": 60_000}
    with (
        watched(tmp_path, {"half_plus_two": base_path}, patient, **flags) as (server, found),
        connect(server.grpc_url) as client,
    ):
        with Load(partial(client.predict, Target("half_plus_two"), X)) as load:
            until(lambda: load.codes["OK"], "an answer")
            shutil.rmtree(base_path / "1")
            assert alerts_during(found, {"NoVersionAvailable"}) == {"NoVersionAvailable"}
        assert len(load.codes) == 2


def test_requests_beyond_the_memory_fire_the_alert_of_capacity_and_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "most_held_bytes", lambda: 30 << 20)
    models = {"half_plus_two": DATA / "half_plus_two"}
    with (
        watched(tmp_path, models, {"slo_latency_ms": 60_000}) as (server, found),
        connect(server.rest_url, retries=0) as client,
    ):
        call = partial(client.predict, Target("half_plus_two"), {"x": np.ones(300_000, np.float32)})
        with Load(*[call] * 4):
            assert alerts_during(found, {"ResourceExhausted"}) == {"ResourceExhausted"}


@pytest.mark.parametrize(
    ("alert", "batching", "slo_ms"),
    [
        ("QueueSaturated", {"max_batch_size": 8, "batch_timeout_micros": 800_000}, 1000),
        ("PaddingWaste", {"max_batch_size": 8, "allowed_batch_sizes": [8]}, 60_000),
    ],
)
def test_batches_that_wait_or_are_mostly_padding_fire_their_alert_and_no_other(
    tmp_path, alert, batching, slo_ms
):
    """One row at a time: it waits for seven others, or seven that nobody asked for are computed."""
    models = {"half_plus_two": DATA / "half_plus_two"}
    with (
        watched(tmp_path, models, {"slo_latency_ms": slo_ms}, batching, 120) as (server, found),
        connect(server.grpc_url) as client,
        Load(partial(client.predict, Target("half_plus_two"), X)),
    ):
        assert alerts_during(found, {alert}) == {alert}
