"""The REST API as a pure function: (method, path, body) to (status, headers, body).

Source: tensorflow_serving/model_servers/http_rest_api_handler.cc (routes) and
http_rest_api_util.cc (status codes).
"""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any
from urllib.parse import unquote_to_bytes

from tfserve_kit import protos
from tfserve_kit.embedded import json_writer, ledger
from tfserve_kit.embedded.handlers import Handlers, ModelRef
from tfserve_kit.embedded.json_process import LargeJson
from tfserve_kit.embedded.ledger import BudgetExceeded, Call
from tfserve_kit.embedded.messages import status_message
from tfserve_kit.embedded.metrics import Metrics
from tfserve_kit.embedded.status import Code, ServingError, invalid, told
from tfserve_kit.repository.versions import MAX_VERSION

JSON = {"Content-Type": "application/json"}
HTML = {"Content-Type": "text/html; charset=ISO-8859-1"}

_HTTP_STATUS = {
    Code.OK: 200,
    Code.CANCELLED: 499,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.UNAUTHENTICATED: 401,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400,
    Code.ABORTED: 409,
    Code.OUT_OF_RANGE: 400,
    Code.UNIMPLEMENTED: 501,
    Code.UNAVAILABLE: 503,
}

_PREFIX = re.compile(r"/v1/", re.IGNORECASE)
_ORIGIN = re.compile(r"https?://")
_VERSION = r"(?:/(?i:versions)/([0-9]+)|/(?i:labels)/([^/:]+))?"
_CALL = re.compile(rf"/(?i:v1/models)/([^/:]+){_VERSION}:(classify|regress|predict)")
_STATUS = re.compile(rf"/(?i:v1/models)(?:/([^/:]+))?{_VERSION}(/(?i:metadata))?")
_ROUTES = {"POST": _CALL, "GET": _STATUS}

_CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "POST, GET",
    "Access-Control-Allow-Headers": "Content-Type",
}
_PAGES = {
    400: "Bad Request",
    404: "Not Found",
    408: "Request Timeout",
    413: "Request Entity Too Large",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP answer. `close` asks the transport to close the connection after it."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=lambda: JSON)
    close: bool = False


def page(status: int) -> Reply:
    """Return the HTML page that the official server's HTTP library answers with."""
    title = _PAGES[status]
    html = (
        f"<HTML><HEAD>\n<TITLE>{status} {title}</TITLE>\n</HEAD><BODY>\n"
        f"<H1>{title}</H1>\n</BODY></HTML>\n"
    )
    return Reply(status, html.encode(), {"Content-Type": "text/html"}, close=True)


def timed_out() -> Reply:
    """Return the answer to a request that took too long."""
    error = ServingError(Code.DEADLINE_EXCEEDED, "Timed out waiting for notification")
    return _failure(error)


class RestSurface:
    """Answers REST requests through the handlers. Thread-safe.

    Args:
        handlers: what computes the answers.
        metrics: told of every request for a model.
        cors: let pages of any origin read the answers.
        metrics_path: URL path of the Prometheus page, None for none.
    """

    def __init__(
        self,
        handlers: Handlers,
        metrics: Metrics,
        *,
        cors: bool = False,
        metrics_path: str | None = None,
    ) -> None:
        self._handlers = handlers
        self._metrics = metrics
        self._cors = cors
        self._metrics_path = metrics_path
        self._json = LargeJson()

    def stop(self) -> None:
        """Let go of what reads and writes large JSON; idempotent."""
        self._json.stop()

    def reply(
        self, method: str, target: str, body: bytes, call: Call | None = None, *, origin: str = ""
    ) -> Reply:
        """Answer one request; never raises.

        Args:
            method: HTTP method, in upper case.
            target: request target as sent: percent-encoded, absolute URLs included.
            body: decoded body.
            call: how long the client will wait, and its account; without limits if left out.
            origin: the page that asks, for OPTIONS.
        """
        call = call or Call.unbounded()
        held_bytes = call.account.held_bytes
        try:
            reply = self._reply(method, target, body, call, origin)
        except Exception as error:  # noqa: BLE001 (whoever asks must get an answer)
            reply = _failure(told(error, "a REST request"))
        call.account.keep(held_bytes + len(reply.body))
        return reply

    def _reply(self, method: str, target: str, body: bytes, call: Call, origin: str) -> Reply:
        if not target.startswith("/"):
            target = re.sub(r"^https?://[^/]*", "", target)
        if "%" in target and re.search(r"%(?![0-9A-Fa-f]{2})", target):
            return page(400)
        if target == self._metrics_path:
            return Reply(
                200, self._metrics.page().encode("utf-8", "replace"), {"Content-Type": "text/plain"}
            )
        if not _PREFIX.match(target):
            return page(404)
        if method == "OPTIONS":
            reply = Reply(200 if _ORIGIN.search(origin) else 400, b"", HTML)
        else:
            reply = self._counted(method, target, body, call)
        return replace(reply, headers={**_CORS, **reply.headers}) if self._cors else reply

    def _counted(self, method: str, target: str, body: bytes, call: Call) -> Reply:
        started_ns, code = time.perf_counter_ns(), Code.OK
        found = _route_of(method, target)
        try:
            reply = self._route(method, target, found, body, call)
        except Exception as error:  # noqa: BLE001 (a fault of ours counts as well)
            refusal = told(error, f"{method} {target}")
            reply, code = _failure(refusal), refusal.code
        name = _decoded(found[1] or "") if found else ""
        verb = found[4] if found and method == "POST" else ""
        self._metrics.count_request(name, verb, "REST", code.name, started_ns)
        return reply

    def _route(
        self, method: str, target: str, found: re.Match[str] | None, body: bytes, call: Call
    ) -> Reply:
        if not found:
            raise invalid(f"Malformed request: {method} {target}")
        model = _model(*found.groups()[:3])
        if not model.name:
            raise invalid("Missing model name in request.")
        if method == "POST":
            return self._infer(found[4], model, body, call)
        return self._metadata(model) if found[4] == "/metadata" else self._status(model)

    def _infer(self, verb: str, model: ModelRef, body: bytes, call: Call) -> Reply:
        if verb == "predict":
            return self._predict(model, body, call)
        signature, rows = self._json.examples(body, call)
        if verb == "classify":
            classified = self._handlers.classify(model, signature, lambda: rows, call=call)
            return Reply(200, json_writer.classifications(classified.classes))
        regressed = self._handlers.regress(model, signature, lambda: rows, call=call)
        return Reply(200, json_writer.regressions(regressed.values))

    def _predict(self, model: ModelRef, body: bytes, call: Call) -> Reply:
        request = self._json.predict_body(
            body, lambda name: _inputs(self._handlers.metadata(model).signatures, name), call
        )
        result = self._handlers.predict(model, request.signature, request.inputs, call=call)
        cost_bytes = ledger.cost_of_answer(result.outputs.values(), as_text=True)
        call.account.take(cost_bytes, "the answer")
        answer = self._json.predictions(
            result.outputs, cost_bytes, call, row_format=request.row_format
        )
        return Reply(200, answer)

    def _status(self, model: ModelRef) -> Reply:
        message = protos.GetModelStatusResponse()
        for status in self._handlers.status(model):
            message.model_version_status.append(status_message(status))
        return Reply(200, _indented(protos.to_json(message)))

    def _metadata(self, model: ModelRef) -> Reply:
        found = self._handlers.metadata(model)
        signatures = protos.SignatureDefMap(signature_def=found.signatures)
        spec = protos.ModelSpec(name=model.name, version={"value": found.version})
        body = (
            b'{\n"model_spec":' + _indented(protos.to_json(spec)) + b',\n"metadata": '
            b'{"signature_def": ' + _indented(protos.to_json(signatures)) + b"}\n}\n"
        )
        return Reply(200, body)


def _failure(error: ServingError) -> Reply:
    body = json_writer.error_body(error.message) if error.message else b""
    if isinstance(error, BudgetExceeded):
        return Reply(503 if error.is_passing else 413, body)
    return Reply(_HTTP_STATUS.get(error.code, 500), body)


@lru_cache(maxsize=64)
def _route_of(method: str, target: str) -> re.Match[str] | None:
    """Return the parts of a target; most requests repeat it."""
    return _ROUTES[method].fullmatch(target) if method in _ROUTES else None


@lru_cache(maxsize=64)
def _model(name: str | None, version: str | None, label: str | None) -> ModelRef:
    return ModelRef(
        _decoded(name or ""), _number(version) if version else None, label and _decoded(label)
    )


def _number(digits: str) -> int:
    digits = digits.lstrip("0") or "0"
    if len(digits) > len(str(MAX_VERSION)) or int(digits) > MAX_VERSION:
        raise invalid("")  # the official server's answer has no text
    return int(digits)


def _decoded(text: str) -> str:
    if "%" not in text and text.isascii():
        return text
    return unquote_to_bytes(text).decode("utf-8", "surrogateescape")


def _inputs(signatures: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    if name not in signatures:
        raise invalid(f'Serving signature name: "{name}" not found in signature def')
    inputs: Mapping[str, Any] = signatures[name].inputs
    return inputs


def _indented(text: str) -> bytes:
    """Halve the indentation of protobuf's JSON: the official server indents by one space."""
    return (
        re.sub(r"^( +)", lambda match: " " * (len(match[1]) // 2), text, flags=re.MULTILINE) + "\n"
    ).encode()
