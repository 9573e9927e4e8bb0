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
from pathlib import Path

import psutil

HERE = Path(__file__).resolve().parent
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
        printed, status = _shown([sys.executable, str(HERE / name / EXAMPLES[name])], folder)
        faults = [f"it ended with {status}"] if status else []
        faults += [f"it left {each.name} behind" for each in Path(folder).iterdir()]
        faults += [f"it left process {each} running" for each in _processes(folder)]
    if keep is not None and not faults:
        keep.mkdir(parents=True, exist_ok=True)
        (keep / f"{name}.txt").write_text(printed, "utf-8")
    return faults


def _shown(command: list[str], folder: str) -> tuple[str, int]:
    """Run a command whose temporary files go into a folder; pass on and return what it prints."""
    lines = []
    # tensorflow imports code that it has made in there, and would leave its bytecode behind.
    environment = os.environ | {"TMPDIR": folder, "PYTHONDONTWRITEBYTECODE": "1"}
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            lines.append(line)
    return "".join(lines), process.returncode


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
