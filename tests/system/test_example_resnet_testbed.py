"""examples/resnet_testbed: a delivered zip, batching, measuring, and a batch that is too large."""

import re
import shutil
import subprocess
import sys
import tomllib
import uuid

import pytest

from tests.system.example import EXAMPLES, assert_readme_shows
from tests.system.shell import Shell, blocks

NAME = "resnet_testbed"
PARAMETERS = {
    "max_batch_size": 8,
    "batch_timeout_micros": 0,
    "max_enqueued_batches": 1_000_000,
    "num_batch_threads": 8,
}

pytestmark = pytest.mark.tensorflow


def test_run_serves_measures_and_cuts_a_batch_that_is_too_large(printed_by):
    printed = printed_by(NAME).read_text("utf-8")
    assert_readme_shows(NAME, printed)
    assert "Pushed version 1: models/resnet/1" in printed
    assert printed.count("resnet version 1, prepared in") == 5
    assert printed.count("errors: none") == 2
    told = blocks((EXAMPLES / NAME / "README.md").read_text("utf-8"), "text")[-1]
    assert told.splitlines()
    assert all(line in printed for line in told.splitlines())
    assert "5 pictures, answered in parts by predict_batch: class_" in printed
    assert printed.endswith("The test bed works.\n")


def test_image_with_model_and_batching_parameters_is_built_served_and_measured(
    docker_image, shell_env, tmp_path
):
    tag = f"tfkit-test-{uuid.uuid4().hex[:12]}"
    command = [sys.executable, EXAMPLES / NAME / "run.py", "--docker", "--tag", tag]
    try:
        done = subprocess.run([*command, "--base", docker_image], env=shell_env, cwd=tmp_path,
                              capture_output=True, text=True, check=False)  # fmt: skip
    finally:
        subprocess.run(["docker", "image", "rm", tag], check=False, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("errors: none") == 2
    assert done.stdout.endswith("The test bed works.\n")


def test_gpu_image_is_built_on_the_official_one_with_cuda(shell_env, models, tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "resnet").symlink_to(models / "half_plus_two")
    shutil.copy(EXAMPLES / NAME / "tfkit.toml", tmp_path)
    shell = Shell(tmp_path, shell_env)
    shell.run(["tfkit", "build-image", "--gpu", "--out", "image-gpu"])
    dockerfile = (tmp_path / "image-gpu" / "Dockerfile").read_text("utf-8")
    assert re.search(r"^FROM tensorflow/serving:[\d.]+-gpu$", dockerfile, re.MULTILINE)
    batching = next(tmp_path.rglob("image-gpu/**/batching_config.txt")).read_text("utf-8")
    values = dict(re.findall(r"(\w+) { value: (\d+) }", batching))
    assert {name: int(value) for name, value in values.items()} == PARAMETERS


def test_deployment_holds_the_four_parameters():
    deployment = tomllib.loads((EXAMPLES / NAME / "tfkit.toml").read_text("utf-8"))
    assert deployment["batching"] == PARAMETERS
