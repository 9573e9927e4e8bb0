"""Files that results are written to: ours are replaced, others only by force, none after a run."""

import numpy as np
import pytest

from tests.contract import lying_servers
from tfserve_kit.clients import files
from tfserve_kit.errors import UsageError
from tfserve_kit.tensors import to_proto

PRECIOUS = b"a thesis"


def answer(array):
    message = lying_servers.protos.PredictResponse()
    message.outputs["y"].CopyFrom(to_proto(array))
    return message.SerializeToString()


@pytest.fixture
def url():
    with lying_servers.grpc_liar(answer(np.float32([1.5]))) as url:
        yield url


@pytest.fixture
def request_file(tmp_path):
    (tmp_path / "in.json").write_text('{"inputs": {"x": [1]}}')
    return tmp_path / "in.json"


PERF = ("perf", "--duration", "0.2", "--model", "m")


@pytest.mark.parametrize(
    ("option", "name"),
    [("--output", "a.npz"), ("--output", "a.json"), ("--samples", "a.csv"), ("--report", "a.html"),
     ("--markdown", "a.md")],
)  # fmt: skip
def test_what_perf_wrote_is_replaced_and_what_others_wrote_only_by_force(
    tfkit, url, tmp_path, option, name
):
    file = tmp_path / name
    asked = (*PERF, "--url", url, option, str(file))
    assert tfkit(*asked).code == 0
    assert tfkit(*asked).code == 0, "its own file"
    file.write_bytes(PRECIOUS)
    refused = tfkit(*asked)
    assert (refused.code, file.read_bytes()) == (2, PRECIOUS)
    assert str(file) in refused.err and "--force" in refused.err
    assert tfkit(*asked, "--force").code == 0
    assert file.read_bytes() != PRECIOUS


@pytest.mark.parametrize(
    ("command", "kind", "text"),
    [
        ((*PERF, "--output", "full.npz"), "perf", "requests"),
        ((*PERF, "--report", "full.html"), "perf", "requests"),
        (("request", "in.json", "--model", "m", "--output", "full.npz"), "request", "1.5"),
    ],
)
def test_result_is_shown_even_if_its_file_cannot_be_written(
    tfkit, url, tmp_path, request_file, command, kind, text
):
    (tmp_path / command[-1]).symlink_to("/dev/full")
    plain, as_json = (tfkit(*command, "--url", url, *more) for more in ((), ("--json",)))
    for done in (plain, as_json):
        assert done.code == 2
        assert f"cannot write {command[-1]}: No space left on device" in done.err
    assert text in plain.out
    assert (as_json.kind, as_json.out.count("\n")) == (kind, 1)


def test_numbered_files_count_too(tfkit, url, tmp_path):
    (tmp_path / "a-2.npz").write_bytes(PRECIOUS)
    asked = (*PERF, "--url", url, "--concurrency", "1,2", "--output", str(tmp_path / "a.npz"))
    assert tfkit(*asked).code == 2
    assert (tmp_path / "a-2.npz").read_bytes() == PRECIOUS
    assert not (tmp_path / "a-1.npz").exists()


def test_outputs_of_a_request_are_replaced_and_others_files_only_by_force(
    tfkit, url, tmp_path, request_file
):
    file = tmp_path / "out.npz"
    asked = ("request", str(request_file), "--url", url, "--model", "m", "--output", str(file))
    assert tfkit(*asked).code == tfkit(*asked).code == 0
    np.savez(file, precious=np.zeros(3))
    assert tfkit(*asked).code == 2
    assert np.load(file).files == ["precious"]
    assert tfkit(*asked, "--force").code == 0
    assert np.load(file)["y"].tolist() == [1.5]


def test_json_of_very_many_values_is_refused_and_the_file_is_not(tfkit, tmp_path, request_file):
    many = answer(np.zeros(5_000_000, np.float32))
    asked = ("request", str(request_file), "--model", "m", "--json")
    with lying_servers.grpc_liar(many) as url:
        refused = tfkit(*asked, "--url", url)
        stored = tfkit(*asked[:-1], "--url", url, "--output", str(tmp_path / "a.npz"))
    assert refused.code == 2
    assert "5,000,000 values" in refused.err and "--output" in refused.err
    assert stored.code == 0
    assert np.load(tmp_path / "a.npz")["y"].shape == (5_000_000,)


def test_strings_that_one_long_one_would_make_huge_are_not_stored(tmp_path):
    array = np.full(1_000_000, b"", object)
    array[0] = b"x" * 10_000
    with pytest.raises(UsageError, match="10,000 bytes"):
        files.write_npz(tmp_path / "a.npz", {"y": array})
    assert not (tmp_path / "a.npz").exists()
