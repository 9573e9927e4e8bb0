"""A base path with three versions, and a server in memory that serves it."""

import shutil

import pytest

from tests.unit.serving.made import Server
from tfserve_kit import deployment
from tfserve_kit.serving import reload
from tfserve_kit.serving.access import Access


@pytest.fixture
def base_path(tmp_path, models):
    """A base path with the versions 1, 2 and 3."""
    for number in (1, 2, 3):
        shutil.copytree(models / "half_plus_two" / "1", tmp_path / "half" / str(number))
    return tmp_path / "half"


@pytest.fixture
def deployed(tmp_path, base_path):
    """Make a deployment: sections beside `server`, by default one that serves the base path."""

    def act(name="web", **sections):
        document = {
            "server": {"name": name, "ready_timeout_s": 0.2, **sections.pop("server", {})},
            "models": {"half": {"base_path": str(base_path), **sections.pop("half", {})}},
        }
        document["models"] |= sections.pop("models", {})
        return deployment.build({**document, **sections}, source="test", folder=tmp_path)

    return act


@pytest.fixture
def serve(tmp_path, deployed, monkeypatch):
    """Serve the model in memory; keys of its section."""
    monkeypatch.setenv("TFKIT_STATE_DIR", str(tmp_path / "state"))

    def act(**half):
        server = Server(tmp_path / "state" / "servers" / "web", deployed(half=half))
        monkeypatch.setattr(reload, "connect", server.connect)
        monkeypatch.setattr(Access, "connect", server.connect)
        return server

    return act
