"""What signatures ask for: how those of classify and regress are called, and what they give."""

import numpy as np
import pytest

from tfserve_kit import protos
from tfserve_kit.embedded.signatures import (
    CLASSIFY,
    REGRESS,
    class_scores,
    classification_fetches,
    regression_fetches,
    regression_values,
)
from tfserve_kit.embedded.status import Code, ServingError


def signature(method, inputs, outputs):
    """Return a SignatureDef whose tensors are named like their aliases, with `:0`."""
    made = protos.SignatureDef(method_name=method)
    for alias in inputs:
        made.inputs[alias].name = f"{alias}:0"
    for alias in outputs:
        made.outputs[alias].name = f"{alias}:0"
    return made


def texts_of(rows):
    array = np.empty((len(rows), len(rows[0])), object)
    array[:] = rows
    return array


def refusal(call, *arguments, **options):
    with pytest.raises(ServingError) as caught:
        call(*arguments, **options)
    assert caught.value.code is Code.INVALID_ARGUMENT
    return caught.value.message


BOTH_OUTPUTS = ["classes", "scores"]


@pytest.mark.parametrize("outputs", [BOTH_OUTPUTS, ["classes"], ["scores"], ["scores", "other"]])
@pytest.mark.parametrize("check", [True, False])
def test_classification_fetches_labels_and_scores_as_far_as_there_are_any(outputs, check):
    found = classification_fetches(signature(CLASSIFY, ["inputs"], outputs), check_method=check)
    expected = {alias: f"{alias}:0" for alias in BOTH_OUTPUTS if alias in outputs}
    assert found == ("inputs:0", expected)
    assert list(found[1]) == list(expected)


@pytest.mark.parametrize("check", [True, False])
def test_regression_fetches_its_output(check):
    found = regression_fetches(signature(REGRESS, ["inputs"], ["outputs"]), check_method=check)
    assert found == ("inputs:0", {"outputs": "outputs:0"})


@pytest.mark.parametrize(
    ("call", "method", "wanted", "outputs"),
    [
        (classification_fetches, REGRESS, CLASSIFY, BOTH_OUTPUTS),
        (regression_fetches, CLASSIFY, REGRESS, ["outputs"]),
    ],
)
def test_method_name_is_looked_at_only_where_that_is_wanted(call, method, wanted, outputs):
    definition = signature(method, ["inputs"], outputs)
    call(definition, check_method=False)
    text = refusal(call, definition, check_method=True)
    kind = call.__name__.removesuffix("_fetches")
    assert text == f"Expected {kind} signature method_name to be {wanted}. Was: {method}"


@pytest.mark.parametrize(
    ("call", "inputs", "outputs", "text"),
    [
        (classification_fetches, [], BOTH_OUTPUTS, "Expected one input Tensor."),
        (classification_fetches, ["inputs", "x"], BOTH_OUTPUTS, "Expected one input Tensor."),
        (classification_fetches, ["inputs"], [], "Expected one or two output Tensors, found 0"),
        (
            classification_fetches,
            ["inputs"],
            [*BOTH_OUTPUTS, "x"],
            "Expected one or two output Tensors, found 3",
        ),
        (
            classification_fetches,
            ["x"],
            BOTH_OUTPUTS,
            "No classification inputs found in SignatureDef: inputs {",
        ),
        (
            classification_fetches,
            ["inputs"],
            ["x"],
            "Expected classification signature outputs to contain",
        ),
        (regression_fetches, [], ["outputs"], "Expected one input Tensor."),
        (regression_fetches, ["inputs", "x"], ["outputs"], "Expected one input Tensor."),
        (regression_fetches, ["inputs"], [], "Expected one output Tensor."),
        (regression_fetches, ["inputs"], ["outputs", "x"], "Expected one output Tensor."),
        (
            regression_fetches,
            ["x"],
            ["outputs"],
            "No regression inputs found in SignatureDef: inputs {",
        ),
        (
            regression_fetches,
            ["inputs"],
            ["x"],
            "No regression outputs found in SignatureDef: inputs {",
        ),
    ],
)
def test_signature_of_another_kind_is_refused(call, inputs, outputs, text):
    assert refusal(call, signature("", inputs, outputs), check_method=False).startswith(text)


LABELS, SCORES = (
    texts_of([[b"a", b"b"], [b"c", b"d"]]),
    np.float32([[0.25, 0.5], [1, 2]]),
)


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        ({"classes": LABELS, "scores": SCORES},
         [[(b"a", 0.25), (b"b", 0.5)], [(b"c", 1), (b"d", 2)]]),
        ({"scores": SCORES}, [[(b"", 0.25), (b"", 0.5)], [(b"", 1), (b"", 2)]]),
        ({"classes": LABELS}, [[(b"a", 0), (b"b", 0)], [(b"c", 0), (b"d", 0)]]),
        ({"scores": SCORES[:, :0]}, None),
    ],
)  # fmt: skip
def test_classes_pair_labels_with_scores(outputs, expected):
    assert class_scores(outputs, 2) == (expected or [[], []])


@pytest.mark.parametrize(
    ("outputs", "text"),
    [
        ({"classes": SCORES}, "Expected classes Tensor of DT_STRING. Got: DT_FLOAT"),
        ({"scores": LABELS}, "Expected scores Tensor of DT_FLOAT. Got: DT_STRING"),
        ({"scores": np.float64(SCORES)}, "Expected scores Tensor of DT_FLOAT. Got: DT_DOUBLE"),
        ({"scores": SCORES[0]}, "Expected Tensor shape: [batch_size num_classes] but got [2]"),
        ({"scores": SCORES[None]},
         "Expected Tensor shape: [batch_size num_classes] but got [1,2,2]"),
        ({"scores": SCORES[:1]}, "Expected scores output batch size of 2. Got: 1"),
        ({"classes": texts_of([[b"a"]] * 3)}, "Expected classes output batch size of 2. Got: 3"),
        ({"classes": LABELS, "scores": SCORES[:, :1]},
         "Tensors class and score should match in dim_size(1). Got 2 vs. 1"),
    ],
)  # fmt: skip
def test_classes_of_another_form_are_refused(outputs, text):
    assert refusal(class_scores, outputs, 2) == text


@pytest.mark.parametrize("array", [np.float32([1.5, 2]), np.float32([[1.5], [2]])])
def test_values_are_one_for_each_example(array):
    found = regression_values({"outputs": array}, 2)
    assert found == [1.5, 2.0]
    assert all(type(value) is float for value in found)


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (np.float32(1), "Expected output Tensor shape to be either [batch_size] or "
         "[batch_size, 1] but got []"),
        (np.float32([[1, 2]] * 2), "Expected output Tensor shape to be either [batch_size] or "
         "[batch_size, 1] but got [2,2]"),
        (np.float32([[[1]], [[2]]]), "Expected output Tensor shape to be either [batch_size] or "
         "[batch_size, 1] but got [2,1,1]"),
        (np.float32([1]), "Input batch size did not match output batch size: 2 vs. 1"),
        (np.float32([1, 2, 3]), "Input batch size did not match output batch size: 2 vs. 3"),
        (np.int64([1, 2]), "Expected output Tensor of DT_FLOAT.  Got: DT_INT64"),
    ],
)  # fmt: skip
def test_values_of_another_form_are_refused(array, text):
    assert refusal(regression_values, {"outputs": np.asarray(array)}, 2) == text
