"""What a file is, told by its content: pictures pass, all else is named with what to do."""

import base64
import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tfserve_kit.errors import InvalidRequest
from tfserve_kit.pictures.files import kind_of
from tfserve_kit.pictures.prepare import decode


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
