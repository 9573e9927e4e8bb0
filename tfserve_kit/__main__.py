"""The processes behind `tfkit` (also `python -m tfserve_kit`) and `tfkit-model-server`."""

import atexit
import gc
import os
import sys


def main() -> None:
    """Run the command line; set up first what pays in a process that lives for half a second."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's threads; nothing here needs them
    gc.set_threshold(100_000)  # imports make many objects and no garbage
    atexit.register(gc.freeze)  # the process ends: nothing needs to be collected any more
    from tfserve_kit import cli
    from tfserve_kit.cli import exits

    exits.listen()
    cli.main()


def model_server() -> None:
    """Run the embedded engine: the process behind `tfkit-model-server`."""
    try:
        from tfserve_kit.embedded.__main__ import main as serve
    except ModuleNotFoundError as error:
        sys.stderr.write(f"{error}; install it with: pip install 'tfserve-kit[embedded]'\n")
        raise SystemExit(255) from None  # as whenever tensorflow_model_server fails to start
    raise SystemExit(serve(sys.argv[1:]))


if __name__ == "__main__":
    main()
