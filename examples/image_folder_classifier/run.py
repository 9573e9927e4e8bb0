"""Train on a folder of pictures, push, serve, measure, and move the traffic to a better version.

Draws its own pictures: pages of text, and pages of tables and charts. Shows every command before it
runs it. Works in a temporary folder and stops its server at the end.
"""

import csv
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
DEPLOYMENT = """\
[server]
grpc_port = 0
rest_port = 0

[models.pages]
base_path = "models/pages"
versions = "all"
"""


def run(*command: str | Path) -> str:
    """Show a command, run it, and show and return what it prints."""
    print(f"\n$ {shlex.join(map(str, command))}", flush=True)
    tools = {"tfkit": ["-m", "tfserve_kit"], "python": []}
    argv = [sys.executable, *tools[str(command[0])], *map(str, command[1:])]
    done = subprocess.run(argv, check=False, stdout=subprocess.PIPE, text=True)
    print(done.stdout, end="", flush=True)
    done.check_returncode()
    return done.stdout


def demo() -> None:
    """From pictures to two versions in service, the second of them under traffic."""
    run("python", HERE / "draw_pages.py", "pictures", "--each", "120", "--seed", "1")
    run("python", HERE / "draw_pages.py", "withheld", "--each", "40", "--seed", "2")

    old = push(train("--steps", "50", "--no-augment"))
    write_deployment(DEPLOYMENT)
    run("tfkit", "serve", "--detach")
    evaluate("first.csv")

    # Requests run all the while; the push fails if one is lost or answered by the wrong version.
    new = push(train("--steps", "200", "--logdir", "logs"), "--verify")
    evaluate("second.csv", "--max-error-rate", "5%")
    run("tfkit", "status")

    page = min(Path("withheld", "figure").iterdir())
    require(f"version {new}" in run("tfkit", "predict", page), "the highest version is not served")
    require(
        f"version {old}" in run("tfkit", "predict", page, "--version", old),
        "the version before is not served beside it",
    )
    write_deployment(f"{DEPLOYMENT}labels = {{previous = {old}}}\n")
    run("tfkit", "reload")
    require(
        f"version {old}" in run("tfkit", "predict", page, "--label", "previous"),
        "the label does not lead to the version before",
    )
    print(f"\nVersion {new} took over from {old}, and no request was lost.")


def train(*options: str) -> Path:
    """Train on the pages; return the folder of the SavedModel."""
    printed = run("python", HERE / "train.py", "pictures", "--model-dir", "exported", *options)
    return Path(printed.rpartition("SavedModel: ")[2].strip())


def push(exported: Path, *options: str) -> str:
    """Push a SavedModel with the time as its number, and return that."""
    printed = run(
        "tfkit", "push-model", exported, "--model", "pages", "--version", "epoch", *options
    )
    (number,) = re.findall(r"Pushed version (\d+)", printed)
    return str(number)


def write_deployment(toml: str) -> None:
    """Write tfkit.toml, and show it."""
    Path("tfkit.toml").write_text(toml)
    print(f"\n# tfkit.toml\n{toml}", end="")


def evaluate(predictions: str, *gates: str) -> None:
    """Measure the highest version on the withheld pages; show some answers, right or wrong."""
    run("tfkit", "evaluate", "withheld", "--predictions", predictions, *gates)
    with Path(predictions).open(newline="") as file:
        rows = list(csv.DictReader(file))
    require(len(rows) == 80, f"{len(rows)} of 80 pages were answered")
    print("\nSome of the predictions, as label, score and path:")
    show(rows[::10])


def show(rows: Sequence[dict[str, str]]) -> None:
    """Print predictions."""
    for row in rows:
        print(f"{row['predicted']} {row['score']} {row['path']}")


def require(condition: object, fault: str) -> None:
    """Fail unless the condition holds."""
    if not condition:
        raise AssertionError(fault)


def main() -> None:
    """Run it all in a temporary folder; stop the server, whatever happens."""
    with tempfile.TemporaryDirectory(prefix="tfkit-pages-") as folder:
        os.chdir(folder)
        os.environ["TFKIT_STATE_DIR"] = str(Path(folder) / "state")
        try:
            demo()
        finally:
            run("tfkit", "stop", "--all")
            os.chdir(HERE)


if __name__ == "__main__":
    main()
