"""Swaps versions in a server of its own: `python -m bench.swaps MODEL_DIR`.

Each number read from standard input is a number of swaps to make; the answer is the resident memory
after them, in bytes. The first line it prints is the memory with one version served.
"""

import gc
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from tfserve_kit import Target, connect
from tfserve_kit.embedded.loader import skip_package_import
from tfserve_kit.embedded.server import EmbeddedServer
from tfserve_kit.embedded.settings import in_process

_POLL_S = 0.005


def main(model_dir: Path, base: Path) -> None:
    """Serve, swap as told, report."""
    _put(model_dir, base, 1)
    newest = 1
    with (
        EmbeddedServer(replace(in_process({"m": base}), poll_wait_s=_POLL_S)) as server,
        connect(server.grpc_url) as client,
    ):
        gc.freeze()  # as the server's own process does

        def states() -> dict[int, str]:
            return {each.version: each.state for each in client.status(Target("m"))}

        _say_memory()
        for line in sys.stdin:
            for _ in range(int(line)):
                newest += 1
                _put(model_dir, base, newest)
                while (states().get(newest), states().get(newest - 1)) != ("AVAILABLE", "END"):
                    time.sleep(_POLL_S)
                shutil.rmtree(base / str(newest - 1))
            _say_memory()


def _put(model_dir: Path, base: Path, version: int) -> None:
    staged = base / ".staged"
    shutil.copytree(model_dir, staged)
    staged.rename(base / str(version))


def _say_memory() -> None:
    sys.stdout.write(f"{psutil.Process().memory_info().rss}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    skip_package_import()
    with TemporaryDirectory(prefix="swaps-") as scratch:
        main(Path(sys.argv[1]), Path(scratch))
