"""Inputs out of files, and outputs into them."""

import json
import warnings
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from tests.unit.saved_models import meta_graph, tensor
from tests.unit.saved_models import write as write_model
from tests.unit.signatures import RAGGED, made
from tfserve_kit import protos
from tfserve_kit.clients.files import describe, read_inputs, shortest, values, write_npz
from tfserve_kit.errors import InvalidRequest, UsageError
from tfserve_kit.pictures.graph import PictureGraph
from tfserve_kit.pictures.preprocessing import Preprocessing
from tfserve_kit.savedmodel import Signature, TensorSpec
from tfserve_kit.tensors import dtypes, to_proto


def signature(**inputs):
    specs = {
        alias: TensorSpec(f"{alias}:0", dtypes.by_name(dtype) if dtype else None, shape)
        for alias, (dtype, shape) in inputs.items()
    }
    return Signature("s", specs, {}, "")


PAIRS = signature(x=("float", (None, 2)))


TWO = signature(a=("int32", (None,)), b=("float", (None, 2)))


TEXT = signature(t=("string", (None,)))


@pytest.fixture
def write(tmp_path):
    """Write a file by its kind: JSON, bytes, an array or arrays by alias; return its path."""

    def write(name, content):
        file = tmp_path / name
        if isinstance(content, bytes):
            file.write_bytes(content)
        elif file.suffix == ".npy":
            np.save(file, content, allow_pickle=True)
        elif file.suffix == ".npz":
            np.savez(file, **content)
        else:
            file.write_text(json.dumps(content))
        return file

    return write


def read(wanted, *files, note=None):
    found = read_inputs(files, wanted, note or Preprocessing())
    for alias, array in found.items():
        assert dtypes.by_numpy(array.dtype) is wanted.inputs[alias].dtype
    return {alias: array.tolist() for alias, array in found.items()}


@pytest.mark.parametrize(
    ("wanted", "document", "inputs"),
    [
        (PAIRS, {"instances": [[1, 2], [3, 4.5]]}, {"x": [[1, 2], [3, 4.5]]}),
        (PAIRS, {"instances": [{"x": [1, 2]}]}, {"x": [[1, 2]]}),
        (PAIRS, {"inputs": [[1, 2]]}, {"x": [[1, 2]]}),
        (PAIRS, {"inputs": {"x": [[1, 2]]}, "signature_name": "s"}, {"x": [[1, 2]]}),
        (TWO, {"instances": [{"a": 1, "b": [1, 2]}, {"a": 2, "b": [3, 4]}]},
         {"a": [1, 2], "b": [[1, 2], [3, 4]]}),
        (TWO, {"inputs": {"a": [1, 2, 3], "b": [[1, 2]]}}, {"a": [1, 2, 3], "b": [[1, 2]]}),
        (TWO, {"inputs": {"a": [7]}}, {"a": [7]}),
        (TEXT, {"instances": ["text", {"b64": "AAE="}]}, {"t": [b"text", b"\0\1"]}),
        (TEXT, {"instances": [{"b64": "AAE="}, "text"]}, {"t": [b"\0\1", b"text"]}),
        (signature(sc=("float", ())), {"inputs": 3}, {"sc": 3}),
        (signature(t=("string", ())), {"inputs": {"b64": "AAE="}}, {"t": b"\0\1"}),
        (signature(any=("float", None)), {"inputs": [[[1]]]}, {"any": [[[1]]]}),
    ],
)  # fmt: skip
def test_body_of_a_request_in_either_format(write, wanted, document, inputs):
    assert read(wanted, write("body.json", document)) == inputs


@pytest.mark.parametrize(
    ("wanted", "content", "text"),
    [
        (PAIRS, b"{", r"body\.JSON is not a request: Expecting property name"),
        (PAIRS, b"\xff\xfe\xfa", "is not a request"),
        (PAIRS, b"[" * 100_000, "is not a request"),
        (PAIRS, [[1, 2]], "needs one of the keys examples, inputs, instances"),
        (PAIRS, {"signature_name": "s"}, "needs one of the keys"),
        (PAIRS, {"instances": [], "inputs": []}, "it has inputs and instances"),
        (PAIRS, {"instances": []}, "'instances' must be a list of rows"),
        (PAIRS, {"instances": 3}, "'instances' must be a list of rows"),
        (PAIRS, {"instances": [[1, 2], [3]]}, "input 'x': a tensor needs lists of equal length"),
        (PAIRS, {"instances": [["a", "b"]]}, "input 'x': .* is not of type float"),
        (PAIRS, {"instances": [1, 2]}, r"input 'x' has shape \[2\], not \[rows, 2\]"),
        (PAIRS, {"inputs": {"y": 1}}, r"body\.JSON: signature 's' has no input 'y'"),
        (PAIRS, {"inputs": [[1, 2]], "signature_name": "t"}, "for signature 't', not 's'"),
        (TWO, {"instances": [{"a": 1}, {"b": [1, 2]}]}, "name different inputs"),
        (TWO, {"instances": [{"a": 1}, 2]}, "name different inputs"),
        (
            TWO,
            {"instances": [1, 2]},
            r"body\.JSON does not name its input, and signature 's' has a, b",
        ),
        (signature(), {"inputs": 1}, "does not name its input, and signature 's' has none"),
        (TWO, {"inputs": {"a": [1 << 40]}}, "input 'a': .* is not of type int32"),
        (TEXT, {"instances": [{"b64": "?"}]}, "is not base64"),
    ],
)
def test_body_that_does_not_fit_is_refused(write, wanted, content, text):
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    with pytest.raises(InvalidRequest, match=text):
        read(wanted, write("body.JSON", data))


def test_examples_become_serialized_ones(write):
    document = {
        "context": {"all": 1, "own": "no"},
        "examples": [
            {"own": "yes", "many": [1.5, 2], "flags": [True, False]},
            {"bytes": {"b64": "AAE="}, "none": []},
        ],
    }
    found = read(TEXT, write("body.json", document))["t"]
    features = [
        {
            name: [*feature.int64_list.value, *feature.float_list.value, *feature.bytes_list.value]
            for name, feature in protos.Example.FromString(each).features.feature.items()
        }
        for each in found
    ]
    assert features == [
        {"all": [1], "own": [b"yes"], "many": [1.5, 2], "flags": [1, 0]},
        {"all": [1], "own": [b"no"], "bytes": [b"\0\1"], "none": []},
    ]


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ({"examples": {}}, "'examples' must be a list of objects"),
        ({"examples": [1]}, "'examples' must be a list of objects"),
        ({"examples": [{}], "context": 1}, "'examples' must be a list of objects"),
        ({"examples": [{"f": [[1]]}]}, "feature 'f' is not a list of numbers, text or bytes"),
        ({"examples": [{"f": None}]}, "feature 'f' is not a list|cannot hold|is not"),
        ({"examples": [{"f": [1 << 63]}]}, "feature 'f' is not a list of numbers"),
        ({"examples": [{"f": [1, 1e39]}]}, "beyond float32"),
        ({"examples": [{"f": {"g": 1}}]}, "is not a tensor value"),
    ],
)
def test_examples_that_cannot_be_are_refused(write, document, text):
    with pytest.raises(InvalidRequest, match=text):
        read(TEXT, write("body.json", document))


def test_examples_for_a_signature_that_takes_numbers_are_refused(write):
    with pytest.raises(InvalidRequest, match=r"input 'x' is object \[1\], not float"):
        read(PAIRS, write("body.json", {"examples": [{}]}))


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        (np.float32, "float"), (np.float64, "float"), (np.int64, "float"), (np.uint8, "float"),
        (np.int64, "int32"), (np.uint8, "int64"), (np.bool_, "int32"), (np.int64, "uint8"),
        (np.float32, "half"), (np.float32, "bfloat16"), (np.int32, "bfloat16"),
        (np.float32, "complex64"), (np.dtype(">f4"), "float"),
    ],
)  # fmt: skip
def test_array_is_taken_in_the_type_of_the_input(write, given, dtype):
    file = write("a.npy", np.array([0, 1, 1], given))
    assert read(signature(x=(dtype, (None,))), file) == {"x": [0, 1, 1]}


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (np.float32([1]), "int32"), (np.int64([1 << 40]), "int32"), (np.int8([-1]), "uint8"),
        (np.int32([2]), "bool"), (np.complex64([1]), "float"), (np.array([b"1"]), "float"),
        (np.float32([1]), "string"), (np.array(["2026"], "datetime64[Y]"), "int64"),
        (np.float32([1]), None),
    ],
)  # fmt: skip
def test_array_that_would_become_another_is_refused(write, array, dtype):
    file = write("a.npy", array)
    with pytest.raises(InvalidRequest, match=r"a\.npy: input 'x' is "):
        read(signature(x=(dtype, (None,))), file)


def test_arrays_by_alias(write):
    file = write("a.npz", {"a": np.int64([1, 2]), "b": np.zeros((2, 2))})
    assert read(TWO, file) == {"a": [1, 2], "b": [[0, 0], [0, 0]]}


def test_texts_of_numpy_are_texts(write):
    assert read(TEXT, write("a.npy", np.array(["a", "bc"]))) == {"t": ["a", "bc"]}


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.npy", b"", "cannot be read as a numpy file"),
        ("a.npy", b"\x93NUMPY\1\0", "cannot be read as a numpy file"),
        ("a.npz", b"PK\3\4", "cannot be read as a numpy file"),
        ("a.npy", np.array([b"x"], object), "cannot be read as a numpy file: .*pickle"),
        ("a.npz", {"z": np.zeros(1)}, "signature 's' has no input 'z'"),
        ("a.npy", np.zeros((1, 3)), r"input 'x' has shape \[1, 3\], not \[rows, 2\]"),
        ("a.npy", np.zeros(2), r"input 'x' has shape \[2\], not \[rows, 2\]"),
    ],
)
def test_file_that_is_none_of_numpys_or_does_not_fit_is_refused(write, name, content, text):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InvalidRequest, match=text):
            read(PAIRS, write(name, content))


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.json"])
def test_file_that_is_not_there_is_refused(tmp_path, name):
    with pytest.raises(InvalidRequest, match=r"cannot read .*No such file") as caught:
        read(PAIRS, tmp_path / name)
    assert "check the path" in caught.value.remedy


def test_array_without_a_name_needs_a_signature_of_one_input(write):
    with pytest.raises(InvalidRequest, match=r"a\.npy does not name its input"):
        read(TWO, write("a.npy", np.zeros(1)))


@pytest.fixture
def picture(tmp_path):
    """Write a grey picture of one pixel."""

    def write(value):
        file = tmp_path / f"{value}.png"
        Image.new("L", (1, 1), value).save(file)
        return file

    return write


GREY = signature(image=("float", (None, 1, 1, 1)))


def test_json_without_a_name_that_says_so_is_read_as_such(write, tmp_path):
    file = write("a.json", {"inputs": [1.5]}).rename(tmp_path / "63")
    assert read(signature(x=("float", (None,))), file) == {"x": [1.5]}


@pytest.mark.parametrize("name", ["x.tfrecord", "x.txt", "-", "x"])
def test_file_of_no_kind_is_told_with_all_kinds(tmp_path, monkeypatch, name):
    (tmp_path / "in").write_bytes(b"\x10\0\0\0abcd")
    (tmp_path / name).write_bytes(b"\x10\0\0\0abcd")
    with (tmp_path / "in").open() as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        with pytest.raises(InvalidRequest, match="holds no input: it starts with b'") as caught:
            read(GREY, Path(name) if name == "-" else tmp_path / name)
    assert ".npy, .npz or a picture" in caught.value.remedy


def test_body_of_two_kinds_is_told_so(write):
    with pytest.raises(InvalidRequest, match="it has inputs and instances, of which a request has"):
        read(GREY, write("a.json", {"inputs": [1.5], "instances": [1.5]}))


@pytest.mark.parametrize("body", [b'{"inputs": [1.5]}', b'\xef\xbb\xbf {"instances": [1.5]}'])
def test_dash_is_standard_input(body, tmp_path, monkeypatch):
    (tmp_path / "in").write_bytes(body)
    with (tmp_path / "in").open() as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        assert read(signature(x=("float", (None,))), Path("-")) == {"x": [1.5]}


def test_pictures_become_rows(picture):
    found = read(GREY, picture(0), picture(255))
    assert found == {"image": [[[[0]]], [[[1]]]]}


def test_pictures_are_prepared_as_the_note_says(picture):
    note = Preprocessing(value_range=(-1, 1))
    assert read(GREY, picture(0), note=note) == {"image": [[[[-1]]]]}


@pytest.fixture
def rescaling(tmp_path):
    """The graph of a model that scales its pictures down by itself."""
    graph = meta_graph(
        ("scale", "Const"), ("scaled", "Mul", "x", "scale"), ("y", "Conv2D", "scaled")
    )
    scale = next(node for node in graph.graph_def.node if node.name == "scale")
    value = to_proto(np.float32(1 / 255)).SerializeToString()
    scale.attr["value"].tensor.MergeFromString(value)
    tensor(graph.signature_def["serving_default"].inputs["image"], "x:0")
    return PictureGraph(write_model(tmp_path / "model", graph), "serving_default")


def test_pictures_have_the_range_that_the_graph_asks_for_and_that_is_told(picture, rescaling):
    wanted, told = signature(image=("float", (None, 1, 1, 1))), []
    found = read_inputs([picture(255)], wanted, Preprocessing(), graph=rescaling, tell=told.append)
    assert found == {"image": [[[[255]]]]}
    assert told == [
        "Input 'image': channels grey (signature); range 0 to 255 (from the graph: scaled)"
    ]


def test_note_wins_over_the_graph(picture, rescaling):
    wanted, note = signature(image=("float", (None, 1, 1, 1))), Preprocessing(value_range=(0, 1))
    assert read_inputs([picture(255)], wanted, note, graph=rescaling) == {"image": [[[[1]]]]}


def test_key_beside_pictures_is_their_names_and_that_is_told(picture):
    wanted, told = signature(image_bytes=("string", (None,)), key=("string", (None,))), []
    files = picture(0), picture(255)
    found = read_inputs(files, wanted, Preprocessing(), tell=told.append)
    assert found["key"].tolist() == [file.name.encode() for file in files]
    assert "input 'key' is the picture's name (assumed)" in told[0]


def test_key_that_a_file_holds_is_that(picture, write):
    wanted = signature(image_bytes=("string", (None,)), key=("string", (None,)))
    found = read(wanted, picture(0), write("key.json", {"inputs": {"key": ["a"]}}))
    assert found["key"] == [b"a"]


def test_nothing_is_told_without_a_picture(write):
    told = []
    read_inputs([write("a.json", {"inputs": [1.0]})], signature(x=("float", (None,))),
                Preprocessing(), tell=told.append)  # fmt: skip
    assert told == []


def test_picture_for_a_signature_that_takes_none_is_refused(picture):
    with pytest.raises(UsageError, match="it is not clear which takes the picture"):
        read(TWO, picture(0))


def test_files_of_one_input_are_joined_in_order(write, picture):
    first = write("a.npy", np.full((2, 1, 1, 1), 5.0))
    found = read(GREY, first, picture(0), write("b.json", {"instances": [[[[7]]]]}))
    assert np.ravel(found["image"]).tolist() == [5, 5, 0, 7]


def test_files_of_different_inputs_stand_side_by_side(write):
    a, b = write("a.npz", {"a": np.int32([1])}), write("b.json", {"inputs": {"b": [[1, 2]]}})
    assert read(TWO, a, b) == {"a": [1], "b": [[1, 2]]}


def test_arrays_that_cannot_be_joined_are_refused(write):
    scalar = signature(sc=("float", ()))
    file = write("a.npy", np.float32(1))
    with pytest.raises(
        InvalidRequest, match=r"input 'sc' cannot be joined from the shapes \[\], \[\]"
    ):
        read(scalar, file, file)


def test_no_file_holds_no_input():
    assert read(PAIRS) == {}


ROWS_AND_PARAMETER = signature(x=("float", (None, 2)), keep=("float", ()), w=("int32", (2,)))


def test_parameter_that_each_row_names_is_one(write):
    rows = [{"x": [1, 2], "keep": 0.5, "w": [7, 8]}, {"x": [3, 4], "keep": 0.5, "w": [7, 8]}]
    found = read(ROWS_AND_PARAMETER, write("a.json", {"instances": rows}))
    assert found == {"x": [[1, 2], [3, 4]], "keep": 0.5, "w": [7, 8]}


def test_parameter_that_differs_from_row_to_row_is_refused(write):
    rows = [{"x": [1, 2], "keep": 0.5}, {"x": [3, 4], "keep": 0.25}]
    with pytest.raises(InvalidRequest, match=r"'keep' has no batch axis.* 0.5 and as 0.25"):
        read(ROWS_AND_PARAMETER, write("a.json", {"instances": rows}))


def test_only_parameter_may_be_the_only_row(write):
    assert read(signature(n=("int32", ())), write("a.json", {"instances": [3]})) == {"n": 3}


def test_parameter_of_several_files_is_one(write):
    first = write("a.npz", {"x": np.ones((1, 2)), "keep": np.float32(0.5)})
    second = write("b.npz", {"x": np.zeros((2, 2)), "keep": np.float32(0.5)})
    other = write("c.npz", {"x": np.zeros((2, 2)), "keep": np.float32(1)})
    found = read(ROWS_AND_PARAMETER, first, second)
    assert found == {"x": [[1, 1], [0, 0], [0, 0]], "keep": 0.5}
    with pytest.raises(InvalidRequest, match="all rows share one value"):
        read(ROWS_AND_PARAMETER, first, other)


def test_parts_of_a_ragged_tensor_are_not_joined(write):
    ragged = made(RAGGED)
    file = write("a.npz", {"r": np.ones(3), "r_1": np.int64([0, 1, 3])})
    assert read(ragged, file)["r_1"] == [0, 1, 3]
    with pytest.raises(InvalidRequest, match=r"cannot be joined.*ragged"):
        read(ragged, file, file)


def test_rows_of_several_files_fill_a_fixed_number(write):
    fixed = made({"x": ("float", (2, 2))}, {"y": ("float", (2,))})
    one, two = write("a.npy", np.ones((1, 2))), write("b.npy", np.zeros((1, 2)))
    assert read(fixed, one, two) == {"x": [[1, 1], [0, 0]]}
    with pytest.raises(InvalidRequest, match="has 1 row, and the model takes 2"):
        read(fixed, one)
    assert read_inputs([one], fixed, Preprocessing(), any_rows=True)["x"].shape == (1, 2)


@pytest.mark.parametrize(
    ("shape", "value"), [((None,), (1,)), ((None, 1), (1, 1)), (None, (1,)), ((), ())]
)
def test_bytes_of_a_picture_fill_text_of_any_rank(picture, shape, value):
    found = read_inputs([picture(0)], signature(image=("string", shape)), Preprocessing())
    assert found["image"].shape == value
    assert found["image"].ravel()[0].startswith(b"\x89PNG")


def test_one_text_takes_one_picture(picture):
    with pytest.raises(InvalidRequest, match="cannot be joined"):
        read(signature(image=("string", ())), picture(0), picture(1))


@pytest.mark.parametrize(
    ("dtype", "text", "told"),
    [
        ("float", "1e39", "float cannot hold 1e"),
        ("float", "-4e38", "float cannot hold -4e"),
        ("half", "70000", "half cannot hold 70000"),
        ("bfloat16", "1e39", "bfloat16 cannot hold"),
        ("double", "1e400", "1e400 is larger than any number type"),
        ("float", "1e400", "1e400 is larger than any number type"),
        ("int32", "2147483648", "not of type int32"),
        ("int32", "0.5", "not of type int32"),
        ("uint8", "-1", "not of type uint8"),
        ("uint64", "-1", "not of type uint64"),
        ("int64", "9223372036854775808", "not of type int64"),
        ("bool", "2", "not of type bool"),
        ("string", '"\\ud800"', "is not valid text"),
    ],
)
@pytest.mark.parametrize("form", ['{"inputs": {"x": [0, %s]}}', '{"instances": [0, %s]}'])
def test_number_in_json_that_would_become_another_is_refused(write, form, dtype, text, told):
    content = (form % text).replace("0, ", "") if dtype == "string" else form % text
    with pytest.raises(InvalidRequest, match=told):
        read(signature(x=(dtype, (None,))), write("a.json", content.encode()))


def test_infinity_that_is_meant_passes(write):
    file = write("a.json", b'{"inputs": [Infinity, -Infinity, 1e38]}')
    found = read(signature(x=("float", (None,))), file)["x"]
    assert found[:2] == [float("inf"), float("-inf")]


@pytest.mark.parametrize(
    ("array", "dtype", "lost"),
    [
        (np.float64([1e39]), "float", "1e+39"),
        (np.float32([70000]), "half", "70000"),
        (np.int64([2**24 + 1]), "float", "16777217"),
        (np.int64([2**63 - 1]), "double", "9223372036854775807"),
        (np.int64([-1]), "uint8", "-1"),
        (np.uint64([2**63]), "int64", "9223372036854775808"),
        (np.complex128([1e39j]), "complex64", "1e"),
    ],
)
def test_number_of_an_array_that_would_become_another_is_named(write, array, dtype, lost):
    with pytest.raises(InvalidRequest) as caught:
        read(signature(x=(dtype, (None,))), write("a.npy", array))
    assert "which cannot hold" in caught.value.message
    assert lost in caught.value.message


OUTPUTS = {
    "file": np.float32([[1.5, np.nan]]),  # an argument's name in numpy.savez
    "a/b:0": np.int64([2**62]),
    "complex": np.complex64([1 + 2j]),
    "none": np.empty((0, 3), np.float16),
    "scalar": np.array(True),
}


def test_outputs_are_read_back_by_numpy(tmp_path):
    write_npz(tmp_path / "out.npz", OUTPUTS)
    with np.load(tmp_path / "out.npz") as found:
        assert set(found.files) == set(OUTPUTS)
        for alias, array in OUTPUTS.items():
            assert found[alias].dtype == array.dtype
            np.testing.assert_array_equal(found[alias], array)


def test_strings_and_bfloat16_are_stored_as_what_numpy_has(tmp_path):
    texts = np.array([[b"a\xff", b""], [b"a\0b", b"long"]], object)
    write_npz(tmp_path / "o.npz", {"t": texts, "b": np.array([1.5], ml_dtypes.bfloat16)})
    with np.load(tmp_path / "o.npz", allow_pickle=False) as found:
        assert found["t"].tolist() == texts.tolist()
        assert (found["b"].dtype, found["b"].tolist()) == (np.float32, [1.5])


def test_string_that_would_lose_its_end_is_refused(tmp_path):
    with pytest.raises(UsageError, match="output 't' has strings that end in zero bytes"):
        write_npz(tmp_path / "o.npz", {"t": np.array([b"a\0"], object)})
    assert not (tmp_path / "o.npz").exists()


def test_file_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(UsageError, match="cannot write"):
        write_npz(tmp_path / "none" / "o.npz", OUTPUTS)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.float32([[0.1, 2]]), ("float [1, 2]", "0.1, 2")),
        (np.float32([16777215, 1 / 3]), ("float [2]", "16777215, 0.33333334")),
        (np.float64([0.1, 1 / 3]), ("double [2]", "0.1, 0.3333333333333333")),
        (np.float16([0.1, 65504]), ("half [2]", "0.1, 65500")),
        (np.array([0.1], ml_dtypes.bfloat16), ("bfloat16 [1]", "0.1")),
        (np.float32([np.nan, np.inf, -0.0, 1e-30]), ("float [4]", "nan, inf, -0, 1e-30")),
        (np.arange(9), ("int64 [9]", "0, 1, 2, 3, 4, 5, 6, 7, ...")),
        (np.array(True), ("bool []", "True")),
        (np.array([b"a\xff\n"], object), ("string [1]", r"'a\\xff\n'")),
        (np.empty((0, 3), np.uint8), ("uint8 [0, 3]", "")),
        (np.array([b"x" * 5000], object), ("string [1]", "'" + "x" * 55 + " ...")),
    ],
)
def test_output_is_described_in_a_line(array, expected):
    assert list(describe({"y": array})) == [("y", *expected)]


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.float32([[0.1, 2]]), [[0.1, 2.0]]),
        (np.array([0.1, 0.3], ml_dtypes.bfloat16), [0.1, 0.3]),
        (np.float64(0.1), 0.1),
        (np.complex64([[1 + 0.1j]]), [[{"real": 1.0, "imag": 0.1}]]),
        (np.complex128(2j), {"real": 0.0, "imag": 2.0}),
        (np.array([b"a\xff"], object), [{"b64": "Yf8="}]),
        (np.uint64([2**64 - 1]), [2**64 - 1]),
        (np.array([[True]]), [[True]]),
        (np.array(0.1, np.float32), 0.1),
        (np.array(0, np.float16), 0.0),
    ],
)
def test_values_are_the_shortest_that_mean_them(array, expected):
    assert values(array) == expected


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_every_narrow_float_survives_its_decimals(dtype):
    every = np.arange(1 << 16, dtype=np.uint16).view(dtype)
    found = shortest(every)
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(found.astype(dtype).astype(float), every.astype(float))


@settings(deadline=None)
@given(arrays(np.float32, 9, elements=st.floats(width=32)))
def test_float32_survives_its_decimals(array):
    found = shortest(array)
    np.testing.assert_array_equal(found.astype(np.float32), array)
    assert all(
        len(repr(float(short))) <= len(repr(float(str(item)))) or not np.isfinite(item)
        for short, item in zip(found, array, strict=True)
    )
