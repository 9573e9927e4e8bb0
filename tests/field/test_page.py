"""docs/field.md shows the table that the commands are held to."""

import os

from tests.field import page
from tests.field.rows import BY_NAME, ROWS


def test_page_shows_the_table():
    text = page.render()
    if os.environ.get("TFKIT_PASTE") == "1":
        page.PAGE.write_text(text, "utf-8")
    assert page.PAGE.read_text("utf-8") == text, "run it again with TFKIT_PASTE=1"


def test_every_model_has_one_row():
    assert len(BY_NAME) == sum(map(len, ROWS.values()))
