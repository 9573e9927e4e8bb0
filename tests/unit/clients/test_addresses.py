"""Addresses as people write and paste them: taken, or refused with the form that is meant."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfserve_kit.clients import addresses, connect
from tfserve_kit.clients.addresses import Address
from tfserve_kit.errors import UsageError

HOST = "http://h:8501"


@pytest.mark.parametrize(
    ("text", "model", "version", "label"),
    [
        (f"{HOST}/v1/models/m:predict", "m", None, None),
        (f"{HOST}/v1/models/m", "m", None, None),
        (f"{HOST}/v1/models/m/", "m", None, None),
        (f"{HOST}/v1/models/m/metadata", "m", None, None),
        (f"{HOST}/v1/models/m/versions/3", "m", 3, None),
        (f"{HOST}/v1/models/m/versions/3:predict", "m", 3, None),
        (f"{HOST}/v1/models/m/versions/3/metadata", "m", 3, None),
        (f"{HOST}/v1/models/m/labels/stable:classify", "m", None, "stable"),
        (f"{HOST}/v1/models/a%20b:regress", "a b", None, None),
        (f"{HOST}/v1/models", "", None, None),
        (f"{HOST}/v1/", "", None, None),
        (f"{HOST}/monitoring/prometheus/metrics", "", None, None),
    ],
)
def test_pasted_url_says_server_model_and_version(text, model, version, label):
    assert addresses.read(text) == Address(HOST, model, version, label, is_pasted=True)


@pytest.mark.parametrize(
    "url",
    ["http://h:8501", "https://h", "https://h/team/a", "grpc://h:8500", "grpcs://h",
     "grpc://[::1]:8500", "http://[2001:db8::1]:8501", "unix:/run/s"],
)  # fmt: skip
def test_address_of_a_server_is_itself(url):
    assert addresses.read(url) == Address(url)


def test_prefix_of_a_proxy_stays():
    found = addresses.read("https://h/team/a/v1/models/m/versions/7:predict")
    assert found == Address("https://h/team/a", "m", 7, None, is_pasted=True)
    assert str(found) == "REST at https://h/team/a, model 'm', version 7"


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("localhost:8500", "write grpc://localhost:8500"),
        ("localhost:8501", "write http://localhost:8501"),
        ("//h:8500", "write grpc://h:8500"),
        ("[::1]:8500", "write grpc://[::1]:8500"),
        ("h:8501/v1/models/m", "write http://h:8501/v1/models/m"),
        ("h:9000", "write grpc://h:9000 for gRPC, or http://h:9000 for REST"),
        ("grpc://::1:8500", "write grpc://[::1]:8500"),
        ("http://fe80::1:8501", "write http://[fe80::1]:8501"),
        ("grpc://h", "write grpc://h:8500"),
        ("grpc://h:8500/v1/models/m:predict", "write grpc://h:8500, and give the model: m"),
        ("grpcs://h/x", "write grpcs://h; paths are for REST"),
        ("tcp://h:8500", "write grpc://h:8500 for gRPC, or http://h:8500 for REST"),
        ("http://h:8501/v1/models/m?x=1", "write http://h:8501/v1/models/m"),
        ("http://h:8501/v1/models/m/version/3", "/v1/models/NAME[/versions/N"),
        ("http://h:8501/v1/models/m:predcit", "[/metadata | :predict]"),
        ("http://h:8501/v1/models/m/versions/x", "/v1/models/NAME[/versions/N"),
        ("http://user:pw@h:8501", "--header NAME=env:VARIABLE"),
        ("http://h:0", "write grpc://localhost:8500"),
        ("http://h:99999", "write grpc://localhost:8500"),
        ("http://h:8501 ", "write grpc://localhost:8500"),
        ("http://h\n:8501", "write grpc://localhost:8500"),
    ],
)
def test_what_is_no_address_is_refused_with_the_form_that_is(text, remedy):
    with pytest.raises(UsageError) as caught:
        addresses.read(text)
    assert "is not the address of a model server" in caught.value.message
    assert remedy in caught.value.remedy
    assert "pw" not in str(caught.value)


@pytest.mark.parametrize("text", ["rest://h:1", "ws://h:1", "htpp://h:1", "HTTPX://h:1"])
def test_unknown_scheme_is_named(text):
    with pytest.raises(UsageError, match=r"is not supported \("):
        addresses.read(text)


def test_client_wants_the_address_alone_and_says_which_that_is():
    with pytest.raises(UsageError) as caught:
        connect(f"{HOST}/v1/models/m:predict")
    assert caught.value.remedy == f"write {HOST}"


@given(st.text(max_size=60))
def test_any_text_is_taken_or_refused(text):
    for each in (text, f"http://{text}", f"grpc://{text}", f"http://h:1/v1/models/{text}"):
        with suppress(UsageError):
            assert "://" in addresses.read(each).url or each.lower().startswith("unix:")
