"""Version labels: what a configuration gives out, and what a label stands for."""

import pytest

from tfserve_kit import protos
from tfserve_kit.embedded import manager
from tfserve_kit.embedded.status import Code, ServingError


def config(name, **versions):
    return protos.ModelConfig(name=name, version_labels=versions)


def assign(configs, current=None, *, available=(), allow_unavailable=False):
    return manager.assign_labels(
        configs,
        current or {},
        lambda model, version: (model, version) in available,
        allow_unavailable=allow_unavailable,
    )


def test_labels_of_available_versions_are_given_out_by_model():
    configs = [config("a", stable=1, canary=2), config("b", stable=7), config("c")]
    found = assign(configs, available={("a", 1), ("a", 2), ("b", 7)})
    assert found == {"a": {"stable": 1, "canary": 2}, "b": {"stable": 7}}


def test_label_that_a_configuration_leaves_out_is_gone():
    found = assign([config("a", new=1)], {"a": {"old": 1}}, available={("a", 1)})
    assert found == {"a": {"new": 1}}


@pytest.mark.parametrize("allowed", [False, True])
@pytest.mark.parametrize(
    ("current", "lenient"),
    [
        ({}, True),  # the label is new
        ({"a": {"other": 1}}, True),
        ({"b": {"stable": 1}}, True),
        ({"a": {"stable": 2}}, True),  # it stays where it is
        ({"a": {"stable": 1}}, False),  # it moves
        ({"a": {"stable": 0}}, False),
    ],
)
def test_label_may_name_an_unavailable_version_if_allowed_and_not_moved(current, lenient, allowed):
    ask = [config("a", stable=2)]
    if lenient and allowed:
        assert assign(ask, current, allow_unavailable=True) == {"a": {"stable": 2}}
        return
    with pytest.raises(ServingError) as caught:
        assign(ask, current, available={("a", 1), ("b", 2)}, allow_unavailable=allowed)
    assert caught.value.code is Code.FAILED_PRECONDITION
    assert caught.value.message == (
        "Request to assign label to version 2 of model a, which is not currently available for "
        "inference"
    )


def test_label_may_move_to_an_available_version():
    current = {"a": {"stable": 1}}
    for allow in (True, False):
        found = assign(
            [config("a", stable=2)], current, available={("a", 2)}, allow_unavailable=allow
        )
        assert found == {"a": {"stable": 2}}
    assert current == {"a": {"stable": 1}}


def test_label_stands_for_its_version():
    assert manager.resolve_label({"a": {"stable": 3}}, "a", "stable") == 3


@pytest.mark.parametrize(("model", "label"), [("a", "canary"), ("b", "stable"), ("a", "")])
def test_unknown_label_is_refused(model, label):
    with pytest.raises(ServingError) as caught:
        manager.resolve_label({"a": {"stable": 3}}, model, label)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert caught.value.message == f"Unrecognized servable version label: {label}"
