"""The README's commands, run word for word from top to bottom."""

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()

pytestmark = [pytest.mark.slow, pytest.mark.tensorflow]


def blocks(section: str, language: str) -> list[str]:
    body = README.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", body, re.DOTALL)


def commands(section: str) -> list[list[str]]:
    lines = "\n".join(blocks(section, "bash")).splitlines()
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


@pytest.fixture
def shell(tmp_path, trained, shell_env):
    shutil.copytree(trained, tmp_path / "exported_model")
    shutil.copy(ROOT / "data" / "digits" / "jpeg" / "digit-3.jpg", tmp_path / "digit.jpg")
    made = Shell(tmp_path, shell_env)
    yield made
    made.run(["tfkit", "stop", "--all"])


def test_readme_commands_work_in_order(shell):
    for section in ("Push", "Serve", "Predict", "Perf"):
        for argv in commands(section):
            if argv[:2] == ["tfkit", "serve"] and not {"--detach", "--dry-run"} & set(argv):
                shell.run_until_ready_then_interrupt(argv)
                assert shell.run(["tfkit", "ps", "--json"]).endswith('"data": []}\n')
            else:
                shell.run(argv)
    (code,) = blocks("Predict", "python")
    code = code.replace("grpc://localhost:8500", shell.server()["grpc"])
    assert shell.run([sys.executable, "-c", code]) == "1 (1, 10)\n"


def test_readme_names_the_two_commands_that_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = [argv[1] for argv in commands("Two commands")]
    assert targets == ["demo", "test"]
    assert all(f"\n{target}: " in makefile for target in targets)
