"""Ask the served InceptionV3 what is in a picture, over gRPC or REST, and print the label."""

import argparse
import base64
import sys
from pathlib import Path

from tfserve_kit import connect
from tfserve_kit.errors import TfkitError

# Scheme of the address, and TensorFlow Serving's port, by format of the request.
FORMATS = {"GRPC": ("grpc", 8500), "REST": ("http", 8501)}


def label(url: str, image: Path) -> str:
    """Return the most likely label of a JPEG.

    Raises:
        OSError: the file cannot be read.
        TfkitError: the request failed.
    """
    text = base64.urlsafe_b64encode(image.read_bytes())
    with connect(url) as client:
        answer = client.predict("inception", {"images": [text]})
    return bytes(answer.outputs["classes"][0, 0]).decode()


def main() -> int:
    """Print the label; exit status 1 where that fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-f", "--format", choices=FORMATS, default="GRPC")
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--port", type=int, help="8500 for GRPC, 8501 for REST")
    parser.add_argument("image", type=Path, metavar="IMAGE.jpg")
    options = parser.parse_args()
    scheme, port = FORMATS[options.format]
    try:
        print(label(f"{scheme}://{options.host}:{options.port or port}", options.image))
    except (TfkitError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
