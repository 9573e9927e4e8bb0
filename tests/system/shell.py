"""Commands of a page, run as they are typed."""

import json
import re
import shlex
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).parents[2]
# What a busy machine spoils is measured again, as the message asks.
_MEASUREMENTS, _SPOILT = 3, "INVALID: the load generator itself was"
_EXAMPLE = re.compile(r"^python examples/(\w+)/run\.py *(?:#.*)?$", re.MULTILINE)


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(text: str) -> list[list[str]]:
    lines = "\n".join(blocks(text, "bash")).splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


class Shell:
    """Runs commands as typed; what the README calls some-host is the server that runs here.

    Args:
        folder: where they run.
        env: their environment.
        example: returns the file with what an example's run printed; None runs it again.
    """

    def __init__(
        self, folder: Path, env: dict[str, str], example: Callable[[str], Path] | None = None
    ) -> None:
        self.folder, self.env, self.example = folder, env, example

    def run(self, argv: list[str]) -> str:
        argv = [part.replace("grpc://some-host:8500", "URL") for part in argv]
        if "URL" in argv:
            argv[argv.index("URL")] = self.server()["grpc"]
        for _ in range(_MEASUREMENTS):
            done = subprocess.run(
                argv, cwd=self.folder, env=self.env, capture_output=True, text=True, check=False
            )
            if done.returncode == 0 or _SPOILT not in done.stdout + done.stderr:
                break
        assert done.returncode == 0, f"{shlex.join(argv)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def typed(self, argv: list[str]) -> str:
        """Run a block as if the usual ports were used, and return what it would print then."""
        *how, code = argv
        for port, api in (("8500", "grpc"), ("8501", "rest")):
            if f"localhost:{port}" in code:
                here = urlsplit(self.server()[api]).netloc
                code = code.replace(f"localhost:{port}", here)
        if self.example is not None:
            code = _EXAMPLE.sub(lambda found: f"cat {self.example(found[1])}", code)
        printed = self.run([*how, code])
        for path in (self.folder, self.folder.resolve(), ROOT):
            printed = printed.replace(f"{path}/", "")
        printed = re.sub(r"(grpc://[\w.]+):\d+", r"\1:8500", printed)
        return re.sub(r"(http://[\w.]+):\d+", r"\1:8501", printed)

    def run_until_ready_then_interrupt(self, argv: list[str], said: str = "is ready") -> None:
        argv = [self.server()["grpc"] if "some-host" in part else part for part in argv]
        process = subprocess.Popen(
            argv, cwd=self.folder, env=self.env, stdout=subprocess.PIPE, text=True
        )
        try:
            assert said in process.stdout.readline()
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=30) == 130
        finally:
            process.kill()
            process.stdout.close()
            process.wait()

    def server(self) -> dict[str, str]:
        (found,) = json.loads(self.run(["tfkit", "ps", "--json"]))["data"]
        return found
