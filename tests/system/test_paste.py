"""What the comparison of a page with what its commands print lets pass, and what not."""

import os

import pytest

from tests.system import pages
from tests.system.shell import Shell

PAGE = "# P\n```bash\necho 12 a\necho b\n```\n\n```text\n7 a\n...\n```\n\n```bash\ntrue\n```\n"
PRINTED = ["Pushed version 3: m/3 (46,352 bytes)", "", "size  name", "1 MB  a.bin", "done"]


@pytest.mark.parametrize(
    "shown",
    [
        ["Pushed version 17: m/17 (1 MB)", "", "size       name", "5.2 kB     a.bin", "done"],
        ["..."],
        ["Pushed version 3: m/3 (1 bytes)", "..."],
        ["...", "1 MB  a.bin", "...", "done"],
        ["...", "done", "..."],
    ],
)
def test_numbers_widths_and_lines_left_out_may_differ(shown):
    fresh = pages.fitted(shown, PRINTED)
    assert [line == "..." for line in fresh] == [line == "..." for line in shown]
    assert {line for line in fresh if line != "..."} <= set(PRINTED)


@pytest.mark.parametrize(
    "shown",
    [
        [],
        PRINTED[:-1],
        [*PRINTED, "more"],
        ["Refused version 3: m/3 (46,352 bytes)", "..."],
        ["...", "1 MB  a.bin"],
        ["...", "done", "1 MB  a.bin", "..."],
        ["...", "done", "done"],
    ],
)
def test_other_words_or_another_order_do_not_fit(shown):
    assert pages.fitted(shown, PRINTED) is None


@pytest.fixture
def shell(tmp_path):
    return Shell(tmp_path, dict(os.environ))


@pytest.fixture
def page(tmp_path):
    made = tmp_path / "page.md"
    made.write_text(PAGE)
    return made


def test_page_that_shows_what_is_printed_passes_unchanged(page, shell, monkeypatch):
    monkeypatch.delenv("TFKIT_PASTE", raising=False)
    before = page.read_text()
    pages.run(page, shell)
    assert page.read_text() == before


def test_page_that_shows_other_words_fails_with_what_is_printed(page, shell, monkeypatch):
    monkeypatch.delenv("TFKIT_PASTE", raising=False)
    page.write_text(page.read_text().replace("7 a", "7 c"))
    with pytest.raises(AssertionError, match=r"prints\n12 a\nb\n"):
        pages.run(page, shell)


def test_pasting_puts_what_is_printed_into_the_page_and_keeps_cuts(page, shell, monkeypatch):
    monkeypatch.setenv("TFKIT_PASTE", "1")
    pages.run(page, shell)
    assert "```text\n12 a\n...\n```" in page.read_text()
    page.write_text(page.read_text().replace("12 a\n...", "12 c\n..."))
    pages.run(page, shell)
    assert "```text\n12 a\nb\n```" in page.read_text()


def test_text_that_does_not_follow_at_once_is_no_output():
    page = "```bash\ntrue\n```\nSuch as:\n```text\nx\n```\n"
    assert [block.shown for block in pages.runnable(page)] == [None]


def test_failing_command_fails_the_page(page, shell):
    page.write_text("```bash\nfalse\ntrue\n```\n")
    with pytest.raises(AssertionError, match="false"):
        pages.run(page, shell)


def test_of_a_block_that_varies_the_first_line_counts(page, shell, monkeypatch):
    monkeypatch.delenv("TFKIT_PASTE", raising=False)
    page.write_text(page.read_text().replace("```text\n7 a\n...", "```text varies\n7 a\nanything"))
    pages.run(page, shell)
    page.write_text(page.read_text().replace("7 a\nany", "7 c\nany"))
    with pytest.raises(AssertionError, match=r"prints\n12 a\nb\n"):
        pages.run(page, shell)
