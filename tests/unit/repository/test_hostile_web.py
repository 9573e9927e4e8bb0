"""Downloads from servers that mean harm: they weaken, drip, flood, and ask for credentials."""

import socket
import threading
import time
from pathlib import Path

import pytest

from tests.unit.repository.test_sources import Listener, Web, web, whole, zipped
from tfserve_kit.clock import SystemClock, wait_until
from tfserve_kit.errors import PushRefused
from tfserve_kit.repository import Source, push
from tfserve_kit.repository.intake import Limits
from tfserve_kit.repository.sources import download

__all__ = ["web"]


@pytest.fixture
def half(models):
    return models / "half_plus_two" / "1"


@pytest.fixture
def ended():
    """Set at the end of a test; what servers wait with."""
    event = threading.Event()
    yield event
    event.set()


def dripping(ended, piece=b"x"):
    while not ended.wait(0.05):
        yield piece


def raw(server, data_of):
    """Answer by bytes alone, headers included."""
    server.answers["/raw"] = 200, {}, b""
    handler = server.RequestHandlerClass

    class Raw(handler):
        def do_GET(self):  # noqa: N802 (the name that http.server calls)
            for piece in data_of():
                self.wfile.write(piece)
                self.wfile.flush()

    server.RequestHandlerClass = Raw


class TestDeadline:
    def timed_out(self, web, tmp_path, path):
        began = time.monotonic()
        with pytest.raises(PushRefused, match=r"within 0\.5 s") as caught:
            download(
                web.url(path), tmp_path / "it", Limits(max_download_s=0.5), progress=Listener()
            )
        assert time.monotonic() - began < 5
        assert "--download-timeout" in caught.value.remedy

    @pytest.mark.parametrize("headers", [{}, {"Content-Length": 10_000}])
    def test_body_that_drips_meets_it(self, web, tmp_path, ended, headers):
        web.answers["/it"] = 200, headers, dripping(ended)
        self.timed_out(web, tmp_path, "/it")

    def test_headers_that_drip_meet_it(self, web, tmp_path, ended):
        raw(web, lambda: dripping(ended, b"HTTP/1.1 200 OK\r\n"[:1]))
        self.timed_out(web, tmp_path, "/raw")

    def test_redirects_that_take_their_time_meet_it(self, web, tmp_path, ended):
        def slow():
            ended.wait(0.2)
            yield b"HTTP/1.1 302 Found\r\nLocation: /raw\r\nContent-Length: 0\r\n\r\n"

        raw(web, slow)
        self.timed_out(web, tmp_path, "/raw")

    def test_name_that_takes_its_time_to_resolve_meets_it(self, tmp_path, ended, monkeypatch):
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: ended.wait(30))
        began = time.monotonic()
        with pytest.raises(PushRefused, match=r"within 0\.5 s"):
            download("http://h/x", tmp_path / "it", Limits(max_download_s=0.5), progress=Listener())
        assert time.monotonic() - began < 5

    def test_what_is_in_time_leaves_no_thread_and_no_descriptor(self, web, tmp_path):
        web.answers["/it"] = whole(b"x")
        download(web.url("/it"), tmp_path / "first", Limits(), progress=Listener())
        threads, descriptors = self.threads_and_descriptors()
        for number in range(5):
            download(web.url("/it"), tmp_path / str(number), Limits(), progress=Listener())

        def are_gone():  # the server's own threads take a while to end
            now = self.threads_and_descriptors()
            return (now[0] <= threads + 1 and now[1] <= descriptors + 2) or None

        assert wait_until(are_gone, timeout_s=10, interval_s=0.01, clock=SystemClock())

    @staticmethod
    def threads_and_descriptors():
        return threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))


class TestRedirects:
    def test_their_bodies_are_not_read(self, web, half, tmp_path, ended):
        web.answers["/a"] = 302, {"Location": "/b"}, (b"x" * (1 << 20) for _ in range(1 << 20))
        web.answers["/b"] = whole(zipped(half))
        began = time.monotonic()
        push(Source(web.url("/a")), tmp_path / "base")
        assert time.monotonic() - began < 10

    def test_checksum_holds_for_what_they_lead_to(self, web, half, tmp_path):
        web.answers["/a"] = 302, {"Location": "/b", "Content-Length": 0}, b""
        web.answers["/b"] = whole(zipped(half))
        with pytest.raises(PushRefused, match="SHA-256"):
            push(Source(web.url("/a"), sha256="0" * 64), tmp_path / "base")
        assert not (tmp_path / "base").exists()

    def test_credentials_stay_with_their_host(self, web, half, tmp_path):
        with Web() as other:
            thread = threading.Thread(target=other.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            other.answers["/b"] = whole(zipped(half))
            target = other.url("/b").replace("127.0.0.1", "localhost")
            web.answers["/a"] = 302, {"Location": target, "Content-Length": 0}, b""
            push(Source(web.url("/a", "zoe:s3cret@")), tmp_path / "base")
            other.shutdown()
            thread.join()
        assert "Authorization" in web.asked[0][1]
        assert not {"Authorization", "Cookie"} & other.asked[0][1].keys()

    def test_plain_http_anywhere_on_the_way_is_told(self, web, half, tmp_path):
        web.answers["/a"] = 302, {"Location": "/b", "Content-Length": 0}, b""
        web.answers["/b"] = whole(zipped(half))
        told = Listener()
        push(Source(web.url("/a")), tmp_path / "base", progress=told)
        assert any("plain HTTP" in note for note in told.notes)
