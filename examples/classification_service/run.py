"""A gRPC service of our own in front of a served model, from training to a refused request.

Shows every command before it runs it. Works in a temporary folder and stops its servers at the end.
"""

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
from client import classify

HERE = Path(__file__).resolve().parent
EXAMPLES = HERE.parent
IMAGES = HERE.parents[1] / "data" / "digits" / "jpeg"
CROWD = 32  # clients at once
MOST_CALLS = 5_000


def run(*command: str | Path) -> str:
    """Show a command, run it, and show and return what it prints."""
    print(f"\n$ {shlex.join(map(str, command))}", flush=True)
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    print(done.stdout, end="", flush=True)
    done.check_returncode()
    return done.stdout


@contextmanager
def service(*flags: str) -> Iterator[str]:
    """Run server.py for a `with` block and give its address."""
    command = ["python", str(HERE / "server.py"), "--model", "models/digits", "--port", "0", *flags]
    print(f"\n$ {shlex.join(command)} &", flush=True)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            said = process.stdout.readline() if process.stdout else ""
            print(said, end="", flush=True)
            if not said.startswith("Listening on "):
                raise SystemExit("the service did not start")
            yield said.split()[2].rstrip(",")
        finally:
            process.terminate()


def crowd(server: str) -> Counter[str]:
    """Let many clients call at once until one is refused, and count the outcomes by name."""

    def call(_: int) -> str:
        try:
            scores, _took_s = classify(server, IMAGES / "digit-3.jpg")
        except grpc.RpcError as error:
            return str(error.code().name)
        return f"label {scores[0].label}"

    outcomes: Counter[str] = Counter()
    with ThreadPoolExecutor(CROWD) as clients:
        while not outcomes["UNAVAILABLE"] and outcomes.total() < MOST_CALLS:
            outcomes.update(clients.map(call, range(10 * CROWD)))
    return outcomes


def demo(options: argparse.Namespace) -> None:
    """Train, push, and call the service: once as it comes, once with a queue that is too short."""
    model = options.exported_model
    if model is None:
        model = Path("exported_model")
        run("python", EXAMPLES / "digits" / "train.py", "--out", model)
    run("tfkit", "push-model", model, "--model", "digits")
    engine = ["--engine", options.engine] + (["--image", options.image] if options.image else [])

    with service(*engine) as server:
        client = ("python", HERE / "client.py", "--server", server, "--image")
        printed = run(*client, IMAGES / "digit-3.jpg")
    if "digit-3.jpg: label 3," not in printed:
        raise SystemExit("the picture of a 3 got another label")

    with service(*engine, "--max_batch_size=1", "--max_enqueued_batches=1") as server:
        outcomes = crowd(server)
    print(f"{CROWD} clients at once: {dict(outcomes)}")
    if set(outcomes) != {"label 3", "UNAVAILABLE"}:
        raise SystemExit("a full queue should answer UNAVAILABLE, and else the label")
    print("The service works.")


def main() -> None:
    """Run the demo in a temporary folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", default="embedded", help="auto, docker, native or embedded")
    parser.add_argument("--image", help="image for the Docker engine")
    parser.add_argument("--exported-model", type=Path, metavar="DIR",
                        help="a SavedModel of examples/digits; trained if left out")  # fmt: skip
    options = parser.parse_args()
    if options.exported_model:
        options.exported_model = options.exported_model.resolve()
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["TFKIT_STATE_DIR"] = str(Path(folder) / "state")
        demo(options)
        os.chdir(HERE)


if __name__ == "__main__":
    main()
