"""What is kept of a run comes back as it was."""

import csv
import json

import numpy as np
import pytest

from tests.unit.perf.runs import queued, run_of, sample
from tfserve_kit.errors import UsageError
from tfserve_kit.perf import samples
from tfserve_kit.perf.samples import SAMPLE, Mark, Run


def test_a_run_that_was_written_is_read_again_in_full(tmp_path):
    made = queued(count=500)
    run = Run(made.samples, {"rate": 200.0}, {"cpu": "ü"}, (Mark(7, "begin"),), {"usage": []})
    samples.write(run, tmp_path / "run.npz")
    found = samples.read(tmp_path / "run.npz")
    assert np.array_equal(found.samples, run.samples)
    assert found.samples.dtype == SAMPLE
    assert (found.settings, found.environment, found.marks, found.server) == (
        run.settings, run.environment, run.marks, run.server)  # fmt: skip


def test_a_run_is_written_to_the_name_that_was_given(tmp_path):
    samples.write(run_of([sample(0, 0, 0, 1)]), tmp_path / "run")
    assert [file.name for file in tmp_path.iterdir()] == ["run"]


def _about(**changes):
    about = {"format": 1, "settings": {}, "environment": {}, "marks": [], "server": {}} | changes
    return np.frombuffer(json.dumps(about).encode(), np.uint8)


@pytest.mark.parametrize("arrays", [
    {"other": np.zeros(2)},
    {"samples": np.zeros(1, SAMPLE)},
    {"samples": np.zeros(1, SAMPLE), "about": _about(format=2)},
    {"samples": np.zeros(3), "about": _about()},
    {"samples": np.zeros(1, SAMPLE), "about": _about(marks=[{"at": 1}])},
    {"samples": np.zeros(1, SAMPLE), "about": np.frombuffer(b"{", np.uint8)},
    {"samples": np.zeros(1, SAMPLE), "about": np.frombuffer(b"[]", np.uint8)},
])  # fmt: skip
def test_a_file_that_holds_no_run_is_refused(arrays, tmp_path):
    np.savez(tmp_path / "run.npz", **arrays)
    with pytest.raises(UsageError, match="not a readable run"):
        samples.read(tmp_path / "run.npz")


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04 cut"])
def test_a_file_that_is_no_archive_is_refused(content, tmp_path):
    (tmp_path / "run.npz").write_bytes(content)
    with pytest.raises(UsageError, match="not a readable run"):
        samples.read(tmp_path / "run.npz")


def test_a_file_that_is_not_there_is_told_as_such(tmp_path):
    with pytest.raises(UsageError, match=r"cannot read .*run\.npz: No such file"):
        samples.read(tmp_path / "run.npz")


def test_saved_samples_are_complete_and_in_order(tmp_path):
    run = run_of([sample(i, i, i, i + 2.5) for i in range(10)])
    samples.write_csv(run.samples, tmp_path / "run.csv")
    rows = list(csv.DictReader((tmp_path / "run.csv").read_text().splitlines()))
    assert [int(row["sequence"]) for row in rows] == list(range(10))
    assert list(rows[0]) == list(SAMPLE.names)
    assert rows[3]["done_ns"] == "5500000"


@pytest.mark.parametrize("write", [
    lambda file: samples.write_csv(np.zeros(1, SAMPLE), file),
    lambda file: samples.write(run_of([sample(0, 0, 0, 1)]), file),
])  # fmt: skip
def test_a_place_that_cannot_be_written_is_named(write, tmp_path):
    with pytest.raises(UsageError, match=r"cannot write .*gone"):
        write(tmp_path / "gone" / "file")


def test_every_status_has_a_name():
    assert samples.status_name(0) == "OK"
    assert samples.status_name(14) == "UNAVAILABLE"
    assert samples.status_name(101) == "connection lost"
    assert samples.status_name(77) == "status 77"
