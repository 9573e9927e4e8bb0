"""The gRPC API as a pure function: (method, request bytes) to (code, details, response bytes).

Source: tensorflow_serving/model_servers/prediction_service_impl.cc, model_service_impl.cc and
tensorflow_serving/servables/tensorflow/predict_util.cc.
"""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import lru_cache
from itertools import takewhile
from typing import Any, NamedTuple

from tfserve_kit import protos
from tfserve_kit.embedded import ledger, messages
from tfserve_kit.embedded.batching import completed
from tfserve_kit.embedded.handlers import (
    Handlers,
    InferenceTask,
    Inferred,
    ModelRef,
    Predicted,
    sound,
)
from tfserve_kit.embedded.ledger import Account, Call, Sent
from tfserve_kit.embedded.limits import UNCOUNTED_BYTES
from tfserve_kit.embedded.messages import KnownRequests, PredictInputs, status_message
from tfserve_kit.embedded.metrics import Metrics
from tfserve_kit.embedded.signatures import CLASSIFY
from tfserve_kit.embedded.status import Code, encoded, invalid, told
from tfserve_kit.tensors import predict_response

_OK = Code.OK  # members of an enumeration take long to find
_UNNAMED = "ModelSpec has no name specified."
_HEALTH_CHECK = "/grpc.health.v1.Health/Check"
# The methods whose requests are counted.
_PREDICT = "Predict"
_COUNTED = frozenset({_PREDICT, "Classify", "Regress"})
_LONGEST_SERVICE_BYTES = 200
_HEALTHY_SERVICES = frozenset({"", "ModelService", "PredictionService"})


class GrpcAnswer(NamedTuple):
    """A gRPC answer: the serialized response, or a code and its details.

    In the details halves of characters stand for bytes that are no UTF-8, as `surrogateescape` has
    it.
    """

    code: Code = Code.OK
    details: str = ""
    body: bytes = b""


class GrpcSurface:
    """Answers gRPC requests through the handlers. Thread-safe.

    Args:
        handlers: what computes the answers.
        metrics: told of every Predict, Classify and Regress, as in the official server.
        as_content: send numeric outputs as `tensor_content` instead of typed fields.
        health: offer grpc.health.v1.Health/Check; like the official server's it says SERVING from
            the start, whatever the models do.
    """

    def __init__(
        self,
        handlers: Handlers,
        metrics: Metrics,
        *,
        as_content: bool = False,
        health: bool = False,
    ) -> None:
        self._handlers = handlers
        self._metrics = metrics
        self._health = health
        self._as_content = as_content
        self._known = KnownRequests()
        methods: dict[str, Callable[[Sent, Any, Call], Awaitable[bytes]]] = {
            "Predict": self._predict,
            "GetModelMetadata": self._metadata,
            "GetModelStatus": self._status,
            "Classify": self._classify,
            "Regress": self._regress,
            "MultiInference": self._multi_inference,
            "HandleReloadConfigRequest": self._reload,
        }
        self._methods = {protos.METHODS[name].path: (name, run) for name, run in methods.items()}

    def answer(self, path: str, request: Sent, call: Call | None = None) -> GrpcAnswer:
        """Answer one request, in this thread; see `begin`."""
        return completed(self.begin(path, request, call))

    async def begin(self, path: str, request: Sent, call: Call | None = None) -> GrpcAnswer:
        """Answer one request; never raises.

        Args:
            path: full method name, such as `/tensorflow.serving.PredictionService/Predict`.
            request: the serialized request message.
            call: how long the client will wait, and its account; without limits if left out.
        """
        if path == _HEALTH_CHECK and self._health:
            return _health(request)
        method = self._methods.get(path)
        if method is None:
            return GrpcAnswer(Code.UNIMPLEMENTED)
        name, run = method
        started_ns = time.perf_counter_ns()
        call = call or Call.unbounded()
        account = call.account
        held_bytes, model = account.held_bytes, ""
        try:
            if len(request) > UNCOUNTED_BYTES:
                account.take(ledger.cost_of_message(name, request), "the message")
            known = self._known.find(request) if name == _PREDICT else None
            if known:
                inputs, asked = known.inputs(request), known.model
                model = asked.name
                body = await self._predicted(
                    asked, known.signature, inputs, known.output_filter, call
                )
            else:
                kind = protos.message_class(protos.METHODS[name].request)
                message = kind.FromString(bytes(request))
                if name in _COUNTED:
                    model = message.model_spec.name
                body = await run(request, message, call)
            answer, status = GrpcAnswer(_OK, "", body), "OK"
        except protos.DecodeError:
            account.keep(held_bytes)
            return GrpcAnswer(Code.INTERNAL)
        except Exception as error:  # noqa: BLE001 (whoever asks must get an answer)
            answer = _refusal(error, path)
            status = answer.code.name
        if account.held_bytes:
            account.keep(held_bytes + len(answer.body))
        if name in _COUNTED:
            self._metrics.count_request(model, name, "GRPC", status, started_ns)
        return answer

    def repeat(self, asked: Sequence[tuple[Sent, Account]]) -> Sequence[GrpcAnswer]:
        """Answer Predicts that only their numbers tell apart from one before; never raises.

        The same as `begin`, in a fraction of the time.

        Args:
            asked: serialized request messages of one length, and their accounts, charged as those
                of calls.

        Returns:
            The answers of the first ones, as many as are alike; none where `begin` has to answer
            the first.
        """
        known = self._known.find(asked[0][0])
        if known is None:
            return ()
        started_ns, name = time.perf_counter_ns(), known.model.name
        request, account = asked[0]
        is_large = len(request) > UNCOUNTED_BYTES  # each of them has to be afforded
        others = () if is_large else takewhile(lambda each: known.is_like(each[0]), asked[1:])
        alike = [asked[0], *others]
        held_bytes = [account.held_bytes for _, account in alike]
        results: Sequence[Predicted | Exception] | None
        try:
            if is_large:
                account.take(ledger.cost_of_message(_PREDICT, request), "the message")
            results = self._handlers.repeat(known, alike)
        except Exception as error:  # noqa: BLE001 (whoever asks must get an answer)
            results = [error] * len(alike)
        if results is None:
            account.keep(held_bytes[0])
            return ()
        answers = [
            self._told(name, result, account, before_bytes)
            for result, (_, account), before_bytes in zip(results, alike, held_bytes, strict=False)
        ]
        statuses = ["OK" if each.code is _OK else each.code.name for each in answers]
        self._metrics.count_requests(name, _PREDICT, "GRPC", statuses, started_ns)
        return answers

    def _told(
        self, model: str, result: Predicted | Exception, account: Account, held_bytes: int
    ) -> GrpcAnswer:
        """Return the answer for what came of a Predict; the account keeps its bytes at most."""
        try:
            answer = GrpcAnswer(_OK, "", self._response(model, sound(result), account))
        except Exception as error:  # noqa: BLE001 (whoever asks must get an answer)
            answer = _refusal(error, _PREDICT)
        if account.held_bytes:
            account.keep(held_bytes + len(answer.body))
        return answer

    async def _predict(self, sent: Sent, request: Any, call: Call) -> bytes:
        model = _model(request)
        inputs = PredictInputs(request, call.account)
        signature = request.model_spec.signature_name
        body = await self._predicted(model, signature, inputs, request.output_filter, call)
        self._known.learn(sent, request, model)
        return body

    async def _predicted(
        self,
        model: ModelRef,
        signature: str,
        inputs: Mapping[str, Any],
        output_filter: Sequence[str],
        call: Call,
    ) -> bytes:
        found = await self._handlers.predict(model, signature, inputs, output_filter, call=call)
        return self._response(model.name, found, call.account)

    def _response(self, model: str, found: Predicted, account: Account) -> bytes:
        version, signature, outputs = found
        cost_bytes = ledger.cost_of_answer(outputs.values(), as_text=not self._as_content)
        if cost_bytes:
            account.take(cost_bytes, "the answer")
        spec = _encoded_spec(model, version, signature)
        return predict_response(outputs, spec, as_content=self._as_content)

    async def _metadata(self, sent: Sent, request: Any, call: Call) -> bytes:
        del sent, call
        _require_spec(request)
        if not request.metadata_field:
            raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
        for name in request.metadata_field:
            if name != "signature_def":
                raise invalid(f"Metadata field {name} is not supported")
        model = _model(request)
        version, definitions = self._handlers.metadata(model)
        response = protos.GetModelMetadataResponse()
        response.model_spec.name = model.name
        response.model_spec.version.value = version
        signatures = protos.SignatureDefMap(signature_def=definitions)
        response.metadata["signature_def"].Pack(signatures)
        return _serialized(response)

    async def _status(self, sent: Sent, request: Any, call: Call) -> bytes:
        del sent, call
        _require_spec(request)
        response = protos.GetModelStatusResponse()
        for status in self._handlers.status(_ref(request.model_spec)):
            response.model_version_status.append(status_message(status))
        return _serialized(response)

    async def _classify(self, sent: Sent, request: Any, call: Call) -> bytes:
        del sent
        return await self._infer(
            request, call, self._handlers.classify, protos.ClassificationResponse()
        )

    async def _regress(self, sent: Sent, request: Any, call: Call) -> bytes:
        del sent
        return await self._infer(request, call, self._handlers.regress, protos.RegressionResponse())

    async def _infer(
        self,
        request: Any,
        call: Call,
        handler: Callable[..., Awaitable[Inferred]],
        response: Any,
    ) -> bytes:
        model = _model(request)
        found = await handler(
            model,
            request.model_spec.signature_name,
            lambda: messages.examples_from_input(request.input, call.account),
            call=call,
        )
        _fill_spec(response.model_spec, model, found)
        _fill_result(response.result, found.rows)
        return _serialized(response)

    async def _multi_inference(self, sent: Sent, request: Any, call: Call) -> bytes:
        del sent
        if not (request.tasks and request.tasks[0].model_spec.name):
            raise invalid(_UNNAMED)
        tasks = [
            InferenceTask(_ref(task.model_spec), task.model_spec.signature_name, task.method_name)
            for task in request.tasks
        ]
        results = await self._handlers.multi_inference(
            tasks, lambda: messages.examples_from_input(request.input, call.account), call=call
        )
        response = protos.MultiInferenceResponse()
        for task, found in zip(tasks, results, strict=True):
            result = response.results.add()
            _fill_spec(result.model_spec, tasks[0].model, found)
            classified = task.method_name == CLASSIFY
            _fill_result(
                result.classification_result if classified else result.regression_result,
                found.rows,
            )
        return _serialized(response)

    async def _reload(self, sent: Sent, request: Any, call: Call) -> bytes:
        del sent
        if request.config.WhichOneof("config") != "model_config_list":
            raise invalid(
                "ServerModelConfig type not supported by HandleReloadConfigRequest. Only "
                "ModelConfigList is currently supported"
            )
        before = {name: self._metrics.first(name) for name in request.metric_names}
        self._handlers.reload(list(request.config.model_config_list.config), call=call)
        response = protos.ReloadConfigResponse()
        response.status.SetInParent()
        for name, value in before.items():
            increase = self._metrics.first(name) - value
            response.metric.add(name=name, int64_value_increase=increase)
        return _serialized(response)


def _refusal(error: Exception, what: str) -> GrpcAnswer:
    refusal = told(error, what)
    text = encoded(refusal.message, errors="surrogateescape")
    return GrpcAnswer(refusal.code, text.decode("utf-8", "surrogateescape"))


def _serialized(message: Any) -> bytes:
    content: bytes = message.SerializeToString()
    return content


@lru_cache(maxsize=64)
def _encoded_spec(name: str, version: int, signature: str) -> bytes:
    """Return the ModelSpec of an answer; most answers repeat it."""
    spec = protos.ModelSpec(name=name, version={"value": version}, signature_name=signature)
    encoded: bytes = spec.SerializeToString()
    return encoded


def _fill_spec(spec: Any, model: ModelRef, found: Inferred) -> None:
    spec.name = model.name
    spec.version.value = found.version
    spec.signature_name = found.signature


def _fill_result(result: Any, rows: Sequence[Any]) -> None:
    if isinstance(result, protos.RegressionResult):
        for value in rows:
            result.regressions.add(value=value)
        return
    for classes in rows:
        classifications = result.classifications.add()
        for label, score in classes:
            classifications.classes.add(label=label.decode("utf-8", "replace"), score=score)


def _health(request: Sent) -> GrpcAnswer:
    """Answer grpc.health.v1.Health/Check: field 1 of the request is the service's name.

    Source: grpc/src/cpp/server/health/default_health_check_service.cc.
    """
    try:
        name = protos.message_class("google.protobuf.StringValue").FromString(bytes(request)).value
    except protos.DecodeError:
        name = None
    if name is None or len(name.encode()) > _LONGEST_SERVICE_BYTES:
        return GrpcAnswer(Code.INVALID_ARGUMENT, "could not parse request")
    if name not in _HEALTHY_SERVICES:
        return GrpcAnswer(Code.NOT_FOUND, "service name unknown")
    return GrpcAnswer(body=b"\x08\x01")  # status: SERVING


def _require_spec(request: Any) -> None:
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")


def _model(request: Any) -> ModelRef:
    _require_spec(request)
    if not request.model_spec.name:
        raise invalid(_UNNAMED)
    return _ref(request.model_spec)


def _ref(spec: Any) -> ModelRef:
    choice = spec.WhichOneof("version_choice")
    return ModelRef(
        spec.name,
        spec.version.value if choice == "version" else None,
        spec.version_label if choice == "version_label" else None,
    )
