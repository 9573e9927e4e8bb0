"""`tfkit perf`: what is measured, kept, reported and compared, and with which exit code."""

import csv
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

import numpy as np
import pytest

from tests.integration.commands import PATIENCE_S
from tests.unit.perf.runs import queued, run_of, sample
from tfserve_kit import savedmodel, tfrecord
from tfserve_kit.perf import samples, sending
from tfserve_kit.savedmodel import DEFAULT_SIGNATURE, warmup


@pytest.fixture
def kept(tmp_path):
    """Keep a made-up run under a name."""

    def keep(name, run):
        samples.write(run, tmp_path / name)
        return name

    return keep


@pytest.fixture
def quick(kept):
    return kept("quick.npz", queued(count=3000, service_s=0.001, warmup_s=0.0))


@pytest.fixture
def slow(kept):
    return kept("slow.npz", queued(count=3000, service_s=0.003, seed=1, warmup_s=0.0))


def test_a_kept_run_is_reported_again(tfkit, quick):
    done = tfkit("perf", "report", quick)
    assert done.code == 0
    assert "3000 requests, errors: none" in done.out


def test_a_kept_run_becomes_every_kind_of_file(tfkit, quick, tmp_path):
    done = tfkit("perf", "report", quick, "--report", "r.html", "--markdown", "r.md",
                 "--samples", "r.csv", "--warmup", 2, "--json")  # fmt: skip
    assert (done.code, done.kind) == (0, "perf")
    assert done.data["requests"] < 3000
    assert "<!doctype html>" in (tmp_path / "r.html").read_text()
    assert "| latency (ms) |" in (tmp_path / "r.md").read_text()
    assert len(list(csv.DictReader((tmp_path / "r.csv").read_text().splitlines()))) == 3000


def test_several_runs_stand_side_by_side(tfkit, quick, slow, tmp_path):
    done = tfkit("perf", "report", quick, slow, "--report", "r.html")
    assert done.code == 0
    assert done.out.count("/s") >= 2
    assert "quick" in done.out and "slow" in done.out
    assert "Throughput and latency" in (tmp_path / "r.html").read_text()
    data = tfkit("perf", "report", quick, slow, "--json").data
    assert [each["name"] for each in data["runs"]] == ["quick", "slow"]


def test_a_worse_run_is_called_so_and_fails_its_gate(tfkit, quick, slow, tmp_path):
    done = tfkit(
        "perf", "compare", quick, slow, "--gate", "p99<+5%", "--markdown", "c.md", "--json"
    )
    assert (done.code, done.kind) == (7, "perf-comparison")
    assert {each["name"]: each["outcome"] for each in done.data["differences"]}["p50"] == "worse"
    assert done.data["gates"][0]["passed"] is False
    assert "FAILED: p99<+5%" in (tmp_path / "c.md").read_text()


def test_a_better_run_passes(tfkit, quick, slow):
    done = tfkit("perf", "compare", slow, quick, "--gate", "p99<+5%", "--gate", "errors<0.1%")
    assert done.code == 0
    assert "better" in done.out
    assert "passed: p99<+5%" in done.out


def test_an_invalid_run_says_so_first_and_passes_no_gate(tfkit, kept):
    late = [sample(i, i, i + 9, i + 10, free_ms=i) for i in range(100)]
    done = tfkit("perf", "report", kept("late.npz", run_of(late)), "--gate", "p50<1s")
    assert done.code == 7
    assert done.out.startswith("INVALID")


@pytest.mark.parametrize("arguments", [
    ("report", "gone.npz"), ("report", "text.npz"), ("report",), ("compare", "gone.npz", "x.npz"),
    ("--rate", "5", "--ramp", "1:2"), ("--find-max",), ("--slo", "p99=5ms"), ("--ramp", "5"),
    ("--concurrency", "0"), ("--concurrency", "1,x"), ("--concurrency", "1,2", "--rate", "5"),
    ("--during", "overload"), ("--during", "poison", "--processes", "2"), ("--gate", "p99"),
    ("--output", "run.txt"), ("--report", "no/r.html"),
    ("--speed", "2"), ("--replay", "log", "--batch", "2"), ("--replay", "log", "--input", "random"),
    ("--replay", "log", "--ramp", "1:2"), ("--replay", "log", "--find-max", "--slo", "p99=5ms"),
    ("--replay", "log", "--duration", "5"), ("--replay", "log", "--concurrency", "8"),
    ("--replay", "log", "--rate", "5", "--speed", "2"), ("--replay", "log", "--during", "overload"),
    ("--find-max", "--slo", "fast"), ("--gate", "p99<+5%", "--url", "grpc://localhost:9"),
])  # fmt: skip
def test_what_makes_no_sense_is_refused(tfkit, arguments, tmp_path):
    (tmp_path / "text.npz").write_text("no run")
    assert tfkit("perf", *arguments).code == 2


def test_nobody_at_the_address_is_told_before_anything_is_measured(tfkit):
    done = tfkit("perf", "--url", "grpc://localhost:9", "--model", "m", "--timeout", "2")
    assert done.code == 6


@pytest.mark.tensorflow
class TestAgainstAServer:
    @pytest.fixture
    def perf(self, tfkit, embedded_server):
        def run(*arguments, protocol="grpc"):
            url = getattr(embedded_server.endpoints, "rest" if protocol == "rest" else "grpc")
            return tfkit("perf", "--url", url, "--model", "half_plus_two", *arguments)

        return run

    @pytest.mark.parametrize("protocol", ["grpc", "rest"])
    def test_a_closed_loop_is_measured_and_kept(self, perf, protocol, tmp_path):
        done = perf("--duration", "0.5", "--concurrency", "2", "--output", "run.npz",
                    "--output", "run.json", "--json", protocol=protocol)  # fmt: skip
        assert done.code == 0
        assert done.data["errors"] == {}
        assert done.data["settings"]["protocol"] == protocol
        run = samples.read(tmp_path / "run.npz")
        assert len(run.samples) >= done.data["requests"] > 5
        assert json.loads((tmp_path / "run.json").read_text())["requests"] == done.data["requests"]

    def test_an_open_loop_sends_what_was_due(self, perf):
        done = perf("--duration", "1", "--rate", "40", "--arrivals", "constant", "--warmup", "0",
                    "--json")  # fmt: skip
        assert done.code == 0
        assert done.data["requests"] == 40
        assert done.data["offered_rate"] == pytest.approx(40, rel=0.01)

    def test_several_concurrencies_are_run_one_by_one(self, perf, tmp_path):
        done = perf("--requests", "30", "--concurrency", "1,3", "--output", "r.npz",
                    "--report", "r.html")  # fmt: skip
        assert done.code == 0
        assert "concurrency 1" in done.out and "concurrency 3" in done.out
        assert len(samples.read(tmp_path / "r-2.npz").samples) == 30
        page = (tmp_path / "r.html").read_text()
        assert "<h2>concurrency 1</h2>" in page and "<h2>concurrency 3</h2>" in page

    def test_poison_is_answered_with_errors_that_are_counted_apart(self, perf):
        done = perf("--requests", "250", "--during", "poison", "--json")
        assert done.code == 0
        assert done.data["errors"] == {}
        assert done.data["requests"] == 248
        assert sum(done.data["poisoned"].values()) == 2
        assert "OK" not in done.data["poisoned"]

    def test_a_failed_gate_is_an_exit_code(self, perf):
        done = perf("--requests", "50", "--gate", "p50<1us")
        assert done.code == 7
        assert "FAILED: p50<1us" in done.out

    def test_inputs_come_from_files_and_folders(self, perf, tmp_path):
        (tmp_path / "in").mkdir()
        for number in range(3):
            body = {"instances": [number, number + 1]}
            (tmp_path / "in" / f"{number}.json").write_text(json.dumps(body))
        done = perf("--requests", "20", "--input", "in", "--json")
        assert done.code == 0
        assert done.data["settings"]["distinct_requests"] == 3
        assert perf("--requests", "20", "--input", "in", "--batch", "9").code == 2

    def test_the_highest_rate_is_found(self, perf, monkeypatch):
        monkeypatch.setattr(sending, "run", server_that_bears(100))
        done = perf("--find-max", "--slo", "p90=10ms", "--rate", "30", "--json")
        assert done.code == 0
        assert 95 <= done.data["max_rate"] <= 101
        assert len(done.data["runs"]) == len(done.data["held"])
        text = perf("--find-max", "--slo", "p90=10ms", "--rate", "30", "--gate", "rate>90").out
        assert "is the highest rate with p90=10ms" in text
        assert "passed: rate>90" in text

    def test_no_rate_is_a_failure(self, perf, monkeypatch):
        monkeypatch.setattr(sending, "run", server_that_bears(0))
        done = perf("--find-max", "--slo", "p90=10ms")
        assert done.code == 7
        assert "no rate that was tried" in done.out

    def test_ctrl_c_reports_what_there_is(self, perf, monkeypatch, tmp_path):
        inner = server_that_bears(1e9)

        def interrupted(load, payloads, **others):
            others["stop"].set()
            return inner(load, payloads)

        monkeypatch.setattr(sending, "run", interrupted)
        done = perf("--rate", "100", "--duration", "5", "--output", "run.npz")
        assert done.code == 130
        assert "500 requests" in done.out
        assert len(samples.read(tmp_path / "run.npz").samples) == 500
        found = perf("--find-max", "--slo", "p90=10ms", "--json")
        assert found.code == 130
        assert found.data["max_rate"] == 10
        assert found.data["held"] == [True]


@pytest.mark.tensorflow
class TestReplay:
    """Requests of 1, 2, 3 ... rows: how long an answer is tells which one it belongs to."""

    COUNT = 24
    GAP_S = 0.02

    @pytest.fixture
    def perf(self, tfkit, embedded_server):
        def run(*arguments, protocol="grpc"):
            url = getattr(embedded_server.endpoints, protocol)
            return tfkit("perf", "--url", url, "--model", "half_plus_two", *arguments)

        return run

    @pytest.fixture
    def log(self, tmp_path):
        lines = [
            {"at": 1e9 + n * self.GAP_S, "instances": [0.5] * (n + 1)} for n in range(self.COUNT)
        ]
        lines[3]["signature_name"] = DEFAULT_SIGNATURE
        text = "\n".join(map(json.dumps, lines[::-1]))  # logs are often written at the end
        (tmp_path / "log").write_text(text)
        return "log"

    @pytest.fixture
    def records(self, tmp_path, models):
        signature = savedmodel.read_signatures(models / "half_plus_two" / "1")[DEFAULT_SIGNATURE]
        rows = {"x": np.full(self.COUNT, 0.5, np.float32)}
        made = warmup.build(rows, signature, model="old", sizes=range(1, self.COUNT + 1))
        tfrecord.write(tmp_path / "records", made)
        return "records"

    @pytest.mark.parametrize("processes", [1, 3])
    @pytest.mark.parametrize("protocol", ["grpc", "rest"])
    def test_every_request_is_sent_when_it_came_with_what_it_held(
        self, perf, log, protocol, processes, tmp_path
    ):
        done = perf("--replay", log, "--speed", "2", "--processes", processes,
                    "--output", "run.npz", "--json", protocol=protocol)  # fmt: skip
        assert done.code == 0
        settings = done.data["settings"]
        assert (settings["replay"], settings["speed"], settings["loop"]) == (log, 2.0, "open")
        sent = samples.read(tmp_path / "run.npz").samples
        due_s = np.arange(self.COUNT) * self.GAP_S / 2
        assert sent["due_ns"] / 1e9 == pytest.approx(due_s, abs=1e-6)
        assert set(sent["status"]) == {samples.OK}
        assert (np.diff(sent["sent_bytes"]) > 0).all()
        assert (np.diff(sent["received_bytes"]) > 0).all()

    def test_a_part_is_enough(self, perf, log):
        assert perf("--replay", log, "--requests", "5", "--json").data["requests"] == 5

    def test_records_without_times_are_sent_at_a_rate(self, perf, records, tmp_path):
        done = perf("--replay", records, "--rate", "200", "--output", "run.npz", "--json")
        assert done.code == 0
        sent = samples.read(tmp_path / "run.npz").samples
        assert len(sent) == self.COUNT
        assert (np.diff(sent["received_bytes"]) > 0).all()
        assert done.data["settings"]["rate"] == 200
        more = perf("--replay", records, "--rate", "200", "--arrivals", "poisson",
                    "--requests", self.COUNT + 3, "--output", "run.npz")  # fmt: skip
        assert more.code == 0
        again = samples.read(tmp_path / "run.npz").samples["received_bytes"]
        assert again[-3:].tolist() == again[:3].tolist()

    @pytest.mark.parametrize(("kind", "options"), [
        ("log", ("--rate", "5")), ("log", ("--arrivals", "poisson")), ("records", ()),
        ("records", ("--speed", "2")),
    ])  # fmt: skip
    def test_a_rate_and_times_contradict_each_other(self, perf, log, records, kind, options):
        done = perf("--replay", {"log": log, "records": records}[kind], *options)
        assert done.code == 2


@pytest.mark.tensorflow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_terminal_shows_how_the_run_stands_until_ctrl_c(embedded_server, state_dir, processes):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 200, 0, 0))
    command = [sys.executable, "-m", "tfserve_kit", "perf", "--model", "half_plus_two",
               "--url", embedded_server.endpoints.grpc, "--rate", "50", "--duration", "300",
               "--processes", str(processes)]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, text=True) as popen:
        os.close(theirs)
        try:
            shown = b""
            while shown.count(b"/s, 0 errors, p50 ") < 2:
                shown += os.read(ours, 4096)
            popen.send_signal(signal.SIGINT)
            out, _ = popen.communicate(timeout=PATIENCE_S)
        finally:
            popen.kill()
            os.close(ours)
    assert popen.returncode == 130
    assert "requests, errors: none" in out
    line = shown.decode().split("\r\x1b[2K")[-1]
    assert line.startswith("Sending, 50/s: ")
    assert "/300 s, " in line and "/15,000 ended, " in line
    assert " in flight, " in line and line.endswith(" ms late")


def server_that_bears(rate):
    """Return what takes the place of `sending.run`: 1 ms below a rate, ever longer above it."""

    def run(load, payloads, **others):
        due_ns = load.schedule.due_ns
        taken = np.zeros(len(due_ns), samples.SAMPLE)
        taken["sequence"] = np.arange(len(due_ns))
        for name in ("due_ns", "free_ns", "sent_ns"):
            taken[name] = due_ns
        asked = len(due_ns) / (due_ns[-1] / 1e9)
        waits_ns = 0 if asked <= rate * 1.01 else np.arange(len(due_ns)) * 1_000_000
        taken["done_ns"] = taken["first_byte_ns"] = due_ns + 1_000_000 + waits_ns
        return taken

    return run


def test_python_on_the_page_measures(embedded_server, capsys):
    page = (Path(__file__).parents[2] / "docs" / "perf.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    code = code.replace("grpc://localhost:8500", embedded_server.endpoints.grpc)
    exec(code.replace("digits", "mlp").replace("duration_s=5", "duration_s=0.5"), {})
    rate, p50_s, *_ = capsys.readouterr().out.split()
    assert float(rate.removesuffix("/s")) > 10 and 0 < float(p50_s) < 1
