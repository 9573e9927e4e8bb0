"""From a URL to a client, and what the package gives by name."""

import asyncio
import subprocess
import sys

import pytest

import tfserve_kit
from tfserve_kit import connect, connect_async
from tfserve_kit.clients.grpc_channel import GrpcTransport
from tfserve_kit.clients.http_transport import HttpTransport
from tfserve_kit.errors import UsageError


@pytest.mark.parametrize(
    ("url", "kind", "shown"),
    [
        ("grpc://localhost:8500", GrpcTransport, "grpc://localhost:8500"),
        ("grpc://localhost:8500/", GrpcTransport, "grpc://localhost:8500"),
        ("GRPC://localhost:8500", GrpcTransport, "grpc://localhost:8500"),
        ("grpc://[::1]:8500", GrpcTransport, "grpc://[::1]:8500"),
        ("grpcs://localhost:8500", GrpcTransport, "grpcs://localhost:8500"),
        ("unix:/run/tfkit.sock", GrpcTransport, "unix:/run/tfkit.sock"),
        ("unix:///run/tfkit.sock", GrpcTransport, "unix:/run/tfkit.sock"),
        ("http://localhost:8501", HttpTransport, "http://localhost:8501"),
        ("http://localhost:8501/", HttpTransport, "http://localhost:8501"),
        ("https://host/prefix", HttpTransport, "https://host/prefix"),
        ("HTTPS://host", HttpTransport, "HTTPS://host"),
    ],
)
def test_scheme_decides_the_protocol(url, kind, shown):
    with connect(url) as client:
        assert isinstance(client._transport, kind)
        assert client.url == shown

    async def twin():
        async with connect_async(url) as client:
            return client.url

    assert asyncio.run(twin()) == shown


@pytest.mark.parametrize(
    "url",
    ["", "localhost:8500", "localhost", "grpc:localhost", "grpc://", "http://", "ftp://h:1",
     "http://[::1", "//h:1", "unix:relative", "unix://host/path", "http://user:pass@h:1",
     "grpc://user@h:1", "http://h:port"],
)  # fmt: skip
@pytest.mark.parametrize("make", [connect, connect_async])
def test_other_text_is_refused_with_examples(make, url):
    with pytest.raises(UsageError) as caught:
        make(url)
    assert " is not the address of a model server" in caught.value.message
    assert ":pass" not in caught.value.message and caught.value.remedy


@pytest.mark.parametrize("make", [connect, connect_async])
def test_files_of_tls_need_a_url_with_tls(make, tmp_path):
    with pytest.raises(UsageError, match="does not use TLS"):
        make("grpc://h:1", ca_file="ca.pem")
    for scheme in ("grpcs", "https"):
        with pytest.raises(UsageError, match=r"no\.pem"):
            make(f"{scheme}://h:1", ca_file=tmp_path / "no.pem")


@pytest.mark.parametrize("make", [connect, connect_async])
def test_options_are_checked(make):
    with pytest.raises(UsageError, match="retries cannot be -1"):
        make("grpc://h:1", retries=-1)


def test_public_names_are_there():
    for name in tfserve_kit.__all__:
        assert getattr(tfserve_kit, name).__name__ == name


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import tfserve_kit", {"numpy", "grpc", "asyncio", "google.protobuf"}),
        ("import tfserve_kit.clients", {"grpc", "asyncio", "requests", "orjson", "ssl"}),
        ("from tfserve_kit import connect; connect('http://h:1')", {"grpc", "asyncio", "requests"}),
        ("from tfserve_kit import connect; connect('grpc://h:1').close()", {"requests", "orjson"}),
    ],
)
def test_what_is_not_needed_is_not_imported(code, absent):
    check = f"{code}\nimport sys\nprint(*({absent!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
