"""What an example printed, held against its README."""

import os
import re

from tests.system.shell import ROOT, blocks

EXAMPLES = ROOT / "examples"


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
