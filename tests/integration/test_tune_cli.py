"""`tfkit tune` against real servers."""

import json
import shutil
import signal
import subprocess
import sys
import tomllib

import pytest

pytestmark = pytest.mark.tensorflow

QUICK = ("--rate", "50", "--quantile", "p50", "--trials", "2", "--duration", "0.5", "--rounds", "1")


@pytest.fixture
def search(models):
    """Arguments of a short search."""
    pytest.importorskip("tensorflow")
    return ("tune", "--engine", "embedded", "--model", f"mlp={models / 'mlp'}", *QUICK)


def test_candidates_are_served_measured_and_kept(tfkit, search, tmp_path):
    for _ in range(3):  # a busy machine keeps no rate; three times it is tune's fault
        shutil.rmtree(tmp_path / "tuned", ignore_errors=True)
        done = tfkit(*search, "--json")
        assert done.code == 0, done.err
        default, without = done.data["candidates"]
        assert default["batching"] == {} and without["batching"] is None
        assert default["failure"] == without["failure"] == ""
        rates = [max(run["rate"] for run in each["runs"]) for each in (default, without)]
        if min(rates) > 20:
            break
    assert min(rates) > 20
    assert done.data["goal"] == "lowest p50 at 50/s"
    assert (tmp_path / "tuned" / "search.journal").is_file()
    assert tfkit("ps", "--json").data == []
    for file in done.data["files"]:
        assert tomllib.loads((tmp_path / file).read_text())["models"]["mlp"]
    again = tfkit(*search, "--json")
    assert again.data["candidates"][0] == default  # nothing was measured anew
    assert "candidate" not in again.err


def test_model_that_cannot_be_batched_is_tried_without(tfkit, models, tmp_path):
    (tmp_path / "tfkit.toml").write_text(
        f'[models.scalars]\nbase_path = "{models / "scalars"}"\n[batching]\nmax_batch_size = 8\n'
    )
    options = ("--signature", "scalar", *QUICK[:-1], "0")
    done = tfkit("tune", "--engine", "embedded", "--config", "tfkit.toml", *options, "--json")
    assert done.code == 0, done.err
    assert [each["batching"] for each in done.data["candidates"]] == [None, None]
    assert "Batching is left out: signature 'scalar' of version 1" in done.err


def test_ctrl_c_stops_the_server_and_tells_what_was_found(state_dir, search, tmp_path):
    argv = [sys.executable, "-m", "tfserve_kit", *map(str, search), "--trials", "50", "--json"]
    process = subprocess.Popen(
        argv, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    for line in process.stderr:
        if line.startswith("candidate 3"):
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    data = json.loads(out)["data"]
    assert data["interrupted"] and len(data["candidates"]) == 2
    assert not list(state_dir.glob("servers/*/"))


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ((), 2, "give either --slo or --rate"),
        (("--slo", "p99=50ms", "--rate", "5"), 2, "give either --slo or --rate"),
        (("--slo", "rate>5"), 2, "limits no latency"),
        (("--slo", "p98=5ms"), 2, "p98"),
        (("--rate", "5", "--quantile", "errors"), 2, "errors"),
        (("--slo", "p99=50ms", "--measure", "mpl"), 2, "no model 'mpl' is deployed"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_starts(
    tfkit, models, options, code, message
):
    done = tfkit("tune", "--engine", "embedded", "--model", f"mlp={models / 'mlp'}", *options)
    assert done.code == code and message in done.err


def test_one_of_several_models_must_be_named(tfkit, models):
    given = ("--model", f"a={models / 'mlp'}", "--model", f"b={models / 'mlp'}")
    done = tfkit("tune", *given, "--slo", "p99=50ms")
    assert done.code == 2 and "--measure MODEL" in done.err


@pytest.mark.parametrize("name", ["tfkit.toml", "batching_config.txt"])
def test_files_of_others_are_replaced_only_by_force(tfkit, models, tmp_path, name):
    asked = ("tune", "--engine", "embedded", "--model", f"mlp={models / 'mlp'}", "--slo", "p99=1s",
             "--measure", "gone")  # fmt: skip
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / name).write_text("precious")
    refused = tfkit(*asked)
    assert refused.code == 2 and name in refused.err and "--force" in refused.err
    assert "gone" in tfkit(*asked, "--force").err, "it goes on to what is wrong next"
    (tmp_path / "tuned" / name).write_text("# written by tfkit tune\nits own")
    assert "gone" in tfkit(*asked).err


def test_deployment_file_that_is_tuned_may_be_rewritten_in_its_place(tfkit, models, tmp_path):
    (tmp_path / "tfkit.toml").write_text(f"[models.mlp]\nbase_path = '{models / 'mlp'}'\n")
    done = tfkit("tune", "--slo", "p99=1s", "--measure", "gone", "--output", ".")
    assert "gone" in done.err and "--force" not in done.err
