"""The data plane: what the server can be asked, on plain values; no bytes, JSON, gRPC or HTTP.

Source: tensorflow_serving/servables/tensorflow/multi_inference.cc, get_model_metadata_impl.cc and
tensorflow_serving/model_servers/get_model_status_impl.cc, whose checks and texts these are.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

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
from tfserve_kit.embedded.signatures import (
    CLASSIFY,
    REGRESS,
    Arrays,
    Inference,
    SignaturePlan,
    checked_task,
    checked_tasks,
    inference_feeds,
    inference_results,
    signature_of,
)
from tfserve_kit.embedded.status import Code, ServingError, invalid
from tfserve_kit.savedmodel import DEFAULT_SIGNATURE
from tfserve_kit.tensors import dtypes


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

    def all_inputs(self, requests: Sequence[Sent]) -> NDArray[Any]:
        """Return the only input of several such requests, copied [requests, ...]."""
        ((_, dtype, shape, begin),) = self.tensors
        end = begin + dtype.itemsize * math.prod(shape)
        numbers = b"".join([request[begin:end] for request in requests])
        return np.frombuffer(numbers, dtype).reshape(len(requests), *shape)

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


def _recipe(
    plan: SignaturePlan, known: KnownRequest, request: Sent, *, check_method: bool
) -> _Recipe | None:
    """Return how to run a request again; None where it leaves inputs out. Raises as `prepared`."""
    inputs = known.inputs(request)
    _, outputs = plan.prepared(inputs, known.output_filter, check_method=check_method)
    if inputs.keys() != plan.inputs.keys():
        return None
    tensors = {alias: rest for alias, *rest in known.tensors}
    feeds = tuple((name, *tensors[alias]) for alias, name in plan.feeds)
    return _Recipe(plan, feeds, tuple(outputs.values()), tuple(outputs))


class Predicted(NamedTuple):
    """Outputs by alias, and the version and signature that made them."""

    version: int
    signature: str
    outputs: Arrays


@dataclass(frozen=True, slots=True)
class PredictedTogether:
    """What `Predicted` says of several requests: outputs [requests, ...] by alias."""

    version: int
    signature: str
    outputs: Arrays

    @classmethod
    def of(cls, results: Sequence[Predicted | Exception]) -> Self | None:
        """Put some together; None if one failed, or they have different shapes."""
        found = [each for each in results if isinstance(each, Predicted)]
        if not found or len(found) < len(results):
            return None
        first = found[0]
        outputs = {}
        for alias, like in first.outputs.items():
            arrays = [each.outputs[alias] for each in found]
            if any(each.shape != like.shape or each.dtype != like.dtype for each in arrays):
                return None
            outputs[alias] = np.array(arrays)
        return cls(first.version, first.signature, outputs)

    def apart(self) -> list[Predicted]:
        """Return what came of each request."""
        return [
            Predicted(self.version, self.signature, dict(zip(self.outputs, values, strict=True)))
            for values in zip(*self.outputs.values(), strict=True)
        ]


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
                    signature_of(lease.servable.signatures, name)
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
    ) -> Sequence[Predicted | Exception] | PredictedTogether | None:
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
            signature, aliases = DEFAULT_SIGNATURE, lone.aliases
            joined = self._joined(lease, signature, aliases, lone.feed, arrays, lone.fetches)
            if joined:
                return joined
            started_ns = time.perf_counter_ns()
            runs = _runs(servable, [{lone.feed: array} for array in arrays], lone.fetches)
            took_us = micros_since(started_ns) / len(runs)
            return self._found(lease, signature, aliases, runs, accounts, took_us)

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
                recipe = known.recipe = _recipe(plan, known, asked[0][0], check_method=check_method)
                if recipe is None:
                    return None
            tensors, fetches, servable = recipe.feeds, recipe.fetches, lease.servable
            signature, aliases = known.signature, recipe.aliases
            if len(asked) > 1 and _is_elementwise(servable, tensors, fetches):
                arrays = known.all_inputs([request for request, _ in asked])
                joined = self._joined(lease, signature, aliases, tensors[0][0], arrays, fetches)
                if joined:
                    return joined.apart()
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
            accounts = accounts[: len(runs)]
            return self._found(lease, signature, aliases, runs, accounts, took_us) or None

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
        feeds, wanted = inference_feeds(tasks, rows)
        started_ns = time.perf_counter_ns()
        values = _begun(lease.servable, feeds, wanted, call)
        if isinstance(values, Waiting):
            values = await values
        account = call.account if call else None
        signature = tasks[0].signature
        self._note_run(lease, signature, api, account, values, micros_since(started_ns))
        by_name = dict(zip(wanted, values, strict=True))
        results = inference_results(tasks, by_name, len(rows), account)
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

    def _joined(
        self,
        lease: Lease,
        signature: str,
        aliases: Sequence[str],
        feed: str,
        inputs: NDArray[Any],
        fetches: Sequence[str],
    ) -> PredictedTogether | None:
        """Run a model for several requests as if they were one, if that comes to the same."""
        servable = lease.servable
        if not isinstance(servable, SessionServable) or len(inputs) == 1:
            return None
        started_ns = time.perf_counter_ns()
        values = servable.run_joined(feed, inputs, fetches)
        if values is None or ledger.cost_of_arrays([each[0] for each in values]):
            return None  # also what each account has to afford
        took_us = micros_since(started_ns) / len(inputs)
        self._observe(lease, signature, "Predict", took_us, len(inputs))
        outputs = dict(zip(aliases, values, strict=True))
        return PredictedTogether(lease.version, signature, outputs)

    def _found(
        self,
        lease: Lease,
        signature: str,
        aliases: Sequence[str],
        runs: Sequence[_Run],
        accounts: Sequence[Account],
        took_us: float,
    ) -> Sequence[Predicted | Exception]:
        """Return what came of runs, and tell the metrics of those of use: each took so long."""
        found = [
            _predicted(lease.version, signature, aliases, run, account)
            for run, account in zip(runs, accounts, strict=True)
        ]
        count = sum(type(each) is Predicted for each in found)
        if count:
            self._observe(lease, signature, "Predict", took_us, count)
        return found

    def _observe(
        self, lease: Lease, signature: str, api: str, took_us: float, times: int = 1
    ) -> None:
        self._metrics.observe(RUNTIME_LATENCY, took_us, (lease.model, api, _RUNTIME), times)
        labels = (lease.model, str(lease.version), signature)
        self._metrics.observe(VERSION_LATENCY, took_us, labels, times)

    def _lease(self, model: ModelRef) -> AbstractContextManager[Lease]:
        return self._manager.lease(model.name, model.version, model.label)


def _is_elementwise(
    servable: Servable, tensors: Sequence[Sequence[Any]], fetches: Sequence[str]
) -> bool:
    """Say whether a model may run for several requests as if they were one."""
    names = [name for name, *_ in tensors]
    return isinstance(servable, SessionServable) and servable.is_elementwise(names, fetches)


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
