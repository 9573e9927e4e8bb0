"""What was given in the place of a base path or a SavedModel, and the remedy that fits it."""

import pytest

from tfserve_kit import deployment
from tfserve_kit.deployment.lint import Machine, lint
from tfserve_kit.errors import PushRefused, UsageError
from tfserve_kit.repository import Source
from tfserve_kit.repository.locate import find_version, look_around, renamed

MODEL = ("saved_model.pb", "variables/variables.index", "assets/words.txt")


@pytest.fixture
def place(tmp_path):
    """Make empty files in a folder called `place`, and return it."""

    def make(*files):
        for file in files:
            path = tmp_path / "place" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        (tmp_path / "place").mkdir(exist_ok=True)
        return tmp_path / "place"

    return make


def model_in(folder):
    return [f"{folder}/{each}" for each in MODEL]


@pytest.mark.parametrize(
    ("files", "inner", "what", "serve"),
    [
        (model_in("1"), "1", "is version 1 of a base path", "the folder above it: {place}"),
        (model_in("1"), "1/variables", "lies within", "give the base path: {place}"),
        (model_in("1"), "1/saved_model.pb", "lies within", "give the base path: {place}"),
        (model_in("1"), "1/variables/variables.index", "lies within", "base path: {place}"),
        (MODEL, "", "is a SavedModel", "it is a SavedModel itself: tfkit push-model {place} --to"),
        (MODEL, "assets", "lies within", "tfkit push-model {place} --to BASE_PATH"),
        (model_in("v1"), "", "holds 'v1'", "mv {place}/v1 {place}/1"),
        (model_in("version-7"), "", "holds 'version-7'", "mv {place}/version-7 {place}/7"),
        (model_in("1.0"), "", "holds '1.0'", "mv {place}/1.0 {place}/1"),
        (model_in("export"), "", "no numbered versions", "push-model {place}/export --to {place}"),
        (model_in("a/1") + model_in("b/2"), "", "holds base paths",
         "--model a={place}/a --model b={place}/b"),
        (model_in("x/y"), "", "further down: {place}/x/y", "push-model {place}/x/y --to BASE_PATH"),
        (["m.keras"], "", "Keras file, m.keras", "tfkit push-model {place}/m.keras --to {place}"),
        (["m.h5", "log.txt"], "", "Keras file, m.h5", "tfkit push-model {place}/m.h5"),
        (["m.keras"], "m.keras", "is a Keras file", "push-model {place}/m.keras --to BASE_PATH"),
        (["ckpt-3.index", "ckpt-3.data-00000-of-00001"], "", "a checkpoint", "model.export"),
        (["checkpoint"], "", "a checkpoint", "the model that wrote it"),
        (["frozen_inference_graph.pb"], "", "as TensorFlow 1 froze", "simple_save"),
        (["graph.pbtxt"], "", "graph.pbtxt, a graph by itself", "simple_save"),
        (["net.tflite"], "", "TensorFlow Lite", "{place}/1/model.tflite"),
        (["m.tar.gz"], "", "an archive, m.tar.gz", "tfkit push-model {place}/m.tar.gz"),
        (["m.onnx"], "", "an ONNX model", "then onnx2tf -i "),
        (["pytorch_model.pt"], "", "a PyTorch model", "convert it"),
        (["notes.txt"], "notes.txt", "is a file", "one folder per version"),
    ],
)  # fmt: skip
def test_place_is_told_with_what_to_do(place, files, inner, what, serve):
    root = place(*files)
    found = look_around(root / inner)
    assert what.format(place=root) in found.message
    assert serve.format(place=root) in found.remedy


@pytest.mark.parametrize("files", [[], ["notes.txt"], [".hidden.keras"], ["sub/notes.txt"]])
def test_nothing_is_told_of_what_says_nothing(place, files):
    assert look_around(place(*files)) is None


def test_missing_place_is_told_by_its_likes(place):
    root = place("digits/1/saved_model.pb")
    assert look_around(root / "digit").remedy == "did you mean digits?"
    assert look_around(root / "something") is None
    assert look_around(root / "none" / "none") is None


def test_paths_in_commands_are_quoted(place):
    root = place("my model.keras")
    assert f"tfkit push-model '{root}/my model.keras'" in look_around(root).remedy


def test_a_version_is_never_renamed_to_one_that_is_there(place):
    root = place(*model_in("v1"))
    assert renamed(root / "v1", frozenset({"1", "2"})).endswith(f"{root}/3")


@pytest.mark.parametrize(
    ("files", "inner", "told"),
    [
        (model_in("v1"), "", "mv {place}/v1 {place}/1"),
        (model_in("1"), "1", "give the folder above it: {place}"),
        (["m.keras"], "", "tfkit push-model {place}/m.keras"),
        (model_in("1"), "1/saved_model.pb", "give the base path: {place}"),
    ],
)
def test_lint_says_so(place, files, inner, told):
    root = place(*files)
    document = {"models": {"m": {"base_path": str(root / inner)}}}
    found = lint(deployment.build(document, source="test", folder=root), machine=Machine(4, 10**12))
    assert told.format(place=root) in found[0].remedy


@pytest.mark.parametrize(
    ("files", "inner", "told"),
    [
        (model_in("1"), "1/variables", "give {place}/1"),
        (["m.keras"], "", "give the file itself: {place}/m.keras"),
        (["frozen.pb"], "", "simple_save"),
        (["checkpoint"], "", "model.export"),
    ],
)
def test_push_and_inspect_say_what_they_want(place, tmp_path, files, inner, told):
    root = place(*files)
    told = told.format(place=root)
    (tmp_path / "in").mkdir()
    with pytest.raises(PushRefused) as refused:
        Source(str(root / inner)).fetch(tmp_path / "in")
    assert told in refused.value.remedy
    with pytest.raises(UsageError) as refused:
        find_version(root / inner)
    assert told in refused.value.remedy
