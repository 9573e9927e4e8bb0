"""Makes a large SavedModel: `python -m bench.savedmodel OUT MEGABYTES`. Needs tensorflow.

A process of its own, because tensorflow keeps the memory.
"""

import sys

_VARIABLES = 5


def main(out: str, megabytes: int) -> None:
    """Save a model whose variables fill so many MB (of 10^6 bytes) with random numbers."""
    import tensorflow as tf

    rows = megabytes * 1_000_000 // 4 // _VARIABLES // 1000
    model = tf.Module()
    model.weights = [tf.Variable(tf.random.normal([rows, 1000])) for _ in range(_VARIABLES)]

    def serve(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.add_n([x @ weights for weights in model.weights])}

    model.serve = tf.function(serve, [tf.TensorSpec([None, rows], tf.float32, name="x")])
    tf.saved_model.save(model, out, signatures={"serving_default": model.serve})


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
