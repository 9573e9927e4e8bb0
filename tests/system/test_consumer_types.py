"""What mypy sees of the installed wheel, in a project that uses tfkit: real types, not Any."""

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONSUMER = '''
"""A project that serves, calls and measures a model."""

from pathlib import Path
from typing import assert_type

import numpy as np

from tfserve_kit import Classification, Client, Options, Prediction, Target, connect
from tfserve_kit.deployment import Spec, build
from tfserve_kit.engines import Engine, Plan, ServerHandle
from tfserve_kit.errors import TfkitError
from tfserve_kit.pictures.preprocessing import Preprocessing
from tfserve_kit.repository import Pushed, push
from tfserve_kit.serving.launch import plan, up


def ask(url: str) -> Prediction:
    with connect(url, retries=1, check=False) as client:
        assert_type(client, Client)
        answer = client.predict(Target("m", version=3), {"x": np.zeros((1, 3), np.float32)})
        assert_type(answer, Prediction)
        assert_type(answer.version, int | None)
        return answer


def classes(client: Client) -> list[str]:
    found = client.classify("m", [{"age": 3.0}])
    assert_type(found, Classification)
    return [best.label for row in found.classes for best in row[:1]]


def publish(model: Path, base_path: Path) -> int:
    note = Preprocessing(height=28, width=28, channels=1, value_range=(0.0, 1.0))
    note.write(model)
    pushed = push(model, base_path)
    assert_type(pushed, Pushed)
    return pushed.version


def serve(base_path: str, engine: Engine) -> ServerHandle | None:
    document = {"models": {"m": {"base_path": base_path}}}
    spec = build(document, source="here", folder=Path.cwd())
    assert_type(spec, Spec)
    assert_type(plan(spec, engine), Plan)
    try:
        return up(spec, engine)
    except TfkitError as error:
        assert_type(error.remedy, str)
        return None


assert_type(Options().retries, int)
'''


@pytest.fixture(scope="module")
def interpreter(tmp_path_factory) -> Path:
    """An interpreter that finds the wheel, and what it requires where the tests run."""
    folder = tmp_path_factory.mktemp("consumer")
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT]
    subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "env", with_pip=False)
    (packages,) = (folder / "env" / "lib").glob("python*/site-packages")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-deps", "--target", packages, wheel], check=True)
    (packages / "requirements.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "env" / "bin" / "python"


def checked(interpreter: Path, folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Have mypy look at a module, from outside of this repository."""
    (folder / "consumer.py").write_text(code)
    mypy = [sys.executable, "-m", "mypy", "--strict", "--python-executable", interpreter]
    argv = [*mypy, "--config-file=", "--cache-dir", folder / "cache", "consumer.py"]
    return subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_project_that_uses_the_wheel_passes_mypy_strict(interpreter, tmp_path):
    done = checked(interpreter, tmp_path, CONSUMER)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ('connect("grpc://h:1", retry=3)', "call-arg"),
        ("connect(8500)", "arg-type"),
        ('connect("grpc://h:1").predict("m", {}).outputs()', "operator"),
        ('push("here", "there", version="newest")', "arg-type"),
        ('Preprocessing(framing="fill")', "arg-type"),
    ],
)
def test_a_mistake_is_found_without_running_it(interpreter, tmp_path, wrong, told):
    done = checked(interpreter, tmp_path, f"{CONSUMER}\n{wrong}\n")
    assert done.returncode == 1
    assert f"[{told}]" in done.stdout
