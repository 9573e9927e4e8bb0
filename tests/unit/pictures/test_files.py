"""Where pictures come from, and what is refused before anything is sent."""

import base64
import io
import json
import os
import socket
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tfserve_kit.errors import InvalidRequest, UsageError
from tfserve_kit.pictures import files
from tfserve_kit.pictures.files import find, kind_of
from tfserve_kit.pictures.prepare import decode


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with pictures, a text and a hidden folder; the current one."""
    for name in ("b.JPG", "a.png", "notes.txt", "deep/er/c.webp", "deep/d.jpeg", "[1].png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "folder.png").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(*given):
    return [file.name for file in find(given, io.BytesIO(), timeout_s=5)]


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (["b.JPG", "a.png"], ["b.JPG", "a.png"]),
        (["a.png", "a.png"], ["a.png", "a.png"]),
        (["notes.txt"], ["notes.txt"]),  # named by itself, whatever it is
        (["missing.png"], ["missing.png"]),  # found out when its turn comes
        (["deep"], ["deep/d.jpeg", "deep/er/c.webp"]),
        (["."], ["[1].png", "a.png", "b.JPG", "deep/d.jpeg", "deep/er/c.webp"]),
        (["*.png"], ["[1].png", "a.png"]),  # no folders
        (["[1].png"], ["[1].png"]),  # a file's name comes before a pattern
        (["[ab].*"], ["a.png", "b.JPG"]),
        (["**/*.webp"], ["deep/er/c.webp"]),
        (["-"], ["standard input"]),
    ],
)
def test_name_stands_for_files_in_order(folder, given, found):
    assert names(*given) == found


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (["folder.png"], "folder.png has no picture files (.bmp, "),
        (["*.tiff"], "no file matches '*.tiff'"),
        (["-", "-"], "give it once"),
    ],
)
def test_name_that_stands_for_nothing_is_refused(folder, given, text):
    with pytest.raises(UsageError) as caught:
        names("a.png", *given)
    assert text in caught.value.message


def read(name, stdin=b"", timeout_s=5):
    (file,) = find([name], io.BytesIO(stdin), timeout_s=timeout_s)
    return file.read()


def test_each_file_is_read_by_itself(folder):
    found = find(["deep", "a.png"], io.BytesIO(), timeout_s=5)
    assert [each.read() for each in found] == [b"deep/d.jpeg", b"deep/er/c.webp", b"a.png"]


def test_standard_input_is_read():
    assert read("-", b"\0picture") == b"\0picture"


def test_missing_file_is_refused_by_name(folder):
    with pytest.raises(InvalidRequest, match=r"cannot read missing\.png: No such file"):
        read("missing.png")


def test_name_that_is_too_long_is_refused_by_name(folder):
    with pytest.raises(InvalidRequest, match="cannot read aaa"):
        read("a" * 5000)


def test_name_that_is_no_text_is_read_and_can_be_shown(folder):
    name = os.fsdecode(b"caf\xe9.png")
    (folder / name).write_bytes(b"cup")
    assert read(name) == b"cup"
    assert names(name) == ["caf\ufffd.png"]
    (folder / name).unlink()
    with pytest.raises(InvalidRequest, match=r"cannot read caf.\.png"):
        read(name)


@pytest.mark.parametrize("name", ["a.png", "-"])
def test_file_beyond_the_limit_is_refused(folder, monkeypatch, name):
    monkeypatch.setattr(files, "_MAX_BYTES", 5)
    assert read("-", b"12345") == b"12345"
    (folder / "a.png").write_bytes(b"123456")
    with pytest.raises(InvalidRequest, match="has more than 5 bytes"):
        read(name, b"123456")


# The web


class _Answers(BaseHTTPRequestHandler):
    def do_GET(self):
        status, body = {"/cat.png": (200, b"cat"), "/slow.png": (200, b"slow")}.get(
            self.path, (404, b"no such cat")
        )
        if self.path == "/agent":
            status, body = 200, self.headers["User-Agent"].encode()
        if self.path.startswith("/status/"):
            status, body = int(self.path.rpartition("/")[2]), b"<html>no</html>"
        if self.path == "/moved.png":
            self.send_response(302)
            self.send_header("Location", "/cat.png")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) + (self.path == "/slow.png")))
        self.end_headers()
        self.wfile.write(body)
        if self.path == "/slow.png":
            self.server.patience.wait(10)

    def log_message(self, *arguments):
        pass


@contextmanager
def site():
    with HTTPServer(("127.0.0.1", 0), _Answers) as server:
        server.patience = threading.Event()
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.patience.set()
            server.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def test_url_is_downloaded_through_redirects():
    with site() as url:
        assert names(f"{url}/cat.png") == [f"{url}/cat.png"]
        assert read(f"{url}/cat.png") == b"cat"
        assert read(f"{url}/moved.png") == b"cat"


def test_url_that_answers_with_an_error_is_refused_by_name():
    with site() as url, pytest.raises(InvalidRequest) as caught:
        read(f"{url}/dog.png")
    assert caught.value.message.startswith(f"cannot read {url}/dog.png: 404")


@pytest.mark.parametrize(("status", "advice"), [(403, "by hand"), (401, "log-in"), (429, "wait")])
def test_url_that_refuses_programs_is_explained(status, advice):
    with site() as url, pytest.raises(InvalidRequest) as caught:
        read(f"{url}/status/{status}")
    assert caught.value.message.startswith(f"cannot read {url}/status/{status}: {status}")
    assert advice in caught.value.remedy


def test_sites_are_told_the_name_of_the_program():
    with site() as url:
        agent = read(f"{url}/agent").decode()
    assert agent.startswith("tfkit/") and "tfserve-kit" in agent and "requests" not in agent


def test_url_where_nobody_answers_is_refused_by_name():
    with site() as url:
        pass
    with pytest.raises(InvalidRequest, match=f"cannot read {url}/cat.png"):
        read(f"{url}/cat.png")


def test_download_beyond_the_limit_is_cut_off(monkeypatch):
    monkeypatch.setattr(files, "_MAX_BYTES", 2)
    with site() as url, pytest.raises(InvalidRequest, match="has more than 2 bytes"):
        read(f"{url}/cat.png")


def test_download_that_stops_halfway_is_refused_in_time():
    with site() as url, pytest.raises(InvalidRequest) as caught:
        read(f"{url}/slow.png", timeout_s=0.2)
    assert caught.value.message.startswith(f"cannot read {url}/slow.png")


@contextmanager
def raw_site(*pieces, every_s=0.0):
    """Run a server that answers each request with these bytes, then drips, for ever."""
    over, requests = threading.Event(), []
    listening = socket.create_server(("127.0.0.1", 0))

    def answer(connection):
        with connection, suppress(OSError):
            requests.append(connection.recv(65536))
            for piece in pieces:
                connection.sendall(piece)
            while every_s and not over.wait(every_s):
                connection.sendall(b"x")

    def accept():
        with suppress(OSError):
            while True:
                connection, _ = listening.accept()
                threading.Thread(target=answer, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", requests
    finally:
        over.set()
        listening.close()


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"


@pytest.mark.parametrize("drip", [HEAD, b"HTTP/1.1 200 OK\r\nX: ", b""])
def test_all_pictures_that_drip_end_within_one_time(drip):
    with raw_site(drip, every_s=0.05) as (url, _):
        found = files.find([f"{url}/{number}.png" for number in range(40)], None, timeout_s=0.4)
        began_s = time.monotonic()
        for each in found:
            with pytest.raises(InvalidRequest, match="in time"):
                each.read()
        assert time.monotonic() - began_s < 8  # not the 16 s of one after the other


def test_time_does_not_pass_between_downloads():
    patience = files._Patience(0.2)
    time.sleep(0.25)
    begun_s = time.monotonic()
    with patience.passing() as ends_s:
        assert ends_s >= begun_s + 0.2


def redirect(place):
    return f"HTTP/1.1 302 Found\r\nLocation: {place}\r\nContent-Length: 0\r\n\r\n".encode()


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("file:///etc/passwd", "redirects to file:"),
        ("ftp://127.0.0.1/a.png", "redirects to ftp:"),
        ("gopher://x", "redirects to gopher:"),
        ("/again.png", "more than 10 times"),
        ("http://[::1", "cannot read"),
    ],
)
def test_redirect_that_leads_nowhere_good_is_refused(place, why):
    with raw_site(redirect(place)) as (url, _), pytest.raises(InvalidRequest) as caught:
        read(f"{url}/a.png")
    assert why in caught.value.message
    assert caught.value.message.startswith(f"cannot read {url}/a.png")


def test_redirect_with_a_body_without_end_is_not_read():
    endless = redirect("/x").replace(b"Content-Length: 0", b"Content-Length: 999999999")
    with raw_site(endless, every_s=0.01) as (url, requests), pytest.raises(InvalidRequest):
        read(f"{url}/a.png", timeout_s=5)
    assert len(requests) == 10


def test_user_and_password_stay_with_their_site_and_out_of_messages():
    gone = b"HTTP/1.1 404 Gone\r\nContent-Length: 0\r\n\r\n"
    with (
        raw_site(gone) as (other, elsewhere),
        raw_site(redirect(f"{other}/b.png")) as (url, requests),
    ):
        secret = url.replace("//", "//user:hidden@") + "/a.png?token=hidden"
        (found,) = files.find([secret], None, timeout_s=5)
        with pytest.raises(InvalidRequest) as caught:
            found.read()
    assert b"Authorization" in requests[0] and b"Authorization" not in elsewhere[0]
    assert "hidden" not in found.name + str(caught.value)


def test_announced_size_beyond_the_limit_is_refused_before_it_comes(monkeypatch):
    monkeypatch.setattr(files, "_MAX_BYTES", 2)
    with raw_site(HEAD, every_s=1) as (url, _), pytest.raises(InvalidRequest, match="2 bytes"):
        read(f"{url}/a.png", timeout_s=5)


def test_every_suffix_is_one_that_is_decoded():
    from PIL import Image

    from tfserve_kit.pictures import prepare

    Image.init()
    kinds = {Image.EXTENSION[suffix] for suffix in files.SUFFIXES}
    assert kinds <= set(prepare._FORMATS)
    assert Path("x.JPG").suffix.lower() in files.SUFFIXES


# Brackets, and folders without pictures


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("[2024] trip/a.png", ["[2024] trip/a.png"]),
        ("[2024] trip/*.png", ["[2024] trip/[1] b.png", "[2024] trip/a.png"]),
        ("./[2024] trip/a*", ["./[2024] trip/a.png"]),
        ("[2024] trip", ["[2024] trip/[1] b.png", "[2024] trip/a.png"]),
        ("[2024] trip/[1] b.png", ["[2024] trip/[1] b.png"]),
        ("[2024] trip/[1]*.png", ["[2024] trip/[1] b.png"]),
        ("[2024] trip/[ab].png", ["[2024] trip/a.png"]),
    ],
)
def test_brackets_of_names_that_are_there_are_no_pattern(tmp_path, monkeypatch, given, wanted):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "[2024] trip").mkdir()
    for name in ("a.png", "[1] b.png"):
        (tmp_path / "[2024] trip" / name).touch()
    assert [each.name for each in find([given], io.BytesIO(), timeout_s=1)] == wanted


def test_folder_without_pictures_tells_what_it_has(tmp_path):
    for name in ("a.heic", "b.heic", "notes"):
        (tmp_path / name).touch()
    with pytest.raises(UsageError) as refused:
        find([str(tmp_path)], io.BytesIO(), timeout_s=1)
    assert "2 .heic, 1 without ending" in refused.value.remedy


def test_pictures_in_a_folder_that_cannot_be_decoded_are_not_passed_over(tmp_path):
    for name in ("a.jpg", "b.HEIC", "c.avif", "notes.txt"):
        (tmp_path / name).touch()
    found = [Path(each.name).name for each in find([str(tmp_path)], io.BytesIO(), timeout_s=1)]
    assert found == ["a.jpg", "b.HEIC", "c.avif"]


def picture(kind="PNG"):
    stream = io.BytesIO()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(stream, kind)
    return stream.getvalue()


def array():
    stream = io.BytesIO()
    np.save(stream, np.zeros(3))
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "PPM", "WEBP", "TIFF"])
def test_pictures_are_none_of_these(kind):
    assert kind_of(picture(kind)) is None
    assert decode(picture(kind), "x", 3).shape == (4, 4, 3)


@pytest.mark.parametrize(
    ("data", "what", "remedy"),
    [
        (b"\0\0\0\x18ftypheic\0\0", "a HEIC photograph", "heif-convert 'my file.x' 'my file'.jpg"),
        (b"\0\0\0\x18ftypmif1\0\0", "a HEIC photograph", "heif-convert"),
        (b"\0\0\0\x1cftypavif\0\0", "an AVIF picture", "avifdec"),
        (b"\0\0\0\x18ftypmp42\0\0", "a video", "ffmpeg -i"),
        (b"\x1a\x45\xdf\xa3webm", "a video", "ffmpeg"),
        (b"\xff\x0a\0\0", "a JPEG XL picture", "djxl"),
        (b"%PDF-1.7\n", "a PDF", "pdftoppm"),
        (b"8BPS\0\1", "a Photoshop file", "magick"),
        (b"\0\0\1\0\1\0", "an icon", "magick"),
        (b'<svg xmlns="x">', "an SVG drawing", "rsvg-convert"),
        (b'\xef\xbb\xbf<?xml version="1.0"?>\n<svg>', "an SVG drawing", "rsvg-convert"),
        (b"<!DOCTYPE html><html>", "a web page", "the address of the picture"),
        (b"\n <HTML>no such page", "a web page", "picture"),
        (b'{"instances": [[1, 2]]}', "JSON", "tfkit request"),
        (b"[[1, 2], [3, 4]]", "JSON", "tfkit request"),
        (b'{"a": 1}\n{"a": 2}\n', "lines of JSON", "--replay"),
        (b"file,label\na.jpg,cat\nb.jpg,dog\n", "a table", "tfkit evaluate 'my file.x'"),
        (b"a.jpg;cat\r\nb.jpg;dog\r\n", "a table", "evaluate"),
        (base64.b64encode(picture()), "a picture in base64", "base64 -d"),
        (base64.urlsafe_b64encode(picture("JPEG")), "a picture in base64", "base64 -d"),
        (base64.encodebytes(picture("JPEG") * 30), "a picture in base64", "base64 -d"),
        (b"data:image/png;base64,iVBORw0KGgo=", "a picture within a data: URL", "base64 -d"),
        (array(), "an array of numpy's", "tfkit request"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file", "tfkit push-model"),
        (b"PK\3\4", "a ZIP archive", "unzip"),
        (b"\x1f\x8b\x08", "packed by gzip", "gunzip"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS", "git lfs pull"),
    ],
)
def test_other_files_are_named_with_what_to_do(data, what, remedy):
    with pytest.raises(InvalidRequest) as refused:
        decode(data, "my file.x", 3)
    assert f"it is {what}" in refused.value.message
    assert remedy in refused.value.remedy


@pytest.mark.parametrize(
    "data", [b"", b"noise", b"\xff\xd8\xff", b"just a line of text", b"\0" * 64]
)
def test_what_is_not_known_is_not_guessed(data):
    assert kind_of(data) is None


@given(st.binary(max_size=200) | st.text(max_size=80).map(str.encode))
def test_nothing_makes_it_stumble(data):
    kind_of(data)


@given(
    st.recursive(st.none() | st.integers() | st.text(), st.lists).filter(
        lambda value: isinstance(value, list) and value and not isinstance(value[0], str | None)
    )
)
def test_any_list_of_numbers_in_json_is_json(value):
    found = kind_of(json.dumps(value).encode())
    assert found is None or found.what in {"JSON", "lines of JSON"}


def test_misnamed_file_is_not_overwritten():
    heic = kind_of(b"\0\0\0\x18ftypheic\0\0")
    assert "heif-convert a.JPG a-1.jpg" in heic.advice("a.JPG")
    assert "heif-convert a.heic a.jpg" in heic.advice("a.heic")
