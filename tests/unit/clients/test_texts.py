"""Small translations: JSON texts, tf.Examples, options, URLs, the words of servers."""

import json
import math

import numpy as np
import pytest

from tfserve_kit import protos
from tfserve_kit.clients import json_text, server_messages
from tfserve_kit.clients.checking import to_examples, to_json
from tfserve_kit.clients.grpc import GrpcProtocol
from tfserve_kit.clients.json_text import read_json, to_text
from tfserve_kit.clients.options import OptionNames, Options, read_pem
from tfserve_kit.clients.protocol import Reply
from tfserve_kit.clients.results import Target, as_target
from tfserve_kit.errors import InvalidRequest, UsageError
from tfserve_kit.tensors import json as tensor_json


@pytest.fixture(params=["orjson", "json"])
def library(request, monkeypatch):
    """Both ways to write and read JSON."""
    if request.param == "json":
        monkeypatch.setattr(json_text, "orjson", None)
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
    expected = json.loads(json.dumps(tensor_json.column_request({"x": array})["inputs"]["x"]))
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


@pytest.mark.parametrize(
    ("value", "kind", "values"),
    [
        (1, "int64_list", [1]), (True, "int64_list", [1]), (1.5, "float_list", [1.5]),
        ([1, 2], "int64_list", [1, 2]), (np.float32([1, 2]), "float_list", [1, 2]),
        ("a", "bytes_list", [b"a"]), (b"a\0", "bytes_list", [b"a\0"]),
        (["a", b"b\0"], "bytes_list", [b"a", b"b\0"]), (np.array(["a"]), "bytes_list", [b"a"]),
        ([], "float_list", []),
    ],
)  # fmt: skip
def test_feature_has_the_list_of_its_kind(value, kind, values):
    (example,) = to_examples([{"f": value}])
    feature = example.features.feature["f"]
    assert feature.WhichOneof("kind") == (kind if values else None)
    assert list(getattr(feature, kind).value) == values
    assert to_examples([example.SerializeToString()]) == [example]


def test_example_as_json_keeps_kinds_apart():
    (example,) = to_examples([{"n": 1, "x": 1.0, "b": b"\xff"}])
    assert json.dumps(to_json(example), sort_keys=True) == (
        '{"b": [{"b64": "/w=="}], "n": [1], "x": [1.0]}'
    )


@pytest.mark.parametrize("row", [{"f": 1j}, {"f": [[1]]}, {"f": [None]}, {"f": 2**70}, [], b"\xff"])
def test_row_that_is_no_example_is_named(row):
    with pytest.raises(InvalidRequest, match="example 1"):
        to_examples([{"f": 1}, row])


def test_no_examples_are_refused():
    with pytest.raises(InvalidRequest, match="no examples"):
        to_examples([])


@pytest.mark.parametrize(
    "wrong",
    [
        {"retries": -1}, {"retry_share": 1.5}, {"retry_share": -0.1}, {"hedge_after_s": 0},
        {"max_answer_bytes": 0}, {"max_answer_bytes": 1 << 31},
        {"cert_file": "a"}, {"key_file": "a"},
        {"hedge_after_s": 1, "idempotent": False},
    ],
)  # fmt: skip
def test_option_out_of_range_is_named(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Options(**wrong)


def test_options_have_the_same_names_in_both_places():
    assert list(OptionNames.__annotations__) == list(Options.__slots__)
    assert {name: Options.__annotations__[name] for name in Options.__slots__} == (
        OptionNames.__annotations__
    )


def test_headers_are_not_shown():
    assert "secret" not in repr(Options(headers={"authorization": "secret"}))


def test_file_that_cannot_be_read_is_named(tmp_path):
    assert read_pem(None) is None
    (tmp_path / "a.pem").write_bytes(b"pem")
    assert read_pem(tmp_path / "a.pem") == b"pem"
    with pytest.raises(UsageError, match=r"no\.pem"):
        read_pem(tmp_path / "no.pem")


def test_target_of_a_call():
    assert as_target("m", "") == Target("m")
    assert as_target("m", "s") == Target("m", signature="s")
    assert as_target(Target("m", 1, signature="a"), "s") == Target("m", 1, signature="s")
    assert as_target(Target("m", 1, signature="a"), "") == Target("m", 1, signature="a")


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("Task size 5 is larger than maximum input batch size 2 [[{{node x}}]]", 2),
        ("Task size 5 is larger than maximum batch size 12", 12),
        ("Task size 5 is larger than maximum input batch size 0", None),
        ("Task size is large", None),
        ("", None),
    ],
)
def test_batch_limit_is_found_in_the_words(text, limit):
    assert server_messages.batch_limit(text) == limit


@pytest.mark.parametrize(("limit", "rows"), [(1, "send one row"), (12, "send at most 12 rows")])
def test_remedy_for_too_many_rows_names_the_limit(limit, rows):
    text = f"Task size 20 is larger than maximum input batch size {limit}"
    assert server_messages.remedy(text).startswith(rows)
    assert server_messages.remedy("Task size") is None


@pytest.mark.parametrize(
    ("text", "flag"),
    [
        ("Server Threadpool Exhausted", "grpc_max_threads"),
        (
            "The batch scheduling queue to which this task was submitted is full; currently 10",
            "max_enqueued_batches",
        ),
        ("The batching queue to which this task was submitted is full", "num_batch_threads"),
        ("GOAWAY received; Error code: 11; Debug Text: too_many_pings", "keepalive"),
    ],
)
def test_refusal_of_a_full_server_names_the_flag_that_helps(text, flag):
    assert flag in server_messages.remedy(text)
    reply = Reply(False, b"", "RESOURCE_EXHAUSTED", text)
    assert flag in GrpcProtocol("grpc://h:1").error(reply, Target("m"), 1.0).remedy


def test_other_words_of_servers():
    full = "The batch scheduling queue to which this task was submitted is full; currently 1"
    assert server_messages.is_full_queue(full)
    assert server_messages.is_full_queue("Run() timeout exceeded while waiting in batching queue")
    assert not server_messages.is_full_queue("connection refused")
    assert server_messages.is_message_too_large(
        "CLIENT: Received message larger than max (5 vs. 4)"
    )
    assert not server_messages.is_message_too_large("out of memory")


def test_metadata_tells_which_inputs_are_optional():
    from tfserve_kit import savedmodel

    message = protos.SignatureDef()
    message.inputs["a"].dtype = message.inputs["b"].dtype = 1
    message.defaults["b"].dtype = 1
    found = savedmodel.parse_signatures({"s": message})["s"]
    assert found.optional == {"b"}


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (1e39, "beyond float32"),
        ([0.5, -1e39], "beyond float32"),
        (np.ma.masked_array([1.0, 2.0], mask=[False, True]), "are masked"),
        ("\ud800", "surrogates"),
    ],
)
def test_values_that_would_become_others_are_no_features(value, told):
    with pytest.raises(InvalidRequest, match=told):
        to_examples([{"f": value}])


def test_infinity_that_is_meant_is_a_feature():
    (example,) = to_examples([{"f": [math.inf, 1.0]}])
    assert list(example.features.feature["f"].float_list.value) == [math.inf, 1.0]
