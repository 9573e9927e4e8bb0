"""Export InceptionV3 so that a picture's bytes go in and names come out, all within the graph.

The input is web-safe base64 text of a JPEG, which travels as it is over gRPC and in JSON. Needs the
tensorflow package.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

from tfserve_kit.pictures.preprocessing import Preprocessing

# Tensorflow reads these once, as it is imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import tensorflow as tf

SIDE, CHANNELS, TOP, SEED = 299, 3, 5, 0
_CLASS_INDEX = (
    "https://storage.googleapis.com/download.tensorflow.org/data/imagenet_class_index.json"
)


def class_names(weights: str | None) -> list[str]:
    """Return the name of each class: ImageNet's, or numbered ones for random weights."""
    if weights is None:
        return [f"class_{index:04}" for index in range(1000)]
    index = json.loads(Path(tf.keras.utils.get_file(origin=_CLASS_INDEX)).read_text("utf-8"))
    return [index[str(position)][1] for position in range(1000)]


def decoded(image: Any) -> Any:
    """Turn one picture, string [], into float32 [299, 299, 3], -1 to 1."""
    pixels = tf.io.decode_jpeg(tf.io.decode_base64(image), channels=CHANNELS)
    pixels = tf.image.convert_image_dtype(pixels, tf.float32)
    return tf.image.resize(pixels, [SIDE, SIDE]) * 2.0 - 1.0


def export(network: Any, names: list[str], out: Path) -> None:
    """Write the network between the decoding of pictures and the look-up of names.

    Args:
        network: float32 [batch, 299, 299, 3], -1 to 1, to probabilities [batch, classes].
        names: of the classes.
        out: where the SavedModel goes, with a note for `tfkit` on how pictures are encoded. Its
            signature takes `images`, string [batch], web-safe base64 of a JPEG; it gives `classes`,
            string [batch, 5], and `scores`, float32 [batch, 5], the best first.
    """

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="images")])  # type: ignore[untyped-decorator]
    def serve(images: Any) -> dict[str, Any]:
        pixels = tf.TensorSpec([SIDE, SIDE, CHANNELS], tf.float32)
        batch = tf.map_fn(decoded, images, fn_output_signature=pixels)
        scores, indices = tf.math.top_k(network(batch, training=False), TOP)
        return {"classes": tf.gather(tf.constant(names), indices), "scores": scores}

    # The variables themselves, not keras' layers: a server would not find what layers hold.
    module = tf.Module()
    module.weights = [variable.value for variable in network.variables]
    tf.saved_model.save(module, str(out), signatures={"serving_default": serve})
    Preprocessing(encoding="websafe").write(out)


def main() -> None:
    """Build the network and export it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder for the SavedModel")
    weights_help = "download keras' weights (96 MB), or draw them at random (%(default)s)"
    parser.add_argument(
        "--weights", choices=["imagenet", "none"], default="none", help=weights_help
    )
    options = parser.parse_args()
    weights = None if options.weights == "none" else options.weights
    tf.keras.utils.set_random_seed(SEED)
    names = class_names(weights)
    export(tf.keras.applications.InceptionV3(weights=weights), names, options.out)
    print(f"SavedModel: {options.out} ({len(names)} classes, from {names[0]} to {names[-1]})")


if __name__ == "__main__":
    main()
