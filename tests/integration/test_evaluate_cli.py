"""`tfkit evaluate` against real servers: numbers, files, exit codes."""

import csv
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tfserve_kit.clients import Target, connect
from tfserve_kit.deployment import build
from tfserve_kit.engines import process
from tfserve_kit.evaluation import datasets
from tfserve_kit.pictures.preprocessing import Preprocessing
from tfserve_kit.serving import launch

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "data" / "digits"
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}

pytest.importorskip("tensorflow")


@pytest.fixture(scope="module")
def colours(tmp_path_factory, models):
    """A server with two versions that name the strongest colour; the second sees negatives."""
    base_path = tmp_path_factory.mktemp("models") / "colour"
    for version, value_range in ((1, (0.0, 255.0)), (2, (255.0, 0.0))):
        folder = shutil.copytree(models / "image" / "1", base_path / str(version))
        Preprocessing(value_range=value_range, labels=tuple(COLOURS)).write(folder)
    model = {"base_path": str(base_path), "versions": "all",
             "labels": {"stable": 1, "canary": 2}}  # fmt: skip
    server = {"name": "colours", "grpc_port": 0, "rest_port": 0}
    deployment = build({"models": {"colour": model}, "server": server}, source="test",
                            folder=base_path)  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFKIT_STATE_DIR", str(tmp_path_factory.mktemp("colours")))
        handle = launch.up(deployment, process.embedded())
    try:
        yield handle, base_path
    finally:
        handle.stop()


@pytest.fixture(params=["grpc", "rest"])
def evaluate(tfkit, colours, request):
    """Run `tfkit evaluate` against the server of colours, over either protocol."""
    handle, base_path = colours

    def run(*arguments):
        url = getattr(handle.endpoints, request.param)
        return tfkit("evaluate", "--url", url, "--model", "colour", "--base-path", base_path,
                     *arguments)  # fmt: skip

    return run


@pytest.fixture
def folder(tmp_path):
    """Pictures of three colours in folders of these names; one lies in the wrong folder."""
    pictures = tmp_path / "set"
    for label, colour in COLOURS.items():
        (pictures / label).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (12, 9), colour).save(pictures / label / f"{number}.png")
    Image.new("RGB", (8, 8), COLOURS["blue"]).save(pictures / "red" / "wrong.png")
    return pictures


def test_error_rate_of_a_folder(evaluate, folder):
    done = evaluate(folder, "--version", 1)
    assert done.code == 0, done.err
    assert "Inference error rate: 10%" in done.out.splitlines()
    assert "1 of 10 wrong, 95% interval 1.79% to 40.42%" in done.out
    assert f"red as blue  {folder / 'red' / 'wrong.png'}" in done.out
    assert "calibration" not in done.out  # means of 0-255 are no probabilities
    assert "Evaluating 10 examples" in done.err


def test_json_holds_it_all(evaluate, folder):
    done = evaluate(folder, "--version", 1, "--top", 2, "--json")
    assert (done.code, done.kind) == (0, "evaluation")
    (result,) = done.data["results"]
    assert (result["error_rate"], result["versions"], result["top_k"]) == (0.1, [1], 2)
    assert result["matrix"] == [[3, 0, 1], [0, 3, 0], [0, 0, 3]]
    assert [each["label"] for each in result["classes"]] == list(COLOURS)
    assert result["failures"] == done.data["unusable"] == done.data["missed_gates"] == []


@pytest.mark.parametrize(("which", "other"), [("--version=1", "2"), ("--label=stable", "canary")])
def test_two_versions_on_the_same_examples(evaluate, folder, which, other):
    done = evaluate(folder, which, "--compare", other, "--json")
    first, second = done.data["results"]
    assert (first["error_rate"], second["error_rate"]) == (0.1, 0.9)
    assert (first["versions"], second["versions"]) == ([1], [2])
    compared = done.data["comparison"]
    assert (compared["only_first_right"], compared["only_second_right"]) == (9, 1)
    assert compared["p_value"] == 2 * (1 + 10) / 2**10
    assert compared["verdict"] == "worse"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--max-error-rate", "10%"], 0, ""),
        (["--max-error-rate", "0.09"], 7, "the error rate of version 1, 10%, is above 9%"),
        (["--compare", 2, "--max-worse", "0.8"], 0, ""),
        (["--compare", 2, "--max-worse", "79%"], 7, "higher by 80 points, more than 79 points"),
        (["--compare", 2, "--max-error-rate", "50%"], 7, "of version 2, 90%, is above 50%"),
    ],
)
def test_gates_decide_the_exit_code(evaluate, folder, arguments, code, said):
    done = evaluate(folder, "--version", 1, *arguments)
    assert done.code == code
    assert said in done.err
    assert "Inference error rate: 10%" in done.out


def test_predictions_hold_label_score_and_path(evaluate, folder, tmp_path):
    done = evaluate(folder, "--version", 1, "--compare", 2, "--predictions", tmp_path / "p.csv")
    assert done.code == 0, done.err
    header, *rows = csv.reader((tmp_path / "p.csv").read_text("utf-8").splitlines())
    assert header == ["true", "predicted", "score", "path", "compared_predicted",
                      "compared_score"]  # fmt: skip
    assert len(rows) == 10
    assert ["red", "blue", "255", str(folder / "red" / "wrong.png"), "red", "255"] in rows


def test_each_shows_label_score_and_path_before_the_summary(evaluate, folder):
    done = evaluate(folder, "--version", 1, "--each")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert f"blue 255 {folder / 'red' / 'wrong.png'}" in lines[:10]
    assert lines[10] == "" and any("error rate" in line.lower() for line in lines[11:])


def test_report_shows_the_mistakes(evaluate, folder, tmp_path):
    done = evaluate(folder, "--version", 1, "--report", tmp_path / "page.html")
    assert done.code == 0, done.err
    text = (tmp_path / "page.html").read_text("utf-8")
    HTMLParser().feed(text)
    assert text.count('<img src="data:image/png;base64,') == 1
    assert "<b>red</b> taken for <b>blue</b>" in text


def test_files_that_are_no_pictures_are_counted_and_named(evaluate, folder):
    (folder / "red" / "notes.txt").write_text("no picture")
    done = evaluate(folder, "--version", 1)
    assert done.code == 0
    assert "1 example could not be used:" in done.out
    assert f"{folder / 'red' / 'notes.txt'}: is not a picture" in done.out
    assert "Inference error rate: 10%" in done.out


def test_some_examples(evaluate, folder):
    first = evaluate(folder, "--version", 1, "--num-tests", 4, "--json").data
    assert first["examples"] == 4
    assert first["results"][0]["matrix"] == [[0] * 3, [0, 1, 0], [0, 0, 3]]  # blue, then green
    drawn = [evaluate(folder, "--version", 1, "--num-tests", 4, "--shuffle", seed, "--json").data
             for seed in (1, 1)]  # fmt: skip
    assert drawn[0] == drawn[1]
    assert drawn[0]["results"][0]["matrix"] != first["results"][0]["matrix"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nowhere"], 2, "cannot read nowhere: No such file or directory"),
        (["set", "--version", 1, "--label", "stable"], 2, "not both"),
        (["set", "--max-worse", 0.1], 2, "--max-worse needs a second version"),
        (["set", "--max-error-rate", "many"], 2, "is not a share"),
        (["set", "--max-error-rate", "200%"], 2, "between 0 and 1"),
        (["set", "--report", "no/where.html"], 2, "there is no folder"),
        (["set", "--version", 9], 6, "9"),
        (["set", "--signature", "other"], 2, "no signature 'other'"),
    ],
)
def test_bad_calls(evaluate, folder, arguments, code, said):
    done = evaluate(*arguments)
    assert done.code == code
    assert said in done.err
    assert done.out == ""


def test_other_labels_than_the_set_s_are_refused(evaluate, folder, tmp_path):
    (tmp_path / "labels.txt").write_text("cat\ndog\ncow\n")
    done = evaluate(folder, "--version", 1, "--labels", tmp_path / "labels.txt")
    assert done.code == 2
    assert f"no class of {folder} (blue, " in done.err
    assert f"is in {tmp_path / 'labels.txt'} (cat, dog, cow)" in done.err


def table_of(folder, header="filename;class"):
    """Write a table of the folder's pictures."""
    rows = [f"{file.relative_to(folder)};{file.parent.name}" for file in folder.rglob("*.png")]
    table = folder / "set.csv"
    table.write_text("\n".join([header, *rows]))
    return table


def test_a_header_and_what_else_was_assumed_stand_in_every_output(evaluate, folder, tmp_path):
    table = table_of(folder)
    done = evaluate(table, "--version", 1, "--report", tmp_path / "page.html")
    assert done.code == 0, done.err
    said = ["columns are separated by semicolon", "the first row is a header: filename;class"]
    said = [text.replace(";", ", ") for text in said]
    page = (tmp_path / "page.html").read_text("utf-8")
    data = evaluate(table, "--version", 1, "--json").data
    for text in said:
        assert text in done.out and text in done.err and text in page
        assert any(text in each for each in data["assumed"])
    assert (data["examples"], data["results"][0]["error_rate"]) == (10, 0.1)


def test_rows_without_a_picture_define_no_class(tfkit, colours, folder):
    table = table_of(folder)
    table.write_text(table.read_text() + "\nmissing.png;ghost\n")
    url = colours[0].endpoints.grpc
    done = tfkit("evaluate", table, "--url", url, "--model", "colour", "--version", 1)
    assert done.code == 0, done.err
    assert "1 example could not be used:" in done.out
    assert "classes 0 to 2 are the set's, sorted by name: blue, green, red" in done.out


@pytest.mark.parametrize(
    "text",
    [
        '{"0": ["n01", "red"], "1": ["n02", "green"], "2": ["n03", "blue"]}',
        '{"red": 0, "green": 1, "blue": 2}',
        "item { id: 1 name: 'red' } item { id: 2 name: 'green' } item { id: 3 name: 'blue' }",
        "background\nred\ngreen\nblue\n",
        "index,name\n2,blue\n0,red\n1,green\n",
    ],
)
def test_labels_of_every_form_give_the_same_rates(tfkit, colours, folder, tmp_path, text):
    (tmp_path / "labels").write_text(text)
    url = colours[0].endpoints.grpc
    done = tfkit("evaluate", folder, "--url", url, "--model", "colour", "--version", 1,
                 "--labels", tmp_path / "labels", "--json")  # fmt: skip
    assert done.code == 0, done.err
    assert done.data["results"][0]["matrix"] == [[3, 0, 1], [0, 3, 0], [0, 0, 3]]


def test_labels_of_another_number_are_refused_before_anything_is_sent(evaluate, folder, tmp_path):
    (tmp_path / "labels.json").write_text('["red", "green"]')
    done = evaluate(folder, "--version", 1, "--labels", tmp_path / "labels.json")
    assert done.code == 2
    assert f"{tmp_path / 'labels.json'}: 2 labels for a model with 3 classes" in done.err
    assert "the first label is 'red', the last 'green'" in done.err


def test_classes_numbered_from_1_need_to_be_said(tfkit, colours, folder):
    for number, name in enumerate(COLOURS, 1):
        (folder / name).rename(folder / f"{number:02}")
    url = colours[0].endpoints.grpc
    call = ("evaluate", folder, "--url", url, "--model", "colour", "--version", 1)
    refused = tfkit(*call)
    assert refused.code == 2
    assert "numbered 1 to 3, and those of the model 0 to 2" in refused.err
    assert "--first-class 1" in refused.err
    done = tfkit(*call, "--first-class", 1, "--json")
    assert done.data["results"][0]["error_rate"] == 0.1
    assert any("counted from 1" in text for text in done.data["assumed"])


def test_a_level_too_high_names_the_right_command(evaluate, folder):
    for part in ("train", "val"):
        shutil.copytree(folder, folder.parent / "parts" / part)
    done = evaluate(folder.parent / "parts", "--version", 1)
    assert done.code == 2
    assert f"such as {folder.parent / 'parts' / 'val'}" in done.err


def test_without_labels_the_sorted_folders_are_the_classes(tfkit, colours, folder):
    url = colours[0].endpoints.grpc
    done = tfkit("evaluate", folder, "--url", url, "--model", "colour", "--version", 1, "--json")
    assert "sorted by name" in done.err
    # blue, green, red stand for the classes 0, 1, 2, which are red, green, blue
    assert done.data["results"][0]["matrix"] == [[0, 0, 3], [0, 3, 0], [3, 0, 1]]


def test_server_that_does_not_answer(tfkit, folder):
    done = tfkit("evaluate", folder, "--url", "grpc://127.0.0.1:1", "--model", "colour", "--json")
    assert done.code == 6
    assert json.loads(done.out)["data"]["error"] == "ServerUnreachable"


@pytest.fixture(scope="module")
def answered(embedded_server):
    """Images, labels, and what a network that guesses says when it is asked directly."""
    found = list(datasets.open_dataset([DIGITS]).read(range(497)))
    images = np.stack([each.load() for each in found])
    labels = np.array([each.label for each in found])
    with connect(embedded_server.endpoints.grpc) as client:
        rows = images.reshape(-1, 784).astype(np.float32) / np.float32(255)
        scores = client.predict(Target("mlp"), {"images": rows}).outputs["scores"]
    return images, labels, scores


@pytest.fixture
def forms(answered, tmp_path):
    """The same set in every form."""
    images, labels, _ = answered
    flat = images.reshape(-1, 784)
    np.savez(tmp_path / "bytes.npz", x=images, y=labels)
    ready = flat.astype(np.float32) / np.float32(255)
    np.savez_compressed(tmp_path / "ready.npz", x=ready, y=labels)
    table = np.column_stack([labels, flat])
    np.savetxt(tmp_path / "set.csv", table, fmt="%d", delimiter=",")
    idx = [DIGITS / f"t10k-{part}-ubyte.gz" for part in ("images-idx3", "labels-idx1")]
    return {"folder": [DIGITS], "idx": idx, "bytes": [tmp_path / "bytes.npz"],
            "ready": [tmp_path / "ready.npz"], "csv": [tmp_path / "set.csv"]}  # fmt: skip


@pytest.mark.parametrize("form", ["folder", "idx", "bytes", "ready", "csv"])
def test_every_form_gives_what_the_model_says(tfkit, embedded_server, answered, forms, form):
    _, labels, scores = answered
    url = embedded_server.endpoints.grpc
    done = tfkit("evaluate", *forms[form], "--url", url, "--model", "mlp", "--json")
    assert done.code == 0, done.err
    (result,) = done.data["results"]
    assert result["answered"] == 497
    assert result["error_rate"] == pytest.approx(np.mean(scores.argmax(axis=1) != labels))
    in_five = np.argsort(-scores, axis=1, kind="stable")[:, :5] == labels[:, np.newaxis]
    assert result["top_k_error_rate"] == pytest.approx(1 - in_five.any(axis=1).mean())
