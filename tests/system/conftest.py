"""What a user has: a checkout, a trained model, a picture, an installed tfkit."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.shell import ROOT, Shell

# What the pages' commands use of a checkout.
_PARTS = ("data", "docs", "examples")


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


@pytest.fixture(scope="session")
def printed_by(tmp_path_factory):
    """The file with what an example printed: what `make examples` kept, else it is run, once."""
    pytest.importorskip("tensorflow")
    given = os.environ.get("TFKIT_EXAMPLES")
    folder = Path(given) if given else tmp_path_factory.mktemp("examples")

    def printed(name: str) -> Path:
        file = folder / f"{name}.txt"
        if not file.exists():
            command = [sys.executable, ROOT / "examples" / "run_all.py", name, "--keep", folder]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return file

    return printed


@pytest.fixture
def checkout(tmp_path, shell_env, printed_by):
    """A shell in a copy of what a clone of the repository would hold."""
    folder = tmp_path / "tfkit"
    for name in _tracked():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    made = Shell(folder, shell_env, example=printed_by)
    yield made
    made.run(["tfkit", "stop", "--all"])


def _tracked() -> list[str]:
    """Return the files that git has, or is not told to ignore; all of them outside a clone."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *_PARTS]
    done = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return [name for name in done.stdout.splitlines() if (ROOT / name).exists()]
    found = [path for part in _PARTS for path in (ROOT / part).rglob("*") if path.is_file()]
    return [str(path.relative_to(ROOT)) for path in found]
