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
from pathlib import Path

HERE = Path(__file__).resolve().parent
OFFICIAL_IMAGE = "tensorflow/serving:2.20.0"


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


def images(base: str) -> None:
    """Write what both images are built from, and build the CPU one where its base is there."""
    run("tfkit", "build-image", "--out", "image-cpu")
    run("tfkit", "build-image", "--gpu", "--out", "image-gpu")
    if not has_image(base):
        print(f"Docker has no {base}: no image is built.")
        return
    run("tfkit", "build-image", "--base", base, "--tag", "resnet-testbed:cpu")


def measure() -> None:
    """Serve, classify five pictures in one batch, and measure."""
    run("python", HERE / "draw.py", "pictures")
    pictures = sorted(Path("pictures").iterdir())
    run("tfkit", "serve", "--detach")
    run("tfkit", "predict", "pictures", "--top", "1")
    url = json.loads(run("tfkit", "ps", "--json"))["data"][0]["grpc"]
    client = ("python", HERE / "client.py", "--url", url, *pictures)
    labels = run(*client).partition(": ")[2]
    for concurrency in ("1", "4"):
        run("tfkit", "perf", "--input", "pictures", "--concurrency", concurrency, "--duration", "5")

    # A batch that the server does not take: said by the server, and cut by `predict_batch`.
    config = Path("tfkit.toml")
    config.write_text(config.read_text().replace("max_batch_size = 8 ", "max_batch_size = 2 "))
    print("\n# max_batch_size = 2 in tfkit.toml")
    run("tfkit", "stop")
    run("tfkit", "serve", "--detach")
    url = json.loads(run("tfkit", "ps", "--json"))["data"][0]["grpc"]
    printed = run("python", HERE / "client.py", "--url", url, *pictures, fails=True)
    if "Task size 5 is larger than maximum input batch size 2" not in printed:
        raise SystemExit("the server should refuse five rows at once")
    if labels not in printed:
        raise SystemExit("the parts should get the labels that the whole batch got")


def demo(options: argparse.Namespace) -> None:
    """Export, push from the zip, serve and measure."""
    run("python", HERE / "export.py", "model.zip", "--weights", options.weights)
    run("tfkit", "push-model", "model.zip", "--model", "resnet", "--version", "1")
    shutil.copy(HERE / "tfkit.toml", "tfkit.toml")
    if options.docker:
        images(options.base)
    try:
        measure()
    finally:
        run("tfkit", "stop", "--all")
    print("The test bed works.")


def main() -> None:
    """Run the demo in a temporary folder, on free ports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", choices=["imagenet", "none"], default="none")
    parser.add_argument("--docker", action="store_true", help="make the images as well")
    parser.add_argument("--base", default=OFFICIAL_IMAGE, help="image to build on (%(default)s)")
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
