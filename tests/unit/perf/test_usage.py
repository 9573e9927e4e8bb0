"""What a server uses of its machine's GPUs, as a stand-in for nvidia-smi tells it."""

import os

import pytest

from tests.unit.perf.runs import queued
from tfserve_kit.perf import metrics, report, report_html, stats
from tfserve_kit.perf.samples import Run

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
        page = report_html.page([report_html.Named("run", run, summary)])
        assert "GPUs of the machine" in page
        assert "1,611 MB at most" in page

    def test_say_nothing_of_gpus_that_are_not_there(self, run):
        cpu = {"at_s": 1.0, "processors": 0.5, "memory_bytes": 3e8}
        plain = Run(run.samples, run.settings, server={"usage": [cpu, cpu | {"at_s": 2.0}]})
        summary = stats.summarize(plain)
        assert "GPU" not in report.as_text(summary, plain)
        assert "GPU" not in report_html.page([report_html.Named("run", plain, summary)])


def test_a_server_that_was_restarted_meanwhile_has_no_negative_usage():
    looks = iter([metrics.Usage(9.0, 1, 5), metrics.Usage(9.5, 1, 5), metrics.Usage(2.0, 1, 6),
                  metrics.Usage(2.1, 1, 6)])  # fmt: skip
    watch = metrics.Watch(lambda: None, lambda: next(looks))
    for _ in range(4):
        watch._look()
    used = watch.data(0)["usage"]
    assert len(used) == 2
    assert all(each["processors"] > 0 for each in used)
