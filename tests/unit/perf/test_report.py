"""What a report shows and what is saved."""

import csv

from tfserve_kit.perf import environment, report, samples, stats
from tfserve_kit.perf.samples import Sample

RUN = [Sample(i, i * 1000, i * 1000, i * 1000, i * 1000 + 2_500_000, "OK") for i in range(10)]


def test_text_shows_latency_in_milliseconds_rates_and_environment():
    text = report.as_text(stats.summarize(RUN), {"cpu": "some cpu", "cores": 2})
    assert "2.500" in text
    assert "10 requests, errors: none" in text
    assert "cpu some cpu; cores 2" in text
    assert "INVALID" not in text


def test_text_begins_with_the_reason_of_an_invalid_run():
    failed = [Sample(0, 0, 0, 0, 1000, "ServerUnreachable")]
    text = report.as_text(stats.summarize(failed), {})
    assert text.startswith("INVALID: no request succeeded")
    assert "1 ServerUnreachable" in text


def test_data_holds_every_number_and_the_environment():
    data = report.as_data(stats.summarize(RUN), {"cores": 2})
    assert data["latency_s"]["p50"] == 0.0025
    assert data["environment"] == {"cores": 2}
    assert data["errors"] == {}


def test_saved_samples_are_complete_and_in_order(tmp_path):
    samples.write(RUN, tmp_path / "run.csv")
    rows = list(csv.DictReader((tmp_path / "run.csv").read_text().splitlines()))
    assert [int(row["sequence"]) for row in rows] == list(range(10))
    assert rows[3]["done_ns"] == "2503000"
    assert rows[3]["status"] == "OK"


def test_environment_names_processor_cores_and_versions():
    found = environment.describe()
    assert found["cores"] >= 1
    assert {"cpu", "python", "tfkit", "grpcio"} <= found.keys()
