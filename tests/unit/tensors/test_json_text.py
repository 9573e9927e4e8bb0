"""JSON as inputs are written and answers are read, quickly and slowly alike."""

import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from tfserve_kit.clients.rest import RestProtocol
from tfserve_kit.clients.results import Target
from tfserve_kit.errors import ServerFault
from tfserve_kit.savedmodel import Signature, TensorSpec
from tfserve_kit.tensors import dtypes
from tfserve_kit.tensors import json as tensor_json
from tfserve_kit.tensors.json import answer, read_columns, read_json, to_text, to_value

NAMES = ["float", "double", "half", "int8", "uint8", "int32", "uint32", "int64", "uint64"]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Read small bodies quickly too, in many pieces."""
    monkeypatch.setattr("tfserve_kit.tensors.json._LEAST_BYTES", 0)
    monkeypatch.setattr("tfserve_kit.tensors.json._PIECE_BYTES", 3)


def known(*names):
    return {f"out{number}": dtypes.by_name(name) for number, name in enumerate(names)}


def agree(body, outputs):
    """Read a body in both ways, which must give the same arrays."""
    found = read_columns(body, outputs)
    assert found is not None
    expected = answer(read_json(body), outputs)
    assert found.keys() == expected.keys()
    for alias, array in found.items():
        np.testing.assert_array_equal(array, expected[alias], strict=True)


def drawn(name):
    dtype = dtypes.by_name(name).numpy
    return arrays(dtype, array_shapes(min_dims=1, max_dims=4, max_side=4))


@settings(deadline=None)
@given(st.sampled_from(NAMES).flatmap(lambda name: st.tuples(st.just(name), drawn(name))),
       st.sampled_from([None, 1]))  # fmt: skip
def test_any_array_of_numbers_is_read_as_the_general_reader_does(one, indent):
    name, array = one
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tfserve_kit.tensors.json._LEAST_BYTES", 0)
        body = json.dumps({"outputs": to_value(array)}, indent=indent).encode()
        agree(body, known(name))


@settings(deadline=None)
@given(drawn("float"), drawn("int64"))
def test_several_outputs_are_read_by_their_names(first, second):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tfserve_kit.tensors.json._LEAST_BYTES", 0)
        document = {"outputs": {"out1": to_value(second), "out0": to_value(first)}}
        agree(json.dumps(document).encode(), known("float", "int64"))


@pytest.mark.parametrize(
    ("outputs", "names"),
    [
        ("[[1, 2], [3]]", ["float"]), ("[[1], 2]", ["float"]), ("[1, [2]]", ["float"]),
        ("[[1], [[2]]]", ["float"]), ("[1, 2,]", ["float"]), ("[1,, 2]", ["float"]),
        ("[]", ["float"]), ("[[], []]", ["float"]), ("[1 2]", ["float"]), ("[1.2.3]", ["float"]),
        ("[nan]", ["float"]), ("[+1]", ["float"]), ("[01]", ["float"]), ("[.5]", ["float"]),
        ("[1.5]", ["int32"]), ("[4294967296]", ["int32"]), ("[-1]", ["uint8"]),
        ("[18446744073709551616]", ["uint64"]), ("[9223372036854775808]", ["int64"]),
        ("[NaN]", ["int32"]), ("[true]", ["bool"]), ("[1]", ["bool"]), ('["a"]', ["string"]),
        ("[null]", ["float"]), ("3", ["float"]), ("[1]]", ["float"]), ("[[1]", ["float"]),
        ('{"out0": [1]}', ["float", "float"]), ('{"out0": [1], "out1": "a"}', ["float", "string"]),
        ('{"out0": [1], "out2": [1]}', ["float", "float"]), ("[1], 2", ["float"]),
        ('[1], "predictions": [2]', ["float"]), ('{"out0": [1] "x": 3}', ["float"]),
        ('[{"b64": "YQ=="}]', ["string"]), ('{"out0": [1]}, "x": 1', ["float"]),
    ],
)  # fmt: skip
def test_what_is_not_regular_is_left_to_the_general_reader(outputs, names):
    assert read_columns(b'{"outputs": %s}' % outputs.encode(), known(*names)) is None


@pytest.mark.parametrize(
    "body",
    [b"", b"[", b"{}", b'{"predictions": [1]}', b'{"error": "no"}', b'{"outputs": [1]', b"\xff"],
)
def test_other_bodies_are_left_too(body):
    assert read_columns(body, known("float")) is None


@given(st.binary(max_size=40) | st.text('[]{}",:0123456789.eE+-NaInfity "', max_size=40))
def test_no_body_makes_it_stumble(noise):
    tail = noise.encode() if isinstance(noise, str) else noise
    for start in (b"", b'{"outputs":', b'{"outputs":['):
        read_columns(start + tail, known("float"))


def test_words_that_are_numbers_are_read():
    agree(b'{"outputs": [NaN, Infinity, -Infinity, 1e400, 1]}', known("float"))


def test_outputs_of_a_dictionary_with_one_are_read():
    agree(b'{"outputs": {"out0": [[1, 2]]}}', known("float"))


def test_memory_holds_little_beside_the_array(monkeypatch):
    monkeypatch.setattr("tfserve_kit.tensors.json._PIECE_BYTES", 1 << 14)
    body = b'{"outputs": [%s]}' % b",".join([b"[" + b",".join([b"0.5"] * 1000) + b"]"] * 500)
    tracemalloc.start()
    try:
        found = read_columns(body, known("float"))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found["out0"].shape == (500, 1000)
    assert peak < 6 * len(body)  # a float of Python's takes 24 bytes, and 8 in its list


def wire(outputs):
    specs = {alias: TensorSpec(alias, dtype, None) for alias, dtype in outputs.items()}
    return RestProtocol("http://h:1").predict(
        Target("m"), {"x": [1]}, (), Signature("s", {}, specs, "")
    )


def test_the_client_reads_so_and_still_says_what_is_wrong():
    call = wire(known("float"))
    assert call.read(b'{"outputs": [[1, 2]]}')[0]["out0"].tolist() == [[1, 2]]
    with pytest.raises(ServerFault, match="equal length"):
        call.read(b'{"outputs": [[1, 2], [3]]}')


@pytest.mark.parametrize("body", [b'{"outputs": ["\x89PNG"]}', b'\n {"outputs": {"a": "\xff"}}'])
def test_bytes_in_an_output_of_text_are_explained(body):
    with pytest.raises(ServerFault, match="bytes that are not UTF-8") as caught:
        wire(known("string")).read(body)
    assert "_bytes" in caught.value.remedy and "gRPC" in caught.value.remedy


def test_what_is_no_json_at_all_is_said_to_be_none():
    with pytest.raises(ServerFault, match="did not answer with JSON"):
        wire(known("string")).read(b"\xff\xfe<html>")


@pytest.fixture(params=["orjson", "json"])
def library(request, monkeypatch):
    """Both ways to write and read JSON."""
    if request.param == "json":
        monkeypatch.setattr(tensor_json, "orjson", None)
    else:
        pytest.importorskip("orjson")


@pytest.mark.parametrize(
    "array",
    [
        np.float32([0.1, -0.0, 3.4e38, 1e-45]), np.float64([[0.1, 1 / 3]]), np.float16([0.1]),
        np.float32([np.nan, np.inf, -np.inf]), np.int64([2**63 - 1, -(2**63)]),
        np.uint8([[0, 255]]),
        np.uint64([2**64 - 1]), np.array([True, False]), np.zeros((2, 0), np.float32),
        np.float32(1.5), np.array(["a", 'b"\n']), np.array([b"\xff\0"], object),
        np.arange(12, dtype=np.int32).reshape(3, 4).T, np.arange(3, dtype=">f4"),
    ],
)  # fmt: skip
def test_text_of_inputs_means_what_the_document_would(library, array):
    written = json.loads(to_text({"x": array, 'y"': array}))
    expected = json.loads(json.dumps(tensor_json.to_value(array)))
    if array.dtype.kind == "f":  # orjson knows that a float32 needs fewer digits
        found = np.array(written["x"], array.dtype)
        np.testing.assert_array_equal(found, array)
        assert np.signbit(found).tolist() == np.signbit(array).tolist()
    else:
        assert written["x"] == expected
    assert list(written) == ["x", 'y"']
    assert str(written["x"]) == str(written['y"'])


def test_numbers_that_json_lacks_are_read(library):
    assert str(read_json(b"[NaN, Infinity, -Infinity, 1]")) == "[nan, inf, -inf, 1]"


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b"<html>"])
def test_what_is_no_json_is_refused(library, text):
    with pytest.raises(ValueError):  # noqa: PT011 (each library has words of its own)
        read_json(text)


def test_type_that_json_lacks_is_refused(library):
    with pytest.raises(TypeError, match="use gRPC"):
        to_text({"x": np.complex64([1])})
