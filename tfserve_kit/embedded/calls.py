"""What a request does with one loaded version: checks, feeds, fetches; pure but for the run.

Source: tensorflow_serving/servables/tensorflow/predict_util.cc, classifier.cc, regressor.cc and
multi_inference.cc, whose checks and texts these are.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from tfserve_kit.embedded import claims, inference
from tfserve_kit.embedded.ledger import Account
from tfserve_kit.embedded.status import Code, ServingError, invalid
from tfserve_kit.savedmodel import DEFAULT_SIGNATURE
from tfserve_kit.tensors import dtypes, from_proto

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Foreign:
    """A tensor that TensorFlow reads and numpy has no array for: no input can be one.

    Attributes:
        number: its DataType.
    """

    number: int


Signatures = Mapping[str, Any]
# `Servable.run`, or something around it: (value per tensor name, tensors to compute) -> values
Run = Callable[[Arrays, Sequence[str]], Sequence[NDArray[Any]]]


def predict(
    signatures: Signatures,
    run: Run,
    signature: str,
    inputs: Arrays,
    output_filter: Sequence[str] = (),
    *,
    check_method: bool = False,
) -> tuple[str, Arrays]:
    """Run a signature; see `Handlers.predict`.

    Args:
        signatures: SignatureDef messages of the version by name.
        run: computes its tensors.
        signature: as all that follows, see there.
        inputs: as above; a value that a client sent is asked for when its turn has come, and may
            be `Foreign`.
        output_filter: as above.
        check_method: insist on a method name of the three that are known.

    Returns:
        The signature's name and array per output alias.
    """
    name = signature or DEFAULT_SIGNATURE
    definition = _signature(signatures, name)
    if check_method and definition.method_name not in _METHODS:
        text = (
            f"Expected prediction signature method_name to be one of {{{', '.join(_METHODS)}}}. "
            f"Was: {definition.method_name}"
        )
        raise ServingError(Code.INTERNAL, text)
    feeds = _feeds(definition, inputs)
    outputs = _outputs(definition, output_filter)
    _check_types(definition.inputs, feeds)
    values = run(feeds, list(outputs.values()))
    return name, dict(zip(outputs, values, strict=True))


@dataclass(frozen=True, slots=True)
class Inference:
    """A checked classify or regress task: its signature's name, and what to feed and compute."""

    method_name: str
    signature: str
    fetches: inference.Fetches


_METHODS = (inference.PREDICT, inference.CLASSIFY, inference.REGRESS)
_FETCHES = {
    inference.CLASSIFY: inference.classification,
    inference.REGRESS: inference.regression,
}


def single(
    signatures: Signatures, method_name: str, signature: str, *, check_method: bool
) -> Inference:
    """Check a classify or regress request.

    Args:
        signatures: SignatureDef messages of the version by name.
        method_name: `inference.CLASSIFY` or `inference.REGRESS`.
        signature: its name; empty for the default.
        check_method: insist on the signature's method name.

    Raises:
        ServingError: no such signature, or it is of another kind.
    """
    name = signature or DEFAULT_SIGNATURE
    if name not in signatures:
        raise invalid(f"No signature was found with the name: {name}")
    fetches = _FETCHES[method_name](signatures[name], check_method=check_method)
    return Inference(method_name, name, fetches)


def several(
    signatures: Signatures, tasks: Iterable[tuple[str, str]], *, check_method: bool
) -> list[Inference]:
    """Check the tasks of a multi-inference request: each signature once, so the model bounds them.

    Args:
        signatures: as for `single`.
        tasks: (method name, signature's name or nothing) of each; may raise.
        check_method: as for `single`.

    Raises:
        ServingError: no such signature, one twice, another kind, or an unknown method.
    """
    checked: dict[str, Inference] = {}
    for method_name, signature in tasks:
        name = signature or DEFAULT_SIGNATURE
        if name in checked:
            raise invalid(f"Duplicate evaluation of signature: {name}")
        if name not in signatures:
            raise invalid(f"Requested signature not found in model graph: {name}")
        if method_name not in _FETCHES:
            text = f"Unsupported signature method_name: {method_name}"
            raise ServingError(Code.UNIMPLEMENTED, text)
        checked[name] = single(signatures, method_name, name, check_method=check_method)
    return list(checked.values())


def infer(
    run: Run,
    tasks: Sequence[Inference],
    examples: NDArray[Any],
    account: Account | None = None,
) -> list[Any]:
    """Run checked tasks on the same examples, all at once.

    Args:
        run: computes the version's tensors.
        tasks: what to run.
        examples: object [examples] of serialized tf.Example.
        account: charged with the results, and with what they become in an answer; None for none.

    Returns:
        Per task a list, for each example: of (label, score) per class, or its value.

    Raises:
        ServingError: the graph refused, or its outputs are none of that kind.
    """
    wanted = sorted({name for task in tasks for name in task.fetches.outputs.values()})
    feeds = dict.fromkeys(sorted({task.fetches.feed for task in tasks}), examples)
    values = dict(zip(wanted, run(feeds, wanted), strict=True))
    results: list[Any] = []
    for task in tasks:
        outputs = {alias: values[name] for alias, name in task.fetches.outputs.items()}
        if account is not None:
            account.take(claims.of_results(outputs.values()), "the results")
        result = inference.classes if task.method_name == inference.CLASSIFY else inference.values
        results.append(result(outputs, len(examples)))
    return results


def _signature(signatures: Signatures, name: str) -> Any:
    try:
        return signatures[name]
    except KeyError:
        text = f'Serving signature key "{name}" not found.'
        raise ServingError(Code.FAILED_PRECONDITION, text) from None


def _feeds(definition: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the value per tensor name, in the signature's order."""
    expected, defaults = definition.inputs, definition.defaults
    if len(inputs) > len(expected) or (len(inputs) < len(expected) and not defaults):
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
    if not set(inputs) <= set(expected):
        used = ",".join(sorted(set(inputs) & set(expected)))
        raise invalid(
            f"Inputs contains invalid name. Used request inputs: {used}, "
            f"request input: {','.join(sorted(inputs))}"
        )
    return feeds


def _default(alias: str, tensor: Any) -> NDArray[Any]:
    try:
        return from_proto(tensor)
    except ValueError as error:
        raise unreadable(alias) from error


def unreadable(alias: str) -> ServingError:
    """Return the error of an input that is no tensor."""
    return invalid(f"tensor parsing error: {alias}")


def _check_types(expected: Any, feeds: Mapping[str, Any]) -> None:
    """Refuse an input of another type, in the words of tensorflow/core/framework/function.cc.

    Inputs are counted in the order of their tensors' names.
    """
    wanted = {info.name: info.dtype for info in expected.values()}
    for index, name in enumerate(sorted(feeds)):
        value, want = feeds[name], wanted[name]
        is_foreign = isinstance(value, Foreign)
        have = value.number if is_foreign else dtypes.by_numpy(value.dtype).number
        if have != want:
            raise invalid(
                f"Expects arg[{index}] to be {dtypes.name_of(want)} "
                f"but {dtypes.name_of(have)} is provided"
            )
        if is_foreign:
            text = f"Tensors of type {dtypes.name_of(have)} cannot be sent to this server"
            raise ServingError(Code.UNIMPLEMENTED, text)


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
