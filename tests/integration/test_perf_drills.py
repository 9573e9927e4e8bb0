"""`tfkit perf --during push` and `restart`, and what a server uses meanwhile."""

import json
import shutil

import pytest

from tests.integration.commands import running
from tfserve_kit.perf import samples

pytestmark = pytest.mark.tensorflow


@pytest.fixture
def base_path(tmp_path, models):
    shutil.copytree(models / "half_plus_two" / "1", tmp_path / "half" / "1")
    return tmp_path / "half"


@pytest.fixture
def served(tfkit, base_path):
    """A server of its own."""
    with running("serve", "--engine", "embedded", "--detach", "--name", "web", "--grpc-port", 0,
                 "--rest-port", 0, "--model", f"half={base_path}") as command:  # fmt: skip
        done = command.ended()
    assert done.code == 0, done.err
    yield
    assert tfkit("stop", "web").code == 0


def test_a_push_and_a_restart_are_marked_and_no_request_is_missing(
    tfkit, served, base_path, tmp_path
):
    def perf(during):
        done = tfkit("perf", "--rate", 50, "--duration", 6, "--timeout", 30, "--during", during,
                     "--output", "run.npz", "--json")  # fmt: skip
        assert done.code == 0, done.err
        assert done.data["settings"]["during"] == during
        sent = samples.read(tmp_path / "run.npz").samples
        assert sent["sequence"].tolist() == list(range(300))
        return done.data, [mark["what"] for mark in done.data["marks"]]

    data, marks = perf("push")
    assert marks == ["begin: push", "version 2 is AVAILABLE", "end: push (exit code 0)"]
    assert (base_path / "2" / "saved_model.pb").exists()
    assert data["errors"] == {}
    assert data["settings"]["version"] == 1

    data, marks = perf("restart")
    assert marks == ["begin: restart", "end: restart (exit code 0)"]
    assert data["settings"]["version"] == 2
    assert sum(data["errors"].values()) + data["unfinished"] < 300
    assert data["server"]["usage"]
    assert all(each["processors"] >= 0 for each in data["server"]["usage"])
    assert json.loads(tfkit("ps", "--json").out)["data"][0]["state"] == "running"


@pytest.mark.parametrize("during", ["push", "restart"])
def test_a_server_that_tfkit_does_not_run_is_refused_before_the_run(tfkit, embedded_server, during):
    done = tfkit("perf", "--url", embedded_server.endpoints.grpc, "--model", "half_plus_two",
                 "--during", during)  # fmt: skip
    assert done.code == 2
    assert f"--during {during}, but tfkit does not run the server at grpc://" in done.err
    assert "--during COMMAND" in done.err


def test_a_push_of_a_version_that_is_not_here_is_refused(tfkit, served, base_path):
    (base_path / "1").rename(base_path / "hidden")
    try:
        done = tfkit("perf", "--during", "push")
    finally:
        (base_path / "hidden").rename(base_path / "1")
    assert done.code == 2
    assert "is in no folder of this machine" in done.err


def test_a_container_tells_processor_and_memory(tfkit, serve_args, name, tmp_path):
    assert tfkit(*serve_args("--detach")).code == 0
    try:
        done = tfkit("perf", "--duration", 3, "--concurrency", 2, "--report", "r.html", "--json")
    finally:
        tfkit("stop", name)
    assert done.code == 0
    usage = done.data["server"]["usage"]
    assert len(usage) >= 2
    assert sum(each["processors"] for each in usage) > 0
    assert all(each["memory_bytes"] > 10_000_000 for each in usage)
    assert "Processors that the server kept busy" in (tmp_path / "r.html").read_text()
