"""The process behind `tfkit` and `python -m tfserve_kit`."""

import atexit
import gc
import os


def main() -> None:
    """Run the command line; set up first what pays in a process that lives for half a second."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's threads; nothing here needs them
    gc.set_threshold(100_000)  # imports make many objects and no garbage
    atexit.register(gc.freeze)  # the process ends: nothing needs to be collected any more
    from tfserve_kit import cli

    cli.main()


if __name__ == "__main__":
    main()
