"""`tfkit push-model` and `tfkit verify` as commands, and with a server that takes versions up."""

import re
import shutil

import numpy as np
import pytest

from tfserve_kit.deployment import build
from tfserve_kit.engines import process
from tfserve_kit.repository import list_versions, push, versions
from tfserve_kit.serving import delivery, launch

SHARD = "variables/variables.data-00000-of-00001"


@pytest.fixture
def base(tmp_path):
    return tmp_path / "models" / "half"


@pytest.fixture
def model(models):
    return models / "half_plus_two" / "1"


def numbers(base):
    return [version.number for version in list_versions(base)]


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


class TestPush:
    def test_destination_is_needed(self, tfkit, model):
        done = tfkit("push-model", model)
        assert done.code == 2
        assert "--model NAME or --to BASE_PATH" in done.err

    def test_result_tells_version_path_and_size(self, tfkit, model, base):
        done = tfkit("push-model", model, "--model", "half", "--json")
        assert done.code == 0
        assert done.data["version"] == 1
        assert done.data["path"] == str(base / "1")
        assert done.data["size_bytes"] > 1000
        assert numbers(base) == [1]

    def test_breaking_change_is_refused_until_it_is_allowed(self, tfkit, models, model, base):
        push(model, base)
        other = models / "mlp" / "1"
        done = tfkit("push-model", other, "--model", "half")
        assert done.code == 8
        assert "--allow-breaking" in done.err
        assert numbers(base) == [1]
        assert tfkit("push-model", other, "--model", "half", "--allow-breaking").code == 0

    def test_signature_that_is_asked_for_must_be_there(self, tfkit, model, base):
        done = tfkit("push-model", model, "--model", "half", "--signature", "classify_it")
        assert done.code == 8
        assert "classify_it" in done.err
        assert not base.exists()

    def test_rollback_alone_makes_no_sense(self, tfkit, model):
        assert tfkit("push-model", model, "--model", "half", "--rollback").code == 2

    def test_nobody_to_wait_for_is_said_before_anything_is_pushed(self, tfkit, model, base):
        done = tfkit("push-model", model, "--model", "half", "--wait")
        assert done.code == 2
        assert "--url" in done.err
        assert not base.exists()


@pytest.mark.tensorflow
class TestSmoke:
    def test_version_that_answers_is_pushed(self, tfkit, model, base, tmp_path):
        np.savez(tmp_path / "x.npz", x=np.float32([1, 2]))
        done = tfkit("push-model", model, "--model", "half", "--smoke", tmp_path / "x.npz")
        assert done.code == 0, done.err
        assert numbers(base) == [1]

    def test_version_that_refuses_the_request_is_not(self, tfkit, models, tmp_path):
        base = tmp_path / "models" / "failing"
        np.savez(tmp_path / "x.npz", y=np.float32([1]))
        source = models / "half_plus_two" / "1"
        done = tfkit("push-model", source, "--to", base, "--smoke", tmp_path / "x.npz")
        assert done.code == 8
        assert "smoke test failed" in done.err
        assert not base.exists()


@pytest.fixture
def served(model, base, state_dir):
    """An embedded server on the base path with version 1, looking ten times a second."""
    push(model, base)
    server = {
        "name": "half",
        "grpc_port": 0,
        "rest_port": 0,
        "flags": {"file_system_poll_wait_seconds": 1, "max_num_load_retries": 0},
    }
    deployment = build(
        {"models": {"half": {"base_path": str(base)}}, "server": server},
        source="tests",
        folder=base,
    )
    handle = launch.up(deployment, process.embedded())
    yield handle
    handle.stop(grace_s=5)


def unloadable(model, folder):
    """Return a model that looks whole, but cannot be restored: its shard is damaged."""
    broken = shutil.copytree(model, folder)
    flip(broken / SHARD)
    return broken


@pytest.mark.tensorflow
class TestWatched:
    def test_wait_ends_when_the_version_serves(self, tfkit, model, base, served):
        done = tfkit("push-model", model, "--model", "half", "--wait", "--json")
        assert done.code == 0, done.err
        assert done.data["version"] == 2
        assert done.data["available_s"] > 0

    def test_verify_reports_a_swap_that_nobody_noticed(self, tfkit, model, base, served):
        done = tfkit("push-model", model, "--model", "half", "--verify", "--json")
        assert done.code == 0, done.err
        assert done.data["swap"]["passed"]
        assert done.data["swap"]["sent"] > 50
        assert set(done.data["swap"]["answers"]) == {"1", "2"}

    @pytest.mark.parametrize("how", ["--wait", "--verify"])
    def test_version_that_does_not_load_is_taken_back(
        self, tfkit, model, base, served, tmp_path, how
    ):
        broken = unloadable(model, tmp_path / "broken")
        done = tfkit("push-model", broken, "--model", "half", how, "--rollback")
        assert done.code == 5, done.err + done.out
        assert numbers(base) == [1]
        assert versions.retired(base) == [2]
        again = tfkit("push-model", model, "--model", "half", "--wait", "--json")
        assert again.data["version"] == 3  # a retired number is not given out again


class TestVerify:
    def test_versions_as_pushed_are_fine(self, tfkit, model, base):
        push(model, base)
        shutil.copytree(model, base / "2")
        done = tfkit("verify", "half", "--json")
        assert done.code == 0
        assert [row["problems"] for row in done.data] == [[], []]
        assert "no manifest" in tfkit("verify", "half").out

    def test_rot_is_found(self, tfkit, model, base):
        push(model, base)
        push(model, base)
        flip(base / "2" / SHARD)
        done = tfkit("verify", "half")
        assert done.code == 8
        assert "SHA-256 differs" in done.out
        assert tfkit("verify", "half", "--version", 1).code == 0

    def test_damaged_manifest_is_told(self, tfkit, model, base):
        push(model, base)
        (base / "1" / "assets.extra" / "tfkit.manifest.json").write_text("{")
        assert tfkit("verify", "half").code == 8

    @pytest.mark.parametrize("arguments", [["nowhere"], ["half", "--version", "7"]])
    def test_what_is_not_there_is_a_usage_error(self, tfkit, model, base, arguments):
        push(model, base)
        assert tfkit("verify", *arguments).code == 2


class TestMemory:
    """A version beside the one in service, on a host whose free memory a test decides."""

    @pytest.fixture
    def free(self, monkeypatch):
        return lambda size_bytes: monkeypatch.setattr(
            delivery, "free_memory_bytes", lambda: size_bytes
        )

    def test_a_version_that_does_not_fit_is_told_and_pushed(self, tfkit, model, base, served, free):
        free(1000)
        done = tfkit("push-model", model, "--model", "half", "--json")
        assert done.code == 0
        (remark,) = done.data["remarks"]
        assert re.search(
            r"needs about [\d,]+ bytes beside the \d[\d.]* [MG]B in service \(half\); "
            r"the host has 1,000 bytes free",
            remark["message"],
        )
        assert "in service" in done.err
        assert numbers(base) == [1, 2]

    def test_it_is_refused_where_that_is_asked_for(self, tfkit, model, base, served, free):
        free(1000)
        done = tfkit("push-model", model, "--model", "half", "--require-memory")
        assert done.code == 8
        assert "the host has" in done.err
        assert numbers(base) == [1]

    def test_one_that_fits_is_pushed_without_a_word(self, tfkit, model, base, served):
        done = tfkit("push-model", model, "--model", "half", "--require-memory", "--json")
        assert done.code == 0
        assert done.data["remarks"] == []

    def test_without_a_server_nothing_can_be_told(self, tfkit, model, base):
        assert tfkit("push-model", model, "--model", "half", "--json").data["remarks"] == []
        done = tfkit("push-model", model, "--model", "half", "--require-memory")
        assert done.code == 8
        assert "runs no server" in done.err
