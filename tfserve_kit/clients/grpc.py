"""The gRPC client: TensorFlow Serving's own protocol, without tensorflow."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import grpc
from numpy.typing import ArrayLike

from tfserve_kit import protos, savedmodel
from tfserve_kit.clients.base import (
    DEFAULT_TIMEOUT_S,
    Closing,
    Metadata,
    Prediction,
    Target,
    VersionStatus,
    version_statuses,
)
from tfserve_kit.errors import (
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    RequestError,
    ServerFault,
    ServerOverloaded,
    ServerUnreachable,
)
from tfserve_kit.tensors import TensorError, from_proto, predict_request

_OPTIONS = [
    # The server accepts any size; grpcio's own limit of 4 MiB on answers is too small for tensors.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # A proxy for the web is none for the model server.
    ("grpc.enable_http_proxy", 0),
]

_ERRORS: dict[Any, tuple[type[RequestError], str]] = {
    grpc.StatusCode.INVALID_ARGUMENT: (InvalidRequest, "compare the input with `tfkit metadata`"),
    grpc.StatusCode.FAILED_PRECONDITION: (InvalidRequest, "`tfkit metadata` lists the signatures"),
    grpc.StatusCode.OUT_OF_RANGE: (InvalidRequest, "compare the input with `tfkit metadata`"),
    grpc.StatusCode.NOT_FOUND: (ModelNotFound, "`tfkit status` lists what the server has"),
    grpc.StatusCode.DEADLINE_EXCEEDED: (DeadlineExceeded, "raise --timeout"),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (ServerOverloaded, "send less at once, or repeat later"),
    grpc.StatusCode.UNIMPLEMENTED: (InvalidRequest, "is this a model server's gRPC port?"),
}


class GrpcClient(Closing):
    """Talks gRPC to one server. Thread-safe.

    Args:
        address: `host:port`.
    """

    def __init__(self, address: str) -> None:
        self.url = f"grpc://{address}"
        self._channel = grpc.insecure_channel(address, options=_OPTIONS)
        self._calls = {
            name: self._channel.unary_unary(method.path) for name, method in protos.METHODS.items()
        }

    def predict(
        self,
        target: Target,
        inputs: Mapping[str, ArrayLike],
        *,
        output_filter: Sequence[str] = (),
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> Prediction:
        """Run a signature; see `Client.predict`."""
        started_s = time.perf_counter()
        try:
            request = predict_request(inputs, _spec(target), output_filter)
        except TypeError as error:
            raise InvalidRequest(f"cannot send the input: {error}") from error
        answer = protos.PredictResponse.FromString(
            self._call("Predict", request, target, timeout_s)
        )
        try:
            outputs = {alias: from_proto(tensor) for alias, tensor in answer.outputs.items()}
        except TensorError as error:
            raise ServerFault(f"{self.url} sent an unreadable tensor: {error}") from error
        return Prediction(outputs, answer.model_spec.version.value, time.perf_counter() - started_s)

    def metadata(self, target: Target, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> Metadata:
        """Return the model's signatures; see `Client.metadata`."""
        request = protos.GetModelMetadataRequest(
            model_spec=_spec(target), metadata_field=["signature_def"]
        )
        body = self._call("GetModelMetadata", request.SerializeToString(), target, timeout_s)
        answer = protos.GetModelMetadataResponse.FromString(body)
        signatures = protos.SignatureDefMap()
        answer.metadata["signature_def"].Unpack(signatures)
        return Metadata(
            answer.model_spec.version.value, savedmodel.signatures(signatures.signature_def)
        )

    def status(
        self, target: Target, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> list[VersionStatus]:
        """Return the state of the model's versions; see `Client.status`."""
        request = protos.GetModelStatusRequest(model_spec=_spec(target))
        body = self._call("GetModelStatus", request.SerializeToString(), target, timeout_s)
        return version_statuses(protos.GetModelStatusResponse.FromString(body))

    def reload(self, config: Any, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Replace the whole set of served models; returns when each new name can answer.

        Args:
            config: a ModelServerConfig message.
            timeout_s: deadline, in seconds.

        Raises:
            RequestError: the server refuses the configuration, or a new model fails to load.
        """
        request = protos.ReloadConfigRequest(config=config)
        target = Target("the new configuration")
        self._call("HandleReloadConfigRequest", request.SerializeToString(), target, timeout_s)

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def _call(self, name: str, request: bytes, target: Target, timeout_s: float) -> bytes:
        try:
            body: bytes = self._calls[name](request, timeout=timeout_s)
        except grpc.RpcError as error:
            _raise(error, self.url, target, timeout_s)
        return body


def _spec(target: Target) -> Any:
    spec = protos.ModelSpec(name=target.model, signature_name=target.signature)
    if target.label:
        spec.version_label = target.label
    elif target.version is not None:
        spec.version.value = target.version
    return spec


def _raise(error: Any, url: str, target: Target, timeout_s: float) -> NoReturn:
    code, details = error.code(), error.details() or "(no details)"
    if code is grpc.StatusCode.UNAVAILABLE and "batching queue" not in details:
        raise ServerUnreachable(
            f"no model server answers at {url}: {details}",
            remedy="start one with `tfkit serve`, or give its address with --url",
        ) from error
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        details = f"no answer within {timeout_s:g} s"
    kind, remedy = _ERRORS.get(code, (ServerFault, "look at the server's log"))
    raise kind(f"{target} at {url}: {details} ({code.name})", remedy=remedy) from error
