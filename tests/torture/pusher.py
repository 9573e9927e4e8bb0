"""Pushes a model again and again: ``python -m tests.torture.pusher SOURCE BASE_PATH TIMES``.

Begins with the first line on standard input; prints as JSON the number and the seconds of each
push, and how often a number was lost to another push.
"""

import json
import sys
import time
from pathlib import Path

from tests.torture.operations import Count, observed
from tfserve_kit.repository import push


class Renames(Count):
    """Counts the renames that came too late."""

    lost = 0

    def __call__(self, name, real, *arguments, **options):
        try:
            return real(*arguments, **options)
        except OSError:
            self.lost += name == "rename"
            raise


def main():
    """Push as often as told."""
    source, base_path, times = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    print("ready", flush=True)
    sys.stdin.readline()
    renames = Renames()
    for _ in range(times):
        began = time.monotonic()
        with observed(renames):
            version = push(source, base_path).version
        seconds, lost, renames.lost = time.monotonic() - began, renames.lost, 0
        print(json.dumps({"version": version, "seconds": seconds, "lost": lost}), flush=True)


if __name__ == "__main__":
    main()
