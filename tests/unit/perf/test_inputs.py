"""Random and recorded inputs by the batch axes of a signature."""

import numpy as np
import pytest

from tests.unit.signatures import NESTED, RAGGED, SPARSE, made
from tfserve_kit.errors import UsageError
from tfserve_kit.perf.payloads import assumptions, inputs_of, random_inputs
from tfserve_kit.pictures.preprocessing import Preprocessing

ROW, SCALAR = ("float", (None, 2)), ("float", ())
FIXED = made({"x": ("float", (4, 2)), "k": SCALAR}, {"y": ("float", (4,))})


@pytest.fixture
def npz(tmp_path):
    def write(**arrays):
        np.savez(tmp_path / "in.npz", **arrays)
        return str(tmp_path / "in.npz")

    return write


@pytest.mark.parametrize(
    ("spec", "value"),
    [
        (SCALAR, 1.0), (("bool", ()), True), (("int64", ()), 1), (("float", (3,)), [1, 1, 1]),
        (("complex64", ()), 1), (("half", ()), 1),
    ],
)  # fmt: skip
def test_parameters_are_ones_in_their_own_shape(spec, value):
    drawn = random_inputs(made({"x": ROW, "p": spec}), 3, seed=7)
    assert drawn["x"].shape == (3, 2)
    assert drawn["p"].tolist() == value


def test_parameters_are_said():
    (text,) = assumptions(made({"x": ROW, "keep": SCALAR, "on": ("bool", ())}))
    assert "'keep' = 1.0, 'on' = true" in text
    assert not assumptions(made({"x": ROW}))


def test_fixed_rows_are_drawn_and_said_and_no_others():
    assert random_inputs(FIXED, 1, seed=0)["x"].shape == (4, 2)
    assert random_inputs(FIXED, 4, seed=0)["x"].shape == (4, 2)
    assert any("4 rows" in text for text in assumptions(FIXED))
    with pytest.raises(UsageError, match="takes 4 rows in each request, so 2 rows"):
        random_inputs(FIXED, 2, seed=0)


@pytest.mark.parametrize("inputs", [{"n": ("int32", ())}, {}])
def test_rows_cannot_be_drawn_where_there_are_none(inputs):
    random_inputs(made(inputs), 1, seed=0)
    with pytest.raises(UsageError, match="no input with a batch axis"):
        random_inputs(made(inputs), 2, seed=0)


@pytest.mark.parametrize("inputs", [RAGGED, NESTED, RAGGED | {"r_1": ("int32", (6,))}])
def test_parts_of_a_ragged_tensor_are_drawn_together(inputs):
    signature = made(inputs)
    drawn = random_inputs(signature, 5, seed=0)
    (composite,) = signature.composites
    assert not composite.fault(drawn)
    assert all(signature.inputs[alias].takes(drawn[alias].shape) for alias in inputs)
    assert len(drawn["r_1"]) == 6


def test_parts_of_a_sparse_tensor_are_not_drawn():
    with pytest.raises(UsageError, match="parts of one sparse tensor"):
        random_inputs(made(SPARSE), 1, seed=0)


def test_parameters_of_a_file_go_with_each_batch(npz):
    signature = made({"x": ROW, "keep": SCALAR, "w": ("float", (3,))})
    file = npz(x=np.arange(10.0).reshape(5, 2), keep=np.float32(0.5), w=np.ones(3))
    found = inputs_of(file, signature, 2, Preprocessing())
    assert [each["x"].tolist() for each in found] == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]
    assert all(each["keep"] == 0.5 and each["w"].shape == (3,) for each in found)


def test_one_row_is_repeated_beside_its_parameters(npz):
    file = npz(x=np.ones((1, 2)), keep=np.float32(0.5))
    (found,) = inputs_of(file, made({"x": ROW, "keep": SCALAR}), 3, Preprocessing())
    assert found["x"].shape == (3, 2) and found["keep"].shape == ()


def test_rows_are_repeated_or_cut_to_the_fixed_number(npz):
    (one,) = inputs_of(npz(x=np.ones((1, 2)), k=np.float32(1)), FIXED, 1, Preprocessing())
    assert one["x"].shape == (4, 2)
    two = inputs_of(npz(x=np.ones((9, 2)), k=np.float32(1)), FIXED, 4, Preprocessing())
    assert [each["x"].shape for each in two] == [(4, 2), (4, 2)]
    with pytest.raises(UsageError, match="must have 4 rows"):
        inputs_of(npz(x=np.ones((2, 2)), k=np.float32(1)), FIXED, 2, Preprocessing())


@pytest.mark.parametrize(
    ("inputs", "arrays", "why"),
    [
        (RAGGED, {"r": np.ones(3), "r_1": np.int64([0, 1, 3])}, "ragged"),
        ({"n": ("int32", ())}, {"n": np.int32(3)}, "no input has a batch axis"),
    ],
)
def test_batches_of_what_cannot_be_cut_are_refused(npz, inputs, arrays, why):
    assert len(inputs_of(npz(**arrays), made(inputs), 1, Preprocessing())) == 1
    with pytest.raises(UsageError, match=why):
        inputs_of(npz(**arrays), made(inputs), 2, Preprocessing())
