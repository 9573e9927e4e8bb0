"""Inputs from messages and from JSON."""

import math

import numpy as np
import pytest

from tfserve_kit import protos
from tfserve_kit.embedded import messages
from tfserve_kit.embedded.handlers import ModelRef
from tfserve_kit.embedded.ledger import Call, field_at
from tfserve_kit.embedded.status import Code, ServingError
from tfserve_kit.tensors import to_proto

ACCOUNT = Call.unbounded().account


def features(serialized):
    """Return name -> (kind, values) of a serialized tf.Example."""
    example = protos.Example.FromString(serialized)
    return {
        name: (feature.WhichOneof("kind"), list(getattr(feature, feature.WhichOneof("kind")).value))
        for name, feature in example.features.feature.items()
    }


def message(text):
    return protos.from_text("Input", text)


def example(**floats):
    found = [
        f'feature {{ key: "{name}" value {{ float_list {{ value: {value} }} }} }}'
        for name, value in floats.items()
    ]
    return f"{{ features {{ {' '.join(found)} }} }}"


def refusal(call, argument):
    with pytest.raises(ServingError) as caught:
        call(argument, ACCOUNT)
    assert caught.value.code is Code.INVALID_ARGUMENT
    return caught.value.message


# Messages


def test_examples_of_a_list_come_in_order():
    found = messages.examples_from_input(
        message(f"example_list {{ examples {example(a=1)} examples {example(b=2)} }}"),
        ACCOUNT,
    )
    assert found.dtype == object
    assert [features(each) for each in found] == [
        {"a": ("float_list", [1])},
        {"b": ("float_list", [2])},
    ]


def test_context_is_merged_into_each_example_which_wins():
    found = messages.examples_from_input(
        message(
            f"example_list_with_context {{ examples {example(a=1)} examples {example(b=2, c=3)} "
            f"context {example(a=9, b=9)} }}"
        ),
        ACCOUNT,
    )
    assert [features(each) for each in found] == [
        {"a": ("float_list", [1]), "b": ("float_list", [9])},
        {"a": ("float_list", [9]), "b": ("float_list", [2]), "c": ("float_list", [3])},
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "example_list {}",
        "example_list_with_context {}",
        f"example_list_with_context {{ context {example(a=1)} }}",
    ],
)
def test_input_without_examples_is_refused(text):
    assert refusal(messages.examples_from_input, message(text)) == "Input is empty."


# JSON


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, ("int64_list", [1])),
        (-(2**63), ("int64_list", [-(2**63)])),
        (2**63 - 1, ("int64_list", [2**63 - 1])),
        (True, ("int64_list", [1])),
        (False, ("int64_list", [0])),
        (1.5, ("float_list", [1.5])),
        (1e39, ("float_list", [math.inf])),
        (-1e39, ("float_list", [-math.inf])),
        ("é", ("bytes_list", ["é".encode()])),
        ({"b64": "AAE="}, ("bytes_list", [b"\0\1"])),
        ([1, 2], ("int64_list", [1, 2])),
        ([True, 2], ("int64_list", [1, 2])),
        ([0.5, 1.5], ("float_list", [0.5, 1.5])),
        (["a", {"b64": "Yg=="}], ("bytes_list", [b"a", b"b"])),
    ],
)
def test_json_value_becomes_a_feature_of_its_kind(value, expected):
    (found,) = messages.examples_from_json({"examples": [{"x": value}]}, ACCOUNT)
    assert features(found) == {"x": expected}


def test_json_context_is_merged_into_each_example_which_wins():
    document = {"context": {"a": 9, "b": 9}, "examples": [{"a": 1}, {}]}
    assert [features(each) for each in messages.examples_from_json(document, ACCOUNT)] == [
        {"a": ("int64_list", [1]), "b": ("int64_list", [9])},
        {"a": ("int64_list", [9]), "b": ("int64_list", [9])},
    ]


@pytest.mark.parametrize(
    ("document", "end"),
    [
        ({}, "When method is classify, key 'examples' is expected and was not found"),
        ({"examples": {}}, "Expecting 'examples' value to be an list/array"),
        ({"examples": None}, "Expecting 'examples' value to be an list/array"),
        ({"examples": []}, "'examples' value is an empty array"),
    ],
)
def test_json_without_a_list_of_examples_is_refused(document, end):
    text = refusal(messages.examples_from_json, document)
    assert text.startswith("JSON Value: {")
    assert text.endswith(end)


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ({"examples": [1]}, "Example must be JSON object but got JSON Number"),
        ({"examples": [{}], "context": None}, "Example must be JSON object but got JSON Null"),
        ({"examples": [{"x": 2**63}]},
         "Feature: x has uint64_t element. Only int64_t is supported."),
        ({"examples": [{"x": None}]}, "Feature: x has element with unexpected JSON type: Null"),
        ({"examples": [{"x": [[1]]}]}, "Feature: x has element with unexpected JSON type: Array"),
        ({"examples": [{"x": {"b65": "a"}}]},
         "Feature: x has element with unexpected JSON type: Object"),
        ({"examples": [{"x": [1, 1.5]}]},
         "Unexpected element type in feature: x expecting type: int64"),
        ({"examples": [{"x": [1.5, "a"]}]},
         "Unexpected element type in feature: x expecting type: float"),
        ({"examples": [{"x": ["a", 1]}]},
         "Unexpected element type in feature: x expecting type: bytes"),
    ],
)  # fmt: skip
def test_json_that_is_no_example_is_refused(document, text):
    assert refusal(messages.examples_from_json, document) == text


# Requests that repeat


def _predict(inputs, *, as_content=True, name="m", signature="s", output_filter=()):
    request = protos.PredictRequest(output_filter=output_filter)
    request.model_spec.name, request.model_spec.signature_name = name, signature
    for alias, array in inputs.items():
        request.inputs[alias].CopyFrom(to_proto(np.asarray(array), as_content=as_content))
    return request


def _learnt(request):
    known, content = messages.KnownRequests(), request.SerializeToString()
    known.learn(content, request, ModelRef(request.model_spec.name))
    return known, content


@pytest.mark.parametrize("as_content", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_request_with_other_numbers_is_read_from_its_bytes(dtype, *, as_content):
    first = {"a": np.zeros((2, 3), dtype), "b": np.ones(4, dtype)}
    known, _ = _learnt(_predict(first, as_content=as_content, output_filter=["y"]))
    second = {"a": np.arange(6, dtype=dtype).reshape(2, 3), "b": np.full(4, np.nan, dtype)}
    request = _predict(second, as_content=as_content, output_filter=["y"]).SerializeToString()
    found = known.find(request)
    assert (found.model.name, found.signature, found.output_filter) == ("m", "s", ("y",))
    arrays = found.inputs(request)
    assert arrays.keys() == second.keys()
    for alias, array in second.items():
        assert arrays[alias].dtype == dtype
        np.testing.assert_array_equal(arrays[alias], array)


def test_every_byte_beside_the_numbers_counts():
    array = np.arange(3, dtype=np.float32)
    known, content = _learnt(_predict({"a": array}))
    begin = content.index(array.tobytes())
    for index in range(len(content)):
        changed = content[:index] + bytes([content[index] ^ 1]) + content[index + 1 :]
        is_number = begin <= index < begin + array.nbytes
        assert (known.find(changed) is not None) == is_number
    assert known.find(content + b"\0") is known.find(content[:-1]) is None


@pytest.mark.parametrize(
    "request_",
    [
        _predict({"a": np.array([b"text"], object)}),
        _predict({"a": np.array([True])}, as_content=False),
        _predict({"a": np.array([1, 2])}, as_content=False),
        _predict({"a": np.zeros((0, 4), np.float32)}),
        _predict({"a" * 5000: np.zeros(4, np.float32)}),
    ],
    ids=["strings", "packed bool", "packed int64", "nothing", "a long name"],
)
def test_request_that_its_bytes_do_not_tell_is_not_remembered(request_):
    known, content = _learnt(request_)
    assert known.find(content) is None


def test_values_left_out_or_sent_twice_are_not_remembered():
    few = _predict({"a": np.zeros(4, np.float32)}, as_content=False)
    del few.inputs["a"].float_val[2:]
    both = _predict({"a": np.zeros(4, np.float32)})
    both.inputs["a"].float_val.extend([1, 2, 3, 4])
    for request in (few, both):
        known, content = _learnt(request)
        assert known.find(content) is None
    once = _predict({"a": np.zeros(4, np.float32)})
    twice = once.SerializeToString() * 2
    known = messages.KnownRequests()
    known.learn(twice, protos.PredictRequest.FromString(twice), ModelRef("m"))
    assert known.find(twice) is None


def test_learning_looks_at_few_fields_however_many_a_request_has(monkeypatch):
    looked = []

    def counted(*where):
        looked.append(where)
        return field_at(*where)

    monkeypatch.setattr(messages, "field_at", counted)
    texts = np.array([b"text"] * 10_000, object)
    for request in (_predict({"a": texts}), _predict({}, output_filter=["y"] * 10_000)):
        _learnt(request)
        assert 0 < len(looked) < 500
        looked.clear()


def test_known_requests_are_bounded():
    known = messages.KnownRequests()
    for length in range(1, 600):
        request = _predict({"a": np.zeros(length, np.float32)})
        known.learn(request.SerializeToString(), request, ModelRef("m"))
        assert len(known._by_length) <= 256
    for name in "abcdefgh":
        request = _predict({"a": np.zeros(1, np.float32)}, name=name)
        known.learn(content := request.SerializeToString(), request, ModelRef(name))
    assert known.find(content).model.name == "h"
    assert max(map(len, known._by_length.values())) == 4
