"""What is hidden in addresses and texts, and what is not."""

import time
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfserve_kit import redaction

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
        assert redaction.url(place) == shown

    @given(SCHEMES, QUOTED | RAW, HOSTS)
    def test_no_password_is_shown(self, scheme, secret, host):
        shown = redaction.url(f"{scheme}://zoe:{secret}@{host}/m")
        assert secret not in shown
        assert shown.endswith(f"@{host}/m")

    @given(SCHEMES, KEYS, QUOTED | RAW, HOSTS, st.sampled_from("?#"))
    def test_no_parameter_is_shown(self, scheme, key, secret, host, mark):
        shown = redaction.url(f"{scheme}://{host}/m{mark}a=b&{key}={secret}")
        assert secret not in shown
        assert shown.startswith(f"{scheme.lower()}://{host}/m")

    @given(st.text(max_size=60))
    def test_any_text_is_taken_and_hiding_twice_hides_no_more(self, place):
        shown = redaction.url(place)
        assert redaction.url(shown) == shown


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
        assert redaction.text(said) == shown

    @given(SCHEMES, QUOTED, HOSTS)
    def test_no_password_of_any_url_is_shown(self, scheme, secret, host):
        assert secret not in redaction.text(f"failed: <{scheme}://zoe:{secret}@{host}/m>: why")

    @given(SECRETS, KEYS)
    def test_secrets_of_a_known_url_are_hidden_quoted_and_not(self, secret, key):
        quoted = quote(secret, safe="")
        place = f"https://zoey:{quoted}@h/m?{key}={quoted}"
        shown = redaction.text(f"'{secret}' or '{quoted}' at {place}", place)
        assert secret not in shown
        assert quoted not in shown

    @given(st.text(max_size=80), st.text(max_size=30))
    def test_any_text_is_taken(self, said, place):
        redaction.text(said, place)

    @pytest.mark.parametrize(
        "piece", ["a", "a-", "x-amz-", "x-", "token", "http:/", "://", "::a:/", "@", "cookie:", " "]
    )
    def test_a_long_text_takes_no_longer_than_its_length(self, piece):
        began = time.process_time()
        redaction.text(piece * (1_000_000 // len(piece)))
        assert time.process_time() - began < 5

    def test_values_are_hidden_by_name(self):
        assert redaction.values({"A": "b", "C": ""}) == {"A": "***", "C": "***"}
