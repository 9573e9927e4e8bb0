"""Numbers of all kinds, and answers whose rows are not those of the request."""

import numpy as np
import tensorflow as tf

from tests.field.zoo.registry import model
from tests.field.zoo.saving import save, spec

X = spec([None], tf.float32, "x")


def of(name, *specs):
    """Register a model by what it answers."""

    def register(serve):
        return model(name)(lambda folder: save(folder, serve, *specs))

    return register


@model("half_plus_two")
def half_plus_two(folder):
    module = tf.Module()
    module.half, module.two = tf.Variable(0.5), tf.Variable(2.0)
    save(folder, lambda x: {"y": module.half * x + module.two}, X, module=module)


@of("float16", spec([None, 2], tf.float16, "x"))
def float16(x):
    return {"y": x * 2}


@of("bfloat16", spec([None, 2], tf.bfloat16, "x"))
def bfloat16(x):
    return {"y": x * 2}


@of("complex64", spec([None], tf.complex64, "z"))
def complex64(z):
    return {"conjugate": tf.math.conj(z)}


@of("int64_ids", spec([None], tf.int64, "id"))
def int64_ids(id):  # noqa: A002
    return {"same": id, "unsigned": tf.cast(id, tf.uint64)}


@of("uint64_ids", spec([None], tf.uint64, "id"))
def uint64_ids(id):  # noqa: A002
    return {"same": id}


@model("quantised")
def quantised(folder):
    """Weights of int8 with a scale, dequantised in the graph; the input is uint8."""
    module = tf.Module()
    module.weights = tf.Variable(np.int8([[100, -50], [0, 25]]), trainable=False)

    def serve(x):
        weights = tf.cast(module.weights, tf.float32) * 0.02
        return {"y": tf.cast(x, tf.float32) @ weights}

    save(folder, serve, spec([None, 2], tf.uint8, "x"), module=module)


@of("dequantised", X)
def dequantised(x):
    """Quantised to eight bits and back, as quantised kernels do between each other."""
    low, high = tf.constant(0.0), tf.constant(255.0)
    eight, low, high = tf.quantization.quantize(x, low, high, tf.quint8)
    return {"y": tf.quantization.dequantize(eight, low, high)}


@of("fake_quantised", X)
def fake_quantised(x):
    """What training for quantisation leaves in a graph."""
    return {"y": tf.quantization.fake_quant_with_min_max_args(x, 0, 25.5)}


@of("logarithm", X)
def logarithm(x):
    """NaN and infinities are answers too."""
    return {"y": tf.math.log(x)}


@of("positive_only", X)
def positive_only(x):
    """There may be no row at all in the answer."""
    kept = tf.where(x > 0)[:, 0]
    return {"values": tf.gather(x, kept), "rows": kept}


@of("sum_of_rows", X)
def sum_of_rows(x):
    return {"total": tf.reduce_sum(x)[None]}


@of("constant_beside_rows", spec([None, 1], tf.int32, "keys"))
def constant_beside_rows(keys):
    return {"keys_again": tf.identity(keys), "version": tf.constant([1.0, 2.0])}


@of("squeezed", X)
def squeezed(x):
    """One row gives a number without any axis."""
    return {"y": tf.squeeze(x * 2)}


@of("scalar_factor", spec([None, 2], tf.float32, "x"), spec([], tf.float32, "factor"))
def scalar_factor(x, factor):
    return {"y": x * factor}


@of("scalars_only", spec([], tf.float32, "a"), spec([], tf.float32, "b"))
def scalars_only(a, b):
    return {"sum": a + b}


@of("matrix", spec([2, 5], tf.float32, "m"))
def matrix(m):
    """No axis is open: one matrix, one answer."""
    return {"transposed": tf.transpose(m), "total": tf.reduce_sum(m)}


@of("large_answer", spec([], tf.int32, "n"))
def large_answer(n):
    """As many thousands of numbers as asked for."""
    return {"y": tf.fill([n, 1000], 0.5)}
