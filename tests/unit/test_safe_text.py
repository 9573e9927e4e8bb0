"""Secrets are hidden in texts; nothing in a text acts, and all that does not act stays."""

import csv
import io
import json
import time
import unicodedata
from urllib.parse import quote

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfserve_kit import safe_text
from tfserve_kit.safe_text import csv_cell, one_line, printable, printable_html, printable_json

SECRETS = st.text(st.characters(codec="ascii", min_codepoint=33), min_size=8, max_size=30).map(
    "x9Z".__add__
)
QUOTED = SECRETS.map(lambda secret: quote(secret, safe=""))
# What RFC 3986 lets stand in user information or a query as it is, and what people forget to quote.
RAW = st.text("abcXYZ019-._~!$&()*+,;=:@", min_size=8, max_size=30).map("x9Z".__add__)
KEYS = st.sampled_from(["X-Amz-Signature", "sig", "token", "access_token", "whatever", "k"])
HOSTS = st.sampled_from(["h", "example.org", "127.0.0.1:8500", "[::1]:8501", "bucket"])
SCHEMES = st.sampled_from(["http", "https", "grpc", "grpcs", "s3", "gs", "az", "HTTPS"])


class TestUrls:
    @pytest.mark.parametrize(
        ("place", "shown"),
        [
            ("https://u:p@h:8/a/b?c=d#e", "https://***@h:8/a/b?***"),
            ("https://h/a", "https://h/a"),
            ("https://h/a#token", "https://h/a"),
            ("s3://key:secret@bucket/x", "s3://***@bucket/x"),
            ("https://[::1/x?y=z", "https://..."),
            ("https://token@h/x", "https://***@h/x"),
            ("https://u:sla/sh@h/x", "https://***@h/x"),
            ("https://u:ha#sh@h/x", "https://***@h/x"),
            ("http://h:80/models/a@b", "http://h:80/models/a@b"),
            ("gs://bucket/a@b", "gs://bucket/a@b"),
            ("grpc://127.0.0.1:8500", "grpc://127.0.0.1:8500"),
            ("/a/path?x", "/a/path?x"),
            ("file:///a/b@c?d", "file:///a/b@c?d"),
        ],
    )
    def test_user_query_and_fragment_are_hidden_and_the_rest_stays(self, place, shown):
        assert safe_text.redacted_url(place) == shown

    @given(SCHEMES, QUOTED | RAW, HOSTS)
    def test_no_password_is_shown(self, scheme, secret, host):
        shown = safe_text.redacted_url(f"{scheme}://zoe:{secret}@{host}/m")
        assert secret not in shown
        assert shown.endswith(f"@{host}/m")

    @given(SCHEMES, KEYS, QUOTED | RAW, HOSTS, st.sampled_from("?#"))
    def test_no_parameter_is_shown(self, scheme, key, secret, host, mark):
        shown = safe_text.redacted_url(f"{scheme}://{host}/m{mark}a=b&{key}={secret}")
        assert secret not in shown
        assert shown.startswith(f"{scheme.lower()}://{host}/m")

    @given(st.text(max_size=60))
    def test_any_text_is_taken_and_hiding_twice_hides_no_more(self, place):
        shown = safe_text.redacted_url(place)
        assert safe_text.redacted_url(shown) == shown


class TestTexts:
    @pytest.mark.parametrize(
        ("said", "shown"),
        [
            ("no (https://u:p@h/x?y=z), see https://h/x.",
             "no (https://***@h/x?***), see https://h/x."),
            ("there is no https:/u:pa55@h/x", "there is no https:/***@h/x"),
            ("zip://a.zip::https://u:pa55@h/b", "zip://a.zip::https://***@h/b"),
            ("GET /x?a=b&X-Amz-Signature=12ab&c=d", "GET /x?a=b&X-Amz-Signature=***&c=d"),
            ("Authorization: Bearer abcdefgh", "Authorization: ***"),
            ("{'authorization': 'Basic dTpw', 'a': 'b'}", "{'authorization': '***', 'a': 'b'}"),
            ("sent Bearer abcdefgh.ijk", "sent Bearer ***"),
            ("DB_PASSWORD=hunter2 is set", "DB_PASSWORD=*** is set"),
            ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----\n!",
             "-----BEGIN RSA PRIVATE KEY-----***-----END RSA PRIVATE KEY-----\n!"),
            ("version 3 of 'half' has no signature 'token'",
             "version 3 of 'half' has no signature 'token'"),
            ("node={{x}} serves signature=serving_default",
             "node={{x}} serves signature=serving_default"),
        ],
    )  # fmt: skip
    def test_secrets_are_hidden_where_they_stand(self, said, shown):
        assert safe_text.redacted(said) == shown

    @given(SCHEMES, QUOTED, HOSTS)
    def test_no_password_of_any_url_is_shown(self, scheme, secret, host):
        assert secret not in safe_text.redacted(f"failed: <{scheme}://zoe:{secret}@{host}/m>: why")

    @given(SECRETS, KEYS)
    def test_secrets_of_a_known_url_are_hidden_quoted_and_not(self, secret, key):
        quoted = quote(secret, safe="")
        place = f"https://zoey:{quoted}@h/m?{key}={quoted}"
        shown = safe_text.redacted(f"'{secret}' or '{quoted}' at {place}", place)
        assert secret not in shown
        assert quoted not in shown

    @given(st.text(max_size=80), st.text(max_size=30))
    def test_any_text_is_taken(self, said, place):
        safe_text.redacted(said, place)

    @pytest.mark.parametrize(
        "piece", ["a", "a-", "x-amz-", "x-", "token", "http:/", "://", "::a:/", "@", "cookie:", " "]
    )
    def test_a_long_text_takes_no_longer_than_its_length(self, piece):
        began = time.process_time()
        safe_text.redacted(piece * (1_000_000 // len(piece)))
        assert time.process_time() - began < 5


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
    document = printable_json(json.dumps(value, ensure_ascii=False))
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
    environment = jinja2.Environment(autoescape=True, finalize=printable_html)
    page = environment.from_string("{{ name }}{{ '<b>\x1b</b>'|safe }}{{ 3 }}{{ none }}")
    assert page.render(name="<\x1b\u202e>") == "&lt;\\x1b\\u202e&gt;<b>\\x1b</b>3None"
