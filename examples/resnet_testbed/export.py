"""Export ResNet-50 as a zip, the way a model is delivered: pictures in, names and scores out.

Needs the tensorflow package.
"""

import argparse
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from tfserve_kit.pictures.preprocessing import Preprocessing

# Tensorflow reads these once, as it is imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import tensorflow as tf

SIDE, TOP, SEED = 224, 5, 0
_CLASS_INDEX = (
    "https://storage.googleapis.com/download.tensorflow.org/data/imagenet_class_index.json"
)


def class_names(weights: str | None) -> list[str]:
    """Return the name of each class: ImageNet's, or numbered ones for random weights."""
    if weights is None:
        return [f"class_{index:04}" for index in range(1000)]
    index = json.loads(Path(tf.keras.utils.get_file(origin=_CLASS_INDEX)).read_text("utf-8"))
    return [index[str(position)][1] for position in range(1000)]


def export(network: Any, names: list[str], out: Path) -> None:
    """Write a SavedModel that names the classes itself.

    Args:
        network: float32 [batch, 224, 224, 3], as keras prepares pictures for ResNet-50, to
            probabilities [batch, classes].
        names: of the classes.
        out: where it goes. Its signature takes `images`, as the network; it gives `classes`,
            string [batch, 5], and `scores`, float32 [batch, 5], the best first.
    """

    @tf.function(input_signature=[tf.TensorSpec([None, SIDE, SIDE, 3], tf.float32, name="images")])  # type: ignore[untyped-decorator]
    def serve(images: Any) -> dict[str, Any]:
        scores, indices = tf.math.top_k(network(images, training=False), TOP)
        return {"classes": tf.gather(tf.constant(names), indices), "scores": scores}

    # The variables themselves, not keras' layers: a server would not find what layers hold.
    module = tf.Module()
    module.weights = [variable.value for variable in network.variables]
    tf.saved_model.save(module, str(out), signatures={"serving_default": serve})
    Preprocessing(height=SIDE, width=SIDE, channels=3, mode="caffe").write(out)


def main() -> None:
    """Build the network, export it, and pack it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, metavar="MODEL.zip")
    weights_help = "download keras' weights (103 MB), or draw them at random (%(default)s)"
    parser.add_argument(
        "--weights", choices=["imagenet", "none"], default="none", help=weights_help
    )
    options = parser.parse_args()
    weights = None if options.weights == "none" else options.weights
    tf.keras.utils.set_random_seed(SEED)
    network = tf.keras.applications.ResNet50(weights=weights)
    with tempfile.TemporaryDirectory() as scratch:
        export(network, class_names(weights), Path(scratch) / "resnet")
        packed = shutil.make_archive(str(options.out.with_suffix("")), "zip", scratch, "resnet")
    print(f"{Path(packed).name}: a SavedModel in its folder resnet/")


if __name__ == "__main__":
    main()
