"""Run all examples, or those that are named, one after the other, and say how long each took.

    run_all.py                        # what `make examples` does
    run_all.py mnist --keep printed   # one of them; what it printed goes into printed/mnist.txt

An example ends with an error if its outcome is not what it should be. This looks, in addition,
whether it left files or processes behind.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TextIO

import psutil

HERE = Path(__file__).resolve().parent
LAST_LINES = 20  # of what a failed one printed, told once more at the end
# In the order in which a newcomer would look at them.
EXAMPLES = {
    "digits": "demo.py",
    "mnist": "run.py",
    "image_folder_classifier": "run.py",
    "inceptionv3_end_to_end": "run.py",
    "resnet_testbed": "run.py",
    "classification_service": "run.py",
}


def run(name: str, keep: Path | None) -> list[str]:
    """Run one example in a place of its own; return what went wrong, nothing if all is well."""
    with tempfile.TemporaryDirectory() as folder:
        script = str(HERE / name / EXAMPLES[name])
        printed, complaints, status = _shown([sys.executable, script], folder)
        faults = [f"it ended with {status}"] if status else []
        faults += [f"it left {each.name} behind" for each in Path(folder).iterdir()]
        faults += [f"it left process {each} running" for each in _processes(folder)]
    if faults:
        ends = [*printed.splitlines()[-LAST_LINES:], *complaints.splitlines()[-LAST_LINES:]]
        return [*faults, "what it printed last, and its last complaints:\n" + "\n".join(ends)]
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        (keep / f"{name}.txt").write_text(printed, "utf-8")
    return []


def _shown(command: list[str], folder: str) -> tuple[str, str, int]:
    """Run a command whose temporary files go into a folder, and show what it prints.

    Returns:
        What it printed on standard output, on standard error, and its exit status.
    """
    # tensorflow imports code that it has made in there, and would leave its bytecode behind.
    environment = os.environ | {"TMPDIR": folder, "PYTHONDONTWRITEBYTECODE": "1"}
    pipe = subprocess.PIPE
    with (
        subprocess.Popen(
            command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True
        ) as process,
        ThreadPoolExecutor() as readers,
    ):
        printed = readers.submit(_passed_on, process.stdout or (), sys.stdout)
        complaints = readers.submit(_passed_on, process.stderr or (), sys.stderr)
    return printed.result(), complaints.result(), process.returncode


def _passed_on(source: Iterable[str], target: TextIO) -> str:
    """Write lines on as they come, and return them."""
    lines = []
    for line in source:
        target.write(line)
        target.flush()
        lines.append(line)
    return "".join(lines)


def _processes(folder: str) -> list[str]:
    """Return the processes, with their commands, whose temporary files would be in a folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("TMPDIR") == folder:
                found.append(f"{process.pid} ({' '.join(process.cmdline())})")
        except psutil.Error:
            continue
    return found


def main() -> int:
    """Run them; exit status 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(EXAMPLES)}")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="write what each printed here")
    options = parser.parse_args()
    if unknown := set(options.names) - set(EXAMPLES):
        parser.error(f"no such example: {', '.join(unknown)}; there are {', '.join(EXAMPLES)}")
    took_s: dict[str, float] = {}
    faults: list[str] = []
    for name in options.names or EXAMPLES:
        print(f"\n=== {name}", flush=True)
        before_s = time.monotonic()
        faults += [f"{name}: {fault}" for fault in run(name, options.keep)]
        took_s[name] = time.monotonic() - before_s
    print()
    for name, seconds in [*took_s.items(), ("all", sum(took_s.values()))]:
        print(f"{name:<24} {seconds:6.1f} s")
    for fault in faults:
        sys.stderr.write(f"{fault}\n")
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
