"""examples/classification_service: a gRPC service of one's own in front of a served model."""

import re
import subprocess
import sys

import pytest

from tests.system.example import EXAMPLES, assert_readme_shows
from tfserve_kit.deployment import render

NAME = "classification_service"
FOLDER = EXAMPLES / NAME

pytestmark = pytest.mark.tensorflow


@pytest.fixture
def base_path(tmp_path):
    (tmp_path / "digits" / "1").mkdir(parents=True)
    (tmp_path / "digits" / "1" / "saved_model.pb").touch()
    return tmp_path / "digits"


@pytest.fixture
def deployment_of(monkeypatch, base_path):
    """The deployment that server.py makes of its flags."""
    monkeypatch.syspath_prepend(FOLDER)
    import server

    yield lambda *flags: server.deployment(
        server.parser().parse_args(["--model", str(base_path), *flags])
    )
    for module in ("server", "services_pb2", "services_pb2_grpc"):
        del sys.modules[module]


def test_run_prints_sorted_scores_and_refuses_what_cannot_be_queued(printed_by):
    printed = printed_by(NAME).read_text("utf-8")
    assert_readme_shows(NAME, printed)
    table = printed.partition("CLASS  LABEL  SCORE\n")[2].splitlines()[:11]
    indices, labels, scores = zip(*(line.split() for line in table[:10]), strict=True)
    assert (indices[0], labels[0]) == ("3", "3")
    assert sorted(map(int, indices)) == list(range(10))
    assert sorted(map(float, scores), reverse=True) == list(map(float, scores))
    assert re.fullmatch(r"digit-3.jpg: label 3, \d+\.\d ms", table[10])
    assert "UNAVAILABLE" in printed
    assert printed.endswith("The service works.\n")


def test_defaults_become_batching_parameters(deployment_of):
    text = render.render(deployment_of())["batching_config.txt"]
    for line in (
        'thread_pool_name { value: "batch_threads" }',
        "num_batch_threads { value: 1 }",
        "max_batch_size { value: 1000 }",
        "batch_timeout_micros { value: 1000 }",
        "max_enqueued_batches { value: 1 }",
    ):
        assert line in text
    assert "allowed_batch_sizes" not in text


@pytest.mark.parametrize("text", ["2 8", "2,8", "2, 8"])
def test_allowed_batch_sizes_may_be_spaced_or_comma_separated(deployment_of, text):
    batching = deployment_of("--max_batch_size=8", f"--allowed_batch_sizes={text}").batching
    assert batching.allowed_batch_sizes == (2, 8)


@pytest.mark.parametrize(
    ("flags", "batched"),
    [([], True), (["--use_batching"], True), (["--use_batching=false"], False)],
)
def test_batching_is_on_unless_it_is_switched_off(deployment_of, flags, batched):
    assert (deployment_of(*flags).batching is not None) is batched


@pytest.mark.parametrize(
    ("flag", "complaint"),
    [
        ("--num_batch_threads=0", "batching.num_batch_threads"),
        ("--num_batch_threads=many", "invalid int value: 'many'"),
        ("--allowed_batch_sizes=8 16", "16 != 1000"),
        ("--allowed_batch_sizes=8;16", "invalid _sizes value"),
        ("--use_batching=perhaps", "'perhaps' is neither true nor false"),
        ("--engine=steam", "server.engine"),
        ("--model=nowhere", "nowhere holds no version"),
    ],
)
def test_a_flag_that_cannot_be_so_is_named_with_status_2(base_path, flag, complaint):
    command = [sys.executable, FOLDER / "server.py", "--model", base_path, flag]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert not done.stdout


def test_compiled_files_are_those_of_the_proto():
    pytest.importorskip("grpc_tools")
    command = [sys.executable, FOLDER / "compile_protos.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
