"""The whole messages of refusals, as the commands gave them; docs/field.md shows them.

With TFKIT_PASTE=1 they are recorded anew.
"""

import json
import os
from pathlib import Path

FILE = Path(__file__).parent / "messages.json"
RECORDED = json.loads(FILE.read_text("utf-8")) if FILE.exists() else {}


def hold(place, text):
    """Hold a message against the recorded one.

    Args:
        place: the row, and which of its commands was refused.
        text: what the command wrote, without what differs between runs.
    """
    row, what = place
    told = text[text.index("Error: ") :].removeprefix("Error: ").strip()
    if os.environ.get("TFKIT_PASTE") == "1":
        RECORDED.setdefault(row.name, {})[what] = told
        FILE.write_text(json.dumps(RECORDED, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    assert RECORDED.get(row.name, {}).get(what) == told, "run it again with TFKIT_PASTE=1"


def of(row, what):
    """Return a recorded message in one line."""
    lines = RECORDED[row.name][what].splitlines()
    return " ".join(line.strip() for line in lines)
