"""What is typed becomes inputs, and a request becomes commands that hold no secret."""

import io
import json
import subprocess

import numpy as np
import pytest
from PIL import Image

from tfserve_kit.clients import Target
from tfserve_kit.errors import InvalidRequest, UsageError
from tfserve_kit.pictures.inputs import image_input
from tfserve_kit.pictures.model import PictureOptions
from tfserve_kit.pictures.prepare import drawn, prepare
from tfserve_kit.pictures.preprocessing import Preprocessing
from tfserve_kit.playground import commands
from tfserve_kit.playground.session import read_values
from tfserve_kit.savedmodel import Signature, TensorSpec
from tfserve_kit.serving.access import Access
from tfserve_kit.tensors import dtypes


def signature(**inputs):
    specs = {
        name: TensorSpec("t:0", dtypes.by_name(kind), shape)
        for name, (kind, shape) in inputs.items()
    }
    return Signature("serving_default", specs, {}, "")


@pytest.mark.parametrize(
    ("kind", "shape", "text", "found"),
    [
        ("float", (None,), "1, 2\n3", [1, 2, 3]),
        ("float", (None, 3), "1;2; 3\n\n4 5\t6\n", [[1, 2, 3], [4, 5, 6]]),
        ("float", (None, 2, 2), "1 2 3 4", [[[1, 2], [3, 4]]]),
        ("float", (), " 2.5 ", 2.5),
        ("int64", (None,), "9007199254740993", [9007199254740993]),
        ("float", None, "1 2", [[1, 2]]),
    ],
)
def test_rows_of_numbers_take_the_shape_of_the_input(kind, shape, text, found):
    (value,) = read_values(text, "numbers", signature(x=(kind, shape))).values()
    assert value.tolist() == found


@pytest.mark.parametrize(
    ("kind", "shape", "text", "told"),
    [
        ("float", (None,), "one", "not made of numbers"),
        ("float", (None,), " \n", "empty"),
        ("float", (None, 2, 2), "1 2 3", "a row of the input has 4"),
        ("float", (None, 3), "1 2", r"\[1, 2\]"),
        ("int32", (None,), "1.5", "'x'"),
        ("float", (None, 2), "1 2\n3", "the input"),
    ],
)
def test_numbers_that_do_not_fit_are_refused_with_a_remedy(kind, shape, text, told):
    with pytest.raises(InvalidRequest, match=told) as caught:
        read_values(text, "numbers", signature(x=(kind, shape)))
    assert caught.value.remedy


@pytest.mark.parametrize("shape", [(None,), (None, 1), ()])
def test_text_is_one_element_as_it_is(shape):
    text = 'two\nlines, "quoted" \\ ü'
    (value,) = read_values(text, "text", signature(x=("string", shape))).values()
    assert value.ravel().tolist() == [text.encode()]
    assert value.ndim == len(shape)


def test_json_is_a_body_or_its_instances():
    one = signature(x=("float", (None, 2)))
    assert read_values("[[1, 2]]", "json", one)["x"].tolist() == [[1, 2]]
    assert read_values('{"inputs": {"x": [[1, 2]]}}', "json", one)["x"].tolist() == [[1, 2]]
    with pytest.raises(InvalidRequest, match="not JSON"):
        read_values("{", "json", one)
    with pytest.raises(InvalidRequest, match="larger than any number"):
        read_values("[[1e999, 2]]", "json", one)


def test_form_that_the_signature_has_not_is_refused():
    two = signature(x=("float", (None,)), y=("float", (None,)))
    with pytest.raises(UsageError, match="'numbers'"):
        read_values("1", "numbers", two)


@pytest.mark.parametrize(
    "how",
    [
        Preprocessing(),
        Preprocessing(mode="tf"),
        Preprocessing(mode="caffe"),
        Preprocessing(mode="torch"),
        Preprocessing(value_range=(1.0, 0.0)),
    ],
)
@pytest.mark.parametrize("shape", [(None, 4, 6, 3), (None, 3, 4, 6)])
def test_prepared_picture_is_drawn_as_it_was(how, shape):
    pixels = np.random.default_rng(1).integers(0, 256, (4, 6, 3), np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    wanted = image_input(signature(image=("float", shape)), how)
    row = prepare(data.getvalue(), wanted, name="a.png")
    np.testing.assert_array_equal(drawn(row, wanted), pixels)


SECRET = "hunter2"
ACCESS = Access(
    ca_file="/ca file.pem",
    server_name="models.internal",
    headers={"authorization": SECRET, "x-team": "env:TEAM", "x-key": "file:/run/key"},
)
WHERE = commands.Where(
    "grpcs://10.0.0.1:8500", "https://10.0.0.1:8501", ACCESS, Target("m/1", label="it's"),
    argv=("--size", "8x8"),
)  # fmt: skip


def made(where=WHERE, size=4, name="a b.png"):
    inputs = {"x": np.zeros((1, size), np.float32)}
    return commands.for_picture(where, name, PictureOptions(), inputs, b"data")


def test_no_command_holds_a_secret():
    found = made()
    assert SECRET not in json.dumps(found)
    assert "HEADER_AUTHORIZATION" in found["notes"][0]
    for name in ("tfkit", "python", "curl"):
        assert "HEADER_AUTHORIZATION" in found[name], name
        assert "TEAM" in found[name], name
        assert "/run/key" in found[name], name
        assert "ca file.pem" in found[name], name


def words(command):
    """What a shell makes of a command, with the program replaced by one that prints its words."""
    script = 'tfkit() { printf "%s\\0" "$@"; }; curl() { printf "%s\\0" "$@"; }\n' + command
    environment = {"HEADER_AUTHORIZATION": SECRET, "TEAM": "red", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        ["bash", "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.split("\0")[:-1]


def test_commands_survive_the_shell():
    argv = words(made()["tfkit"])
    assert argv[:2] == ["predict", "a b.png"]
    assert argv[argv.index("--label") + 1] == "it's"
    assert argv[argv.index("--ca-file") + 1] == "/ca file.pem"
    argv = words(made()["curl"].replace("$(cat /run/key)", "key"))
    assert "authorization: hunter2" in argv
    assert "10.0.0.1:8501" in argv[argv.index("--connect-to") + 1]
    assert argv[-1] == "https://models.internal:8501/v1/models/m%2F1/labels/it%27s:predict"
    body = json.loads(argv[argv.index("--data-binary") + 1])
    assert body == {"signature_name": "serving_default", "inputs": {"x": [[0, 0, 0, 0]]}}


def test_picture_that_looks_like_an_option_stays_a_file():
    assert words(made(name="-x.png")["tfkit"])[1] == "./-x.png"


def test_long_body_is_saved_first_unless_it_is_the_file():
    assert made(size=100_000)["curl_needs_body"]
    data = bytes(range(256)) * 100
    value = np.empty(1, object)
    value[0] = data
    found = commands.for_picture(WHERE, "a.png", PictureOptions(), {"x": value}, data)
    assert "curl_needs_body" not in found
    assert "base64 < a.png" in found["curl"]


def test_without_a_rest_address_there_is_no_curl():
    where = commands.Where("grpc://a:1", None, Access(), Target("m"))
    assert made(where).keys() == {"tfkit", "python", "notes"}


def test_python_says_what_cannot_be_written_as_a_number():
    found = commands.for_values(WHERE, {"x": np.array([1.5, np.nan, -np.inf])})
    compile(found["python"], "copied", "exec")
    assert "[1.5, float('nan'), float('-inf')]" in found["python"]
