"""Models as MLflow saves them: found in their folders, refused by the names of their flavors."""

import shutil
from pathlib import Path

import pytest

from tests.unit.repository.test_sources import fetch, refused, tree, zipped  # noqa: F401
from tfserve_kit.errors import PushRefused
from tfserve_kit.repository import mlflow

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
    assert mlflow.model_in(folder, "m") == folder / "data" / "model.keras"


@pytest.mark.parametrize("wrap", ["", ".."])
def test_saved_model_is_found(module, wrap):
    assert mlflow.model_in((module / wrap).resolve(), "m") == module / "tf2model"


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
        mlflow.model_in(tmp_path, "m")


def test_several_models_are_refused(module):
    shutil.copytree(module / "tf2model", module / "data" / "model")
    with pytest.raises(PushRefused, match="holds 2 models"):
        mlflow.model_in(module, "m")


def test_a_saved_model_is_none(module, tmp_path):
    assert mlflow.model_in(module / "tf2model", "m") is None
    assert mlflow.model_in(tmp_path, "m") is None


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
    assert mlflow.is_among(names) is found


def test_address_of_mlflow_is_told_how_to_be_fetched(fetch):  # noqa: F811
    told = refused(fetch, "models:/digits/3")
    assert "mlflow artifacts download --artifact-uri models:/digits/3" in told
