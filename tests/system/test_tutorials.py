"""The tutorial's commands, run word for word from its first chapter to its last."""

import sys
from pathlib import Path

import pytest

from tests.system.shell import Shell, blocks, commands

ROOT = Path(__file__).parents[2]
CHAPTERS = sorted((ROOT / "docs" / "tutorials").glob("0[1-4]-*.md"))

pytestmark = [pytest.mark.slow, pytest.mark.tensorflow]


@pytest.fixture
def checkout(tmp_path, shell_env):
    """A shell in a folder that has the examples."""
    pytest.importorskip("tensorflow")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    made = Shell(tmp_path, shell_env)
    yield made
    made.run(["tfkit", "stop", "--all"])


def test_commands_from_pictures_to_a_replaced_model_work_in_order(checkout):
    assert len(CHAPTERS) == 4
    for chapter in CHAPTERS:
        text = chapter.read_text("utf-8")
        for argv in commands(text):
            checkout.run(argv)
        for code in blocks(text, "python"):
            here = code.replace("grpc://localhost:8500", checkout.server()["grpc"])
            assert checkout.run([sys.executable, "-c", here]).startswith("[b'")


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_chapter_is_short(chapter):
    assert len(chapter.read_text("utf-8").splitlines()) <= 60
