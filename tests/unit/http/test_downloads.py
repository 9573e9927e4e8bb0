"""Where redirects of a download may lead, and that it ends when its reader goes."""

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfserve_kit.http import downloads
from tfserve_kit.http.downloads import DownloadError, opened

SCHEMES = st.sampled_from(["http", "https", "HTTP", "HTTPS", "file", "ftp", "gopher"])


@given(SCHEMES.filter(lambda scheme: "http" in scheme.lower()), SCHEMES)
def test_redirects_lead_to_the_web_alone_and_to_nothing_weaker(place, target):
    if target.lower() == "https" or target.lower() == place.lower() == "http":
        found = downloads._next(f"{place}://a/x", f"{target}://b/y")
        assert found.lower() == f"{target}://b/y".lower()
    else:
        with pytest.raises(DownloadError):
            downloads._next(f"{place}://a/x", f"{target}://b/y")


@pytest.mark.parametrize(
    "target", ["http://h/x", "HTTP://h/x", "http://u:s3cret@h/x?sig=s3cret", "http:/x"]
)
def test_no_redirect_leads_from_https_to_http(target):
    with pytest.raises(DownloadError, match=r"from https to http.* not encrypted") as caught:
        downloads._next("https://zoe:s3cret@h/a?sig=s3cret", target)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("target", "whole"),
    [
        ("https://g/x", "https://g/x"),
        ("/x", "https://h/x"),
        ("//g/x", "https://g/x"),
        ("x", "https://h/x"),
    ],
)
def test_redirect_is_relative_to_where_it_comes_from(target, whole):
    assert downloads._next("https://h/a", target) == whole


class _Endless(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        try:
            while True:
                self.wfile.write(b"x" * 1000)
        except OSError:
            self.server.is_left.set()

    def log_message(self, *arguments):
        pass


@pytest.fixture
def endless(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), _Endless) as server:
        server.is_left = threading.Event()
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_reader_that_leaves_ends_the_download(endless):
    url, ends_s = f"http://127.0.0.1:{endless.server_port}/", time.monotonic() + 60
    with opened(url, ends_s, 1 << 30, most_redirects=1) as found:
        assert next(found.chunks)
    assert endless.is_left.wait(10)


def test_reader_that_dawdles_meets_the_end(endless):
    url, ends_s = f"http://127.0.0.1:{endless.server_port}/", time.monotonic() + 0.5
    with opened(url, ends_s, 1 << 40, most_redirects=1) as found:
        slowly = (time.sleep(0.1) for _ in found.chunks)
        with pytest.raises(DownloadError, match="in time"):
            list(slowly)
