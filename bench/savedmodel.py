"""Makes SavedModels to measure with: `python -m bench.savedmodel OUT WHAT`.

A number makes a model of that many MB (of 10^6 bytes); `digits` one layer for handwritten digits;
`slow` something that takes its time; `summing` something that adds up a picture's values; another
name, such as `MobileNetV2`, one of keras' networks with random weights. Needs tensorflow; a process
of its own, because that keeps the memory.
"""

import sys

_VARIABLES = 5
_IMAGE = (224, 224, 3)


def large(out: str, megabytes: int) -> None:
    """Save a model whose variables are random numbers."""
    import tensorflow as tf

    rows = megabytes * 1_000_000 // 4 // _VARIABLES // 1000
    model = tf.Module()
    model.weights = [tf.Variable(tf.random.normal([rows, 1000])) for _ in range(_VARIABLES)]

    def serve(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.add_n([x @ weights for weights in model.weights])}

    model.serve = tf.function(serve, [tf.TensorSpec([None, rows], tf.float32, name="x")])
    tf.saved_model.save(model, out, signatures={"serving_default": model.serve})


def digits(out: str) -> None:
    """Save one dense layer of random weights: images float32 [batch, 784] to scores [batch, 10]."""
    import tensorflow as tf

    model = tf.Module()
    model.weights = tf.Variable(tf.random.normal([784, 10]))

    def serve(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"scores": tf.nn.softmax(images @ model.weights)}

    spec = tf.TensorSpec([None, 784], tf.float32, name="images")
    model.serve = tf.function(serve, [spec])
    tf.saved_model.save(model, out, signatures={"serving_default": model.serve})


def slow(out: str) -> None:
    """Save a model that works as many rounds as it is told: x int32 [batch] to y float32 [].

    A round takes a tenth of a millisecond or so, of one thread.
    """
    import tensorflow as tf

    model = tf.Module()
    model.weights = tf.Variable(tf.random.normal([64, 64]) / 8.0)

    def serve(x: tf.Tensor) -> dict[str, tf.Tensor]:
        def work(left: tf.Tensor, state: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            for _ in range(8):
                state = tf.tanh(state @ model.weights)
            return left - 1, state

        going_on = lambda left, _: left > 0  # noqa: E731
        start = (tf.reduce_max(x), tf.ones([64, 64]))
        _, state = tf.while_loop(going_on, work, start, parallel_iterations=1)
        return {"y": tf.reduce_sum(state)}

    model.serve = tf.function(serve, [tf.TensorSpec([None], tf.int32, name="x")])
    tf.saved_model.save(model, out, signatures={"serving_default": model.serve})


def summing(out: str) -> None:
    """Save a model that adds: x float32 [batch, 224, 224, 3] to y [batch]."""
    import tensorflow as tf

    model = tf.Module()
    spec = tf.TensorSpec([None, *_IMAGE], tf.float32, name="x")
    model.serve = tf.function(lambda x: {"y": tf.reduce_sum(x, [1, 2, 3])}, [spec])
    tf.saved_model.save(model, out, signatures={"serving_default": model.serve})


def network(out: str, name: str) -> None:
    """Save one of keras' networks for pictures: x float32 [batch, 224, 224, 3] to scores."""
    import tensorflow as tf

    model = getattr(tf.keras.applications, name)(weights=None, input_shape=_IMAGE)

    def serve(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"scores": model(x, training=False)}

    archive = tf.keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("serve", serve, [tf.TensorSpec([None, *_IMAGE], tf.float32, name="x")])
    archive.write_out(out, verbose=False)


if __name__ == "__main__":
    if sys.argv[2].isdecimal():
        large(sys.argv[1], int(sys.argv[2]))
    elif sys.argv[2] in {"digits", "slow", "summing"}:
        {"digits": digits, "slow": slow, "summing": summing}[sys.argv[2]](sys.argv[1])
    else:
        network(*sys.argv[1:])
