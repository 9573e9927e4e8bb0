"""The data plane: what the server can be asked, on plain values; no bytes, JSON, gRPC or HTTP.

Source: tensorflow_serving/servables/tensorflow/predict_util.cc, classifier.cc, regressor.cc,
multi_inference.cc, get_model_metadata_impl.cc and
tensorflow_serving/model_servers/get_model_status_impl.cc, whose checks and texts these are.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tfserve_kit import protos
from tfserve_kit.embedded import ledger
from tfserve_kit.embedded.batching import BatchingServable, Waiting
from tfserve_kit.embedded.ledger import Account, Call, Sent
from tfserve_kit.embedded.manager import Lease, Manager, ServableStatus
from tfserve_kit.embedded.metrics import (
    RUNTIME_LATENCY,
    VERSION_LATENCY,
    Metrics,
    micros_since,
)
from tfserve_kit.embedded.servable import Servable, SessionServable
from tfserve_kit.embedded.settings import check_models
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


def classification_fetches(definition: Any, *, check_method: bool) -> Fetches:
    """Return how a signature is called for classify.

    Args:
        definition: a SignatureDef message.
        check_method: insist on its method name.

    Raises:
        ServingError: the signature is of another kind.
    """
    if check_method and definition.method_name != CLASSIFY:
        raise invalid(
            f"Expected classification signature method_name to be {CLASSIFY}. "
            f"Was: {definition.method_name}"
        )
    if len(definition.inputs) != 1:
        raise invalid("Expected one input Tensor.")
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
    """Return how a signature is called for regress; as `classification`."""
    if check_method and definition.method_name != REGRESS:
        raise invalid(
            f"Expected regression signature method_name to be {REGRESS}. "
            f"Was: {definition.method_name}"
        )
    if len(definition.inputs) != 1:
        raise invalid("Expected one input Tensor.")
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
    plan = SignaturePlan(_signature(signatures, name))
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
        lone: how it runs with its only input; None where it has several, or one that no array can
            be.
    """

    __slots__ = ("_aliases", "_definition", "_feeds", "_numpy", "_outputs", "inputs", "lone")

    def __init__(self, definition: Any) -> None:
        inputs, outputs = definition.inputs, definition.outputs
        self._definition = definition
        self.inputs: Mapping[str, Any] = dict(inputs)
        self._aliases = frozenset(inputs)
        self._feeds = [(alias, inputs[alias].name) for alias in sorted(inputs)]
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
            feeds = {name: inputs[alias] for alias, name in self._feeds}
        else:
            feeds = _feeds(definition, inputs)
        outputs = _outputs(definition, output_filter) if output_filter else self._outputs
        for name, value in feeds.items():
            if isinstance(value, Foreign) or value.dtype is not self._numpy[name]:
                _check_types(definition.inputs, feeds)
                break
        return feeds, outputs

    def recipe(
        self, known: "KnownRequest", request: Sent, *, check_method: bool
    ) -> "_Recipe | None":
        """Return how to run a request again; None where it leaves inputs out. Raises as above."""
        inputs = known.inputs(request)
        _, outputs = self.prepared(inputs, known.output_filter, check_method=check_method)
        if inputs.keys() != self._aliases:
            return None
        tensors = {alias: rest for alias, *rest in known.tensors}
        feeds = tuple((name, *tensors[alias]) for alias, name in self._feeds)
        return _Recipe(self, feeds, tuple(outputs.values()), tuple(outputs))


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
    feeds, wanted = _inference_feeds(tasks, examples)
    values = dict(zip(wanted, run(feeds, wanted), strict=True))
    return _inference_results(tasks, values, len(examples), account)


def _inference_feeds(
    tasks: Sequence[Inference], examples: NDArray[Any]
) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """Return the value per tensor to feed, and the tensors to compute."""
    wanted = sorted({name for task in tasks for name in task.outputs.values()})
    return dict.fromkeys(sorted({task.feed for task in tasks}), examples), wanted


def _inference_results(
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


class ModelRef(NamedTuple):
    """The model a request is for: its name, and a version or a label or neither."""

    name: str
    version: int | None = None
    label: str | None = None


@dataclass(slots=True, eq=False)
class KnownRequest:
    """A PredictRequest that only its numbers tell apart from others.

    Attributes:
        model: which model it is for.
        signature: name of the signature.
        output_filter: aliases of the outputs.
        tensors: alias, dtype, shape, and where the numbers begin, of each input.
        around: all other bytes: where they begin and end, and what they are.
        recipe: how a version runs it, see `Handlers.repeat`.
    """

    model: ModelRef
    signature: str
    output_filter: tuple[str, ...]
    tensors: tuple[tuple[str, np.dtype[Any], tuple[int, ...], int], ...]
    around: tuple[tuple[int, int, bytes], ...]
    recipe: "_Recipe | None" = None

    def inputs(self, request: Sent) -> dict[str, NDArray[Any]]:
        """Return the array per input alias of such a request; they share its memory."""
        return {
            alias: np.ndarray(shape, dtype, request, begin)
            for alias, dtype, shape, begin in self.tensors
        }

    def is_like(self, request: Sent) -> bool:
        """Say whether a request of the same length differs in its numbers only."""
        for begin, end, text in self.around:  # noqa: SIM110 (a generator takes twice the time)
            if request[begin:end] != text:
                return False
        return True


@dataclass(frozen=True, slots=True)
class _Recipe:
    """How a request is run again that differs from one before in its numbers only.

    Attributes:
        plan: that of the version.
        feeds: name, dtype, shape, and where the numbers begin, of each tensor to feed.
        fetches: names of the tensors to compute.
        aliases: what they are called in the answer.
    """

    plan: SignaturePlan
    feeds: tuple[tuple[str, np.dtype[Any], tuple[int, ...], int], ...]
    fetches: tuple[str, ...]
    aliases: tuple[str, ...]


class Predicted(NamedTuple):
    """Outputs by alias, and the version and signature that made them."""

    version: int
    signature: str
    outputs: Arrays


def sound(result: Predicted | Exception) -> Predicted:
    """Return what came of a request, or raise why nothing did."""
    if isinstance(result, Exception):
        raise result
    return result


class Inferred(NamedTuple):
    """What there is for each example, and the version and signature that made it.

    Of a classification (label, score) of each class, of a regression a number.
    """

    version: int
    signature: str
    rows: Sequence[Any]


@dataclass(frozen=True, slots=True)
class InferenceTask:
    """One part of a multi-inference request."""

    model: ModelRef
    signature: str
    method_name: str


Examples = Callable[[], NDArray[Any]]
# (dtype) -> the only inputs of some requests [requests, ...], None if they are no such array
Inputs = Callable[[dtypes.DType], NDArray[Any] | None]
_RUNTIME = "TF1"  # the official server's own name of it
# What a run came to, or why it failed.
_Run = Sequence[NDArray[Any]] | Exception


class Handlers:
    """What the server can be asked. Thread-safe.

    What runs a model is awaited: with batching it waits for others, and keeps no thread meanwhile.

    Args:
        manager: lends the models.
        metrics: told of every run of a model that succeeded.
        check_method_name: whether classify and regress insist on a signature's method name.
    """

    def __init__(
        self, manager: Manager, metrics: Metrics, *, check_method_name: bool = False
    ) -> None:
        self._manager = manager
        self._metrics = metrics
        self._check_method_name = check_method_name

    async def predict(
        self,
        model: ModelRef,
        signature: str,
        inputs: Mapping[str, Any],
        output_filter: Sequence[str] = (),
        *,
        call: Call | None = None,
    ) -> Predicted:
        """Run a signature.

        Args:
            model: which model.
            signature: its name; empty for `serving_default`.
            inputs: value per input alias; see `run_signature`.
            output_filter: aliases of the outputs to compute; all if empty.
            call: how long the client waits, and its account; without limits if left out.

        Raises:
            ServingError: no such servable or signature, inputs that do not fit, or an error of
                the graph.
        """
        name = signature or DEFAULT_SIGNATURE
        with self._manager.lease(model.name, model.version, model.label) as lease:
            plan = lease.plans.get(name)
            if plan is None:
                plan = lease.plans[name] = SignaturePlan(
                    _signature(lease.servable.signatures, name)
                )
            check_method = self._check_method_name
            feeds, outputs = plan.prepared(inputs, output_filter, check_method=check_method)
            started_ns = time.perf_counter_ns()
            values = _begun(lease.servable, feeds, list(outputs.values()), call)
            if isinstance(values, Waiting):
                values = await values
            took_us = micros_since(started_ns)
            account = call.account if call else None
            self._note_run(lease, name, "Predict", account, values, took_us)
            return Predicted(lease.version, name, dict(zip(outputs, values, strict=True)))

    def predict_at_once(
        self, model: ModelRef, inputs: Inputs, accounts: Sequence[Account]
    ) -> Sequence[Predicted | Exception] | None:
        """Do as `predict` with the default signature, at once, for some requests of one model.

        Step by step for all of them: what the processor has at hand for one step, tensorflow or
        Python, would be displaced by the next one.

        Args:
            model: which model.
            inputs: the only inputs of the requests.
            accounts: of each request, charged with the outputs.

        Returns:
            What came of each, or the error that `predict` would raise; None where that has to do
            it: for the first time, for several inputs, or as there is no array.

        Raises:
            ServingError: no such servable.
        """
        with self._manager.lease(*model) as lease:
            plan, servable = lease.plans.get(DEFAULT_SIGNATURE), lease.servable
            lone = plan.lone if plan else None
            if lone is None or isinstance(servable, BatchingServable):
                return None
            if self._check_method_name and not lone.has_known_method:
                return None
            arrays = inputs(lone.dtype)
            if arrays is None:
                return None
            started_ns = time.perf_counter_ns()
            runs = _runs(servable, [{lone.feed: array} for array in arrays], lone.fetches)
            took_us = micros_since(started_ns) / len(runs)
            found = [
                _predicted(lease.version, DEFAULT_SIGNATURE, lone.aliases, run, account)
                for run, account in zip(runs, accounts, strict=True)
            ]
            self._note_runs(lease, DEFAULT_SIGNATURE, found, took_us)
            return found

    def repeat(
        self, known: KnownRequest, asked: Sequence[tuple[Sent, Account]]
    ) -> Sequence[Predicted | Exception] | None:
        """Do as `predict`, at once, what only its numbers tell apart from a request before.

        Args:
            known: what is known of them.
            asked: the bytes of some requests, and their accounts, charged with the outputs.

        Returns:
            What came of each, or the error that `predict` would raise; of those of one batch, if
            they run in batches. None where that has to do it: for the first time, or with others.

        Raises:
            ServingError: no such servable, or its signature refuses such requests.
        """
        model, version, label = known.model
        with self._manager.lease(model, version, label) as lease:
            plan, recipe = lease.plans.get(known.signature), known.recipe
            if recipe is None or recipe.plan is not plan:
                if plan is None:
                    return None
                check_method = self._check_method_name
                recipe = known.recipe = plan.recipe(known, asked[0][0], check_method=check_method)
                if recipe is None:
                    return None
            tensors, fetches, servable = recipe.feeds, recipe.fetches, lease.servable
            version, signature, aliases = lease.version, known.signature, recipe.aliases
            feeds = [
                {
                    name: np.ndarray(shape, dtype, request, begin)
                    for name, dtype, shape, begin in tensors
                }
                for request, _ in asked
            ]
            accounts = [account for _, account in asked]
            runs: Sequence[_Run]
            started_ns = time.perf_counter_ns()
            if isinstance(servable, BatchingServable):
                runs = servable.run_here(feeds, fetches, accounts)
                took_us = micros_since(started_ns)  # each waits for all of its batch
            else:
                runs = _runs(servable, feeds, fetches)
                took_us = micros_since(started_ns) / len(runs)
            found = [
                _predicted(version, signature, aliases, run, account)
                for run, account in zip(runs, accounts, strict=False)
            ]
            self._note_runs(lease, signature, found, took_us)
            return found or None

    def inputs(self, model: ModelRef, signature: str) -> Mapping[str, Any] | None:
        """Return a signature's inputs by alias, as TensorInfo messages; None if there is no such.

        Raises:
            ServingError: NOT_FOUND, no such servable.
        """
        with self._lease(model) as lease:
            plan = lease.plans.get(signature)
            if plan is None and signature in lease.servable.signatures:
                plan = lease.plans[signature] = SignaturePlan(lease.servable.signatures[signature])
            return plan and plan.inputs

    def metadata(self, model: ModelRef) -> tuple[int, Mapping[str, Any]]:
        """Return a version's number, and its SignatureDef messages by name.

        Raises:
            ServingError: NOT_FOUND, no such servable.
        """
        with self._lease(model) as lease:
            return lease.version, lease.servable.signatures

    def status(self, model: ModelRef) -> list[ServableStatus]:
        """Return the state of a model's versions, or of one; a label is ignored.

        Raises:
            ServingError: NOT_FOUND, nothing is known of it.
        """
        found = self._manager.status(model.name)
        if model.version is not None:
            found = [status for status in found if status.number == model.version]
            what = f"version {model.version}"
        else:
            what = "any versions"
        if not found:
            raise ServingError(Code.NOT_FOUND, f"Could not find {what} of model {model.name}")
        return found

    async def classify(
        self,
        model: ModelRef,
        signature: str,
        examples: Examples,
        *,
        call: Call | None = None,
    ) -> Inferred:
        """Run a classification signature.

        Args:
            model: which model.
            signature: its name; empty for `serving_default`.
            examples: returns object [examples] of serialized tf.Example, or raises; asked after
                the signature was looked at.
            call: how long the client waits, and its account; without limits if left out.

        Raises:
            ServingError: no such servable or signature, or it is of another kind.
        """
        with self._lease(model) as lease:
            tasks = [self._single(lease, CLASSIFY, signature)]
            return (await self._inferred(lease, "Classify", tasks, examples, call))[0]

    async def regress(
        self,
        model: ModelRef,
        signature: str,
        examples: Examples,
        *,
        call: Call | None = None,
    ) -> Inferred:
        """Run a regression signature; as `classify`."""
        with self._lease(model) as lease:
            tasks = [self._single(lease, REGRESS, signature)]
            return (await self._inferred(lease, "Regress", tasks, examples, call))[0]

    async def multi_inference(
        self,
        tasks: Sequence[InferenceTask],
        examples: Examples,
        *,
        call: Call | None = None,
    ) -> list[Inferred]:
        """Run several classify and regress tasks of one model on the same examples.

        Args:
            tasks: what to run, one at least; the first one says which version.
            examples: returns object [examples] of serialized tf.Example, or raises; asked after
                the tasks were looked at.
            call: how long the client waits, and its account; without limits if left out.

        Raises:
            ServingError: the tasks name different models, a signature twice or an unknown method,
                or one fails.
        """
        first = tasks[0].model
        with self._lease(first) as lease:
            checked = checked_tasks(
                lease.servable.signatures,
                _of_one_model(tasks, first.name),
                check_method=self._check_method_name,
            )
            return await self._inferred(lease, None, checked, examples, call)

    def reload(self, configs: Sequence[Any], *, call: Call | None = None) -> None:
        """Replace the whole set of served models.

        Raises:
            ServingError: the configuration is refused, or a new model failed to load.
        """
        check_models(configs)
        self._manager.reload(configs, call=call)

    def _single(self, lease: Lease, method_name: str, signature: str) -> Inference:
        return checked_task(
            lease.servable.signatures, method_name, signature, check_method=self._check_method_name
        )

    async def _inferred(
        self,
        lease: Lease,
        api: str | None,
        tasks: Sequence[Inference],
        examples: Examples,
        call: Call | None,
    ) -> list[Inferred]:
        """Return what came of each task."""
        rows = examples()
        feeds, wanted = _inference_feeds(tasks, rows)
        started_ns = time.perf_counter_ns()
        values = _begun(lease.servable, feeds, wanted, call)
        if isinstance(values, Waiting):
            values = await values
        account = call.account if call else None
        signature = tasks[0].signature
        self._note_run(lease, signature, api, account, values, micros_since(started_ns))
        by_name = dict(zip(wanted, values, strict=True))
        results = _inference_results(tasks, by_name, len(rows), account)
        return [
            Inferred(lease.version, task.signature, result)
            for task, result in zip(tasks, results, strict=True)
        ]

    def _note_run(
        self,
        lease: Lease,
        signature: str,
        api: str | None,
        account: Account | None,
        values: Sequence[NDArray[Any]],
        took_us: float,
    ) -> None:
        """Charge the outputs, and tell the metrics of a run if they keep such calls."""
        if account:
            _charge(account, values)
        if api:
            self._observe(lease, signature, api, took_us)

    def _note_runs(
        self,
        lease: Lease,
        signature: str,
        found: Sequence[Predicted | Exception],
        took_us: float,
    ) -> None:
        """Tell the metrics of the runs of Predict that were of use: each took so long."""
        count = sum(type(each) is Predicted for each in found)
        if count:
            self._observe(lease, signature, "Predict", took_us, count)

    def _observe(
        self, lease: Lease, signature: str, api: str, took_us: float, times: int = 1
    ) -> None:
        self._metrics.observe(RUNTIME_LATENCY, took_us, (lease.model, api, _RUNTIME), times)
        labels = (lease.model, str(lease.version), signature)
        self._metrics.observe(VERSION_LATENCY, took_us, labels, times)

    def _lease(self, model: ModelRef) -> AbstractContextManager[Lease]:
        return self._manager.lease(model.name, model.version, model.label)


def _runs(servable: Servable, feeds: Sequence[Arrays], fetches: Sequence[str]) -> Sequence[_Run]:
    """Run a model for each of some requests, for several at once where it can be; never raises."""
    found: Sequence[_Run] = ()
    if isinstance(servable, SessionServable) and len(feeds) > 1:
        found = servable.run_together(feeds, fetches)
    return [*found, *(_run(servable, each, fetches) for each in feeds[len(found) :])]


def _run(servable: Servable, feeds: Arrays, fetches: Sequence[str]) -> _Run:
    try:
        return servable.run(feeds, fetches)
    except Exception as error:  # noqa: BLE001 (of one request among others)
        return error


def _charge(account: Account, values: Sequence[NDArray[Any]]) -> None:
    cost_bytes = ledger.cost_of_arrays(values)
    if cost_bytes:
        account.take(cost_bytes, "the outputs")


def _predicted(
    version: int,
    signature: str,
    aliases: Sequence[str],
    values: _Run,
    account: Account,
) -> Predicted | Exception:
    """Return what came of a run, charged to an account, or why nothing did."""
    if isinstance(values, Exception):
        return values
    try:
        _charge(account, values)
    except ServingError as error:
        return error
    return Predicted(version, signature, dict(zip(aliases, values, strict=True)))


def _begun(
    servable: Servable, feeds: Arrays, fetches: Sequence[str], call: Call | None
) -> Sequence[NDArray[Any]] | Waiting:
    """Return the values, or what to await for them."""
    if isinstance(servable, BatchingServable):
        return servable.begin(feeds, fetches, call)
    return servable.run(feeds, fetches, call=call)


def _of_one_model(tasks: Sequence[InferenceTask], model: str) -> Iterator[tuple[str, str]]:
    """Yield (method name, signature) of each task; raises where one is for another model."""
    for task in tasks:
        if not task.model.name:
            raise invalid("Found ModelSpec with an empty model name.")
        if task.model.name != model:
            raise invalid(
                "All ModelSpecs in a MultiInferenceRequest must access the same model name."
            )
        yield task.method_name, task.signature
