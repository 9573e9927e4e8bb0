"""Requests on plain values: no protobuf tensors, no JSON, no gRPC, no HTTP.

Source: tensorflow_serving/servables/tensorflow/predict_util.cc, get_model_metadata_impl.cc and
tensorflow_serving/model_servers/get_model_status_impl.cc, whose checks and texts these are.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

from numpy.typing import NDArray

from tfserve_kit.embedded import calls, claims, inference
from tfserve_kit.embedded.call import Call
from tfserve_kit.embedded.entries import Lease, VersionStatus
from tfserve_kit.embedded.manager import Manager
from tfserve_kit.embedded.metrics import RUNTIME_LATENCY, Metrics, micros_since
from tfserve_kit.embedded.model_config import check_models
from tfserve_kit.embedded.status import Code, ServingError, invalid


@dataclass(frozen=True, slots=True)
class ModelRef:
    """The model a request is for: its name, and a version or a label or neither."""

    name: str
    version: int | None = None
    label: str | None = None


@dataclass(frozen=True, slots=True)
class Predicted:
    """Outputs by alias, and the version and signature that made them."""

    version: int
    signature: str
    outputs: calls.Arrays


@dataclass(frozen=True, slots=True)
class Classified:
    """(label, score) per example and class, and the version and signature that made them."""

    version: int
    signature: str
    classes: Sequence[Sequence[tuple[bytes, float]]]


@dataclass(frozen=True, slots=True)
class Regressed:
    """A value per example, and the version and signature that made them."""

    version: int
    signature: str
    values: Sequence[float]


@dataclass(frozen=True, slots=True)
class InferenceTask:
    """One part of a multi-inference request."""

    model: ModelRef
    signature: str
    method_name: str


@dataclass(frozen=True, slots=True)
class Metadata:
    """A version's SignatureDef messages by name."""

    version: int
    signatures: Mapping[str, Any]


Examples = Callable[[], NDArray[Any]]


class Handlers:
    """What the server can be asked. Thread-safe.

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

    def predict(
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
            inputs: value per input alias; see `calls.predict`.
            output_filter: aliases of the outputs to compute; all if empty.
            call: how long the client waits, and its account; without limits if left out.

        Raises:
            ServingError: no such servable or signature, inputs that do not fit, or an error of
                the graph.
        """
        with self._lease(model) as lease:
            signatures, run = lease.servable.signatures, self._run(lease, "Predict", call)
            name, outputs = calls.predict(
                signatures,
                run,
                signature,
                inputs,
                output_filter,
                check_method=self._check_method_name,
            )
            return Predicted(lease.version, name, outputs)

    def metadata(self, model: ModelRef) -> Metadata:
        """Return a version's signatures.

        Raises:
            ServingError: NOT_FOUND, no such servable.
        """
        with self._lease(model) as lease:
            return Metadata(lease.version, lease.servable.signatures)

    def status(self, model: ModelRef) -> list[VersionStatus]:
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

    def classify(
        self,
        model: ModelRef,
        signature: str,
        examples: Examples,
        *,
        call: Call | None = None,
    ) -> Classified:
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
            tasks = [self._single(lease, inference.CLASSIFY, signature)]
            found: list[Classified] = self._inferred(lease, "Classify", tasks, examples, call)
            return found[0]

    def regress(
        self,
        model: ModelRef,
        signature: str,
        examples: Examples,
        *,
        call: Call | None = None,
    ) -> Regressed:
        """Run a regression signature; as `classify`."""
        with self._lease(model) as lease:
            tasks = [self._single(lease, inference.REGRESS, signature)]
            found: list[Regressed] = self._inferred(lease, "Regress", tasks, examples, call)
            return found[0]

    def multi_inference(
        self,
        tasks: Sequence[InferenceTask],
        examples: Examples,
        *,
        call: Call | None = None,
    ) -> list[Classified | Regressed]:
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
            checked = calls.several(
                lease.servable.signatures,
                _of_one_model(tasks, first.name),
                check_method=self._check_method_name,
            )
            return self._inferred(lease, None, checked, examples, call)

    def reload(self, configs: Sequence[Any], *, call: Call | None = None) -> None:
        """Replace the whole set of served models.

        Raises:
            ServingError: the configuration is refused, or a new model failed to load.
        """
        check_models(configs)
        self._manager.reload(configs, call=call)

    def _single(self, lease: Lease, method_name: str, signature: str) -> calls.Inference:
        return calls.single(
            lease.servable.signatures, method_name, signature, check_method=self._check_method_name
        )

    def _inferred(
        self,
        lease: Lease,
        api: str | None,
        tasks: Sequence[calls.Inference],
        examples: Examples,
        call: Call | None,
    ) -> list[Any]:
        """Return the Classified or Regressed of each task."""
        account = call.account if call else None
        results = calls.infer(self._run(lease, api, call), tasks, examples(), account)
        return [
            (Classified if task.method_name == inference.CLASSIFY else Regressed)(
                lease.version, task.signature, result
            )
            for task, result in zip(tasks, results, strict=True)
        ]

    def _run(self, lease: Lease, api: str | None, call: Call | None) -> calls.Run:
        """Return what runs a version's tensors and tells the metrics, if they keep such calls."""
        return partial(self._timed_run, lease, api, call)

    def _timed_run(
        self,
        lease: Lease,
        api: str | None,
        call: Call | None,
        feeds: calls.Arrays,
        fetches: Sequence[str],
    ) -> Sequence[NDArray[Any]]:
        started_ns = time.perf_counter_ns()
        values = lease.servable.run(feeds, fetches, call=call)
        if call:
            call.account.take(claims.of_arrays(values), "the outputs")
        if api:
            labels = (lease.model, api, "TF1")  # the official server's own name of its runtime
            self._metrics.observe(RUNTIME_LATENCY, micros_since(started_ns), labels)
        return values

    def _lease(self, model: ModelRef) -> AbstractContextManager[Lease]:
        return self._manager.lease(model.name, model.version, model.label)


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
