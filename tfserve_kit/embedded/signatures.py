"""What a signature asks for and gives: how requests are checked against it, run and understood.

Source: tensorflow_serving/servables/tensorflow/predict_util.cc, classifier.cc, regressor.cc and
multi_inference.cc, whose checks and texts these are.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tfserve_kit import protos
from tfserve_kit.embedded import ledger
from tfserve_kit.embedded.ledger import Account
from tfserve_kit.embedded.status import Code, ServingError, invalid
from tfserve_kit.savedmodel import DEFAULT_SIGNATURE
from tfserve_kit.tensors import dtypes, from_proto

Arrays = Mapping[str, NDArray[Any]]

PREDICT = "tensorflow/serving/predict"
CLASSIFY = "tensorflow/serving/classify"
REGRESS = "tensorflow/serving/regress"
_INPUTS, _CLASSES, _SCORES, _OUTPUTS = "inputs", "classes", "scores", "outputs"


# Names of the tensors to feed the examples to, and to compute, by output alias.
Fetches = tuple[str, Mapping[str, str]]


def _check_kind(definition: Any, kind: str, method: str, *, check_method: bool) -> None:
    """Refuse a signature of another kind, or of several inputs."""
    if check_method and definition.method_name != method:
        raise invalid(
            f"Expected {kind} signature method_name to be {method}. Was: {definition.method_name}"
        )
    if len(definition.inputs) != 1:
        raise invalid("Expected one input Tensor.")


def classification_fetches(definition: Any, *, check_method: bool) -> Fetches:
    """Return how a signature is called for classify.

    Args:
        definition: a SignatureDef message.
        check_method: insist on its method name.

    Raises:
        ServingError: the signature is of another kind.
    """
    _check_kind(definition, "classification", CLASSIFY, check_method=check_method)
    if len(definition.outputs) not in {1, 2}:
        raise invalid(f"Expected one or two output Tensors, found {len(definition.outputs)}")
    if _INPUTS not in definition.inputs:
        raise invalid(
            f"No classification inputs found in SignatureDef: {protos.to_text(definition)}"
        )
    outputs = {
        alias: definition.outputs[alias].name
        for alias in (_CLASSES, _SCORES)
        if alias in definition.outputs
    }
    if not outputs:
        raise invalid(
            'Expected classification signature outputs to contain at least one of "classes" or '
            f'"scores". Signature was: {protos.to_text(definition)}'
        )
    if outputs.get(_CLASSES) == outputs.get(_SCORES):  # one tensor is taken for the classes alone
        del outputs[_SCORES]
    return definition.inputs[_INPUTS].name, outputs


def regression_fetches(definition: Any, *, check_method: bool) -> Fetches:
    """Return how a signature is called for regress; as `classification_fetches`."""
    _check_kind(definition, "regression", REGRESS, check_method=check_method)
    if len(definition.outputs) != 1:
        raise invalid("Expected one output Tensor.")
    for aliases, alias, what in (
        (definition.inputs, _INPUTS, "inputs"),
        (definition.outputs, _OUTPUTS, "outputs"),
    ):
        if alias not in aliases:
            raise invalid(
                f"No regression {what} found in SignatureDef: {protos.to_text(definition)}"
            )
    outputs = {_OUTPUTS: definition.outputs[_OUTPUTS].name}
    return definition.inputs[_INPUTS].name, outputs


def class_scores(outputs: Arrays, examples: int) -> list[list[tuple[bytes, float]]]:
    """Return (label, score) per example and class; a missing half is empty or 0.

    Args:
        outputs: `classes` string [examples, n] and/or `scores` float [examples, n].
        examples: how many there were.

    Raises:
        ServingError: an output has another type or shape.
    """
    checked = {
        alias: _checked(outputs[alias], alias, dtype, examples)
        for alias, dtype in ((_CLASSES, dtypes.STRING), (_SCORES, dtypes.by_name("float")))
        if alias in outputs
    }
    labels, scores = checked.get(_CLASSES), checked.get(_SCORES)
    if labels is not None and scores is not None and labels.shape != scores.shape:
        raise invalid(
            "Tensors class and score should match in dim_size(1). "
            f"Got {labels.shape[1]} vs. {scores.shape[1]}"
        )
    shape = next(iter(checked.values())).shape
    names = np.full(shape, b"", object) if labels is None else labels
    values = np.zeros(shape, np.float32) if scores is None else scores
    return [
        list(zip(labels_of_one, scores_of_one, strict=True))
        for labels_of_one, scores_of_one in zip(list(names), list(values), strict=True)
    ]


def _checked(array: NDArray[Any], alias: str, dtype: dtypes.DType, examples: int) -> NDArray[Any]:
    if array.ndim != 2:  # noqa: PLR2004 ([examples, classes])
        raise invalid(f"Expected Tensor shape: [batch_size num_classes] but got {_axes(array)}")
    have = dtypes.by_numpy(array.dtype)
    if have is not dtype:
        raise invalid(f"Expected {alias} Tensor of {dtype.enum_name}. Got: {have.enum_name}")
    if len(array) != examples:
        raise invalid(f"Expected {alias} output batch size of {examples}. Got: {len(array)}")
    return array


def regression_values(outputs: Arrays, examples: int) -> list[float]:
    """Return the value per example.

    Args:
        outputs: `outputs` float [examples] or [examples, 1].
        examples: how many there were.

    Raises:
        ServingError: the output has another type or shape.
    """
    array = outputs[_OUTPUTS]
    if not (array.ndim == 1 or (array.ndim == 2 and array.shape[1] == 1)):  # noqa: PLR2004
        raise invalid(
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got "
            f"{_axes(array)}"
        )
    if len(array) != examples:
        raise invalid(
            f"Input batch size did not match output batch size: {examples} vs. {len(array)}"
        )
    dtype = dtypes.by_numpy(array.dtype)
    if dtype.name != "float":
        raise invalid(f"Expected output Tensor of DT_FLOAT.  Got: {dtype.enum_name}")
    flat: list[float] = array.ravel().tolist()
    return flat


def _axes(array: NDArray[Any]) -> str:
    return "[" + ",".join(map(str, array.shape)) + "]"


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


def run_signature(
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
    plan = SignaturePlan(signature_of(signatures, name))
    feeds, outputs = plan.prepared(inputs, output_filter, check_method=check_method)
    values = run(feeds, list(outputs.values()))
    return name, dict(zip(outputs, values, strict=True))


class _Lone(NamedTuple):
    """How a signature of one input runs.

    Attributes:
        feed: name of the input's tensor.
        dtype: what it is to be.
        fetches: names of the tensors to compute.
        aliases: what they are called in the answer.
        has_known_method: whether its method name is one of the three that are known.
    """

    feed: str
    dtype: dtypes.DType
    fetches: tuple[str, ...]
    aliases: tuple[str, ...]
    has_known_method: bool

    @classmethod
    def of(cls, definition: Any, outputs: Mapping[str, str]) -> "_Lone | None":
        """Return how it runs, None where it has several inputs, or one that no array can be."""
        infos = list(definition.inputs.values())
        if len(infos) != 1 or dtypes.numpy_of(infos[0].dtype) is None:
            return None
        dtype, is_known = dtypes.by_number(infos[0].dtype), definition.method_name in _METHODS
        return cls(infos[0].name, dtype, tuple(outputs.values()), tuple(outputs), is_known)


class SignaturePlan:
    """How Predict runs a signature: what can be worked out once per version is.

    Args:
        definition: its SignatureDef message.

    Attributes:
        inputs: its inputs by alias, as TensorInfo messages.
        feeds: alias of each input and name of its tensor, in the order of the aliases.
        lone: how it runs with its only input; None where it has several, or one that no array can
            be.
    """

    __slots__ = ("_aliases", "_definition", "_numpy", "_outputs", "feeds", "inputs", "lone")

    def __init__(self, definition: Any) -> None:
        inputs, outputs = definition.inputs, definition.outputs
        self._definition = definition
        self.inputs: Mapping[str, Any] = dict(inputs)
        self._aliases = frozenset(inputs)
        self.feeds = [(alias, inputs[alias].name) for alias in sorted(inputs)]
        self._numpy = {info.name: dtypes.numpy_of(info.dtype) for info in inputs.values()}
        self._outputs = {alias: outputs[alias].name for alias in sorted(outputs)}
        self.lone = _Lone.of(definition, self._outputs)

    def prepared(
        self, inputs: Arrays, output_filter: Sequence[str] = (), *, check_method: bool
    ) -> tuple[Arrays, Mapping[str, str]]:
        """Check inputs; arguments and errors as of `run_signature`.

        Returns:
            Value per tensor name, and name of the tensor to compute per output alias.
        """
        definition = self._definition
        if check_method and definition.method_name not in _METHODS:
            text = (
                f"Expected prediction signature method_name to be one of {{{', '.join(_METHODS)}}}."
                f" Was: {definition.method_name}"
            )
            raise ServingError(Code.INTERNAL, text)
        if inputs.keys() == self._aliases:
            feeds = {name: inputs[alias] for alias, name in self.feeds}
        else:
            feeds = _feeds(definition, inputs)
        outputs = _outputs(definition, output_filter) if output_filter else self._outputs
        for name, value in feeds.items():
            if isinstance(value, Foreign) or value.dtype is not self._numpy[name]:
                _check_types(definition.inputs, feeds)
                break
        return feeds, outputs


@dataclass(frozen=True, slots=True)
class Inference:
    """A checked classify or regress task: its signature's name, and what to feed and compute."""

    method_name: str
    signature: str
    feed: str
    outputs: Mapping[str, str]


_METHODS = (PREDICT, CLASSIFY, REGRESS)
_FETCHES = {
    CLASSIFY: classification_fetches,
    REGRESS: regression_fetches,
}


def checked_task(
    signatures: Signatures, method_name: str, signature: str, *, check_method: bool
) -> Inference:
    """Check a classify or regress request.

    Args:
        signatures: SignatureDef messages of the version by name.
        method_name: `CLASSIFY` or `REGRESS`.
        signature: its name; empty for the default.
        check_method: insist on the signature's method name.

    Raises:
        ServingError: no such signature, or it is of another kind.
    """
    name = signature or DEFAULT_SIGNATURE
    if name not in signatures:
        raise invalid(f"No signature was found with the name: {name}")
    fetches = _FETCHES[method_name](signatures[name], check_method=check_method)
    return Inference(method_name, name, *fetches)


def checked_tasks(
    signatures: Signatures, tasks: Iterable[tuple[str, str]], *, check_method: bool
) -> list[Inference]:
    """Check the tasks of a multi-inference request: each signature once, so the model bounds them.

    Args:
        signatures: as for `checked_task`.
        tasks: (method name, signature's name or nothing) of each; may raise.
        check_method: as for `checked_task`.

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
        checked[name] = checked_task(signatures, method_name, name, check_method=check_method)
    return list(checked.values())


def run_inference(
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
    feeds, wanted = inference_feeds(tasks, examples)
    values = dict(zip(wanted, run(feeds, wanted), strict=True))
    return inference_results(tasks, values, len(examples), account)


def inference_feeds(
    tasks: Sequence[Inference], examples: NDArray[Any]
) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """Return the value per tensor to feed, and the tensors to compute."""
    wanted = sorted({name for task in tasks for name in task.outputs.values()})
    return dict.fromkeys(sorted({task.feed for task in tasks}), examples), wanted


def inference_results(
    tasks: Sequence[Inference], values: Arrays, examples: int, account: Account | None
) -> list[Any]:
    """Return what `run_inference` does, from the value per tensor."""
    results: list[Any] = []
    for task in tasks:
        outputs = {alias: values[name] for alias, name in task.outputs.items()}
        if account is not None:
            account.take(ledger.cost_of_results(outputs.values()), "the results")
        result = class_scores if task.method_name == CLASSIFY else regression_values
        results.append(result(outputs, examples))
    return results


def signature_of(signatures: Signatures, name: str) -> Any:
    """Return a signature by its name.

    Raises:
        ServingError: there is none.
    """
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
    """Return the tensor name per output alias that is asked for."""
    wanted: dict[str, str] = {}
    for alias in output_filter:
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
