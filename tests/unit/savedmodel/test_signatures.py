"""What a signature says of rows: who has them, who is a parameter, and what cannot be batched."""

import numpy as np
import pytest

from tests.unit import saved_models
from tests.unit.signatures import NESTED, RAGGED, SPARSE, made
from tfserve_kit import protos, savedmodel
from tfserve_kit.errors import InvalidRequest, UsageError
from tfserve_kit.savedmodel.signatures import (
    Composite,
    Signature,
    batch_axes,
    choose_signature,
    obstacles,
    of_any_rows,
)

ROW, SCALAR = ("float", (None, 2)), ("float", ())


@pytest.mark.parametrize(
    ("inputs", "rows", "parameters"),
    [
        ({"x": ROW}, {"x"}, set()),
        ({"x": ROW, "keep": SCALAR}, {"x"}, {"keep"}),
        ({"x": ROW, "weights": ("float", (3,))}, {"x"}, {"weights"}),
        ({"x": ("string", None)}, {"x"}, set()),
        ({"x": ("float", None), "flag": ("bool", ())}, {"x"}, {"flag"}),
        ({"n": ("int32", ())}, set(), {"n"}),
        ({}, set(), set()),
    ],
)
def test_inputs_are_rows_or_parameters(inputs, rows, parameters):
    axes = batch_axes(made(inputs))
    assert (axes.rows, axes.parameters) == (rows, parameters)
    assert axes.fixed_rows is None


@pytest.mark.parametrize(
    ("inputs", "outputs", "fixed"),
    [
        ({"x": ("float", (4, 8))}, {"y": ("float", (4, 3))}, 4),
        ({"x": ("float", (4, 8)), "k": SCALAR}, {"y": ("float", (4, 3))}, 4),
        ({"x": ("float", (4, 8)), "m": ("int32", (4,))}, {"y": ("float", (None, 3))}, 4),
        ({"x": ("float", (1, None))}, {"y": ("float", (1,)), "n": ("float", (1, 9))}, 1),
        ({"x": ("float", (8, 8, 3))}, {"y": ("float", (3,))}, None),  # one picture, no batch
        ({"x": ("float", (4, 8)), "m": ("int32", (2,))}, {"y": ("float", (4,))}, None),
        ({"x": ("float", (4,))}, {"y": SCALAR}, None),
    ],
)
def test_rows_are_fixed_where_inputs_and_outputs_agree(inputs, outputs, fixed):
    axes = batch_axes(made(inputs, outputs))
    assert axes.fixed_rows == fixed
    assert bool(axes.rows) is (fixed is not None)


def test_rows_are_taken_and_parameters_kept():
    axes = batch_axes(made({"x": ROW, "w": ("float", (3,)), "any": ("float", None)}))
    arrays = {"x": np.ones((5, 2)), "w": np.arange(3), "any": np.float32(1)}
    taken = axes.taken(arrays, slice(1, 3))
    assert taken["x"].shape == (2, 2)
    assert taken["w"].tolist() == [0, 1, 2] and taken["any"] == 1
    assert axes.row_counts(arrays) == {"x": 5}


def test_fixed_rows_can_be_opened():
    opened = of_any_rows(made({"x": ("float", (4, 8)), "k": SCALAR}, {"y": ("float", (4,))}))
    assert opened.inputs["x"].shape == (None, 8)
    assert opened.inputs["k"].shape == ()


@pytest.mark.parametrize(
    ("inputs", "outputs", "told"),
    [
        ({"x": ROW}, {"y": ("float", (None, 3))}, []),
        ({"x": ROW}, {"y": ("float", None)}, []),
        ({"x": ROW, "keep": SCALAR}, None, ["'keep' is float []: it has no batch axis"]),
        ({"x": ROW, "w": ("float", (3,))}, None, ["'w' is float [3]: its first axis is fixed"]),
        ({"x": ROW}, {"y": ("float", (2,))}, ["'y' is float [2], not row by row"]),
        ({"x": ROW}, {"y": SCALAR}, ["'y' is float [], not row by row"]),
        ({"x": ("float", (4,))}, {"y": ("float", (4,))}, ["must have 4 rows"]),
        ({"x": ("float", (1,))}, {"y": ("float", (1,))}, ["must have 1 row,"]),
        ({}, None, ["has no input"]),
        (
            RAGGED,
            None,
            ["inputs 'r' (values) and 'r_1' (row_splits) are the parts of one ragged tensor"],
        ),
        (
            SPARSE,
            None,
            ["'s_1' (values) and 's_2' (dense_shape) are the parts of one sparse tensor"],
        ),
    ],
)
def test_obstacles_to_batching_are_told(inputs, outputs, told):
    found = list(obstacles(made(inputs, outputs)))
    assert len(found) == len(told)
    assert all(text in each for text, each in zip(told, found, strict=True))


def test_batches_of_just_the_fixed_rows_are_no_obstacle():
    fixed = made({"x": ("float", (4,))}, {"y": ("float", (4,))})
    assert not list(obstacles(fixed, batch_rows=4))
    assert list(obstacles(fixed, batch_rows=8))


@pytest.mark.parametrize(
    ("inputs", "kind", "aliases"),
    [
        (RAGGED, "ragged", ("r", "r_1")),
        (NESTED, "ragged", ("r", "r_1", "r_2")),
        (RAGGED | {"r_1": ("int32", (3,))}, "ragged", ("r", "r_1")),
        (SPARSE, "sparse", ("s", "s_1", "s_2")),
        ({"s": ("int64", (None, None)), "s_1": ("string", (None,)), "s_2": ("int64", (None,))},
         "sparse", ("s", "s_1", "s_2")),
    ],
)  # fmt: skip
def test_parts_of_composites_are_known_by_name_type_and_shape(inputs, kind, aliases):
    assert made(inputs | {"z": ROW}).composites == (Composite(kind, aliases),)


@pytest.mark.parametrize(
    "inputs",
    [
        {"x": ROW, "x_1": ROW},
        {"x": ROW, "x_1": ("float", (None,))},
        {"x": ROW, "x_1": ("int64", (None, 2))},
        {"x": ROW, "x_2": ("int64", (None,))},
        {"x": SCALAR, "x_1": ("int64", (None,))},
    ],
)
def test_inputs_of_their_own_are_no_composite(inputs):
    assert made(inputs).composites == ()


def test_a_model_that_takes_no_ragged_tensor_settles_what_names_suggest():
    assert made(RAGGED, known=frozenset()).composites == ()
    assert made(RAGGED, known=frozenset({"ragged"})).composites


def test_what_a_saved_model_says_of_its_functions_decides(tmp_path):
    graph = saved_models.meta_graph(output="x")
    signature = graph.signature_def["serving_default"]
    saved_models.tensor(signature.inputs["x_1"], "x_1:0", dtype=9)
    assert savedmodel.graph_signatures(graph)["serving_default"].composites == ()
    function = graph.object_graph_def.concrete_functions["f"].canonicalized_input_signature
    positional = function.tuple_value.values.add().tuple_value.values
    positional.add().type_spec_value.type_spec_class = 3
    found = savedmodel.read_signatures(saved_models.write(tmp_path, graph))["serving_default"]
    assert found.composites == (Composite("ragged", ("x", "x_1")),)


@pytest.mark.parametrize(
    ("parts", "fault"),
    [
        ({"r": [1, 2, 3], "r_1": [0, 1, 3]}, ""),
        ({"r": [], "r_1": [0]}, ""),
        ({"r": [1, 2, 3], "r_1": [0, 1, 2]}, "end at 2"),
        ({"r": [1, 2, 3], "r_1": [1, 3]}, "do not rise from 0"),
        ({"r": [1, 2, 3], "r_1": [0, 2, 1, 3]}, "do not rise from 0"),
        ({"r": [1, 2, 3], "r_1": []}, "do not rise from 0"),
        ({"r": [1]}, ""),
    ],
)
def test_ragged_parts_are_held_against_each_other(parts, fault):
    arrays = {alias: np.array(value, np.int64) for alias, value in parts.items()}
    found = Composite("ragged", ("r", "r_1")).fault(arrays)
    assert (fault in found) if fault else not found


@pytest.mark.parametrize(
    ("indices", "values", "shape", "fault"),
    [
        ([[0, 0], [1, 4]], [1, 2], [2, 5], ""),
        ([[0, 0]], [1, 2], [2, 5], "do not fit 2 values"),
        ([[0, 5]], [1], [2, 5], "outside the shape"),
        ([[0, -1]], [1], [2, 5], "outside the shape"),
        ([[0, 0]], [1], [2], "rank 1"),
    ],
)
def test_sparse_parts_are_held_against_each_other(indices, values, shape, fault):
    arrays = dict(zip("abc", map(np.array, (indices, values, shape)), strict=True))
    found = Composite("sparse", ("a", "b", "c")).fault(arrays)
    assert (fault in found) if fault else not found


def test_metadata_tells_which_inputs_are_optional():
    message = protos.SignatureDef()
    message.inputs["a"].dtype = message.inputs["b"].dtype = 1
    message.defaults["b"].dtype = 1
    found = savedmodel.parse_signatures({"s": message})["s"]
    assert found.optional == {"b"}


@pytest.mark.parametrize(("name", "expected"), [("", "serving_default"), ("other", "other")])
def test_signature_is_chosen_by_name(name, expected):
    found = {key: Signature(key, {}, {}, "") for key in ("other", "serving_default")}
    assert choose_signature(found, name).name == expected


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("servin_default", "did you mean serving_default? (--signature)"),
        ("zzz", "choose one of: serving_default (--signature)"),
    ],
)
def test_unknown_signature_is_refused_with_the_known_ones(name, remedy):
    found = {"serving_default": Signature("serving_default", {}, {}, "")}
    with pytest.raises(UsageError) as caught:
        choose_signature(found, name)
    assert caught.value.message == f"the model has no signature {name!r}"
    assert caught.value.remedy == remedy
    with pytest.raises(InvalidRequest, match=f"m has no signature '{name}'"):
        choose_signature(found, name, of="m", error=InvalidRequest)
