"""What was given in the place of a base path or a SavedModel, and the remedy; models of MLflow."""

import shutil
from pathlib import Path

import pytest

from tests.unit.repository.test_sources import fetch, refused, tree, zipped  # noqa: F401
from tfserve_kit import deployment
from tfserve_kit.deployment.lint import Machine, lint
from tfserve_kit.errors import PushRefused, UsageError
from tfserve_kit.repository import Source, locate
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


# What MLflow writes for a model of scikit-learn.
SKLEARN = """artifact_path: model
flavors:
  python_function:
    env:
      conda: conda.yaml
    loader_module: mlflow.sklearn
  sklearn:
    pickled_model: model.pkl
    tensorflow: no
mlflow_version: 3.17.2
"""
SAVED = Path(__file__).parents[2] / "data" / "mlflow"  # by MLflow itself
FUNCTION = (SAVED / "function" / "MLmodel").read_text("utf-8")
MODULE = (SAVED / "module" / "MLmodel").read_text("utf-8")


@pytest.fixture
def module(tmp_path):
    """An MLflow model of a tf.Module, in the folder of a run."""
    return shutil.copytree(SAVED / "module", tmp_path / "run" / "model")


def test_file_of_keras_is_found():
    folder = SAVED / "keras"
    assert locate.mlflow_model(folder, "m") == folder / "data" / "model.keras"


@pytest.mark.parametrize("wrap", ["", ".."])
def test_saved_model_is_found(module, wrap):
    assert locate.mlflow_model((module / wrap).resolve(), "m") == module / "tf2model"


def test_saved_model_is_fetched(fetch, module):  # noqa: F811
    assert tree(fetch(module)[0]) == tree(module / "tf2model")


def test_it_is_fetched_from_an_archive(fetch, module, tmp_path):  # noqa: F811
    (tmp_path / "packed").write_bytes(zipped(module, prefix="model/"))
    assert tree(fetch(tmp_path / "packed")[0]) == tree(module / "tf2model")


@pytest.mark.parametrize(("text", "named"), [(SKLEARN, "sklearn"), (FUNCTION, "python_function")])
@pytest.mark.parametrize("is_packed", [False, True])
def test_other_flavors_are_refused_by_name(fetch, tmp_path, text, named, is_packed):  # noqa: F811
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "MLmodel").write_text(text)
    place = folder
    if is_packed:
        place = tmp_path / "packed"
        place.write_bytes(zipped(folder))
    told = refused(fetch, place)
    assert f"of flavor {named}, which TensorFlow Serving does not run" in told
    assert "mlflow.tensorflow.log_model" in told


@pytest.mark.parametrize(
    ("text", "told"),
    [("", "names no flavors"), (MODULE, "neither a SavedModel nor a file of Keras")],
)
def test_what_is_not_whole_is_refused(tmp_path, text, told):
    (tmp_path / "MLmodel").write_text(text)
    with pytest.raises(PushRefused, match=told):
        locate.mlflow_model(tmp_path, "m")


def test_several_models_are_refused(module):
    shutil.copytree(module / "tf2model", module / "data" / "model")
    with pytest.raises(PushRefused, match="holds 2 models"):
        locate.mlflow_model(module, "m")


def test_a_saved_model_is_none(module, tmp_path):
    assert locate.mlflow_model(module / "tf2model", "m") is None
    assert locate.mlflow_model(tmp_path, "m") is None


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["MLmodel"], True),
        (["model/MLmodel"], True),
        (["a/b/MLmodel"], False),
        (["x/mlmodel"], False),
    ],
)
def test_files_of_an_mlflow_model(names, found):
    assert locate.is_mlflow(names) is found


def test_address_of_mlflow_is_told_how_to_be_fetched(fetch):  # noqa: F811
    told = refused(fetch, "models:/digits/3")
    assert "mlflow artifacts download --artifact-uri models:/digits/3" in told
