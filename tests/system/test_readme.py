"""The README's commands, run word for word from top to bottom."""

import sys
from pathlib import Path

import pytest

from tests.system.shell import blocks, commands

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()

pytestmark = pytest.mark.tensorflow


def section(title: str) -> str:
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_readme_commands_work_in_order(shell):
    for title in ("Push", "Serve", "Predict", "Perf", "Swap"):
        for argv in commands(section(title)):
            if argv[:2] == ["tfkit", "serve"] and not {"--detach", "--dry-run"} & set(argv):
                shell.run_until_ready_then_interrupt(argv)
                assert shell.run(["tfkit", "ps", "--json"]).endswith('"data": []}\n')
            else:
                shell.run(argv)
    (code,) = blocks(section("Predict"), "python")
    code = code.replace("grpc://localhost:8500", shell.server()["grpc"])
    assert shell.run([sys.executable, "-c", code]) == "1 (1, 10)\n"


def test_first_steps_lead_from_nothing_to_a_page(shell):
    for argv in commands(section("First steps")):
        if argv[:2] == ["tfkit", "playground"]:
            shell.run_until_ready_then_interrupt([*argv, "--port", "0"], "Playground: http://")
        elif argv[0] != "pip":
            shell.run([str(ROOT / part) if part.startswith("examples/") else part for part in argv])


def test_readme_names_the_two_commands_that_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = [argv[1] for argv in commands(section("Two commands"))]
    assert targets == ["demo", "test"]
    assert all(f"\n{target}: " in makefile for target in targets)
