"""docs/clients.md: every block of code on the page runs against a server, in both protocols."""

import inspect
import re
from pathlib import Path

import pytest

from tfserve_kit.clients.options import Options
from tfserve_kit.clients.sync import Client
from tfserve_kit.deployment import build
from tfserve_kit.engines import process
from tfserve_kit.serving import launch

pytestmark = pytest.mark.tensorflow

PAGE = (Path(__file__).parents[2] / "docs" / "clients.md").read_text("utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
MODELS = Path(__file__).parents[1] / "data" / "models"
NAMES = ("half_plus_two", "multi_io", "scalars", "mlp", "failing", "legacy")


@pytest.fixture(scope="module")
def endpoints(tmp_path_factory):
    """An embedded server with the models of the page: its addresses."""
    pytest.importorskip("tensorflow")
    models = {name: {"base_path": name} for name in NAMES}
    models["half_plus_two"]["versions"] = "all"
    document = {"models": models, "server": {"name": "page", "grpc_port": 0, "rest_port": 0}}
    deployment = build(document, source="page", folder=MODELS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFKIT_STATE_DIR", str(tmp_path_factory.mktemp("page")))
        handle = launch.up(deployment, process.embedded())
    try:
        yield handle.endpoints
    finally:
        handle.stop()


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_code_on_the_page_runs(endpoints, number):
    code = BLOCKS[number].replace("grpc://localhost:8500", endpoints.grpc)
    code = code.replace("http://localhost:8501", endpoints.rest)
    exec(compile(code, f"docs/clients.md, block {number + 1}", "exec"), {"__name__": "page"})


def test_page_names_the_defaults_of_the_options():
    for name, default in re.findall(r"`(\w+)=([^`]+)`", PAGE.partition("| option of")[2]):
        if (name, default) != ("retries", "0"):  # the advice below the table
            assert eval(default) == getattr(Options(), name), name


def test_page_knows_every_option_and_operation():
    public = inspect.getmembers(Client, inspect.isfunction)
    for name in [
        *Options.__slots__,
        *(name for name, _ in public if not name.startswith("_") and name != "close"),
    ]:
        assert re.search(rf"\b{name}\b", PAGE), name
    assert len(BLOCKS) > 5
