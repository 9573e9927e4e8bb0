"""examples/resnet_testbed: a delivered zip, batching, measuring, and a batch that is too large."""

import tomllib

import pytest

from tests.system.example import EXAMPLES, ROOT, assert_readme_shows, run_example
from tests.system.shell import Shell, blocks, commands

NAME = "resnet_testbed"
CHAPTER = (ROOT / "docs" / "tutorials" / "05-batching.md").read_text("utf-8")

pytestmark = [pytest.mark.slow, pytest.mark.tensorflow]


@pytest.fixture
def shell(tmp_path, shell_env):
    """A shell in a folder that has the examples."""
    (tmp_path / "examples").symlink_to(EXAMPLES)
    made = Shell(tmp_path, shell_env)
    yield made
    made.run(["tfkit", "stop", "--all"])


def test_commands_of_the_chapter_on_batching_work_in_order(shell):
    printed = {" ".join(argv): shell.run(argv) for argv in commands(CHAPTER)}
    measured = [text for command, text in printed.items() if " perf --input " in command]
    assert len(measured) == 2
    assert all("errors: none" in text and "\nbatches: " in text for text in measured)
    assert len(CHAPTER.splitlines()) <= 60


def test_run_serves_measures_and_cuts_a_batch_that_is_too_large():
    printed = run_example(NAME)
    assert_readme_shows(NAME, printed)
    assert "Pushed version 1: models/resnet/1" in printed
    assert printed.count("resnet version 1, prepared in") == 5
    assert printed.count("errors: none") == 2
    told = blocks((EXAMPLES / NAME / "README.md").read_text("utf-8"), "text")[-1]
    assert told.splitlines()
    assert all(line in printed for line in told.splitlines())
    assert "5 pictures, answered in parts by predict_batch: class_" in printed
    assert printed.endswith("The test bed works.\n")


def test_deployment_holds_the_four_parameters():
    deployment = tomllib.loads((EXAMPLES / NAME / "tfkit.toml").read_text("utf-8"))
    assert deployment["batching"] == {
        "max_batch_size": 8,
        "batch_timeout_micros": 0,
        "max_enqueued_batches": 1_000_000,
        "num_batch_threads": 8,
    }
