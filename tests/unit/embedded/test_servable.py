"""What reaches native code: whatever is fed or computed there is an array or an error, no crash.

A crash would end this process, and the tests with it.
"""

import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import numpy as np
import pytest

from tfserve_kit import protos
from tfserve_kit.embedded.servable import SessionServable, compiled_call
from tfserve_kit.embedded.status import Code, ServingError

pytestmark = pytest.mark.tensorflow

DEEP = [33, 64]
TOO_DEEP = [65, 100, 254]


def strings(shape, value=b"a"):
    array = np.empty(shape, object)
    array[...] = value
    return array


@pytest.fixture(scope="module")
def graph():
    """A session with tensors that pass on what they are fed, whatever its shape."""
    import tensorflow as tf

    from tfserve_kit.embedded.loader import _runtime

    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, None, name="x")
        s = tf.compat.v1.placeholder(tf.string, None, name="s")
        k = tf.compat.v1.placeholder(tf.int32, None, name="k")
        tf.compat.v1.placeholder(tf.resource, None, name="handle")
        tf.compat.v1.placeholder(tf.float32, [None], name="row")
        tf.identity(x, name="numbers")
        tf.identity(s, name="texts")
        tf.strings.to_number(s, name="numbers_of_texts")
        tf.strings.as_string(graph.get_tensor_by_name("row:0"), name="row_texts")
        tf.reshape(x, k, name="numbers_of_shape")
        tf.reshape(s, k, name="texts_of_shape")
        tf.cast(x, tf.bfloat16, name="brief")
        tf.raw_ops.VarHandleOp(dtype=tf.float32, shape=[], name="resource")
        tf.raw_ops.EmptyTensorList(
            element_shape=-1, max_num_elements=-1, element_dtype=tf.float32, name="variant"
        )
        tf.cast(x, tf.dtypes.experimental.float8_e5m2, name="tiny")
        tf.no_op(name="nothing")
        with tf.compat.v1.Session(graph=graph) as session:
            yield _runtime(), session


@pytest.fixture(scope="module", params=[True, False], ids=["compiled", "plain"])
def servable(request, graph):
    tf, session = graph
    return SessionServable(tf, session, {}, compiled=request.param)


def refusal(servable, feeds, fetches):
    with pytest.raises(ServingError) as caught:
        servable.run(feeds, fetches)
    return caught.value


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (1,) * 32], ids=str)
def test_strings_of_any_usual_shape_pass(servable, shape):
    fed = strings(shape, b"a\0\xff\0")
    (found,) = servable.run({"s:0": fed}, ["texts:0"])
    assert found.dtype == object and found.shape == shape
    assert found.tolist() == fed.tolist()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (b"abc", "string: abc\n"),
        ("é".encode(), "string: é\n"),
        (b"a\xff\xc3(b", "string: a\udcff\udcc3(b\n"),
        (b"\xed\xa0\x80", "string: \udced\udca0\udc80\n"),
    ],
)
def test_error_that_quotes_bytes_keeps_them(servable, value, text):
    error = refusal(servable, {"s:0": strings((1,), value)}, ["numbers_of_texts:0"])
    assert error.code is Code.INVALID_ARGUMENT
    assert f"StringToNumberOp could not correctly convert {text}" in error.message


@pytest.mark.parametrize("dimensions", DEEP)
@pytest.mark.parametrize("size", [0, 1])
def test_strings_of_too_many_dimensions_are_refused_before_they_are_fed(servable, dimensions, size):
    error = refusal(servable, {"s:0": strings((size,) * dimensions)}, ["texts:0"])
    assert error.code is Code.INVALID_ARGUMENT
    assert (
        error.message == f"Tensor s:0 has {dimensions} dimensions; strings can have at most 32 here"
    )


@pytest.mark.parametrize("dtype", ["S1", "U1"])
def test_text_of_fixed_width_is_no_way_around_it(servable, dtype):
    assert refusal(servable, {"s:0": np.zeros((1,) * 33, dtype)}, ["texts:0"])


@pytest.mark.parametrize("dimensions", [*DEEP, 0, 1, 32])
def test_strings_of_many_dimensions_come_out_whole(servable, dimensions):
    shape = np.ones(dimensions, np.int32)
    (found,) = servable.run({"s:0": strings(1), "k:0": shape}, ["texts_of_shape:0"])
    assert found.shape == (1,) * dimensions
    assert found.ravel().tolist() == [b"a"]


@pytest.mark.parametrize("dimensions", TOO_DEEP)
@pytest.mark.parametrize(
    ("name", "feeds"),
    [
        ("numbers_of_shape", {"x:0": np.ones(1, np.float32)}),
        ("texts_of_shape", {"s:0": strings(1)}),
    ],
)
def test_output_of_more_dimensions_than_numpy_has_is_an_error(servable, name, feeds, dimensions):
    shape = np.ones(dimensions, np.int32)
    assert refusal(servable, {**feeds, "k:0": shape}, [f"{name}:0"])


def test_shape_that_the_graph_declares_proves_nothing(graph):
    # Nobody checks it for what is fed: one dimension goes in as many, and comes out so.
    servable = SessionServable(*graph, {}, compiled=True)
    (found,) = servable.run({"row:0": np.zeros((1,) * 40, np.float32)}, ["row_texts:0"])
    assert found.shape == (1,) * 40


NUMBERS = {
    "many dimensions": np.ones((1,) * 64, np.float32),
    "empty": np.ones((0,) * 64, np.float32),
    "scalar": np.float32(3)[()],
    "strided": np.arange(10, dtype=np.float32)[::-2],
    "by columns": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    "one value": np.broadcast_to(np.float32(3), (1000, 1000)),
    "read-only": np.frombuffer(b"\0\0\x80?" * 2, np.float32),
    "misaligned": np.frombuffer(b"\0\0\0\x80?", np.uint8)[1:].view(np.float32),
}


@pytest.mark.parametrize("fed", NUMBERS.values(), ids=NUMBERS)
def test_numbers_pass_however_they_lie_in_memory(servable, fed):
    found, again = servable.run({"x:0": np.asarray(fed)}, ["numbers:0", "numbers:0"])
    np.testing.assert_array_equal(found, fed)
    np.testing.assert_array_equal(again, fed)


WRONG = {
    "strings for numbers": {"x:0": strings(2)},
    "numbers for strings": {"s:0": np.ones(2, np.float32)},
    "doubles": {"x:0": np.ones(2)},
    "dates": {"x:0": np.zeros(2, "M8[s]")},
    "records": {"x:0": np.zeros(2, [("a", "i4")])},
    "no texts": {"s:0": strings(2, None)},
    "half a character": {"s:0": strings(2, "\ud800")},
    "resource": {"handle:0": np.zeros((), np.int64)},
    "resource of strings": {"handle:0": strings(())},
    "no such tensor": {"nope:0": np.ones(1)},
    "no such output": {"x:7": np.ones(1, np.float32)},
    "no name": {"": np.ones(1)},
    "no input": {"^nothing": np.ones(1)},
    "NUL": {"x\0:0": np.ones(1)},
}


@pytest.mark.parametrize("feeds", WRONG.values(), ids=WRONG)
def test_what_cannot_be_fed_is_an_error(graph, feeds):
    servable = SessionServable(*graph, {}, compiled=True)
    name = "texts:0" if "s:0" in feeds else "numbers:0"
    assert refusal(servable, feeds, [name]).message


@pytest.mark.parametrize(
    "name",
    ["nope:0", "numbers:7", "numbers:-2", "nothing:0", "nothing", "^nothing", "", ":", ":0",
     "numbers:99999999999999999999", "x\0:0", "\u00fc:0", "resource:0", "variant:0", "tiny:0"],
)  # fmt: skip
def test_what_cannot_be_answered_is_an_error(servable, name):
    error = refusal(servable, {"x:0": np.ones(1, np.float32)}, [name])
    assert error.code in {Code.INVALID_ARGUMENT, Code.UNIMPLEMENTED, Code.OUT_OF_RANGE}


def test_brief_numbers_come_out(servable):
    (found,) = servable.run({"x:0": np.ones(2, np.float32)}, ["brief:0"])
    assert found.astype(np.float32).tolist() == [1, 1]


@pytest.mark.parametrize("fetch", ["numbers:0", "row_texts:0"])
def test_call_that_many_want_at_once_is_made_once(graph, monkeypatch, fetch):
    made = []

    def slowly(*what):
        made.append(what)
        time.sleep(0.05)
        return compiled_call(*what)

    monkeypatch.setattr("tfserve_kit.embedded.servable.compiled_call", slowly)
    servable = SessionServable(*graph, {}, compiled=True)
    feeds = {"row:0" if fetch.startswith("row") else "x:0": np.ones(2, np.float32)}
    with ThreadPoolExecutor(8) as callers:
        found = list(callers.map(lambda _: servable.run(feeds, [fetch])[0].size, range(8)))
    assert found == [2] * 8
    assert len(made) == 1


def test_choices_of_outputs_do_not_pile_up(graph):
    servable = SessionServable(*graph, {}, compiled=True)
    one = np.ones(1, np.float32)
    for number in range(200):
        fetches = ["numbers:0" if number >> bit & 1 else "brief:0" for bit in range(8)]
        assert len(servable.run({"x:0": one}, fetches)) == 8
    assert servable._call.cache_info().currsize <= 64


# TensorFlow Lite


@pytest.fixture(scope="module")
def lite():
    """Models that give what they are fed a shape: strings and numbers."""
    import tensorflow as tf

    from tfserve_kit.embedded.loader import _interpreter
    from tfserve_kit.embedded.servable import TfLiteServable

    def converted(dtype):
        class Shaper(tf.Module):
            @tf.function(
                input_signature=[
                    tf.TensorSpec(None, dtype, name="x"),
                    tf.TensorSpec([None], tf.int32, name="k"),
                ]
            )
            def __call__(self, x, k):
                return {"y": tf.reshape(x, k)}

        module = Shaper()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return tf.lite.TFLiteConverter.from_concrete_functions(
                [module.__call__.get_concrete_function()], module
            ).convert()

    models = {"numbers": converted(tf.float32), "strings": converted(tf.string)}
    return {kind: TfLiteServable([_interpreter(model)]) for kind, model in models.items()}


def shape_lite(lite, kind, x, shape):
    (signature,) = lite[kind].signatures.values()
    feeds = {
        signature.inputs["x"].name: x,
        signature.inputs["k"].name: np.asarray(shape, np.int32),
    }
    return lite[kind].run(feeds, [signature.outputs["y"].name])[0]


@pytest.mark.parametrize("shape", [(), (1,), (1,) * 8, (1,) * 64], ids=len)
def test_lite_model_answers_in_any_shape_that_numpy_has(lite, shape):
    text, number = strings(1, b"a\0\xff\0"), np.ones(1, np.float32)
    for kind, x in (("strings", text), ("numbers", number)):
        found = shape_lite(lite, kind, x, shape)
        assert found.shape == shape and found.ravel().tolist() == x.tolist()


def test_scalar_string_is_what_a_lite_model_is_fed(lite):
    assert shape_lite(lite, "strings", strings((), b"abc"), [1]).tolist() == [b"abc"]


def test_one_long_string_costs_a_lite_model_nothing_for_the_others(lite):
    texts = strings(20_000, b"")
    texts[7] = b"x" * 1_000_000  # 20 GB if all were as long
    found = shape_lite(lite, "strings", texts, [-1])
    assert found[7] == texts[7] and found[8] == b""


LITE_FAULTS = {
    "deep strings": ("strings", strings((1,) * 33), [1]),
    "deep texts": ("strings", np.zeros((1,) * 33, "S1"), [1]),
    "no texts": ("strings", strings(2, None), [2]),
    "strings": ("numbers", strings(2), [2]),
    "doubles": ("numbers", np.ones(2), [2]),
    "numbers": ("strings", np.ones(2, np.float32), [2]),
    "long": ("numbers", np.zeros((0, 1 << 31), np.float32), [0]),
    "another size": ("numbers", np.ones(2, np.float32), [3]),
    **{
        f"{kind} in {dimensions}": (kind, x, [1] * dimensions)
        for dimensions in TOO_DEEP
        for kind, x in (("numbers", np.ones(1, np.float32)), ("strings", strings(1)))
    },
}


@pytest.mark.parametrize("fault", LITE_FAULTS.values(), ids=LITE_FAULTS)
def test_fault_of_a_lite_model_is_an_error_and_the_next_request_is_answered(lite, fault):
    kind, x, shape = fault
    with pytest.raises(ServingError):
        shape_lite(lite, kind, x, shape)
    fine = strings(2) if kind == "strings" else np.ones(2, np.float32)
    assert shape_lite(lite, kind, fine, [2, 1]).tolist() == fine.reshape(2, 1).tolist()


# SavedModels whose signatures do not say the truth


def saved(folder, signature):
    """Write a SavedModel that doubles `x:0`, with a signature that is made up."""
    import tensorflow as tf

    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, [None], name="x")
        tf.multiply(x, 2.0, name="y")
        message = protos.SavedModel(saved_model_schema_version=1)
        meta = message.meta_graphs.add()
        meta.meta_info_def.tags.append("serve")
        meta.graph_def.MergeFromString(graph.as_graph_def().SerializeToString())
    meta.signature_def["serving_default"].CopyFrom(protos.from_text("SignatureDef", signature))
    folder.mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(message.SerializeToString())


GOOD_IN = 'inputs { key: "x" value { name: "x:0" dtype: DT_FLOAT } }'
GOOD_OUT = 'outputs { key: "y" value { name: "y:0" dtype: DT_FLOAT } }'
LIES = {
    "input is not there": f"{GOOD_IN.replace('x:0', 'z:0')} {GOOD_OUT}",
    "output is not there": f'{GOOD_IN} outputs {{ key: "y" value {{ name: "z:0" }} }}',
    "another type": f'inputs {{ key: "x" value {{ name: "x:0" dtype: DT_STRING }} }} {GOOD_OUT}',
    "unknown type": f'inputs {{ key: "x" value {{ name: "x:0" dtype: 99 }} }} {GOOD_OUT}',
    "resource": f'inputs {{ key: "x" value {{ name: "x:0" dtype: DT_RESOURCE }} }} {GOOD_OUT}',
    "no type": f'inputs {{ key: "x" value {{ name: "x:0" }} }} {GOOD_OUT}',
    "no name": f'inputs {{ key: "x" value {{ dtype: DT_FLOAT }} }} {GOOD_OUT}',
    "no outputs": GOOD_IN,
    "default is nonsense": f'{GOOD_IN} {GOOD_OUT} defaults {{ key: "x" value {{ dtype: 99 }} }}',
    "default is too large": f"""{GOOD_IN} {GOOD_OUT} defaults {{ key: "x" value {{ dtype: DT_FLOAT
        tensor_shape {{ dim {{ size: 1099511627776 }} }} float_val: [1, 2] }} }}""",
    "default is deep": f"""{GOOD_IN} {GOOD_OUT} defaults {{ key: "x" value {{ dtype: DT_STRING
        tensor_shape {{ {"dim { size: 1 } " * 40} }} string_val: "a" }} }}""",
}


@pytest.mark.parametrize("signature", LIES.values(), ids=LIES)
@pytest.mark.parametrize("kind", ["float", "strings", "nothing"])
def test_signature_that_lies_leads_to_an_error(tmp_path, signature, kind):
    from tfserve_kit.embedded import signatures
    from tfserve_kit.embedded.loader import SavedModelLoader
    from tfserve_kit.embedded.settings import SessionOptions

    saved(tmp_path / "1", signature)
    servable = SavedModelLoader(SessionOptions())(tmp_path / "1")
    inputs = {"float": {"x": np.ones(2, np.float32)}, "strings": {"x": strings(2)}, "nothing": {}}
    is_lie = not ("defaults" in signature and kind == "float")
    with pytest.raises(ServingError) if is_lie else nullcontext():
        signatures.run_signature(servable.signatures, servable.run, "", inputs[kind])
