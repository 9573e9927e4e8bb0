"""Makes SavedModels to measure with: `python -m bench.savedmodel OUT MEGABYTES|NETWORK`.

A number makes a model of that many MB (of 10^6 bytes); a name, such as `MobileNetV2`, one of keras'
networks with random weights. Needs tensorflow; a process of its own, because that keeps the memory.
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
    else:
        network(*sys.argv[1:])
