"""docs/rest.md: every request on the page, sent with curl, has the answer on the page."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.contract import golden

pytestmark = pytest.mark.tensorflow

PAGE = (Path(__file__).parents[2] / "docs" / "rest.md").read_text("utf-8")
EXAMPLES = re.findall(r"```bash\n(.*?)```\n\n```text\n(.*?)```", PAGE, re.DOTALL)
FILES = re.findall(r"```protobuf\n(.*?)```", PAGE, re.DOTALL)
(FLAGS,) = re.findall(r"\$ tfkit-model-server (.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module", params=["embedded", "native"])
def server(request, tmp_path_factory, require):
    """A server started as the page says."""
    if shutil.which("curl") is None:
        require("curl", "curl is not installed")
    command = [sys.executable, "-m", "tfserve_kit.embedded"]
    if request.param == "native":
        command = [request.getfixturevalue("native_binary")]
    flags = FLAGS.replace("\\", "").replace("8501", "${REST_PORT}").split()
    flags = [re.sub(r"=(\w+\.config)", r"=${TMP}/\1", flag) for flag in flags]
    names = ("models.config", "monitoring.config")
    files = dict(
        zip(names, [text.replace('"/models', '"${MODELS}') for text in FILES], strict=True)
    )
    setup = {"flags": ["--port=${GRPC_PORT}", *flags], "files": files}
    running = golden.Server(command, setup, tmp_path_factory.mktemp("page"))
    running.wait_ready()
    yield running
    running.stop()


def test_answers_are_those_on_the_page(server):
    for command, answer in EXAMPLES:  # in order: the last ones count the first ones
        here = command.replace("localhost:8501", f"localhost:{server.ports['rest']}")
        done = subprocess.run(["bash", "-c", here], capture_output=True, text=True, check=True)
        assert done.stdout.replace("\r", "").rstrip() == answer.rstrip(), command


def test_the_page_shows_every_shape_of_path():
    asked = "".join(command for command, _ in EXAMPLES)
    for verb in ("predict", "classify", "regress"):
        assert f":{verb}" in asked
    for choice in ("/versions/1", "/labels/stable", ""):
        for what in (":predict", "/metadata", "\n"):
            assert f"/v1/models/half_plus_two{choice}{what}" in f"{asked}\n".replace(" |", "\n")
    assert len(EXAMPLES) > 25
