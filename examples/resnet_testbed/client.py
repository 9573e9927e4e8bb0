"""Send pictures to the test bed as one batch, and say what to do where it is too large."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfserve_kit import connect
from tfserve_kit.errors import InvalidRequest
from tfserve_kit.pictures.inputs import image_input
from tfserve_kit.pictures.prepare import prepare
from tfserve_kit.pictures.preprocessing import Preprocessing


def main() -> int:
    """Ask once with all rows; exit status 1 where only smaller batches were answered."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="grpc://localhost:8500")
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE")
    options = parser.parse_args()
    with connect(options.url) as client:
        signature = client.metadata("resnet").signatures["serving_default"]
        wanted = image_input(signature, Preprocessing(mode="caffe"))
        rows = np.stack(
            [prepare(each.read_bytes(), wanted, name=each.name) for each in options.images]
        )
        try:
            answer = client.predict("resnet", {wanted.alias: rows})
        except InvalidRequest as error:
            sys.stderr.write(f"{error}\n")  # says what to do about it, too
            parts = client.predict_batch("resnet", {wanted.alias: rows})
            show("answered in parts by predict_batch", parts.outputs)
            return 1
        show("answered in one batch", answer.outputs)
    return 0


def show(how: str, outputs: Mapping[str, NDArray[Any]]) -> None:
    """Print the best class of each picture.

    Args:
        how: how they were asked for.
        outputs: `classes`, string [batch, 5].
    """
    best = [name.decode() for name in outputs["classes"][:, 0]]
    print(f"{len(best)} pictures, {how}: {', '.join(best)}")


if __name__ == "__main__":
    raise SystemExit(main())
