"""The REST protocol as pure functions: requests to JSON, JSON to results, statuses to errors.

Source: tensorflow/serving's docs, api_rest.md, and tensorflow_serving/util/json_tensor.cc.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from tfserve_kit import protos, savedmodel
from tfserve_kit.clients import server_messages
from tfserve_kit.clients.inputs import to_json
from tfserve_kit.clients.protocol import Answer, Exchange, Inferred, Loss, Lost, Outcome
from tfserve_kit.clients.results import (
    MAX_ABOUT_BYTES,
    MAX_SIGNATURES,
    MAX_VERSIONS,
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
    ServerUnreachable,
    UsageError,
)
from tfserve_kit.http.messages import HttpRequest
from tfserve_kit.savedmodel import DEFAULT_SIGNATURE, Signature
from tfserve_kit.tensors import TensorError
from tfserve_kit.tensors import json as tensor_json

T = TypeVar("T")

_ERRORS: dict[str, tuple[type[RequestError], str]] = {
    "400": (InvalidRequest, "compare the input with `tfkit metadata`"),
    "404": (ModelNotFound, server_messages.NAMES),
    "501": (InvalidRequest, f"this server's REST API cannot do it: {server_messages.USE_GRPC}"),
    "401": (InvalidRequest, server_messages.LOG_IN),
    "403": (InvalidRequest, server_messages.LOG_IN),
    "413": (InvalidRequest, "send fewer rows at once"),
    "502": (ServerFault, "a proxy answers, but not the server behind it: check both"),
    "429": (ServerOverloaded, "send fewer requests at once, or retry later"),
    "503": (ServerOverloaded, "send fewer requests at once, or retry later"),
    "504": (DeadlineExceeded, "raise --rest_api_timeout_in_ms of the server"),
}
# What an answer that is JSON, but not the answer, makes the readers below stumble over.
_SHAPELESS = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
_CHECK_PORT = "check that this is a model server's REST port, usually 8501"
_BYTES = (
    "use gRPC, or export the output under a name that ends in _bytes: only such outputs are "
    "written in base64 over REST"
)


class RestProtocol:
    """TensorFlow Serving's REST API; see `ServerProtocol`.

    Args:
        url: the server, as errors name it.
    """

    needs_signature = True  # answers name neither types nor, if there is one, the output
    takes_defaults = False

    def __init__(self, url: str) -> None:
        self.url = url

    def predict(
        self,
        target: Target,
        inputs: Mapping[str, Any],
        output_filter: Sequence[str],
        signature: Signature | None,
    ) -> Exchange[Answer]:
        """Ask for outputs; the filter is applied to the answer, for REST requests have none."""
        if not inputs:
            text = f"cannot send {target} a request without inputs over REST"
            raise InvalidRequest(text, remedy=server_messages.USE_GRPC)
        for alias, value in inputs.items():
            if 0 in (shape := np.shape(value))[:-1]:  # [] is all that JSON has for it
                text = f"cannot send the input {alias!r}: REST cannot carry the shape {list(shape)}"
                raise InvalidRequest(text, remedy=server_messages.USE_GRPC)
        try:
            columns = tensor_json.to_text(inputs)
        except TypeError as error:
            which = next((f" {each!r}" for each in inputs if np.iscomplexobj(inputs[each])), "")
            raise InvalidRequest(
                f"cannot send the input{which}: {str(error).removesuffix('; use gRPC')}",
                remedy=server_messages.USE_GRPC,
            ) from error
        name = json.dumps(target.signature or DEFAULT_SIGNATURE).encode()
        body = b'{"signature_name":%b,"inputs":%b}' % (name, columns)
        outputs = signature.outputs if signature else {}
        dtypes = {alias: spec.dtype for alias, spec in outputs.items() if spec.dtype is not None}

        def chosen(found: dict[str, NDArray[Any]]) -> Answer:
            if unknown := [alias for alias in output_filter if alias not in found]:
                text = f"{target} at {self.url} has no output {', '.join(unknown)}"
                raise InvalidRequest(text, remedy=f"its outputs are {', '.join(found)}")
            return {alias: found[alias] for alias in output_filter or found}, None

        def read(document: Any) -> Answer:
            return chosen(tensor_json.answer(document, dtypes))

        call = self._call("POST", _path(target) + ":predict", target, read, body)

        def read_body(data: bytes) -> Answer:
            found = tensor_json.read_columns(data, dtypes)
            return call.read(data) if found is None else chosen(found)

        return call._replace(read=read_body)

    def classify(self, target: Target, examples: Sequence[Any]) -> Exchange[Classification]:
        """Ask for classes; see `ServerProtocol.classify`."""

        def read(document: Any) -> Classification:
            rows = (
                tuple(LabelScore(str(label), float(score)) for label, score in row)
                for row in document["results"]
            )
            return Classification(tuple(rows), None, 0.0)

        body = _examples(target, examples)
        return self._call("POST", _path(target) + ":classify", target, read, body)

    def regress(self, target: Target, examples: Sequence[Any]) -> Exchange[Regression]:
        """Ask for values; see `ServerProtocol.regress`."""

        def read(document: Any) -> Regression:
            with np.errstate(over="ignore"):  # what is too large for float32 is infinite
                values = np.array(list(map(float, document["results"])), np.float32)
            return Regression(values, None, 0.0)

        body = _examples(target, examples)
        return self._call("POST", _path(target) + ":regress", target, read, body)

    def multi_inference(
        self, target: Target, tasks: Mapping[str, str], examples: Sequence[Any]
    ) -> Exchange[dict[str, Inferred]]:
        """Refuse: the REST API has no such call."""
        del target, tasks, examples
        self._grpc_only("multi_inference")

    def metadata(self, target: Target) -> Exchange[Metadata]:
        """Ask for the signatures; see `ServerProtocol.metadata`."""

        def read(document: Any) -> Metadata:
            spec = document["model_spec"]
            named = document["metadata"]["signature_def"]
            require_about("signatures", len(named["signature_def"]), MAX_SIGNATURES)
            definitions = protos.from_json("SignatureDefMap", named)
            return Metadata(
                int(spec["version"]), savedmodel.parse_signatures(definitions.signature_def)
            )

        return self._call("GET", _path(target) + "/metadata", target, read)

    def status(self, target: Target) -> Exchange[list[VersionStatus]]:
        """Ask for the versions; see `ServerProtocol.status`."""

        def read(document: Any) -> list[VersionStatus]:
            versions = {"model_version_status": document["model_version_status"]}
            require_about("versions", len(versions["model_version_status"]), MAX_VERSIONS)
            return version_statuses(protos.from_json("GetModelStatusResponse", versions))

        return self._call("GET", _path(target), target, read, is_probe=True)

    def reload(self, config: Any) -> Exchange[None]:
        """Refuse: the REST API has no such call."""
        del config
        self._grpc_only("reload")

    def error(self, outcome: Outcome, target: Target, timeout_s: float) -> RequestError:
        """Return what a status means, or that there was none; see `ServerProtocol.error`."""
        if isinstance(outcome, Lost):
            return self._lost(outcome, target, timeout_s)
        try:
            details = tensor_json.read_json(outcome.body)["error"]
        except _SHAPELESS:
            details = outcome.body[:800].decode("utf-8", "replace")[:200].strip() or outcome.text
        kind, remedy = _ERRORS.get(
            outcome.status, (ServerFault, "look at the server's log (`tfkit logs`)")
        )
        if shown := server_messages.page(outcome.body):
            kind = ServerFault if kind is ModelNotFound else kind
            details, remedy = shown, server_messages.page_remedy(outcome.status)
        details = server_messages.shortened(str(details))
        if shown and (told := server_messages.explained(self.url, details)):
            details, remedy = told
        if kind is ModelNotFound:
            details = f"{server_messages.NOT_THERE}: {details}"
        remedy = server_messages.remedy(details) or remedy
        text = f"{target} at {self.url}: {details} (HTTP {outcome.status})"
        return kind(text, remedy=remedy)

    def _lost(self, outcome: Lost, target: Target, timeout_s: float) -> RequestError:
        if outcome.how is Loss.LATE:
            text = f"{target} at {self.url}: no answer within {timeout_s:g} s"
            return DeadlineExceeded(text, remedy="raise --timeout")
        if outcome.how is Loss.TOO_LARGE:
            text = f"{target} at {self.url}: {outcome.text}"
            return InvalidRequest(text, remedy="send fewer rows at once, or raise max_answer_bytes")
        if server_messages.explained(self.url, outcome.text):
            return server_messages.unreachable(self.url, outcome.text)
        if outcome.how is Loss.GARBLED:
            return ServerFault(
                f"{self.url} sent an unreadable answer: {outcome.text}",
                remedy=_CHECK_PORT,
            )
        if outcome.how is Loss.BROKEN:
            return ServerUnreachable(
                f"{target} at {self.url}: the connection ended before the whole answer was there: "
                f"{outcome.text}",
                remedy=f"look at the server's log (`tfkit logs`); {_CHECK_PORT}",
            )
        return server_messages.unreachable(self.url, outcome.text)

    def _call(
        self,
        verb: str,
        path: str,
        target: Target,
        read: Callable[[Any], T],
        body: bytes | None = None,
        *,
        is_probe: bool = False,
    ) -> Exchange[T]:
        most = MAX_ABOUT_BYTES if verb == "GET" else None

        def read_body(data: bytes) -> T:
            if most and len(data) > most:
                size = f"{len(data):,} bytes of metadata, more than the {most:,} allowed"
                raise ServerFault(f"{self.url} sent {size}", remedy=_CHECK_PORT)
            try:
                document = tensor_json.read_json(data)
            except (ValueError, RecursionError) as error:
                if _is_binary(data):
                    text = f"{self.url} answered with bytes that are not UTF-8 in a text output"
                    raise ServerFault(text, remedy=_BYTES) from error
                start = data[:320].decode("utf-8", "replace")[:80]
                shown = server_messages.page(data)
                text = f"{self.url} did not answer with JSON but with {shown or repr(start)}"
                remedy = server_messages.page_remedy("200") if shown else _CHECK_PORT
                raise ServerFault(text, remedy=remedy) from error
            try:
                return read(document)
            except _SHAPELESS as error:
                said = str(error) if isinstance(error, TensorError) else repr(error)
                text = f"{self.url} sent an unreadable answer: {server_messages.shortened(said)}"
                raise ServerFault(text, remedy=_CHECK_PORT) from error

        return Exchange(HttpRequest(verb, path, body), read_body, target, is_probe)

    def _grpc_only(self, name: str) -> NoReturn:
        raise UsageError(
            f"{name} is not available over REST, and {self.url} is a REST address",
            remedy="give the address of the server's gRPC port: grpc://HOST:8500, for example",
        )


def _is_binary(data: bytes) -> bool:
    """Say whether an answer is JSON, but for strings that are not UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return data.lstrip()[:1] == b"{"
    return False


def _path(target: Target) -> str:
    path = f"/v1/models/{quote(target.model, safe='')}"
    if target.label:
        return f"{path}/labels/{quote(target.label, safe='')}"
    return path if target.version is None else f"{path}/versions/{target.version}"


def _examples(target: Target, examples: Sequence[Any]) -> bytes:
    document = {
        "signature_name": target.signature or DEFAULT_SIGNATURE,
        "examples": [to_json(example) for example in examples],
    }
    return json.dumps(document).encode()
