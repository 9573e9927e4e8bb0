"""The README of each example, its blocks run word for word in a fresh checkout.

Blocks in `bash` run. A `console` block needs what a machine may lack: a network, a GPU
or the official image.
"""

import re

import pytest

from tests.system import pages
from tests.system.example import EXAMPLES

READMES = sorted(EXAMPLES.glob("*/README.md"))
NEEDS = re.compile(r"imagenet|docker|gpu")

pytestmark = pytest.mark.tensorflow


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.parent.name)
def test_blocks_work_word_for_word(readme, checkout):
    pages.run(readme, checkout)


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.parent.name)
def test_only_what_needs_more_than_this_machine_is_not_run(readme):
    text = readme.read_text("utf-8")
    assert f"python examples/{readme.parent.name}/run.py" in pages.runnable(text)[0].code
    for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL):
        assert NEEDS.search(block)
    assert set(re.findall(r"^```(\w+)", text, re.MULTILINE)) <= {"bash", "console", "text"}


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.parent.name)
def test_links_lead_to_files(readme):
    links = re.findall(r"\]\(([^)#:]+)[)#]", readme.read_text("utf-8"))
    assert [link for link in links if not (readme.parent / link).exists()] == []


def test_there_are_five():
    assert len(READMES) == 5
