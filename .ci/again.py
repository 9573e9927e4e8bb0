"""Run what failed in `make check` once more, with nothing beside it: the unsteady passes now.

Usage: again.py FOLDER [OPTION ...]: a cache of pytest's for each run of tests, options of pytest's.
"""

import json
import subprocess
import sys
from pathlib import Path

MOST = 12  # more than these are no bad luck


def main(folder: Path, options: list[str]) -> int:
    """Return an exit status: 0 if nothing failed, or nothing twice."""
    caches = folder.glob("*/v/cache/lastfailed")
    failed = sorted({test for each in caches for test in json.loads(each.read_text("utf-8"))})
    if not failed:
        return 0
    if len(failed) > MOST:
        print(f"{len(failed)} tests failed; up to {MOST} would be run once more", *failed, sep="\n")
        return 1
    print("Failed, and run once more:", *failed, sep="\n", flush=True)
    command = [sys.executable, "-m", "pytest", *options, *failed]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
