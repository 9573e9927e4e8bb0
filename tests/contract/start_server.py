"""Starts a server from a process of its own: `start_server.py PICKLE`, a line on stdin is the go.

The file holds (arguments of ProcessEngine, Plan). Writes `ready`, then after the go `started` or
the name of the error, and lives until its stdin is closed.
"""

import pickle
import sys
from pathlib import Path

from tfserve_kit.engines.process import ProcessEngine
from tfserve_kit.errors import TfkitError


def main(file):
    (arguments, options), plan = pickle.loads(Path(file).read_bytes())
    engine = ProcessEngine(*arguments, **options)
    print("ready", flush=True)
    sys.stdin.readline()
    try:
        engine.start(plan)
        print("started", flush=True)
    except TfkitError as error:
        print(type(error).__name__, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1])
