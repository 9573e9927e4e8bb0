"""tf.Example inputs from messages and from JSON."""

import math

import pytest

from tfserve_kit import protos
from tfserve_kit.embedded import messages
from tfserve_kit.embedded.ledger import Call
from tfserve_kit.embedded.status import Code, ServingError

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
