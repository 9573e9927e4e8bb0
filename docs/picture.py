"""Draws what tfkit prints about the digits example: docs/picture.svg, the README's first picture.

    python docs/picture.py   # what `make picture` does

The commands are run, in a temporary folder; nothing of what is drawn is written by hand.
"""

import base64
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[1]
DIGITS = ROOT / "data" / "digits" / "jpeg"
SHOWN = ("digit-3.jpg", "digit-7.jpg", "digit-8.jpg")
COMMANDS = (
    "tfkit push-model digits-v1 --model digits",
    "tfkit serve --model digits=models/digits --engine embedded --detach",
    f"tfkit predict {' '.join(SHOWN)} --top 1",
    "tfkit push-model digits-v2 --model digits --verify",
    "tfkit stop",
)
COLUMNS, LINE, LETTER, MARGIN = 92, 19, 8.1, 18  # characters, and pixels
COLOURS = {"command": "#f2f4f8", "prompt": "#7ee787", "output": "#aab4c3", "ground": "#0d1420"}
FONT = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"


def printed(folder: Path) -> list[tuple[str, str]]:
    """Run the commands; return each with what it printed.

    Notes of progress are left out; of reports that have several parts, the first is shown.
    """
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "TFKIT_STATE_DIR": str(folder / "state"),
        "COLUMNS": str(COLUMNS),
    }
    for number, steps in ((1, 1000), (2, 3000)):
        script = ROOT / "examples" / "digits" / "train.py"
        argv = [sys.executable, script, "--out", f"digits-v{number}", "--steps", str(steps)]
        subprocess.run(argv, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    for name in SHOWN:
        shutil.copy(DIGITS / name, folder)
    found = []
    try:
        for command in COMMANDS:
            done = subprocess.run(
                command.split(), cwd=folder, env=environment, check=True, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
            report = re.sub(r"(?m)^[^\n]* \.\.\.\n", "", done.stdout)
            first, more, _ = report.partition("\n\n")
            found.append((command, f"{first}\n..." if more else first))
    finally:
        stop = ["tfkit", "stop", "--all"]
        subprocess.run(stop, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    return found


def drawing(runs: list[tuple[str, str]]) -> str:
    """Return the commands and what they printed as a terminal, in SVG."""
    parts: list[str] = []
    top = MARGIN + LINE
    for command, output in runs:
        parts.append(_text(top, f'<tspan fill="{COLOURS["prompt"]}">$</tspan> {escape(command)}'))
        if command.startswith("tfkit predict"):
            parts += _pictures(top)
        for line in output.rstrip().splitlines():
            for piece in textwrap.wrap(line, COLUMNS, drop_whitespace=False) or [""]:
                top += LINE
                parts.append(_text(top, escape(piece), "output"))
        top += LINE * 3 // 2
    width, height = COLUMNS * LETTER + 2 * MARGIN, top - LINE + MARGIN / 2
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" font-family="{FONT}" font-size="13.4">\n'
        "<title>tfkit pushes, serves, classifies and replaces a model</title>\n"
        f'<rect width="100%" height="100%" rx="10" fill="{COLOURS["ground"]}"/>\n'
    )
    return head + "".join(parts) + "</svg>\n"


def _text(top: float, inner: str, kind: str = "command") -> str:
    attributes = f'x="{MARGIN}" y="{top:.0f}" fill="{COLOURS[kind]}" xml:space="preserve"'
    return f"<text {attributes}>{inner}</text>\n"


def _pictures(top: float) -> list[str]:
    """Draw the classified pictures at the right end of the command's line."""
    side, right = 2 * LINE, COLUMNS * LETTER + MARGIN
    parts = []
    for place, name in enumerate(SHOWN):
        left = right - (len(SHOWN) - place) * (side + 6)
        encoded = base64.b64encode((DIGITS / name).read_bytes()).decode()
        parts.append(
            f'<image x="{left:.0f}" y="{top - side + 4:.0f}" width="{side}" height="{side}" '
            f'href="data:image/jpeg;base64,{encoded}"/>\n'
        )
    return parts


def main() -> None:
    """Run the commands and draw them."""
    with tempfile.TemporaryDirectory(prefix="tfkit-picture-") as folder:
        runs = printed(Path(folder))
    (ROOT / "docs" / "picture.svg").write_text(drawing(runs), "utf-8")


if __name__ == "__main__":
    main()
