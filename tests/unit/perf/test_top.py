"""What two pages of metrics say that a server does."""

import gzip
import math
from pathlib import Path

import pytest

from tfserve_kit.embedded import metrics as ours
from tfserve_kit.errors import ServerUnreachable
from tfserve_kit.perf.metrics import Usage
from tfserve_kit.perf.top import Watched, described, look_all, quantile_of

RECORDED = Path(__file__).parents[2] / "data" / "golden" / "metrics.txt.gz"


class Server:
    """A server whose page is what was observed until it is read."""

    def __init__(self, page=None, versions=(), state="", usages=(), **more):
        self.metrics = ours.Metrics()
        self.usages = list(usages)
        self.found = Watched(
            name="s",
            url="http://s",
            state=state,
            models=["m"],
            read=page or self.metrics.page,
            versions=lambda model: versions,
            look=(lambda: self.usages.pop(0)) if usages else None,
            **more,
        )

    def look(self, at_s):
        (found,) = look_all([self.found])
        return type(found)(at_s, found.page, found.usage, found.versions, found.state)

    def during(self, work, seconds=2.0):
        """Return what is said of a time in which something was observed."""
        before = self.look(10.0)
        work(self.metrics)
        return described(self.found, before, self.look(10.0 + seconds))


def answers(metrics):
    for micros in (100, 100, 100, 5000):
        metrics.observe(ours.REQUEST_LATENCY, micros, ("m", "Predict", "GRPC"))
    metrics.observe(ours.REQUEST_LATENCY, 9_000_000, ("m", "", "REST"))  # a health check
    metrics.count_request("m", "Predict", "GRPC", "INTERNAL", 0)
    metrics.count_request("made up", "Predict", "GRPC", "NOT_FOUND", 0)


def test_requests_are_those_of_the_interval_without_health_checks():
    server = Server(versions=[2, 1])
    answers(server.metrics)  # before
    found = server.during(answers)
    (model,) = found["models"]
    assert found["state"] == "running"
    assert model["model"] == "m" and model["versions"] == [2, 1]
    assert model["rate"] == pytest.approx(5 / 2)
    assert model["error_rate"] == pytest.approx(1 / 2)
    assert 58e-6 < model["p50_s"] < 105e-6
    assert 3.5e-3 < model["p99_s"] < 6.4e-3


def test_first_look_knows_no_rates():
    server = Server()
    found = described(server.found, None, server.look(1.0))
    assert found["models"][0]["rate"] is None and found["batch"]["rows"] is None


def test_server_that_was_started_again_has_no_rates_yet():
    old, new = Server(), Server()
    answers(old.metrics)
    found = described(new.found, old.look(1.0), new.look(2.0))
    assert found["models"][0]["rate"] is None


def test_idle_server_has_a_rate_of_nothing_and_no_quantiles():
    (model,) = Server().during(lambda metrics: None)["models"]
    assert (model["rate"], model["p50_s"]) == (0, None)


def test_batches_are_told_with_and_without_their_padding():
    def batches(metrics):
        for rows, padding in ((4, 1), (8, 2)):
            metrics.observe(ours.PROCESSED_BATCH_SIZE, rows)
            metrics.observe(ours.PADDING_SIZE, padding, (str(rows),))
        metrics.observe(ours.QUEUING_LATENCY, 1000, ("",))

    batch = Server(max_batch_size=8).during(batches)["batch"]
    assert batch["rows"] == pytest.approx(4.5)
    assert batch["fill"] == pytest.approx(4.5 / 8)
    assert batch["padding_share"] == pytest.approx(3 / 12)
    assert 0.8e-3 < batch["queue_p50_s"] < 1.1e-3


def test_process_is_looked_at_from_outside_or_tells_of_itself():
    server = Server(usages=[Usage(1.0, 5, 7), Usage(2.0, 6, 7)])
    found = server.during(lambda metrics: None)
    assert (found["processors"], found["memory_bytes"]) == (0.5, 6)
    other = Server(usages=[Usage(1.0, 5, 7), Usage(2.0, 6, 8)])
    assert other.during(lambda metrics: None)["processors"] is None
    alone = Server()
    alone.metrics.look_up(ours.process_readings)
    assert alone.during(lambda metrics: None)["memory_bytes"] > 1e7


def test_versions_are_those_that_the_embedded_engine_tells():
    server = Server(versions=[99])
    server.metrics.look_up(
        lambda: [
            (ours.VERSIONS, ("m", "AVAILABLE"), 2),
            (ours.VERSIONS, ("empty", "AVAILABLE"), 0),
            (ours.VERSION_AVAILABLE, ("m", "3"), 1),
            (ours.VERSION_AVAILABLE, ("m", "10"), 1),
        ]
    )
    found = server.during(lambda metrics: None)
    assert {each["model"]: each["versions"] for each in found["models"]} == {
        "m": [10, 3],
        "empty": [],
    }


def unreachable(model):
    raise ServerUnreachable("no answer", remedy="start it")


def test_server_says_what_keeps_it_from_being_seen():
    silent = Server(page=lambda: None, versions=[1])
    assert silent.during(lambda metrics: None)["state"] == "no metrics"
    dead = Watched("s", "http://s", "", ["m"], lambda: None, unreachable)
    (look,) = look_all([dead])
    found = described(dead, look, look)
    assert found["state"] == "no answer"
    assert found["models"][0]["versions"] is None
    assert Server(state="exited").during(lambda metrics: None)["state"] == "exited"


def test_page_of_the_official_server_is_understood():
    text = gzip.decompress(RECORDED.read_bytes()).decode()
    found = Server(page=lambda: text, versions=[1]).during(lambda metrics: None)
    assert found["state"] == "running"
    models = {each["model"]: each for each in found["models"]}
    assert {"half_plus_two", "mlp", "mödell"} <= set(models)
    assert "half_plus_two?x=1" not in models  # nobody serves it
    assert models["mlp"]["rate"] == 0
    empty = Server(page=lambda: "", versions=[1])
    full = Server(page=lambda: text, versions=[1])
    found = described(full.found, empty.look(0.0), full.look(10.0))
    models = {each["model"]: each for each in found["models"]}
    assert models["half_plus_two"]["rate"] == pytest.approx((10 + 17) / 10)
    assert models["half_plus_two"]["error_rate"] == pytest.approx(17 / 10)
    assert 0 < models["half_plus_two"]["p50_s"] < models["half_plus_two"]["p99_s"] < 0.1


@pytest.mark.parametrize(
    ("buckets", "quantile", "expected"),
    [
        ({10: 0, 20: 10, math.inf: 10}, 0.5, 15),
        ({10: 10, 20: 10, math.inf: 10}, 0.5, 5),
        ({10: 5, 20: 10, math.inf: 10}, 0.9, 18),
        ({10: 1, 20: 1, math.inf: 10}, 0.9, 20),
        ({10: 0, 20: 0, math.inf: 0}, 0.5, None),
        ({}, 0.5, None),
    ],
)
def test_quantile_lies_evenly_between_two_bounds(buckets, quantile, expected):
    assert quantile_of(buckets, quantile) == (expected and pytest.approx(expected))
