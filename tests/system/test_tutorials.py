"""The tutorial, run word for word from its first chapter to its last, with what it shows."""

import pytest

from tests.system import pages
from tests.system.shell import ROOT

CHAPTERS = sorted((ROOT / "docs" / "tutorials").glob("0*.md"))
EXAMPLES = sorted(path.parent.name for path in (ROOT / "examples").glob("*/README.md"))

pytestmark = pytest.mark.tensorflow


def test_chapters_work_in_order_and_show_what_is_printed(checkout):
    for chapter in CHAPTERS:
        pages.run(chapter, checkout)


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_chapter_is_short_and_leads_to_the_next(chapter):
    text = chapter.read_text("utf-8")
    assert len(text.splitlines()) <= 80
    assert text.startswith(f"# {int(chapter.stem[:2])}. ")
    after = CHAPTERS[CHAPTERS.index(chapter) + 1 :]
    assert not after or f"]({after[0].name})" in text.splitlines()[-1]


def test_the_path_tells_all_examples():
    told = "".join(chapter.read_text("utf-8") for chapter in CHAPTERS)
    assert [name for name in EXAMPLES if f"examples/{name}" not in told] == []
