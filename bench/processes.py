"""Whole processes as sides, and servers for them to talk to."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench.harness import Side, Unavailable

ROOT = Path(__file__).resolve().parents[1]
MODELS = ROOT / "tests" / "data" / "models"
PYTHON = sys.executable

_UNSET = {"PYTHONDONTWRITEBYTECODE", "TFKIT_URL", "TFKIT_MODEL_SERVER"}


def console_script() -> str:
    """Return the installed `tfkit`.

    Raises:
        Unavailable: it is neither beside this Python nor on PATH.
    """
    found = shutil.which("tfkit", path=str(Path(PYTHON).parent)) or shutil.which("tfkit")
    if found is None:
        raise Unavailable("the console script tfkit is not installed")
    return found


@dataclass(frozen=True, slots=True)
class Place:
    """Where processes run: a folder outside the checkout, with tfkit's state kept inside it."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """The environment of this process, with a state folder of its own.

        Bytecode is kept, whatever the developer set: an installed package has it too.
        """
        kept = {key: value for key, value in os.environ.items() if key not in _UNSET}
        return kept | {"TFKIT_STATE_DIR": str(self.folder / "state")}

    def timed(self, *argv: str | Path) -> Side:
        """Return a side that runs a command from start to end."""

        def side() -> float:
            started_s = time.perf_counter()
            self._run(argv)
            return time.perf_counter() - started_s

        return side

    def python(self, code: str) -> Side:
        """Return a side that runs a line of Python in a fresh interpreter."""
        return self.timed(PYTHON, "-c", code)

    def tfkit(self, *arguments: str | Path) -> Any:
        """Run a tfkit command with --json and return its data."""
        done = self._run((console_script(), *arguments, "--json"))
        return json.loads(done.stdout)["data"]

    def _run(self, argv: tuple[str | Path, ...]) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            argv, cwd=self.folder, env=self.environment, check=True, stdout=subprocess.PIPE
        )

    @contextmanager
    def server(self, models: Mapping[str, Path], deployment: str = "") -> Iterator[dict[str, Any]]:
        """Run the embedded engine through `tfkit serve` during a `with` block.

        Args:
            models: base path by model name.
            deployment: what else a deployment file says, such as a table `[batching]`.

        Yields:
            What `tfkit serve --json` says: `grpc` and `rest` are its addresses.
        """
        with ExitStack() as stack:
            stack.callback(self.tfkit, "stop", "--all")
            if not deployment:
                yield self.tfkit(*serve_arguments(models))
                return
            file = self.folder / "tfkit.toml"
            named = [f'[models.{name}]\nbase_path = "{path}"\n' for name, path in models.items()]
            file.write_text("\n".join([deployment, *named]))
            yield self.tfkit(*serve_arguments({}), "--config", file)


def serve_arguments(models: Mapping[str, Path], engine: str = "embedded") -> tuple[str, ...]:
    """Return `serve` with its options, on free ports."""
    named = [text for name, path in models.items() for text in ("--model", f"{name}={path}")]
    ports = ("--grpc-port", "0", "--rest-port", "0")
    return ("serve", "--engine", engine, "--detach", *ports, *named)


def require_tensorflow() -> None:
    """Raise Unavailable where the tensorflow wheel is not installed."""
    if find_spec("tensorflow") is None:
        raise Unavailable("the tensorflow wheel is not installed")


def free_port() -> int:
    """Return a TCP port of this host that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


@contextmanager
def python_module(*argv: str | Path) -> Iterator[Any]:
    """Run a module with its arguments, from the checkout's root, during a `with` block."""
    process = subprocess.Popen(
        [PYTHON, "-m", *argv],
        cwd=ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
