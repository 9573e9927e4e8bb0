"""Random inputs fit the signature they are for."""

import numpy as np
import pytest

from tfserve_kit import savedmodel
from tfserve_kit.errors import UsageError
from tfserve_kit.perf import payloads
from tfserve_kit.tensors import dtypes


@pytest.mark.parametrize(("model", "batch", "shapes"), [
    ("mlp", 3, {"images": ((3, 784), np.float32)}),
    ("image", 2, {"image": ((2, 8, 8, 3), np.uint8)}),
    ("multi_io", 1, {"a": ((1, 2), np.int32), "b": ((1, 2), np.float32)}),
])  # fmt: skip
def test_random_inputs_have_the_signature_s_shapes_and_dtypes(models, model, batch, shapes):
    signature = savedmodel.read_signatures(models / model / "1")["serving_default"]
    inputs = payloads.random_inputs(signature, batch, seed=0)
    assert {alias: (array.shape, array.dtype) for alias, array in inputs.items()} == shapes


def test_the_same_seed_gives_the_same_inputs(models):
    signature = savedmodel.read_signatures(models / "mlp" / "1")["serving_default"]
    first, again, other = (
        payloads.random_inputs(signature, 1, seed)["images"] for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("drawn", [True, False])
def test_shape_that_was_made_up_is_told(drawn):
    spec = savedmodel.TensorSpec("x:0", dtypes.by_name("float"), None)
    signature = savedmodel.Signature("s", {"x": spec}, {}, "")
    told = payloads.assumptions(signature, drawn=drawn)
    assert ["'x' is of unknown rank" in each for each in told] == [True] * drawn


def test_string_inputs_are_refused_with_the_way_out(models):
    signature = savedmodel.read_signatures(models / "strings" / "1")["serving_default"]
    with pytest.raises(UsageError, match=r"'s'.*string") as refused:
        payloads.random_inputs(signature, 1, seed=0)
    assert "--input" in refused.value.remedy
