"""What a request does with one loaded version: checks, feeds, fetches; pure but for the run.

Source: tensorflow_serving/servables/tensorflow/predict_util.cc, classifier.cc and regressor.cc,
whose checks and texts these are.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from tfserve_kit.embedded import inference
from tfserve_kit.embedded.status import Code, ServingError, invalid
from tfserve_kit.savedmodel import DEFAULT_SIGNATURE
from tfserve_kit.tensors import dtypes, from_proto

Arrays = Mapping[str, NDArray[Any]]
Signatures = Mapping[str, Any]
# `Servable.run`, or something around it: (value per tensor name, tensors to compute) -> values
Run = Callable[[Arrays, Sequence[str]], Sequence[NDArray[Any]]]


def predict(
    signatures: Signatures,
    run: Run,
    signature: str,
    inputs: Arrays,
    output_filter: Sequence[str] = (),
) -> tuple[str, Arrays]:
    """Run a signature; see `Handlers.predict`.

    Args:
        signatures: SignatureDef messages of the version by name.
        run: computes its tensors.
        signature: as all that follows, see there.
        inputs: as above.
        output_filter: as above.

    Returns:
        The signature's name and array per output alias.
    """
    name = signature or DEFAULT_SIGNATURE
    definition = _signature(signatures, name)
    feeds = _feeds(definition, inputs)
    outputs = _outputs(definition, output_filter)
    values = run(feeds, list(outputs.values()))
    return name, dict(zip(outputs, values, strict=True))


def classify(
    signatures: Signatures, run: Run, signature: str, examples: NDArray[Any], *, check_method: bool
) -> tuple[str, list[list[tuple[bytes, float]]]]:
    """Run a classification signature; see `Handlers.classify`.

    Returns:
        The signature's name and (label, score) per example and class.
    """
    name, definition = _example_signature(signatures, signature)
    fetches = inference.classification(definition, check_method=check_method)
    outputs = _run_examples(run, fetches, examples)
    return name, inference.classes(outputs, len(examples))


def regress(
    signatures: Signatures, run: Run, signature: str, examples: NDArray[Any], *, check_method: bool
) -> tuple[str, list[float]]:
    """Run a regression signature; see `Handlers.regress`.

    Returns:
        The signature's name and a value per example.
    """
    name, definition = _example_signature(signatures, signature)
    fetches = inference.regression(definition, check_method=check_method)
    outputs = _run_examples(run, fetches, examples)
    return name, inference.values(outputs, len(examples))


def _example_signature(signatures: Signatures, name: str) -> tuple[str, Any]:
    name = name or DEFAULT_SIGNATURE
    if name not in signatures:
        raise invalid(f"No signature was found with the name: {name}")
    return name, signatures[name]


def _run_examples(run: Run, fetches: inference.Fetches, examples: NDArray[Any]) -> Arrays:
    values = run({fetches.feed: examples}, list(fetches.outputs.values()))
    return dict(zip(fetches.outputs, values, strict=True))


def _signature(signatures: Signatures, name: str) -> Any:
    try:
        return signatures[name]
    except KeyError:
        text = f'Serving signature key "{name}" not found.'
        raise ServingError(Code.FAILED_PRECONDITION, text) from None


def _feeds(definition: Any, inputs: Arrays) -> dict[str, NDArray[Any]]:
    """Return the value per tensor name, in the signature's order."""
    expected, defaults = definition.inputs, definition.defaults
    if len(inputs) != len(expected) and not (defaults and set(inputs) < set(expected)):
        raise invalid(
            f"input size does not match signature: {len(inputs)}!={len(expected)} "
            f"len({_braced(inputs)}) != len({_braced(expected)}). "
            f"Sent extra: {_braced(set(inputs) - set(expected))}. "
            f"Missing but required: {_braced(set(expected) - set(inputs))}."
        )
    feeds = {}
    for alias in sorted(expected):
        if alias in inputs:
            feeds[expected[alias].name] = inputs[alias]
        elif alias in defaults:
            feeds[expected[alias].name] = _default(alias, defaults[alias])
        else:
            raise invalid(
                f"Signature input alias: {alias}(feed name: {expected[alias].name}) not found in "
                "request and no default value provided. Inputs expected to be in the request "
                f"{_braced(inputs)}, or default input alias set: {','.join(sorted(defaults))}"
            )
    _check_types(expected, inputs)
    return feeds


def _default(alias: str, tensor: Any) -> NDArray[Any]:
    try:
        return from_proto(tensor)
    except ValueError as error:
        text = f"The signature's default value for {alias} cannot be used: {error}"
        raise ServingError(Code.FAILED_PRECONDITION, text) from error


def _check_types(expected: Any, inputs: Arrays) -> None:
    """Refuse an input of another type, in the words of tensorflow/core/framework/function.cc.

    Inputs are counted in the order of their tensors' names.
    """
    order = sorted(expected, key=lambda alias: expected[alias].name)
    for index, alias in enumerate(order):
        if alias not in inputs:
            continue
        have, want = dtypes.by_numpy(inputs[alias].dtype), expected[alias].dtype
        if have.number != want:
            raise invalid(
                f"Expects arg[{index}] to be {_type_name(want)} but {have.name} is provided"
            )


def _type_name(number: int) -> str:
    try:
        return dtypes.by_number(number).name
    except KeyError:
        return f"type {number}"


def _outputs(definition: Any, output_filter: Sequence[str]) -> dict[str, str]:
    """Return the tensor name per output alias."""
    wanted: dict[str, str] = {}
    for alias in output_filter or sorted(definition.outputs):
        if alias not in definition.outputs:
            raise invalid(
                f"output tensor alias not found in signature: {alias} "
                f"Outputs expected to be in the set {_braced(definition.outputs)}."
            )
        if alias in wanted:
            raise invalid(f"duplicate output tensor alias: {alias}")
        wanted[alias] = definition.outputs[alias].name
    return wanted


def _braced(names: Iterable[str]) -> str:
    return "{" + ",".join(sorted(names)) + "}"
