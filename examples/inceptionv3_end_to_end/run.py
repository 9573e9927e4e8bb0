"""InceptionV3 from bytes to label: export, warm up, push, serve, and ask over gRPC and REST.

Shows every command before it runs it. Works in a temporary folder and stops its server at the end.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

HERE = Path(__file__).resolve().parent
IMAGE = HERE.parents[1] / "data" / "digits" / "jpeg" / "digit-3.jpg"


def run(*command: str | Path) -> str:
    """Show a command, run it, and show and return what it prints."""
    print(f"\n$ {shlex.join(map(str, command))}", flush=True)
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    print(done.stdout, end="", flush=True)
    done.check_returncode()
    return done.stdout


def by_tfkit() -> dict[tuple[str, str], str]:
    """Return type and shape of each input and output, as `tfkit metadata` tells them."""
    tensors = json.loads(run("tfkit", "metadata", "--json"))["data"]["tensors"]
    return {(each["direction"], each["name"]): each["type"] for each in tensors}


def by_rest(url: str) -> dict[tuple[str, str], str]:
    """Return the same from the JSON of the REST API."""
    address = f"{url}/v1/models/inception/metadata"
    print(f"\n$ curl {address}", flush=True)
    metadata = requests.get(address, timeout=30).json()["metadata"]
    signature = metadata["signature_def"]["signature_def"]["serving_default"]
    return {
        (direction, alias): _described(tensor)
        for direction, key in (("in", "inputs"), ("out", "outputs"))
        for alias, tensor in signature[key].items()
    }


def _described(tensor: dict[str, Any]) -> str:
    sizes = [each["size"].replace("-1", "?") for each in tensor["tensor_shape"]["dim"]]
    return f"{tensor['dtype'].removeprefix('DT_').lower()} [{', '.join(sizes)}]"


def demo(options: argparse.Namespace) -> None:
    """Export, push and serve; then hold gRPC against REST."""
    image = Path(shutil.copy(options.image, "image.jpg"))
    run("python", HERE / "export.py", "exported_model", "--weights", options.weights)
    run("tfkit", "warmup", "exported_model", "--input", image)
    run("tfkit", "push-model", "exported_model", "--model", "inception")
    engine = ["--engine", options.engine]
    engine += ["--image", options.server_image] if options.server_image else []
    run("tfkit", "serve", "--model", "inception=models/inception", "--detach", *engine)
    try:
        run("tfkit", "predict", image)
        (server,) = json.loads(run("tfkit", "ps", "--json"))["data"]
        if by_tfkit() != by_rest(server["rest"]):
            raise SystemExit("tfkit metadata and REST tell different signatures")
        print("The signatures are equal.")
        labels = {
            name: run("python", HERE / "client.py", "-f", name, "--port", _port(server[key]), image)
            for name, key in (("GRPC", "grpc"), ("REST", "rest"))
        }
    finally:
        run("tfkit", "stop", "--all")
    if labels["GRPC"] != labels["REST"]:
        raise SystemExit(f"gRPC and REST gave different labels: {labels}")
    print("gRPC and REST agree.")


def _port(url: str) -> str:
    return str(urlsplit(url).port)


def main() -> None:
    """Run the demo in a temporary folder, on free ports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", choices=["imagenet", "none"], default="none")
    parser.add_argument("--image", type=Path, default=IMAGE, metavar="FILE.jpg")
    parser.add_argument("--engine", default="embedded", help="auto, docker, native or embedded")
    parser.add_argument("--server-image", help="image for the Docker engine")
    options = parser.parse_args()
    options.image = options.image.resolve()
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    os.environ |= {"TFKIT_GRPC_PORT": "0", "TFKIT_REST_PORT": "0"}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["TFKIT_STATE_DIR"] = str(Path(folder) / "state")
        demo(options)
        os.chdir(HERE)


if __name__ == "__main__":
    main()
