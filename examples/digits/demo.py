"""Train, push, serve, predict, and swap the model while it serves: tfkit from end to end.

Runs the same commands a person would type and shows each before it runs. Everything happens in a
temporary folder; whatever happens, the server is stopped at the end.
"""

import json
import os
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, Self

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
JPEGS = sorted((ROOT / "data" / "digits" / "jpeg").glob("*.jpg"))
TFKIT = [sys.executable, "-m", "tfserve_kit"]
ENOUGH_RIGHT = 9


def run(*command: str | Path) -> None:
    """Show a command and run it."""
    show(command)
    subprocess.run(_argv(command), check=True)


def ask(*command: str | Path, quiet: bool = False) -> Any:
    """Run a tfkit command with --json and return its data."""
    if not quiet:
        show(command)
    done = subprocess.run([*_argv(command), "--json"], check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout)["data"]


def show(command: tuple[str | Path, ...]) -> None:
    """Print a command as one would type it at the root of the checkout."""
    jpegs = {str(each) for each in JPEGS}
    typed = [str(each) for each in command if str(each) not in jpegs]
    pattern = [f"{JPEGS[0].parent}/*.jpg"] if len(typed) < len(command) else []
    line = " ".join([*map(shlex.quote, typed), *pattern]).replace(f"{ROOT}{os.sep}", "")
    sys.stdout.write(f"\n$ {line}\n")
    sys.stdout.flush()


def title(text: str) -> None:
    """Print what the next commands are about."""
    sys.stdout.write(f"\n== {text}\n")
    sys.stdout.flush()


def _argv(command: tuple[str | Path, ...]) -> list[str]:
    heads = {"tfkit": TFKIT, "python": [sys.executable]}
    return [*heads[str(command[0])], *map(str, command[1:])]


def classify(protocol: str) -> dict[str, tuple[str, float]]:
    """Classify the ten held-out digits; return label and score by file name."""
    predict = ("tfkit", "predict", "--protocol", protocol, "--top", "1")
    best = {Path(each["image"]).name: each["scores"][0] for each in ask(*predict, *JPEGS)}
    return {name: (score["label"], score["score"]) for name, score in best.items()}


def show_labels(
    by_grpc: dict[str, tuple[str, float]], by_rest: dict[str, tuple[str, float]]
) -> None:
    """Print both answers about each picture."""
    sys.stdout.write("\nPICTURE      LABEL  SCORE (gRPC)  SCORE (REST)\n")
    for name, (label, score) in by_grpc.items():
        right = "" if label == _digit(name) else "  WRONG"
        sys.stdout.write(f"{name}  {label:5}  {score:<12.4f}  {by_rest[name][1]:.4f}{right}\n")


def _digit(name: str) -> str:
    return name.removeprefix("digit-").removesuffix(".jpg")


class Traffic:
    """Predicts without a pause from a thread, and counts which version answered."""

    def __init__(self, url: str) -> None:
        self.answers: Counter[int | None] = Counter()
        self.failures: list[str] = []
        self._url = url
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._send)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _send(self) -> None:
        import numpy as np

        from tfserve_kit.clients import Target, connect
        from tfserve_kit.errors import TfkitError

        picture = np.zeros((1, 784), np.float32)
        with connect(self._url) as client:
            while not self._stop.is_set():
                try:
                    answer = client.predict(Target("digits"), {"images": picture})
                    self.answers[answer.version] += 1
                except TfkitError as error:
                    self.failures.append(str(error))


def swap(grpc_url: str, model: Path) -> Traffic:
    """Push a second version under traffic and wait until it has replaced the first."""
    with Traffic(grpc_url) as traffic:
        run("tfkit", "push-model", model, "--to", "models/digits")
        deadline_s = time.monotonic() + 60
        while time.monotonic() < deadline_s:
            states = {each["version"]: each["state"] for each in _status()}
            if states.get(2) == "AVAILABLE" and states.get(1) != "AVAILABLE":
                break
            time.sleep(0.2)
    run("tfkit", "status")
    counts = ", ".join(f"version {v}: {n}" for v, n in sorted(traffic.answers.items()))
    sys.stdout.write(f"\nAnswers during the swap: {counts}; failed: {len(traffic.failures)}\n")
    return traffic


def _status() -> list[dict[str, Any]]:
    states: list[dict[str, Any]] = ask("tfkit", "status", quiet=True)
    return states


def demo() -> list[str]:
    """Run it all; return what went wrong, nothing if all is well."""
    title("Train a model on handwritten digits and push it as version 1")
    run("python", HERE / "train.py", "--out", "digits-v1")
    run("tfkit", "push-model", "digits-v1", "--to", "models/digits")
    try:
        title("Serve it and classify ten pictures it has not seen, over gRPC and over REST")
        serve = ("tfkit", "serve", "--model", "digits=models/digits", "--detach")
        server = ask(*serve, "--grpc-port", "0", "--rest-port", "0")
        by_grpc, by_rest = classify("grpc"), classify("rest")
        show_labels(by_grpc, by_rest)
        title("Train a better model and push it as version 2, while requests keep coming")
        run("python", HERE / "train.py", "--out", "digits-v2", "--steps", "3000")
        traffic = swap(server["grpc"], Path("digits-v2"))
    finally:
        title("Stop the server")
        run("tfkit", "stop", "--all")
    return _faults(by_grpc, by_rest, traffic)


def _faults(
    by_grpc: dict[str, tuple[str, float]], by_rest: dict[str, tuple[str, float]], traffic: Traffic
) -> list[str]:
    right = sum(label == _digit(name) for name, (label, _) in by_grpc.items())
    agree = all(
        by_rest[name][0] == label and abs(by_rest[name][1] - score) < 1e-6
        for name, (label, score) in by_grpc.items()
    )
    sys.stdout.write(
        f"\n{right} of {len(by_grpc)} pictures right; gRPC and REST "
        f"{'agree' if agree else 'DISAGREE'}.\n"
    )
    faults = [] if right >= ENOUGH_RIGHT else [f"only {right} digits were right"]
    faults += [] if agree else ["gRPC and REST gave different answers"]
    faults += [] if traffic.answers[2] else ["version 2 never answered"]
    return faults + traffic.failures[:3]


def main() -> int:
    """Run the demo in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="tfkit-demo-") as folder:
        os.chdir(folder)
        os.environ["TFKIT_STATE_DIR"] = str(Path(folder) / "state")
        try:
            faults = demo()
        finally:
            os.chdir(HERE)
    for fault in faults:
        sys.stderr.write(f"demo: {fault}\n")
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
