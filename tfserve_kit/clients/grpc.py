"""The gRPC protocol as pure functions: requests to bytes, bytes to results, codes to errors."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np

from tfserve_kit import protos, savedmodel
from tfserve_kit.clients import server_messages
from tfserve_kit.clients.protocol import Answer, Exchange, GrpcRequest, Inferred, Outcome, Reply
from tfserve_kit.clients.results import (
    MAX_ABOUT_BYTES,
    MAX_SIGNATURES,
    Classification,
    LabelScore,
    Metadata,
    Regression,
    Target,
    VersionStatus,
    require_about,
    version_statuses,
)
from tfserve_kit.errors import (
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    RequestError,
    ServerFault,
    ServerOverloaded,
)
from tfserve_kit.savedmodel import Signature
from tfserve_kit.tensors import TensorError, from_proto, predict_request

T = TypeVar("T")

_ERRORS: dict[str, tuple[type[RequestError], str]] = {
    "INVALID_ARGUMENT": (InvalidRequest, "compare the input with `tfkit metadata`"),
    "FAILED_PRECONDITION": (InvalidRequest, "`tfkit metadata` lists the signatures"),
    "OUT_OF_RANGE": (InvalidRequest, "compare the input with `tfkit metadata`"),
    "NOT_FOUND": (ModelNotFound, server_messages.NAMES),
    "DEADLINE_EXCEEDED": (DeadlineExceeded, "raise --timeout"),
    "RESOURCE_EXHAUSTED": (ServerOverloaded, "send fewer requests at once, or retry later"),
    "CANCELLED": (ServerFault, "retry; if the client was closed meanwhile, create another"),
    "UNAUTHENTICATED": (InvalidRequest, server_messages.LOG_IN),
    "PERMISSION_DENIED": (InvalidRequest, server_messages.LOG_IN),
    "UNIMPLEMENTED": (
        InvalidRequest,
        "check that this is a model server's gRPC port, usually 8500",
    ),
}
# Codes that grpcio gives to answers that are not gRPC.
_FROM_ELSEWHERE = frozenset({"UNKNOWN", "UNIMPLEMENTED"})
_CHECK_PORT = "check that this is a model server's gRPC port, usually 8500"
_METHOD_NAMES = {"classify": "tensorflow/serving/classify", "regress": "tensorflow/serving/regress"}


class GrpcProtocol:
    """TensorFlow Serving's PredictionService and ModelService; see `ServerProtocol`.

    Args:
        url: the server, as errors name it.
    """

    needs_signature = False
    takes_defaults = True

    def __init__(self, url: str) -> None:
        self.url = url
        self._predict_response = protos.PredictResponse

    def predict(
        self,
        target: Target,
        inputs: Mapping[str, Any],
        output_filter: Sequence[str],
        signature: Signature | None,
    ) -> Exchange[Answer]:
        """Ask for outputs; see `ServerProtocol.predict`."""
        del signature
        try:
            body = predict_request(inputs, _spec_bytes(target), output_filter)
        except (TypeError, UnicodeEncodeError) as error:
            raise InvalidRequest(
                f"cannot send the input: {error}",
                remedy="give numbers, text or bytes of the type that `tfkit metadata` shows",
            ) from error
        return Exchange(
            GrpcRequest("Predict", body),
            lambda answer: self._outputs(answer, output_filter),
            target,
        )

    def classify(self, target: Target, examples: Sequence[Any]) -> Exchange[Classification]:
        """Ask for classes; see `ServerProtocol.classify`."""
        request = protos.ClassificationRequest(model_spec=_spec(target), input=_input(examples))
        return self._call("Classify", request, target, _classification)

    def regress(self, target: Target, examples: Sequence[Any]) -> Exchange[Regression]:
        """Ask for values; see `ServerProtocol.regress`."""
        request = protos.RegressionRequest(model_spec=_spec(target), input=_input(examples))
        return self._call("Regress", request, target, _regression)

    def multi_inference(
        self, target: Target, tasks: Mapping[str, str], examples: Sequence[Any]
    ) -> Exchange[dict[str, Inferred]]:
        """Ask several signatures; see `ServerProtocol.multi_inference`."""
        request = protos.MultiInferenceRequest(input=_input(examples))
        for signature, verb in tasks.items():
            spec = protos.ModelSpec.FromString(_spec(target).SerializeToString())
            spec.signature_name = signature
            request.tasks.add(model_spec=spec, method_name=_METHOD_NAMES[verb])
        return self._call(
            "MultiInference", request, target, lambda answer: _inferred(answer, tasks)
        )

    def metadata(self, target: Target) -> Exchange[Metadata]:
        """Ask for the signatures; see `ServerProtocol.metadata`."""
        request = protos.GetModelMetadataRequest(
            model_spec=_spec(target), metadata_field=["signature_def"]
        )
        return self._call("GetModelMetadata", request, target, _metadata, most=MAX_ABOUT_BYTES)

    def status(self, target: Target) -> Exchange[list[VersionStatus]]:
        """Ask for the versions; see `ServerProtocol.status`."""
        request = protos.GetModelStatusRequest(model_spec=_spec(target))
        return self._call(
            "GetModelStatus", request, target, version_statuses, most=MAX_ABOUT_BYTES, is_probe=True
        )

    def reload(self, config: Any) -> Exchange[None]:
        """Replace the configuration; see `ServerProtocol.reload`."""
        request = protos.ReloadConfigRequest(config=config)
        about = Target("the new configuration")
        return self._call("HandleReloadConfigRequest", request, about, lambda _: None)

    def error(self, outcome: Outcome, target: Target, timeout_s: float) -> RequestError:
        """Return what a code means; see `ServerProtocol.error`."""
        code = outcome.status if isinstance(outcome, Reply) else "UNKNOWN"
        details = server_messages.shortened(outcome.text or "(no details)")
        if code == "UNAVAILABLE" and not server_messages.is_full_queue(details):
            return server_messages.unreachable(self.url, details)
        if code == "UNKNOWN" and server_messages.is_cut_off(details):
            return server_messages.unreachable(self.url, details)
        kind, remedy = _ERRORS.get(code, (ServerFault, "look at the server's log (`tfkit logs`)"))
        if code == "UNAVAILABLE":
            kind, remedy = _ERRORS["RESOURCE_EXHAUSTED"]
        if code == "DEADLINE_EXCEEDED":
            details = f"no answer within {timeout_s:g} s"
        if code == "RESOURCE_EXHAUSTED" and server_messages.is_message_too_large(details):
            kind, remedy = InvalidRequest, "send fewer rows at once, or raise max_answer_bytes"
        if code in _FROM_ELSEWHERE and (told := server_messages.explained(self.url, details)):
            details, remedy = told
        if kind is ModelNotFound:
            details = f"{server_messages.NOT_THERE}: {details}"
        remedy = server_messages.remedy(details) or remedy
        return kind(f"{target} at {self.url}: {details} ({code})", remedy=remedy)

    def _call(
        self,
        method: str,
        request: Any,
        target: Target,
        read: Callable[[Any], T],
        *,
        most: int | None = None,
        is_probe: bool = False,
    ) -> Exchange[T]:
        response = protos.message_class(protos.METHODS[method].response)

        def read_body(body: bytes) -> T:
            try:
                require_about("bytes", len(body), most or len(body))
                return read(response.FromString(body))
            except (protos.DecodeError, ValueError, KeyError) as error:
                raise self._unreadable(error) from error

        return Exchange(
            GrpcRequest(method, request.SerializeToString()), read_body, target, is_probe
        )

    def _outputs(self, body: bytes, wanted: Sequence[str]) -> Answer:
        try:
            answer = self._predict_response.FromString(body)
            outputs = {
                alias: from_proto(tensor, whole=True) for alias, tensor in answer.outputs.items()
            }
        except (protos.DecodeError, TensorError) as error:
            raise self._unreadable(error) from error
        if missing := [alias for alias in wanted if alias not in outputs]:
            raise self._unreadable(f"it lacks the outputs {missing}")
        if not outputs:
            raise self._unreadable("it has no outputs")
        return outputs, answer.model_spec.version.value

    def _unreadable(self, error: Exception | str) -> ServerFault:
        return ServerFault(
            f"{self.url} sent an unreadable answer: {server_messages.shortened(str(error))}",
            remedy=_CHECK_PORT,
        )


@lru_cache(maxsize=256)
def _spec(target: Target) -> Any:
    """Return the ModelSpec of a target; calls mostly repeat it, and nobody changes it."""
    spec = protos.ModelSpec(name=target.model, signature_name=target.signature)
    if target.label:
        spec.version_label = target.label
    elif target.version is not None:
        spec.version.value = target.version
    return spec


@lru_cache(maxsize=256)
def _spec_bytes(target: Target) -> bytes:
    spec: bytes = _spec(target).SerializeToString()
    return spec


def _input(examples: Sequence[Any]) -> Any:
    return protos.Input(example_list={"examples": examples})


def _classification(answer: Any) -> Classification:
    classes = tuple(
        tuple(LabelScore(each.label, each.score) for each in row.classes)
        for row in answer.result.classifications
    )
    return Classification(classes, answer.model_spec.version.value, 0.0)


def _regression(answer: Any) -> Regression:
    values = np.array([each.value for each in answer.result.regressions], np.float32)
    return Regression(values, answer.model_spec.version.value, 0.0)


def _inferred(answer: Any, tasks: Mapping[str, str]) -> dict[str, Inferred]:
    """Return the result of each task; they come in the order of the tasks."""
    found: dict[str, Inferred] = {}
    for (signature, verb), result in zip(tasks.items(), answer.results, strict=True):
        if verb == "classify":
            message = protos.ClassificationResponse(
                model_spec=result.model_spec, result=result.classification_result
            )
            found[signature] = _classification(message)
        else:
            message = protos.RegressionResponse(
                model_spec=result.model_spec, result=result.regression_result
            )
            found[signature] = _regression(message)
    return found


def _metadata(answer: Any) -> Metadata:
    signatures = protos.SignatureDefMap()
    if "signature_def" not in answer.metadata or not answer.metadata["signature_def"].Unpack(
        signatures
    ):
        raise ValueError("its metadata holds no signatures")
    require_about("signatures", len(signatures.signature_def), MAX_SIGNATURES)
    return Metadata(
        answer.model_spec.version.value, savedmodel.parse_signatures(signatures.signature_def)
    )
