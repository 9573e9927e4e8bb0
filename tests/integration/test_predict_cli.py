"""`tfkit predict` with many pictures, and `tfkit request`, against a real server."""

import csv
import io
import json
import os
import signal
import sys
from contextlib import suppress

import numpy as np
import pytest
from click.shell_completion import ShellComplete
from PIL import Image

from tests.integration.commands import remember
from tests.integration.commands import running as started
from tfserve_kit.cli import cli

pytestmark = pytest.mark.tensorflow

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


@pytest.fixture
def server(embedded_server, state_dir):
    """A real server that tfkit knows as the only one it runs."""
    home = state_dir / "servers" / "real"
    home.mkdir(parents=True)
    endpoints, models = embedded_server.endpoints, embedded_server.models
    remember(home, endpoints, models)
    return embedded_server


@pytest.fixture
def photos(tmp_path):
    """A folder with a picture of each colour, in three formats."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for (name, colour), suffix in zip(COLOURS.items(), ("png", "bmp", "gif"), strict=True):
        Image.new("RGB", (8, 8), colour).save(folder / f"{name}.{suffix}")
    Image.new("RGB", (20, 9), COLOURS["red"]).save(folder / "more" / "red.jpg", quality=95)
    return folder


@pytest.fixture
def predict(tfkit, server):
    """Run `tfkit predict` with the image model."""
    return lambda *arguments: tfkit("predict", "--model", "image", *arguments)


NAMES = ["photos/blue.gif", "photos/green.bmp", "photos/more/red.jpg", "photos/red.png"]


@pytest.mark.parametrize("protocol", ["grpc", "rest"])
@pytest.mark.parametrize(("batch", "sizes"), [((), [4] * 4), (("--batch-size", 3), [3, 3, 3, 1])])
def test_folder_is_classified_in_batches(predict, photos, protocol, batch, sizes):
    done = predict("photos", "--protocol", protocol, "--json", *batch)
    assert done.code == 0
    assert [each["image"] for each in done.data] == NAMES
    assert [each["batch_rows"] for each in done.data] == sizes
    singly = [predict(name, "--json").data[0]["scores"] for name in NAMES]
    for each, alone in zip(done.data, singly, strict=True):
        assert [score["index"] for score in each["scores"]] == [score["index"] for score in alone]
        np.testing.assert_allclose(
            [score["score"] for score in each["scores"]],
            [score["score"] for score in alone],
            rtol=1e-5,
        )


def test_pattern_and_files_keep_their_order(predict, photos):
    done = predict("photos/red.png", "photos/*.[bg]*", "--json")
    found = [each["image"] for each in done.data]
    assert found == ["photos/red.png", "photos/blue.gif", "photos/green.bmp"]


def test_text_shows_each_picture_and_stderr_where_the_time_went(predict, photos):
    done = predict("photos", "--top", "1", "--batch-size", "2")
    heads = [line for line in done.out.splitlines() if not line.startswith(" ")]
    assert [head.split(":")[0] for head in heads] == NAMES
    assert "answered with 1 more in " in heads[0]
    assert done.err.splitlines()[-1].startswith("4 of 4 pictures in ")
    assert "; 0 failed" in done.err


def test_single_picture_says_only_how_it_is_read_on_stderr(predict, photos):
    done = predict("photos/red.png")
    assert done.code == 0
    assert done.err.splitlines() == [
        "Input 'image': channels RGB (assumed; change: --channel-order); range 0 to 255 "
        "(signature); output 'scores', class scores (signature)",
        "Note: the scores are not probabilities; if they are logits, --softmax converts them",
    ]
    assert "image version 1, prepared in " in done.out
    assert " ms, answered in " in done.out


def test_jsonl_is_a_result_for_each_picture(predict, photos):
    done = predict("photos", "--jsonl")
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert {(each["schema"], each["kind"]) for each in lines} == {(1, "prediction")}
    assert [each["data"]["image"] for each in lines] == NAMES
    assert len(lines[0]["data"]["scores"]) == 3


def test_csv_has_a_row_for_each_class(predict, photos, tmp_path):
    (tmp_path / "labels.txt").write_text('red\n"green, really"\nblue\n')
    done = predict("photos", "--csv", "--top", "2", "--labels", "labels.txt")
    rows = list(csv.DictReader(io.StringIO(done.out)))
    assert list(rows[0]) == ["image", "rank", "index", "label", "score"]
    assert [(row["image"], row["rank"]) for row in rows] == [
        (name, rank) for name in NAMES for rank in ("1", "2")
    ]
    names = ["red", '"green, really"', "blue"]
    assert all(row["label"] == names[int(row["index"])] for row in rows)
    assert float(rows[0]["score"]) >= float(rows[1]["score"])


def test_one_form_is_enough(predict, photos):
    done = predict("photos", "--csv", "--jsonl")
    assert (done.code, done.out) == (2, "")
    assert "give one of --json, --jsonl and --csv" in done.err


@pytest.mark.parametrize("form", ["", "--json", "--jsonl", "--csv"])
def test_picture_that_fails_is_named_and_loses_no_other(predict, photos, form):
    (photos / "broken.png").write_bytes(b"no picture")
    done = predict("photos", "photos/missing.png", *filter(None, [form]))
    assert done.code == 6
    assert "Error: photos/broken.png is not a picture that can be read" in done.err
    assert "Error: cannot read photos/missing.png: No such file" in done.err
    assert "6 of 6 pictures" in done.err
    assert "; 2 failed" in done.err
    assert all(name in done.out for name in NAMES)
    if form.startswith("--json"):
        lines = done.data if form == "--json" else map(json.loads, done.out.splitlines())
        data = [each.get("data", each) for each in lines]
        errors = {each["image"]: each["error"] for each in data if "error" in each}
        assert errors.keys() == {"photos/broken.png", "photos/missing.png"}
        assert set(errors.values()) == {"InvalidRequest"}
    else:
        assert "broken" not in done.out


def test_folder_without_pictures_is_a_wrong_call(predict, photos):
    done = predict("photos/red.png", "photos/none*")
    assert (done.code, done.out) == (2, "")
    assert "no file matches 'photos/none*'" in done.err


def test_standard_input_is_a_picture(predict, photos, monkeypatch):
    data = io.BytesIO((photos / "red.png").read_bytes())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(data))
    (answer,) = predict("-", "--json").data
    assert answer["image"] == "standard input"
    assert len(answer["scores"]) == 3


def test_options_win_over_the_note(predict, photos):
    plain = predict("photos/more/red.jpg", "--json").data[0]["scores"]
    padded = predict("photos/more/red.jpg", "--json", "--framing", "pad").data[0]["scores"]
    assert plain != padded
    for arguments in (
        ["--resize", "area"],
        ["--antialias"],
        ["--framing", "centre_crop", "--crop-fraction", "0.875"],
        ["--channel-order", "bgr"],
    ):
        assert predict("photos/more/red.jpg", *arguments).code == 0
    done = predict("photos/red.png", "--mode", "caffe")  # below zero, and the input is uint8
    assert done.code == 0
    assert predict("photos/red.png", "--mode", "tf").code == 2


def test_limit_of_pixels_can_be_set(predict, photos, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # as it was afterwards
    assert predict("photos/more/red.jpg", "--max-pixels", "180").code == 0
    done = predict("photos/more/red.jpg", "--max-pixels", "179")
    assert done.code == 6
    assert "has more than 179 pixels: 20 x 9" in done.err


@pytest.mark.parametrize("form", ["--json", "--jsonl"])
def test_ctrl_c_leaves_what_is_done(server, photos, tmp_path, form):
    os.mkfifo(tmp_path / "endless.png")
    endless = os.open(tmp_path / "endless.png", os.O_RDWR)  # nothing ever comes out of it
    pictures = [photos / "red.png", "missing.png", tmp_path / "endless.png"]
    where = ("--model", "image", "--url", server.endpoints.grpc, "--batch-size", "1")
    try:
        with started("predict", *where, form, *pictures) as command:
            command.wait_for("cannot read missing.png")
            command.popen.send_signal(signal.SIGINT)
            command.wait_for("2 of 3 pictures")
            os.write(endless, b"no picture")
            os.close(endless)
            done = command.ended()
    finally:
        with suppress(OSError):
            os.close(endless)
    assert done.code == 130
    lines = [json.loads(line)["data"] for line in done.out.splitlines()]
    data = lines[0] if form == "--json" else lines
    assert [each["image"] for each in data] == [str(photos / "red.png"), "missing.png"]


# tfkit request


@pytest.fixture
def request_(tfkit, server):
    return lambda *arguments: tfkit("request", *arguments)


@pytest.mark.parametrize("protocol", ["grpc", "rest"])
def test_request_calls_any_signature_with_json(request_, tmp_path, protocol):
    (tmp_path / "x.json").write_text('{"instances": [1, 2, 5]}')
    where = ("--model", "half_plus_two", "--version", "1", "--protocol", protocol)
    done = request_("x.json", *where, "--json")
    assert (done.code, done.kind, done.data["model"]) == (0, "request", "half_plus_two")
    assert done.data["signature"] == "serving_default"
    assert done.data["outputs"] == {"y": [2.5, 3.0, 4.5]}
    assert done.data["version"] == 1
    lines = request_("x.json", *where).out.splitlines()
    assert lines[1].split() == ["OUTPUT", "TYPE", "VALUES"]
    assert (
        lines[2].split(maxsplit=1) == ["y", "float [3]      2.5, 3, 4.5"]
        or "2.5, 3, 4.5" in (lines[2])
    )


def test_request_joins_numpy_files_and_stores_outputs(request_, tmp_path):
    np.save(tmp_path / "a.npy", np.float32([1]))
    np.savez(tmp_path / "b.npz", x=np.float32([2, 3]))
    where = ("--model", "half_plus_two", "--version", "1")
    done = request_("a.npy", "b.npz", *where, "--output", "out.npz")
    assert done.code == 0
    assert done.err == "Wrote out.npz\n"
    with np.load(tmp_path / "out.npz") as found:
        assert found["y"].tolist() == [2.5, 3.0, 3.5]


def test_request_takes_pictures_too(request_, photos):
    done = request_("photos/red.png", "photos/blue.gif", "--model", "image", "--json")
    assert {np.array(value).shape[0] for value in done.data["outputs"].values()} == {2}


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["none.json"], 6, "cannot read none.json"),
        (["bad.json"], 6, "bad.json is not a request"),
        (["x.json", "--signature", "nope"], 2, "no signature 'nope'"),
        (["x.json", "--version", "1", "--label", "a"], 2, "not both"),
        (["x.json", "--output-filter", "nope"], 6, "nope"),
        (["x.json", "--output", "none/out.npz"], 2, "cannot write none/out.npz"),
        ([], 2, "signature 'serving_default' needs x"),
    ],
)
def test_request_that_cannot_succeed_says_why(request_, tmp_path, arguments, code, text):
    (tmp_path / "x.json").write_text('{"inputs": {"x": [1]}}')
    (tmp_path / "bad.json").write_text("{")
    done = request_(*arguments, "--model", "half_plus_two")
    assert (done.code, done.out) == (code, "")
    assert text in done.err


# What the shell offers


def offered(*words):
    """Return what a shell offers for the last word."""
    *arguments, incomplete = words
    found = ShellComplete(cli, {}, "tfkit", "_TFKIT_COMPLETE")
    return [item.value for item in found.get_completions(arguments, incomplete)]


@pytest.mark.parametrize("command", ["predict", "request", "metadata"])
def test_shell_offers_models_and_versions_of_the_server(server, command):
    assert offered(command, "--model", "half") == ["half_plus_two"]
    assert offered(command, "--model", "nope") == []
    assert offered(command, "--model", "half_plus_two", "--version", "") == ["2", "1"]
    assert offered(command, "--model", "half_plus_two", "--version", "1") == ["1"]
    where = ("--url", server.endpoints.rest, "--model", "half_plus_two")
    assert offered(command, *where, "--version", "") == ["2", "1"]


def test_shell_offers_nothing_where_no_server_answers(state_dir):
    assert offered("predict", "--model", "") == []
    assert offered("predict", "--version", "") == []
    where = ("--url", "http://127.0.0.1:1", "--model", "m")
    assert offered("predict", *where, "--version", "") == []
