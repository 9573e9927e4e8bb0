"""`tfkit inspect`: which version is meant, what is shown, and when it fails."""

import shutil

import pytest

from tests.unit.saved_models import meta_graph, write


@pytest.fixture
def reader(tmp_path):
    """A model that reads a file for each request."""
    return write(tmp_path / "reader", meta_graph(("y", "ReadFile", "x")))


def test_version_is_shown_with_all_that_is_known(tfkit, models):
    done = tfkit("inspect", models / "mlp" / "1")
    assert (done.code, done.err) == (0, "")
    assert str(models / "mlp" / "1") in done.out
    assert "7,840 (31,360 bytes)" in done.out
    assert "tensorflow 2." in done.out
    assert "more with --ops" in done.out
    assert any(
        line.split()
        == ["serving_default", "yes", "in", "images", "float", "[?,", "784]", "images:0"]
        for line in done.out.splitlines()
    )


def test_all_operations_are_shown_when_asked(tfkit, models):
    done = tfkit("inspect", models / "mlp" / "1", "--ops")
    assert "more with" not in done.out
    assert "StringJoin" in done.out


@pytest.mark.parametrize("place", ["half", "models/half", "models/half/2"])
def test_base_path_and_name_mean_the_highest_version(tfkit, models, tmp_path, place):
    shutil.copytree(models / "half_plus_two", tmp_path / "models" / "half")
    assert tfkit("inspect", place, "--json").data["path"] == "models/half/2"


@pytest.mark.parametrize("place", ["nothing", "."])
def test_what_is_no_model_is_a_usage_error(tfkit, place):
    done = tfkit("inspect", place)
    assert done.code == 2
    assert "base path" in done.err


def test_json_holds_everything(tfkit, models):
    done = tfkit("inspect", models / "defaults" / "1", "--json")
    assert (done.code, done.kind) == (0, "inspection")
    assert done.data["signatures"]["serving_default"] == {
        "method_name": "tensorflow/serving/predict",
        "batchable": True,
        "inputs": {
            "a": {"dtype": "float", "shape": [None], "tensor": "a:0"},
            "b": {"dtype": "float", "shape": [None], "tensor": "b:0"},
        },
        "outputs": {"out": {"dtype": "float", "shape": [None], "tensor": "add:0"}},
        "optional": ["b"],
    }
    assert done.data["operations"] == {"Placeholder": 2, "AddV2": 1, "NoOp": 1}
    assert (done.data["tags"], done.data["parameters"]) == (["serve"], 0)
    assert (done.data["findings"], done.data["changes"], done.data["assets"]) == ([], [], [])


def test_optional_input_is_marked(tfkit, models):
    lines = tfkit("inspect", models / "defaults" / "1").out.splitlines()
    assert sum("optional" in line for line in lines) == 1


def test_changes_for_callers_are_shown(tfkit, models):
    here = ("inspect", models / "half_plus_two", "--against", models / "mlp")
    done = tfkit(*here)
    assert done.code == 0
    assert any(line.startswith("breaks") for line in done.out.splitlines())
    changes = tfkit(*here, "--json").data["changes"]
    assert {"breaking": False, "where": "serving_default.outputs.y"}.items() <= changes[-1].items()
    assert tfkit("inspect", models / "mlp", "--against", models / "othertag").code == 2


def test_findings_never_fail_by_themselves(tfkit, reader):
    done = tfkit("inspect", reader, "--json")
    assert done.code == 0
    (finding,) = done.data["findings"]
    assert (finding["severity"], finding["where"]) == ("error", "ReadFile")


def test_strict_fails_as_a_push_would(tfkit, reader, models):
    done = tfkit("inspect", reader, "--strict")
    assert (done.code, done.out) == (8, "")
    assert "ReadFile" in done.err
    assert tfkit("inspect", models / "mlp", "--strict").code == 0
    changed = tfkit("inspect", models / "mlp", "--against", models / "image", "--strict", "--json")
    assert (changed.code, changed.kind) == (8, "error")


def test_damaged_model_is_shown_as_such(tfkit, tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "saved_model.pb").write_bytes(b"\xff")
    done = tfkit("inspect", "broken", "--json")
    assert done.code == 0
    assert [each["where"] for each in done.data["findings"]] == ["saved_model.pb"]
    assert "cannot be parsed" in tfkit("inspect", "broken").out


def test_other_tag_can_be_asked_for(tfkit, models):
    assert tfkit("inspect", models / "othertag", "--strict").code == 8
    assert tfkit("inspect", models / "othertag", "--strict", "--tag", "train").code == 0
