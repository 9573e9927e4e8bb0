"""An engine and a binary whose servers live as a test wants."""

import shlex
import sys
from pathlib import Path

import pytest

from tfserve_kit import spec
from tfserve_kit.engines import Availability
from tfserve_kit.engines.process import ProcessEngine

FAKE_SERVER = Path(__file__).parents[1] / "contract" / "fake_model_server.py"


@pytest.fixture
def fake_engine(state_dir):
    """Make an engine of the fake model server (see contract/) with a life of one's choice."""

    def make(life=""):
        head = [sys.executable, str(FAKE_SERVER), f"--fake={life}"]
        return ProcessEngine("fake", head, Availability(True, "a script"), binds_host=False)

    return make


@pytest.fixture
def fake_binary(tmp_path):
    """Make an executable of the fake model server with a life of one's choice: its path."""

    def make(life=""):
        file = tmp_path / f"fake_{life.replace(':', '_')}_server"
        command = shlex.join([sys.executable, str(FAKE_SERVER), f"--fake={life}"])
        file.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        file.chmod(0o755)
        return str(file)

    return make


@pytest.fixture
def deployment(models):
    """Make a deployment of `half_plus_two` on free ports."""

    def make(*, base_path="half_plus_two", versions="latest", **server):
        server = {"name": "web", "grpc_port": 0, "rest_port": 0, **server}
        model = {"base_path": str(base_path), "versions": versions}
        document = {"server": server, "models": {"half_plus_two": model}}
        return spec.build(document, source="test", folder=models)

    return make
