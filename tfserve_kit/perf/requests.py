"""Requests as bytes, as tfkit's own clients would send them, made before the clock starts."""

from base64 import b64encode
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from numpy.typing import NDArray

from tfserve_kit import protos
from tfserve_kit.clients import Target
from tfserve_kit.clients.grpc import GrpcProtocol
from tfserve_kit.clients.options import Headers, for_grpc, for_http
from tfserve_kit.clients.protocol import GrpcRequest
from tfserve_kit.clients.rest import RestProtocol
from tfserve_kit.perf.expectations import Expected
from tfserve_kit.perf.sending.load import Payload, Protocol

_JSON = ((b"content-type", b"application/json"),)


def predict(
    protocol: Protocol,
    url: str,
    target: Target,
    inputs: Mapping[str, NDArray[Any]],
    expects: Expected | None = None,
    headers: Headers = MappingProxyType({}),
) -> Payload:
    """Return a Predict request.

    Args:
        protocol: `grpc` or `rest`.
        url: the server, as errors name it.
        target: model, version or label, and signature.
        inputs: array per input alias, of the dtype and shape the signature names.
        expects: what an answer must hold; None if it is not to be looked into.
        headers: sent along.

    Raises:
        UsageError: a header cannot be sent.
        InvalidRequest: an input cannot be sent.
    """
    wire = GrpcProtocol(url) if protocol == "grpc" else RestProtocol(url)
    sent = wire.predict(target, inputs, (), None).request
    if isinstance(sent, GrpcRequest):
        return Payload(protos.METHODS[sent.method].path, _metadata(headers), sent.body, expects)
    more = ((name.encode(), value.encode("latin-1")) for name, value in for_http(headers).items())
    return Payload(sent.path, (*_JSON, *more), sent.body or b"", expects)


def _metadata(headers: Headers) -> tuple[tuple[bytes, bytes], ...]:
    """Return metadata as it stands in HTTP/2: bytes as base64."""
    return tuple(
        (name.encode(), b64encode(value) if isinstance(value, bytes) else value.encode())
        for name, value in for_grpc(headers)
    )
