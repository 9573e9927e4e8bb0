"""From a URL to a client."""

import pytest

from tfserve_kit import connect
from tfserve_kit.clients.grpc import GrpcClient
from tfserve_kit.clients.rest import RestClient
from tfserve_kit.errors import UsageError


@pytest.mark.parametrize(
    ("url", "kind", "shown"),
    [
        ("grpc://localhost:8500", GrpcClient, "grpc://localhost:8500"),
        ("grpc://localhost:8500/", GrpcClient, "grpc://localhost:8500"),
        ("GRPC://localhost:8500", GrpcClient, "grpc://localhost:8500"),
        ("grpc://[::1]:8500", GrpcClient, "grpc://[::1]:8500"),
        ("http://localhost:8501", RestClient, "http://localhost:8501"),
        ("http://localhost:8501/", RestClient, "http://localhost:8501"),
        ("https://host/prefix", RestClient, "https://host/prefix"),
    ],
)
def test_scheme_decides_the_protocol(url, kind, shown):
    with connect(url) as client:
        assert isinstance(client, kind)
        assert client.url == shown


@pytest.mark.parametrize(
    "url",
    ["", "localhost:8500", "localhost", "grpc:localhost", "grpc://", "http://", "ftp://h:1",
     "http://[::1", "//h:1"],
)  # fmt: skip
def test_other_text_is_refused_with_two_examples(url):
    with pytest.raises(UsageError) as caught:
        connect(url)
    assert caught.value.message == f"{url!r} is no address of a model server"
    assert caught.value.remedy == "write grpc://localhost:8500 or http://localhost:8501"
