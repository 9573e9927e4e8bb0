"""The gRPC API as a pure function: (method, request bytes) to (code, details, response bytes).

Source: tensorflow_serving/model_servers/prediction_service_impl.cc, model_service_impl.cc and
tensorflow_serving/servables/tensorflow/predict_util.cc.
"""

import logging
from dataclasses import dataclass
from typing import Any

from tfserve_kit import protos
from tfserve_kit.embedded.handlers import Handlers, ModelRef
from tfserve_kit.embedded.rest_surface import status_message
from tfserve_kit.embedded.status import Code, ServingError, invalid
from tfserve_kit.tensors import from_proto, to_proto

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Answer:
    """A gRPC answer: the serialized response, or a code and its details."""

    code: Code = Code.OK
    details: str = ""
    body: bytes = b""


class GrpcSurface:
    """Answers gRPC requests through the handlers. Thread-safe.

    Args:
        handlers: what computes the answers.
        as_content: send numeric outputs as `tensor_content` instead of typed fields.
    """

    def __init__(self, handlers: Handlers, *, as_content: bool = False) -> None:
        self._handlers = handlers
        self._as_content = as_content
        self._methods = {
            "Predict": self._predict,
            "GetModelMetadata": self._metadata,
            "GetModelStatus": self._status,
        }

    def answer(self, path: str, request: bytes) -> Answer:
        """Answer one request; never raises.

        Args:
            path: full method name, such as `/tensorflow.serving.PredictionService/Predict`.
            request: the serialized request message.
        """
        name = path.rpartition("/")[2]
        method = protos.METHODS.get(name)
        if method is None or method.path != path or name not in self._methods:
            return Answer(Code.UNIMPLEMENTED)
        try:
            message = protos.message_class(method.request).FromString(request)
        except protos.DecodeError:
            return Answer(Code.INTERNAL)
        try:
            return Answer(body=self._methods[name](message).SerializeToString())
        except ServingError as error:
            return Answer(error.code, error.message)
        except Exception as error:  # noqa: BLE001 (whoever asks must get an answer)
            _log.exception("%s failed", path)
            return Answer(Code.INTERNAL, f"{type(error).__name__}: {error}")

    def _predict(self, request: Any) -> Any:
        model = _model(request)
        inputs = {}
        for alias, tensor in request.inputs.items():
            try:
                inputs[alias] = from_proto(tensor)
            except ValueError as error:  # a TensorError, or more dimensions than numpy knows
                raise invalid(f"tensor parsing error: {alias}") from error
        result = self._handlers.predict(
            model, request.model_spec.signature_name, inputs, request.output_filter
        )
        response = protos.PredictResponse()
        response.model_spec.name = model.name
        response.model_spec.version.value = result.version
        response.model_spec.signature_name = result.signature
        for alias, array in result.outputs.items():
            response.outputs[alias].CopyFrom(to_proto(array, as_content=self._as_content))
        return response

    def _metadata(self, request: Any) -> Any:
        if not request.metadata_field:
            raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
        for name in request.metadata_field:
            if name != "signature_def":
                raise invalid(f"Metadata field {name} is not supported")
        model = _model(request)
        found = self._handlers.metadata(model)
        response = protos.GetModelMetadataResponse()
        response.model_spec.name = model.name
        response.model_spec.version.value = found.version
        signatures = protos.SignatureDefMap(signature_def=found.signatures)
        response.metadata["signature_def"].Pack(signatures)
        return response

    def _status(self, request: Any) -> Any:
        response = protos.GetModelStatusResponse()
        for status in self._handlers.status(_model(request)):
            response.model_version_status.append(status_message(status))
        return response


def _model(request: Any) -> ModelRef:
    spec = request.model_spec
    if not spec.name:
        raise invalid("Missing ModelSpec")
    choice = spec.WhichOneof("version_choice")
    return ModelRef(
        spec.name,
        spec.version.value if choice == "version" else None,
        spec.version_label if choice == "version_label" else None,
    )
