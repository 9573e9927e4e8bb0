"""The REST API as a pure function: (method, path, body) to (status, headers, body).

Source: tensorflow_serving/model_servers/http_rest_api_handler.cc (routes) and
http_rest_api_util.cc (status codes).
"""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

from tfserve_kit import protos
from tfserve_kit.embedded import json_writer, ledger
from tfserve_kit.embedded.batching import completed
from tfserve_kit.embedded.handlers import Handlers, ModelRef, Predicted, PredictedTogether, sound
from tfserve_kit.embedded.json_process import LargeJson
from tfserve_kit.embedded.json_reader import few_numbers, regular
from tfserve_kit.embedded.ledger import Account, BudgetExceeded, Call
from tfserve_kit.embedded.messages import status_message
from tfserve_kit.embedded.metrics import Metrics
from tfserve_kit.embedded.signatures import Arrays
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
    501: "Not Implemented",
    503: "Service Unavailable",
}


class RestAnswer(NamedTuple):
    """An HTTP answer. `close` asks the transport to close the connection after it."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = JSON
    close: bool = False


def page(status: int) -> RestAnswer:
    """Return the HTML page that the official server's HTTP library answers with."""
    title = _PAGES[status]
    html = (
        f"<HTML><HEAD>\n<TITLE>{status} {title}</TITLE>\n</HEAD><BODY>\n"
        f"<H1>{title}</H1>\n</BODY></HTML>\n"
    )
    return RestAnswer(status, html.encode(), {"Content-Type": "text/html"}, close=True)


def timed_out() -> RestAnswer:
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
    ) -> RestAnswer:
        """Answer one request, in this thread; see `begin`."""
        return completed(self.begin(method, target, body, call, origin=origin))

    async def begin(
        self, method: str, target: str, body: bytes, call: Call | None = None, *, origin: str = ""
    ) -> RestAnswer:
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
            route = _route_of(method, target)
            reply = self._page(route) or await self._asked(route, body, call, origin)
        except Exception as error:  # noqa: BLE001 (whoever asks must get an answer)
            reply = _failure(told(error, "a REST request"))
        call.account.keep(held_bytes + len(reply.body))
        return reply

    def at_once(
        self, target: str, asked: Sequence[tuple[bytes, Account]]
    ) -> Sequence[RestAnswer | None]:
        """Answer short POSTs, each of one regular list of numbers to be predicted; never raises.

        The same as `begin`, in a fraction of the time.

        Args:
            target: their target as sent.
            asked: of each the JSON, and an account that is charged as that of a call.

        Returns:
            Their answers; None where `begin` has to answer.
        """
        started_ns, route = time.perf_counter_ns(), _route_of("POST", target)
        if route.verb != "predict" or route.refusal is not None or self._cors:
            return [None] * len(asked)
        read = few_numbers([body for body, _ in asked])
        accounts = [account for _, account in asked]
        results: Sequence[Predicted | Exception] | PredictedTogether | None = None
        if read is not None:
            try:
                arrays = partial(regular, read[1])
                results = self._handlers.predict_at_once(route.model, arrays, accounts)
            except Exception as error:  # noqa: BLE001 (whoever asks must get an answer)
                results = [error] * len(asked)
        if results is None or read is None:  # they may still be alike by themselves
            others = asked if len(asked) > 1 else ()
            return [reply for each in others for reply in self.at_once(target, [each])] or [None]
        replies, statuses = self._replies(route, results, accounts, row_format=read[0])
        self._metrics.count_requests(route.model.name, "predict", "REST", statuses, started_ns)
        return replies

    def _replies(
        self,
        route: "_Route",
        results: Sequence[Predicted | Exception] | PredictedTogether,
        accounts: Sequence[Account],
        *,
        row_format: bool,
    ) -> tuple[Sequence[RestAnswer], Sequence[str]]:
        """Return the answers and the names of their codes, for what came of some requests."""
        together = _together(results)
        texts = together and json_writer.predictions_alike(together.outputs, row_format=row_format)
        if texts:
            return [RestAnswer(200, text) for text in texts], ["OK"] * len(texts)
        if isinstance(results, PredictedTogether):
            results = results.apart()
        replies = [
            self._reply(route, result, account, row_format=row_format)
            for result, account in zip(results, accounts, strict=True)
        ]
        return [reply for reply, _ in replies], [status for _, status in replies]

    def _reply(
        self, route: "_Route", result: Predicted | Exception, account: Account, *, row_format: bool
    ) -> tuple[RestAnswer, str]:
        held_bytes, status = account.held_bytes, "OK"
        try:
            reply = self._answer(sound(result).outputs, account, row_format=row_format)
        except Exception as error:  # noqa: BLE001 (whoever asks must get an answer)
            refusal = told(error, f"POST {route.path}")
            reply, status = _failure(refusal), refusal.code.name
        account.keep(held_bytes + len(reply.body))
        return reply, status

    def _page(self, route: "_Route") -> RestAnswer | None:
        """Return the answer to what is not asked of a model."""
        if route.path == self._metrics_path and route.status != HTTPStatus.BAD_REQUEST:
            text = self._metrics.page().encode("utf-8", "replace")
            return RestAnswer(200, text, {"Content-Type": "text/plain"})
        return None if route.status is None else page(route.status)

    async def _asked(self, route: "_Route", body: bytes, call: Call, origin: str) -> RestAnswer:
        if route.method == "OPTIONS":
            reply = RestAnswer(200 if _ORIGIN.search(origin) else 400, b"", HTML)
        else:
            reply = await self._counted(route, body, call)
        return reply._replace(headers={**_CORS, **reply.headers}) if self._cors else reply

    async def _counted(self, route: "_Route", body: bytes, call: Call) -> RestAnswer:
        started_ns, code = time.perf_counter_ns(), Code.OK
        try:
            is_predict = route.verb == "predict" and route.refusal is None
            reply = await (self._predict if is_predict else self._other)(route, body, call)
        except Exception as error:  # noqa: BLE001 (a fault of ours counts as well)
            refusal = told(error, f"{route.method} {route.path}")
            reply, code = _failure(refusal), refusal.code
        self._metrics.count_request(route.model.name, route.verb, "REST", code.name, started_ns)
        return reply

    async def _other(self, route: "_Route", body: bytes, call: Call) -> RestAnswer:
        if route.refusal is not None:
            raise invalid(route.refusal)
        model = route.model
        if not route.verb:
            return self._metadata(model) if route.is_metadata else self._status(model)
        signature, rows = self._json.examples(body, call)
        if route.verb == "classify":
            classified = await self._handlers.classify(model, signature, lambda: rows, call=call)
            return RestAnswer(200, json_writer.classifications(classified.rows))
        regressed = await self._handlers.regress(model, signature, lambda: rows, call=call)
        return RestAnswer(200, json_writer.regressions(regressed.rows))

    async def _predict(self, route: "_Route", body: bytes, call: Call) -> RestAnswer:
        model = route.model
        request = self._json.predict_body(body, partial(self._inputs, model), call)
        result = await self._handlers.predict(model, request.signature, request.inputs, call=call)
        return self._answer(result.outputs, call.account, call, row_format=request.row_format)

    def _answer(
        self, outputs: Arrays, account: Account, call: Call | None = None, *, row_format: bool
    ) -> RestAnswer:
        cost_bytes = ledger.cost_of_answer(outputs.values(), as_text=True)
        if not cost_bytes:
            return RestAnswer(200, json_writer.predictions(outputs, row_format=row_format))
        account.take(cost_bytes, "the answer")
        call = call or Call(account)
        return RestAnswer(
            200, self._json.predictions(outputs, cost_bytes, call, row_format=row_format)
        )

    def _inputs(self, model: ModelRef, signature: str) -> Mapping[str, Any]:
        inputs = self._handlers.inputs(model, signature)
        if inputs is None:
            raise invalid(f'Serving signature name: "{signature}" not found in signature def')
        return inputs

    def _status(self, model: ModelRef) -> RestAnswer:
        message = protos.GetModelStatusResponse()
        for status in self._handlers.status(model):
            message.model_version_status.append(status_message(status))
        return RestAnswer(200, _indented(protos.to_json(message)))

    def _metadata(self, model: ModelRef) -> RestAnswer:
        version, definitions = self._handlers.metadata(model)
        signatures = protos.SignatureDefMap(signature_def=definitions)
        spec = protos.ModelSpec(name=model.name, version={"value": version})
        body = (
            b'{\n"model_spec":' + _indented(protos.to_json(spec)) + b',\n"metadata": '
            b'{"signature_def": ' + _indented(protos.to_json(signatures)) + b"}\n}\n"
        )
        return RestAnswer(200, body)


def _together(
    results: Sequence[Predicted | Exception] | PredictedTogether,
) -> PredictedTogether | None:
    """Put results together that may be printed so; None where each has to be afforded."""
    if isinstance(results, PredictedTogether):
        outputs = [each[0] for each in results.outputs.values()]
    else:
        outputs = list(results[0].outputs.values()) if isinstance(results[0], Predicted) else []
    if len(outputs) != 1 or ledger.cost_of_answer(outputs, as_text=True):
        return None
    return results if isinstance(results, PredictedTogether) else PredictedTogether.of(results)


def _failure(error: ServingError) -> RestAnswer:
    body = json_writer.error_body(error.message) if error.message else b""
    if isinstance(error, BudgetExceeded):
        return RestAnswer(503 if error.is_passing else 413, body)
    return RestAnswer(_HTTP_STATUS.get(error.code, 500), body)


_NO_MODEL = ModelRef("")


@dataclass(frozen=True, slots=True)
class _Route:
    """What a target asks for.

    Attributes:
        method: HTTP method.
        path: the target without scheme and host.
        status: of the page that is all the answer there is; None if it is asked of a model.
        refusal: why it is not answered, None if it is.
        model: which model.
        verb: `predict`, `classify` or `regress`; empty for its status or signatures.
        is_metadata: its signatures are asked for.
    """

    method: str
    path: str
    status: int | None = None
    refusal: str | None = None
    model: ModelRef = _NO_MODEL
    verb: str = ""
    is_metadata: bool = False


@lru_cache(maxsize=64)
def _route_of(method: str, target: str) -> _Route:
    """Return what a target asks for; most requests repeat it."""
    path = target if target.startswith("/") else re.sub(r"^https?://[^/]*", "", target)
    if "%" in path and re.search(r"%(?![0-9A-Fa-f]{2})", path):
        return _Route(method, path, HTTPStatus.BAD_REQUEST)
    if not _PREFIX.match(path):
        return _Route(method, path, HTTPStatus.NOT_FOUND)
    found = _ROUTES[method].fullmatch(path) if method in _ROUTES else None
    if not found:
        return _Route(method, path, refusal=f"Malformed request: {method} {path}")
    name, version, label, what = found.groups()
    model, refusal = ModelRef(_decoded(name or "")), None
    try:
        number = _number(version) if version else None
        model = model._replace(version=number, label=label and _decoded(label))
    except ServingError as error:
        refusal = error.message
    if refusal is None and not model.name:
        refusal = "Missing model name in request."
    verb = what if method == "POST" else ""
    return _Route(method, path, None, refusal, model, verb, what == "/metadata")


def _number(digits: str) -> int:
    digits = digits.lstrip("0") or "0"
    if len(digits) > len(str(MAX_VERSION)) or int(digits) > MAX_VERSION:
        raise invalid("")  # the official server's answer has no text
    return int(digits)


def _decoded(text: str) -> str:
    if "%" not in text and text.isascii():
        return text
    return unquote_to_bytes(text).decode("utf-8", "surrogateescape")


def _indented(text: str) -> bytes:
    """Halve the indentation of protobuf's JSON: the official server indents by one space."""
    return (
        re.sub(r"^( +)", lambda match: " " * (len(match[1]) // 2), text, flags=re.MULTILINE) + "\n"
    ).encode()
