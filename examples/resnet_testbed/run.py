"""A test bed for batching: ResNet-50 as it is delivered, pushed, served and measured.

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
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
OFFICIAL_IMAGE = "tensorflow/serving:2.20.0"
PATIENCE_S = 120


def run(*command: str | Path, fails: bool = False) -> str:
    """Show a command, run it, and show and return what it prints; it must fail if that is asked."""
    print(f"\n$ {shlex.join(map(str, command))}", flush=True)
    stderr = subprocess.STDOUT if fails else None
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=stderr, text=True)
    print(done.stdout, end="", flush=True)
    if fails != bool(done.returncode):
        raise SystemExit(f"{command[0]} ended with {done.returncode}")
    return done.stdout


def has_image(name: str) -> bool:
    """Say whether Docker is here and has an image."""
    if not shutil.which("docker"):
        return False
    command = ["docker", "image", "inspect", name]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def images(base: str, tag: str) -> None:
    """Write what the GPU image is built from; build the CPU image, run it, and measure it."""
    run("tfkit", "build-image", "--gpu", "--out", "image-gpu")
    if not has_image(base):
        print(f"Docker has no {base}: no image is built.")
        return
    run("tfkit", "build-image", "--base", base, "--tag", tag)
    ports = ("-p", "127.0.0.1::8500", "-p", "127.0.0.1::8501")
    container = run("docker", "run", "--detach", *ports, "--health-interval=1s", tag).strip()
    try:
        wait_until_healthy(container)
        address = run("docker", "port", container, "8500/tcp").strip()
        measure("--url", f"grpc://{address}", "--model", "resnet")
    finally:
        run("docker", "rm", "--force", "--volumes", container)


def wait_until_healthy(container: str) -> None:
    """Wait until the health check of a container finds that the model answers."""
    command = ("docker", "inspect", "-f", "{{.State.Health.Status}}", container)
    deadline_s = time.monotonic() + PATIENCE_S
    while run(*command) == "starting\n":
        require(time.monotonic() < deadline_s, f"the model is not there after {PATIENCE_S} s")
        time.sleep(1)
    require(run(*command) == "healthy\n", "the container does not serve the model")


def measure(*target: str) -> None:
    """Classify five pictures, one by one, and measure with them."""
    answers = run("tfkit", "predict", "pictures", "--top", "1", *target)
    require(answers.count(": resnet version 1, ") == 5, "not every picture was answered")
    for concurrency in ("1", "4"):
        how = ("--concurrency", concurrency, "--duration", "5")
        report = run("tfkit", "perf", "--input", "pictures", *how, *target)
        require("errors: none" in report, "a request failed")


def too_large() -> None:
    """Send five pictures in one batch: to a server that takes eight rows, and to one of two."""
    pictures = sorted(Path("pictures").iterdir())
    url = json.loads(run("tfkit", "ps", "--json"))["data"][0]["grpc"]
    labels = run("python", HERE / "client.py", "--url", url, *pictures).partition(": ")[2]

    # A batch that the server does not take: said by the server, and cut by `predict_batch`.
    config = Path("tfkit.toml")
    config.write_text(config.read_text().replace("max_batch_size = 8 ", "max_batch_size = 2 "))
    print("\n# max_batch_size = 2 in tfkit.toml")
    run("tfkit", "stop")
    run("tfkit", "serve", "--detach")
    url = json.loads(run("tfkit", "ps", "--json"))["data"][0]["grpc"]
    printed = run("python", HERE / "client.py", "--url", url, *pictures, fails=True)
    refused = "Task size 5 is larger than maximum input batch size 2" in printed
    require(refused, "the server should refuse five rows at once")
    require(labels in printed, "the parts should get the labels that the whole batch got")


def require(condition: object, fault: str) -> None:
    """End with a message unless the condition holds."""
    if not condition:
        raise SystemExit(fault)


def demo(options: argparse.Namespace) -> None:
    """Export, push from the zip, serve and measure."""
    run("python", HERE / "export.py", "model.zip", "--weights", options.weights)
    run("tfkit", "push-model", "model.zip", "--model", "resnet", "--version", "1")
    shutil.copy(HERE / "tfkit.toml", "tfkit.toml")
    run("python", HERE / "draw.py", "pictures")
    if options.docker:
        images(options.base, options.tag)
    else:
        try:
            run("tfkit", "serve", "--detach")
            measure()
            too_large()
        finally:
            run("tfkit", "stop", "--all")
    print("The test bed works.")


def main() -> None:
    """Run the demo in a temporary folder, on free ports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", choices=["imagenet", "none"], default="none")
    parser.add_argument("--docker", action="store_true", help="build an image, and measure that")
    parser.add_argument("--base", default=OFFICIAL_IMAGE, help="image to build on (%(default)s)")
    parser.add_argument("--tag", default="resnet-testbed:cpu", help="its name (%(default)s)")
    options = parser.parse_args()
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    os.environ |= {"TFKIT_GRPC_PORT": "0", "TFKIT_REST_PORT": "0"}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["TFKIT_STATE_DIR"] = str(Path(folder) / "state")
        demo(options)
        os.chdir(HERE)


if __name__ == "__main__":
    main()
