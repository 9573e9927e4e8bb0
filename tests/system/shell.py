"""Commands of a page, run as they are typed."""

import json
import re
import shlex
import signal
import subprocess
from pathlib import Path


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(text: str) -> list[list[str]]:
    lines = "\n".join(blocks(text, "bash")).splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


class Shell:
    """Runs commands as typed; what the README calls some-host is the server that runs here."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self.folder, self.env = folder, env

    def run(self, argv: list[str]) -> str:
        argv = [part.replace("grpc://some-host:8500", "URL") for part in argv]
        if "URL" in argv:
            argv[argv.index("URL")] = self.server()["grpc"]
        done = subprocess.run(
            argv, cwd=self.folder, env=self.env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{shlex.join(argv)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def run_until_ready_then_interrupt(self, argv: list[str]) -> None:
        process = subprocess.Popen(
            argv, cwd=self.folder, env=self.env, stdout=subprocess.PIPE, text=True
        )
        try:
            assert "is ready" in process.stdout.readline()
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=30) == 130
        finally:
            process.kill()
            process.stdout.close()
            process.wait()

    def server(self) -> dict[str, str]:
        (found,) = json.loads(self.run(["tfkit", "ps", "--json"]))["data"]
        return found
