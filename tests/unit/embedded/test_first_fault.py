"""Of several faults in one request the one is told that the official server finds first.

Each table names the upstream files whose steps its lines follow, in their order; each line of a
table holds faults of several steps.
"""

import base64
import contextlib
import json

import numpy as np
import pytest

from tfserve_kit import protos
from tfserve_kit.embedded.grpc_surface import GrpcSurface
from tfserve_kit.embedded.handlers import Handlers
from tfserve_kit.embedded.manager import Lease
from tfserve_kit.embedded.metrics import Metrics
from tfserve_kit.embedded.rest_surface import RestSurface
from tfserve_kit.embedded.status import Code, ServingError, invalid
from tfserve_kit.tensors import dtypes

PREDICT, CLASSIFY, REGRESS = (
    f"tensorflow/serving/{verb}" for verb in ("predict", "classify", "regress")
)


def tensor_info(name, dtype):
    return protos.TensorInfo(
        name=f"{name}:0", dtype=protos.enum("DataType").values_by_name[dtype].number
    )


def signature(inputs, outputs, method=PREDICT, defaults=()):
    definition = protos.SignatureDef(method_name=method)
    for side, tensors in ((definition.inputs, inputs), (definition.outputs, outputs)):
        for alias, dtype in tensors.items():
            side[alias].CopyFrom(tensor_info(alias, dtype))
    for alias in defaults:
        definition.defaults[alias].CopyFrom(protos.TensorProto(dtype=1, float_val=[1]))
    return definition


Y = {"y": "DT_FLOAT"}
SIGNATURES = {
    "serving_default": signature({"x": "DT_FLOAT"}, Y),
    "two": signature({"a": "DT_INT32", "b": "DT_FLOAT"}, Y),
    "half": signature({"x": "DT_HALF"}, Y),
    "text": signature({"s": "DT_STRING"}, Y),
    "nothing": signature({}, Y),
    "handle": signature({"x": "DT_RESOURCE"}, Y),
    "small": signature({"x": "DT_QINT8"}, Y),
    "filled": signature({"x": "DT_FLOAT", "d": "DT_FLOAT"}, Y, defaults=["d"]),
    "odd": signature({"x": "DT_FLOAT"}, Y, "mine"),
    "classes": signature({"inputs": "DT_STRING"}, {"scores": "DT_FLOAT"}, CLASSIFY),
    "values": signature({"inputs": "DT_STRING"}, {"outputs": "DT_FLOAT"}, REGRESS),
}


class RefusingServable:
    """Has signatures, and refuses to run: what comes that far has been found good."""

    signatures = SIGNATURES

    def run(self, feeds, fetches, **how):
        raise invalid("it runs")


class OneModelManager:
    """Has version 1 of model `m`, and no label."""

    @contextlib.contextmanager
    def lease(self, model, version=None, label=None):
        if label is not None:
            raise invalid(f"Unrecognized servable version label: {label}")
        if model != "m" or version not in {None, 1}:
            raise ServingError(Code.NOT_FOUND, "no model")
        yield Lease(model, 1, RefusingServable(), bool)

    def status(self, model):
        return []


def handlers(*, check_method_name=False):
    return Handlers(OneModelManager(), Metrics(), check_method_name=check_method_name)


NO_JSON = "JSON Parse error: Invalid value. at offset: 14"
NO_MODEL = "no model"
RUNS = "it runs"
ELEMENT = "Failed to process element: {} of 'instances' list. Error: INVALID_ARGUMENT: {}"
NAMED = "Failed to process element: {} key: {} of 'instances' list. Error: INVALID_ARGUMENT: {}"
EMPTY = '{"instances": []}'

# http_rest_api_handler.cc (path, body, model), json_tensor.cc (syntax, object, signature's name,
# model, signature, inputs, layout, rows in order, in each its members in order, then its keys).
REST_PREDICT = [
    ("nope", '{"instances": x', NO_JSON),
    ("nope", "[1]", "JSON Value: [1] Is not object"),
    ("nope", '{"signature_name": 1}',
     'JSON Value: {\n    "signature_name": 1\n} not formatted correctly. \'signature_name\' key '
     "must be a string value."),
    ("nope", '{"signature_name": "nope", "instances": 1}', NO_MODEL),
    ("m/versions/9", '{"signature_name": "nope"}', NO_MODEL),
    ("m/labels/l", '{"signature_name": "nope"}', "Unrecognized servable version label: l"),
    ("nope/labels/l", "{}", "Unrecognized servable version label: l"),
    ("m/versions/99999999999999999999", "x", None),
    ("m", '{"signature_name": "nope", "instances": 1, "inputs": 1}',
     'Serving signature name: "nope" not found in signature def'),
    ("m", '{"signature_name": "nothing", "instances": 1}',
     "Failed to get input map for signature: nothing"),
    ("m", '{"signature_name": ""}', "Missing 'inputs' or 'instances' key"),
    ("m", '{"instances": 1, "inputs": 2}',
     'JSON Value: {\n    "instances": 1,\n    "inputs": 2\n} Not formatted correctly expecting '
     "only one of 'inputs' or 'instances' keys to exist "),
    ("m", '{"instances": {}}',
     'JSON Value: {\n    "instances": {}\n} Expecting \'instances\' to be an list/array'),
    ("m", EMPTY, "JSON Value: {\n    \"instances\": []\n} No values in 'instances' array"),
    ("m", '{"signature_name": "two", "instances": []}',
     'JSON Value: {\n    "signature_name": "two",\n    "instances": []\n} No values in '
     "'instances' array"),
    ("m", '{"signature_name": "two", "instances": ["a", {}]}',
     "instances is a plain list, but expecting list of objects as multiple input tensors required "
     "as per tensorinfo_map"),
    ("m", '{"instances": ["a", {"x": 1}]}',
     ELEMENT.format(0, 'JSON Value: "a" Type: String is not of expected type: float')),
    ("m", '{"instances": [1, {"x": 1}, "a"]}',
     "Expecting value/list but got object at item 1 of input list"),
    ("m", '{"instances": [{"x": 1}, 2, {"y": 1}]}',
     "Expecting object but got list at item 1 of input list"),
    ("m", '{"instances": [{"x": "a"}, 2]}',
     NAMED.format(0, "x", 'JSON Value: "a" Type: String is not of expected type: float')),
    ("m", '{"instances": [{"x": 1, "z": "a"}]}',
     NAMED.format(0, "z", "JSON object: does not have named input: z")),
    ("m", '{"instances": [{"x": "a", "z": 1}]}',
     NAMED.format(0, "x", 'JSON Value: "a" Type: String is not of expected type: float')),
    ("m", '{"signature_name": "two", "instances": [{"a": 1}, {"a": "x", "b": 1}]}',
     "Failed to process element: 0 of 'instances' list. JSON object: {\n    \"a\": 1\n} keys must "
     "be equal to: a,b"),
    ("m", '{"signature_name": "two", "instances": [{"a": 1, "b": 1}, {"b": [1], "a": "x"}]}',
     NAMED.format(1, "b", "Expecting shape [] but got: [1]")),
    ("m", '{"signature_name": "two", "instances": [{"a": 1.5, "b": "x"}]}',
     NAMED.format(0, "a", "JSON Value: 1.5 Type: Number is not of expected type: int32")),
    ("m", '{"signature_name": "two", "instances": [{"b": "x", "a": 1.5}]}',
     NAMED.format(0, "b", 'JSON Value: "x" Type: String is not of expected type: float')),
    ("m", '{"instances": [{"x\\u0000y": "a"}]}',
     NAMED.format(0, "x", 'JSON Value: "a" Type: String is not of expected type: float')),
    ("m", '{"instances": [[1, 2], [3, "a"], [4]]}',
     ELEMENT.format(1, 'JSON Value: "a" Type: String is not of expected type: float')),
    ("m", '{"instances": [[1, 2], [3], [4, "a"]]}',
     ELEMENT.format(1, "Expecting tensor size: 2 but got: 1")),
    ("m", '{"instances": [[[1, 2]], [[3], [4]]]}',
     ELEMENT.format(1, "Expecting shape [1,2] but got: [2,1]")),
    ("m", '{"instances": [[[1, 2], 3]]}',
     ELEMENT.format(0, "JSON Value: 3 found at incorrect level: 2 in the JSON DOM. Expected at "
                       "level: 2")),
    ("m", '{"instances": [[1, [2]]]}',
     ELEMENT.format(0, "Encountered list at unexpected level: 1 expected < 1")),
    ("m", '{"instances": [[[1, 2], [3]]]}',
     ELEMENT.format(0, "Encountered list at unexpected size: 1 at level: 1 expected size: 2")),
    ("m", '{"inputs": {}}', "Missing named input: x in 'inputs' object."),
    ("m", '{"inputs": {"z": "a"}}', "Missing named input: x in 'inputs' object."),
    ("m", '{"inputs": {"b64": "YQ=="}}',
     'JSON Value: {\n    "b64": "YQ=="\n} Type: Object is not of expected type: float'),
    ("m", '{"signature_name": "two", "inputs": "a"}',
     "inputs is a plain value/list, but expecting an object as multiple input tensors required as "
     "per tensorinfo_map"),
    ("m", '{"signature_name": "half", "inputs": [1]}', "Conversion of JSON Value: 1 to type: half"),
    ("m", '{"signature_name": "half", "inputs": [{"a": 1}]}',
     'JSON Value: {\n    "a": 1\n} Type: Object is not of expected type: half'),
    ("m", '{"signature_name": "half", "inputs": [[1], 2]}',
     "Conversion of JSON Value: 1 to type: half"),
    ("m", '{"signature_name": "handle", "inputs": [null]}',
     "Conversion of JSON Value: null to type: resource"),
    ("m", '{"signature_name": "small", "instances": [1]}',
     "Failed to process element: 0 of 'instances' list. Error: UNIMPLEMENTED: Conversion of JSON "
     "Value: 1 to type: qint8"),
    ("m", '{"signature_name": "text", "inputs": [{"b64": 1}]}',
     'JSON Value: {\n    "b64": 1\n} not formatted correctly for base64 data'),
    ("m", '{"signature_name": "text", "inputs": [{"b64": "YQ==", "b64": "YQ=="}]}',
     'JSON Value: {\n    "b64": "YQ==",\n    "b64": "YQ=="\n} not formatted correctly for base64 '
     "data"),
    ("m", '{"signature_name": "text", "inputs": [{"b64": "YQ==", "c": 1}]}',
     'JSON Value: {\n    "b64": "YQ==",\n    "c": 1\n} not formatted correctly for base64 data'),
    ("m", '{"signature_name": "text", "inputs": [{"b64": "Y"}, 1]}', "Unable to base64 decode"),
    ("m", '{"signature_name": "text", "inputs": [1, {"b64": "Y"}]}',
     "JSON Value: 1 Type: Number is not of expected type: string"),
    ("m", '{"inputs": ' + "[" * 300 + "1" + "]" * 300 + "}", "tensor parsing error: x"),
    ("m", '{"instances": [' + "[" * 300 + "1" + "]" * 300 + "]}", "tensor parsing error: x"),
    ("m", '{"instances": [{"x": [1, 2], "x": [3, 4]}]}', RUNS),
    ("m", '{"inputs": {"x": 1, "x": "a"}}', RUNS),
    ("m", '{"signature_name": "odd", "inputs": 1}', RUNS),
]  # fmt: skip

# json_tensor.cc (syntax, signature's name, context, examples), classification_service.cc (model),
# classifier.cc and regressor.cc (signature, its kind, the run).
REST_EXAMPLES = [
    ("nope:classify", '{"instances": x', NO_JSON),
    ("nope:classify", '{"signature_name": 1, "context": 1}',
     'JSON Value: {\n    "signature_name": 1,\n    "context": 1\n} not formatted correctly. '
     "'signature_name' key must be a string value."),
    ("nope:classify", '{"context": 1}', "Example must be JSON object but got JSON Number"),
    ("nope:regress", '{"context": {"a": null}, "examples": 1}',
     "Feature: a has element with unexpected JSON type: Null"),
    ("nope:classify", "{}",
     "JSON Value: {} When method is classify, key 'examples' is expected and was not found"),
    ("nope:regress", '{"examples": 1}',
     'JSON Value: {\n    "examples": 1\n} Expecting \'examples\' value to be an list/array'),
    ("nope:regress", '{"examples": []}',
     'JSON Value: {\n    "examples": []\n} \'examples\' value is an empty array'),
    ("nope:regress", '{"examples": [{}, 1, {"a": null}]}',
     "Example must be JSON object but got JSON Number"),
    ("nope:regress", '{"examples": [[]]}', "Example must be JSON object but got JSON Array"),
    ("nope:regress", '{"examples": ["a"]}', "Example must be JSON object but got JSON String"),
    ("nope:regress", '{"examples": [true]}', "Example must be JSON object but got JSON True"),
    ("nope:classify", '{"examples": [{"a": [1, "b", null]}]}',
     "Unexpected element type in feature: a expecting type: int64"),
    ("nope:classify", '{"examples": [{"a": [1.5, 9223372036854775808]}]}',
     "Unexpected element type in feature: a expecting type: float"),
    ("nope:classify", '{"examples": [{"a": [1, 9223372036854775808]}]}',
     "Feature: a has uint64_t element. Only int64_t is supported."),
    ("nope:classify", '{"examples": [{"a": ["b", true]}]}',
     "Unexpected element type in feature: a expecting type: bytes"),
    ("nope:classify", '{"examples": [{"a": [1, {"b64": "Y"}]}]}',
     "Unexpected element type in feature: a expecting type: int64"),
    ("nope:classify", '{"examples": [{"a": {"b64": "Y"}}]}', "Unable to base64 decode"),
    ("nope:classify", '{"examples": [{"a": {"b64": "YQ==", "c": 1}}]}',
     "Feature: a has element with unexpected JSON type: Object"),
    ("nope:classify", '{"examples": [{"a": [[1]]}]}',
     "Feature: a has element with unexpected JSON type: Array"),
    ("nope:classify", '{"examples": [{"a\\u0000b": null}]}',
     "Feature: a has element with unexpected JSON type: Null"),
    ("nope:classify", '{"examples": [{"a": 1, "a": null}]}',
     "Feature: a has element with unexpected JSON type: Null"),
    ("nope:classify", '{"examples": [{}], "signature_name": "nope"}', NO_MODEL),
    ("m/labels/l:regress", '{"examples": [{}]}', "Unrecognized servable version label: l"),
    ("m:classify", '{"examples": [{}], "signature_name": "nope"}',
     "No signature was found with the name: nope"),
    ("m:regress", '{"examples": [{}], "signature_name": "two"}', "Expected one input Tensor."),
    ("m:classify", '{"examples": [{}], "signature_name": "nothing"}', "Expected one input Tensor."),
    ("m:classify", '{"examples": [{"a": []}], "signature_name": "classes"}', RUNS),
    ("m:regress", '{"examples": [{"a\\udc00": 1}], "signature_name": "values"}', RUNS),
    ("m:regress", '{"examples": [{"a": -9223372036854775809}], "signature_name": "values"}', RUNS),
]  # fmt: skip

_URL = "/v1/models/"


def rest_error(surface, path, body):
    reply = surface.reply("POST", _URL + path, body.encode())
    assert reply.status in {400, 404, 501}, reply
    return json.loads(reply.body)["error"] if reply.body else None


@pytest.mark.parametrize(("path", "body", "message"), REST_PREDICT)
def test_predict_over_rest_tells_the_first_fault(path, body, message):
    assert rest_error(RestSurface(handlers(), Metrics()), f"{path}:predict", body) == message


@pytest.mark.parametrize(("path", "body", "message"), REST_EXAMPLES)
def test_examples_over_rest_tell_the_first_fault(path, body, message):
    assert rest_error(RestSurface(handlers(), Metrics()), path, body) == message


def test_text_of_bytes_that_are_no_utf8_goes_back_over_rest_as_it_came():
    surface = RestSurface(handlers(), Metrics())
    for path, body, wanted in (
        ("%ff:predict", b'{"inputs": 1}', None),
        ("m:predict", b'{"signature_name": "a\xff"}', b'name: \\"a\xff\\" not found'),
        ("m:predict", b'{"inputs": "\xc3("}', b'JSON Value: \\"\xc3(\\" Type: String'),
        ("m:predict", b'{"instances": [{"\xfe": 1}]}', b"does not have named input: \xfe"),
        ("m:classify", b'{"examples": [{"\xfe": null}]}', b"Feature: \xfe has element"),
        ("m/labels/%c3:predict", b'{"inputs": 1}', b"servable version label: \xc3"),
    ):
        reply = surface.reply("POST", _URL + path, body)
        assert reply.status in {400, 404}
        assert wanted is None or wanted in reply.body, reply.body


# gRPC

X = "inputs { key: 'x' value { dtype: DT_FLOAT float_val: 1 } }"
BAD_X = "inputs { key: 'x' value { dtype: DT_FLOAT tensor_content: 'abc' } }"
INT_X = "inputs { key: 'x' value { dtype: DT_INT32 int_val: 1 } }"
SIZES = (
    "input size does not match signature: {}!={} len({{{}}}) != len({{{}}}). Sent extra: {{{}}}. "
    "Missing but required: {{{}}}."
)
ABSENT = (
    "Signature input alias: {}(feed name: {}:0) not found in request and no default value "
    "provided. Inputs expected to be in the request {{{}}}, or default input alias set: {}"
)
NO_FILTER = (
    "output tensor alias not found in signature: {} Outputs expected to be in the set {{y}}."
)


def spec(signature="", model="m", more=""):
    return f"model_spec {{ name: '{model}' signature_name: '{signature}' {more} }}"


def typed(dtype, values=""):
    return f"inputs {{ key: 'x' value {{ dtype: {dtype} {values} }} }}"


# predict_impl.cc (spec), server_core.cc (name, label, model), predict_util.cc (signature, method,
# number of inputs), tensorflow/cc/saved_model/util.cc (each input), predict_util.cc (filter),
# tensorflow/core/framework/function.cc (types).
LABEL = "version_label: 'l'"
GRPC_PREDICT = [
    (BAD_X, Code.INVALID_ARGUMENT, "Missing ModelSpec"),
    (f"model_spec {{}} {BAD_X}", Code.INVALID_ARGUMENT, "ModelSpec has no name specified."),
    (f"model_spec {{ version_label: 'l' }} {BAD_X}", Code.INVALID_ARGUMENT,
     "ModelSpec has no name specified."),
    (f"{spec('nope', 'nope', LABEL)} {BAD_X}", Code.INVALID_ARGUMENT,
     "Unrecognized servable version label: l"),
    (f"{spec('nope', 'nope')} {BAD_X}", Code.NOT_FOUND, NO_MODEL),
    (f"{spec('nope', more='version { value: 2 }')} {BAD_X}", Code.NOT_FOUND, NO_MODEL),
    (f"{spec('nope')} {BAD_X} output_filter: 'z'", Code.FAILED_PRECONDITION,
     'Serving signature key "nope" not found.'),
    (f"{spec('two')} {BAD_X} output_filter: 'z'", Code.INVALID_ARGUMENT,
     SIZES.format(1, 2, "x", "a,b", "x", "a,b")),
    (f"{spec()} {BAD_X} {BAD_X.replace('x', 'z')}", Code.INVALID_ARGUMENT,
     SIZES.format(2, 1, "x,z", "x", "z", "")),
    (f"{spec('nothing')} {X}", Code.INVALID_ARGUMENT, SIZES.format(1, 0, "x", "", "x", "")),
    (f"{spec('nothing')} output_filter: 'z'", Code.INVALID_ARGUMENT, NO_FILTER.format("z")),
    (f"{spec()} {BAD_X.replace('x', 'z')} output_filter: 'z'", Code.INVALID_ARGUMENT,
     ABSENT.format("x", "x", "z", "")),
    (f"{spec()} {BAD_X} output_filter: 'z'", Code.INVALID_ARGUMENT, "tensor parsing error: x"),
    (f"{spec()} {INT_X} output_filter: 'z'", Code.INVALID_ARGUMENT, NO_FILTER.format("z")),
    (f"{spec()} {INT_X} output_filter: 'y' output_filter: 'y'", Code.INVALID_ARGUMENT,
     "duplicate output tensor alias: y"),
    (f"{spec()} {INT_X} output_filter: 'y' output_filter: 'y' output_filter: 'z'",
     Code.INVALID_ARGUMENT, "duplicate output tensor alias: y"),
    (f"{spec()} {INT_X} output_filter: 'z' output_filter: 'z'", Code.INVALID_ARGUMENT,
     NO_FILTER.format("z")),
    (f"{spec()} {INT_X}", Code.INVALID_ARGUMENT,
     "Expects arg[0] to be float but int32 is provided"),
    (f"{spec('filled')} {X}", Code.INVALID_ARGUMENT, RUNS),
    (f"{spec('filled')}", Code.INVALID_ARGUMENT, ABSENT.format("x", "x", "", "d")),
    (f"{spec('filled')} {X.replace('x', 'd')}", Code.INVALID_ARGUMENT,
     ABSENT.format("x", "x", "d", "d")),
    (f"{spec('filled')} {X} {BAD_X.replace('x', 'z')}", Code.INVALID_ARGUMENT,
     "Inputs contains invalid name. Used request inputs: x, request input: x,z"),
    (f"{spec('filled')} {BAD_X} {X.replace('x', 'z')}", Code.INVALID_ARGUMENT,
     "tensor parsing error: x"),
    (f"{spec('filled')} {X} {X.replace('x', 'd')} {X.replace('x', 'z')}", Code.INVALID_ARGUMENT,
     SIZES.format(3, 2, "d,x,z", "d,x", "z", "")),
    (f"{spec('odd')} {X}", Code.INVALID_ARGUMENT, RUNS),
    *[
        (f"{spec()} {typed(dtype, values)}", Code.INVALID_ARGUMENT,
         f"Expects arg[0] to be float but {name} is provided")
        for dtype, values, name in (
            ("DT_QINT8", "int_val: 1", "qint8"),
            ("DT_QUINT8", "", "quint8"),
            ("DT_QINT32", "tensor_content: 'abcd'", "qint32"),
            ("DT_QINT16", "", "qint16"),
            ("DT_QUINT16", "tensor_shape { dim { size: 0 } } tensor_content: 'a'", "quint16"),
            ("DT_RESOURCE", "", "resource"),
            ("DT_RESOURCE", "resource_handle_val { name: 'a' }", "resource"),
            ("DT_VARIANT", "", "variant"),
            ("DT_HALF", "half_val: 1", "half"),
            ("DT_BFLOAT16", "half_val: 1", "bfloat16"),
            ("DT_COMPLEX128", "dcomplex_val: 1", "complex128"),
            ("DT_BOOL", "bool_val: true", "bool"),
            ("DT_STRING", "float_val: 1", "string"),
            ("DT_UINT64", "tensor_content: 'abcdefgh'", "uint64"),
        )
    ],
    *[
        (f"{spec()} {typed(dtype, values)}", Code.INVALID_ARGUMENT, "tensor parsing error: x")
        for dtype, values in (
            ("DT_INVALID", "float_val: 1"),
            ("DT_FLOAT_REF", "float_val: 1"),
            ("DT_RESOURCE_REF", ""),
            ("99", ""),
            ("DT_QINT8", "tensor_content: 'ab'"),
            ("DT_VARIANT", "variant_val { type_name: 'a' }"),
            ("DT_STRING", "tensor_content: '\\001'"),
            ("DT_STRING", "tensor_shape { dim { size: -1 } }"),
            ("DT_FLOAT", "tensor_shape { unknown_rank: true dim { size: -1 } }"),
            ("DT_FLOAT", "tensor_shape { dim { size: 4611686018427387904 } dim { size: 2 } "
                         "dim { size: 0 } }"),
        )
    ],
    (f"{spec()} {typed('DT_FLOAT', 'tensor_shape { unknown_rank: true } float_val: 1')}",
     Code.INVALID_ARGUMENT, RUNS),
    (f"{spec()} {typed('DT_FLOAT', 'int_val: 1 half_val: 2')}", Code.INVALID_ARGUMENT, RUNS),
    (f"{spec()} {typed('DT_FLOAT', 'float_val: 1 float_val: 2')}", Code.INVALID_ARGUMENT, RUNS),
    (f"{spec('small')} {typed('DT_QINT8', 'int_val: 1')}", Code.UNIMPLEMENTED,
     "Tensors of type qint8 cannot be sent to this server"),
    (f"{spec('small')} {X}", Code.INVALID_ARGUMENT,
     "Expects arg[0] to be qint8 but float is provided"),
    (f"{spec('handle')} {X}", Code.INVALID_ARGUMENT,
     "Expects arg[0] to be resource but float is provided"),
]  # fmt: skip

ONE = "input { example_list { examples {} } }"
# classification_service.cc, regression_service.cc, classifier.cc, regressor.cc and util.cc.
GRPC_EXAMPLES = [
    ("", Code.INVALID_ARGUMENT, "Missing ModelSpec"),
    ("model_spec {}", Code.INVALID_ARGUMENT, "ModelSpec has no name specified."),
    (spec("nope", "nope"), Code.NOT_FOUND, NO_MODEL),
    (spec("nope"), Code.INVALID_ARGUMENT, "No signature was found with the name: nope"),
    (spec("two"), Code.INVALID_ARGUMENT, "Expected one input Tensor."),
    (spec("KIND"), Code.INVALID_ARGUMENT, "Input is empty."),
    (f"{spec('KIND')} input {{}}", Code.INVALID_ARGUMENT, "Input is empty."),
    (f"{spec('KIND')} input {{ example_list_with_context {{ context {{}} }} }}",
     Code.INVALID_ARGUMENT, "Input is empty."),
    (f"{spec('KIND')} {ONE}", Code.INVALID_ARGUMENT, RUNS),
]  # fmt: skip


def task(signature, method=REGRESS, model="m"):
    return f"tasks {{ {spec(signature, model)} method_name: '{method}' }}"


CLASS_OUTPUTS = (
    'Expected classification signature outputs to contain at least one of "classes" or "scores". '
    "Signature was: "
)
SAME = "All ModelSpecs in a MultiInferenceRequest must access the same model name."
# multi_inference_helper.cc (model of the first task), multi_inference.cc (task by task: name, same
# model, signature twice, signature, kind), util.cc (examples, the run).
GRPC_MULTI = [
    ("", Code.INVALID_ARGUMENT, "ModelSpec has no name specified."),
    ("tasks {}", Code.INVALID_ARGUMENT, "ModelSpec has no name specified."),
    (f"tasks {{}} {task('values')}", Code.INVALID_ARGUMENT, "ModelSpec has no name specified."),
    (task("nope", "nope", "nope"), Code.NOT_FOUND, NO_MODEL),
    (f"{task('values', model='nope')} {task('values')}", Code.NOT_FOUND, NO_MODEL),
    (f"{task('values')} tasks {{}}", Code.INVALID_ARGUMENT,
     "Found ModelSpec with an empty model name."),
    (f"{task('nope')} tasks {{}}", Code.INVALID_ARGUMENT,
     "Requested signature not found in model graph: nope"),
    (f"{task('values')} {task('nope', model='n')}", Code.INVALID_ARGUMENT, SAME),
    (f"{task('values')} {task('values', 'nope')}", Code.INVALID_ARGUMENT,
     "Duplicate evaluation of signature: values"),
    (f"{task('nope')} {task('nope')}", Code.INVALID_ARGUMENT,
     "Requested signature not found in model graph: nope"),
    (f"{task('')} {task('serving_default')}", Code.INVALID_ARGUMENT,
     "No regression inputs found in SignatureDef: "),
    (task("nope", "nope"), Code.INVALID_ARGUMENT,
     "Requested signature not found in model graph: nope"),
    (task("values", PREDICT), Code.UNIMPLEMENTED, f"Unsupported signature method_name: {PREDICT}"),
    (task("values", "Regress"), Code.UNIMPLEMENTED, "Unsupported signature method_name: Regress"),
    (f"{task('values', 'x')} {task('values', model='n')}", Code.UNIMPLEMENTED,
     "Unsupported signature method_name: x"),
    (task("two"), Code.INVALID_ARGUMENT, "Expected one input Tensor."),
    (task("values", CLASSIFY), Code.INVALID_ARGUMENT,
     CLASS_OUTPUTS),
    (f"{task('values')} {task('two')}", Code.INVALID_ARGUMENT, "Expected one input Tensor."),
    (f"{task('values')} {task('classes', CLASSIFY)}", Code.INVALID_ARGUMENT, "Input is empty."),
    (f"{task('values')} {ONE}", Code.INVALID_ARGUMENT, RUNS),
]  # fmt: skip

# get_model_metadata_impl.cc: spec, fields, name, model.
GRPC_METADATA = [
    ("metadata_field: 'nope'", Code.INVALID_ARGUMENT, "Missing ModelSpec"),
    ("model_spec {}", Code.INVALID_ARGUMENT,
     "GetModelMetadataRequest must specify at least one metadata_field"),
    ("model_spec {} metadata_field: 'signature_def' metadata_field: 'x'", Code.INVALID_ARGUMENT,
     "Metadata field x is not supported"),
    ("model_spec {} metadata_field: 'signature_def'", Code.INVALID_ARGUMENT,
     "ModelSpec has no name specified."),
    ("model_spec { name: 'nope' version_label: 'l' } metadata_field: 'signature_def'",
     Code.INVALID_ARGUMENT, "Unrecognized servable version label: l"),
    ("model_spec { name: 'nope' } metadata_field: 'Signature_def'", Code.INVALID_ARGUMENT,
     "Metadata field Signature_def is not supported"),
    ("model_spec { name: 'nope' } metadata_field: 'signature_def'", Code.NOT_FOUND, NO_MODEL),
]  # fmt: skip

# get_model_status_impl.cc: spec, version; no name is a name without versions, a label is ignored.
GRPC_STATUS = [
    ("", Code.INVALID_ARGUMENT, "Missing ModelSpec"),
    ("model_spec {}", Code.NOT_FOUND, "Could not find any versions of model "),
    ("model_spec { version { value: 3 } }", Code.NOT_FOUND, "Could not find version 3 of model "),
    ("model_spec { version {} }", Code.NOT_FOUND, "Could not find version 0 of model "),
    ("model_spec { name: 'n' version_label: 'l' }", Code.NOT_FOUND,
     "Could not find any versions of model n"),
]  # fmt: skip

GRPC = [
    *[("Predict", *each) for each in GRPC_PREDICT],
    *[
        (method, text.replace("KIND", kind), code, message)
        for method, kind in (("Classify", "classes"), ("Regress", "values"))
        for text, code, message in GRPC_EXAMPLES
    ],
    *[("MultiInference", *each) for each in GRPC_MULTI],
    *[("GetModelMetadata", *each) for each in GRPC_METADATA],
    *[("GetModelStatus", *each) for each in GRPC_STATUS],
]


def grpc_answer(surface, name, text):
    method = protos.METHODS[name]
    request = protos.from_text(method.request, text)
    return surface.answer(method.path, request.SerializeToString())


@pytest.mark.parametrize(("name", "text", "code", "message"), GRPC)
def test_grpc_tells_the_first_fault(name, text, code, message):
    answer = grpc_answer(GrpcSurface(handlers(), Metrics()), name, text)
    assert answer.code is code
    assert answer.details == message or (message and answer.details.startswith(message + "inputs"))


# The same with --enable_signature_method_name_check.
STRICT = [
    ("Predict", f"{spec('odd')} {BAD_X}", Code.INTERNAL,
     "Expected prediction signature method_name to be one of "
     f"{{{PREDICT}, {CLASSIFY}, {REGRESS}}}. Was: mine"),
    ("Predict", f"{spec('nope')} {BAD_X}", Code.FAILED_PRECONDITION,
     'Serving signature key "nope" not found.'),
    ("Predict", f"{spec('classes')} {X.replace('x', 'inputs')}", Code.INVALID_ARGUMENT,
     "Expects arg[0] to be string but float is provided"),
    ("Classify", spec("values"), Code.INVALID_ARGUMENT,
     f"Expected classification signature method_name to be {CLASSIFY}. Was: {REGRESS}"),
    ("Regress", spec("two"), Code.INVALID_ARGUMENT,
     f"Expected regression signature method_name to be {REGRESS}. Was: {PREDICT}"),
    ("MultiInference", task("two"), Code.INVALID_ARGUMENT,
     f"Expected regression signature method_name to be {REGRESS}. Was: {PREDICT}"),
    ("MultiInference", task("two", "x"), Code.UNIMPLEMENTED,
     "Unsupported signature method_name: x"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "code", "message"), STRICT)
def test_method_names_are_looked_at_where_upstream_does(name, text, code, message):
    surface = GrpcSurface(handlers(check_method_name=True), Metrics())
    answer = grpc_answer(surface, name, text)
    assert (answer.code, answer.details) == (code, message)


# Base64Unescape of absl/strings/escaping.cc; None where it refuses.
BASE64 = [
    ("YWI=", b"ab"),
    ("YWI", b"ab"),
    ("YQ==", b"a"),
    ("YQ", b"a"),
    ("", b""),
    ("YWJj", b"abc"),
    (" Y W\nI =\t", b"ab"),
    ("\r\n", b""),
    ("\u000bYQ\u000c", b"a"),
    ("YQ..", b"a"),
    ("YWI.", b"ab"),
    ("YQ=.", b"a"),
    ("YQ= =", b"a"),
    ("YR==", b"a"),
    ("/+8=", b"\xff\xef"),
    ("YQ=", None),
    ("YQ===", None),
    ("YWI==", None),
    ("YWJj=", None),
    ("YWJj====", None),
    ("=", None),
    ("Y", None),
    ("Y===", None),
    ("YQ==YQ==", None),
    ("Y=Q=", None),
    ("-_-_", None),
    ("YQ\u0000", None),
    ("YWI\u00a0", None),
    ("é", None),
    ("*", None),
    ("YWJjZ", None),
]


@pytest.mark.parametrize(("text", "expected"), BASE64)
def test_base64_is_read_with_blanks_and_any_padding_that_fits(text, expected):
    surface = RestSurface(handlers(), Metrics())
    body = json.dumps({"signature_name": "text", "inputs": {"b64": text}})
    message = RUNS if expected is not None else "Unable to base64 decode"
    assert rest_error(surface, "m:predict", body) == message
    if expected is not None:
        plain = text.encode().translate(None, b" \t\n\x0b\x0c\r=.")
        assert base64.b64decode(plain + b"=" * (-len(plain) % 4)) == expected


@pytest.mark.parametrize("number", range(1, 40))
def test_every_type_has_a_name_for_error_texts(number):
    name = dtypes.name_of(number)
    assert name == name.strip() and dtypes.name_of(number + 100) == f"{name}_ref"


def test_key_twice_in_a_row_adds_values_that_the_shape_cuts():
    found = []

    class Keeping(RefusingServable):
        def run(self, feeds, fetches, **how):
            found.append(feeds["x:0"])
            raise invalid("it runs")

    class Manager(OneModelManager):
        @contextlib.contextmanager
        def lease(self, model, version=None, label=None):
            yield Lease(model, 1, Keeping(), bool)

    surface = RestSurface(Handlers(Manager(), Metrics()), Metrics())
    rest_error(surface, "m:predict", '{"instances": [{"x": 1, "x": 2}, {"x": 3}]}')
    np.testing.assert_array_equal(found[0], np.float32([1, 2]))
