"""Serve a softmax regression of MNIST, measure it, and replace it by a better model as it serves.

    run.py               # MNIST, downloaded; offline the digits in data/
    run.py --data DIR    # MNIST's four .gz files

Shows every command before it runs it. Works in a temporary folder and stops its server at the end.
"""

import argparse
import gzip
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import requests

import tfserve_kit

HERE = Path(__file__).resolve().parent
DIGITS = HERE.parents[1] / "data" / "digits"
MIRROR = "https://storage.googleapis.com/cvdf-datasets/mnist"
SHA256 = {  # of <name>-ubyte.gz
    "train-images-idx3": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
WORST_PERCENT = 15.0  # of the softmax regression; guessing would be 90


def run(*command: str | Path) -> str:
    """Show a command, run it, and show and return what it prints."""
    print(f"\n$ {shlex.join(map(str, command))}", flush=True)
    tools = {"tfkit": ["-m", "tfserve_kit"], "python": []}
    argv = [sys.executable, *tools[str(command[0])], *map(str, command[1:])]
    done = subprocess.run(argv, check=False, stdout=subprocess.PIPE, text=True)
    print(done.stdout, end="", flush=True)
    done.check_returncode()
    return done.stdout


def demo(data: Path) -> None:
    """Train, push, serve, measure; then do so again with a better model, while serving."""
    train = HERE / "train.py"
    run("python", train, "exported", "--version", "1", "--model", "softmax", "--data", data)
    run("tfkit", "push-model", "exported/1", "--model", "mnist", "--version", "1")
    serve = ("tfkit", "serve", "--model", "mnist=models/mnist", "--detach")
    run(*serve, "--grpc-port", "0", "--rest-port", "0")
    server = only_server()
    classify_one(server["grpc"], data)
    first_percent = error_percent(data)

    run("python", train, "exported", "--version", "2", "--model", "cnn", "--data", data)
    # Requests run all the while; the push fails if one is lost or answered by the wrong version.
    run("tfkit", "push-model", "exported/2", "--model", "mnist", "--version", "2", "--verify")
    second_percent = error_percent(data)

    require(first_percent <= WORST_PERCENT, f"version 1 errs in {first_percent} %")
    require(second_percent < first_percent, f"version 2 is no better: {second_percent} %")
    require(only_server() == server, "the server was restarted")
    print(f"\n{first_percent}% wrong became {second_percent}%, on one server, and nobody noticed.")


def error_percent(data: Path) -> float:
    """Measure the served model on up to 1,000 pictures of the test set; return its error rate."""
    printed = run("tfkit", "evaluate", data, "--num-tests", "1000", "--concurrency", "4")
    return float(re.findall(r"Inference error rate: ([0-9.]+)%", printed)[0])


def only_server() -> dict[str, str]:
    """Return what is known of the running server: its process, its addresses."""
    (server,) = json.loads(run("tfkit", "ps", "--json"))["data"]
    known: dict[str, str] = server
    return known


def classify_one(grpc_url: str, data: Path) -> None:
    """Send the first picture of the test set to the Classify API, as a tf.Example."""
    pixels = gzip.decompress((data / "t10k-images-idx3-ubyte.gz").read_bytes())[16 : 16 + 784]
    example = {"image": [pixel / 255 for pixel in pixels]}
    with tfserve_kit.connect(grpc_url) as client:
        (classes,) = client.classify("mnist", [example], signature="classify").classes
    best = max(classes, key=lambda each: each.score)
    print(f"\nThe Classify API takes the first digit for a {best.label} ({best.score:.1%}).")


def download(folder: Path) -> Path:
    """Return the folder with MNIST's files, or the shipped digits where they cannot be had."""
    try:
        for part, sha256 in SHA256.items():
            name = f"{part}-ubyte.gz"
            content = requests.get(f"{MIRROR}/{name}", timeout=5).content
            require(hashlib.sha256(content).hexdigest() == sha256, f"{name} is not MNIST's")
            (folder / name).write_bytes(content)
    except (requests.RequestException, AssertionError) as error:
        print(f"No MNIST ({error}).\nUsing the smaller {DIGITS} instead.")
        return DIGITS
    return folder


def require(condition: object, fault: str) -> None:
    """Fail unless the condition holds."""
    if not condition:
        raise AssertionError(fault)


def main() -> None:
    """Run it all in a temporary folder; stop the server, whatever happens."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, metavar="DIR", help="MNIST's files")
    given: Path | None = parser.parse_args().data
    data = given.resolve() if given else None
    with tempfile.TemporaryDirectory(prefix="tfkit-mnist-") as folder:
        os.chdir(folder)
        os.environ["TFKIT_STATE_DIR"] = str(Path(folder) / "state")
        try:
            demo(data or download(Path(folder)))
        finally:
            run("tfkit", "stop", "--all")
            os.chdir(HERE)


if __name__ == "__main__":
    main()
