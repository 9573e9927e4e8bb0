"""What a user has: a trained model, a picture, an installed tfkit."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.shell import Shell

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """A SavedModel of the digits example, trained once."""
    pytest.importorskip("tensorflow")
    target = tmp_path_factory.mktemp("trained") / "exported_model"
    script = ROOT / "examples" / "digits" / "train.py"
    subprocess.run([sys.executable, script, "--out", target, "--steps", "200"], check=True)
    return target


@pytest.fixture
def shell_env(tmp_path) -> dict[str, str]:
    """The environment of a user's shell: tfkit on PATH, servers kept apart, free ports."""
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "TFKIT_STATE_DIR": str(tmp_path / "state"),
        "TFKIT_GRPC_PORT": "0",
        "TFKIT_REST_PORT": "0",
    }


@pytest.fixture
def shell(tmp_path, trained, shell_env):
    shutil.copytree(trained, tmp_path / "exported_model")
    shutil.copy(ROOT / "data" / "digits" / "jpeg" / "digit-3.jpg", tmp_path / "digit.jpg")
    made = Shell(tmp_path, shell_env)
    yield made
    made.run(["tfkit", "stop", "--all"])
