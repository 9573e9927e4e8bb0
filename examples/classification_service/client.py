"""Classify a JPEG with the `Classifier` service, and print its scores and the time taken."""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import services_pb2
import services_pb2_grpc

from tfserve_kit.errors import TfkitError
from tfserve_kit.pictures.inputs import ImageInput
from tfserve_kit.pictures.prepare import prepare
from tfserve_kit.pictures.preprocessing import Preprocessing
from tfserve_kit.savedmodel import TensorSpec
from tfserve_kit.tensors import dtypes

# What the digits were trained on: 28 x 28 grey pixels, from 0 to 1, row after row.
PICTURE = ImageInput(
    "image",
    TensorSpec("image", dtypes.by_name("float"), (None, 784)),
    Preprocessing(height=28, width=28, channels=1, value_range=(0.0, 1.0)),
)


def classify(server: str, image: Path, timeout_s: float = 30.0) -> tuple[list[Any], float]:
    """Return the scores of a picture, best first, and how long the call took, in seconds.

    Raises:
        InvalidRequest: the file is no picture.
        grpc.RpcError: the service refused it, or is not there.
    """
    row = prepare(image.read_bytes(), PICTURE, name=str(image))
    with grpc.insecure_channel(server) as channel:
        stub = services_pb2_grpc.ClassifierStub(channel)
        started_s = time.perf_counter()
        answer = stub.Classify(services_pb2.ClassifyRequest(image=row.tolist()), timeout=timeout_s)
        return list(answer.scores), time.perf_counter() - started_s


def main() -> int:
    """Classify one picture; exit status 1 where that fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", default="localhost:9000", metavar="HOST:PORT")
    parser.add_argument("--image", type=Path, required=True, metavar="FILE.jpg")
    options = parser.parse_args()
    try:
        scores, took_s = classify(options.server, options.image)
    except grpc.RpcError as error:
        sys.stderr.write(f"{options.server}: {error.details()} ({error.code().name})\n")
        return 1
    except (TfkitError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    print("CLASS  LABEL  SCORE")
    for each in scores:
        print(f"{each.index:<5}  {each.label:<5}  {each.score:.6f}")
    print(f"{options.image.name}: label {scores[0].label}, {took_s * 1000:.1f} ms")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
