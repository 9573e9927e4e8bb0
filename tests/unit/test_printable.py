"""Texts from outside: nothing in them acts, and all that does not act stays."""

import csv
import io
import json
import unicodedata

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfserve_kit.printable import csv_cell, in_html, in_json, one_line, printable

# Any code point, halves of surrogate pairs too.
ANY = st.text(st.characters(codec=None, exclude_categories=()))
BIDI = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


def acts(character, but=""):
    """Say whether a terminal may do something else with a character than show it."""
    if character in but:
        return False
    return (
        unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"}
        or unicodedata.bidirectional(character) in BIDI
        or character in "\u200e\u200f\u061c"
    )


@given(ANY)
def test_nothing_acts_in_what_is_printable_and_all_else_stays(text):
    shown = printable(text)
    assert not any(acts(each, "\n\t") for each in shown)
    shown.encode()
    assert printable(shown) == shown
    kept = [each for each in text if not acts(each, "\n\t")]
    rest = iter(shown)
    assert all(each in rest for each in kept)


@given(ANY)
def test_one_line_is_one(text):
    shown = one_line(text)
    assert not any(acts(each) for each in shown)
    assert len(shown.splitlines()) <= 1


@given(st.recursive(ANY, lambda inner: st.lists(inner) | st.dictionaries(ANY, inner)))
def test_json_says_the_same_with_nothing_acting(value):
    document = in_json(json.dumps(value, ensure_ascii=False))
    assert json.loads(document) == value
    assert not any(acts(each) for each in document)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;owned\x07", r"\x1b]0;owned\x07"),
        ("a\rb", r"a\rb"),
        ("\x9b2J", r"\x9b2J"),
        ("\u202egpj.exe", r"\u202egpj.exe"),
        ("\udcff.jpg", r"\udcff.jpg"),
        ("Grüße, 世界 🙂\n\tok", "Grüße, 世界 🙂\n\tok"),
    ],
)
def test_examples(text, shown):
    assert printable(text) == shown


@pytest.mark.parametrize(
    "cell", ["=1+1", "+SUM(A1)", "-cmd|' /C calc'!A0", "@x", "\t=1", "\n=1", "=", "-1-1", "+1+cmd"]
)
def test_cell_that_would_be_a_formula_is_none(cell):
    stream = io.StringIO()
    csv.writer(stream).writerow([csv_cell(cell)])
    assert csv_cell(cell)[0] == "'"
    assert next(csv.reader(io.StringIO(stream.getvalue())))[0].startswith("'")


@pytest.mark.parametrize("cell", ["-1", "+2.5", "-1e-05", "-inf", "nan", "cat", "a=b", "", ".5"])
def test_numbers_and_names_stay_as_they_are(cell):
    assert csv_cell(cell) == cell


def test_page_holds_no_control_character_and_keeps_what_is_markup():
    environment = jinja2.Environment(autoescape=True, finalize=in_html)
    page = environment.from_string("{{ name }}{{ '<b>\x1b</b>'|safe }}{{ 3 }}{{ none }}")
    assert page.render(name="<\x1b\u202e>") == "&lt;\\x1b\\u202e&gt;<b>\\x1b</b>3None"
