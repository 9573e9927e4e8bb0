"""The REST client: TensorFlow Serving's JSON API over HTTP."""

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import requests
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
from tfserve_kit.savedmodel import DEFAULT_SIGNATURE
from tfserve_kit.tensors import DType, TensorError
from tfserve_kit.tensors import json as tensor_json

_ERRORS: dict[int, tuple[type[RequestError], str]] = {
    400: (InvalidRequest, "compare the input with `tfkit metadata`"),
    404: (ModelNotFound, "`tfkit status` lists what the server has"),
    501: (InvalidRequest, "the REST API of this server cannot do it; gRPC may"),
    429: (ServerOverloaded, "send less at once, or repeat later"),
    503: (ServerOverloaded, "send less at once, or repeat later"),
    504: (DeadlineExceeded, "raise --rest_api_timeout_in_ms of the server"),
}


class RestClient(Closing):
    """Talks REST to one server. Thread-safe, as far as requests' sessions are.

    Args:
        url: `http://host:port`.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._session = requests.Session()
        self._session.trust_env = False  # a proxy for the web is none for the model server
        self._outputs: dict[Target, dict[str, DType]] = {}

    def predict(
        self,
        target: Target,
        inputs: Mapping[str, ArrayLike],
        *,
        output_filter: Sequence[str] = (),
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> Prediction:
        """Run a signature; see `Client.predict`. The output filter is applied to the answer."""
        dtypes = self._output_dtypes(target, timeout_s)
        started_s = time.perf_counter()
        try:
            document = tensor_json.column_request(inputs)
        except TypeError as error:
            raise InvalidRequest(f"cannot send the input: {error}") from error
        document["signature_name"] = target.signature or DEFAULT_SIGNATURE
        answer = self._json("POST", _path(target) + ":predict", target, timeout_s, document)
        try:
            outputs = tensor_json.answer(answer, dtypes)
        except TensorError as error:
            raise ServerFault(f"{self.url} sent an unreadable answer: {error}") from error
        if unknown := [alias for alias in output_filter if alias not in outputs]:
            text = f"{target} at {self.url} has no output {', '.join(unknown)}"
            raise InvalidRequest(text, remedy=f"its outputs are {', '.join(outputs)}")
        wanted = {alias: outputs[alias] for alias in output_filter or outputs}
        return Prediction(wanted, None, time.perf_counter() - started_s)

    def metadata(self, target: Target, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> Metadata:
        """Return the model's signatures; see `Client.metadata`."""
        answer = self._json("GET", _path(target) + "/metadata", target, timeout_s)
        try:
            spec = answer["model_spec"]
            definitions = protos.from_json("SignatureDefMap", answer["metadata"]["signature_def"])
            version = int(spec["version"])
        except (KeyError, TypeError, ValueError) as error:
            raise ServerFault(f"{self.url} sent unreadable metadata: {error!r}") from error
        return Metadata(version, savedmodel.signatures(definitions.signature_def))

    def status(
        self, target: Target, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> list[VersionStatus]:
        """Return the state of the model's versions; see `Client.status`."""
        answer = self._json("GET", _path(target), target, timeout_s)
        try:
            versions = {"model_version_status": answer["model_version_status"]}
            return version_statuses(protos.from_json("GetModelStatusResponse", versions))
        except (KeyError, TypeError, ValueError) as error:
            raise ServerFault(f"{self.url} sent an unreadable status: {error!r}") from error

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def _output_dtypes(self, target: Target, timeout_s: float) -> dict[str, DType]:
        """Return the outputs' types, which the answer does not tell; asked once for each target."""
        if target not in self._outputs:
            signatures = self.metadata(target, timeout_s=timeout_s).signatures
            name = target.signature or DEFAULT_SIGNATURE
            outputs = signatures[name].outputs if name in signatures else {}
            self._outputs[target] = {
                alias: spec.dtype for alias, spec in outputs.items() if spec.dtype is not None
            }
        return self._outputs[target]

    def _json(
        self, method: str, path: str, target: Target, timeout_s: float, document: Any = None
    ) -> Any:
        body = None if document is None else json.dumps(document).encode()
        try:
            response = self._session.request(method, self.url + path, data=body, timeout=timeout_s)
        except requests.Timeout as error:
            text = f"{target} at {self.url}: no answer within {timeout_s:g} s"
            raise DeadlineExceeded(text, remedy="raise --timeout") from error
        except requests.RequestException as error:
            raise ServerUnreachable(
                f"no model server answers at {self.url}: {error}",
                remedy="start one with `tfkit serve`, or give its address with --url",
            ) from error
        if not response.ok:
            raise self._failure(response, target)
        try:
            return json.loads(response.content)
        except ValueError as error:
            start = response.text[:80]
            raise ServerFault(f"{self.url} did not answer with JSON but with {start!r}") from error

    def _failure(self, response: requests.Response, target: Target) -> RequestError:
        try:
            details = json.loads(response.content)["error"]
        except (ValueError, KeyError, TypeError):
            details = response.text[:200].strip() or response.reason
        kind, remedy = _ERRORS.get(response.status_code, (ServerFault, "look at the server's log"))
        text = f"{target} at {self.url}: {details} (HTTP {response.status_code})"
        return kind(text, remedy=remedy)


def _path(target: Target) -> str:
    path = f"/v1/models/{quote(target.model, safe='')}"
    if target.label:
        return f"{path}/labels/{quote(target.label, safe='')}"
    return path if target.version is None else f"{path}/versions/{target.version}"
