"""Signatures: several, none, without inputs, with odd names, with defaults."""

import tensorflow as tf
from google.protobuf import text_format

from tests.field.zoo.registry import model
from tests.field.zoo.saving import changed, save, spec

X = spec([None], tf.float32, "x")


def twice(x):
    return {"y": 2 * x}


@model("several_signatures")
def several(folder):
    halve = tf.function(lambda x: {"half": x / 2}, input_signature=[X])
    words = [spec([None], tf.string, "word")]
    lengths = tf.function(lambda word: {"n": tf.strings.length(word)}, input_signature=words)
    save(folder, twice, X, halve=halve, lengths=lengths)


@model("no_serving_default")
def no_serving_default(folder):
    module = tf.Module()
    module.twice = tf.function(twice, input_signature=[X])
    tf.saved_model.save(module, str(folder), signatures={"double": module.twice})


@model("no_signature")
def no_signature(folder):
    module = tf.Module()
    module.factor = tf.Variable(2.0)
    module.twice = tf.function(lambda x: {"y": module.factor * x})
    module.twice(tf.constant([1.0]))
    tf.saved_model.save(module, str(folder))


@model("signature_without_input")
def without_input(folder):
    names = tf.function(lambda: {"names": tf.constant(["a", "b"])}, input_signature=[])
    save(folder, twice, X, names=names)


@model("optional_input")
def optional_input(folder):
    def serve(x, factor):
        return {"y": x * factor}

    save(folder, serve, X, spec([None], tf.float32, "factor"))

    def give_default(proto):
        signature = proto.meta_graphs[0].signature_def["serving_default"]
        signature.defaults["factor"].CopyFrom(tf.make_tensor_proto([3.0]))

    changed(folder, give_default)


@model("odd_names")
def odd_names(folder):
    def serve(x):
        return {"instances": x, "weird name/é": x + 1}

    save(folder, serve, X)


@model("python_function")
def python_function(folder):
    def serve(x):
        return {"y": tf.py_function(lambda value: value * 2, [x], tf.float32)}

    save(folder, serve, X)


@model("file_reader")
def file_reader(folder):
    def serve(path):
        return {"data": tf.map_fn(tf.io.read_file, path)}

    save(folder, serve, spec([None], tf.string, "path"))


@model("as_text")
def as_text(folder):
    """`saved_model.pbtxt` instead of `saved_model.pb`."""
    save(folder, twice, X)
    proto = changed(folder, lambda proto: None)
    (folder / "saved_model.pbtxt").write_text(text_format.MessageToString(proto))
    (folder / "saved_model.pb").unlink()


@model("another_tag")
def another_tag(folder):
    save(folder, twice, X)

    def tag(proto):
        del proto.meta_graphs[0].meta_info_def.tags[:]
        proto.meta_graphs[0].meta_info_def.tags.extend(["train"])

    changed(folder, tag)
