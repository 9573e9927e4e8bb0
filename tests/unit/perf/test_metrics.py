"""What the server says of itself is read right, and taken apart as far as it is known."""

import os
import threading
import time

import pytest

from tests.contract.lying_servers import Liar, http
from tests.unit.perf.runs import queued
from tfserve_kit.embedded import metrics as ours
from tfserve_kit.perf import metrics, report, report_html, stats
from tfserve_kit.perf.samples import Run

PAGE = """\
# TYPE :tensorflow:serving:request_count counter
:tensorflow:serving:request_count{model_name="a \\"b\\" \\\\ \\n",status="OK"} 3
# TYPE plain gauge
plain 1.5e3
with_time{le="+Inf"} 7 1395066363000
broken{
not_a_number{} x
nan_is_one NaN
"""


def test_every_value_of_a_page_is_read_with_its_labels():
    found = metrics.parse(PAGE)
    key = ":tensorflow:serving:request_count", (("model_name", 'a "b" \\ \n'), ("status", "OK"))
    assert found[key] == 3
    assert found["plain", ()] == 1500
    assert found["with_time", (("le", "+Inf"),)] == 7
    assert len(found) == 4


@pytest.mark.parametrize(("url", "page"), [
    ("http://host:8501", "http://host:8501/monitoring/prometheus/metrics"),
    ("https://host/", "https://host/monitoring/prometheus/metrics"),
    ("grpc://host:8500", None),
])  # fmt: skip
def test_the_page_is_known_for_rest_addresses_only(url, page):
    assert metrics.page_url(url) == page


@pytest.fixture
def server():
    """The metrics of a server that has answered one request before anybody looked."""
    found = ours.Metrics()
    answer(found, 999_999)
    return found


def answer(server, micros):
    # A latency counts the request that took it.
    server.observe(ours.REQUEST_LATENCY, micros, ("m", "Predict", "GRPC"))
    server.observe(ours.RUNTIME_LATENCY, micros / 2, ("m", "Predict", "TF2"))
    server.observe(ours.QUEUING_LATENCY, micros / 10, ("",))


def batch(server, rows, padded):
    server.observe(ours.PADDING_SIZE, padded - rows, (str(padded),))
    server.observe(ours.PROCESSED_BATCH_SIZE, padded)


def test_a_difference_counts_only_what_came_between(server):
    before = metrics.parse(server.page())
    for micros in (1000, 3000):
        answer(server, micros)
    server.add(ours.REQUEST_COUNT, ("m", "INVALID_ARGUMENT"))
    found = metrics.difference(before, metrics.parse(server.page()))
    assert found["requests"] == {"OK": 2, "INVALID_ARGUMENT": 1}
    assert found["request_s"] == pytest.approx(0.002)
    assert found["runtime_s"] == pytest.approx(0.001)
    assert found["queue_s"] == pytest.approx(0.0002)
    assert found["batches"] is None


def test_batches_tell_rows_from_padding(server):
    before = metrics.parse(server.page())
    batch(server, 3, 4)
    batch(server, 7, 8)
    batch(server, 8, 8)
    found = metrics.difference(before, metrics.parse(server.page()))["batches"]
    assert (found["count"], found["rows"], found["executed_rows"]) == (3, 18, 20)
    assert found["padding_share"] == pytest.approx(0.1)
    assert found["mean_rows"] == pytest.approx(6)
    assert found["sizes"] == {"8": 1, "16": 2}


def test_nothing_done_is_nothing_said(server):
    page = metrics.parse(server.page())
    found = metrics.difference(page, page)
    assert (found["requests"], found["request_s"], found["batches"]) == ({}, None, None)


@pytest.mark.parametrize(("seen", "parts"), [
    ({}, {"client": 1, "service": 10}),
    ({"request_s": 6}, {"client": 1, "wire": 4, "server": 6}),
    ({"request_s": 6, "runtime_s": 5}, {"client": 1, "wire": 4, "server": 1, "compute": 5}),
    ({"request_s": 6, "runtime_s": 5, "queue_s": 2},
     {"client": 1, "wire": 4, "server": 1, "queue": 2, "compute": 3}),
    ({"request_s": None, "runtime_s": None}, {"client": 1, "service": 10}),
])  # fmt: skip
def test_latency_is_split_as_far_as_it_is_known_and_nothing_is_lost(seen, parts):
    found = metrics.split(10, 1, seen)
    assert found == pytest.approx(parts)
    assert sum(found.values()) == pytest.approx(11)


def test_a_watch_looks_before_during_and_after(server):
    looks = threading.Semaphore(0)

    def read():
        looks.release()
        return server.page()

    with metrics.Watch(read, metrics.of_process(os.getpid()), every_s=0.01) as watch:
        answer(server, 1000)
        for _ in range(4):
            assert looks.acquire(timeout=30)
    found = watch.data(0)
    assert found["difference"]["requests"] == {"OK": 1}
    assert len(found["pages"]) >= 4
    assert found["pages"][-1]["requests"] == 2
    assert all(each["memory_bytes"] > 0 for each in found["usage"])


def test_a_watch_of_a_server_without_a_page_says_nothing():
    with metrics.Watch(lambda: None) as watch:
        pass
    assert watch.data(0) == {}


def test_a_page_that_does_not_answer_is_no_page():
    assert metrics.reader("http://127.0.0.1:9")() is None
    assert metrics.reader("grpc://127.0.0.1:9")() is None


def says(data):
    """Return a lie about what a server says of itself, and of its page, too."""
    return Liar(lambda *_: None, about=data)


@pytest.mark.parametrize(
    "data",
    [
        http(b"x" * 20_000_000),
        http(b"", "302 Found", Location="http://127.0.0.1:9/elsewhere"),
        http(b"half", Content_Length=100)[:-1],
        b"SSH-2.0",
    ],
    ids=["much", "elsewhere", "never whole", "another protocol"],
)
def test_a_page_that_is_none_is_none_in_time(monkeypatch, data):
    monkeypatch.setattr(metrics, "_TIMEOUT_S", 0.5)
    server = says(data)
    began_s = time.monotonic()
    assert metrics.reader(server.url)() is None
    assert time.monotonic() - began_s < 5
    server.close()


def test_user_and_password_of_an_address_are_sent_as_such_alone():
    server = says(http(b"a 1"))
    assert metrics.reader(server.url.replace("//", "//me:p%40ss@"))() == "a 1"
    assert metrics.page_url("http://me:secret@h:1") == f"http://h:1{metrics.PROMETHEUS_PATH}"
    server.close()


def test_usage_of_a_process_that_ended_is_unknown():
    assert metrics.of_process(2**22 + 1)() is None
    assert metrics.of_container("no-such-container")() is None
    own = metrics.of_process(os.getpid())()
    assert own.processor_s > 0
    assert own.memory_bytes > 1_000_000


TWO = "37, 1024\n63, 512\n"


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """Put a script on PATH that prints a text and keeps its arguments."""

    def make(text, code=0):
        script = tmp_path / "nvidia-smi"
        script.write_text(
            f"#!/bin/sh\necho \"$@\" > '{tmp_path}/asked'\nprintf '{text}'\nexit {code}\n"
        )
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        return tmp_path / "asked"

    return make


def own():
    return metrics.with_gpus(metrics.of_process(os.getpid()))()


def test_gpus_are_added_up(nvidia_smi):
    asked = nvidia_smi(TWO)
    found = own()
    assert found.gpus_busy == pytest.approx(1.0)
    assert found.gpu_memory_bytes == 1536 * 2**20
    assert found.memory_bytes > 0
    assert "--query-gpu=utilization.gpu,memory.used" in asked.read_text()
    assert "--format=csv,noheader,nounits" in asked.read_text()


def test_a_gpu_that_does_not_tell_is_left_out(nvidia_smi):
    nvidia_smi("[N/A], [N/A]\n50, 100\n")
    assert own().gpus_busy == 0.5


@pytest.mark.parametrize(("text", "code"), [("NVIDIA-SMI has failed\n", 9), ("", 0), (TWO, 1)])
def test_a_tool_that_fails_changes_nothing(nvidia_smi, text, code):
    nvidia_smi(text, code)
    found = own()
    assert found.gpus_busy is None
    assert found.processor_s > 0


def test_without_the_tool_nothing_is_run(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    look = metrics.of_process(os.getpid())
    assert metrics.with_gpus(look) is look


def test_a_process_that_ended_has_no_gpus_either(nvidia_smi):
    nvidia_smi(TWO)
    assert metrics.with_gpus(lambda: None)() is None


class TestReports:
    @pytest.fixture
    def run(self, nvidia_smi):
        nvidia_smi(TWO)
        look = metrics.with_gpus(metrics.of_process(os.getpid()))
        with metrics.Watch(lambda: None, look, every_s=0.01) as watch:
            watch._look()
            watch._look()
        made = queued(count=600, warmup_s=0.0)
        return Run(made.samples, made.settings, server=watch.data(0))

    def test_show_gpus_beside_processors(self, run):
        assert all(each["gpus_busy"] == 1.0 for each in run.server["usage"])
        summary = stats.summarize(run)
        text = report.as_text(summary, run)
        assert "GPUs of the machine: 1.00 busy, 1,611 MB at most" in text
        page = report_html.page([stats.NamedRun("run", run, summary)])
        assert "GPUs of the machine" in page
        assert "1,611 MB at most" in page

    def test_say_nothing_of_gpus_that_are_not_there(self, run):
        cpu = {"at_s": 1.0, "processors": 0.5, "memory_bytes": 3e8}
        plain = Run(run.samples, run.settings, server={"usage": [cpu, cpu | {"at_s": 2.0}]})
        summary = stats.summarize(plain)
        assert "GPU" not in report.as_text(summary, plain)
        assert "GPU" not in report_html.page([stats.NamedRun("run", plain, summary)])


def test_a_server_that_was_restarted_meanwhile_has_no_negative_usage():
    looks = iter([metrics.Usage(9.0, 1, 5), metrics.Usage(9.5, 1, 5), metrics.Usage(2.0, 1, 6),
                  metrics.Usage(2.1, 1, 6)])  # fmt: skip
    watch = metrics.Watch(lambda: None, lambda: next(looks))
    for _ in range(4):
        watch._look()
    used = watch.data(0)["usage"]
    assert len(used) == 2
    assert all(each["processors"] > 0 for each in used)
