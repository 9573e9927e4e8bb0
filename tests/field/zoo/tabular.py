"""Rows of tables, texts, ids and tf.Examples."""

import tensorflow as tf

from tests.field.zoo.registry import model
from tests.field.zoo.saving import changed, save, spec


@model("columns")
def columns(folder):
    """Named columns of three types, one value per row."""

    def serve(age, income, city):
        score = age / 100 + tf.cast(income, tf.float32) / 1000
        return {"score": tf.where(tf.equal(city, "Graz"), score + 1, score)}

    save(
        folder,
        serve,
        spec([None], tf.float32, "age"),
        spec([None], tf.int64, "income"),
        spec([None], tf.string, "city"),
    )


@model("examples")
def examples(folder):
    """Serialized tf.Examples: one signature classifies, one regresses, the default predicts."""
    features = {
        "age": tf.io.FixedLenFeature([], tf.float32),
        "city": tf.io.FixedLenFeature([], tf.string, default_value="?"),
    }
    serialized = [spec([None], tf.string, "inputs")]

    def score(inputs):
        read = tf.io.parse_example(inputs, features)
        return tf.where(tf.equal(read["city"], "Graz"), read["age"] / 100, 0.0)

    @tf.function(input_signature=serialized)
    def classify(inputs):
        yes = score(inputs)
        names = tf.tile([["no", "yes"]], [tf.shape(yes)[0], 1])
        return {"scores": tf.stack([1 - yes, yes], 1), "classes": names}

    @tf.function(input_signature=serialized)
    def regress(inputs):
        return {"outputs": score(inputs)}

    save(folder, lambda inputs: {"score": score(inputs)}, *serialized,
         classify=classify, regress=regress)  # fmt: skip

    def name_methods(proto):
        signatures = proto.meta_graphs[0].signature_def
        for name in ("classify", "regress"):
            signatures[name].method_name = f"tensorflow/serving/{name}"

    changed(folder, name_methods)


@model("ragged_in")
def ragged_in(folder):
    rows = tf.RaggedTensorSpec([None, None], tf.float32)
    save(folder, lambda rows: {"total": tf.reduce_sum(rows, axis=1)}, rows)


@model("ragged_out")
def ragged_out(folder):
    save(folder, lambda n: {"counted": tf.ragged.range(n)}, spec([None], tf.int32, "n"))


@model("sparse_in")
def sparse_in(folder):
    rows = tf.SparseTensorSpec([None, 5], tf.float32)
    save(folder, lambda rows: {"total": tf.sparse.reduce_sum(rows, axis=1)}, rows)


def _lookup(folder, module):
    save(folder, lambda word: {"id": module.table.lookup(word)}, spec([None], tf.string, "word"),
         module=module)  # fmt: skip


@model("table")
def table(folder):
    module = tf.Module()
    entries = tf.lookup.KeyValueTensorInitializer(["a", "b"], tf.constant([1, 2], tf.int64))
    module.table = tf.lookup.StaticHashTable(entries, -1)
    _lookup(folder, module)


@model("vocabulary")
def vocabulary(folder):
    """The words stand in a file that is one of the model's assets."""
    file = folder.parent / "vocabulary.txt"
    file.write_text("a\nb\nc\n")
    index = tf.lookup.TextFileIndex
    entries = tf.lookup.TextFileInitializer(
        str(file), tf.string, index.WHOLE_LINE, tf.int64, index.LINE_NUMBER
    )
    module = tf.Module()
    module.table = tf.lookup.StaticHashTable(entries, -1)
    _lookup(folder, module)
    file.unlink()


@model("table_never_filled")
def table_never_filled(folder):
    """The signature reads a table that loading the model does not fill."""
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        word = v1.placeholder(tf.string, [None], "word")
        entries = tf.lookup.KeyValueTensorInitializer(["a", "b"], tf.constant([1, 2], tf.int64))
        found = v1.lookup.StaticHashTable(entries, -1).lookup(word)
        signature = v1.saved_model.predict_signature_def({"word": word}, {"id": found})
        builder = v1.saved_model.Builder(str(folder))
        builder.add_meta_graph_and_variables(session, ["serve"], {"serving_default": signature})
        builder.save()


@model("token_ids")
def token_ids(folder):
    """Sequences of any length, with the mask that tells padding."""

    def serve(input_ids, attention_mask):
        kept = tf.cast(input_ids * attention_mask, tf.float32)
        total = tf.reduce_sum(kept, 1) / tf.cast(tf.reduce_sum(attention_mask, 1), tf.float32)
        return {"logits": tf.stack([-total, total], 1)}

    ids = spec([None, None], tf.int32, "input_ids")
    save(folder, serve, ids, spec([None, None], tf.int32, "attention_mask"))


@model("words")
def words(folder):
    """Texts go in and come out; `copy_bytes` is base64 in JSON, by its name."""

    def serve(text):
        return {"echo": text, "length": tf.strings.length(text, "UTF8_CHAR"), "copy_bytes": text}

    save(folder, serve, spec([None], tf.string, "text"))
