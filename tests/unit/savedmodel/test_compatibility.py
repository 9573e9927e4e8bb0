"""What a new version changes for callers of the old one."""

import pytest

from tests.unit.saved_models import FLOAT, STRING, tensor
from tfserve_kit import protos, savedmodel
from tfserve_kit.errors import Severity
from tfserve_kit.savedmodel.signatures import changes

INT64 = 9


def signature(method="tensorflow/serving/predict", **tensors):
    """Return a SignatureDef; `in_x=(shape, dtype)`, `out_y=...`, `default_x=value`."""
    definition = protos.SignatureDef(method_name=method)
    for key, value in tensors.items():
        kind, _, alias = key.partition("_")
        if kind == "default":
            definition.defaults[alias].float_val.append(value)
            continue
        shape, dtype = value if isinstance(value[-1], str) else (value, "float")
        number = {"float": FLOAT, "string": STRING, "int64": INT64}[dtype]
        side = definition.inputs if kind == "in" else definition.outputs
        tensor(side[alias], f"{alias}:0", None if shape == "open" else shape, number)
    return definition


OLD = {"in_x": ((-1, 224, 224, 3), "float"), "out_y": ((-1, 10), "float")}


def compare(new, old=OLD):
    found = changes({"s": signature(**old)}, {"s": signature(**new)})
    return [(each.severity is Severity.ERROR, each.path) for each in found]


def test_same_signatures_have_no_changes():
    assert compare(OLD) == []


@pytest.mark.parametrize(
    ("old", "new", "breaking"),
    [
        ((-1, 224, 224, 3), (-1, 299, 299, 3), True),
        ((-1, 4), (8, 4), True),
        ((8, 4), (-1, 4), False),
        ((-1, 4), (-1, -1), False),
        ((-1, -1), (-1, 4), True),
        ((-1, 4), (-1, 4, 1), True),
        ((-1, 4), "open", False),
        ("open", (-1, 4), True),
        ((), (-1,), True),
    ],
)
def test_input_must_take_what_it_took(old, new, breaking):
    before, after = {"in_x": (old, "float")}, {"in_x": (new, "float")}
    assert compare(after, before) == [(breaking, "s.inputs.x")]


@pytest.mark.parametrize(
    ("old", "new", "breaking"),
    [
        ((-1, 10), (-1, 1000), True),
        ((-1, 10), (8, 10), True),
        ((8, 10), (-1, 10), False),
        ((-1, 10), (-1, -1), False),
        ((-1, -1), (-1, 10), False),
        ((-1, 10), (-1,), True),
        ((-1, 10), "open", False),
        ("open", (-1, 10), False),
        ((), (1,), True),
    ],
)
def test_output_must_keep_its_sizes(old, new, breaking):
    before, after = {"out_y": (old, "float")}, {"out_y": (new, "float")}
    assert compare(after, before) == [(breaking, "s.outputs.y")]


@pytest.mark.parametrize("alias", ["in_x", "out_y"])
def test_other_type_breaks_and_both_are_named(alias):
    new = OLD | {alias: (OLD[alias][0], "int64")}
    (change,) = changes({"s": signature(**OLD)}, {"s": signature(**new)})
    assert change.severity is Severity.ERROR
    assert "is int64 [" in change.message
    assert "was float [" in change.message


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        ({"out_y": OLD["out_y"]}, [(True, "s.inputs.x")]),
        ({"in_x": OLD["in_x"]}, [(True, "s.outputs.y")]),
        (OLD | {"in_z": ((-1,), "float")}, [(True, "s.inputs.z")]),
        (OLD | {"in_z": ((-1,), "float"), "default_z": 1.0}, [(False, "s.inputs.z")]),
        (OLD | {"out_z": ((-1,), "float")}, [(False, "s.outputs.z")]),
        (OLD | {"default_x": 1.0}, [(False, "s.inputs.x")]),
        (OLD | {"method": "tensorflow/serving/classify"}, [(True, "s")]),
    ],
)
def test_inputs_and_outputs_that_come_and_go(new, expected):
    assert compare(new) == expected


def test_default_that_goes_away_breaks_and_another_value_is_told():
    with_default = OLD | {"default_x": 1.0}
    assert compare(OLD, with_default) == [(True, "s.inputs.x")]
    assert compare(OLD | {"default_x": 2.0}, with_default) == [(False, "s.inputs.x")]
    assert compare(with_default, with_default) == []


def test_signatures_that_come_and_go_breaking_ones_first():
    one = signature(**OLD)
    found = changes({"b": one, "__saved_model_init_op": one}, {"a": one})
    assert [(each.severity is Severity.ERROR, each.path) for each in found] == [
        (True, "b"),
        (False, "a"),
    ]
    assert "--allow-breaking" in found[0].remedy
    assert not found[1].remedy


def test_versions_of_a_model_are_compatible(models):
    one, two = (savedmodel.meta_graph(models / "half_plus_two" / each) for each in "12")
    assert changes(one.signature_def, two.signature_def) == []
