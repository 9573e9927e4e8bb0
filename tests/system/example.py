"""Runs an example as a newcomer does, and holds its README against what it shows."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.system.shell import blocks

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def run_example(name, *options):
    """Run an example's run.py from nowhere in particular and return what it printed."""
    command = [sys.executable, EXAMPLES / name / "run.py", *options]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def assert_readme_shows(name, printed):
    """Every command in the first text block of the README is one that was shown."""
    told = blocks((EXAMPLES / name / "README.md").read_text("utf-8"), "text")[0]
    wanted = [line for line in told.splitlines() if line.startswith("$ ")]
    shown = [_anywhere(line) for line in printed.splitlines()]
    assert wanted
    assert [line for line in wanted if _anywhere(line) not in shown] == []


def _anywhere(line):
    """Return a line without the port numbers and the place of the checkout."""
    return re.sub(r"\b\d{4,5}\b", "PORT", line.replace(f"{ROOT}{os.sep}", ""))
