"""Images: the stand-in keeps the official image's contract, and models are built into images."""

import contextlib
import gc
import json
import subprocess
import sys
import time
import uuid

import numpy as np
import pytest

import tfserve_kit
from tests.integration import images as stock
from tests.integration.images import docker
from tfserve_kit.cli import files as build_image_module
from tfserve_kit.cli import main
from tfserve_kit.clients import Target
from tfserve_kit.clock import SystemClock, wait_until
from tfserve_kit.deployment import build
from tfserve_kit.engines import images
from tfserve_kit.engines.images import Variant
from tfserve_kit.errors import ModelNotFound, ServerFailed, ServerUnreachable

PATIENCE_S = 60.0
SOON_S = 8.0  # the server ends at once, not when the ten seconds of `docker stop` are over
ODD = 'it$s "q" \\'

pytestmark = pytest.mark.tensorflow


@pytest.fixture(scope="module")
def stand_in(docker_image):
    """An image that is ours for certain."""
    if docker_image == stock.STAND_IN:
        return docker_image
    try:
        return stock.stand_in()
    except stock.NoImage as error:
        pytest.skip(str(error))


@contextlib.contextmanager
def running(*options, image, flags=()):
    """Run a container for a `with` block: its id."""
    ports = [word for port in (8500, 8501) for word in ("-p", f"127.0.0.1::{port}")]
    container = docker("run", "--detach", *ports, *options, image, *flags)
    try:
        yield container
    finally:
        docker("rm", "--force", "--volumes", container)


def connected(container, scheme="http"):
    port = {"grpc": 8500, "http": 8501}[scheme]
    return tfserve_kit.connect(f"{scheme}://" + docker("port", container, f"{port}/tcp"))


def answer_of(container, model):
    """Send 2.0 to version 2 of `half_plus_two` (x / 2 + 3), as soon as it answers."""

    def ask():
        with contextlib.suppress(ServerUnreachable, ModelNotFound):
            return client.predict(Target(model), {"x": np.array([2.0], np.float32)})
        return None

    with connected(container) as client:
        answer = wait_until(ask, timeout_s=PATIENCE_S, interval_s=0.1, clock=SystemClock())
    assert answer is not None, docker("logs", container, stderr=subprocess.STDOUT)
    return answer.outputs["y"].item()


def health(container):
    """Return what the health check said in the end."""

    def look():
        status = docker("inspect", "-f", "{{.State.Health.Status}}", container)
        return None if status == "starting" else status

    return wait_until(look, timeout_s=PATIENCE_S, interval_s=0.2, clock=SystemClock())


def stopped(container):
    """Stop a container: how long it took in seconds, and its exit status."""
    before = time.monotonic()
    docker("stop", container)
    took_s = time.monotonic() - before
    return took_s, int(docker("inspect", "-f", "{{.State.ExitCode}}", container))


class TestServer:
    """The image without a model: what is mounted is served."""

    def test_model_mounted_where_the_official_image_looks_is_served(self, docker_image, models):
        mount = f"{models}/half_plus_two:/models/model:ro"
        with running("-v", mount, image=docker_image) as container:
            assert answer_of(container, "model") == 4.0

    def test_environment_and_appended_flags_count(self, docker_image, models):
        options = ["-v", f"{models}/half_plus_two:/other/half:ro"]
        options += ["-e", "MODEL_NAME=half", "-e", "MODEL_BASE_PATH=/other"]
        flags = ["--model_name=renamed"]
        with running(*options, image=docker_image, flags=flags) as container:
            assert answer_of(container, "renamed") == 4.0

    @pytest.mark.parametrize("options", [[], ["--init"]])
    def test_stand_in_ends_at_once_with_or_without_an_init_process(self, stand_in, models, options):
        mount = ["-v", f"{models}/half_plus_two:/models/model:ro"]
        with running(*mount, *options, image=stand_in) as container:
            answer_of(container, "model")
            took_s, status = stopped(container)
        assert took_s < SOON_S
        assert status == 0

    def test_stand_in_says_its_version_by_the_official_name(self, stand_in):
        binary = "--entrypoint=tensorflow_model_server"
        assert "TensorFlow ModelServer" in docker("run", "--rm", binary, stand_in, "--version")


@pytest.fixture(scope="module")
def baked(docker_image, models, tmp_path_factory):
    """An image that `tfkit build-image` built with a model inside: what the command said."""
    tag = f"tfkit-test-{uuid.uuid4().hex[:12]}"
    argv = [sys.executable, "-m", "tfserve_kit", "build-image", "--json"]
    argv += ["--model", f"half={models}/half_plus_two", "--base", docker_image, "--tag", tag]
    folder = tmp_path_factory.mktemp("empty")
    done = subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True, cwd=folder)
    yield json.loads(done.stdout)["data"]
    docker("image", "rm", tag)


@pytest.fixture(scope="module")
def locked_down(baked):
    """A container of it that may do as little as possible."""
    options = ["--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges"]
    with running(*options, "--health-interval=1s", image=baked["tag"]) as container:
        yield container


class TestModelInside:
    """The image with a model: it needs nothing."""

    def test_it_serves_without_mounts_rights_or_a_writable_disk(self, locked_down):
        assert answer_of(locked_down, "half") == 4.0
        assert docker("exec", locked_down, "id", "-u") == "65534"

    def test_it_answers_grpc_as_well(self, locked_down):
        answer_of(locked_down, "half")
        with connected(locked_down, "grpc") as client:
            assert client.predict(Target("half"), {"x": np.array([2.0], np.float32)}).version == 2

    def test_health_check_finds_it_healthy(self, locked_down):
        assert health(locked_down) == "healthy"

    def test_health_check_fails_while_a_model_is_missing(self, locked_down):
        answer_of(locked_down, "half")
        check = "sed 's/model in half/& nothing/' /tfkit/healthcheck.sh | bash"
        code = f"bash /tfkit/healthcheck.sh && ! ({check})"
        docker("exec", locked_down, "bash", "-c", code)

    def test_result_and_labels_name_what_is_inside(self, docker_image, baked):
        assert baked["base"] == docker_image
        assert baked["models"] == {"half": [2]}
        assert baked["id"] == docker("image", "inspect", "-f", "{{.Id}}", baked["tag"])
        label = '{{index .Config.Labels "tfkit.models"}}'
        assert docker("image", "inspect", "-f", label, baked["tag"]) == '{"half": [2]}'

    def test_it_ends_at_once_without_an_init_process(self, baked):
        with running(image=baked["tag"]) as container:
            answer_of(container, "half")
            took_s, _ = stopped(container)
        assert took_s < SOON_S

    def test_flags_can_be_appended_and_a_failed_start_shows_in_the_status(self, baked):
        with running(image=baked["tag"], flags=["--port=none"]) as container:
            assert docker("wait", container) == "255"


@pytest.fixture
def build_image(tmp_path, monkeypatch, capsys):
    """Run `tfkit build-image` where there is no daemon: its exit code and the JSON it printed."""
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        with pytest.raises(SystemExit) as caught:
            main(["build-image", "--json", *arguments])
        code = caught.value.code
        del caught
        gc.collect()  # now, while it may warn: the SDK leaves a socket open
        return code, json.loads(capsys.readouterr().out)["data"]

    return run


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
class TestCommandWithoutDocker:
    def test_out_writes_the_folder_and_builds_nothing(self, build_image, models, tmp_path):
        code, data = build_image("--model", f"m={models}/half_plus_two", "--out", "image")
        assert code == 0
        assert data == {
            "base": "tensorflow/serving:2.20.0",
            "models": {"m": [2]},
            "folder": str(tmp_path / "image"),
        }
        assert (tmp_path / "image" / "Dockerfile").is_file()
        assert (tmp_path / "image" / "models" / "m" / "2" / "saved_model.pb").is_file()

    def test_bare_server_takes_no_model(self, build_image, tmp_path):
        code, data = build_image("--embedded", "--bare", "--out", "image")
        assert (code, data["models"]) == (0, {})
        assert not (tmp_path / "image" / "models").exists()

    @pytest.mark.parametrize(
        ("arguments", "code"),
        [
            ([], 2),
            (["--bare"], 2),
            (["--bare", "--embedded", "--model", "m=HALF"], 2),
            (["--gpu", "--embedded", "--model", "m=HALF"], 2),
            (["--model", "m=HALF", "--out", "."], 0),
            (["--model", "m=HALF", "--out", "HALF"], 2),
            (["--model", "m=nowhere"], 3),
            (["--model", "m=HALF"], 4),
        ],
    )
    def test_exit_code_says_what_is_wrong(self, build_image, models, arguments, code):
        half = str(models / "half_plus_two")
        assert build_image(*(each.replace("HALF", half) for each in arguments))[0] == code

    @pytest.mark.parametrize(
        ("name", "tag"),
        [
            ("default", "tfkit-default"),
            ("Web_1.-x_", "tfkit-web-1-x"),
            (None, "tfkit-model-server"),
        ],
    )
    def test_tag_is_made_from_the_servers_name(self, models, name, tag):
        document = {"server": {"name": name}, "models": {"m": {"base_path": "m"}}}
        made = build(document, source="test", folder=models) if name else None
        assert build_image_module._tag(made) == tag


def test_rendered_folder_builds_by_itself_with_odd_names_and_all_configs(
    docker_image, models, tmp_path
):
    document = {
        "models": {
            ODD: {"base_path": "half_plus_two", "versions": "all"},
            "100%": {"base_path": "half_plus_two", "versions": {"specific": [1]}},
        },
        "batching": {"max_batch_size": 4},
        "monitoring": {"path": "/metrics"},
    }
    deployment = build(document, source="test", folder=models)
    images.render_context(deployment, tmp_path / "context", Variant(docker_image))
    tag = f"tfkit-test-{uuid.uuid4().hex[:12]}"
    docker("build", "--quiet", "--tag", tag, ".", cwd=tmp_path / "context")
    try:
        with running("--health-interval=1s", image=tag) as container:
            assert answer_of(container, ODD) == 4.0
            assert health(container) == "healthy"
            with connected(container) as client:
                assert [each.version for each in client.status(Target("100%"))] == [1]
    finally:
        docker("image", "rm", tag)


def test_failed_step_is_named_with_its_last_lines(docker_image, tmp_path):
    step = "RUN for i in 1 2; do echo line $i; done; exit 7"
    (tmp_path / "Dockerfile").write_text(f"FROM {docker_image}\n{step}\n")
    with pytest.raises(ServerFailed, match=r"exit 7.*returned a non-zero code: 7") as caught:
        images.build(tmp_path, "tfkit-test-never")
    assert caught.value.log_tail[-2:] == ["line 1", "line 2"]


def test_name_that_docker_refuses_is_named(docker_image, tmp_path):
    (tmp_path / "Dockerfile").write_text(f"FROM {docker_image}\n")
    with pytest.raises(ServerFailed, match="Not/Lower"):
        images.build(tmp_path, "Not/Lower")
