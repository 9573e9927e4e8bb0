"""The REST API of a model as OpenAPI 3.1, made from its signatures.

What JSON Schema cannot say is left to the server, which answers 400: that rows of open sizes have
the same size, that inputs agree in their number of rows, what a graph itself refuses.

Source: https://spec.openapis.org/oas/v3.1.1; the API is that of docs/rest.md.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tfserve_kit.clients.results import Target
from tfserve_kit.savedmodel import DEFAULT_SIGNATURE, Signature, TensorSpec
from tfserve_kit.tensors.dtypes import DType

Schema = dict[str, Any]

_METHOD = "tensorflow/serving/"
_ERROR: Schema = {
    "description": "The request is not answered; `error` says why.",
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
}
_NUMBER: Schema = {"type": "number"}
_ANSWERED: Schema = {
    "type": ["number", "null"],
    "description": "NaN, Infinity and -Infinity are written as such, which JSON does not have: "
    "readers refuse them, or take them for null.",
}
_STATES = ["UNKNOWN", "START", "LOADING", "AVAILABLE", "UNLOADING", "END"]
_COMPONENTS: dict[str, Schema] = {
    "Error": {
        "type": "object",
        "properties": {"error": {"type": "string"}},
        "required": ["error"],
    },
    "Bytes": {
        "type": "object",
        "description": "Bytes as base64.",
        "properties": {"b64": {"type": "string", "contentEncoding": "base64"}},
        "required": ["b64"],
        "additionalProperties": False,
    },
    "Metadata": {
        "type": "object",
        "properties": {
            "model_spec": {"type": "object"},
            "metadata": {
                "type": "object",
                "properties": {"signature_def": {"type": "object"}},
                "required": ["signature_def"],
            },
        },
        "required": ["model_spec", "metadata"],
    },
    "Status": {
        "type": "object",
        "properties": {
            "model_version_status": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {
                        "version": {"type": "string"},
                        "state": {"enum": _STATES},
                        "status": {"type": "object"},
                    },
                    "required": ["version", "state"],
                },
            }
        },
        "required": ["model_version_status"],
    },
}


def document(
    target: Target, version: int | None, signatures: Mapping[str, Signature], url: str = ""
) -> Schema:
    """Return the OpenAPI document of a model's paths.

    Args:
        target: the model, and the version or label that the paths name, if any.
        version: the version that the signatures are of; None if it is not known.
        signatures: by name.
        url: `http://host:port`; empty if only the paths are known.
    """
    path = f"/v1/models/{target.model}"
    if target.version is not None:
        path += f"/versions/{target.version}"
    elif target.label:
        path += f"/labels/{target.label}"
    served = [each for each in signatures.values() if _travels(each)]
    paths = {
        path: {"get": _operation("status", "The state of each version", _ref("Status"))},
        f"{path}/metadata": {"get": _operation("metadata", "The signatures", _ref("Metadata"))},
        f"{path}:predict": {"post": _asking("predict", served, _predict_body, _predict_answer)},
    }
    for kind, answer in (("classify", _CLASSES), ("regress", _VALUES)):
        able = [each for each in signatures.values() if each.method_name == _METHOD + kind]
        if able:
            asking = _asking(kind, able, _examples_body, lambda _, answer=answer: [answer])
            paths[f"{path}:{kind}"] = {"post": asking}
    found: Schema = {
        "openapi": "3.1.0",
        "info": {"title": target.model, "version": str(version or "unknown")},
        "paths": paths,
        "components": {"schemas": _COMPONENTS},
    }
    return found | ({"servers": [{"url": url}]} if url else {})


def _travels(signature: Signature) -> bool:
    """Say whether JSON can carry every input and output."""
    specs = [*signature.inputs.values(), *signature.outputs.values()]
    return all(
        spec.dtype is not None and spec.dtype.numpy is not None for spec in specs
    ) and not any(
        spec.dtype and spec.dtype.numpy is not None and spec.dtype.numpy.kind == "c"
        for spec in specs
    )


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _operation(name: str, summary: str, answer: Schema) -> Schema:
    content = {"application/json": {"schema": answer}}
    return {
        "operationId": name,
        "summary": summary,
        "responses": {"200": {"description": summary, "content": content}, "default": _ERROR},
    }


def _asking(name: str, signatures: Sequence[Signature], body: Any, answer: Any) -> Schema:
    bodies = [each for signature in signatures for each in body(signature)]
    answers = [each for signature in signatures for each in answer(signature)]
    operation = _operation(name, f"Call a signature: {name}", {"anyOf": answers})
    content = {"application/json": {"schema": {"anyOf": bodies}}}
    return operation | {"requestBody": {"required": True, "content": content}}


def _object(properties: Mapping[str, Schema], required: Iterable[str] | None = None) -> Schema:
    named = list(properties if required is None else required)
    return {
        "type": "object",
        "properties": dict(properties),
        "required": named,
        "additionalProperties": False,
    }


def _naming(signature: Signature, properties: Mapping[str, Schema]) -> Schema:
    """Return the body of a request, which names the signature unless it is the default."""
    named = {"signature_name": {"const": signature.name}, **properties}
    required = [*properties, *(() if signature.name == DEFAULT_SIGNATURE else ("signature_name",))]
    return _object(named, required)


def _predict_body(signature: Signature) -> list[Schema]:
    def tensors(*, by_row: bool) -> Schema:
        return _tensors(signature.inputs, _NUMBER, by_row=by_row, optional=signature.optional)

    bodies = [_naming(signature, {"inputs": tensors(by_row=False)})]
    if all(spec.shape is None or spec.shape for spec in signature.inputs.values()):
        rows = {"type": "array", "items": tensors(by_row=True), "minItems": 1}
        bodies.insert(0, _naming(signature, {"instances": rows}))
    return bodies


def _predict_answer(signature: Signature) -> list[Schema]:
    row, column = (
        _tensors(signature.outputs, _ANSWERED, by_row=by_row) for by_row in (True, False)
    )
    return [
        _object({"predictions": {"type": "array", "items": row}}),
        _object({"outputs": column}),
    ]


def _tensors(
    specs: Mapping[str, TensorSpec],
    number: Schema,
    *,
    by_row: bool,
    optional: frozenset[str] = frozenset(),
) -> Schema:
    """Return what stands for all tensors of a signature; one alone needs no name."""
    named = {alias: _tensor(spec, number, by_row=by_row) for alias, spec in specs.items()}
    if len(named) == 1:
        return next(iter(named.values()))
    return _object(named, named.keys() - optional)


def _tensor(spec: TensorSpec, number: Schema, *, by_row: bool) -> Schema:
    if spec.shape is None:
        return {}  # any depth
    schema = _value(spec.dtype, number)
    for size in reversed(spec.shape[1:] if by_row else spec.shape):
        bounds = {"minItems": 1} if size is None else {"minItems": size, "maxItems": size}
        schema = {"type": "array", "items": schema, **bounds}
    return schema


def _value(dtype: DType | None, number: Schema) -> Schema:
    """Return the schema of an element; `number` stands for one that is not whole."""
    if dtype is None or dtype.numpy is None:
        return {}
    kind = dtype.numpy.kind
    if kind in "iu":
        limits = np.iinfo(dtype.numpy)
        return {"type": "integer", "minimum": int(limits.min), "maximum": int(limits.max)}
    if kind == "b":
        return {"type": "boolean"}
    if kind == "O":
        return {"anyOf": [{"type": "string"}, _ref("Bytes")]}
    if number is _NUMBER and kind == "f":
        largest = float(np.finfo(dtype.numpy).max)
        return number | {"minimum": -largest, "maximum": largest}
    return number


_FEATURE: Schema = {"type": ["number", "string", "array", "object"]}
_EXAMPLE: Schema = {"type": "object", "additionalProperties": _FEATURE}
_CLASSES = _object(
    {
        "results": {
            "type": "array",
            "items": {
                "type": "array",
                "items": {
                    "type": "array",
                    "prefixItems": [{"type": "string"}, _ANSWERED],
                    "minItems": 2,
                    "maxItems": 2,
                },
            },
        }
    }
)
_VALUES = _object({"results": {"type": "array", "items": _ANSWERED}})


def _examples_body(signature: Signature) -> list[Schema]:
    examples = {"type": "array", "items": _EXAMPLE, "minItems": 1}
    schema = _naming(signature, {"examples": examples})
    schema["properties"]["context"] = _EXAMPLE
    return [schema]
