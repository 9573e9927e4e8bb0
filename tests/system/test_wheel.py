"""The built wheel in an empty environment: what `pip install tfserve-kit` gives."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def installed(tmp_path_factory) -> Path:
    """The bin folder of an environment that holds nothing but the wheel and what it requires."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT]
    subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", folder / "env"], check=True)
    binaries = folder / "env" / "bin"
    pip = [binaries / "python", "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "--disable-pip-version-check", wheel], check=True)
    return binaries


def test_wheel_brings_no_tensorflow_and_renders_from_its_own_templates(installed, tmp_path):
    code = "import importlib.util as u; assert u.find_spec('tensorflow') is None"
    subprocess.run([installed / "python", "-c", code], check=True)
    argv = [installed / "tfkit", "render", "--model", "m=base", "--json"]
    done = subprocess.run(argv, cwd=tmp_path, check=True, stdout=subprocess.PIPE)
    assert str(tmp_path / "base") in json.loads(done.stdout)["data"]["model_config.txt"]


def test_wheel_says_how_to_get_an_engine_where_there_is_none(installed, tmp_path):
    argv = [installed / "tfkit", "serve", "--model", f"m={tmp_path}", "--engine", "embedded"]
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    assert done.returncode == 4
    assert "pip install 'tfserve-kit[embedded]'" in done.stderr


@pytest.mark.tensorflow
@pytest.mark.parametrize("protocol", ["grpc", "rest"])
def test_predict_works_without_tensorflow_against_a_running_server(
    installed, trained, shell_env, tmp_path, protocol
):
    def tfkit(*argv: object) -> None:
        subprocess.run(["tfkit", *argv], check=True, env=shell_env, cwd=tmp_path)

    tfkit("push-model", trained, "--model", "digits")
    tfkit("serve", "--model", "digits=models/digits", "--detach")
    try:
        picture = ROOT / "data" / "digits" / "jpeg" / "digit-7.jpg"
        argv = [installed / "tfkit", "predict", picture, "--protocol", protocol, "--json"]
        done = subprocess.run(argv, check=True, env=shell_env, stdout=subprocess.PIPE)
    finally:
        tfkit("stop")
    (answer,) = json.loads(done.stdout)["data"]
    assert (answer["scores"][0]["label"], answer["version"]) == ("7", 1)
